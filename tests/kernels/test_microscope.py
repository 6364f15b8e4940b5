"""The microscope sees what is known: sectors, bank conflicts, bytes, arrays, atomics."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numba import cuda, float32, int32

from kernels_numba.cuda.instructions import load_float4
from kernels_numba.microscope import Observation, TooLong, observe
from kernels_numba.microscope.analysis import PlaceCost, bank_turns, sectors


def costs(seen: Observation, array: str, kind: str) -> PlaceCost:
    """Of the only place where the array is accessed so."""
    (row,) = [row for row in seen.by_place() if (row.array, row.kind) == (array, kind)]
    return row


# ── what accesses cost ────────────────────────────────────────────────────────────────────────────────────


@cuda.jit
def transpose_naive(a, b):
    x, y = cuda.threadIdx.x, cuda.threadIdx.y
    b[x, y] = a[y, x]


@cuda.jit
def transpose_conflicts(a, b):
    x, y = cuda.threadIdx.x, cuda.threadIdx.y
    tile = cuda.shared.array((32, 32), float32)
    tile[y, x] = a[y, x]
    cuda.syncthreads()
    b[y, x] = tile[x, y]


@cuda.jit
def transpose_padded(a, b):
    x, y = cuda.threadIdx.x, cuda.threadIdx.y
    tile = cuda.shared.array((32, 33), float32)
    tile[y, x] = a[y, x]
    cuda.syncthreads()
    b[y, x] = tile[x, y]


@pytest.mark.parametrize(
    ("kernel", "sectors", "conflicts"),
    [(transpose_naive, 32, None), (transpose_conflicts, 4, 32), (transpose_padded, 4, 1)],
)
def test_a_transpose_costs_what_every_textbook_says(kernel, sectors, conflicts):
    a = np.arange(1024, dtype=np.float32).reshape(32, 32)
    b = np.zeros_like(a)
    seen = observe(kernel, 1, (32, 32), a, b).check()
    assert (b == a.T).all()
    read, write = costs(seen, "a", "read"), costs(seen, "b", "write")
    assert (read.units_per_request, read.waste, read.num_requests) == (4, 1, 32)
    assert (write.units_per_request, write.waste) == (sectors, sectors / 4)
    assert (write.units, write.ideal_units, write.num_lanes, write.num_bytes) == (
        32 * sectors,
        128,
        1024,
        4096,
    )
    if conflicts is not None:
        assert costs(seen, "tile", "read").units_per_request == conflicts
        assert costs(seen, "tile", "read").waste == conflicts
        assert costs(seen, "tile", "write").units_per_request == 1
        assert seen.shared_bytes == 32 * (32 if conflicts == 32 else 33) * 4
    by_name = {row.array: row for row in seen.traffic()}
    assert by_name["a"][2:] == (4096, 0, 4096, 4096)
    assert by_name["b"][2:] == (0, 4096, 1024 * sectors, 4096)
    if conflicts is not None:
        assert by_name["tile"][1:] == (True, 4096, 4096, 8192, 0)


@cuda.jit
def strided(a, out, stride, offset):
    t = cuda.grid(1)
    out[t] = a[t * stride + offset]


@settings(max_examples=40)
@given(
    dtype=st.sampled_from(["uint8", "float16", "float32", "float64"]),
    stride=st.sampled_from([0, 1, 2, 3, 8, 32]),
    offset=st.integers(0, 40),
    threads=st.integers(1, 70),
)
def test_sectors_are_the_32_byte_pieces_that_a_warp_touches(dtype, stride, offset, threads):
    a = np.zeros(threads * stride + offset + 1, dtype)
    seen = observe(strided, 1, threads, a, np.zeros(threads, dtype), stride, offset).check()
    expected = ideal = 0
    for first in range(0, threads, 32):
        cells = {t * stride + offset for t in range(first, min(first + 32, threads))}
        expected += len({cell * a.itemsize // 32 for cell in cells})
        ideal += -(-len(cells) * a.itemsize // 32)
    row = costs(seen, "a", "read")
    assert (row.units, row.ideal_units, row.num_requests) == (expected, ideal, -(-threads // 32))
    traffic = {line.array: line for line in seen.traffic()}["a"]
    assert traffic.read_bytes == row.num_bytes == threads * a.itemsize
    assert traffic.moved_bytes == 32 * expected
    cells = {t * stride + offset for t in range(threads)}
    assert traffic.compulsory_bytes == 32 * len({cell * a.itemsize // 32 for cell in cells})


def test_an_access_across_the_edge_of_a_sector_touches_both():
    assert sectors(np.array([24]), 16) == (2, 1)
    assert sectors(np.array([0, 16, 40]), 16) == (2, 2)
    assert bank_turns(np.array([0, 128, 4]), 4) == (2, 1)


@cuda.jit
def strided_in_shared(out, stride):
    t = cuda.threadIdx.x
    tile = cuda.shared.array(0, out.dtype)
    for i in range(t, tile.shape[0], 32):
        tile[i] = i
    cuda.syncthreads()
    out[t] = tile[t * stride]


@settings(max_examples=25)
@given(
    dtype=st.sampled_from(["int16", "int32", "float64"]),
    stride=st.sampled_from([0, 1, 2, 3, 4, 8, 16, 31, 32, 33]),
)
def test_bank_conflicts_are_the_most_words_that_lanes_request_of_one_bank(dtype, stride):
    out = np.zeros(32, dtype)
    shared_bytes = (31 * stride + 1) * out.itemsize
    seen = observe(strided_in_shared, 1, 32, out, stride, shared_bytes=shared_bytes).check()
    assert (out == np.arange(32) * stride).all()
    turns = 0
    at_once = 16 if out.itemsize == 8 else 32
    for first in range(0, 32, at_once):
        words = {
            t * stride * out.itemsize // 4 + w
            for t in range(first, first + at_once)
            for w in range(max(1, out.itemsize // 4))
        }
        turns += max(sum(word % 32 == bank for word in words) for bank in range(32))
    row = costs(seen, "tile", "read")
    assert (row.units, row.ideal_units) == (turns, 32 // at_once)
    assert seen.shared_bytes == shared_bytes


@cuda.jit
def load_four(a, out):
    t = cuda.threadIdx.x
    x, y, z, w = load_float4(a, (t, 0))
    out[t] = x + y + z + w


def test_a_load_of_16_bytes_a_lane_is_one_request_of_16_sectors():
    a = np.arange(128, dtype=np.float32).reshape(32, 4)
    out = np.zeros(32, np.float32)
    seen = observe(load_four, 1, 32, a, out).check()
    assert (out == a.sum(1)).all()
    row = costs(seen, "a", "read")
    assert (row.num_requests, row.units, row.ideal_units, row.num_bytes) == (1, 16, 16, 512)
    assert (seen.columns["count"][seen.columns["array"] == 0] == 4).all()


@cuda.jit
def load_four_from_shared(out, stride):
    t = cuda.threadIdx.x
    tile = cuda.shared.array((32, 8), float32)
    for c in range(8):
        tile[t, c] = t
    cuda.syncthreads()
    x, y, z, w = load_float4(tile, (t, 0)) if stride else load_float4(tile, (t // 2, t % 2 * 4))
    out[t] = x


@pytest.mark.parametrize(("stride", "turns"), [(0, 4), (1, 8)])
def test_16_bytes_a_lane_come_from_shared_memory_in_four_turns_unless_banks_meet(stride, turns):
    seen = observe(load_four_from_shared, 1, 32, np.zeros(32, np.float32), stride).check()
    rows = [r for r in seen.by_place() if (r.array, r.kind) == ("tile", "read")]
    assert [(r.units, r.ideal_units) for r in rows] == [(turns, 4)]


# ── arrays ────────────────────────────────────────────────────────────────────────────────────────────────


@cuda.jit
def block_sums(values, out):
    t = cuda.threadIdx.x
    tile = cuda.shared.array(8, float32)
    tile[t] = values[cuda.blockIdx.x, t]
    cuda.syncthreads()
    if t == 0:
        total = float32(0)
        for i in range(8):
            total += tile[i]
        out[cuda.blockIdx.x] = total


def test_every_block_has_a_shared_array_of_its_own():
    values = np.arange(24, dtype=np.float32).reshape(3, 8)
    out = np.zeros(3, np.float32)
    seen = observe(block_sums, 3, 8, values, out).check()
    assert (out == values.sum(1)).all()
    assert [a.name for a in seen.arrays] == ["values", "out", "tile"]
    assert seen.shared_bytes == 32
    (fault,) = observe(only_the_first_writes, 2, 1, out).faults
    assert (fault.kind, fault.array) == ("unwritten", "tile") and "of block (1, 0, 0)" in fault.message


@cuda.jit
def only_the_first_writes(out):
    tile = cuda.shared.array(1, float32)
    if cuda.blockIdx.x == 0:
        tile[0] = 1
    out[cuda.blockIdx.x] = tile[0]


@cuda.jit(device=True)
def turned(t):
    tile = cuda.shared.array(16, int32)
    tile[15 - t] = t
    cuda.syncthreads()
    return tile[t]


@cuda.jit
def same_name_twice(out):
    t = cuda.threadIdx.x
    tile = cuda.shared.array((4, 16), int32)
    tile[3, t] = 100
    out[cuda.blockIdx.x, t] = turned(t) + tile[3, t]


def test_two_shared_arrays_of_one_name_are_two_arrays():
    out = np.zeros((2, 16), np.int32)
    seen = observe(same_name_twice, 2, 16, out).check()
    assert (out == 115 - np.arange(16)).all()
    shared = {a.name: a.shape for a in seen.arrays if a.is_shared}
    assert shared == {"tile": (4, 16), "tile_2": (16,)}
    assert seen.shared_bytes == 4 * 64 + 4 * 16
    assert {row.array: row.written_bytes for row in seen.traffic()} == {
        "out": 128,
        "tile": 128,
        "tile_2": 128,
    }


SCALE = 3.0


def make(factor: float, table: tuple[int, ...]) -> Any:
    @cuda.jit
    def scaled(a, out, extra):
        t = cuda.threadIdx.x
        shape = cuda.local.array(len(table), float32)
        for i in range(len(table)):
            shape[i] = a[t, table[i]] * factor * SCALE + extra
        for i in range(len(table)):
            out[t, i] = shape[i]

    return scaled


def test_closures_globals_numbers_and_local_arrays_mean_what_they_mean_in_python():
    a, out = np.arange(12.0).reshape(4, 3), np.zeros((4, 2))
    observe(make(2.0, (2, 0)), 1, 4, a, out, 0.5).check()
    assert (out == a[:, [2, 0]] * 6 + 0.5).all()


@cuda.jit
def rows_and_slices(a, out):
    t = cuda.threadIdx.x
    row = a[t]
    part = a[1:, t, ::2]
    out[t, 0] = row[2, 1]
    out[t][1] = a[t, 2][1]
    out[t, 2] = part[0, 1]
    out[t, 3] = part.shape[0] * 100 + part.shape[1] * 10 + len(row)


def test_rows_and_slices_are_views_whose_accesses_are_those_of_the_array():
    a, out = np.arange(3 * 3 * 4.0).reshape(3, 3, 4), np.zeros((3, 4))
    seen = observe(rows_and_slices, 1, 3, a, out).check()
    expected = [[a[t, 2, 1], a[t, 2, 1], a[1, t, 2], 223] for t in range(3)]
    assert out.tolist() == expected
    number = [x.name for x in seen.arrays].index("a")
    cells = seen.columns["first"][seen.columns["array"] == number]
    assert sorted(cells.tolist()) == sorted(
        [t * 12 + 9 for t in range(3)] * 2 + [12 + 4 * t + 2 for t in range(3)]
    )


@cuda.jit
def double(a):
    t = cuda.grid(1)
    if t < a.shape[0]:
        a[t] *= 2


def test_tensors_on_the_cpu_are_changed_in_place():
    tensor = torch.arange(5, dtype=torch.float32)
    seen = observe(double, 2, 4, tensor).check()
    assert tensor.tolist() == [0, 2, 4, 6, 8]
    assert seen.traffic()[0][2:5] == (20, 20, 2 * 2 * 32)


def test_without_keeping_accesses_the_results_are_the_same_and_there_are_no_columns():
    kept, left = np.arange(6.0), np.arange(6.0)
    seen = observe(double, 2, 4, kept)
    light = observe(double, 2, 4, left, keep=False)
    assert (kept == left).all()
    assert seen.num_accesses == 12 and light.num_accesses == 0
    observe(double, 2, 4, left, max_accesses=12)
    with pytest.raises(TooLong, match="more than 11 memory accesses"):
        observe(double, 2, 4, left, max_accesses=11)
    assert light.faults == () and light.by_place() == []
    assert all(len(column) == 0 for column in light.columns.values())


@cuda.jit
def atomics(values, cells, old):
    t = cuda.grid(1)
    v = values[t]
    cuda.atomic.add(cells, 0, v)
    cuda.atomic.sub(cells, 1, v)
    cuda.atomic.max(cells, 2, v)
    cuda.atomic.min(cells, 3, v)
    cuda.atomic.and_(cells, 4, v)
    cuda.atomic.or_(cells, 5, v)
    cuda.atomic.xor(cells, 6, v)
    cuda.atomic.inc(cells, 7, 4)
    cuda.atomic.dec(cells, 8, 4)
    old[0, t] = cuda.atomic.exch(cells, 9, t + 1)
    old[1, t] = cuda.atomic.cas(cells, 10, t % 3, t + 10)
    old[2, t] = cuda.atomic.add(cells, 11, 1)


@settings(max_examples=20)
@given(values=st.lists(st.integers(0, 255), min_size=1, max_size=40))
def test_atomics_do_what_numpy_does_and_say_what_was_there_before(values):
    n, v = len(values), np.array(values)
    cells, old = np.full(12, 100), np.zeros((3, n), np.int64)
    cells[7:12] = 0
    seen = observe(atomics, 1, n, v, cells, old).check()
    expected = [
        100 + v.sum(),
        100 - v.sum(),
        max(100, *v),
        min(100, *v),
        np.bitwise_and.reduce(v, initial=100),
        np.bitwise_or.reduce(v, initial=100),
        np.bitwise_xor.reduce(v, initial=100),
        n % 5,
        -n % 5,
    ]
    assert cells[:9].tolist() == expected
    assert sorted([*old[0].tolist(), cells[9]]) == list(range(n + 1))  # the number of each thread, once
    assert cells[10] == 10 and old[1].tolist() == [0] + [10] * (n - 1)
    assert sorted(old[2].tolist()) == list(range(n)) and cells[11] == n
    assert {row.kind for row in seen.by_place() if row.array == "cells"} == {"atomic"}
    (line,) = [line for line in seen.traffic() if line.array == "cells"]
    assert (line.read_bytes, line.written_bytes) == (0, 12 * 8 * n)


# ── launches that no device would accept ──────────────────────────────────────────────────────────────────


@cuda.jit
def double_all(a):
    a[cuda.threadIdx.x] *= 2


@pytest.mark.parametrize(
    ("words", "change"),
    [
        ("block must be one to three integers", {"block": 0}),
        ("block must be one to three integers", {"block": (1, 1, 1, 1)}),
        ("grid must be one to three integers", {"grid": (2, 0)}),
        ("grid must be one to three integers", {"grid": 1.5}),
        ("block must have at most 1024 threads, got (1025, 1, 1)", {"block": 1025}),
        ("block must have at most 1024 threads", {"block": (32, 33)}),
        ("double_all takes 1 arguments (a), got 2", {"arguments": (np.ones(2), 3)}),
        ("poison must name parameters of double_all (a), got 'b'", {"poison": {"b": True}}),
        ("poison of a must be True, or of its shape (2,), got (3,)", {"poison": {"a": np.ones(3, bool)}}),
        ("a must be contiguous", {"arguments": (np.ones(8)[::2],)}),
    ],
)
def test_a_launch_that_no_device_would_accept_is_refused_before_anything_runs(words, change):
    asked = {"grid": 1, "block": 2, "arguments": (np.ones(2),), "poison": None} | change
    with pytest.raises(ValueError) as caught:
        observe(double_all, asked["grid"], asked["block"], *asked["arguments"], poison=asked["poison"])
    assert words in str(caught.value)
    assert (asked["arguments"][0] == 1).all()
