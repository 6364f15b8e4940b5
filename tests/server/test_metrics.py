"""The metrics say what a trace of the same run says."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from minivllm.engine.create_engine import create_engine
from minivllm.engine.engine_args import EngineArgs
from minivllm.model.tiny import MODEL_PATH
from minivllm.sampling_params import SamplingParams
from minivllm.server.engine_counts import BUCKETS, EngineCounts, Tally
from minivllm.server.metrics import COUNTERS, TALLIES, EngineCollector
from minivllm.trace import summary
from minivllm.trace.events import RequestQueued
from tests.engine.fakes import make_engine
from tests.trace.interrupted_factory import interrupted_traces
from tests.viz.strategies import traces


def counted(trace):
    counts = EngineCounts()
    for event in [trace.header, *trace.events]:
        counts.emit(event)
    return counts


def tally_of(name, values):
    tally = Tally(BUCKETS[name])
    for value in values:
        tally.add(value)
    return tally.counts, pytest.approx(tally.sum)


@given(traces)
def test_counts_and_times_are_those_of_the_summary(trace):
    counts = counted(trace)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(summary, "percentiles", sorted)  # all values, and not only the middle ones
        told = summary.summarize(trace)
    assert counts.counters["num_preemptions"] == told.num_preemptions
    assert counts.counters["generation_tokens"] == told.output_tokens
    assert counts.counters["requests_refused"] == told.num_refused
    assert counts.counters["prefix_cache_hits"] == told.hit_tokens
    assert counts.counters["steps_failed"] == told.num_abandoned_steps
    assert counts.finished["abort"] == told.num_aborted
    assert counts.finished.total() == told.num_finished + told.num_aborted
    for name, values in (
        ("time_to_first_token_seconds", told.ttft),
        ("inter_token_latency_seconds", told.inter_token),
        ("e2e_request_latency_seconds", told.end_to_end),
    ):
        tally = counts.tallies[name]
        assert (tally.counts, tally.sum) == tally_of(name, values), name


@given(interrupted_traces)
def test_an_interrupt_confuses_no_count_and_nothing_is_kept_of_what_has_ended(trace):
    counts = counted(trace)
    told = summary.summarize(trace)
    assert counts.counters["generation_tokens"] == told.output_tokens
    assert len(counts._requests) == told.num_requests - counts.finished.total()
    assert set(counts._request_of.values()) <= set(counts._requests)


@given(st.lists(st.tuples(st.integers(1, 20), st.integers(1, 8), st.integers(1, 3)), min_size=1, max_size=8))
def test_what_prometheus_reads_is_what_was_counted(work):
    counts = EngineCounts()
    engine = make_engine(num_blocks=32, prefix_cache="hash", sinks=[counts])
    text = EngineCollector(counts, engine, 'a "model"').text
    for index, (length, count, width) in enumerate(work):
        engine.add_request(str(index), list(range(length)), SamplingParams(n=width, max_tokens=count))
        engine.step()
    running = values(text())["vllm:num_requests_running"]
    assert running == len(engine.core.state.running)
    while engine.has_unfinished_requests():
        engine.step()
    told = values(text())
    assert told["vllm:generation_tokens_total"] == sum(count * width for _, count, width in work)
    assert told["vllm:prompt_tokens_total"] == sum(length for length, _, _ in work)
    assert told["vllm:request_success_total"] == len(work)
    assert told["vllm:num_requests_running"] == told["vllm:kv_cache_usage_perc"] == 0
    assert told["vllm:e2e_request_latency_seconds_count"] == len(work)


def values(text):
    """Sums over labels, by name; and every sample bears the model's name."""
    sums = Counter()
    for family in text_string_to_metric_families(text.decode()):
        for sample in family.samples:
            sums[sample.name] += sample.value
            assert sample.labels.get("model_name", 'a "model"') == 'a "model"'
    return sums


def test_every_name_is_vllms():
    names = {f"vllm:{name}_total" for name in COUNTERS} | {f"vllm:{name}" for name in TALLIES}
    assert "vllm:prompt_tokens_total" in names and "vllm:inter_token_latency_seconds" in names
    assert set(TALLIES) == set(BUCKETS)


def test_counting_alone_makes_no_texts_of_prompts_and_a_recorder_gets_them_all_the_same():
    class Listening:
        def __init__(self):
            self.pieces = []

        def emit(self, event):
            if isinstance(event, RequestQueued):
                self.pieces.append(event.prompt_pieces)

    class Deaf(Listening):
        wants_texts = False

    def told(*sinks):
        args = EngineArgs(
            MODEL_PATH, attention_backend="torch", enforce_eager=True, num_gpu_blocks_override=8
        )
        create_engine(args, sinks=sinks).add_request("a", [5, 6, 7], SamplingParams(max_tokens=2))
        return [sink.pieces[0] for sink in sinks]

    assert told(Deaf()) == [()]
    both = told(Deaf(), Listening())
    assert both[0] == both[1] and len(both[0]) == 3
