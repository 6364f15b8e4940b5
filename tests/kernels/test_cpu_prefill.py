"""Prompts on a CPU: every query is in one tile, threads have equal shares, and the result is attention."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels_numba.cpu.paged_prefill import MOST_COLUMNS, NO_WINDOW, paged_prefill, plan_tiles
from kernels_numba.cpu.tile_product import LANES, add_product
from kernels_numba.cpu.vectors import HAS_PAIRS
from tests.kernels.oracle import attention

CHUNKS = st.lists(
    st.tuples(st.integers(2, 90), st.integers(0, 150) | st.integers(200, 600)), min_size=1, max_size=3
)
"""New tokens, and tokens before them, of each sequence."""


@given(
    rows=st.integers(0, 13),
    count=st.integers(0, 20),
    vectors=st.integers(1, 9),
    is_transposed=st.booleans(),
    is_bf16=st.booleans(),
    offsets=st.tuples(st.integers(0, 40), st.integers(0, 40)),
    seed=st.integers(0, 1000),
)
def test_a_product_is_added_for_any_sizes_and_orders(
    rows, count, vectors, is_transposed, is_bf16, offsets, seed
):
    rng, width = np.random.default_rng(seed), vectors * LANES
    first, target = offsets
    left = rng.standard_normal((rows, count)).astype(np.float32)
    if is_bf16:
        left = ((left.view(np.uint32) >> 16) << 16).view(np.float32)
    right, sums = (rng.standard_normal((n, width)).astype(np.float32) for n in (count, rows))
    ordered = np.concatenate(
        [np.full(first, np.nan, np.float32), (left.T if is_transposed else left).ravel()]
    )
    given_left = (ordered.view(np.uint32) >> 16).astype(np.uint16) if is_bf16 else ordered
    flat = np.concatenate([np.full(target, 7, np.float32), sums.ravel(), np.full(5, 7, np.float32)])
    strides = (1, rows) if is_transposed else (count, 1)
    add_product(given_left, first, *strides, right.ravel(), 0, flat, target, rows, count, width)
    assert (flat[:target] == 7).all() and (flat[len(flat) - 5 :] == 7).all(), "written outside of the sums"
    got = flat[target : target + rows * width].reshape(rows, width)
    assert np.abs(got - (sums + left.astype(float) @ right)).max(initial=0) <= 1e-4


@given(
    counts=st.lists(st.integers(1, 300), min_size=1, max_size=6),
    kv_heads=st.integers(1, 5),
    group=st.integers(1, 9),
    threads=st.integers(1, 6),
    window=st.none() | st.integers(1, 200),
)
def test_every_query_is_in_exactly_one_tile(counts, kv_heads, group, threads, window):
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
    positions = np.arange(len(counts)) * 10
    items, shares = plan_tiles(starts, counts, positions, kv_heads, group, window, threads)
    assert shares[0] == 0 and shares[-1] == len(items) and len(shares) == threads + 1
    seen = np.zeros((sum(counts), kv_heads), int)
    for sequence, head, first, end, position, width in items:
        assert starts[sequence] <= first < end <= starts[sequence] + counts[sequence]
        assert position == positions[sequence] + first - starts[sequence]
        assert (end - first) * group <= max(MOST_COLUMNS, group)
        assert width == (NO_WINDOW if window is None else window)
        seen[first:end, head] += 1
    assert (seen == 1).all()


def test_threads_have_equal_shares_of_a_long_prompt():
    items, shares = plan_tiles([0], [4096], [0], 1, 1, None, 2)
    cost = [int(items[a:b, 3].sum()) for a, b in pairwise(shares)]
    assert max(cost) <= 1.05 * min(cost)


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
    chunks=CHUNKS,
    heads=st.sampled_from([(1, 1), (4, 2), (6, 2), (7, 1)]),
    head_dim=st.sampled_from([2, 6, 32, 80, 128]),
    size=st.sampled_from([1, 2, 5, 16, 32, 100]),
    window=st.none() | st.integers(1, 120),
    is_bf16=st.booleans(),
    threads=st.integers(1, 4),
    seed=st.integers(0, 1000),
)
@settings(max_examples=60)
def test_paged_prefill_is_attention(chunks, heads, head_dim, size, window, is_bf16, threads, seed):
    """Blocks anywhere; cells that no query sees are full of NaN, in the middle of a block, too."""
    rng = np.random.default_rng(seed)
    widths = [-(-(new + old) // size) for new, old in chunks]
    num_blocks = sum(widths) + 2
    caches = [np.full((num_blocks, heads[1], size, head_dim), np.nan, np.float32) for _ in range(2)]
    blocks = rng.permutation(num_blocks).tolist()
    tables = np.full((len(chunks), max(widths)), -1)
    total = sum(new for new, _ in chunks)
    query = rng.standard_normal((total, heads[0], head_dim)).astype(np.float32)
    query = rounded(query) if is_bf16 else query
    expected, sizes = np.full(query.shape, np.nan), np.full(query.shape, np.nan)
    starts = np.concatenate([[0], np.cumsum([new for new, _ in chunks])[:-1]])
    for i, (new, old) in enumerate(chunks):
        tables[i, : widths[i]] = [blocks.pop() for _ in range(widths[i])]
        first = 0 if window is None else max(0, old - window + 1)
        filled = [rng.standard_normal((new + old, heads[1], head_dim)).astype(np.float32) for _ in range(2)]
        if is_bf16:
            filled = [rounded(values) for values in filled]
        for cache, values in zip(caches, filled, strict=True):
            for position in range(first, new + old):
                cache[tables[i, position // size], :, position % size] = values[position]
        for row in range(new):
            end = old + row + 1
            begin = 0 if window is None else max(0, end - window)
            at = starts[i] + row
            key, value = (f[begin:end] for f in filled)
            expected[at] = attention(query[at : at + 1], key, value, None, False)[0]
            sizes[at] = attention(query[at : at + 1], key, abs(value), None, False)[0]
    if is_bf16:
        query, *caches = map(narrowed, (query, *caches))
    out = np.full_like(query, 0x7FC0 if is_bf16 else np.nan)
    counts, positions = zip(*chunks, strict=True)
    items, shares = plan_tiles(starts, counts, positions, heads[1], heads[0] // heads[1], window, threads)
    paged_prefill(query, *caches, tables, items, shares, out, np.float32(head_dim**-0.5))
    rounding = 2.0**-8 if is_bf16 and HAS_PAIRS else 0  # of weights, to half of a last bit; and their sum
    error = rounding * sizes + 2e-5
    if is_bf16:  # the result is rounded, too
        out, error = widened(out), error + 2.0**-8 * (np.abs(expected) + error)
    assert (np.abs(out - expected) <= error).all()


@pytest.mark.parametrize("offset", [-200.0, 0.0, 200.0])
def test_large_scores_neither_overflow_nor_vanish(offset):
    rng = np.random.default_rng(3)
    query, key, value = (rng.standard_normal((70, 1, 16)).astype(np.float32) for _ in range(3))
    query[:, :, 0], key[:, :, 0] = 4 * offset**2 / 40000, offset
    cache = [array.reshape(1, 70, 1, 16).transpose(0, 2, 1, 3).copy() for array in (key, value)]
    out = np.empty_like(query)
    items, shares = plan_tiles([0], [70], [0], 1, 1, None, 1)
    paged_prefill(query, *cache, np.zeros((1, 1), np.int64), items, shares, out, np.float32(0.25))
    assert np.abs(out - attention(query, key, value, 0.25, True)).max() <= 5e-4
