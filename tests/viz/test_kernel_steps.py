"""Which requests are played, and the places among them worth jumping to."""

import itertools
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minivllm.trace.kernel_events import FaultFound, KernelTrace, WarpAccess
from tests.viz.kernel_factory import traces
from tests.viz.test_kernel_figures import EVERY, drawn
from viz.figures.kernel_tiles import pieces
from viz.kernel_steps import Follow, choices, fault_step, faults, microscope_jumps, played, worst


@given(st.sampled_from(["flash-attention-2", "paged-attention", "racy-transpose"]), st.data())
def test_a_block_or_warp_can_be_followed_alone(name, data):
    trace = traces(name)[0]
    found = choices(trace)
    assert found[0] == Follow() and len(found) > 1
    follow = data.draw(st.sampled_from(found[1:]))
    shown = played(trace, follow)
    mine = [
        (n, e)
        for n, e in enumerate(trace.events)
        if isinstance(e, WarpAccess)
        and e.block == (follow.block if follow.block is not None else e.block)
        and e.warp == (follow.warp if follow.warp is not None else e.warp)
    ]
    assert list(zip(shown.steps, shown.accesses, strict=True)) == mine and mine
    few = played(trace, follow, most=3)
    assert few.steps == shown.steps[:3] and few.left_out == max(0, len(mine) - 3)


def test_a_jump_to_a_fault_leads_to_the_request_that_has_it():
    trace, accesses, scenes = drawn("racy-transpose", 0)
    found = faults(trace)
    assert {fault.kind for fault in found} == {"race", "unwritten"}
    for fault in found:
        step = fault_step(fault, trace.header, accesses)
        access = accesses[step]
        array = trace.header.arrays[access.array]
        assert (array.name, access.block) == (fault.array, 2), "the other blocks do no wrong"
        assert access.line in fault.lines
        cell = int(np.ravel_multi_index(fault.cell, array.shape))
        assert any(first <= cell < first + access.count for first in access.first)
        assert re.search(rf"line {access.line}\b", fault.message)
        assert fault.array in scenes["Shared"].at(step)[0]["text"]
    labels = {jump.label: jump.step for jump in microscope_jumps(trace, accesses)}
    for fault in found:
        assert labels[f"{fault.kind} in line {fault.lines[0]}"] == fault_step(fault, trace.header, accesses)


@pytest.mark.parametrize("block", [0, 1, 2])
def test_whatever_the_cell_and_the_block_of_a_fault_its_request_is_found(block):
    trace, accesses, _ = drawn("racy-transpose", 0)
    index, array = next((n, a) for n, a in enumerate(trace.header.arrays) if a.is_shared)
    lines = {access.line for access in accesses if access.array == index}
    for flat, line in itertools.product(range(64), lines):
        cell = tuple(map(int, np.unravel_index(flat, array.shape)))
        fault = FaultFound("race", array.name, cell, "", (line,), (block,))
        access = accesses[fault_step(fault, trace.header, accesses)]
        assert (access.array, access.line, access.block) == (index, line, block) and flat in access.first


def test_a_fault_of_a_block_that_is_not_followed_has_no_step():
    trace, accesses, _ = drawn("racy-transpose", 0, Follow(0))
    assert all(fault_step(fault, trace.header, accesses) is None for fault in faults(trace))


@pytest.mark.parametrize(("name", "number"), EVERY)
def test_the_dearest_request_is_the_one_that_wastes_most(name, number):
    trace, accesses, _ = drawn(name, number)
    for is_shared in (False, True):
        waste = [
            access.units - access.ideal_units
            for access in accesses
            if trace.header.arrays[access.array].is_shared == is_shared
        ]
        step = worst(trace.header, accesses, is_shared=is_shared)
        if step is None:
            assert not any(waste)
        else:
            assert accesses[step].units - accesses[step].ideal_units == max(waste) > 0


@pytest.mark.parametrize(("name", "number"), EVERY)
def test_jumps_to_arrays_and_barriers_lead_where_they_say(name, number):
    trace, accesses, _ = drawn(name, number)
    jumps = {jump.label: jump.step for jump in microscope_jumps(trace, accesses)}
    for index, array in enumerate(trace.header.arrays):
        own = [step for step, access in enumerate(accesses) if access.array == index]
        assert jumps.get(f"first {array.name}") == (own[0] if own else None)
    barrier = jumps["first barrier passed"]
    epochs = [access.epoch for access in accesses]
    assert all(epoch == 0 for epoch in epochs[:barrier]) and (barrier is None or epochs[barrier] > 0)


def test_an_empty_kernel_is_no_reason_to_fail():
    header = traces("kv-write")[0].header
    assert played(KernelTrace(header), Follow()).steps == [] and pieces(KernelTrace(header)) == []
