"""The timeline notes what happened, and its spans say at every step what each request did."""

from itertools import pairwise

import pytest
from hypothesis import given

from minivllm.trace.events import BlocksAllocated, RequestScheduled, StepFinished, StepStarted
from minivllm.trace.reader import TraceError, make_trace
from minivllm.trace.replay import Replay
from minivllm.trace.timeline import Phase, make_timeline, walk
from tests.viz import trace_factory
from tests.viz.strategies import traces
from tests.viz.trace_factory import Workload


@given(traces)
def test_records_agree_with_the_replayed_state_after_every_step(trace):
    for (record, state), (step, replayed) in zip(walk(trace), Replay(trace).walk(), strict=True):
        assert record.step == step
        assert state.snapshot() == replayed.snapshot()
        assert record.num_used_blocks == sum(count > 0 for count in replayed.ref_counts)
        assert (record.num_waiting, record.num_running) == (len(replayed.waiting), len(replayed.running))
        filled = sum(replayed.sequences[seq].num_computed_tokens for seq in replayed.tables)
        assert record.num_filled_slots == filled <= record.num_used_blocks * trace.header.block_size


@given(traces)
def test_spans_tell_the_phase_of_every_request_at_every_step(trace):
    timeline = make_timeline(trace)
    for record, state in walk(trace):
        phase_of = {item.request: item.phase for item in record.batch}
        for request, spans in timeline.spans.items():
            here = [span.phase for span in spans if span.first <= record.step <= span.last]
            assert len(here) <= 1, "spans of a request never overlap"
            if request in phase_of:
                assert here == [phase_of[request]]
            elif request in state.waiting:
                assert here and here[0] in (Phase.WAITING, Phase.PREEMPTED)
            elif request in state.running:
                assert here == [Phase.HELD]
            else:
                assert not here


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
                assert item.start < len(sequence.token_ids) - 1


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


@pytest.mark.parametrize(
    "event",
    [RequestScheduled("nobody"), BlocksAllocated(0, (0, 0)), BlocksAllocated(0, (10_000,))],
    ids=["unknown request", "a block twice", "no such block"],
)
def test_events_that_contradict_each_other_are_refused_in_one_sentence(event):
    header = trace_factory.make(Workload(num_requests=1)).header
    trace = make_trace(header, [StepStarted(0, 0.0), event, StepFinished(0, 0.1)])
    with pytest.raises(TraceError, match="step 0 of the trace contradicts what came before"):
        make_timeline(trace)
