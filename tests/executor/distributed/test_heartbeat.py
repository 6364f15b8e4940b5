"""Who watches ranks accuses the one that hangs, in time, and never one that gets on."""

import threading

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch.distributed import HashStore

from minivllm.executor.distributed.groups import GroupPeers
from minivllm.executor.distributed.heartbeat import COMPUTING, KEY, Activity, Heart, Pulse, Watch, read_pulse
from minivllm.executor.distributed.meeting import Meeting
from minivllm.executor.executor import ExecutorDeadError, RankError
from minivllm.model.parallel.layout import Grid
from minivllm.model.tiny import MODEL_PATH
from tests import patience
from tests.executor.distributed.test_distributed_engine import engine_on
from tests.executor.distributed.thread_ranks import executor_on_threads

SIZE = 3


class World:
    """Ranks whose signs of life are set by hand, and the one who looks at them."""

    def __init__(self, seconds):
        self.store, self.now, self.own = HashStore(), 0.0, Activity()
        self.watch = Watch(Meeting(self.store, 0, SIZE), self.own, lambda: self.now)
        self.watch.expect(seconds)
        self.pulses = dict.fromkeys(range(1, SIZE), Pulse())

    def pass_by(self, seconds, beating=(), moving=()):
        self.now += seconds
        for rank, old in self.pulses.items():
            moves = old.moves + (rank in moving)
            pulse = Pulse(old.beats + (rank in beating), moves, "all parts", 7)
            self.pulses[rank] = pulse
            self.store.set(f"{KEY}/{rank}", msgspec.json.encode(pulse).decode())
        if 0 in moving:
            self.own.begin("computing")

    def accused(self):
        try:
            self.watch.look()
        except RankError as error:
            return str(error)
        return None


ranks = st.sets(st.integers(0, SIZE - 1))
moments = st.tuples(
    st.floats(1.01, 2),  # a look is due each second, of a clock whose differences are rounded
    st.one_of(st.just(set(range(SIZE))), ranks),  # most of the time all beat,
    st.one_of(st.just(set()), ranks),  # and none gets on
)


@given(st.sampled_from([5, 8, 40]), st.lists(moments, min_size=12, max_size=60))
def test_the_silent_one_is_named_and_who_gets_on_is_not(seconds, moments):
    world = World(seconds)
    assert world.accused() is None
    heard, moved, now = dict.fromkeys(range(1, SIZE), 0.0), 0.0, 0.0
    for passed, beating, moving in moments:
        moving = moving & (beating | {0})  # what no beat tells, nobody hears
        world.pass_by(passed, beating, moving)
        now += passed
        heard |= {rank: now for rank in beating if rank}
        moved = now if moving else moved
        silent = [rank for rank, last in heard.items() if now - last > min(seconds, 30)]
        words = world.accused()
        if silent:
            assert words.startswith(f"rank {silent[0]} has given no sign of life")
            return
        if now - moved > seconds:
            assert words.startswith(f"no rank has got on for {seconds} seconds: rank 0 ")
            return
        assert words is None


def test_time_in_which_everybody_was_stopped_does_not_count():
    world = World(60)
    for _ in range(14):
        world.pass_by(10_000)
        assert world.accused() is None, "two seconds of each pause count, and no more"


def test_a_rank_tells_what_it_does():
    store, activity = HashStore(), Activity()
    with Heart(Meeting(store, 2, SIZE), activity):
        activity.step = 4
        activity.begin("receive")
        patience.until(lambda: read_pulse(store, 2).moves == 1)
    assert str(read_pulse(store, 2)) == "receive in step 4"
    assert read_pulse(store, 1) == Pulse()


def test_a_rank_that_waits_for_ever_is_named_with_what_it_does(monkeypatch):
    released, real = threading.Event(), GroupPeers.all_parts

    def both_have_told():
        return executor._activity.what == "all-gather" and executor._watch._pulses[1].what == COMPUTING

    def all_parts(self, own):
        if self._rank and not released.is_set():
            patience.until(both_have_told)
            executor._watch.seconds = 2  # not before: a busy machine may be slow with what comes first
            released.wait(patience.SECONDS)
        return real(self, own)

    sizes = {"num_gpu_blocks_override": 48, "block_size": 4}
    with executor_on_threads(MODEL_PATH, Grid(tensor=2), **sizes) as executor:
        engine = engine_on(executor)
        engine.add_request("it", [5, 6, 7])
        monkeypatch.setattr(GroupPeers, "all_parts", all_parts)
        try:
            with pytest.raises(
                ExecutorDeadError, match=r"for 2 seconds: rank 0 all-gather in step \d, rank 1 computing in"
            ):
                engine.step()
        finally:
            released.set()
