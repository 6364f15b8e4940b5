"""The waiting queue: in order of rank whatever happens to it, and a step looks only at its beginning."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minivllm.config import SchedulerConfig
from minivllm.scheduling.choose_policy import POLICIES
from minivllm.scheduling.queue import WaitingQueue
from minivllm.scheduling.request import Request, Sequence
from tests.scheduling.toy import Run

ROOMY = SchedulerConfig(num_blocks=300, block_size=4, max_num_seqs=4, max_num_batched_tokens=256)

OPERATIONS = st.lists(st.tuples(st.sampled_from(["join", "leave", "look"]), st.integers(0, 20)), max_size=60)


@given(operations=OPERATIONS)
def test_the_waiting_queue_is_a_sorted_list(operations):
    queue, members, joined = WaitingQueue(), {}, 0
    for operation, value in operations:
        if operation == "join":
            request = Request(f"r{joined}", [Sequence(joined, [1])], 1, 0.0)
            request.arrival_index = joined
            key = (bool(value % 2), float(value // 4), joined)
            queue.append(request, key)
            members[request.request_id] = (key, request)
            joined += 1
        elif operation == "leave" and members:
            name = sorted(members)[value % len(members)]
            queue.remove(members.pop(name)[1])
        else:
            queue.settle()
            in_order = [request for _, request in sorted(members.values(), key=lambda pair: pair[0])]
            assert list(queue) == in_order
            for gone, request in zip(list(queue)[:value], queue, strict=False):  # they leave while we look
                assert gone is request
                queue.remove(request)
                del members[request.request_id]
        queue.check_invariants()
        assert len(queue) == len(members)


class CountingQueue(WaitingQueue):
    """Counts how many it has shown."""

    num_shown = 0

    def __iter__(self):
        for request in super().__iter__():
            self.num_shown += 1
            yield request


@pytest.mark.parametrize("name", POLICIES)
@given(places=st.integers(1, 5), num_waiting=st.integers(20, 60))
def test_a_step_looks_at_no_more_of_the_queue_than_it_can_take(name, places, num_waiting):
    """So a step costs the same whether a hundred wait or a hundred thousand."""
    config = replace(ROOMY, max_num_seqs=places, scheduling_policy=name)
    run = Run(config, [], may_idle=True)
    run.core.state.waiting = CountingQueue()
    for number in range(num_waiting):
        run.arrive(number, prompt=6, output=4)
    for step in range(12):
        before = run.core.state.waiting.num_shown
        run.step(step)
        assert run.core.state.waiting.num_shown - before <= places + 2
