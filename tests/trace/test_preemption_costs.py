"""What preemptions cost: read from runs whose every step has a known time."""

import pytest

from minivllm.config import SchedulerConfig
from minivllm.engine.engine import Engine
from minivllm.executor.simulated_executor import SimulatedExecutor, SimulatedSampler, VirtualClock
from minivllm.sampling_params import SamplingParams
from minivllm.trace.preemption_costs import crossing, preemption_costs
from minivllm.trace.reader import read_trace
from minivllm.trace.recorder import Recorder
from minivllm.trace.timeline import make_timeline
from viz.figures.preemption_cost import preemption_cost

TOKEN, MOVE, STEP = 0.001, 0.01, 0.5
LENGTHS = (8, 16, 32)


class Cost:
    """A second for every thousand tokens, ten milliseconds for every block that moves."""

    def step_seconds(self, shape, *, num_copied_blocks=0, num_swapped_blocks=0):
        return STEP + TOKEN * shape.num_tokens + MOVE * num_swapped_blocks


def played(mode, path, block_size=8):
    """F's third token needs a block, so X goes and comes back, once for each length."""
    num_blocks = LENGTHS[-1] // block_size + 2
    config = SchedulerConfig(
        num_blocks,
        block_size,
        max_num_seqs=2,
        max_num_batched_tokens=64,
        max_model_len=64,
        preemption_mode=mode,
        num_host_blocks=num_blocks if mode == "swap" else 0,
        watermark=0.0,
    )
    clock = VirtualClock()
    with Recorder(path) as recorder:
        recorder.use_clock(clock)
        engine = Engine(
            config,
            SimulatedExecutor(Cost(), clock),
            SimulatedSampler(),
            vocab_size=100,
            recorder=recorder,
            clock=clock,
            sleep=clock.advance,
        )
        params = SamplingParams(temperature=0, max_tokens=5, ignore_eos=True)
        for length in LENGTHS:
            filler = (num_blocks - length // block_size) * block_size - 1
            engine.add_request(f"F{length}", [1] * filler, params)
            engine.add_request(f"X{length}", [1] * (length - 2), params)
            while engine.has_unfinished_requests():
                engine.step()
    return make_timeline(read_trace(path))


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("costs")
    return {mode: played(mode, folder / f"{mode}.jsonl") for mode in ("recompute", "swap")}


def test_recomputing_costs_the_tokens_beside_the_newest(runs):
    costs = preemption_costs([runs["recompute"]])["recompute"]
    assert costs == pytest.approx({length - 1: TOKEN * (length - 1) for length in LENGTHS}, abs=1e-4)


def test_swapping_costs_the_blocks_there_and_back(runs):
    costs = preemption_costs([runs["swap"]])["swap"]
    assert costs == pytest.approx({length - 1: 2 * MOVE * (length // 8) for length in LENGTHS}, abs=1e-4)


def test_both_runs_are_told_together_and_lines_cross_where_one_becomes_cheaper(runs):
    costs = preemption_costs(runs.values())
    assert list(costs) == ["recompute", "swap"] and crossing(costs) is None
    assert crossing({"recompute": {10: 1.0, 100: 4.0}, "swap": {10: 2.0, 100: 2.0}}) == pytest.approx(
        31.6, 0.01
    )
    assert crossing({"recompute": {10: 1.0}}) is None
    (scene,) = preemption_cost(list(runs.values()))
    assert scene.num_steps == 1


def test_a_run_in_which_nobody_goes_has_no_costs(runs, tmp_path):
    assert preemption_costs([]) == {} and preemption_cost([]) == []
