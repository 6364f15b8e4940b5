"""Attention by our own kernels agrees with attention; the engine says the same on them.

The kernels run under the microscope, with every access checked. On a GPU the same functions run compiled.
"""

from array import array

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from minivllm import LLM, SamplingParams
from minivllm.config import SchedulerConfig
from minivllm.decoding.sampler import Sampler
from minivllm.engine.engine import Engine
from minivllm.executor.attention.kernel_backend import MicroscopeAttention, NumbaCudaAttention
from minivllm.executor.attention.metadata import build_metadata
from minivllm.executor.batch_invariance import invariant
from minivllm.executor.kv_storage import KVStorage
from minivllm.executor.quantized_storage import make_storage
from minivllm.executor.torch_executor import TorchExecutor
from minivllm.model.tiny import MODEL_PATH
from minivllm.scheduling.plan import ScheduledSequence, StepPlan
from tests.engine.test_batch_invariance import logits_of
from tests.executor.test_attention import CPU, check, model, pairs, poison
from tests.executor.test_graph_runner import make_executor

short = pairs.map(lambda pair: (pair[0] // 3, 1 + (pair[1] - 1) // 3))


@given(
    lengths=st.lists(short, min_size=1, max_size=3),
    heads=st.sampled_from([(1, 1), (2, 1), (6, 2)]),
    windows=st.sampled_from([[None], [None], [5], [4, None]]),
    block_size=st.sampled_from([1, 3, 8, 16]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    kind=st.sampled_from(["auto", "auto", "int8_per_token_head", "fp8"]),
    seed=st.integers(0, 1000),
)
@settings(max_examples=12, deadline=None)
@example([(3, 4), (9, 1)], (2, 1), [None], 8, torch.bfloat16, "int8_per_token_head", 0)
@example([(3, 4), (9, 1)], (2, 1), [4, None], 3, torch.float32, "fp8", 1)
def test_the_kernels_are_attention(lengths, heads, windows, block_size, dtype, kind, seed):
    check(model(heads, 32, windows), lengths, block_size, dtype, seed, MicroscopeAttention, kind)


def test_long_contexts_are_split_and_merged():
    check(model((2, 2), 64, [None]), [(70, 1), (3, 1)], 2, torch.float32, 0, MicroscopeAttention)


def by_chunks(chunks, block_size, beside=(), *, in_one_order=True, dtype=torch.float32, kind="auto"):
    """[T, heads, head_dim] of one sequence that is computed in these chunks, each beside a new other one."""
    config, total = model((2, 1), 32, [None]), sum(chunks)
    blocks = -(-total // block_size)
    storage = make_storage(config, 2 * blocks + 1, block_size, dtype, CPU, kind)
    poison(storage)
    backend = (invariant(MicroscopeAttention) if in_one_order else MicroscopeAttention)(config, storage)
    rng = torch.Generator().manual_seed(5)
    query, key, value = (
        torch.randn(total, heads, config.head_dim, generator=rng).to(dtype) for heads in (2, 1, 1)
    )
    out, start = [], 0
    tables = array("i", range(blocks, 0, -1)), array("i", range(blocks + 1, 2 * blocks + 1))
    for number, count in enumerate(chunks):
        items = [ScheduledSequence(0, start, array("i", [0] * count), tables[0], 1)]
        rows = slice(start, start + count)
        step = [query[rows], key[rows], value[rows]]
        if number < len(beside):
            items.insert(0, ScheduledSequence(1, 0, array("i", [0] * beside[number]), tables[1], 1))
            step = [
                torch.cat((tensor[: beside[number]].flip(0), own))
                for tensor, own in zip((query, key, value), step, strict=True)
            ]
        backend.begin_step(build_metadata(StepPlan(number, tuple(items)), block_size))
        out.append(backend(0, *step)[-count:])
        start += count
    return torch.cat(out)


@given(
    chunks=st.lists(st.integers(1, 5), min_size=2, max_size=3),
    beside=st.lists(st.integers(1, 3), max_size=2),
    block_size=st.sampled_from([1, 4, 16]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    kind=st.sampled_from(["auto", "int8_per_token_head", "fp8"]),
)
@settings(max_examples=max(2, settings.default.max_examples // 50), deadline=None)
@example([4, 1, 3], [3, 1], 4, torch.float32, "auto")
@example([2, 6], [1], 1, torch.bfloat16, "int8_per_token_head")
def test_in_one_order_chunks_company_and_blocks_change_no_bit(chunks, beside, block_size, dtype, kind):
    whole = by_chunks([sum(chunks)], 16, dtype=dtype, kind=kind)
    beside = [min(count, sum(chunks)) for count in beside]
    divided = by_chunks(chunks, block_size, beside, dtype=dtype, kind=kind)
    assert torch.equal(whole, divided)


def test_a_chunk_edge_that_changes_the_tile_is_caught():
    """Prompts by FlashAttention, whose tiles are its own, and the last token by the other kernel."""
    whole, divided = (by_chunks(chunks, 4, in_one_order=False) for chunks in ([12], [11, 1]))
    assert not torch.equal(whole, divided) and torch.allclose(whole, divided, atol=1e-5)


def test_the_engine_gives_a_request_the_same_logits_on_the_kernels_alone_and_in_company():
    decoder = make_executor()[0].decoder

    def logits(names, block_size, **limits):
        storage = KVStorage(decoder.config, 32, block_size, torch.float32, CPU)
        executor = TorchExecutor(decoder, storage, MicroscopeAttention, batch_invariant=True)
        vocab_size = decoder.config.vocab_size
        engine = Engine(
            SchedulerConfig(32, block_size, **limits), executor, Sampler(vocab_size), vocab_size=vocab_size
        )
        own = SamplingParams(temperature=0, max_tokens=2, ignore_eos=True, prompt_logprobs=0)
        return logits_of(engine, {name: (PROMPTS[name], own) for name in names})

    together = logits(PROMPTS, 4, max_num_batched_tokens=5)
    for name in PROMPTS:
        alone = logits([name], 16)[name]
        assert alone.keys() == together[name].keys()
        assert all(torch.equal(row, alone[position]) for position, row in together[name].items())


PROMPTS = {"a": [3, 1, 4, 1, 5, 9, 2], "b": [2, 7], "c": [3, 1, 4, 1, 5]}


def test_wide_heads_in_16_bits_leave_prompts_to_torch():
    check(model((1, 1), 160, [None]), [(0, 5), (6, 1)], 4, torch.bfloat16, 0, MicroscopeAttention)


def storage(head_dim=32, dtype=torch.float32):
    config = model((1, 1), head_dim, [None])
    return config, KVStorage(config, 4, 4, dtype, CPU)


def test_what_the_kernels_cannot_do_is_refused_by_name():
    with pytest.raises(ValueError, match=r"needs heads of 32, 64, .* and this model's have 48"):
        MicroscopeAttention(*storage(head_dim=48))
    with pytest.raises(ValueError, match=r"dtype must be float32, .* got torch.float64"):
        MicroscopeAttention(*storage(dtype=torch.float64))
    with pytest.raises(ValueError, match="needs an NVIDIA GPU, and this engine runs on cpu"):
        NumbaCudaAttention(*storage())


def test_an_unknown_backend_is_refused_with_the_known_ones():
    with pytest.raises(
        ValueError,
        match="attention_backend must be one of 'auto', 'torch', 'numba-cpu', 'numba-cuda', 'microscope'",
    ):
        LLM(MODEL_PATH, attention_backend="flash")


@pytest.mark.skipif(torch.cuda.is_available(), reason="the microscope runs on the CPU")
def test_the_engine_says_the_same_on_the_kernels():
    prompt, params = "Once", SamplingParams(max_tokens=2, temperature=0)
    says = [
        LLM(MODEL_PATH, attention_backend=name, block_size=4).generate(prompt, params)[0].outputs[0]
        for name in ("torch", "microscope")
    ]
    assert says[0].token_ids == says[1].token_ids
