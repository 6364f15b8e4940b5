"""From an observation to a trace: every access once, in an order that the program could have had."""

import json
from math import exp

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels_numba.microscope import observe
from minivllm.lab.microscope.commands import NAMES, launch_names
from minivllm.lab.microscope.own_kernel import own_subject
from minivllm.lab.microscope.record import kernel_trace, program_order
from minivllm.lab.microscope.subjects import SUBJECTS, make_subject
from minivllm.trace.kernel_events import (
    FaultFound,
    KernelEnded,
    SoftmaxUpdated,
    TileStarted,
    WarpAccess,
    is_kernel_trace,
    read_kernel_traces,
    write_kernel_traces,
)
from minivllm.trace.reader import TraceError, read_trace

SMALL = {
    "naive-attention": {"tokens": 6},
    "flash-attention-1": {"tokens": 9, "rows": 2, "warps": 2},
    "flash-attention-2": {"tokens": 9, "rows": 2, "warps": 2},
    "flash-attention-tensor-core": {"tokens": 5, "head_dim": 32},
    "paged-attention": {"context": 6, "splits": 2},
    "quantized-product": {"rows": 1, "outputs": 5, "inputs": 64},
    "kv-write": {},
    "copy-blocks": {"cells": 40},
}


@pytest.fixture(scope="module")
def observed():
    """Every kernel by name: what was seen of each launch, with its trace."""
    result = {}
    for name, shape in SMALL.items():
        subject = make_subject(name, shape, seed=0)
        seen = []
        for launch in subject.launches:
            names = launch_names(launch)
            poison = {key: cells for key, cells in subject.poison.items() if key in names}
            seen.append(launch.observe(poison=poison).check())
        result[name] = [(one, kernel_trace(one, subject.title, n)) for n, one in enumerate(seen)]
    return result


def test_the_help_names_every_kernel():
    assert NAMES.split(", ") == list(SUBJECTS)


@pytest.mark.parametrize("name", SUBJECTS)
def test_a_trace_has_every_access_once_and_its_price(name, observed):
    for seen, trace in observed[name]:
        accesses = [event for event in trace.events if isinstance(event, WarpAccess)]
        assert sum(len(event.lanes) for event in accesses) == seen.num_accesses
        end = trace.events[-1]
        assert isinstance(end, KernelEnded)
        read, moved = dict.fromkeys(end.read_bytes, 0), dict.fromkeys(end.moved_bytes, 0)
        for event in accesses:
            array = trace.header.arrays[event.array]
            assert len(event.lanes) == len(event.first) and event.units >= 1
            if event.kind == "read":
                read[array.name] += len(event.lanes) * event.count * array.itemsize
            if not array.is_shared:
                moved[array.name] += 32 * event.units
            assert all(0 <= first < np.prod(array.shape) for first in event.first)
        assert (read, moved) == (end.read_bytes, end.moved_bytes)


@pytest.mark.parametrize("name", SUBJECTS)
def test_every_lane_keeps_its_own_order_and_no_warp_passes_a_barrier_early(name, observed):
    for seen, trace in observed[name]:
        order = program_order(seen)
        assert sorted(order) == sorted(set(seen.requests.tolist()))
        place = {request: n for n, request in enumerate(order)}
        last = {}
        for access, request in enumerate(seen.requests.tolist()):
            lane = (int(seen.columns["block"][access]), int(seen.columns["thread"][access]))
            assert place[request] >= last.get(lane, -1)
            last[lane] = place[request]
        where = [(e.block, e.epoch) for e in trace.events if isinstance(e, WarpAccess)]
        assert where == sorted(where)


def test_the_source_line_of_an_access_mentions_its_array(observed):
    for launches in observed.values():
        for _, trace in launches:
            for event in trace.events:
                if isinstance(event, WarpAccess) and event.line:
                    line = trace.header.source[event.line - 1]
                    words = line[event.column : event.end_column]
                    name = trace.header.arrays[event.array].name
                    assert name in words or "load" in words or "copy_later" in line or "cache" in words


def test_flash_attention_tells_its_tiles_and_the_running_softmax(observed):
    for name in ("flash-attention-1", "flash-attention-2"):
        _, trace = observed[name][0]
        tiles = [event for event in trace.events if isinstance(event, TileStarted)]
        assert {(tile.first_query, tile.end_query) for tile in tiles} == {(0, 4), (4, 8), (8, 9)}
        last = {e.query: e for e in trace.events if isinstance(e, SoftmaxUpdated)}
        assert sorted(last) == list(range(9))
        assert all(event.total >= 1 for event in last.values())
        for query in last:
            events = [e for e in trace.events if isinstance(e, SoftmaxUpdated) and e.query == query]
            scores = [score for event in events for score in event.scores]
            assert len(scores) == query + 1, "one for each key that the query sees"
            total = sum(exp(score - last[query].maximum) for score in scores)
            assert total == pytest.approx(last[query].total, rel=1e-3)


def test_a_trace_survives_its_file(observed, tmp_path):
    path = tmp_path / "kernels.jsonl"
    traces = [trace for _, trace in observed["paged-attention"]]
    write_kernel_traces(path, traces)
    assert is_kernel_trace(path)
    assert read_kernel_traces(path) == traces
    lines = path.read_bytes().splitlines(keepends=True)
    assert all(json.loads(line)["event"] for line in lines)
    path.write_bytes(b"".join(lines)[:-20])  # cut off in its last line
    cut = read_kernel_traces(path)
    assert [len(trace.events) for trace in cut] == [len(traces[0].events), len(traces[1].events) - 1]
    path.write_bytes(lines[0] + b"{broken\n" + lines[1])
    with pytest.raises(TraceError, match="line 2, is not an event"):
        read_kernel_traces(path)
    path.write_bytes(b"")
    with pytest.raises(TraceError, match="is empty"):
        read_kernel_traces(path)
    path.write_bytes(lines[1])
    with pytest.raises(TraceError, match="first line is not a header"):
        read_kernel_traces(path)
    with pytest.raises(TraceError, match="cannot be read"):
        read_kernel_traces(tmp_path / "nothing")
    with pytest.raises(ValueError, match="trace: cannot write"):
        write_kernel_traces(tmp_path, traces)


def test_an_engine_does_not_take_it_for_its_own(observed, tmp_path):
    path = tmp_path / "kernels.jsonl"
    write_kernel_traces(path, [trace for _, trace in observed["kv-write"]])
    with pytest.raises(TraceError, match="is a trace of a kernel, not a minivllm trace of a run"):
        read_trace(path)


def test_faults_are_in_the_trace():
    def racy(a):
        a[0] = cuda.threadIdx.x

    from numba import cuda

    seen = observe(cuda.jit(racy), 1, 4, np.zeros(2, np.int32))
    faults = [event for event in kernel_trace(seen, "a race").events if isinstance(event, FaultFound)]
    assert [fault.kind for fault in faults] == ["race"]
    assert faults[0].array == "a" and faults[0].cell == (0,)


@given(
    tokens=st.integers(1, 5),
    heads=st.sampled_from([(1, 1), (2, 1), (4, 2)]),
    seed=st.integers(0, 100),
)
@settings(max_examples=10, deadline=None)
def test_subjects_of_any_shape_are_free_of_faults(tokens, heads, seed):
    shape = {"tokens": tokens, "heads": heads[0], "kv_heads": heads[1]}
    for launch in make_subject("flash-attention-2", shape | {"rows": 1, "warps": 1}, seed).launches:
        launch.observe().check()


OWN = """
from numba import cuda

@cuda.jit
def add_one(a, n):
    i = cuda.grid(1)
    if i < n:
        a[i] += 1

number = 3
"""


def test_a_kernel_of_ones_own_is_found_and_run(tmp_path):
    file = tmp_path / "own.py"
    file.write_text(OWN)
    subject = own_subject(f"{file}:add_one", "2", "4", "a=int32:7=5, n=7", seed=0)
    launch = subject.launches[0]
    launch.observe().check()
    assert launch.arguments[0].tolist() == [6] * 7


@pytest.mark.parametrize(
    ("spec", "grid", "arguments", "message"),
    [
        ("own.py:nothing", "1", "", "its kernels are: add_one"),
        ("own.py:number", "1", "", "is not a function"),
        ("none.py:add_one", "1", "", "there is no Python file"),
        ("broken.py:add_one", "1", "", "cannot be imported: ZeroDivisionError"),
        ("own.py:add_one", "1", "a=int32:4", "n is missing"),
        ("own.py:add_one", "1", "a=int32:4,n=4,m=1", "must be one of 'a', 'n', got 'm'"),
        ("own.py:add_one", "1", "a=complex:4,n=4", "type of a must be one of"),
        ("own.py:add_one", "1", "a=int32:0,n=4", "a must have sizes such as 32x32, and from 1 to"),
        ("own.py:add_one", "1", "a=int32:4y4,n=4", "a must have sizes such as 32x32.*got '4y4'"),
        ("own.py:add_one", "1", "a=int32:4,n=four", "n must be a finite number, or an array"),
        ("own.py:add_one", "1", "a", "arguments must be NAME=VALUE"),
        ("own.py:add_one", "one", "a=int32:4,n=4", "grid must be one to three integers"),
    ],
)
def test_what_is_wrong_with_ones_own_kernel_is_one_sentence(spec, grid, arguments, message, tmp_path):
    (tmp_path / "own.py").write_text(OWN)
    (tmp_path / "broken.py").write_text("1 / 0")
    with pytest.raises(ValueError, match=message):
        own_subject(str(tmp_path / spec), grid, "4", arguments, seed=0)


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("attention", {}, "kernel must be one of 'naive-attention'"),
        ("kv-write", {"fish": 1}, "shape of kv-write must be one of 'tokens'"),
        ("kv-write", {"tokens": 0}, "tokens must be"),
        ("flash-attention-2", {"head_dim": 40}, "head_dim must be one of 32"),
        ("flash-attention-2", {"heads": 3, "kv_heads": 2}, "must be a multiple"),
    ],
)
def test_a_shape_that_cannot_be_is_refused(name, shape, message):
    with pytest.raises(ValueError, match=message):
        make_subject(name, shape, seed=0)
