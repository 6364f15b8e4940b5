"""Compiled decoding on a CPU is attention, as the plain backend is."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minivllm.executor.attention.numba_cpu_backend import NumbaCpuAttention
from minivllm.executor.kv_storage import KVStorage
from tests import profiles
from tests.executor.test_attention import CPU, check, model, pairs

KINDS = [
    (dtype, kind)
    for dtype in (torch.float32, torch.bfloat16)
    for kind in ("auto", "auto", "int8_per_token_head", "fp8")
]
BY_DAY = [case for case in KINDS if case != (torch.bfloat16, "fp8")]
"""What no other test asks for takes five seconds to compile: one cache of 8 bits beside bfloat16 will do."""


@given(
    lengths=st.lists(pairs, min_size=1, max_size=6),
    heads=st.sampled_from([(1, 1), (4, 2), (6, 2), (3, 1), (4, 4)]),
    head_dim=st.sampled_from([2, 16, 48, 64]),
    windows=st.one_of(
        st.just([None]),
        st.integers(1, 70).map(lambda window: [window]),
        st.integers(1, 20).map(lambda window: [window, None]),
    ),
    block_size=st.sampled_from([1, 2, 7, 16]),
    case=st.sampled_from(profiles.by_day(BY_DAY, KINDS)),
    seed=st.integers(0, 1000),
    threads=st.sampled_from([1, 2]),
)
@settings(max_examples=max(150, settings().max_examples), deadline=None)
def test_compiled_attention_is_attention(lengths, heads, head_dim, windows, block_size, case, seed, threads):
    dtype, kind = case
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        check(model(heads, head_dim, windows), lengths, block_size, dtype, seed, NumbaCpuAttention, kind)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("threads", [1, 2])
def test_long_contexts_are_split_and_merged(threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for window in (None, 700):
            check(model((4, 2), 16, [window]), [(1500, 1), (3, 1)], 16, torch.float32, 0, NumbaCpuAttention)
    finally:
        torch.set_num_threads(before)


def test_a_type_without_a_kernel_is_refused_by_name():
    config = model((1, 1), 16, [None])
    with pytest.raises(ValueError, match=r"dtype must be float32 or bfloat16 .* got torch.float64"):
        NumbaCpuAttention(config, KVStorage(config, 2, 4, torch.float64, CPU))
