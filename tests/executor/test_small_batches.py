"""A step in one compiled call says what the plain decoder says."""

from array import array

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minivllm.executor import small_batches
from minivllm.executor.attention.numba_cpu_backend import NumbaCpuAttention
from minivllm.executor.attention.torch_backend import TorchAttention
from minivllm.executor.kv_storage import KVStorage
from minivllm.executor.torch_executor import TorchExecutor
from minivllm.scheduling.plan import ScheduledSequence, StepPlan
from tests.executor.test_fused_decoder import (
    BLOCK_SIZE,
    CPU,
    NUM_BLOCKS,
    VOCABULARY,
    configs,
    executor_of,
)

TOLERANCE = {torch.float32: {"atol": 1e-4, "rtol": 1e-4}, torch.bfloat16: {"atol": 0.4, "rtol": 0.1}}


def plans(lengths, steps, tokens):
    """Prompts of these lengths, and then so many steps of one token each; blocks lie anywhere."""
    blocks = iter(torch.randperm(NUM_BLOCKS, generator=torch.Generator().manual_seed(7)).tolist())
    tables = [
        array("i", [next(blocks) for _ in range(-(-(length + steps) // BLOCK_SIZE))]) for length in lengths
    ]

    def token(sequence, position):
        return tokens[(3 * sequence + position) % len(tokens)]

    prompts = [
        ScheduledSequence(s, 0, array("i", [token(s, p) for p in range(length)]), tables[s], 1)
        for s, length in enumerate(lengths)
    ]
    yield StepPlan(0, tuple(prompts))
    for step in range(steps):
        yield StepPlan(
            step + 1,
            tuple(
                ScheduledSequence(s, length + step, array("i", [token(s, length + step)]), tables[s], 1)
                for s, length in enumerate(lengths)
            ),
        )


class Counting:
    """How many steps went this way."""

    def __init__(self, executor):
        self.count, self._run = 0, executor.whole_steps.run
        executor.whole_steps.run = self

    def __call__(self, metadata):
        self.count += 1
        return self._run(metadata)


@given(
    config=configs(),
    lengths=st.lists(st.integers(1, 12), min_size=1, max_size=8),
    tokens=st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=9),
    seed=st.integers(0, 99),
    dtype=st.sampled_from([torch.float32, torch.float32, torch.bfloat16]),
    is_cached=st.booleans(),
)
@settings(deadline=None)
def test_logits_are_those_of_the_plain_decoder(config, lengths, tokens, seed, dtype, is_cached):
    plain, compiled = (
        executor_of(config, backend, seed, dtype) for backend in (TorchAttention, NumbaCpuAttention)
    )
    expects_steps = 3 if compiled.whole_steps else 0
    if compiled.whole_steps:
        compiled.whole_steps._is_cached = is_cached
        most = small_batches.MOST_CACHED if is_cached else small_batches.MOST_STREAMED
        expects_steps = 3 if len(lengths) <= most else 0
        counting = Counting(compiled)
    for plan in plans(lengths, 3, tokens):
        torch.testing.assert_close(compiled.execute(plan), plain.execute(plan), **TOLERANCE[dtype])
    if compiled.whole_steps:
        # A prompt of one token is a step like any other.
        assert counting.count == expects_steps + (expects_steps > 0 and max(lengths) == 1)
    torch.testing.assert_close(
        compiled.storage.cells, plain.storage.cells, equal_nan=True, **TOLERANCE[dtype]
    )


@given(configs())
@settings(deadline=None, max_examples=20)
def test_models_that_it_does_not_know_go_the_usual_way(config):
    executor = executor_of(config, NumbaCpuAttention, 0)
    is_known = config.hidden_act == "silu" and len(set(config.layer_windows)) == 1
    assert (executor.whole_steps is not None) == is_known


def test_a_large_model_is_not_copied(monkeypatch):
    from minivllm.model.tiny import MODEL_PATH

    monkeypatch.setattr(small_batches, "LARGEST_BYTES", 1000)
    assert TorchExecutor.from_folder(MODEL_PATH, num_blocks=2).whole_steps is None


@pytest.mark.parametrize("num_logits", [0, 2])
def test_prompts_and_silent_tokens_go_the_usual_way(num_logits):
    from minivllm.model.tiny import MODEL_PATH

    executor = TorchExecutor.from_folder(MODEL_PATH, num_blocks=2)
    counting = Counting(executor)
    tokens = array("i", [1] * max(1, num_logits))
    executor.execute(StepPlan(0, (ScheduledSequence(0, 0, tokens, array("i", [0]), num_logits),)))
    assert counting.count == 0


def test_weights_that_are_packed_already_can_be_read():
    from minivllm.model.tiny import MODEL_PATH

    first = TorchExecutor.from_folder(MODEL_PATH, num_blocks=2)
    storage = KVStorage(first.config, 2, 16, torch.float32, CPU)
    second = TorchExecutor(first.decoder, storage, NumbaCpuAttention)
    plan = StepPlan(0, (ScheduledSequence(0, 0, array("i", [1]), array("i", [0]), 1),))
    assert torch.equal(first.execute(plan), second.execute(plan))
