"""FlashAttention on tensor cores: whole-warp instructions, and attention made of them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numba import cuda, float32, uint32

from kernels_numba.cuda import flash_attention_tensor_core as tensor_core
from kernels_numba.cuda.flash_attention_tensor_core import flash_attention_tensor_core
from kernels_numba.cuda.tensor_core import (
    commit_copies,
    copy_later,
    load_matrices,
    load_matrices_transposed,
    multiply_add_bf16,
    multiply_add_f16,
    pack_bf16,
    pack_f16,
    wait_for_all_but_newest,
)
from kernels_numba.microscope import observe
from tests.kernels.oracle import attention

ROUNDING = {"float16": 2.0**-10, "bfloat16": 2.0**-7}
"""Of one number, relative."""


def to_words(values, dtype):
    """Numbers of 16 bits, two by two, and what they are after rounding."""
    if dtype == "float16":
        half = values.astype(np.float16)
        return half.view(np.uint32), half.astype(np.float32)
    bits = ((values.view(np.uint32) + 0x8000) >> 16).astype(np.uint16)
    return bits.view(np.uint32), (bits.astype(np.uint32) << 16).view(np.float32)


def from_words(words, dtype):
    """The numbers in words."""
    if dtype == "float16":
        return words.view(np.float16).astype(np.float32)
    return (words.view(np.uint16).astype(np.uint32) << 16).view(np.float32)


@given(
    lengths=st.lists(st.tuples(st.integers(1, 70), st.integers(0, 20)), min_size=1, max_size=2),
    heads=st.sampled_from([(1, 1), (2, 1)]),
    head_dim=st.sampled_from(tensor_core.HEAD_DIMS),
    dtype=st.sampled_from(tensor_core.DTYPES),
    causal=st.booleans(),
    seed=st.integers(0, 1000),
)
@settings(max_examples=8, deadline=None)
def test_it_is_attention(lengths, heads, head_dim, dtype, causal, seed):
    rng = np.random.default_rng(seed)
    starts_q = np.cumsum([0, *(new for new, _ in lengths)]).astype(np.int32)
    starts_k = np.cumsum([0, *(new + old for new, old in lengths)]).astype(np.int32)
    shapes = ((starts_q[-1], heads[0]), (starts_k[-1], heads[1]), (starts_k[-1], heads[1]))
    (q, query), (k, key), (v, value) = (
        to_words(rng.standard_normal((*shape, head_dim), dtype=np.float32), dtype) for shape in shapes
    )
    out = np.full_like(q, 0xFFFFFFFF)  # NaN, in both types
    flash_attention_tensor_core(
        q, k, v, out, starts_q, starts_k,
        longest_query=max(new for new, _ in lengths), dtype=dtype, causal=causal,
    ).observe(keep=False).check()  # fmt: skip
    got = from_words(out, dtype)
    for i in range(len(lengths)):
        own_q, own_k = slice(*starts_q[i : i + 2]), slice(*starts_k[i : i + 2])
        expected = attention(query[own_q], key[own_k], value[own_k], None, causal)
        # The weights and the output are rounded once each; the values are what they are.
        error = 2 * ROUNDING[dtype] * max(1.0, np.abs(value[own_k]).max())
        assert np.abs(got[own_q] - expected).max() <= error


@pytest.mark.parametrize("dtype", tensor_core.DTYPES)
def test_what_goes_wrong_is_refused_by_name(dtype):
    words, starts = np.zeros((4, 1, 16), np.uint32), np.array([0, 4], np.int32)
    given_ = (words, words, words, words, starts, starts)
    with pytest.raises(ValueError, match="dtype must be one of float16, bfloat16, got 'float8'"):
        flash_attention_tensor_core(*given_, longest_query=4, dtype="float8")
    wide = np.zeros((4, 1, 80), np.uint32)
    with pytest.raises(ValueError, match="head_dim must be one of 32, 64, 96, 128, got 160"):
        flash_attention_tensor_core(wide, wide, wide, wide, starts, starts, longest_query=4, dtype=dtype)
    with pytest.raises(ValueError, match="query must be of uint32, got float32"):
        flash_attention_tensor_core(words.view(np.float32), *given_[1:], longest_query=4, dtype=dtype)


@cuda.jit
def product_kernel(a, b, c, d, is_bf16):
    """D = A B + C by one warp; A [16, 8] words, B [8, 8] words (by columns), C and D [16, 8]."""
    lane = cuda.threadIdx.x
    g, t = lane // 4, lane % 4
    if is_bf16:
        d[g, 2 * t], d[g, 2 * t + 1], d[g + 8, 2 * t], d[g + 8, 2 * t + 1] = multiply_add_bf16(
            a[g, t], a[g + 8, t], a[g, t + 4], a[g + 8, t + 4], b[g, t], b[g, t + 4],
            c[g, 2 * t], c[g, 2 * t + 1], c[g + 8, 2 * t], c[g + 8, 2 * t + 1],
        )  # fmt: skip
    else:
        d[g, 2 * t], d[g, 2 * t + 1], d[g + 8, 2 * t], d[g + 8, 2 * t + 1] = multiply_add_f16(
            a[g, t], a[g + 8, t], a[g, t + 4], a[g + 8, t + 4], b[g, t], b[g, t + 4],
            c[g, 2 * t], c[g, 2 * t + 1], c[g + 8, 2 * t], c[g + 8, 2 * t + 1],
        )  # fmt: skip


@given(dtype=st.sampled_from(tensor_core.DTYPES), seed=st.integers(0, 1000))
@settings(max_examples=10, deadline=None)
def test_a_multiply_add_is_a_matrix_product(dtype, seed):
    rng = np.random.default_rng(seed)
    a_words, a = to_words(rng.standard_normal((16, 16), dtype=np.float32), dtype)
    b_words, b = to_words(rng.standard_normal((8, 16), dtype=np.float32), dtype)
    c = rng.standard_normal((16, 8), dtype=np.float32)
    d = np.zeros_like(c)
    observe(product_kernel, 1, 32, a_words, b_words, c, d, dtype == "bfloat16").check()
    assert np.abs(d - (a.astype(np.float64) @ b.T.astype(np.float64) + c)).max() < 1e-5


@cuda.jit
def matrices_kernel(numbers, out, transposed):
    """Four 8 × 8 matrices through shared memory and `load_matrices`."""
    lane = cuda.threadIdx.x
    tile = cuda.shared.array((32, 4), uint32)
    for i in range(4):
        tile[lane, i] = numbers[lane, i]
    cuda.syncthreads()
    if transposed:
        a, b, c, d = load_matrices_transposed(tile, (lane, 0))
    else:
        a, b, c, d = load_matrices(tile, (lane, 0))
    out[lane, 0], out[lane, 1], out[lane, 2], out[lane, 3] = a, b, c, d


@pytest.mark.parametrize("transposed", [False, True])
def test_matrices_arrive_in_the_lanes_that_multiply_them(transposed):
    numbers = np.arange(4 * 64, dtype=np.uint16).reshape(4, 8, 8)  # of matrix, row, column
    out = np.zeros((32, 4), np.uint32)
    observe(matrices_kernel, 1, 32, numbers.reshape(32, 8).view(np.uint32), out, transposed).check()
    got = out.view(np.uint16).reshape(32, 4, 2)
    for lane in range(32):
        g, t = lane // 4, lane % 4
        for m in range(4):
            matrix = numbers[m].T if transposed else numbers[m]
            assert got[lane, m].tolist() == matrix[g, 2 * t : 2 * t + 2].tolist()


@given(low=st.floats(-60000, 60000, width=32), high=st.floats(-60000, 60000, width=32))
def test_two_numbers_are_packed_into_a_word(low, high):
    @cuda.jit
    def kernel(numbers, words):
        words[0] = pack_f16(numbers[0], numbers[1])
        words[1] = pack_bf16(numbers[0], numbers[1])

    numbers, words = np.array([low, high], np.float32), np.zeros(2, np.uint32)
    observe(kernel, 1, 1, numbers, words)
    assert from_words(words[:1], "float16").tolist() == numbers.astype(np.float16).astype(float).tolist()
    for got, number in zip(from_words(words[1:], "bfloat16"), numbers, strict=True):
        assert abs(got - number) <= abs(number) * 2.0**-8 + 1e-38


@cuda.jit
def copying_kernel(source, out, waits, is_inside):
    lane = cuda.threadIdx.x
    tile = cuda.shared.array((2, 32, 4), uint32)
    copy_later(tile, (0, lane, 0), source, (lane, 0), is_inside)
    commit_copies()
    copy_later(tile, (1, lane, 0), source, (lane, 0), True)
    commit_copies()
    if waits:
        wait_for_all_but_newest()
    cuda.syncthreads()
    for i in range(4):
        out[lane, i] = tile[0, (lane + 1) % 32, i]


@pytest.mark.parametrize("is_inside", [True, False])
def test_a_copy_has_arrived_when_its_group_was_waited_for(is_inside):
    source = np.arange(128, dtype=np.uint32).reshape(32, 4)
    out = np.zeros_like(source)
    observe(copying_kernel, 1, 32, source, out, True, is_inside).check()
    assert (out == (np.roll(source, -1, axis=0) if is_inside else 0)).all()


def test_a_copy_whose_group_was_not_waited_for_is_not_there():
    source = np.ones((32, 4), np.uint32)
    seen = observe(copying_kernel, 1, 32, source, np.zeros_like(source), False, True)
    assert "unwritten" in {fault.kind for fault in seen.faults}


def test_no_request_of_a_tile_waits_for_a_bank():
    """Rows are 16 bytes longer than they need to be for exactly that."""
    words, starts = np.zeros((40, 1, 64), np.uint32), np.array([0, 40], np.int32)
    launch = flash_attention_tensor_core(
        words, words, words, np.zeros_like(words), starts, starts, longest_query=40
    )
    for row in launch.observe().by_place():
        if row.is_shared:
            assert row.units == row.ideal_units, row


def test_numbers_are_counted_when_they_are_used():
    @cuda.jit
    def kernel(a, out):
        x = a[0] * a[1] + float32(2)
        out[0] = (x - a[0]) / a[1]

    seen = observe(kernel, 1, 3, np.array([1.5, 2.5], np.float32), np.zeros(1, np.float32), count=True)
    tally = seen.tally
    assert (tally.multiplications, tally.additions, tally.divisions) == (3, 6, 3)
    assert tally.flops == 12
