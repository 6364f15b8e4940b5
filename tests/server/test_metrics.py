"""The metrics say what a trace of the same run says: every one of them, whatever happens in the run."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from minivllm.engine.create_engine import create_engine
from minivllm.engine.engine_args import EngineArgs
from minivllm.model.tiny import MODEL_PATH
from minivllm.sampling_params import SamplingParams
from minivllm.server.engine_report import engine_now
from minivllm.server.metrics import (
    COUNTERS,
    GAUGES,
    LABELLED_COUNTERS,
    TALLIES,
    EngineCollector,
)
from minivllm.trace import summary
from minivllm.trace.engine_counts import LABELLED, EngineCounts
from minivllm.trace.events import RequestQueued
from minivllm.trace.reader import make_trace
from minivllm.trace.tallies import BUCKETS, Tally
from minivllm.trace.timeline import make_timeline
from tests import patience
from tests.engine.fakes import make_engine
from tests.engine.guesses import guessing
from tests.engine.test_sharing import EOS, limits, requests
from tests.trace.interrupted_factory import interrupted_traces
from tests.trace.told_counts import Told
from tests.viz.strategies import traces


class Kept:
    """A sink that keeps all events."""

    def __init__(self):
        self.events = []

    def emit(self, event):
        self.events.append(event)

    def trace(self):
        return make_trace(self.events[0], self.events[1:])


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


def assert_told(counts, trace):
    """Every number is the one that was counted from the timeline."""
    told = Told(trace)
    names = {*COUNTERS, "steps_failed", "requests_refused"}
    assert {n: counts.counters[n] for n in names} == pytest.approx({n: told.counters[n] for n in names})
    for name in LABELLED:
        assert +counts.labelled[name] == +told.labelled[name], name
    for name, tally in counts.tallies.items():
        assert (tally.counts, tally.sum) == tally_of(name, told.values[name]), name


@given(traces)
def test_every_number_is_that_of_a_trace(trace):
    assert_told(counted(trace), trace)


@given(traces)
def test_counts_and_times_are_those_of_the_summary(trace):
    counts = counted(trace)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(summary, "percentiles", sorted)  # all values, and not only the middle ones
        told = summary.summarize(trace)
    assert counts.counters["num_preemptions"] == told.num_preemptions
    assert counts.counters["generation_tokens"] == told.output_tokens
    assert counts.counters["prefix_cache_hits"] == told.hit_tokens
    assert counts.finished["abort"] == told.num_aborted
    assert counts.finished.total() == told.num_finished + told.num_aborted
    for name, values in (
        ("time_to_first_token_seconds", told.ttft),
        ("inter_token_latency_seconds", told.inter_token),
        ("e2e_request_latency_seconds", told.end_to_end),
    ):
        tally = counts.tallies[name]
        assert (tally.counts, tally.sum) == tally_of(name, values), name


@given(work=requests, data=st.data(), dice=st.randoms(use_true_random=False))
def test_an_engine_that_forks_preempts_swaps_aborts_and_fails_tells_both_the_same(work, data, dice):
    """And what is now, as the engine's books have it, is what the step's record has."""
    counts, kept = EngineCounts(), Kept()
    engine = make_engine(eos_token_ids=EOS, sinks=[counts, kept], **data.draw(limits(work)))
    scraped = EngineCollector(counts, engine, 'a "model"').text
    work, moments, added = [*work, *work], {}, 0
    while added < len(work) or engine.has_unfinished_requests():
        action = dice.choice(["add", "step", "step", "step", "abort", "fail", "step"])
        if added < len(work) and (action == "add" or not engine.has_unfinished_requests()):
            engine.add_request(str(added), *work[added])
            added += 1
        elif action == "abort" and dice.random() < 0.3:
            engine.abort(str(dice.randint(0, len(work))))
        elif action == "fail" and engine.core.requests:
            engine.executor.fail_next = "before"
            with pytest.raises(RuntimeError, match="the fake device failed"):
                engine.step()
        elif engine.has_unfinished_requests():
            before = engine.num_steps
            engine.step()
            if engine.num_steps > before:
                moments[engine.num_steps - 1] = engine_now(
                    engine
                )  # a plan too many may have been finished, too
    trace = kept.trace()
    assert_told(counts, trace)
    records = make_timeline(trace).records
    for step, now in moments.items():
        record = records[step]
        assert [record.num_running, record.num_waiting, record.num_used_blocks / trace.header.num_blocks] == [
            now[name] for name in ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc")
        ]
        host = record.num_host_blocks / max(trace.header.num_host_blocks, 1)
        assert now["cpu_cache_usage_perc"] == host
        assert bool(now["num_requests_swapped"]) == bool(host)
    assert counts.counters["prefix_cache_hits"] <= counts.counters["prefix_cache_queries"]
    assert_shown(values(scraped()), counts)


def test_blocks_that_come_back_from_the_swap_space_are_not_looked_up_in_the_prefix_cache():
    counts, kept = EngineCounts(), Kept()
    limits = {"num_host_blocks": 20, "preemption_mode": "swap", "prefix_cache": "hash", "watermark": 0}
    engine = make_engine(num_blocks=12, sinks=[counts, kept], **limits)
    for number in range(4):
        engine.add_request(str(number), [number] * 9, SamplingParams(max_tokens=20, ignore_eos=True))
    swapped = []
    while engine.has_unfinished_requests():
        engine.step()
        swapped.append(engine_now(engine)["num_requests_swapped"])
    assert_told(counts, kept.trace())
    assert max(swapped) > 0 and counts.counters["num_preemptions"] > 0
    assert counts.counters["prefix_cache_queries"] == 4 * 9, "each was looked up once"


def test_a_request_that_comes_again_while_a_step_is_in_flight_is_another_one():
    counts = EngineCounts()
    engine = make_engine(sinks=[counts], async_scheduling=True)
    engine.add_request("other", [7], SamplingParams(max_tokens=9, ignore_eos=True))
    for _ in range(3):
        engine.add_request("it", [1, 2, 3], SamplingParams(max_tokens=5, ignore_eos=True))
        engine.step()
        engine.step()
        assert engine.core.in_flight and engine.abort("it")
    engine.add_request("it", [1, 2, 3], SamplingParams(max_tokens=5, ignore_eos=True))
    while engine.has_unfinished_requests():
        engine.step()
    assert +counts.finished == {"abort": 3, "length": 2}
    assert counts.tallies["request_prompt_tokens"].sum == 4 * 3 + 1


def test_a_step_that_fails_is_the_first_of_no_request():
    """The batch was planned and told, but nothing of it was computed: the request still waits."""
    counts, kept, clock = EngineCounts(), Kept(), iter(range(1000))
    engine = make_engine(sinks=[counts, kept])
    engine._clock, engine.core.epoch = (lambda: float(next(clock))), 0.0
    engine.add_request("a", [1, 2, 3], SamplingParams(max_tokens=2))
    engine.executor.fail_next = "before"
    with pytest.raises(RuntimeError, match="the fake device failed"):
        engine.step()
    while engine.has_unfinished_requests():
        engine.step()
    assert_told(counts, kept.trace())
    failed = next(event for event in kept.events if type(event).__name__ == "StepAbandoned")
    queued = next(event for event in kept.events if type(event).__name__ == "RequestQueued")
    assert counts.tallies["request_queue_time_seconds"].sum > failed.time - queued.time > 0


def test_what_a_plan_takes_that_was_made_ahead_is_not_told_before_its_turn():
    counts = EngineCounts()
    engine = make_engine(sinks=[counts], async_scheduling=True, max_num_batched_tokens=8, prefix_cache="hash")
    for number in range(3):
        engine.add_request(str(number), [number] * 8, SamplingParams(max_tokens=2, ignore_eos=True))
    engine.step()
    now, books = engine_now(engine), engine.core.state
    assert (now["num_requests_running"], now["num_requests_waiting"]) == (1, 2)
    assert (len(books.running), len(books.waiting)) == (2, 1), "the books are ahead"
    assert now["kv_cache_usage_perc"] == 2 / 64 < engine.cache.pool.num_used_blocks / 64
    assert counts.counters["prefix_cache_queries"] == 8, "the second was not looked up yet"


def assert_shown(shown, counts):
    """What Prometheus reads is what was counted."""
    for name in COUNTERS:
        assert shown[f"vllm:{name}_total"] == counts.counters[name], name
    for name in LABELLED:
        assert shown[f"vllm:{name}_total"] == counts.labelled[name].total(), name
    for name, tally in counts.tallies.items():
        assert shown[f"vllm:{name}_count"] == tally.num_values, name
        assert shown[f"vllm:{name}_sum"] == pytest.approx(tally.sum), name
        assert shown[f"vllm:{name}_bucket"] == sum(
            sum(tally.counts[: index + 1]) for index in range(len(tally.counts))
        ), name


@given(interrupted_traces)
def test_an_interrupt_confuses_no_count_and_nothing_is_kept_of_what_has_ended(trace):
    counts = counted(trace)
    told = summary.summarize(trace)
    assert counts.counters["generation_tokens"] == told.output_tokens
    assert len(counts._requests) == told.num_requests - counts.finished.total()
    assert {sequence.request for sequence in counts._sequences.values()} <= set(counts._requests)


def test_prometheus_reads_numbers_that_can_be_worked_out_by_hand():
    """Three requests of 5 tokens, each with 2 outputs of 3 tokens, and nothing shared but a block of 4."""
    counts = EngineCounts()
    engine = make_engine(num_blocks=32, block_size=4, prefix_cache="hash", sinks=[counts])
    text = EngineCollector(counts, engine, 'a "model"').text
    for index in range(3):
        engine.add_request(str(index), [1, 2, 3, 4, 5], SamplingParams(n=2, max_tokens=3))
        engine.step()
        assert values(text())["vllm:num_requests_running"] == len(engine.core.state.running)
    while engine.has_unfinished_requests():
        engine.step()
    told = values(text())
    assert told["vllm:generation_tokens_total"] == 3 * 2 * 3
    assert told["vllm:prompt_tokens_total"] == told["vllm:prefix_cache_queries_total"] == 3 * 5
    assert told["vllm:prefix_cache_hits_total"] == told["vllm:prompt_tokens_cached_total"] == 2 * 4
    assert told["vllm:request_prefill_kv_computed_tokens_sum"] == 5 + 1 + 1
    assert told["vllm:request_max_num_generation_tokens_sum"] == 3 * 3
    assert told["vllm:request_success_total"] == told["vllm:e2e_request_latency_seconds_count"] == 3
    assert told["vllm:num_requests_running"] == told["vllm:kv_cache_usage_perc"] == 0
    assert told["python_info"] == 1 and told["process_resident_memory_bytes"] > 0


def values(text):
    """Sums over labels, by name; and every sample bears the model's name."""
    sums = Counter()
    for family in text_string_to_metric_families(text.decode()):
        for sample in family.samples:
            sums[sample.name] += sample.value
            assert sample.labels.get("model_name", 'a "model"') == 'a "model"'
    return sums


@given(st.lists(st.floats(0, 3000), min_size=1, max_size=50), st.floats(0.01, 0.99))
def test_a_quantile_lies_in_the_bucket_of_the_value_that_it_stands_for(numbers, share):
    tally = Tally(BUCKETS["time_to_first_token_seconds"])
    for number in numbers:
        tally.add(number)
    wanted = share * len(numbers)
    value = sorted(numbers)[max(0, -int(-wanted // 1) - 1)]
    edges = (0.0, *tally.edges)
    upper = next((edge for edge in tally.edges if edge >= value), tally.edges[-1])
    lower = max((edge for edge in edges if edge < upper), default=0.0)
    assert lower <= tally.quantile(share) <= upper
    assert Tally((1, 2)).quantile(0.5) is None


MEANINGLESS = {
    "engine_sleep_state",  # this engine does not sleep
    "external_prefix_cache_queries_total",  # no cache is shared between servers
    "external_prefix_cache_hits_total",
    "mm_cache_queries_total",  # no images, no audio
    "mm_cache_hits_total",
}
VLLMS = """
    cache_config_info e2e_request_latency_seconds engine_sleep_state estimated_flops_per_gpu_total
    estimated_read_bytes_per_gpu_total estimated_write_bytes_per_gpu_total external_prefix_cache_hits_total
    external_prefix_cache_queries_total generation_tokens_total inter_token_latency_seconds
    iteration_tokens_total kv_cache_usage_perc mm_cache_hits_total mm_cache_queries_total
    num_preemptions_total num_requests_running num_requests_waiting num_requests_waiting_by_reason
    prefix_cache_hits_total prefix_cache_queries_total prompt_tokens_by_source_total
    prompt_tokens_cached_by_source_total prompt_tokens_cached_total prompt_tokens_total
    request_decode_time_seconds request_generation_tokens request_inference_time_seconds
    request_max_num_generation_tokens request_num_preemptions request_params_max_tokens request_params_n
    request_prefill_kv_computed_tokens request_prefill_time_seconds request_prompt_tokens
    request_queue_time_seconds request_success_total request_time_per_output_token_seconds
    time_to_first_token_seconds admission_rejections_total
"""
"""The names at `/metrics` of a vLLM 0.32 that serves on a CPU."""


def test_every_name_of_vllm_that_has_a_meaning_here_is_there_with_its_type():
    engine = make_engine(sinks=[counts := EngineCounts()])
    text = EngineCollector(counts, engine, "m").text().decode()
    kinds = dict(line.split()[2:4] for line in text.splitlines() if line.startswith("# TYPE vllm:"))
    ours = {name.removeprefix("vllm:") for name in kinds}
    older = {"num_requests_swapped", "cpu_cache_usage_perc"}  # vLLM had them while it could swap
    assert ours == set(VLLMS.split()) - MEANINGLESS | older
    for name in ours - {"iteration_tokens_total"}:
        assert (kinds[f"vllm:{name}"] == "counter") == name.endswith("_total"), name
    assert {kinds[f"vllm:{name}"] for name in TALLIES} == {"histogram"} and set(TALLIES) == set(BUCKETS)
    assert {kinds[f"vllm:{name}"] for name in GAUGES} == {"gauge"}
    assert set(LABELLED_COUNTERS) == {*LABELLED, "admission_rejections"}


def test_answers_are_counted_by_route_and_no_client_makes_a_series(running):
    import httpx

    def ask(path, method="POST", **asked):
        return httpx.request(method, f"{running.url}{path}", timeout=patience.SECONDS, **asked)

    for length in (1, 2):
        ask("/v1/completions", json={"prompt": "a", "max_tokens": length})
    ask("/v1/completions", json={"prompt": "a", "max_tokens": -1})
    for number in range(3):
        ask(f"/no/such/{number}", method="GET")
        ask("/v1/completions", method=f"ODD{number}")
    text = ask("/metrics", "GET").text
    samples = [
        (sample.labels["handler"], sample.labels["method"], sample.labels["status"], sample.value)
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == "http_requests_total"
    ]
    found = {tuple(labels): count for *labels, count in samples}
    assert found["/v1/completions", "POST", "2xx"] >= 2 and found["/v1/completions", "POST", "4xx"] >= 1
    assert found["none", "GET", "4xx"] >= 3
    assert not any("such" in handler or "ODD" in method for handler, method, _ in found)


def test_drafts_are_counted_by_position_and_only_where_there_are_any():
    kept, counts = Kept(), EngineCounts()
    engine = make_engine(speculation=guessing(2, num_tokens=3, accuracy=0.6), sinks=[kept, counts])
    for index in range(3):
        engine.add_request(str(index), [1, 2, index], SamplingParams(temperature=0, max_tokens=12))
    while engine.has_unfinished_requests():
        engine.step()
    assert_told(counts, kept.trace())
    collector = EngineCollector(counts, engine, 'a "model"')
    sums = values(collector.text())
    accepted = sums["vllm:spec_decode_num_accepted_tokens_total"]
    assert 0 < accepted < sums["vllm:spec_decode_num_draft_tokens_total"]
    assert accepted == sums["vllm:spec_decode_num_accepted_tokens_per_pos_total"]
    assert sums["vllm:spec_decode_num_drafts_total"] > 0
    lines = [line for line in collector.text().decode().splitlines() if "per_pos_total{" in line]
    assert [f'position="{place}"' in line for place, line in enumerate(lines)] == [True] * 3
    plain = EngineCollector(EngineCounts(), make_engine(), "m").text().decode()
    assert "spec_decode" not in plain


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
