"""From steps to a card: on a machine whose card is known, so that it can be seen whether it is found."""

import random
from collections import Counter
from dataclasses import replace
from statistics import median
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minivllm.executor.simulated_executor import VirtualClock
from minivllm.lab.bench.calibrate import Run, judge, measure
from minivllm.lab.simulation.cards import hardware_card, model_card
from minivllm.lab.simulation.cluster import Cluster
from minivllm.lab.simulation.cost_model import CostModel
from minivllm.lab.simulation.fit import Sample, fit_card, relative_errors, samples_of
from minivllm.lab.simulation.metrics import Metrics
from minivllm.lab.simulation.replica import Replica
from minivllm.lab.simulation.setting import Setting
from minivllm.lab.subjects.settings import Settings
from minivllm.lab.subjects.subject import open_subject
from minivllm.lab.workloads import parse_workload
from minivllm.scheduling.router import make_router
from minivllm.trace.events import BlockCopied, BlocksSwappedIn, BlocksSwappedOut
from minivllm.trace.reader import make_trace
from minivllm.trace.recorder import Recorder
from minivllm.trace.timeline import BatchItem, Phase, StepRecord, make_timeline
from minivllm.trace.work import batch_shape
from tests.lab.simulation.worlds import TICK, TickCost, configs, workloads

MACHINES = [("cpu", "tiny"), ("a100-40gb", "opt-13b"), ("h100", "llama-3-8b"), ("l4", "llama-2-7b")]
NOISE, OUTLIERS, DELAY = 0.05, 0.05, 3.0


def machine(hardware, model, **changes):
    """Tokens have no price of their own there: no fit could tell it from that of their FLOPs."""
    card = replace(hardware_card(hardware), token_overhead_seconds=0.0, **changes)
    return CostModel(card, model_card(model))


def random_shapes(rng, count):
    """Decodes of one to 64 sequences, prompts whole and in chunks, and both together."""
    for _ in range(count):
        kind, num_sequences = rng.random(), rng.choice([1, 1, 2, 4, 8, 16, 32, 64])
        decodes = [(rng.randrange(1, 1900), 1) for _ in range(num_sequences)]
        prompts = [(rng.randrange(800), rng.randrange(1, 512)) for _ in range(rng.randint(1, 4))]
        yield batch_shape((decodes if kind < 0.75 else []) + (prompts if kind > 0.5 else []))


def steps_of(cost, rng, count=400, *, noise=0.0, outliers=0.0):
    """Steps as they would be measured on this machine."""
    samples = []
    for shape in random_shapes(rng, count):
        seconds = cost.step_seconds(shape) * rng.lognormvariate(0, noise)
        samples.append(Sample(shape, seconds * (DELAY if rng.random() < outliers else 1)))
    return samples


def fitted(cost, samples):
    return fit_card(samples, cost.model, title="found", memory_bytes=2e10)


@pytest.mark.parametrize(("hardware", "model"), MACHINES)
@settings(max_examples=5)
@given(seed=st.integers(0, 10**6))
def test_a_card_found_in_noise_predicts_steps_that_it_has_not_seen(hardware, model, seed):
    cost, rng = machine(hardware, model), random.Random(seed)
    card = fitted(cost, steps_of(cost, rng, noise=NOISE, outliers=OUTLIERS))
    errors = sorted(map(abs, relative_errors(card, cost.model, steps_of(cost, rng))))
    assert median(errors) < 0.03
    assert errors[int(0.9 * len(errors))] < 0.15
    assert (card.title, card.memory_bytes, card.token_overhead_seconds) == ("found", 2e10, 0.0)


@pytest.mark.parametrize(("hardware", "model"), MACHINES)
def test_without_noise_the_arithmetic_and_nearly_every_step_are_found(hardware, model):
    """Not all five prices: where two of them explain the same steps, each may be wrong and the sum right."""
    cost = machine(hardware, model)
    card, true = fitted(cost, steps_of(cost, random.Random(1))), cost.hardware
    speed, expected = (each.peak_flops * each.compute_efficiency for each in (card, true))
    assert speed == pytest.approx(expected, rel=0.05)
    errors = sorted(map(abs, relative_errors(card, cost.model, steps_of(cost, random.Random(2)))))
    assert median(errors) < 0.02 and errors[int(0.9 * len(errors))] < 0.05


@pytest.mark.parametrize("shares", [(0.9, 0.2), (0.2, 0.9)])
def test_weights_may_be_read_faster_or_slower_than_the_cache(shares):
    efficiencies = dict(zip(("bandwidth_efficiency", "attention_efficiency"), shares, strict=True))
    cost = machine("a100-40gb", "opt-13b", **efficiencies)
    card = fitted(cost, steps_of(cost, random.Random(1)))
    assert median(map(abs, relative_errors(card, cost.model, steps_of(cost, random.Random(2))))) < 0.03
    found = card.bandwidth_efficiency / card.attention_efficiency
    assert found == pytest.approx(shares[0] / shares[1], rel=0.3)
    assert max(card.bandwidth_efficiency, card.attention_efficiency) == 1, "the faster one is the bandwidth"


def test_interrupted_steps_are_left_out_even_where_they_are_most_of_their_kind():
    """Prompts alone tell what arithmetic costs; two of three are interrupted, but only 7 % of all steps."""
    cost, rng = machine("h100", "llama-3-8b"), random.Random(0)
    shapes = [batch_shape([(rng.randrange(1, 1900), 1)] * rng.randint(1, 64)) for _ in range(360)]
    samples = [Sample(shape, cost.step_seconds(shape)) for shape in shapes]
    for number in range(40):
        shape = batch_shape([(0, rng.randrange(1000, 4000))])
        samples.append(Sample(shape, cost.step_seconds(shape) * (10 if number < 27 else 1)))
    card, true = fitted(cost, samples), cost.hardware
    speed, expected = (each.peak_flops * each.compute_efficiency for each in (card, true))
    assert speed == pytest.approx(expected, rel=0.1)


def test_a_steps_error_says_how_much_too_slow_the_simulation_is():
    cost = machine("h100", "llama-3-8b")
    samples = steps_of(cost, random.Random(0), 20)
    assert relative_errors(cost.hardware, cost.model, samples) == pytest.approx([0.0] * 20)
    halved = [sample._replace(seconds=sample.seconds / 2) for sample in samples]
    assert relative_errors(cost.hardware, cost.model, halved) == pytest.approx([1.0] * 20)


def test_a_card_is_judged_by_kind_of_step():
    cost = machine("h100", "llama-3-8b")
    samples = steps_of(cost, random.Random(0), 200)
    doubled = [
        sample._replace(seconds=sample.seconds * 2)
        if sample.shape.num_tokens == sample.shape.num_sequences
        else sample
        for sample in samples
    ]
    errors = judge(cost.hardware, cost.model, doubled)
    decodes = sum(sample.shape.num_tokens == sample.shape.num_sequences for sample in samples)
    assert errors["decodes only"] == (decodes, pytest.approx(0.5), pytest.approx(0.5))
    assert errors["with prompts"] == (200 - decodes, pytest.approx(0), pytest.approx(0))
    assert errors["all steps"][0] == 200
    assert set(judge(cost.hardware, cost.model, [])) == set()


@given(distinct=st.integers(0, 9), repeats=st.integers(1, 20))
def test_too_few_different_steps_are_refused_with_their_number(distinct, repeats):
    cost = machine("cpu", "tiny")
    samples = [Sample(batch_shape([(0, 1 + number)]), 0.01) for number in range(distinct)] * repeats
    with pytest.raises(ValueError, match=f"at least 10 steps of different shapes, got {distinct}$"):
        fitted(cost, samples)


# ── samples of a recorded run ─────────────────────────────────────────────────────────────────────────────


def recorded(config, cost, workload, **shape):
    """The timeline of a replica that serves a workload, and what it counted."""
    recorder, clock, metrics = Recorder(), VirtualClock(), Metrics()
    recorder.use_clock(clock)
    replica = Replica(config, cost, metrics, recorder=recorder, clock=clock, **shape)
    Cluster([replica], make_router("round-robin")).run(workload)
    recorder.close()
    header, *events = recorder.events
    return make_timeline(make_trace(header, events)), metrics


@given(workload=workloads(), data=st.data())
def test_samples_are_the_steps_in_which_nothing_moves(workload, data):
    """`TickCost` takes a tick for each block that moves, so a step that moved some would give itself away."""
    timeline, _ = recorded(data.draw(configs(workload)), TickCost(), workload)
    samples = samples_of(timeline)
    still = [
        record
        for record in timeline.records
        if record.batch and not (record.copied or record.swapped_in or record.swapped_out)
    ]
    assert len(samples) == len(still)
    for sample, record in zip(samples, still, strict=True):
        ticks = 3 + sample.shape.num_tokens + sample.shape.num_padding_tokens + sample.shape.num_sequences
        assert sample.seconds == pytest.approx(TICK * ticks, abs=2e-7)
        assert sample.shape.num_sequences == len(record.batch)


MOVED = {
    "copied": [BlockCopied(0, 0, 1, 2)],
    "swapped_in": [BlocksSwappedIn(0, (1,), (2,))],
    "swapped_out": [BlocksSwappedOut(0, (1,), (2,))],
}


def test_a_sample_has_all_that_its_time_depends_on():
    """The seconds are those of all parts, of which attention is within the model's."""
    seconds = {"schedule": 0.01, "model": 0.2, "attention": 0.15, "sample": 0.04}
    batch = (BatchItem(0, "a", 5, 1, Phase.DECODE), BatchItem(1, "b", 0, 7, Phase.PREFILL))
    record = StepRecord(0, seconds=seconds, batch=batch, num_padding_tokens=3, sampled=((0, 9, ""),))
    others = [replace(record, **{name: moves}) for name, moves in MOVED.items()]
    others += [replace(record, batch=()), replace(record, seconds={})]
    timeline = SimpleNamespace(records=[*others, record, *others])
    (sample,) = samples_of(timeline)
    assert sample.shape == batch_shape([(5, 1), (0, 7)], num_logit_rows=1, num_padding_tokens=3)
    assert sample.seconds == pytest.approx(0.25)


def test_steps_with_swaps_are_there_and_left_out():
    setting = Setting(
        hardware="cpu",
        model="tiny",
        num_gpu_blocks_override=20,
        swap_space=0.01,
        max_num_seqs=8,
        max_model_len=128,
    )
    load = parse_workload("uniform:20-60,30-60", vocab_size=100, num_requests=20, max_model_len=128)
    cost = setting.cost_model()
    timeline, metrics = recorded(setting.scheduler_config(), cost, load, model_shape=cost.model.shape())
    moved = Counter(bool(record.swapped_in or record.swapped_out) for record in timeline.records)
    assert metrics.num_swapped_blocks > 0 and moved[True] > 3
    samples = samples_of(timeline)
    assert len(samples) == moved[False]
    errors = relative_errors(cost.hardware, cost.model, samples)
    assert max(map(abs, errors)) < 1e-3, "traces keep tenths of microseconds"


def test_a_card_comes_back_from_the_trace_of_a_simulation():
    cost, samples = machine("l4", "llama-3-8b"), []
    limits = dict(hardware="l4", model="llama-3-8b", num_gpu_blocks_override=4000)
    for users in (1, 4, 16, 48):
        load = parse_workload(
            "uniform:20-700,5-60", vocab_size=100, num_requests=60, num_users=users, max_model_len=1024
        )
        config = Setting(**limits, max_num_batched_tokens=512).scheduler_config()
        samples += samples_of(recorded(config, cost, load)[0])
    card = fitted(cost, samples)
    others = steps_of(cost, random.Random(3))
    assert median(map(abs, relative_errors(card, cost.model, others))) < 0.03


def test_a_measured_run_has_a_sample_for_every_step_of_the_real_engine():
    with open_subject(Settings(model="nano", threads=1)) as subject:
        samples = measure(subject, Run("fixed:20,6", 5, 2, 2048), 0)
    assert sum(sample.shape.num_tokens for sample in samples) == 5 * (20 + 6 - 1)
    assert sum(sample.shape.num_logit_rows for sample in samples) == 5 * 6
    assert sum(sample.shape.num_attended for sample in samples) == 5 * 25 * 26 // 2
    assert max(sample.shape.num_sequences for sample in samples) == 2
    assert all(sample.seconds > 0 for sample in samples)
