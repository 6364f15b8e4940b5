"""The summary's numbers, against a run small enough to be counted by hand and against plain recomputation."""

import statistics

import msgspec
import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minivllm.trace.events import (
    VERSION,
    BatchPlanned,
    BlockCopied,
    BlocksAllocated,
    BlocksCached,
    BlocksEvicted,
    BlocksFreed,
    BlocksShared,
    RequestPreempted,
    RequestQueued,
    RequestRefused,
    RequestScheduled,
    SequenceFinished,
    SequenceForked,
    StepAbandoned,
    StepFinished,
    StepStarted,
    TokensSampled,
    TraceHeader,
)
from minivllm.trace.reader import make_trace
from minivllm.trace.replay import Replay
from minivllm.trace.summary import format_seconds, percentiles, summarize, timeline_and_summary
from minivllm.trace.timeline import make_timeline
from tests.viz.strategies import cut_traces, sharing_traces, traces

HEADER = TraceHeader(VERSION, "2026-01-01T00:00:00+00:00", "virtual", 8, 4, 4, 10, 64)

# One request of six prompt tokens answers with three; steps take one second, and one second lies between
# arrival and first step. Six tokens need two blocks of four, the ninth is never computed.
BY_HAND = [
    RequestRefused("b", 0.5, "too long"),
    RequestQueued("a", 0, 1.0, (1, 2, 3, 4, 5, 6), 3),
    StepStarted(0, 2.0),
    RequestScheduled("a"),
    BlocksAllocated(0, (0, 1)),
    BatchPlanned(((0, 0, 6),)),
    TokensSampled(((0, 7, "x"),)),
    StepFinished(0, 3.0, {"schedule": 0.1, "model": 0.6, "attention": 0.3, "sample": 0.1, "update": 0.2}),
    StepStarted(1, 3.0),
    BatchPlanned(((0, 6, 1),)),
    TokensSampled(((0, 8, "y"),)),
    StepFinished(1, 4.0, {"schedule": 0.1, "model": 0.6, "attention": 0.3, "sample": 0.1, "update": 0.2}),
    StepStarted(2, 5.0),
    BatchPlanned(((0, 7, 1),)),
    TokensSampled(((0, 9, "z"),)),
    BlocksFreed(0, (1, 0)),
    SequenceFinished(0, "length", 6.0),
    StepFinished(2, 6.0, {"schedule": 0.1, "model": 0.6, "attention": 0.3, "sample": 0.1, "update": 0.2}),
]


def test_a_run_counted_by_hand():
    summary = summarize(make_trace(HEADER, BY_HAND))
    assert (summary.num_steps, summary.num_requests, summary.num_finished) == (3, 1, 1)
    assert (summary.num_refused, summary.num_preemptions, summary.num_aborted) == (1, 0, 0)
    assert (summary.prompt_tokens, summary.output_tokens, summary.computed_tokens) == (6, 3, 8)
    assert summary.duration_seconds == 5.0  # arrival at 1, last step ends at 6
    assert summary.output_tokens_per_second == pytest.approx(3 / 5)
    assert summary.queue_time.p50 == 1.0
    assert summary.ttft.p50 == 2.0
    assert summary.inter_token.p50 == pytest.approx(1.5)  # gaps of 1 and 2 seconds
    assert summary.tpot.p50 == pytest.approx(1.5)
    assert summary.end_to_end.p50 == 5.0
    assert (summary.peak_used_blocks, summary.mean_used_blocks) == (2, pytest.approx(4 / 3))
    assert summary.mean_waste == pytest.approx((2 / 8 + 1 / 8) / 2)  # 6, then 7 of 8 slots; then no block
    assert summary.mean_budget_use == pytest.approx(8 / 30)
    assert summary.step_seconds["model"] == pytest.approx(1.8)


def test_the_printed_table_of_the_run_counted_by_hand():
    lines = dict(line.split("  ", 1) for line in summarize(make_trace(HEADER, BY_HAND)).lines())
    table = {name.strip(): value.strip() for name, value in lines.items()}
    assert table["requests"] == "1 (1 finished); 1 refused at the door"
    assert table["tokens"] == "6 in prompts, 3 generated"
    assert table["time to first token"] == "p50 2 s, p90 2 s, p99 2 s"
    assert table["preemptions"] == "none"
    assert table["blocks in use"] == "peak 2 of 8 (25%), mean 1.3"
    assert table["time goes to"] == "schedule 10%, model 60%, sample 10%, update 20% (attention alone 30%)"


def test_preempted_tokens_are_counted_as_given_up_and_as_computed_again():
    events = [
        *BY_HAND[:8],
        StepStarted(1, 3.0),
        BlocksFreed(0, (1, 0)),
        RequestPreempted("a", "recompute", 6),
        BatchPlanned(()),
        StepFinished(1, 4.0),
        StepStarted(2, 4.0),
        RequestScheduled("a"),
        BlocksAllocated(0, (2, 3)),
        BatchPlanned(((0, 0, 7),)),
        TokensSampled(((0, 8, "y"),)),
        StepFinished(2, 5.0),
    ]
    summary = summarize(make_trace(HEADER, events))
    assert (summary.num_preemptions, summary.recomputed_tokens, summary.computed_tokens) == (1, 6, 13)
    assert summary.queue_time.count == 1, "the queue time is that of the first time it was scheduled"
    assert summary.inter_token.p50 == 2.0
    assert "1 unfinished" in summary.lines()[0]


@given(st.one_of(traces, cut_traces))
def test_totals_agree_with_plain_recomputation(trace):
    summary = summarize(trace)
    queued = [event for event in trace.events if isinstance(event, RequestQueued)]
    sampled = [item for event in trace.events if isinstance(event, TokensSampled) for item in event.items]
    planned = []
    for step in range(trace.num_steps):
        plans = [
            event for event in trace.step_events(step) if isinstance(event, BatchPlanned | StepAbandoned)
        ]
        if plans and isinstance(plans[-1], BatchPlanned):  # what a failed attempt had planned does not count
            planned += plans[-1].items
    assert summary.num_requests == len(queued)
    assert summary.output_tokens == len(sampled)
    assert summary.computed_tokens == sum(count for _, _, count in planned)
    timeline = make_timeline(trace)
    requests = {seq: sequence.request for seq, sequence in timeline.sequences.items()}
    steps = {(record.step, requests[seq]) for record in timeline.records for seq, _, _ in record.sampled}
    assert summary.ttft.count == len({requests[seq] for seq, _, _ in sampled})
    assert summary.inter_token.count == len(steps) - summary.ttft.count
    assert 0 <= summary.mean_waste < 1 and 0 <= summary.mean_budget_use <= 1
    assert summary.peak_used_blocks <= summary.num_blocks
    assert len(summary.lines()) == len(summary.facts())
    in_one_pass = timeline_and_summary(trace)
    assert in_one_pass[0].records == timeline.records and in_one_pass[1].lines() == summary.lines()


@given(sharing_traces)
def test_sharing_agrees_with_plain_recomputation(trace):
    summary, size = summarize(trace), trace.header.block_size

    def events(kind):
        return [event for event in trace.events if isinstance(event, kind)]

    hits = [event for event in events(BlocksShared) if event.source == "cache"]
    assert summary.hit_tokens == size * sum(len(event.blocks) for event in hits)
    assert 0 <= summary.hit_rate <= 1 and 0 <= summary.mean_saved_share < 1
    assert summary.num_forks == len(events(SequenceForked))
    assert summary.num_copies == len(events(BlockCopied))
    assert summary.num_evicted_blocks == sum(len(event.blocks) for event in events(BlocksEvicted))
    assert summary.num_abandoned_steps == len(events(StepAbandoned))
    swaps = [event for event in events(RequestPreempted) if event.mode == "swap"]
    assert summary.num_swaps == len(swaps) <= summary.num_preemptions
    saved = [
        sum(map(len, state.tables.values())) - state.num_used_blocks for _, state in Replay(trace).walk()
    ]
    assert summary.peak_saved_blocks == max(saved)
    aborted = {event.seq for event in events(SequenceFinished) if event.reason == "abort"}
    assert summary.num_finished + summary.num_aborted == summary.num_requests
    assert (summary.num_aborted > 0) == bool(aborted)
    names = dict(summary.facts())
    assert ("forks" in names) == bool(summary.num_forks)
    assert ("prefix cache" in names) == bool(hits)
    assert ("swapped" in names) == bool(swaps)
    assert ("evicted" in names) == bool(summary.num_evicted_blocks)


# Two samples of one request with a prompt of six tokens: the second prompt block is shared until both have
# written to it, and a later request finds the first one in the cache.
SHARED_BY_HAND = [
    RequestQueued("a", 0, 0.0, (1, 2, 3, 4, 5, 6), 2, num_outputs=2),
    StepStarted(0, 0.0),
    RequestScheduled("a"),
    BlocksAllocated(0, (0, 1)),
    BlocksCached(0, 0, (0,)),
    BatchPlanned(((0, 0, 6),)),
    SequenceForked("a", 0, 1),
    TokensSampled(((0, 7, "x"), (1, 8, "y"))),
    StepFinished(0, 1.0),
    RequestQueued("b", 2, 1.0, (1, 2, 3, 4, 9), 1),
    StepStarted(1, 1.0),
    BlockCopied(0, 1, 1, 2),
    BlocksShared(2, (0,), "cache"),
    RequestScheduled("b"),
    BlocksAllocated(2, (3,)),
    BatchPlanned(((0, 6, 1), (1, 6, 1), (2, 4, 1))),
    TokensSampled(((0, 9, "x"), (1, 9, "y"), (2, 9, "z"))),
    BlocksFreed(0, (2, 0)),
    SequenceFinished(0, "length", 2.0),
    BlocksFreed(1, (1, 0)),
    SequenceFinished(1, "length", 2.0),
    BlocksFreed(2, (3, 0)),
    SequenceFinished(2, "length", 2.0),
    StepFinished(1, 2.0),
]


def test_sharing_counted_by_hand():
    header = msgspec.structs.replace(HEADER, prefix_cache="hash")
    summary = summarize(make_trace(header, SHARED_BY_HAND))
    assert (summary.num_requests, summary.num_finished) == (2, 2), "requests, not sequences"
    assert summary.prompt_tokens == 11, "the prompt of two samples counts once"
    assert summary.output_tokens == 5
    assert (summary.num_forks, summary.num_copies) == (1, 1)
    assert summary.hit_tokens == 4 and summary.hit_rate == pytest.approx(4 / (4 + 7))
    assert summary.peak_saved_blocks == 2 and summary.mean_saved_blocks == 2.0
    assert summary.mean_waste == pytest.approx(2 / 8), "six tokens in two blocks, though two tables map them"
    assert (summary.ttft.count, summary.inter_token.count) == (2, 1)
    assert (summary.peak_used_blocks, summary.mean_used_blocks) == (2, 1.0)


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=50))
def test_percentiles_are_those_of_numpy(values):
    spread = percentiles(values)
    wanted = numpy.percentile(values, [50, 90, 95, 99])
    assert [spread.p50, spread.p90, spread.p95, spread.p99] == pytest.approx(list(wanted))
    assert spread.p50 == pytest.approx(statistics.median(values))


def test_nothing_measured_is_no_number():
    assert percentiles([]).p50 is None
    assert format_seconds(None) == "–"
    empty = summarize(make_trace(HEADER, [StepStarted(0, 0.0)]))
    assert empty.output_tokens_per_second is None
    assert all(value for _, value in empty.facts())


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "0 s"),
        (4.2e-5, "42 µs"),
        (0.00123, "1.23 ms"),
        (0.5, "500 ms"),
        (12.34, "12.3 s"),
        (5000, "5,000 s"),
    ],
)
def test_seconds_in_words(seconds, words):
    assert format_seconds(seconds) == words
