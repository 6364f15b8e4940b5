"""Attention by our own kernels agrees with attention; the engine says the same on them.

The kernels run under the microscope, with every access checked. On a GPU the same functions run compiled.
"""

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from minivllm import LLM, SamplingParams
from minivllm.executor.attention.kernel_backend import MicroscopeAttention, NumbaCudaAttention
from minivllm.executor.kv_storage import KVStorage
from minivllm.model.tiny import MODEL_PATH
from tests.executor.test_attention import CPU, check, model, pairs

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
