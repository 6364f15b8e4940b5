"""The simulator's books against those of one who stands beside it and writes everything down."""

from array import array
from collections import Counter
from dataclasses import dataclass, field, replace
from fractions import Fraction
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minivllm.config import SchedulerConfig
from minivllm.executor.simulated_executor import VirtualClock
from minivllm.lab.compare.schedule import Prioritised, World, compare_policies, measure
from minivllm.lab.compare.schedule_report import differences
from minivllm.lab.simulation.cluster import Cluster
from minivllm.lab.simulation.metrics import LatencyHistogram, Metrics
from minivllm.lab.simulation.replica import Replica
from minivllm.lab.workloads import WorkloadRequest
from minivllm.scheduling.router import LeastLoaded, PrefixAware
from minivllm.trace.events import RequestQueued
from minivllm.trace.recorder import Recorder
from tests.lab.simulation.worlds import TICK, Listed, TickCost, configs, make_request, workloads


@dataclass
class Step:
    began: float
    ended: float
    plan: object
    num_running: int
    num_waiting: int
    usage: float


@dataclass
class Witness:
    """Writes down each step of a replica as it ends, and what came of it."""

    replica: Replica
    steps: list = field(default_factory=list)
    requests: dict = field(default_factory=dict)
    """What each sequence was asked for."""
    preemptions: Counter = field(default_factory=Counter)
    ends: dict = field(default_factory=dict)

    def __post_init__(self):
        self.began = 0.0
        self._begin, self._finish = self.replica.begin, self.replica.finish
        self.replica.begin, self.replica.finish = self.begin, self.finish

    def begin(self):
        self.began = self.replica.clock.now
        return self._begin()

    def finish(self):
        replica, now = self.replica, self.replica.clock.now
        if replica.plan is not None:
            state = replica.core.state
            numbers = len(state.running), len(state.waiting), replica.core.cache.usage
            self.steps.append(Step(self.began, now, replica.plan, *numbers))
        for seq_id, served in replica.served.items():
            self.requests[seq_id] = served.queued
            self.preemptions[seq_id] = served.request.num_preemptions
        before = set(replica.served)
        done = self._finish()
        for seq_id in before - set(replica.served):
            self.ends[seq_id] = now
        return done

    def first_items(self):
        """Of each sequence: when its first step began, and how far its cache was by then."""
        first = {}
        for step in self.steps:
            for item in step.plan.scheduled:
                first.setdefault(item.seq_id, (step.began, item.start))
        return first

    def token_times(self):
        times = {}
        for step in self.steps:
            for item in step.plan.scheduled:
                if item.num_logits:
                    times.setdefault(item.seq_id, []).append(step.ended)
        return times


def watch(config, count, workload):
    metrics = Metrics()
    replicas = [Replica(config, TickCost(), metrics, clock=VirtualClock()) for _ in range(count)]
    witnesses = [Witness(replica) for replica in replicas]
    Cluster(replicas).run(workload)
    return metrics, witnesses


PADDING = {"scheduling_policy": "static(timeout_seconds=0)", "max_num_batched_tokens": 200}
SWAPPING = {"num_host_blocks": 400, "preemption_mode": "swap"}
RECOMPUTING = {"num_host_blocks": 0, "preemption_mode": "recompute", "prefix_cache": "hash"}


@st.composite
def worlds(draw):
    """A workload and limits; often with padding or preemptions, which are rare by chance."""
    workload = draw(workloads())
    config = draw(configs(workload))
    if draw(st.booleans()):
        return workload, config
    requests = [replace(request, arrival_seconds=0.0) for request in workload.requests]
    limits = draw(st.sampled_from([PADDING, SWAPPING, RECOMPUTING]))
    workload, config = Listed(requests), replace(config, **{"watermark": 0.0, "max_num_seqs": 5, **limits})
    return workload, config


def check_histogram(histogram, values):
    plain = LatencyHistogram()
    for value in values:
        plain.add(value)
    assert histogram.counts() == plain.counts()
    assert histogram.largest == max(values, default=0.0)
    assert histogram.total == pytest.approx(sum(values))
    assert histogram.total_of_squares == pytest.approx(sum(value * value for value in values))


@given(world=worlds(), count=st.integers(1, 3))
def test_every_latency_is_the_one_that_a_witness_writes_down(world, count):
    workload, config = world
    metrics, witnesses = watch(config, count, workload)
    ttft, between, end_to_end, normalized, queue_time = [], [], [], [], []
    for witness in witnesses:
        times, first = witness.token_times(), witness.first_items()
        for seq_id, request in witness.requests.items():
            tokens, arrival = times[seq_id], request.arrival_seconds
            queue_time.append(first[seq_id][0] - arrival)
            ttft.append(tokens[0] - arrival)
            between += [after - before for before, after in pairwise(tokens)]
            end_to_end.append(witness.ends[seq_id] - arrival)
            normalized.append(end_to_end[-1] / request.num_output_tokens)
    check_histogram(metrics.queue_time, queue_time)
    check_histogram(metrics.ttft, ttft)
    check_histogram(metrics.inter_token, between)
    check_histogram(metrics.end_to_end, end_to_end)
    check_histogram(metrics.normalized, normalized)


@given(world=worlds(), count=st.integers(1, 3))
def test_every_sum_and_every_mean_is_the_one_that_a_witness_writes_down(world, count):
    workload, config = world
    refused = make_request(99, 64, 1, arrival=500 * TICK)
    metrics, witnesses = watch(config, count, Listed([*workload.requests, refused]))
    steps = [step for witness in witnesses for step in witness.steps]
    moves = Counter(move.kind for step in steps for move in step.plan.moves)
    padding = sum(step.plan.num_padding_tokens for step in steps)
    computed = sum(step.plan.total_num_scheduled_tokens for step in steps)
    assert (metrics.num_arrived, metrics.num_refused) == (len(workload.requests) + 1, 1)
    assert metrics.num_steps == len(steps)
    assert metrics.num_preemptions == sum(sum(witness.preemptions.values()) for witness in witnesses)
    assert metrics.num_copied_blocks == moves["copy"]
    assert metrics.num_swapped_blocks == moves["swap_in"] + moves["swap_out"]
    assert metrics.prompt_tokens == sum(len(request.prompt_token_ids) for request in workload.requests)
    assert metrics.cached_tokens == sum(start for w in witnesses for _, start in w.first_items().values())
    assert (metrics.computed_tokens, metrics.padding_tokens) == (computed, padding)
    assert metrics.padding_share == pytest.approx(padding / (computed + padding))

    busy = sum(step.ended - step.began for step in steps)

    def mean(number):
        return sum((step.ended - step.began) * number(step) for step in steps) / busy

    assert metrics.busy_seconds == pytest.approx(busy)
    assert metrics.mean_batch_size == pytest.approx(mean(lambda step: step.num_running))
    assert metrics.mean_scheduled == pytest.approx(mean(lambda step: len(step.plan.scheduled)))
    assert metrics.mean_kv_usage == pytest.approx(mean(lambda step: step.usage))
    assert metrics.waiting_seconds / busy == pytest.approx(mean(lambda step: step.num_waiting))

    first = min(request.arrival_seconds for request in (*workload.requests, refused))
    seconds = max(end for witness in witnesses for end in witness.ends.values()) - first
    assert metrics.duration_seconds == pytest.approx(seconds)
    assert metrics.requests_per_second == pytest.approx(len(workload.requests) / seconds)
    assert metrics.output_tokens_per_second == pytest.approx(metrics.output_tokens / seconds)


def test_two_requests_by_hand():
    """A step costs three ticks, and one more for each token and for each sequence."""
    config = SchedulerConfig(num_blocks=50, block_size=4, max_num_seqs=1, max_model_len=64)
    first, second = make_request(0, 5, 2, arrival=10 * TICK), make_request(1, 2, 1, arrival=12 * TICK)
    metrics, _ = watch(config, 1, Listed([first, second]))
    # 10 … 19: five tokens of the first; 19 … 24: its answer's; 24 … 30: two tokens of the second
    assert [value / TICK for value in (metrics.ttft.total, metrics.ttft.largest)] == [9 + 18, 18]
    assert [metrics.inter_token.count, metrics.inter_token.total / TICK] == [1, 5]
    assert [value / TICK for value in (metrics.end_to_end.total, metrics.end_to_end.largest)] == [14 + 18, 18]
    assert [metrics.normalized.total / TICK, metrics.queue_time.total / TICK] == [7 + 18, 0 + 12]
    assert [metrics.busy_seconds / TICK, metrics.duration_seconds / TICK] == [20, 20]
    assert metrics.waiting_seconds / TICK == 9 + 5 and metrics.mean_batch_size == 1


# ── histograms ────────────────────────────────────────────────────────────────────────────────────────────


@given(
    values=st.lists(st.floats(1e-6, 1e4), min_size=1, max_size=99),
    share=st.sampled_from([0.0, 0.5, 1.0]) | st.floats(0, 1),
)
def test_a_percentile_is_right_to_within_one_percent_and_never_beyond_the_largest(values, share):
    histogram = LatencyHistogram()
    for value in values:
        histogram.add(value)
    exact = sorted(values)[int(share * (len(values) - 1))]
    assert histogram.percentile(share) == pytest.approx(exact, rel=0.01001)
    assert histogram.percentile(share) <= histogram.largest == max(values)


@given(values=st.dictionaries(st.integers(1, 10**5), st.integers(1, 9), min_size=1, max_size=30))
def test_the_same_value_many_times_counts_as_often_in_everything(values):
    histogram, one_by_one = LatencyHistogram(), LatencyHistogram()
    for value, times in values.items():
        histogram.add(value / 1000, times)
        for _ in range(times):
            one_by_one.add(value / 1000)
    each_value = [Fraction(value) for value, times in values.items() for _ in range(times)]
    jain = sum(each_value) ** 2 / (len(each_value) * sum(value**2 for value in each_value))
    assert histogram.fairness == pytest.approx(float(jain))
    assert one_by_one.fairness == pytest.approx(float(jain))
    assert histogram.counts() == one_by_one.counts()
    middles = [middle for middle, _ in histogram.counts()]
    assert middles == sorted(middles) and sum(count for _, count in histogram.counts()) == len(each_value)


# ── who gets what, and when ───────────────────────────────────────────────────────────────────────────────


@dataclass
class Loaded:
    """A replica of which a router sees only the load."""

    outstanding_tokens: int = 0


def of_blocks(*blocks):
    """A prompt of blocks of four tokens; the same number is the same block."""
    tokens = [number for number in blocks for _ in range(4)]
    return WorkloadRequest("it", 0.0, array("i", tokens), 1, 1)


def test_of_equally_loaded_replicas_the_first_gets_the_request():
    assert LeastLoaded().choose(of_blocks(1), [Loaded(5), Loaded(2), Loaded(2)]) == 1


def choose(router, prompt, favourite=None, busy=1):
    """Which of three replicas gets it; the favourite has nothing to do, the others little."""
    return router.choose(prompt, [Loaded(0 if index == favourite else busy) for index in range(3)])


def test_a_prompt_goes_where_most_of_its_beginning_is():
    router = PrefixAware(block_size=4)
    assert choose(router, of_blocks(1, 2, 3), favourite=1) == 1
    overrun = [Loaded(0), Loaded(500), Loaded(1)]
    assert router.choose(of_blocks(1, 9), overrun) == 0, "its first block is now known to be there, too"
    assert choose(router, of_blocks(1, 2, 3), favourite=2) == 1, "three blocks here, one there"
    assert choose(router, of_blocks(1, 8), favourite=2) == 1, "the last to compute a beginning is its home"
    assert choose(router, of_blocks(7, 2, 3), favourite=2) == 2, "the same blocks behind others are others"


def test_a_home_may_be_as_busy_as_patience_and_the_prompts_own_length_allow():
    for others, load, stays in ((0, 8, True), (0, 9, False), (10, 23, True), (10, 24, False)):
        router = PrefixAware(block_size=4, patience=1.5)
        assert choose(router, of_blocks(1, 2), favourite=1) == 1
        replicas = [Loaded(others), Loaded(load), Loaded(others)]
        assert (router.choose(of_blocks(1, 2), replicas) == 1) == stays


def test_the_beginning_that_was_used_least_recently_is_forgotten_first():
    for block, home in ((1, 1), (2, 0)):  # the first was used after the second came, which has had to go
        router = PrefixAware(block_size=4, most_prefixes=2)
        for used, favourite in ((1, 1), (2, 2), (1, 0), (3, 2)):
            choose(router, of_blocks(used), favourite)
        assert choose(router, of_blocks(block), favourite=0) == home


def test_nobody_says_more_than_the_length_of_the_model_allows():
    config = SchedulerConfig(num_blocks=50, block_size=4, max_model_len=16)
    metrics, _ = watch(config, 1, Listed([make_request(0, 10, 15), make_request(1, 10, 3)]))
    assert metrics.output_tokens == 6 + 3


def test_a_static_batch_counts_the_wait_from_each_arrival():
    limits = dict(num_blocks=50, block_size=4, max_num_seqs=2, max_model_len=64)
    config = SchedulerConfig(**limits, scheduling_policy=f"static(timeout_seconds={64 * TICK})")
    requests = [make_request(number, 4, 1, TICK * moment) for number, moment in enumerate((0, 70, 500))]
    _, (witness,) = watch(config, 1, Listed(requests))  # the second comes while the first is computed
    assert [step.began / TICK for step in witness.steps] == [64, 70 + 64, 500 + 64]


def test_the_trace_tells_when_a_request_arrived_and_not_when_it_was_noticed():
    clock = VirtualClock()
    recorder = Recorder(clock=clock)
    config = SchedulerConfig(num_blocks=50, block_size=4, max_model_len=64)
    requests = [make_request(0, 9, 3), make_request(1, 5, 1, arrival=5 * TICK)]
    Cluster([Replica(config, TickCost(), recorder=recorder, clock=clock)]).run(Listed(requests))
    queued = [event for event in recorder.events if isinstance(event, RequestQueued)]
    assert [event.time / TICK for event in queued] == pytest.approx([0, 5], abs=1e-2)


def test_a_call_for_later_comes_at_its_own_time_and_one_for_the_past_at_once():
    config = SchedulerConfig(num_blocks=50, block_size=4, max_model_len=64)
    for arrival, begins in ((1, 7), (40, 40)):  # the first is done after seven ticks
        called = make_request(1, 5, 1, arrival=arrival * TICK)
        metrics, (witness,) = watch(config, 1, Listed([make_request(0, 3, 1)], {"0": called}))
        assert [step.began / TICK for step in witness.steps] == [0, begins]
        assert [metrics.end_to_end.total / TICK, metrics.duration_seconds / TICK] == [7 + 9, begins + 9]


def test_those_who_come_by_themselves_do_not_wait_for_those_who_are_called():
    config = SchedulerConfig(num_blocks=50, block_size=4, max_model_len=64)
    mine = [make_request(0, 3, 1), make_request(2, 3, 1, 20 * TICK)]
    _, (witness,) = watch(config, 1, Listed(mine, {"0": make_request(1, 3, 1, 40 * TICK)}))
    assert [step.began / TICK for step in witness.steps] == [0, 20, 40]


def test_a_pause_that_has_been_cut_short_does_not_end_the_step_that_follows():
    limits = dict(num_blocks=50, block_size=4, max_num_seqs=2, max_model_len=64)
    config = SchedulerConfig(**limits, scheduling_policy=f"static(timeout_seconds={20 * TICK})")
    requests = [make_request(0, 4, 1), make_request(1, 4, 1, 16 * TICK)]
    _, (witness,) = watch(config, 1, Listed(requests))
    assert [(step.began / TICK, step.ended / TICK) for step in witness.steps] == [(16, 16 + 3 + 8 + 2)]


@given(moments=st.lists(st.integers(0, 20), min_size=1, max_size=9), end=st.integers(0, 20))
def test_a_run_that_is_cut_off_has_seen_all_who_came_until_then(moments, end):
    config = SchedulerConfig(num_blocks=500, block_size=4, max_model_len=64)
    requests = [make_request(number, 3, 1, moment * TICK) for number, moment in enumerate(moments)]
    metrics = Metrics()
    Cluster([Replica(config, TickCost(), metrics)]).run(Listed(requests), most_seconds=end * TICK)
    assert metrics.num_arrived == sum(moment <= end for moment in moments)


# ── policies compared: the same numbers from a trace ──────────────────────────────────────────────────────


@given(world=worlds())
def test_what_a_comparison_reads_from_a_trace_is_what_the_simulator_has_counted(world, tmp_path_factory):
    workload, config = world
    path = tmp_path_factory.mktemp("trace") / "run.jsonl"
    clock, counted = VirtualClock(), Metrics()
    with Recorder(path, clock=clock) as recorder:
        Cluster([Replica(config, TickCost(), counted, recorder=recorder, clock=clock)]).run(workload)
    read = measure("it", path)
    assert (read.num_requests, read.num_steps) == (counted.num_finished, counted.num_steps)
    assert read.num_preemptions == counted.num_preemptions
    assert read.fairness == pytest.approx(counted.normalized.fairness, rel=0.01)
    assert read.padding_share == pytest.approx(counted.padding_share)
    for name in ("ttft", "inter_token", "end_to_end"):
        percentiles, histogram = getattr(read, name), getattr(counted, name)
        assert percentiles.count == histogram.count
        if histogram.count:
            assert percentiles.p50 >= 0.98 * histogram.percentile(0.5) - 1e-5  # the one interpolates upwards
            assert percentiles.p99 >= 0.98 * histogram.percentile(0.99) - 1e-5
            assert percentiles.p99 <= histogram.largest + 1e-5


def test_two_who_step_aside_for_one_are_two_preemptions(tmp_path):
    limits = dict(num_blocks=8, block_size=4, max_model_len=64, watermark=0.0, scheduling_policy="priority")
    requests = [make_request(number, 8, 5, priority=1) for number in range(2)]
    clock = VirtualClock()
    with Recorder(tmp_path / "run.jsonl", clock=clock) as recorder:
        replica = Replica(SchedulerConfig(**limits), TickCost(), recorder=recorder, clock=clock)
        Cluster([replica]).run(Listed([*requests, make_request(2, 29, 1, arrival=TICK)]))
    assert measure("it", tmp_path / "run.jsonl").num_preemptions == replica.metrics.num_preemptions == 2


def test_requests_are_of_three_priorities_in_turn_and_who_is_called_has_its_callers():
    mine, called = [make_request(number, 3, 1) for number in range(7)], make_request(9, 3, 1)
    workload = Prioritised(Listed(mine, {"1": called}))
    arrivals = list(workload.arrivals())
    assert [request.priority for request in arrivals] == [0, 1, 2, 0, 1, 2, 0]
    assert workload.after(arrivals[1], 0.0, [3]).priority == 1
    assert workload.after(arrivals[2], 0.0, [3]) is None


def test_the_report_says_who_is_faster_and_by_how_much_and_who_says_something_else(tmp_path):
    config = SchedulerConfig(num_blocks=50, block_size=4, max_num_seqs=2, max_model_len=64)

    class Toy(World):
        def run(self, config, workload, recorder):
            clock = VirtualClock()
            recorder.use_clock(clock)
            Cluster([Replica(config, TickCost(), recorder=recorder, clock=clock)]).run(workload)
            return {"0": [1], "1": [2], "2": [3 if config.scheduling_policy == "fcfs" else 4]}

    world = Toy()
    world.config = config
    mine = Listed([make_request(0, 4, 2), make_request(1, 4, 12), make_request(2, 4, 2)])
    fcfs, static = compare_policies(world, ["fcfs", "static(timeout_seconds=0)"], mine, tmp_path)
    assert (fcfs.same_tokens, static.same_tokens) == (3, 2)
    ratio = fcfs.output_tokens_per_second / static.output_tokens_per_second
    text = "\n".join(differences([fcfs, static]))
    assert ratio > 1.1 and f"static batching: {ratio:.2f}× the throughput" in text
    assert "(near ties, decided by rounding): 1 under static(timeout_seconds=0)." in text
    slower = replace(static, ttft=replace(static.ttft, p50=9.0))
    assert "Soonest first token (p50): fcfs." in "\n".join(differences([fcfs, slower]))
