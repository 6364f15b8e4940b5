"""What goes wrong in kernels, and that each kind of it is found and named: races first, then the faults."""

from __future__ import annotations

import gc
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
import pytest
from greenlet import greenlet
from hypothesis import given, settings
from hypothesis import strategies as st
from numba import cuda, float32, int32

from kernels_numba.cuda.instructions import load_float4
from kernels_numba.microscope import (
    BarrierMismatch,
    KernelFault,
    NotUnderstood,
    Observation,
    OutOfBounds,
    TooLong,
    observe,
)

FULL = 0xFFFFFFFF
NOTHING, READ, WRITE, ATOMIC = range(4)
NO_BARRIER, SYNCWARP, SYNCTHREADS = range(3)
ACTORS = (0, 1, 31, 32, 63)
"""Threads that do anything in the little programs: three of one warp, two of another."""

# ── races, against their definition ───────────────────────────────────────────────────────────────────────


@cuda.jit
def little_program(steps, cells):
    """Steps: (barrier before it, and for every block and actor what it does to which cell)."""
    t = cuda.threadIdx.x
    shared = cuda.shared.array(2, int32)
    if t == 0:
        shared[0] = 0
        shared[1] = 0
    cuda.syncthreads()
    for barrier, in_blocks in steps:
        if barrier == SYNCTHREADS:
            cuda.syncthreads()
        if barrier == SYNCWARP:
            cuda.syncwarp()
        if t in ACTORS:
            where, what, cell = in_blocks[cuda.blockIdx.x][ACTORS.index(t)]
            array = shared if where else cells
            if what == READ:
                _ = array[cell]
            elif what == WRITE:
                array[cell] = 1
            elif what == ATOMIC:
                cuda.atomic.add(array, cell, 1)


class Access(NamedTuple):
    block: int
    thread: int
    array: str
    what: int
    cell: int
    step: int


ACTIONS = st.tuples(
    st.booleans(), st.sampled_from([NOTHING, NOTHING, READ, READ, WRITE, ATOMIC]), st.integers(0, 1)
)


@st.composite
def programs(draw: Any) -> Any:
    blocks = draw(st.integers(1, 2))
    one_step = st.tuples(
        st.sampled_from([NO_BARRIER, NO_BARRIER, SYNCWARP, SYNCTHREADS]),
        st.lists(
            st.lists(ACTIONS, min_size=len(ACTORS), max_size=len(ACTORS)), min_size=blocks, max_size=blocks
        ),
    )
    return blocks, draw(st.lists(one_step, min_size=1, max_size=5))


def is_race(steps: Any, one: Access, other: Access) -> bool:
    """The definition, read off the program and nothing else."""
    if (one.array, one.cell) != (other.array, other.cell) or one[:2] == other[:2]:
        return False
    if {one.what, other.what} in ({READ}, {ATOMIC}):
        return False
    if one.block != other.block:
        return one.array == "cells"
    first, last = sorted((one.step, other.step))
    barriers = {steps[i][0] for i in range(first + 1, last + 1)}
    same_warp = one.thread // 32 == other.thread // 32
    return not (SYNCTHREADS in barriers or (same_warp and SYNCWARP in barriers))


@settings(max_examples=80)
@given(program=programs())
def test_races_are_pairs_of_accesses_that_nothing_orders_and_of_which_one_writes(program):
    blocks, steps = program
    accesses = [
        Access(block, ACTORS[actor], "shared" if where else "cells", what, cell, step)
        for step, (_, in_blocks) in enumerate(steps)
        for block, actions in enumerate(in_blocks)
        for actor, (where, what, cell) in enumerate(actions)
        if what != NOTHING
    ]
    races = [pair for pair in combinations(accesses, 2) if is_race(steps, *pair)]
    seen = observe(little_program, blocks, 64, steps, np.zeros(2, np.int32))
    found = [fault for fault in seen.faults if fault.kind == "race"]
    # Each pair of places is told once for an array; the cell must be one of those.
    assert {(f.array, frozenset(kinds(seen, f))) for f in found} == {
        (a.array, frozenset((a.what, b.what))) for a, b in races
    }
    for fault in found:
        assert (fault.array, *fault.cell, set(kinds(seen, fault))) in [
            (a.array, a.cell, {a.what, b.what}) for a, b in races
        ]
        assert fault.message.startswith("race in block") and "with no barrier between them" in fault.message
        assert f"{fault.array}[{fault.cell[0]}]" in fault.message


def kinds(seen: Observation, fault: Any) -> list[int]:
    """What the two places of a race do, by the text of the source there."""
    lines = [seen.source[place.line - 1] for place in fault.places]
    return [ATOMIC if "atomic" in line else READ if "_ =" in line else WRITE for line in lines]


@cuda.jit
def reverse(a, with_barrier):
    t = cuda.threadIdx.x
    tile = cuda.shared.array(64, float32)
    tile[t] = a[t]
    if with_barrier:
        cuda.syncthreads()
    a[t] = tile[63 - t]


def test_a_missing_barrier_is_a_race_and_a_read_of_unwritten_memory():
    assert observe(reverse, 1, 64, np.arange(64.0), True).check().faults == ()
    seen = observe(reverse, 1, 64, np.arange(64.0), False)
    assert {(fault.kind, fault.array) for fault in seen.faults} == {("race", "tile"), ("unwritten", "tile")}
    with pytest.raises(
        KernelFault, match=r"race in block 0 on tile\[\d+\]: thread \d+ writes it \(line \d+\)"
    ):
        seen.check()


@cuda.jit
def write_under_a_vector(wide, out):
    if cuda.threadIdx.x == 0:
        wide[0, 3] = 1
    else:
        out[0], _, _, _ = load_float4(wide, (0, 0))


def test_a_load_of_four_cells_races_with_a_write_to_the_last_of_them():
    (fault,) = observe(write_under_a_vector, 1, 2, np.ones((1, 8), np.float32), np.zeros(1)).faults
    assert (fault.kind, fault.array, fault.cell) == ("race", "wide", (0, 3))


@cuda.jit
def last_block_reads(counter, out):
    cuda.atomic.add(counter, 0, 1)
    out[cuda.blockIdx.x] = counter[0]


def test_reading_a_counter_that_other_blocks_change_atomically_is_a_race():
    seen = observe(last_block_reads, 2, 1, np.zeros(1, np.int32), np.zeros(2))
    (fault,) = seen.faults
    assert fault.kind == "race" and fault.message.startswith("race in blocks ")
    assert "changes it" in fault.message and "reads it" in fault.message
    assert observe(last_block_reads, 1, 1, np.zeros(1, np.int32), np.zeros(1)).faults == ()


# ── faults that end the run ───────────────────────────────────────────────────────────────────────────────


@cuda.jit
def misbehave(how, a, wide):
    t = cuda.threadIdx.x
    if how == "beyond":
        a[t + 1] = 0
    elif how == "negative":
        a[-1 - t] = 0
    elif how == "row beyond":
        _ = wide[4]
    elif how == "too few indices":
        wide[t % 4] = 0
    elif how == "too many indices":
        _ = a[t, 0]
    elif how == "atomic beyond":
        cuda.atomic.add(a, 64, 1)
    elif how == "vector beyond":
        _ = load_float4(wide, (0, 6))
    elif how == "misaligned":
        _ = load_float4(wide, (0, 2))
    elif how == "divergent barrier":
        if t < 40:
            cuda.syncthreads()
        else:
            cuda.syncwarp()
            while t >= 40:
                cuda.shfl_sync(FULL, t, 0)
    elif how == "two barriers":
        if t < 32:
            cuda.syncthreads()
        else:
            cuda.syncthreads()
    elif how == "half a warp at a shuffle":
        if t < 16:
            cuda.shfl_sync(FULL, t, 0)
        elif t < 32:
            cuda.syncthreads()
    elif how == "outside the mask":
        cuda.shfl_sync(0x0000FFFF, t, 0)
    elif how == "ended":
        if t >= 16:
            return
        a[t] = cuda.shfl_down_sync(FULL, a[t], 8)
    elif how == "no end":
        while a[0] >= 0:
            a[t] = 1
    elif how == "unknown":
        cuda.nanosleep(3)
    elif how == "unknown atomic":
        cuda.atomic.multiply(a, 0, 2)
    elif how == "division":
        _ = 1 // (t - t)


FAULTS = {
    "beyond": (OutOfBounds, r"thread \(63, 0, 0\) of block \(0, 0, 0\) \(warp 1, lane 31\) accesses a\[64\]"),
    "negative": (OutOfBounds, r"thread \(0, 0, 0\) .* accesses a\[-1\], and a has the shape \(64,\) \(line"),
    "row beyond": (OutOfBounds, r"accesses wide\[4\], and wide has the shape \(4, 8\)"),
    "too few indices": (OutOfBounds, r"accesses wide\[0\], and wide has the shape \(4, 8\)"),
    "too many indices": (OutOfBounds, r"accesses a\[0, 0\], and a has the shape \(64,\)"),
    "atomic beyond": (OutOfBounds, r"accesses a\[64\]"),
    "vector beyond": (OutOfBounds, r"accesses wide\[0, 9\]"),
    "misaligned": (OutOfBounds, r"4 neighbours at wide\[0, 2\] .* a multiple of 16 bytes \(line \d+\)"),
    "divergent barrier": (
        BarrierMismatch,
        r"block \(0, 0, 0\) wait .* 40 at syncthreads in line \d+",
    ),
    "two barriers": (BarrierMismatch, r"32 at syncthreads in line \d+ .*, 32 at syncthreads in line \d+"),
    "half a warp at a shuffle": (BarrierMismatch, r"16 at shfl_sync .*, 16 at syncthreads .*, 32 have ended"),
    "outside the mask": (
        BarrierMismatch,
        r"lane 16\) takes part in shfl_sync \(line \d+\), .* mask 0x0000",
    ),
    "ended": (BarrierMismatch, r"lane 8\) .* shfl_down_sync .*line \d+.* lane 16"),
    "no end": (TooLong, r"more than 500 memory accesses; thread .* line \d+"),
    "unknown": (NotUnderstood, r"cuda\.nanosleep"),
    "unknown atomic": (NotUnderstood, r"cuda\.atomic\.multiply"),
    "division": (ZeroDivisionError, "by zero"),
}


def living_greenlets() -> int:
    gc.collect()
    return sum(type(thing) is greenlet and bool(thing) for thing in gc.get_objects())


@pytest.mark.parametrize("how", FAULTS)
def test_every_fault_has_its_class_and_says_who_where_and_what(how):
    kind, words = FAULTS[how]
    with pytest.raises(kind, match=words) as caught:
        observe(misbehave, 1, 64, how, np.ones(64), np.ones((4, 8), np.float32), max_accesses=500)
    assert type(caught.value) is kind
    observe(reverse, 1, 64, np.arange(64.0), True).check()  # the next run is like any other


def test_after_a_fault_no_thread_is_left_waiting():
    before = living_greenlets()
    for how in FAULTS:
        with pytest.raises(Exception, match=FAULTS[how][1]):
            observe(misbehave, 1, 64, how, np.ones(64), np.ones((4, 8), np.float32), max_accesses=500)
    assert living_greenlets() == before


@settings(max_examples=30)
@given(shape=st.tuples(st.integers(1, 3), st.integers(1, 3)), index=st.tuples(*[st.integers(-2, 4)] * 2))
def test_an_index_is_within_bounds_or_a_fault_and_nothing_else_is_touched(shape, index):
    a = np.zeros(shape)
    inside = all(0 <= i < n for i, n in zip(index, shape, strict=True))
    if inside:
        observe(set_one, 1, 1, a, index).check()
        assert a[index] == 1 and a.sum() == 1
    else:
        with pytest.raises(OutOfBounds, match=r"accesses a\["):
            observe(set_one, 1, 1, a, index)
        assert (a == 0).all()


@cuda.jit
def set_one(a, index):
    a[index[0], index[1]] = 1


# ── faults that are noted ─────────────────────────────────────────────────────────────────────────────────


@cuda.jit
def reads_unwritten(how, out):
    t = cuda.threadIdx.x
    tile = cuda.shared.array((2, 8), float32)
    if how == "atomic":
        cuda.atomic.add(tile, (1, t), 1)
    elif how == "vector":
        tile[0, 0], tile[0, 1], tile[0, 2] = 1, 1, 1
        out[0], _, _, out[t] = load_float4(tile, (0, 0))
    elif how == "read":
        tile[0, t] = 1
        out[t] = tile[1, t] + tile[0, t]
    else:
        tile[1, t] = 1
        cuda.atomic.add(tile, (1, t), 1)
        out[t] = tile[1, t]


@pytest.mark.parametrize(
    ("how", "cell"), [("atomic", (1, 0)), ("vector", (0, 3)), ("read", (1, 0)), ("", None)]
)
def test_shared_memory_that_no_thread_has_written_must_not_be_read(how, cell):
    out = np.zeros(8)
    faults = observe(reads_unwritten, 2, 1, how, out, keep=False).faults
    assert [(f.kind, f.array, f.cell) for f in faults] == ([("unwritten", "tile", cell)] if cell else [])
    if cell:
        assert f"tile[{cell[0]}, {cell[1]}], which no thread has written (line" in faults[0].message
    assert out[0] == 2 if not how else np.isnan(out[0]) or how != "read"


@cuda.jit
def read_then_write(a, only_write):
    t = cuda.threadIdx.x
    if not only_write:
        _ = a[t, 1]
    a[t, 1] = 1
    _ = a[t, 1]


def test_poison_is_noted_when_it_is_read_and_gone_when_it_is_written():
    cells = np.zeros((4, 2), bool)
    cells[2, 1] = True
    assert observe(read_then_write, 1, 4, np.zeros((4, 2)), True, poison={"a": True}).faults == ()
    (fault,) = observe(read_then_write, 1, 4, np.zeros((4, 2)), False, poison={"a": cells}).faults
    assert (fault.kind, fault.array, fault.cell) == ("poison", "a", (2, 1))
    assert fault.message.startswith("thread (2, 0, 0)") and "which it should not look at" in fault.message


def test_atomics_and_vector_loads_see_poison_too():
    (fault,) = observe(add_one, 1, 2, np.zeros(2), poison={"a": [False, True]}).faults
    assert (fault.kind, fault.cell) == ("poison", (1,))
    poison = [[False] * 8, [False, False, True, False] + [False] * 4]
    wide = np.ones((2, 8), np.float32)
    (fault,) = observe(load_rows, 1, 2, wide, np.zeros(2), poison={"wide": poison}).faults
    assert (fault.kind, fault.cell) == ("poison", (1, 2))


@cuda.jit
def add_one(a):
    cuda.atomic.add(a, cuda.threadIdx.x, 1)


@cuda.jit
def load_rows(wide, out):
    out[cuda.threadIdx.x], _, _, _ = load_float4(wide, (cuda.threadIdx.x, 0))
