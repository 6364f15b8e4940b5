"""A token's numbers on a CPU are the same bits whichever kernel computes them, beside whom, and how divided.

Not "close": equal. Every kernel's sums have an order that is written down (`kernels_numba/cpu/fixed_sums.py`,
`softmax_parts.py`), so these properties need no tolerance, and the smallest slip shows.
"""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels_numba.cpu import decode_items, paged_prefill, panels, rows
from kernels_numba.cpu.coded_cells import numbers
from kernels_numba.cpu.decode_items import plan_items
from kernels_numba.cpu.matrix_packing import pack_groups, pack_numbers
from kernels_numba.cpu.matrix_products import multiply_quantized
from kernels_numba.cpu.paged_decode import paged_decode
from kernels_numba.cpu.paged_prefill import plan_tiles
from kernels_numba.cpu.quantized_tile import BYTES, NIBBLES
from kernels_numba.cpu.softmax_parts import PART_KEYS
from minivllm.executor.kv_format import AUTO, FP8, INT8, to_fp8, to_int8

SCALE = np.float32(0.3)
ONE = np.float32(1)


def narrowed(values, is_bf16):
    """As the kernels are given them."""
    return (values.view(np.uint32) >> 16).astype(np.uint16) if is_bf16 else values


def attended(query, keys, values, window, *, block_size, chunks, threads, rng):
    """Results of the last tokens of a sequence, computed in `chunks`: prompts' kernel, or one by one.

    Blocks lie anywhere, and what no token may see is NaN.
    """
    length, kv_heads = numbers(keys).shape[:2]
    width = -(-length // block_size)
    blocks = rng.permutation(width + 3)[:width]
    cells = [in_blocks(own, blocks, width + 3, block_size) for own in (keys, values)]
    out, table, first = np.zeros_like(query), blocks[None, :], 0
    for count in chunks:
        position = length - len(query) + first
        if count == 1:
            seen = 0 if window is None else max(0, position + 1 - window)
            plan = plan_items([seen], [position + 1], kv_heads, threads)
            paged_decode(query, *cells, np.array([first]), table, *plan, out, SCALE)
        else:
            group = query.shape[1] // kv_heads
            plan = plan_tiles([first], [count], [position], kv_heads, group, window, threads)
            paged_prefill.paged_prefill(query, *cells, table, *plan, out, SCALE)
        first += count
    return out


def in_blocks(own, blocks, num_blocks, block_size):
    """Numbers, or codes and scales, by position: in blocks, with what stands for NaN where no token is."""
    if isinstance(own, tuple):
        codes, scales = own
        if scales.ndim == 0:  # of all alike
            return in_blocks(codes, blocks, num_blocks, block_size), scales[()]
        return tuple(in_blocks(part, blocks, num_blocks, block_size) for part in own)
    nan = {"uint16": 0x7FC0, "uint8": 0x7F, "int8": 99}.get(own.dtype.name, np.nan)
    cache = np.full((num_blocks, own.shape[1], block_size, *own.shape[2:]), nan, own.dtype)
    for position in range(len(own)):
        cache[blocks[position // block_size], :, position % block_size] = own[position]
    return cache


def coded(values, kind):
    """As a cache of this kind keeps float32 numbers."""
    if kind == INT8:
        return tuple(part.numpy() for part in to_int8(torch.from_numpy(values)))
    return to_fp8(torch.from_numpy(values), 0.0625).numpy(), np.array(0.0625, np.float32)


CASES = {
    "heads": st.sampled_from([(1, 1), (6, 2), (4, 1), (10, 2)]),
    "head_dim": st.sampled_from([2, 6, 32, 64, 80]),
    "length": st.integers(1, 300) | st.integers(500, 800),
    "window": st.none() | st.integers(1, 400),
    "is_bf16": st.booleans(),
    "kind": st.sampled_from([AUTO, AUTO, INT8, FP8]),
    "size": st.sampled_from([1, 4, 7, 12, 16, 300]),
    "threads": st.integers(1, 4),
    "seed": st.integers(0, 2**32 - 1),
}


def results(heads, head_dim, length, window, is_bf16, size, threads, seed, kind=AUTO):
    """The same tokens computed in one chunk, and divided at random."""
    rng = np.random.default_rng(seed)
    count = min(length, int(rng.integers(1, 150)))
    query = rng.standard_normal((count, heads[0], head_dim)).astype(np.float32)
    keys, values = (rng.standard_normal((length, heads[1], head_dim)).astype(np.float32) for _ in range(2))
    tensors = [narrowed(array, is_bf16 and kind == AUTO) for array in (query, keys, values)]
    if kind != AUTO:  # codes are widened to the same numbers in any model's type
        tensors[1:] = (coded(array, kind) for array in (keys, values))
    chunks, left = [], count
    while left:
        chunks.append(min(left, int(rng.choice([1, 2, 5, 33]))))
        left -= chunks[-1]
    whole = attended(*tensors, window, block_size=16, chunks=[count], threads=1, rng=rng)
    divided = attended(*tensors, window, block_size=size, chunks=chunks, threads=threads, rng=rng)
    return whole, divided


@given(**CASES)
@settings(max_examples=settings.default.max_examples * 2)
def test_attention_is_the_same_in_chunks_of_any_size_in_any_blocks_and_on_any_threads(**case):
    whole, divided = results(**case)
    assert (whole == divided).all()


def faulty_split(firsts, lengths, kv_heads, num_threads):
    """Parts as long as the number of threads suggests, as many engines choose them."""
    items, starts, shares = decode_items.plan_items(firsts, lengths, kv_heads, num_threads)
    if num_threads == 1:
        return items, starts, shares
    (first,), (end,) = firsts, lengths
    middle = (first + end) // 2
    rows_ = (end - 1) // PART_KEYS - middle // PART_KEYS + 1
    items = np.array([[0, first, middle, 0], [0, middle, end, 1]])
    return items, np.array([0, 1 + rows_]), np.array([0, 2 * kv_heads])


LONG = {"heads": (4, 2), "head_dim": 32, "window": None, "size": 16, "is_bf16": False, "seed": 5}


@pytest.mark.parametrize("fault", ["a split by the batch", "a tile that begins with the chunk"])
def test_a_planted_fault_is_caught(monkeypatch, fault):
    if fault == "a split by the batch":
        monkeypatch.setitem(globals(), "plan_items", faulty_split)
    else:
        # Keys are cut from the chunk's first token on: what a prompt's kernel does that counts its own tiles.
        monkeypatch.setitem(globals(), "attended", rotated_parts)
    whole, divided = results(length=700, threads=2, **LONG)
    assert (whole != divided).any()
    assert np.allclose(whole, divided, atol=1e-5), "the fault is one of rounding"


def rotated_parts(query, keys, values, window, *, chunks, **_):
    """Attention in parts that begin where a chunk does, in NumPy."""
    length, kv_heads, _ = keys.shape
    out, first = np.zeros_like(query), 0
    for count in chunks:
        for row in range(first, first + count):
            end, edge = length - len(query) + row + 1, (length - len(query) + first) % 256
            for head in range(query.shape[1]):
                own = keys[:end, head // 2], values[:end, head // 2]
                scores = own[0] @ query[row, head] * SCALE
                weights = np.exp(scores - scores.max())
                total, weight_sum = np.zeros(query.shape[2], np.float32), np.float32(0)
                for begin, stop in ((0, edge), (edge, end)):
                    total += weights[begin:stop] @ own[1][begin:stop]
                    weight_sum += weights[begin:stop].sum()
                out[row, head] = total / weight_sum
        first += count
    return out


@given(
    count=st.integers(2, 40),
    n=st.integers(1, 150),
    k=st.integers(1, 40) | st.sampled_from([192, 600]),
    is_bf16=st.booleans(),
    threads=st.integers(1, 4),
    seed=st.integers(0, 1000),
)
def test_a_product_is_the_same_alone_and_among_others(count, n, k, is_bf16, threads, seed):
    rng = np.random.default_rng(seed)
    x, weight = (narrowed(rng.standard_normal((m, k)).astype(np.float32), is_bf16) for m in (count, n))
    packed, row = panels.pack(weight), int(rng.integers(count))
    many, alone = np.zeros((count, panels.padded(n)), np.float32), np.zeros((1, panels.padded(n)), np.float32)
    panels.multiply(x, packed, many, True, threads)
    panels.multiply(x[row : row + 1].copy(), packed, alone, True, 1)
    assert (many[row] == alone[0]).all()
    kind = NIBBLES if seed % 2 else BYTES
    codes = pack_numbers(kind, rng.integers(-8, 8, (n, 8 * k)).astype(np.int8))
    scales, offsets = (rng.random((n, 1)).astype(np.float32) for _ in range(2))
    small = pack_groups(kind, codes, 8 * k, scales, offsets if seed % 3 else None)
    x = narrowed(rng.standard_normal((count, 8 * k)).astype(np.float32), is_bf16)
    multiply_quantized(x, small.row, many, True, threads)
    multiply_quantized(x[row : row + 1].copy(), small.row, alone, True, 1)
    assert (many[row] == alone[0]).all()


@given(
    count=st.integers(2, 9) | st.just(200),
    n=st.integers(1, 150),
    is_bf16=st.booleans(),
    threads=st.integers(1, 4),
    seed=st.integers(0, 1000),
)
def test_what_lies_between_products_is_the_same_alone_and_among_others(count, n, is_bf16, threads, seed):
    rng = np.random.default_rng(seed)
    dtype = np.uint16 if is_bf16 else np.float32
    x, row = rng.standard_normal((count, 2 * n)).astype(np.float32), int(rng.integers(count))
    weight = narrowed(rng.standard_normal(2 * n).astype(np.float32), is_bf16)
    results = []
    for own, used in ((x, threads), (x[row : row + 1].copy(), 1)):
        normed, gated = np.zeros((len(own), 2 * n), dtype), np.zeros((len(own), n), dtype)
        rows.norm(own, weight, ONE, normed, used)
        rows.gate(own, gated, used)
        queries, keys = np.zeros((len(own), 1, 2 * n), dtype), np.zeros((len(own), 1, 1, 2 * n), dtype)
        angles = np.random.default_rng(seed).random((8, 2, n), np.float32)
        rows.rotate(
            np.tile(own, 3), angles, np.full(len(own), 5), weight, weight, ONE, np.arange(len(own)), keys,
            keys.copy(), queries, used,
        )  # fmt: skip
        at = row if own is x else 0
        results.append([normed[at], gated[at], queries[at], keys[at]])
    for many, alone in zip(*results, strict=True):
        assert (many == alone).all()


def test_parts_are_of_a_fixed_size():
    """What all of this rests on: no plan of work knows a part of another size."""
    assert decode_items.PART_KEYS == paged_prefill.PART_KEYS
