"""The timeline notes what happened, and its spans say at every step what each request did."""

from itertools import pairwise, takewhile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minivllm.trace.events import (
    BatchPlanned,
    BlockCopied,
    BlocksAllocated,
    BlocksEvicted,
    BlocksSwappedIn,
    RequestQueued,
    RequestScheduled,
    SequenceForked,
    StepAbandoned,
    StepFinished,
    StepStarted,
)
from minivllm.trace.reader import TraceError, make_trace
from minivllm.trace.replay import Replay, ReplayState
from minivllm.trace.timeline import Phase, make_timeline, walk, walk_again
from tests.trace.interrupted_factory import interrupted_traces
from tests.viz import sharing_factory, trace_factory
from tests.viz.sharing_factory import Sharing
from tests.viz.strategies import cut_traces, sharing_traces, traces
from tests.viz.trace_factory import Workload


def filled_slots(trace, state):
    """Block → its filled slots: as many as the furthest of the tables that map it says."""
    size, filled = trace.header.block_size, {}
    for seq, table in state.tables.items():
        for index, block in enumerate(table):
            here = max(0, min(size, state.sequences[seq].num_computed_tokens - index * size))
            filled[block] = max(filled.get(block, 0), here)
    return filled


@given(st.one_of(traces, cut_traces, interrupted_traces))
def test_records_agree_with_the_replayed_state_after_every_step(trace):
    walks = zip(walk(trace), walk_again(make_timeline(trace)), Replay(trace).walk(), strict=True)
    for (record, state), (kept, told_again), (step, replayed) in walks:
        assert record.step == step
        assert state.snapshot() == told_again.snapshot() == replayed.snapshot()
        assert record == kept
        assert record.num_used_blocks == sum(count > 0 for count in replayed.ref_counts)
        idle = [block for block in replayed.blocks.cached if not replayed.ref_counts[block]]
        assert record.num_evictable_blocks == len(idle)
        assert record.num_host_blocks == sum(count > 0 for count in replayed.blocks.host.ref_counts)
        assert record.num_saved_blocks == sum(count - 1 for count in replayed.ref_counts if count)
        assert (record.num_waiting, record.num_running) == (len(replayed.waiting), len(replayed.running))
        assert record.num_filled_slots == sum(filled_slots(trace, replayed).values())


def last_swapped_in(trace):
    """Whose blocks came back in the last step: a trace may be cut off before they are scheduled."""
    last = takewhile(lambda event: not isinstance(event, StepStarted), reversed(trace.events))
    return {event.seq for event in last if isinstance(event, BlocksSwappedIn)}


@given(st.one_of(traces, cut_traces, interrupted_traces))
def test_spans_tell_the_phase_of_every_request_at_every_step(trace):
    timeline, brought_back = make_timeline(trace), last_swapped_in(trace)
    for record, state in walk(trace):
        phases = {(item.request, item.phase) for item in record.batch}
        phase_of = dict(sorted(phases))  # of a request that does both, prefill
        for request, spans in timeline.spans.items():
            here = [span.phase for span in spans if span.first <= record.step <= span.last]
            assert len(here) <= 1, "spans of a request never overlap"
            if request in phase_of:
                assert here == [phase_of[request]]
            elif request in state.waiting:
                assert here and here[0] in (Phase.WAITING, Phase.PREEMPTED, Phase.SWAPPED)
                if here[0] is Phase.SWAPPED:
                    swapped = {*state.blocks.host_tables, *brought_back}
                    assert not swapped.isdisjoint(state.members[request])
            elif request in state.running:
                assert here == [Phase.PARKED]
            else:
                # A parked request that finishes when the step is over was parked in it.
                finishes = request in record.ended and request not in record.ended_before
                assert here == ([Phase.PARKED] if finishes else [])


@given(traces)
def test_neighbouring_spans_differ_and_follow_each_other(trace):
    for spans in make_timeline(trace).spans.values():
        for before, after in pairwise(spans):
            assert before.phase is not after.phase
            assert after.first == before.last + 1


@given(traces)
def test_decode_means_computing_only_the_newest_token_of_an_answer(trace):
    for record, state in walk(trace):
        for item in record.batch:
            sequence = state.sequences.get(item.seq) or state.finished[item.seq]
            if item.phase is Phase.DECODE:
                assert item.num_tokens == 1 and item.start >= sequence.num_prompt_tokens
            elif item.num_tokens == 1:
                assert item.start < max(sequence.num_prompt_tokens, len(sequence.token_ids) - 1)


def test_a_preempted_request_waits_as_preempted_and_prefills_again():
    timeline = make_timeline(
        trace_factory.make(Workload(num_requests=6, num_blocks=14, output=(40, 60), arrival_gap=0.5))
    )
    phases = [[span.phase for span in spans] for spans in timeline.spans.values()]
    assert any(Phase.PREEMPTED in row for row in phases)
    for row in phases:
        for before, after in pairwise(row):
            if before is Phase.PREEMPTED:
                assert after is Phase.PREFILL


@given(sharing_traces)
def test_what_happened_to_blocks_is_what_the_events_say(trace):
    for record, _ in walk(trace):
        events = trace.step_events(record.step)

        def blocks(kind, name="blocks", events=events):
            return [b for event in events if isinstance(event, kind) for b in getattr(event, name)]

        assert [e.target for e in record.copied] == [e.target for e in events if isinstance(e, BlockCopied)]
        fresh = set(blocks(BlocksAllocated)) | {e.target for e in record.copied}
        assert fresh <= set(record.taken) <= fresh | set(blocks(BlocksSwappedIn))
        assert sorted(b for e in record.evicted for b in e.blocks) == sorted(blocks(BlocksEvicted))
        assert len(record.forked) == sum(isinstance(event, SequenceForked) for event in events)
        assert len(record.abandoned) == sum(isinstance(event, StepAbandoned) for event in events)


@given(st.one_of(sharing_traces, interrupted_traces))
def test_returned_blocks_were_freed_by_their_last_reader(trace):
    state = ReplayState(trace.header)
    for record, _ in walk(trace):
        freed = set()
        for event in trace.step_events(record.step):
            free_before = set(state.free)
            state.apply(event)
            if not isinstance(event, BlocksEvicted):
                freed |= set(state.free) - free_before
        assert set(record.returned) == freed


def test_a_slot_is_filled_if_any_of_its_readers_has_filled_it():
    header = trace_factory.make(Workload(num_requests=1, block_size=4)).header
    # Cut off in the middle of the step that has filled the block: so far only the fork knows it.
    events = [
        RequestQueued("a", 0, 0.0, (1, 2, 3, 4), 5),
        StepStarted(0, 0.0),
        RequestScheduled("a"),
        BlocksAllocated(0, (0,)),
        BatchPlanned(((0, 0, 4),)),
        SequenceForked("a", 0, 1),
    ]
    [record] = make_timeline(make_trace(header, events)).records
    assert (record.num_used_blocks, record.num_filled_slots, record.num_saved_blocks) == (1, 4, 1)


@given(sharing_traces)
def test_a_request_ends_once_and_with_its_last_sequence(trace):
    ended = []
    for record, state in walk(trace):
        for request in record.ended:
            assert request not in state.members
            ended.append(request)
    queued = [event.request for event in trace.events if isinstance(event, RequestQueued)]
    assert sorted(ended) == sorted(queued)


def test_a_swapped_request_waits_as_swapped_and_goes_on_where_it_was():
    load = Sharing(num_requests=8, num_blocks=32, kinds=("plain",), output=(12, 20), arrival_gap=0, seed=3)
    timeline = make_timeline(sharing_factory.make(load))
    spans = [span for spans in timeline.spans.values() for span in spans]
    assert any(span.phase is Phase.SWAPPED for span in spans)
    for row in timeline.spans.values():
        for before, after in pairwise(row):
            if before.phase is Phase.SWAPPED:
                assert after.phase is Phase.DECODE


@pytest.mark.parametrize(
    "events",
    [
        (RequestScheduled("unknown"),),
        (BlocksAllocated(0, (0, 0)),),
        (BlocksAllocated(0, (10_000,)),),
        (BlocksAllocated(0, (0,)), BlocksAllocated(1, (0,))),
    ],
    ids=["unknown request", "a block twice", "no such block", "a block in use"],
)
def test_events_that_contradict_each_other_are_refused_in_one_sentence(events):
    header = trace_factory.make(Workload(num_requests=1)).header
    trace = make_trace(header, [StepStarted(0, 0.0), *events, StepFinished(0, 0.1)])
    with pytest.raises(TraceError, match=r"event [2-5], contradicts what came before"):
        make_timeline(trace)
