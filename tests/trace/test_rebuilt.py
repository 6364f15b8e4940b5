"""After an interrupt the engine rebuilds its books; `StateRebuilt` says all that replay needs to follow."""

import msgspec
import pytest
from hypothesis import given

from minivllm.trace.events import (
    VERSION,
    BatchPlanned,
    BeamsAdvanced,
    BlocksAllocated,
    BlocksCached,
    BlocksFreed,
    BlocksSwappedOut,
    RebuiltRequest,
    RebuiltSequence,
    RequestPreempted,
    RequestQueued,
    RequestScheduled,
    SequenceFinished,
    SequenceForked,
    StateRebuilt,
    StepFinished,
    StepStarted,
    TokensSampled,
    TraceHeader,
)
from minivllm.trace.perfetto import to_chrome_trace
from minivllm.trace.reader import make_trace
from minivllm.trace.replay import EngineSnapshot, Replay, ReplayState
from minivllm.trace.summary import summarize
from minivllm.trace.timeline import Phase, make_timeline, walk
from tests.trace.interrupted_factory import interrupted
from viz import figures
from viz.figures.prefixes import prefix_history

HEADER = TraceHeader(
    VERSION, "2026-01-01T00:00:00+00:00", "virtual", 6, 2, 4, 10, 64, num_host_blocks=2, prefix_cache="hash"
)

# Three requests: "a" runs with two beams, "b" is in the swap space, "c" waits.
BEFORE = [
    RequestQueued("a", 0, 0.0, (1, 2, 3), 6, "one", ("o", "n", "e"), num_outputs=2, is_beam_search=True),
    RequestQueued("b", 1, 0.0, (4, 5), 6),
    StepStarted(0, 0.0),
    RequestScheduled("a"),
    BlocksAllocated(0, (0, 1)),
    BlocksCached(0, 0, (0,)),
    RequestScheduled("b"),
    BlocksAllocated(1, (2,)),
    BatchPlanned(((0, 0, 3), (1, 0, 2))),
    SequenceForked("a", 0, 2),
    BeamsAdvanced("a", ((0, 0, 6, -1.0, "x"), (0, 2, 7, -2.0, "y"))),
    TokensSampled(((0, 6, "x"), (2, 7, "y"), (1, 8, "z"))),
    StepFinished(0, 1.0),
    RequestQueued("c", 3, 1.0, (9,), 2),
    StepStarted(1, 1.0),
    BlocksSwappedOut(1, (2,), (0,)),
    RequestPreempted("b", "swap", 0),
]
A = RebuiltRequest(
    "a", 0.0, 0, 3, 6, (RebuiltSequence(0, (1, 2, 3, 6), -1.0), RebuiltSequence(2, (1, 2, 3, 7), -2.0))
)
B = RebuiltRequest("b", 0.0, 1, 2, 6, (RebuiltSequence(1, (4, 5, 8)),))
C = RebuiltRequest("c", 1.0, 3, 1, 2, (RebuiltSequence(3, (9,)),))
REBUILT = StateRebuilt(1.5, 1, (A, B, C))


def after(*events, before=BEFORE):
    state = ReplayState(HEADER)
    for event in (*before, *events):
        state.apply(event)
    return state


def test_every_request_waits_with_nothing_computed_and_every_block_is_free():
    assert after(REBUILT).snapshot() == EngineSnapshot(
        num_steps=1,
        free_list=(0, 1, 2, 3, 4, 5),
        ref_counts=(0,) * 6,
        tables={},
        waiting=("a", "b", "c"),
        running=(),
        token_ids={0: (1, 2, 3, 6), 2: (1, 2, 3, 7), 1: (4, 5, 8), 3: (9,)},
        num_computed_tokens={0: 0, 1: 0, 2: 0, 3: 0},
        host_free_list=(0, 1),
        host_ref_counts=(0, 0),
        host_tables={},
        cached={},
        beam_scores={0: -1.0, 2: -2.0},
    )


def test_what_is_known_of_a_sequence_stays_known():
    before, now = after().sequences, after(REBUILT).sequences
    for seq, sequence in now.items():
        assert (sequence.text, sequence.prompt, sequence.prompt_pieces, sequence.parent) == (
            before[seq].text,
            before[seq].prompt,
            before[seq].prompt_pieces,
            before[seq].parent,
        )


def test_what_is_not_named_is_gone():
    alone = StateRebuilt(1.5, 1, (msgspec.structs.replace(A, sequences=A.sequences[1:]), C))
    state = after(alone)
    assert set(state.sequences) == {2, 3} and state.members == {"a": [2], "c": [3]}
    for seq in (0, 1):
        assert (state.finished[seq].finish_reason, state.finished[seq].finished_time) == ("abort", 1.5)
    assert state.first_sequences == {"a": 0, "c": 3}, "a request keeps its place in the order of arrival"


def test_a_fork_whose_event_was_lost_appears_with_its_prompt():
    lost = [event for event in BEFORE[:10] if not isinstance(event, SequenceForked)]
    child = after(REBUILT, before=lost).sequences[2]
    assert (child.request, child.prompt, child.num_prompt_tokens, child.max_tokens) == ("a", "one", 3, 6)
    assert (child.token_ids, child.prompt_pieces, child.queued_time) == ([1, 2, 3, 7], ("o", "n", "e"), 0.0)


@pytest.mark.parametrize("num_known", range(len(BEFORE)))
def test_whatever_was_lost_replay_goes_on_exactly(num_known):
    state, complete = after(REBUILT, before=BEFORE[:num_known]), after(REBUILT)
    assert state.snapshot() == complete.snapshot()
    going_on = [
        StepStarted(1, 2.0),
        RequestScheduled("c"),
        BlocksAllocated(3, (0,)),
        RequestScheduled("b"),
        BlocksAllocated(1, (1, 2)),
        BlocksFreed(1, (2, 1)),
        RequestPreempted("b", "recompute", 0),
        BatchPlanned(((3, 0, 1),)),
        TokensSampled(((3, 8, "w"),)),
        StepFinished(1, 3.0),
    ]
    for event in going_on:
        state.apply(event)
        complete.apply(event)
    assert state.snapshot() == complete.snapshot()
    assert state.waiting == ["a", "b"], "in order of arrival, also if RequestQueued was lost"
    for seq in (0, 1, 2, 3):
        own, known = state.sequences[seq], complete.sequences[seq]
        assert (own.num_prompt_tokens, own.max_tokens, own.queued_time) == (
            known.num_prompt_tokens,
            known.max_tokens,
            known.queued_time,
        )


def test_a_sequence_that_was_said_to_be_finished_may_be_back_and_no_older_state_changes():
    finished = after(BlocksFreed(0, (1, 0)), SequenceFinished(0, "length", 1.2))
    known = finished.finished[0]
    finished.apply(REBUILT)
    assert 0 in finished.sequences and 0 not in finished.finished
    assert finished.sequences[0].finish_reason is None and finished.sequences[0].text == "x"
    assert known.finish_reason == "length", "keyframes share finished sequences"


INTERRUPTED_STEP = [
    *BEFORE,
    REBUILT,
    StepStarted(1, 2.0),
    RequestScheduled("c"),
    BlocksAllocated(3, (0,)),
    BatchPlanned(((3, 0, 1),)),
    TokensSampled(((3, 8, "w"),)),
    StepFinished(1, 3.0),
]


def test_spans_say_that_requests_which_had_run_were_preempted():
    timeline = make_timeline(make_trace(HEADER, INTERRUPTED_STEP))
    phases = {name: [(s.phase, s.first, s.last) for s in spans] for name, spans in timeline.spans.items()}
    assert phases == {
        "a": [(Phase.PREFILL, 0, 0), (Phase.PREEMPTED, 1, 1)],
        "b": [(Phase.PREFILL, 0, 0), (Phase.PREEMPTED, 1, 1)],
        "c": [(Phase.PREFILL, 1, 1)],
    }


def test_the_interrupted_attempt_computed_nothing():
    planned = BatchPlanned(((0, 3, 1), (2, 3, 1)), num_padding_tokens=2)
    trace = make_trace(HEADER, [*BEFORE, planned, REBUILT, StepStarted(1, 2.0), StepFinished(1, 3.0)])
    record = make_timeline(trace).records[1]
    assert (record.batch, record.num_padding_tokens) == ((), 0)
    assert summarize(trace).computed_tokens == 5


def test_tokens_from_before_and_after_the_interrupt_are_all_told():
    told = TokensSampled(((0, 1, "v"),))
    grown = msgspec.structs.replace(A, sequences=(RebuiltSequence(0, (1, 2, 3, 6, 1)), A.sequences[1]))
    events = [*BEFORE, told, StateRebuilt(1.5, 1, (grown, B, C)), *INTERRUPTED_STEP[len(BEFORE) + 1 :]]
    assert make_timeline(make_trace(HEADER, events)).records[1].sampled == ((0, 1, "v"), (3, 8, "w"))


def test_all_blocks_are_returned_and_all_tables_touched():
    record = make_timeline(make_trace(HEADER, INTERRUPTED_STEP)).records[1]
    assert set(record.returned) == {0, 1, 2}
    assert {0, 1, 2} <= record.touched_seqs


def test_a_request_that_is_gone_has_ended_where_it_stood():
    state = StateRebuilt(1.5, 1, (B,))
    timeline = make_timeline(make_trace(HEADER, [*BEFORE, state, StepStarted(1, 2.0), StepFinished(1, 3.0)]))
    assert timeline.records[1].ended == ["a", "c"]
    assert timeline.records[1].ended_before == {"c"}, "it waited, and took no part in the step"
    spans = {name: [(s.phase, s.first, s.last) for s in spans] for name, spans in timeline.spans.items()}
    assert spans["a"] == [(Phase.PREFILL, 0, 0), (Phase.PARKED, 1, 1)] and spans["c"] == []


def test_the_summary_perfetto_and_a_caption_tell_of_it():
    trace = make_trace(HEADER, INTERRUPTED_STEP)
    summary = summarize(trace)
    assert summary.num_rebuilds == 1
    assert dict(summary.facts())["interrupts"] == "1; after each, every request waited with nothing computed"
    instants = [r for r in to_chrome_trace(trace)["traceEvents"] if r["name"] == "state rebuilt"]
    assert [(r["ph"], r["args"]) for r in instants] == [("i", {"step": 1, "requests": 3})]
    first, second = figures.captions(make_timeline(trace))
    assert "interrupted" not in first
    assert "all blocks are free, and a, b and c wait with nothing computed." in second


def test_nothing_else_tells_of_an_interrupt_that_did_not_happen():
    trace = make_trace(HEADER, [*BEFORE, BatchPlanned(()), StepFinished(1, 2.0)])
    assert "interrupts" not in dict(summarize(trace).facts())


def test_it_is_written_and_read_as_it_is():
    line = msgspec.json.encode(REBUILT)
    assert msgspec.json.decode(line, type=StateRebuilt) == REBUILT


@given(interrupted)
def test_replay_follows_a_run_through_its_interrupts(run):
    trace, rebuilt = run
    snapshots, state = dict(rebuilt), ReplayState(trace.header)
    for index, event in enumerate(trace.events):
        state.apply(event)
        if index in snapshots:
            assert state.snapshot() == snapshots[index]
    assert not state.sequences and not state.waiting and not state.running
    replay = Replay(trace)
    for (record, walked), (step, replayed) in zip(walk(trace), replay.walk(), strict=True):
        assert record.step == step and walked.snapshot() == replayed.snapshot()
        assert record.num_used_blocks == sum(count > 0 for count in replayed.ref_counts)


@given(interrupted)
def test_numbers_and_pictures_survive_interrupts(run):
    trace, rebuilt = run
    timeline = make_timeline(trace)
    assert summarize(trace).num_rebuilds == len(rebuilt)
    names = [record["name"] for record in to_chrome_trace(trace)["traceEvents"]]
    assert names.count("state rebuilt") == len(rebuilt)
    request = next(iter(timeline.spans))
    scenes = [
        figures.block_pool(timeline, request),
        figures.prefix_tree(timeline),
        figures.scheduler_gantt(timeline),
        *figures.overview(timeline),
    ]
    assert all(len(scene.captions) == trace.num_steps for scene in scenes)
    cached = set()
    for changes, (_, state) in zip(prefix_history(timeline).steps, Replay(trace).walk(), strict=True):
        for _, block, is_cached in changes.moves:
            assert is_cached != (block in cached), "what was cached before an interrupt is forgotten once"
            (cached.add if is_cached else cached.discard)(block)
        assert cached == set(state.blocks.cached)
    told = sum("interrupted" in caption for caption in figures.captions(timeline))
    assert told == sum(bool(record.rebuilt) for record in timeline.records)
