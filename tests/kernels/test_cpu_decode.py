"""Decoding on a CPU: work is divided without a gap, the exponential is one, and the result is attention."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numba import njit

from kernels_numba.cpu.arithmetic import exp_fast, widen
from kernels_numba.cpu.decode_items import plan_items
from kernels_numba.cpu.paged_decode import paged_decode
from kernels_numba.cpu.softmax_parts import PART_KEYS
from kernels_numba.cpu.vectors import HAS_PAIRS
from tests.kernels.oracle import attention

SEQUENCES = st.lists(
    st.integers(1, 3000).flatmap(lambda length: st.tuples(st.integers(0, length - 1), st.just(length))),
    min_size=1,
    max_size=8,
)


@given(sequences=SEQUENCES, kv_heads=st.integers(1, 8), threads=st.integers(1, 16))
def test_every_position_is_in_exactly_one_item(sequences, kv_heads, threads):
    firsts, lengths = (np.array(column) for column in zip(*sequences, strict=True))
    items, starts, shares = plan_items(firsts, lengths, kv_heads, threads)
    assert starts[0] == 0 and len(starts) == len(sequences) + 1
    for sequence, (first, length) in enumerate(sequences):
        own = items[items[:, 0] == sequence]
        assert own[0, 1] == first and own[-1, 2] == length
        assert (own[1:, 1] == own[:-1, 2]).all() and (own[:, 1] < own[:, 2]).all()
        assert (own[1:, 1] % PART_KEYS == 0).all(), "a part belongs to one item"
        parts = -(-(own[:, 2] - own[:, 1] // PART_KEYS * PART_KEYS) // PART_KEYS)
        rows = np.concatenate([[1], parts[1:]])  # all parts of the first item are folded into one
        assert (own[:, 3] == starts[sequence] + rows.cumsum() - rows).all()
        assert starts[sequence + 1] == starts[sequence] + rows.sum()
    work = np.repeat(items[:, 2] - items[:, 1], kv_heads)
    assert shares[0] == 0 and shares[-1] == len(work) and len(shares) == threads + 1
    for begin, end in pairwise(shares):
        assert work[begin:end].sum() <= work.sum() / threads + work.max(), "no thread has much more"


def test_few_long_sequences_are_divided_among_threads_and_many_are_not():
    one, *_ = plan_items(np.array([0]), np.array([16384]), 1, 2)
    assert len(one) == 8
    many, *_ = plan_items(np.zeros(64, int), np.full(64, 1024), 4, 2)
    assert len(many) == 64


@given(st.floats(-100, 0, width=32))
def test_the_exponential_is_one(x):
    got, expected = EXP(np.float32(x)), np.exp(np.float64(np.float32(x)))
    assert got == pytest.approx(expected, rel=1e-6 + 1e-7 * abs(x), abs=2e-38)


@njit
def EXP(x):
    return exp_fast(x)


@njit
def WIDENED(array):
    out = np.empty(len(array), np.float32)
    for i in range(len(array)):
        out[i] = widen(array[i])
    return out


@given(st.lists(st.floats(-(2.0**100), 2.0**100, width=32), min_size=1, max_size=20))
def test_a_bfloat16_is_the_upper_half_of_a_float32(values):
    wide = np.array(values, np.float32)
    assert (WIDENED(wide) == wide).all()
    bits = (wide.view(np.uint32) >> 16).astype(np.uint16)
    assert (WIDENED(bits) == (bits.astype(np.uint32) << 16).view(np.float32)).all()


def narrowed(values):
    """The upper halves of float32 numbers: bfloat16, as kernels take it."""
    return (values.view(np.uint32) >> 16).astype(np.uint16)


def widened(values):
    """What they stand for."""
    return (values.astype(np.uint32) << 16).view(np.float32)


def rounded(values):
    """To what a bfloat16 can hold."""
    return widened(narrowed(values))


@given(
    lengths=st.lists(st.integers(1, 200) | st.integers(200, 700), min_size=1, max_size=4),
    heads=st.sampled_from([(1, 1), (4, 2), (6, 2), (7, 1), (9, 1)]),
    head_dim=st.sampled_from([1, 3, 16, 32, 64, 80, 128]),
    size=st.sampled_from([1, 2, 4, 5, 16, 32]),
    window=st.integers(1, 120) | st.just(1000),
    is_bf16=st.booleans(),
    threads=st.integers(1, 4),
    seed=st.integers(0, 1000),
)
@settings(max_examples=60, deadline=None)
def test_paged_decode_is_attention(lengths, heads, head_dim, size, window, is_bf16, threads, seed):
    """Blocks anywhere, the unused cells full of NaN, and a window that may begin within a block."""
    rng = np.random.default_rng(seed)
    widths = [-(-length // size) for length in lengths]
    num_blocks = sum(widths) + 2
    caches = [np.full((num_blocks, heads[1], size, head_dim), np.nan, np.float32) for _ in range(2)]
    blocks = rng.permutation(num_blocks).tolist()
    tables = np.full((len(lengths), max(widths)), -1)
    query = rng.standard_normal((len(lengths), heads[0], head_dim), dtype=np.float32)
    firsts = np.maximum(0, np.array(lengths) - window)
    if is_bf16:
        query = rounded(query)
    expected, sizes = np.empty_like(query), np.empty_like(query)
    for i, (length, width) in enumerate(zip(lengths, widths, strict=True)):
        tables[i, :width] = [blocks.pop() for _ in range(width)]
        new = [rng.standard_normal((length, heads[1], head_dim), dtype=np.float32) for _ in range(2)]
        if is_bf16:
            new = [rounded(values) for values in new]
        for cache, values in zip(caches, new, strict=True):
            for position in range(firsts[i], length):
                cache[tables[i, position // size], :, position % size] = values[position]
        seen = [values[firsts[i] :] for values in new]
        expected[i] = attention(query[i : i + 1], *seen, None, False)[0]
        sizes[i] = attention(query[i : i + 1], seen[0], abs(seen[1]), None, False)[0]
    if is_bf16:
        query, *caches = map(narrowed, (query, *caches))
    out = np.full_like(query, 0x7FC0 if is_bf16 else np.nan)
    plan = plan_items(firsts, np.array(lengths), heads[1], threads)
    paged_decode(query, *caches, np.arange(len(query)), tables, *plan, out, np.float32(head_dim**-0.5))
    rounding = 2.0**-8 if is_bf16 and HAS_PAIRS else 0  # of weights, to half of a last bit; and their sum
    error = rounding * sizes + 2e-5
    if is_bf16:  # the result is rounded, too
        out, error = widened(out), error + 2.0**-8 * (np.abs(expected) + error)
    assert (np.abs(out - expected) <= error).all()
