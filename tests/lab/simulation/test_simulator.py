"""What a simulation must add up to, whatever is simulated."""

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minivllm.config import SchedulerConfig
from minivllm.executor.simulated_executor import VirtualClock
from minivllm.lab.simulation.cluster import Cluster
from minivllm.lab.simulation.metrics import LatencyHistogram, Metrics
from minivllm.lab.simulation.replica import Replica
from minivllm.lab.simulation.setting import Setting
from minivllm.lab.workloads import ClosedLoop, parse_workload
from minivllm.scheduling.router import ROUTERS, LeastLoaded, PrefixAware, make_router
from minivllm.trace.events import StepFinished, TraceEnded
from minivllm.trace.reader import make_trace, read_trace
from minivllm.trace.recorder import Recorder
from minivllm.trace.replay import ReplayState
from minivllm.trace.timeline import make_timeline
from tests.lab.simulation.worlds import TICK, Listed, TickCost, configs, make_request, workloads

ROOMY = SchedulerConfig(num_blocks=500, block_size=4, max_num_seqs=8, max_model_len=64)


def cluster_of(config, count, router="round-robin", recorder=None):
    metrics = Metrics()
    clocks = [VirtualClock() for _ in range(count)]
    if recorder:
        recorder.use_clock(clocks[0])
    replicas = [
        Replica(config, TickCost(), metrics, recorder=None if index else recorder, clock=clock)
        for index, clock in enumerate(clocks)
    ]
    return Cluster(replicas, make_router(router)), metrics


@given(workload=workloads(), data=st.data(), count=st.integers(1, 4), router=st.sampled_from(sorted(ROUTERS)))
def test_every_request_is_served_and_nothing_is_left(workload, data, count, router):
    config = data.draw(configs(workload))
    cluster, metrics = cluster_of(config, count, router)
    cluster.run(workload)
    assert metrics.num_finished == metrics.num_arrived == len(workload.requests)
    assert metrics.output_tokens == sum(request.num_output_tokens for request in workload.requests)
    assert metrics.ttft.count == metrics.end_to_end.count == metrics.queue_time.count == metrics.num_finished
    assert metrics.inter_token.count == metrics.output_tokens - metrics.num_finished
    assert metrics.end_to_end.total == pytest.approx(
        metrics.ttft.total + metrics.inter_token.total + held(config, metrics)
    )
    for replica in cluster.replicas:
        replica.check_invariants()
        assert not replica.served and replica.outstanding_tokens == 0
        assert replica.core.cache.num_free_blocks == config.num_blocks


def held(config, metrics):
    """Under static batching, a request is over when its batch is; elsewhere with its last token."""
    if not config.scheduling_policy.startswith("static"):
        return 0.0
    return metrics.end_to_end.total - metrics.ttft.total - metrics.inter_token.total


@given(workload=workloads(), data=st.data())
def test_littles_law_holds_on_every_trace(workload, data):
    """Mean number of requests in the system = arrival rate · mean time that each spends in it."""
    config = data.draw(configs(workload))
    recorder = Recorder()
    cluster, _ = cluster_of(config, 1, recorder=recorder)
    cluster.run(workload)
    header, events = recorder.events[0], recorder.events[1:]
    state, area, now = ReplayState(header), 0.0, 0.0
    for event in events:
        time = getattr(event, "time", now)
        area += (len(state.waiting) + len(state.running)) * (time - now)
        now = time
        state.apply(event)
    sequences = make_timeline(make_trace(header, events)).sequences.values()
    sojourns = [sequence.finished_time - sequence.queued_time for sequence in sequences]
    assert area == pytest.approx(sum(sojourns), abs=1e-3)


@given(workload=workloads(), data=st.data())
def test_the_trace_of_a_simulation_replays_to_an_empty_engine(workload, data):
    config = data.draw(configs(workload))
    recorder = Recorder()
    cluster, metrics = cluster_of(config, 1, recorder=recorder)
    cluster.run(workload)
    assert recorder.events[0].clock == "virtual"
    state = ReplayState(recorder.events[0])
    for event in recorder.events[1:]:
        state.apply(event)
    assert not state.sequences and not state.waiting and not state.running
    assert len(state.finished) == metrics.num_finished
    assert state.num_steps == metrics.num_steps


@given(workload=workloads(), data=st.data(), count=st.integers(1, 3))
def test_the_same_simulation_gives_the_same_numbers(workload, data, count):
    config = data.draw(configs(workload))
    results = []
    for _ in range(2):
        cluster, metrics = cluster_of(config, count, "least-loaded")
        cluster.run(workload)
        results.append((metrics.num_steps, metrics.end_to_end.total, metrics.computed_tokens))
    assert results[0] == results[1]


def test_a_request_that_can_never_be_served_is_counted_with_its_reason():
    cluster, metrics = cluster_of(SchedulerConfig(num_blocks=2, block_size=4, max_model_len=64), 1)
    cluster.run(Listed([make_request(0, 20, 5), make_request(1, 70, 5), make_request(2, 4, 3)]))
    assert (metrics.num_arrived, metrics.num_refused, metrics.num_finished) == (3, 2, 1)
    assert "can never fit" in metrics.first_refusal


def test_what_others_call_forth_arrives_after_them():
    called = make_request(1, 5, 2, arrival=0.0)
    cluster, metrics = cluster_of(ROOMY, 2)
    cluster.run(Listed([make_request(0, 5, 2)], {"0": called}))
    assert metrics.num_finished == 2
    assert metrics.end_to_end.largest < 20 * TICK, "the second is not charged for the time of the first"


def test_a_closed_loop_never_has_more_under_way_than_users():
    mix = parse_workload("fixed:6,4", vocab_size=90, num_requests=40, num_users=3, max_model_len=64)
    assert isinstance(mix, ClosedLoop)
    cluster, metrics = cluster_of(ROOMY, 1)
    replica = cluster.replicas[0]
    most = 0
    begin = replica.begin

    def watched():
        nonlocal most
        most = max(most, replica.num_unfinished)
        return begin()

    replica.begin = watched
    cluster.run(mix)
    assert metrics.num_finished == 40 and most == 3


def test_a_run_can_be_cut_off_in_virtual_time():
    cluster, metrics = cluster_of(ROOMY, 1)
    cluster.run(Listed([make_request(n, 5, 9, n * 1.0) for n in range(9)]), most_seconds=3.5)
    assert metrics.num_arrived == 4


# ── routers ───────────────────────────────────────────────────────────────────────────────────────────────


class Idle:
    def __init__(self, tokens):
        self.outstanding_tokens = tokens


def test_round_robin_gives_everybody_the_same_number():
    router = make_router("round-robin")
    chosen = Counter(router.choose(make_request(n, 3, 3), [Idle(0)] * 4) for n in range(20))
    assert chosen == {0: 5, 1: 5, 2: 5, 3: 5}


@given(loads=st.lists(st.integers(0, 100), min_size=1, max_size=9))
def test_least_loaded_goes_where_the_least_is_left_to_do(loads):
    assert loads[LeastLoaded().choose(make_request(0, 3, 3), [Idle(load) for load in loads])] == min(loads)


def test_prefix_aware_sends_the_same_beginning_to_the_same_place_unless_it_is_overrun():
    router = PrefixAware(block_size=4)
    replicas = [Idle(10), Idle(0), Idle(5)]
    request = make_request(0, 12, 3)
    assert router.choose(request, replicas) == 1
    replicas[1].outstanding_tokens = 15
    replicas[0].outstanding_tokens = replicas[2].outstanding_tokens = 9
    assert router.choose(request, replicas) == 1
    replicas[1].outstanding_tokens = 500
    assert router.choose(request, replicas) != 1


def test_prefix_aware_finds_more_in_the_caches_than_round_robin():
    found = {}
    for router in ("round-robin", "prefix-aware"):
        setting = Setting(
            hardware="h100",
            model="llama-3-8b",
            replicas=4,
            router=router,
            prefix_cache="hash",
            num_gpu_blocks_override=400,
        )
        workload = parse_workload(
            "shared:512,16", vocab_size=1000, num_requests=150, rate=5, max_model_len=2048
        )
        cluster, metrics = setting.make_cluster()
        cluster.run(workload)
        found[router] = metrics.cached_tokens
    assert found["prefix-aware"] > 1.2 * found["round-robin"]


def test_an_unknown_router_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="router must be one of 'round-robin', 'least-loaded', "):
        make_router("random")


# ── books ─────────────────────────────────────────────────────────────────────────────────────────────────


@given(values=st.lists(st.floats(1e-6, 1e4), min_size=1, max_size=200), share=st.floats(0, 1))
def test_a_histogram_knows_every_percentile_within_two_percent(values, share):
    histogram = LatencyHistogram()
    for value, times in Counter(values).items():
        histogram.add(value, times)
    exact = sorted(values)[int(share * (len(values) - 1))]
    assert histogram.percentile(share) == pytest.approx(exact, rel=0.0201)
    assert histogram.mean == pytest.approx(sum(values) / len(values))
    assert 1 / len(values) <= histogram.fairness * (1 + 1e-9) and histogram.fairness <= 1 + 1e-9


def test_a_recorder_of_the_beginning_stops_by_itself(tmp_path):
    path = tmp_path / "beginning.jsonl"
    recorder = Recorder(path, max_steps=7)
    cluster, metrics = cluster_of(ROOMY, 1, recorder=recorder)
    cluster.run(Listed([make_request(n, 5, 9, n * TICK) for n in range(9)]))
    trace = read_trace(path)
    assert not trace.warnings and isinstance(trace.events[-1], TraceEnded)
    assert sum(isinstance(event, StepFinished) for event in trace.events) == 7 < metrics.num_steps


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"replicas": 0}, "replicas must be an integer of at least 1, got 0"),
        ({"hardware": "tpu"}, "hardware must be one of a100-40gb.*got 'tpu'"),
        ({"model": "gpt-5"}, "model must be one of opt-13b.*got 'gpt-5'"),
        ({"model": "opt-66b"}, "OPT-66B does not fit: 131.4 GB of weights"),
        ({"router": "dice"}, "router must be one of"),
        ({"scheduling_policy": "lifo"}, "scheduling_policy must be one of"),
        ({"tensor_parallel_size": 7}, "tensor_parallel_size must divide the 40 heads of OPT-13B, got 7"),
        ({"pipeline_parallel_size": 41}, "pipeline_parallel_size must be at most the 40 layers"),
        ({"max_model_len": 4096}, "max_model_len must be an integer of at least 1 and at most 2048"),
        ({"swap_space": -1}, "swap_space must be"),
        ({"gpu_memory_utilization": 0}, "gpu_memory_utilization must be"),
    ],
)
def test_a_setting_that_cannot_be_is_refused_by_name(change, message):
    with pytest.raises(ValueError, match=message):
        Setting(**change)


def test_more_devices_are_faster_and_random_settings_serve_everything():
    chance = random.Random(3)
    for _ in range(4):
        tensor = chance.choice([1, 2, 4])
        setting = Setting(tensor_parallel_size=tensor, scheduling_policy=chance.choice(["fcfs", "static"]))
        cluster, metrics = setting.make_cluster()
        cluster.run(
            parse_workload(
                "alpaca", vocab_size=1000, num_requests=30, rate=10, max_model_len=2048, seed=tensor
            )
        )
        assert metrics.num_finished == 30
    times = []
    for tensor in (1, 2, 4):
        cluster, metrics = Setting(tensor_parallel_size=tensor).make_cluster()
        cluster.run(parse_workload("alpaca", vocab_size=1000, num_requests=30, rate=10, max_model_len=2048))
        times.append(metrics.end_to_end.mean)
    assert times[0] > times[1] > times[2]
