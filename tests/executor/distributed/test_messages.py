"""What rank 0 says is what the others hear."""

import threading
from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from torch.distributed import HashStore

from minivllm.executor.distributed.groups import FRAME_BYTES, Control
from minivllm.executor.distributed.meeting import LOOPBACK, Meeting
from minivllm.executor.distributed.messages import decode_plan, encode_plan
from minivllm.executor.executor import RankError
from minivllm.memory.block_move import BlockMove
from minivllm.scheduling.plan import ScheduledSequence, StepPlan
from tests import patience

numbers = st.integers(0, 2**31 - 1)
arrays = st.lists(numbers, max_size=9).map(lambda items: array("i", items))
plans = st.builds(
    StepPlan,
    step=st.integers(0, 2**63 - 1),
    scheduled=st.lists(
        st.builds(ScheduledSequence, numbers, numbers, arrays, arrays, numbers), max_size=4
    ).map(tuple),
    moves=st.lists(
        st.builds(BlockMove, st.sampled_from(["copy", "swap_in", "swap_out"]), numbers, numbers), max_size=4
    ).map(tuple),
    num_padding_tokens=numbers,
    request_ids=st.lists(st.text(), max_size=2).map(tuple),
)


@given(plan=plans)
def test_a_plan_arrives_as_it_was_sent_but_for_the_names_of_its_requests(plan):
    assert decode_plan(encode_plan(plan)) == replace(plan, request_ids=())


def test_messages_of_any_length_arrive_in_their_order():
    lengths = [5, 0, FRAME_BYTES - 8, FRAME_BYTES - 7, 3 * FRAME_BYTES, 1]
    messages = [bytes(index % 251 for index in range(length)) for length in lengths]
    heard = {rank: [] for rank in (1, 2)}
    store = HashStore()

    def listen(rank):
        control = Control(store, rank, 3, LOOPBACK)
        heard[rank] += [control.next_message() for _ in messages]

    threads = [threading.Thread(target=listen, args=(rank,), daemon=True) for rank in heard]
    for thread in threads:
        thread.start()
    control = Control(store, 0, 3, LOOPBACK)
    for message in messages:
        control.broadcast(message)
    for thread in threads:
        patience.join(thread)
    assert heard == {1: messages, 2: messages}


def test_who_does_not_come_is_named():
    store = HashStore()
    Meeting(store, 2, 4).note("here")
    with pytest.raises(RankError, match=r"rank 1, 3 of 4 has not come within 0 seconds"):
        Meeting(store, 0, 4, seconds=0.05).wait_for_all("here", "come")
    with pytest.raises(RankError, match="rank 0 has not told the others its settings"):
        Meeting(store, 1, 4, seconds=0.05).hear("settings")


def test_what_has_failed_elsewhere_is_told():
    store = HashStore()
    Meeting(store, 2, 3).note("failed", "ValueError: no such file")
    with pytest.raises(RankError, match="rank 2: ValueError: no such file"):
        Meeting(store, 0, 3).wait_for_all("loaded", "loaded its share")
