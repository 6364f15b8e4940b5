"""A survey says of a whole run what replay says, and a stretch of it is the same run, from there on."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minivllm.trace import survey as module
from minivllm.trace.events import BatchPlanned, RequestPreempted, StepFinished
from minivllm.trace.lines import TraceError
from minivllm.trace.replay import Replay
from minivllm.trace.survey import survey
from tests.viz.strategies import traces
from tests.viz.trace_factory import Workload, make, write


@pytest.fixture(autouse=True)
def few(monkeypatch):
    """Ranges are merged and checkpoints thinned out even in short runs."""
    monkeypatch.setattr(module, "MOST_RANGES", 8)
    monkeypatch.setattr(module, "MOST_CHECKPOINTS", 3)
    monkeypatch.setattr(module, "FORGET_EVERY", 2)
    monkeypatch.setattr(module.Survey, "_every", 2, raising=False)


def of(trace, folder):
    path = write(trace, folder.mktemp("survey") / "run.jsonl")
    return survey(path)


@settings(max_examples=25)
@given(trace=traces, data=st.data())
def test_a_stretch_is_the_run_from_there_on(trace, data, tmp_path_factory):
    found = of(trace, tmp_path_factory)
    if not found.num_steps:
        return
    first = data.draw(st.integers(0, found.num_steps - 1))
    count = data.draw(st.integers(1, found.num_steps))
    whole = {step: state.snapshot() for step, state in Replay(trace).walk()}
    part = found.stretch(first, count)
    finished = [event for event in part.events if isinstance(event, StepFinished)]
    assert len(finished) == min(count, found.num_steps - first)
    for step, state in Replay(part).walk():
        if step < len(finished):
            assert state.snapshot() == whole[first + step]


@settings(max_examples=25)
@given(trace=traces)
def test_ranges_cover_all_steps_once_and_add_up(trace, tmp_path_factory):
    found = of(trace, tmp_path_factory)
    steps = [step for part in found.ranges for step in range(part.first, part.last + 1)]
    assert steps == list(range(found.num_steps)) and len(found.ranges) <= 8
    events = trace.events
    planned = [event for event in events if isinstance(event, BatchPlanned)]
    if found.num_steps == trace.num_steps:
        tokens = sum(count for event in planned for _seq, _start, count in event.items)
        assert sum(part.num_tokens for part in found.ranges) == tokens
        preempted = sum(isinstance(event, RequestPreempted) for event in events)
        assert sum(part.num_preemptions for part in found.ranges) <= preempted
    used = [state.num_used_blocks for _step, state in Replay(trace).walk()][: found.num_steps]
    for part in found.ranges:
        assert part.most_used_blocks == max(used[part.first : part.last + 1])


def test_a_step_that_is_not_there_is_refused_by_name(tmp_path_factory):
    found = of(make(Workload(num_requests=2)), tmp_path_factory)
    with pytest.raises(ValueError, match=r"first must lie in 0 … \d+"):
        found.stretch(found.num_steps, 1)


def test_a_damaged_line_is_told_and_a_cut_one_is_left_out(tmp_path):
    path = write(make(Workload(num_requests=2)), tmp_path / "run.jsonl")
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines) + b'{"event":"Ste')
    assert survey(path).was_cut
    path.write_bytes(b"".join([*lines[:5], b"{}\n", *lines[5:]]))
    with pytest.raises(TraceError, match="is not an event"):
        survey(path)
