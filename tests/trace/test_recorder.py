"""The recorder keeps its promises to the run: it raises nothing, and no interrupt damages its file."""

import sys

import msgspec
import pytest

import minivllm.trace.recorder as recorder_module
from minivllm.trace.events import VERSION, RequestRefused, StepFinished, StepStarted, TraceHeader
from minivllm.trace.reader import read_trace
from minivllm.trace.recorder import Recorder

HEADER = TraceHeader(VERSION, "2026-01-01T00:00:00+00:00", "virtual", 8, 4, 4, 10, 64)
EVENTS = [event for step in range(3) for event in (StepStarted(step, 0.5), StepFinished(step, 1.0))]


@pytest.mark.parametrize("at", range(61))
def test_an_interrupt_at_any_line_loses_events_but_no_event_comes_twice_or_in_half(tmp_path, at):
    path, lines = tmp_path / "interrupted.jsonl", 0
    recorder = Recorder(path)
    recorder.start(HEADER)

    def trace(frame, kind, argument):
        nonlocal lines
        if frame.f_code.co_filename != recorder_module.__file__:
            return None
        if kind == "line":
            lines += 1
            if lines == at:
                raise KeyboardInterrupt
        return trace

    sent = 0
    before = sys.gettrace()
    sys.settrace(trace)
    try:
        while sent < len(EVENTS):
            try:
                event = EVENTS[sent]
                sent += 1
                recorder.emit(event)
            except KeyboardInterrupt:
                pass
    finally:
        sys.settrace(before)
    recorder.close()
    events = read_trace(path).events[:-1]
    kept = [EVENTS.index(event) for event in events]
    assert kept == sorted(set(kept)), "in order, and none twice"
    assert len(kept) >= len(EVENTS) - 2, "at most one step is lost"


def test_an_event_that_json_cannot_express_ends_the_trace_and_not_the_run(tmp_path):
    recorder = Recorder(tmp_path / "run.jsonl")
    recorder.start(HEADER)
    recorder.emit(EVENTS[0])
    with pytest.warns(UserWarning, match="the trace .* ends here.*surrogates not allowed"):
        recorder.emit(RequestRefused("\ud800", 0.0, "it is half a character"))
    recorder.emit(EVENTS[1])
    recorder.close()
    assert read_trace(tmp_path / "run.jsonl").events == [EVENTS[0]]


def test_the_header_sets_the_clock_to_zero_and_is_on_disk_at_once(tmp_path):
    now = 100.0
    recorder = Recorder(tmp_path / "run.jsonl", clock=lambda: now)
    now = 107.0
    recorder.emit(HEADER)
    assert msgspec.json.decode((tmp_path / "run.jsonl").read_bytes())["event"] == "TraceHeader"
    now = 109.5
    assert (recorder.now(), recorder.at(108.0)) == (2.5, 1.0)
    assert (recorder.at(50.0), recorder.at(200.0)) == (0.0, 2.5), "never before the header, nor in the future"
