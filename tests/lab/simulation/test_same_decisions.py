"""The simulator decides what the engine decides, step by step, if both look at the same clock."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minivllm.config import SchedulerConfig
from minivllm.decoding.sampler import Sampler
from minivllm.engine.engine import Engine
from minivllm.executor.simulated_executor import (
    SimulatedExecutor,
    SimulatedSampler,
    VirtualClock,
    shape_of,
)
from minivllm.executor.torch_executor import TorchExecutor
from minivllm.lab.simulation.cluster import Cluster
from minivllm.lab.simulation.replica import Replica
from minivllm.model.tiny import MODEL_PATH
from minivllm.sampling_params import SamplingParams
from minivllm.trace.events import (
    BatchPlanned,
    BlocksAllocated,
    BlocksShared,
    RequestPreempted,
    RequestQueued,
    RequestScheduled,
    SequenceFinished,
    StepStarted,
)
from minivllm.trace.recorder import Recorder
from tests.engine.fakes import FakeExecutor, FakeSampler
from tests.lab.simulation.worlds import TICK, Listed, TickCost, configs, make_request, workloads

DECISIONS = (
    StepStarted,
    RequestScheduled,
    RequestPreempted,
    BlocksAllocated,
    BlocksShared,
    BatchPlanned,
    SequenceFinished,
)


class Timed:
    """A real executor, and the simulator's cost of its plans on the simulator's clock."""

    def __init__(self, inner, clock):
        self.inner, self.clock = inner, clock
        self.last_attention_seconds = 0.0

    def execute(self, plan):
        logits = self.inner.execute(plan)
        copied = sum(move.kind == "copy" for move in plan.moves)
        seconds = TickCost().step_seconds(
            shape_of(plan), num_copied_blocks=copied, num_swapped_blocks=len(plan.moves) - copied
        )
        self.clock.advance(seconds)
        return logits


@pytest.fixture(scope="module")
def executor():
    return TorchExecutor.from_folder(MODEL_PATH, num_blocks=16, block_size=4)


def decisions(recorder):
    return [event for event in recorder.events if isinstance(event, DECISIONS)]


def simulated(config, workload):
    clock = VirtualClock()
    recorder = Recorder(clock=clock)
    replica = Replica(config, TickCost(), recorder=recorder, clock=clock)
    Cluster([replica]).run(workload)
    replica.check_invariants()
    return decisions(recorder)


def played(config, workload, make_executor, sampler, vocab_size=97):
    """The same through the engine: requests are added once the clock has reached their arrival."""
    clock = VirtualClock()
    recorder = Recorder(clock=clock)
    executor = Timed(make_executor(), clock) if make_executor else SimulatedExecutor(TickCost(), clock)
    engine = Engine(config, executor, sampler, vocab_size=vocab_size, recorder=recorder, clock=clock)
    waiting = list(workload.arrivals())
    while waiting or engine.has_unfinished_requests():
        if not engine.has_unfinished_requests():
            clock.now = max(clock.now, waiting[0].arrival_seconds)
        while waiting and waiting[0].arrival_seconds <= clock.now:
            request = waiting.pop(0)
            engine.add_request(
                request.request_id,
                request.prompt_token_ids,
                SamplingParams(temperature=0, max_tokens=request.num_output_tokens, ignore_eos=True),
                arrival_time=request.arrival_seconds,
                priority=request.priority,
            )
        engine.step()
    return decisions(recorder)


@given(workload=workloads(), data=st.data())
def test_the_simulator_decides_as_the_engine_with_a_fake_model_does(workload, data):
    config = data.draw(configs(workload))
    # A prefix cache finds what was said before, and the simulator does not know what the model will say.
    config = replace(config, prefix_cache=None)
    fake = played(
        config,
        workload,
        lambda: FakeExecutor(config.num_blocks, config.block_size, config.num_host_blocks),
        FakeSampler(),
    )
    assert simulated(config, workload) == fake


@given(workload=workloads(), data=st.data())
def test_the_simulator_decides_as_the_engine_with_a_simulated_executor_does(workload, data):
    config = data.draw(configs(workload))
    assert simulated(config, workload) == played(config, workload, None, SimulatedSampler())


@pytest.mark.parametrize("policy", ["fcfs", "chunked", "priority", "static(timeout_seconds=0)"])
@settings(max_examples=max(1, settings.default.max_examples // 20))
@given(workload=workloads(most=6))
def test_the_simulator_decides_as_the_engine_with_the_shipped_model_does(executor, policy, workload):
    config = SchedulerConfig(
        num_blocks=16,
        block_size=4,
        max_num_seqs=4,
        max_num_batched_tokens=24,
        max_model_len=64,
        scheduling_policy=policy,
    )
    vocab_size = executor.config.vocab_size
    real = played(config, workload, lambda: executor, Sampler(vocab_size), vocab_size)
    assert simulated(config, workload) == real


def test_both_wait_for_a_static_batch_to_fill():
    config = SchedulerConfig(
        num_blocks=50,
        block_size=4,
        max_num_seqs=2,
        max_model_len=64,
        scheduling_policy=f"static(timeout_seconds={64 * TICK})",
    )
    for arrival, begins in ((16 * TICK, 16 * TICK), (500 * TICK, 64 * TICK)):
        workload = Listed([make_request(0, 4, 3), make_request(1, 4, 3, arrival)])
        events = simulated(config, workload)
        assert next(event.time for event in events if isinstance(event, StepStarted)) == round(begins, 6)
    clock = VirtualClock()
    recorder = Recorder(clock=clock)
    engine = Engine(
        config,
        SimulatedExecutor(TickCost(), clock),
        SimulatedSampler(),
        vocab_size=97,
        recorder=recorder,
        clock=clock,
        sleep=clock.advance,
    )
    engine.add_request("0", [1, 2, 3], SamplingParams(max_tokens=3, ignore_eos=True))
    while engine.has_unfinished_requests():
        engine.step()
    (queued,) = (event for event in recorder.events if isinstance(event, RequestQueued))
    first = next(event for event in recorder.events if isinstance(event, StepStarted))
    assert first.time - queued.time == pytest.approx(64 * TICK, abs=1e-5)
