"""Recorded decode steps: the same logits as computed anew, whatever sequences and empty places are in them.

There is no GPU here, so "recording" is a function that computes the step again from its tensors. What is
tested is all that a graph relies on: that a step of fixed size in fixed memory says what the real one says.
"""

from array import array

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs

from minivllm.executor.attention.kernel_backend import MicroscopeAttention
from minivllm.executor.attention.metadata import build_metadata
from minivllm.executor.kv_storage import KVStorage
from minivllm.executor.runners.graphs import GraphRunner, StaticStep, graph_sizes
from minivllm.executor.runners.model_runner import FirstSupporting
from minivllm.executor.torch_executor import TorchExecutor
from minivllm.model.config import ModelConfig
from minivllm.model.decoder import Decoder
from minivllm.scheduling.plan import ScheduledSequence, StepPlan

CPU = torch.device("cpu")
BLOCK_SIZE, MAX_BLOCKS = 2, 4


def make_executor(seed=0, max_sequences=4, window=None):
    """A tiny random model on our kernels, with its decode steps "recorded"."""
    config = ModelConfig.from_dict(
        {
            "architectures": ["Qwen2ForCausalLM"],
            "vocab_size": 20,
            "hidden_size": 32,
            "intermediate_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "head_dim": 32,
            "use_sliding_window": window is not None,
            "sliding_window": window,
            "layer_types": ["full_attention" if window is None else "sliding_attention"],
            "torch_dtype": "float32",
        }
    )
    decoder = Decoder(config, torch.float32, CPU)
    generator = torch.Generator().manual_seed(seed)
    for _, view in decoder.views():
        view.copy_(torch.randn(view.shape, generator=generator) * 0.2)
    storage = KVStorage(config, 24, BLOCK_SIZE, torch.float32, CPU)
    storage.cells.fill_(float("nan"))
    executor = TorchExecutor(decoder, storage, MicroscopeAttention)
    recorded = []

    def capture(forward):
        """Like a graph, it always returns the same tensor."""
        recorded.append(forward)
        logits = forward()

        def replay():
            return logits.copy_(forward())

        return replay

    graphs = GraphRunner(
        decoder,
        executor.attention,
        max_blocks=MAX_BLOCKS,
        max_sequences=max_sequences,
        capture=capture,
    )
    executor.runner = FirstSupporting(graphs, executor.runner)
    return executor, recorded


def decode_plan(lengths, tokens, step=1):
    """Every sequence computes the last of so many tokens; blocks lie anywhere."""
    blocks = iter([7, 3, 22, 1, 18, 5, 14, 9, 2, 20, 11, 6, 16, 0, 23, 4])
    scheduled = []
    for seq_id, length in enumerate(lengths):
        table = array("i", [next(blocks) for _ in range(-(-length // BLOCK_SIZE))])
        last = array("i", [tokens[(seq_id + length) % len(tokens)]])
        scheduled.append(ScheduledSequence(seq_id, length - 1, last, table, 1))
    return StepPlan(step, tuple(scheduled))


def fill_caches(executor, seed):
    generator = torch.Generator().manual_seed(seed)
    executor.storage.cells.copy_(torch.randn(executor.storage.cells.shape, generator=generator))


@given(st.integers(1, 600))
def test_every_step_finds_a_size_that_is_not_much_larger(most):
    sizes = graph_sizes(most)
    assert list(sizes) == sorted(set(sizes)) and sizes[-1] == most and sizes[0] >= 1
    for count in range(1, most + 1):
        size = next(size for size in sizes if size >= count)
        assert size <= max(2 * count - 1, 1) or size <= count + 8


@given(
    steps=st.lists(st.lists(st.integers(1, 7), min_size=1, max_size=4), min_size=1, max_size=4),
    seed=st.integers(0, 20),
)
@settings(max_examples=8, deadline=None)
def test_a_recorded_step_says_what_the_step_says(steps, seed):
    executor, recorded = make_executor(seed)
    both = executor.runner
    graphs, eager = both.runners
    for number, lengths in enumerate(steps):
        plan = decode_plan(lengths, [3, 1, 4, 15, 9], number)
        fill_caches(executor, number)
        executor.runner = both
        replayed = executor.execute(plan)
        cells = executor.storage.cells.clone()
        fill_caches(executor, number)
        executor.runner = eager
        expected = executor.execute(plan)
        assert (replayed - expected).abs().max() <= 1e-5
        assert (cells - executor.storage.cells).abs().max() <= 1e-6, "something else was written"
    assert len(recorded) == len({next(s for s in graphs.sizes if s >= len(step)) for step in steps})


def test_logits_are_the_callers_own():
    executor, _ = make_executor()
    fill_caches(executor, 0)
    first = executor.execute(decode_plan([3, 2], [5]))
    kept = first.clone()
    executor.execute(decode_plan([2, 5], [7]))
    assert torch.equal(first, kept)


def test_steps_that_are_not_all_decodes_are_computed_as_always():
    executor, recorded = make_executor()
    fill_caches(executor, 0)
    decode = decode_plan([3, 4], [1])
    prompt = ScheduledSequence(5, 0, array("i", [1, 2, 3]), array("i", [8, 10]), 1)
    silent = decode.scheduled[0]
    for scheduled in (
        (*decode.scheduled, prompt),
        (structs.replace(silent, num_logits=0), decode.scheduled[1]),
        decode_plan([1] * 5, [1]).scheduled,  # more than max_sequences
    ):
        executor.execute(StepPlan(2, tuple(scheduled)))
    assert not recorded
    executor.execute(StepPlan(3, decode.scheduled, (), 2))  # a padded step, of static batching
    assert not recorded


def test_models_with_windows_are_not_recorded():
    executor, recorded = make_executor(window=3)
    fill_caches(executor, 0)
    executor.execute(decode_plan([3, 4], [1]))
    assert not recorded


def test_an_empty_place_writes_nothing_and_reads_nothing():
    step = StaticStep(4, MAX_BLOCKS, CPU)
    step.fill(build_metadata(decode_plan([3, 5, 1], [2]), BLOCK_SIZE))
    step.fill(build_metadata(decode_plan([4], [2]), BLOCK_SIZE))
    assert step.slots.tolist()[1:] == [-1] * 3
    assert step.lengths.tolist() == [4, 0, 0, 0]
    assert step.token_ids.shape == step.positions.shape == (4,)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU")
def test_a_real_graph_gives_the_same_tokens():
    from minivllm import LLM, SamplingParams
    from minivllm.model.tiny import MODEL_PATH

    params = SamplingParams(max_tokens=40, temperature=0)
    prompts = ["Once upon a time", "What is a KV cache?", "The scheduler"]
    says = [
        [output.outputs[0].token_ids for output in llm.generate(prompts, params)]
        for llm in (
            LLM(MODEL_PATH, attention_backend="torch"),
            LLM(MODEL_PATH, attention_backend="numba-cuda", enforce_eager=True),
            LLM(MODEL_PATH, attention_backend="numba-cuda"),
        )
    ]
    assert says[0] == says[1] == says[2]
