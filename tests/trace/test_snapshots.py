"""A trace may begin in the middle of a run: from a snapshot on, replay goes on as from the beginning."""

import contextlib
import copy
from collections import Counter

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minivllm.trace.engine_counts import EngineCounts
from minivllm.trace.events import SnapshotTaken, StepFinished
from minivllm.trace.perfetto import to_chrome_trace
from minivllm.trace.reader import TraceError, make_trace, read_trace
from minivllm.trace.recorder import Recorder
from minivllm.trace.replay import Replay, ReplayState
from minivllm.trace.snapshots import forget_finished, take_snapshot
from minivllm.trace.summary import summarize
from minivllm.trace.timeline import make_timeline
from tests.engine.fakes import make_engine
from tests.engine.test_sharing import limits, requests
from tests.trace.every_event import EVERY_EVENT, HEADER
from viz import figures
from viz.charts.over_time import binned
from viz.figures.prefixes import prefix_history
from viz.measures import latencies


def sent(event):
    """The event after a journey through a file."""
    return msgspec.json.decode(msgspec.json.encode(event), type=type(event))


@st.composite
def halves(draw):
    """A run cut between two steps: its header, the events before the cut, those after it."""
    work = draw(requests)
    recorder = Recorder()
    engine = make_engine(recorder=recorder, **draw(limits(work)))
    cut_at, cut, added = draw(st.integers(0, 12)), None, 0
    while added < len(work) or engine.has_unfinished_requests():
        if engine.num_steps >= cut_at and cut is None:
            cut = len(recorder.events)
            while engine.core.in_flight and not isinstance(recorder.events[cut - 1], StepFinished):
                cut -= 1  # a step that was planned ahead has begun
        action = draw(st.sampled_from(["add", "step", "step", "step", "abort", "fail", "interrupt"]))
        if action == "add" and added < len(work):
            engine.add_request(f"r{added}", *work[added])
            added += 1
        elif action == "abort" and draw(st.booleans()):
            engine.abort(f"r{draw(st.integers(0, len(work)))}")
        elif action == "interrupt" and draw(st.integers(0, 3)) == 0:
            engine._is_busy = engine.core._is_changing = True
        else:
            engine.executor.fail_next = "after" if action == "fail" and draw(st.booleans()) else ""
            with contextlib.suppress(RuntimeError):
                engine.step()
            engine.executor.fail_next = ""
    header, *events = recorder.events
    cut = len(events) if cut is None else cut - 1
    return header, events[:cut], events[cut:]


@pytest.mark.filterwarnings("ignore:request .* is recomputed")
@settings(max_examples=30)
@given(halves(), st.integers(0, 3))
def test_a_run_goes_on_from_a_snapshot_as_from_its_beginning(run, kept):
    header, before, after = run
    whole, follower = ReplayState(header), ReplayState(header)
    for event in before:
        whole.apply(event)
        follower.apply(event)
        if isinstance(event, StepFinished):
            forget_finished(follower, keep=kept)
    joined = ReplayState(header)
    joined.apply(sent(take_snapshot(follower)))
    for event in [None, *after]:
        if event is not None:
            whole.apply(event)
            joined.apply(event)
        assert joined.snapshot() == whole.snapshot()
        assert joined.sequences == whole.sequences, "texts, counts and times"
        assert joined.blocks == whole.blocks and joined.members == whole.members
        assert joined.first_sequences == whole.first_sequences


COUNTED = ("steps", "generation_tokens", "num_preemptions", "prefix_cache_queries", "prefix_cache_hits")


@pytest.mark.filterwarnings("ignore:request .* is recomputed")
@settings(max_examples=30)
@given(halves())
def test_counts_that_begin_with_a_snapshot_are_those_of_the_rest(run):
    """Of requests that had begun, what they do is counted, and no time is invented."""
    header, before, after = run
    state, whole = ReplayState(header), EngineCounts()
    whole.emit(header)
    for event in before:
        state.apply(event)
        whole.emit(event)
    earlier = copy.deepcopy((whole.counters, whole.finished, whole.tallies))
    joined = EngineCounts()
    snapshot = sent(take_snapshot(state))
    for event in (header, snapshot, *after):
        joined.emit(event)
    for event in after:
        whole.emit(event)
    for name in COUNTED:
        assert joined.counters[name] == whole.counters[name] - earlier[0][name], name
    assert joined.finished == whole.finished - earlier[1] + Counter(dict.fromkeys(joined.finished, 0))
    for name, tally in joined.tallies.items():
        assert tally.num_values <= whole.tallies[name].num_values - earlier[2][name].num_values, name
        assert tally.sum <= whole.tallies[name].sum - earlier[2][name].sum + 1e-9, name


@pytest.mark.filterwarnings("ignore:request .* is recomputed")
@settings(max_examples=12)
@given(halves())
def test_every_reader_and_every_picture_opens_a_trace_that_begins_in_the_middle(run):
    header, before, after = run
    state = ReplayState(header)
    for event in before:
        state.apply(event)
    trace = make_trace(header, [take_snapshot(state), *after])
    timeline = make_timeline(trace)
    summary = summarize(trace)
    to_chrome_trace(trace)
    assert summary.num_requests == len({s.request for s in timeline.sequences.values()})
    assert len(latencies(timeline).ttft) == summary.ttft.count
    assert len(latencies(timeline).queue_time) == summary.queue_time.count
    assert len(latencies(timeline).inter_token) == summary.inter_token.count
    assert Replay(trace).state_at(trace.num_steps - 1).sequences == {}
    if not timeline.spans:
        return
    prefix_history(timeline)
    selected = next(iter(timeline.spans))
    scenes = [
        figures.block_pool(timeline, selected),
        figures.block_table(timeline, selected),
        figures.memory_over_time(timeline),
        figures.scheduler_gantt(timeline),
        figures.batch_composition(timeline),
        *figures.overview(timeline),
    ]
    assert {scene.num_steps for scene in scenes} == {trace.num_steps}
    assert "The trace begins here" in scenes[0].captions[0]
    binned(timeline.records, 0.0, 1.0)


def busy_snapshot():
    """Of the run written by hand, after its second step: a table, blocks in the cache, a swapped request."""
    state = ReplayState(HEADER)
    step_ends = 0
    for event in EVERY_EVENT:
        state.apply(event)
        step_ends += isinstance(event, StepFinished)
        if step_ends == 2:
            return take_snapshot(state)


ABSURD = {
    "a block is free twice": lambda s: {"free": (*s.free[:-1], s.free[0])},
    "beyond the pool of 8": lambda s: {"free": ((7, 2),)},
    "is free, and in use": lambda s: {"free": ((0, 8),)},
    "are nowhere": lambda s: {"free": ()},
    "a request is in a queue twice": lambda s: {"waiting": (*s.waiting, *s.waiting)},
    "those of different requests": lambda s: {"waiting": (), "running": ()},
    "others than those that are told": lambda s: {"sequences": ()},
    "fewer tokens than its prompt": lambda s: {
        "sequences": tuple(msgspec.structs.replace(item, num_prompt_tokens=99) for item in s.sequences)
    },
    "more tokens than it has": lambda s: {
        "sequences": tuple(msgspec.structs.replace(item, num_computed_tokens=99) for item in s.sequences)
    },
    "a sequence comes twice": lambda s: {"former": s.sequences},
    "is not known": lambda s: {"tables": {**s.tables, 77: ()}},
    "twice": lambda s: {"tables": {seq: table * 2 for seq, table in s.tables.items()}},
    "of which nothing is told": lambda s: {"cached": tuple((b, a, 55, i, t) for b, a, _, i, t in s.cached)},
    "is cached twice": lambda s: {"cached": s.cached * 2},
    "4 of 4 host blocks are nowhere": lambda s: {"host_free": ()},
}


@pytest.mark.parametrize("message", ABSURD)
def test_an_absurd_snapshot_is_refused_in_a_sentence(message):
    good = busy_snapshot()
    ReplayState(HEADER).apply(good)
    bad = msgspec.structs.replace(good, **ABSURD[message](good))
    with pytest.raises(TraceError, match=message):
        ReplayState(HEADER).apply(bad)


def test_a_snapshot_comes_first():
    state = ReplayState(HEADER)
    for event in EVERY_EVENT[:10]:
        state.apply(event)
    before = copy.deepcopy(state)
    with pytest.raises(TraceError, match="after other events"):
        state.apply(busy_snapshot())
    assert state == before


def test_a_file_that_begins_with_a_snapshot_opens_and_says_so(tmp_path):
    path = tmp_path / "middle.jsonl"
    with Recorder(path) as recorder:
        recorder.start(HEADER)
        recorder.emit(busy_snapshot())
        ends = 0
        for event in EVERY_EVENT:
            if ends >= 2:
                recorder.emit(event)
            ends += isinstance(event, StepFinished)
    trace = read_trace(path)
    assert trace.warnings == [] and isinstance(trace.events[0], SnapshotTaken)
    assert "after 2 before the trace" in dict(summarize(trace).facts())["steps"]
