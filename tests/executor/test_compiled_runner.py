"""A step in one compiled call says what the plain decoder says."""

from array import array

import msgspec
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minivllm.executor.attention import numba_cpu_backend
from minivllm.executor.attention.metadata import build_metadata
from minivllm.executor.attention.numba_cpu_backend import NumbaCpuAttention
from minivllm.executor.attention.torch_backend import TorchAttention
from minivllm.executor.kv_storage import KVStorage
from minivllm.executor.runners import compiled as compiled_module
from minivllm.executor.runners.compiled import CompiledRunner
from minivllm.executor.runners.fused import FusedRunner
from minivllm.executor.runners.model_runner import ModelRunner
from minivllm.executor.torch_executor import TorchExecutor
from minivllm.model.config import ModelConfig
from minivllm.model.tiny import MODEL_PATH
from minivllm.scheduling.plan import ScheduledSequence, StepPlan
from tests import profiles
from tests.executor.test_fused_runner import (
    BLOCK_SIZE,
    CPU,
    NUM_BLOCKS,
    VOCABULARY,
    configs,
    executor_of,
    runs,
)

TOLERANCE = {torch.float32: {"atol": 1e-4, "rtol": 1e-4}, torch.bfloat16: {"atol": 0.4, "rtol": 0.1}}
DTYPES = st.sampled_from([torch.float32, torch.float32, torch.bfloat16])


@pytest.fixture(autouse=True)
def little_room(monkeypatch):
    """So that it has to grow."""
    monkeypatch.setattr(compiled_module, "MIN_CAPACITY", 2)


def compiled_and_plain(config, seed, dtype):
    return tuple(executor_of(config, kind, seed, dtype) for kind in (NumbaCpuAttention, TorchAttention))


@given(configs(), runs(), st.integers(0, 99), DTYPES, st.sampled_from([0, 0, 1, 7]))
@settings(deadline=None)
def test_logits_and_cache_are_those_of_the_plain_decoder(config, plans, seed, dtype, num_padding):
    """Prompts, chunks and decoding sequences, any number of logits wanted, with padding or without."""
    compiled, plain = compiled_and_plain(config, seed, dtype)
    for plan in plans:
        padded = msgspec.structs.replace(plan, num_padding_tokens=num_padding if plan.scheduled else 0)
        torch.testing.assert_close(compiled.execute(padded), plain.execute(plan), **TOLERANCE[dtype])
    torch.testing.assert_close(
        compiled.storage.cells, plain.storage.cells, equal_nan=True, **TOLERANCE[dtype]
    )


@pytest.mark.skipif(profiles.is_day(), reason="compiles for long; by day 8 bits are floats, below")
@given(configs(), runs(), st.integers(0, 99), st.sampled_from([0, 0, 3]))
@settings(deadline=None, max_examples=30)
def test_whole_numbers_in_the_cache_are_those_of_the_plain_decoder(config, plans, seed, num_padding):
    """But for those that were near the middle of two, and what they change in later layers."""
    compiled, plain = (
        executor_of(config, backend, seed, kind="int8_per_token_head")
        for backend in (NumbaCpuAttention, TorchAttention)
    )
    for plan in plans:
        padded = msgspec.structs.replace(plan, num_padding_tokens=num_padding if plan.scheduled else 0)
        torch.testing.assert_close(compiled.execute(padded), plain.execute(plan), atol=0.05, rtol=0.05)
    ours, theirs = compiled.storage, plain.storage
    torch.testing.assert_close(ours.scales, theirs.scales, equal_nan=True, atol=1e-3, rtol=0.05)
    first_layer = (ours.cells[0].int() - theirs.cells[0].int()).abs()
    assert first_layer.max() <= 1 and first_layer.float().mean() < 0.01


@given(configs(), runs(), st.integers(0, 99), st.sampled_from([0, 0, 3]))
@settings(deadline=None, max_examples=30)
def test_floats_of_8_bits_in_the_cache_are_those_of_the_plain_decoder(config, plans, seed, num_padding):
    """But for those that were near the middle of two, and what they change in later layers."""
    compiled, plain = (
        executor_of(config, backend, seed, kind="fp8") for backend in (NumbaCpuAttention, TorchAttention)
    )
    for plan in plans:
        padded = msgspec.structs.replace(plan, num_padding_tokens=num_padding if plan.scheduled else 0)
        torch.testing.assert_close(compiled.execute(padded), plain.execute(plan), atol=0.05, rtol=0.05)
    ours, theirs = (executor.storage.cells[0].view(torch.uint8) for executor in (compiled, plain))
    differ = (ours.int() - theirs.int()).abs()
    assert differ.max() <= 1 and differ.bool().float().mean() < 0.01


def batches(lengths, steps, tokens, num_blocks=NUM_BLOCKS):
    """Prompts of these lengths, and then so many steps of one token each; blocks lie anywhere."""
    blocks = iter(torch.randperm(num_blocks, generator=torch.Generator().manual_seed(7)).tolist())
    tables = [
        array("i", [next(blocks) for _ in range(-(-(length + steps) // BLOCK_SIZE))]) for length in lengths
    ]

    def token(sequence, position):
        return tokens[(3 * sequence + position) % len(tokens)]

    def scheduled(sequence, first, count):
        ids = array("i", [token(sequence, first + p) for p in range(count)])
        return ScheduledSequence(sequence, first, ids, tables[sequence], 1)

    yield StepPlan(0, tuple(scheduled(s, 0, length) for s, length in enumerate(lengths)))
    for step in range(steps):
        yield StepPlan(step + 1, tuple(scheduled(s, n + step, 1) for s, n in enumerate(lengths)))


@given(
    config=configs(),
    lengths=st.lists(st.integers(1, 12), min_size=1, max_size=14),
    tokens=st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=9),
    seed=st.integers(0, 99),
    dtype=DTYPES,
)
@settings(deadline=None)
def test_batches_of_any_size_are_those_of_the_plain_decoder(config, lengths, tokens, seed, dtype):
    compiled, plain = compiled_and_plain(config, seed, dtype)
    for plan in batches(lengths, 3, tokens):
        torch.testing.assert_close(compiled.execute(plan), plain.execute(plan), **TOLERANCE[dtype])


@given(
    config=configs(),
    lengths=st.lists(st.integers(1, 12), min_size=1, max_size=5),
    tokens=st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=9),
    count=st.integers(1, 7),
    seed=st.integers(0, 99),
)
@settings(deadline=None)
def test_steps_that_follow_from_each_other_are_those_that_are_asked_for_one_by_one(
    config, lengths, tokens, count, seed
):
    ours, theirs = (executor_of(config, NumbaCpuAttention, seed) for _ in range(2))
    first, *_ = plans = list(batches(lengths, count, tokens))
    found = []
    for executor, steps in ((ours, type(ours.runner)), (theirs, ModelRunner)):
        executor.execute(first)
        runner, metadata = executor.runner, build_metadata(plans[1], BLOCK_SIZE)
        before = metadata.token_ids.copy(), metadata.positions.copy()
        found.append(steps.continue_greedily(runner, metadata, count, BLOCK_SIZE).tolist())
        assert (metadata.token_ids == before[0]).all() and (metadata.positions == before[1]).all()
    assert found[0] == found[1]
    assert torch.equal(ours.storage.cells.nan_to_num(), theirs.storage.cells.nan_to_num())


@given(configs(), runs())
@settings(deadline=None, max_examples=15)
def test_bfloat16_stays_as_near_to_float32_as_the_plain_decoder_does(config, plans):
    exact = executor_of(config, TorchAttention, 0)
    compiled, plain = compiled_and_plain(config, 0, torch.bfloat16)
    worst = {"plain": 0.0, "compiled": 0.0}
    for plan in plans:
        truth = exact.execute(plan)
        for name, executor in (("plain", plain), ("compiled", compiled)):
            error = (executor.execute(plan) - truth).abs().amax() if len(truth) else torch.zeros(())
            worst[name] = max(worst[name], float(error))
    assert worst["compiled"] <= 3 * worst["plain"] + 0.1


@given(configs(), st.integers(0, 9), DTYPES)
@settings(deadline=None, max_examples=10)
def test_weights_in_panels_can_be_read_back_under_their_names(config, seed, dtype):
    compiled, plain = compiled_and_plain(config, seed, dtype)
    views, unpacked = dict(plain.decoder.views()), dict(compiled.decoder.views())
    assert views.keys() == unpacked.keys()
    for name, view in views.items():
        assert torch.equal(view, unpacked[name]), name
    assert plain.decoder.num_bytes == compiled.decoder.num_bytes


@given(configs(), runs())
@settings(deadline=None, max_examples=10)
def test_a_decoder_in_panels_still_computes_by_itself(config, plans):
    compiled, plain = compiled_and_plain(config, 0, torch.float32)
    storage = KVStorage(config, NUM_BLOCKS, BLOCK_SIZE, torch.float32, CPU)
    again = TorchExecutor(compiled.decoder, storage, TorchAttention)
    for plan in plans:
        torch.testing.assert_close(again.execute(plan), plain.execute(plan), atol=1e-5, rtol=1e-5)


@given(configs())
@settings(deadline=None, max_examples=20)
def test_models_that_it_does_not_know_go_the_usual_way(config):
    executor = executor_of(config, NumbaCpuAttention, 0)
    is_known = config.hidden_act == "silu" and len(set(config.layer_windows)) == 1
    assert isinstance(executor.runner, CompiledRunner) == is_known
    assert isinstance(executor.runner, FusedRunner) != is_known


def a_step(num_tokens, num_logits=1):
    tokens = array("i", range(1, num_tokens + 1))
    return StepPlan(0, (ScheduledSequence(0, 0, tokens, array("i", [0]), num_logits),))


class Counting:
    """How many steps went this way."""

    def __init__(self, runner):
        self.count, self._run = 0, runner.run
        runner.run = self

    def __call__(self, *given):
        self.count += 1
        return self._run(*given)


@pytest.mark.parametrize("num_tokens", [1, 8, 9])
def test_with_matrix_units_a_copy_in_panels_serves_small_steps_and_onednn_the_others(monkeypatch, num_tokens):
    plain = TorchExecutor.from_folder(MODEL_PATH, num_blocks=2)
    monkeypatch.setattr(numba_cpu_backend, "has_matrix_units", lambda dtype: True)
    executor = TorchExecutor.from_folder(MODEL_PATH, num_blocks=2)
    compiled, fused = executor.runner.runners
    assert isinstance(compiled, CompiledRunner) and isinstance(fused, FusedRunner)
    counting = Counting(compiled)
    plan = a_step(num_tokens)
    torch.testing.assert_close(executor.execute(plan), plain.execute(plan), atol=1e-4, rtol=1e-4)
    assert counting.count == (num_tokens <= 8)


def test_a_large_model_is_not_copied(monkeypatch):
    monkeypatch.setattr(numba_cpu_backend, "has_matrix_units", lambda dtype: True)
    monkeypatch.setattr(compiled_module, "MAX_COPY_BYTES", 1000)
    assert isinstance(TorchExecutor.from_folder(MODEL_PATH, num_blocks=2).runner, FusedRunner)


def test_a_second_engine_may_have_the_same_decoder():
    first = TorchExecutor.from_folder(MODEL_PATH, num_blocks=2)
    storage = KVStorage(first.config, 2, 16, torch.float32, CPU)
    second = TorchExecutor(first.decoder, storage, NumbaCpuAttention)
    assert torch.equal(first.execute(a_step(5)), second.execute(a_step(5)))


def test_a_step_says_where_its_time_went():
    executor = TorchExecutor.from_folder(MODEL_PATH, num_blocks=2)
    executor.execute(a_step(9))
    seconds = executor.runner.seconds
    assert all(value > 0 for value in seconds.values())
    assert executor.last_attention_seconds == seconds["attention"] < sum(seconds.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("lengths", [[300, 1, 40], [1] * 70])
def test_work_for_all_threads_is_shared_among_them(dtype, lengths):
    """Sizes above every threshold, rows and k in several parts, a prompt of many tiles."""
    config = ModelConfig.from_dict(
        {"architectures": ["Qwen3ForCausalLM"], "vocab_size": 400, "hidden_size": 600,
         "intermediate_size": 200,
         "num_hidden_layers": 2, "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 64,
         "hidden_act": "silu", "torch_dtype": "float32"}
    )  # fmt: skip
    compiled, plain = (
        executor_of(config, kind, 3, dtype, num_blocks=120, spread=0.05)
        for kind in (NumbaCpuAttention, TorchAttention)
    )
    for plan in batches(lengths, 2, [3, 41, 9], num_blocks=120):
        torch.testing.assert_close(compiled.execute(plan), plain.execute(plan), **TOLERANCE[dtype])


def test_odd_sizes_are_multiplied_one_by_one():
    config = ModelConfig.from_dict(
        {"architectures": ["LlamaForCausalLM"], "vocab_size": VOCABULARY, "hidden_size": 15,
         "intermediate_size": 7, "num_hidden_layers": 2, "num_attention_heads": 2, "head_dim": 6,
         "torch_dtype": "bfloat16"}
    )  # fmt: skip
    compiled, plain = compiled_and_plain(config, 1, torch.bfloat16)
    for plan in batches([5, 1, 9], 2, [3, 4, 9]):
        torch.testing.assert_close(compiled.execute(plan), plain.execute(plan), **TOLERANCE[torch.bfloat16])
