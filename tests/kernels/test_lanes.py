"""Lanes that act together: one request, shuffles, votes, barriers that count, instructions of a warp."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from numba import cuda, int32

from kernels_numba.meanings import means
from kernels_numba.microscope import Observation, observe

FULL = 0xFFFFFFFF


def requests_of(seen: Observation, array: str, kind: int = 1) -> list[tuple[tuple[int, ...], list[int]]]:
    """For every request to an array: the iterations of its loops, and the threads of its lanes."""
    number = [a.name for a in seen.arrays].index(array)
    mine = (seen.columns["array"] == number) & (seen.columns["kind"] == kind)
    found: dict[int, list[int]] = {}
    for request, thread in zip(seen.requests[mine], seen.columns["thread"][mine], strict=True):
        found.setdefault(int(request), []).append(int(thread))
    return [(seen.loops[request], threads) for request, threads in found.items()]


# ── which accesses are one instruction ────────────────────────────────────────────────────────────────────


@cuda.jit
def with_for(trips, out):
    t = cuda.grid(1)
    for i in range(trips[t]):
        if i % 2 == 0:
            for j in range(2):
                out[i, j, t] = 1


@cuda.jit
def with_while(trips, out):
    t = cuda.grid(1)
    i = 0
    while i < trips[t]:
        out[0, 0, t] = 1
        i += 1


@cuda.jit
def with_break(trips, out):
    t = cuda.grid(1)
    for i in range(10):
        if i == trips[t]:
            break
        out[0, 0, t] = 1
    for _ in range(2):
        out[0, 1, t] = 1


@cuda.jit(device=True)
def store(out, i, t):
    for j in range(2):
        out[i, j, t] = 1


@cuda.jit
def with_function(trips, out):
    t = cuda.grid(1)
    for i in range(trips[t]):
        store(out, i, t)


def lanes_by(trips: list[int], is_active: Any) -> list[list[int]]:
    """Threads of each warp that `is_active` names, leaving out warps without any."""
    warps = [range(first, min(first + 32, len(trips))) for first in range(0, len(trips), 32)]
    found = [[t for t in warp if is_active(trips[t])] for warp in warps]
    return [threads for threads in found if threads]


@settings(max_examples=20)
@given(trips=st.lists(st.integers(0, 5), min_size=1, max_size=70))
def test_lanes_are_side_by_side_in_the_same_iterations_of_the_same_loops(trips):
    given_trips, out = np.array(trips), np.zeros((10, 2, len(trips)), np.int8)
    block = len(trips)

    seen = observe(with_for, 1, block, given_trips, out)
    expected = [
        ((i, j), lanes) for i in (0, 2, 4) for j in (0, 1) for lanes in lanes_by(trips, lambda n, i=i: n > i)
    ]
    assert sorted(requests_of(seen, "out")) == sorted(expected)

    seen = observe(with_function, 1, block, given_trips, out)
    expected = [
        ((i, j), lanes) for i in range(5) for j in (0, 1) for lanes in lanes_by(trips, lambda n, i=i: n > i)
    ]
    assert sorted(requests_of(seen, "out")) == sorted(expected)

    seen = observe(with_while, 1, block, given_trips, out)
    expected = [((), lanes) for i in range(5) for lanes in lanes_by(trips, lambda n, i=i: n > i)]
    assert sorted(requests_of(seen, "out")) == sorted(expected)

    seen = observe(with_break, 1, block, given_trips, out)
    expected = [((i,), lanes) for i in range(5) for lanes in lanes_by(trips, lambda n, i=i: n > i)]
    expected += [((j,), lanes) for j in range(2) for lanes in lanes_by(trips, lambda n: True)]
    assert sorted(requests_of(seen, "out")) == sorted(expected)


@cuda.jit
def two_places_on_a_line(out):
    t = cuda.threadIdx.x
    out[t] = out[t] + out[31 - t]


def test_two_accesses_of_one_line_are_two_places_with_their_columns():
    seen = observe(two_places_on_a_line, 1, 32, np.zeros(32))
    reads = [row.place for row in seen.by_place() if row.kind == "read"]
    assert len(reads) == 2 and reads[0].line == reads[1].line
    places = [row.place for row in seen.by_place()]
    assert places == sorted(places) and places[0] != reads[0]  # in the order of the source
    line = seen.source[reads[0].line - 1]
    assert [line[place.column : place.end_column] for place in reads] == ["out[t]", "out[31 - t]"]
    assert seen.kernel == "two_places_on_a_line" and seen.file == "test_lanes.py"


@cuda.jit
def who(out):
    x, y = cuda.grid(2)
    gx, gy, gz = cuda.grid(3)
    t = cuda.threadIdx
    cell = t.x + cuda.blockDim.x * (t.y + cuda.blockDim.y * t.z)
    b = cuda.blockIdx
    block = b.x + cuda.gridDim.x * (b.y + cuda.gridDim.y * b.z)
    sx, sy, sz = cuda.gridsize(3)
    out[block, cell, 0] = cuda.grid(1) + 10 * x + 100 * y
    out[block, cell, 1] = gx + sx * (gy + sy * gz)
    out[block, cell, 2] = cuda.laneid + 100 * cuda.warpsize + 1000000 * cuda.gridsize(1)


SIZES = st.tuples(st.integers(1, 7), st.integers(1, 3), st.integers(1, 3))


@settings(max_examples=25)
@given(grid=st.tuples(*[st.integers(1, 2)] * 3), block=SIZES)
def test_threads_and_blocks_are_numbered_as_cuda_numbers_them(grid, block):
    out = np.zeros((np.prod(grid), np.prod(block), 3), np.int64)
    seen = observe(who, grid, block, out).check()
    for b, (bz, by, bx) in enumerate(np.ndindex(*grid[::-1])):
        for t, (tz, ty, tx) in enumerate(np.ndindex(*block[::-1])):
            x, y, z = bx * block[0] + tx, by * block[1] + ty, bz * block[2] + tz
            linear = x + grid[0] * block[0] * (y + grid[1] * block[1] * z)
            lane = t % 32 + 3200 + 1000000 * grid[0] * block[0]
            assert out[b, t].tolist() == [11 * x + 100 * y, linear, lane]
    assert (seen.grid, seen.block) == (grid, block)
    first = seen.columns["thread"][seen.columns["block"] == 0]
    assert sorted(set(first.tolist())) == list(range(int(np.prod(block))))
    warps = -(-int(np.prod(block)) // 32)
    assert len(seen.loops) == 3 * warps * int(np.prod(grid))


# ── what a warp, and a block, do together ─────────────────────────────────────────────────────────────────


@cuda.jit
def exchanges(values, by, out):
    t = cuda.threadIdx.x
    v = values[t]
    out[0, t] = cuda.shfl_sync(FULL, v, by)
    out[1, t] = cuda.shfl_xor_sync(FULL, v, by)
    out[2, t] = cuda.shfl_down_sync(FULL, v, by)
    out[3, t] = cuda.shfl_up_sync(FULL, v, by)
    out[4, t] = cuda.ballot_sync(FULL, v > 0)
    out[5, t] = cuda.any_sync(FULL, v > 3)
    out[6, t] = cuda.all_sync(FULL, v > -3)
    out[7, t] = cuda.eq_sync(FULL, v > 0)
    out[8, t] = cuda.syncthreads_count(v > 0)
    out[9, t] = cuda.syncthreads_and(v > -3)
    out[10, t] = cuda.syncthreads_or(v > 3)


@settings(max_examples=25)
@given(values=st.lists(st.integers(-4, 4), min_size=64, max_size=64), by=st.integers(0, 31))
def test_warps_and_blocks_exchange_what_numpy_would(values, by):
    v, out = np.array(values), np.zeros((11, 64), np.int64)
    observe(exchanges, 1, 64, v, by, out).check()
    lanes = np.arange(32)
    for first in (0, 32):
        w, got = v[first : first + 32], out[:, first : first + 32]
        assert (got[0] == w[by]).all()
        assert (got[1] == w[lanes ^ by]).all()
        assert (got[2] == np.where(lanes + by < 32, w[(lanes + by) % 32], w)).all()
        assert (got[3] == np.where(lanes >= by, w[lanes - by], w)).all()
        assert (got[4] == sum(1 << int(lane) for lane in lanes[w > 0])).all()
        assert (got[5] == (w > 3).any()).all()
        assert (got[6] == (w > -3).all()).all()
        assert (got[7] == ((w > 0).all() or not (w > 0).any())).all()
    assert (out[8] == (v > 0).sum()).all()
    assert (out[9] == (v > -3).all()).all()
    assert (out[10] == (v > 3).any()).all()


@cuda.jit
def halves_apart(out):
    t = cuda.threadIdx.x
    if t < 16:
        out[t] = cuda.shfl_sync(0x0000FFFF, t, 3)
    else:
        out[t] = cuda.shfl_sync(0xFFFF0000, t, 20)


def test_lanes_that_a_mask_names_exchange_without_the_others():
    out = np.zeros(32)
    observe(halves_apart, 1, 32, out).check()
    assert out.tolist() == [3] * 16 + [20] * 16


# ── instructions ──────────────────────────────────────────────────────────────────────────────────────────


def add_up(value: int) -> int:
    raise AssertionError("the microscope runs its meaning instead")


@means(add_up)
def _(lane: Any, value: int) -> int:
    return lane.warp_collective("add_up", value, lambda values: dict.fromkeys(values, sum(values.values())))


@cuda.jit
def sums_of_warps(out):
    out[cuda.threadIdx.x] = add_up(cuda.threadIdx.x)


def test_an_instruction_does_what_its_meaning_says_with_all_lanes_of_the_warp():
    out = np.zeros(64)
    observe(sums_of_warps, 1, 64, out).check()
    assert out.tolist() == [sum(range(32))] * 32 + [sum(range(32, 64))] * 32


@cuda.jit(device=True)
def meet(order):
    if order == "syncwarp":
        cuda.syncwarp()
    elif order == "shuffle":
        cuda.shfl_sync(FULL, 0, 0)


@cuda.jit
def warp_sum_in_memory(out, order):
    t = cuda.threadIdx.x
    tile = cuda.shared.array(32, int32)
    tile[t] = t
    cuda.syncwarp()
    distance = 16
    while distance > 0:
        other = tile[(t + distance) % 32]
        meet(order)
        tile[t] += other
        meet(order)
        distance //= 2
    out[t] = tile[t]


def test_lanes_of_a_warp_are_not_in_step_unless_they_say_so():
    out = np.zeros(32, np.int32)
    observe(warp_sum_in_memory, 1, 32, out, "syncwarp").check()
    assert (out == 496).all()
    for order in ("shuffle", ""):  # a shuffle exchanges registers, and promises nothing about memory
        seen = observe(warp_sum_in_memory, 1, 32, out, order)
        assert {(fault.kind, fault.array) for fault in seen.faults} == {("race", "tile")}
