"""A result is written whole or not at all, and a trace is readable up to where the disk was full."""

import errno
import os
import resource
import warnings
from contextlib import contextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minivllm.console import demo
from minivllm.console.commands import run
from minivllm.files import CannotWrite, write_file
from minivllm.outputs import CompletionOutput, RequestOutput
from minivllm.terminal import Console
from minivllm.trace.kernel_events import KernelTrace, write_kernel_traces
from minivllm.trace.perfetto import write_perfetto
from minivllm.trace.reader import TraceError, read_trace
from minivllm.trace.recorder import Recorder
from minivllm.trace.story_events import write_story
from minivllm.trace.summary import summarize
from tests.engine.fakes import make_engine
from tests.engine.test_engine import greedy
from tests.viz import trace_factory
from tests.viz.story_factory import paging
from tests.viz.trace_factory import Workload
from viz.backends.html import save_html
from viz.scene import Scene


@contextmanager
def small_disk(num_bytes):
    """No file may grow beyond so many bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def scene():
    picture = Scene("a picture", 10, 10)
    picture.begin_step("a step")
    return picture


TRACE = trace_factory.make(Workload(num_requests=2))
WRITERS = {
    "a file": lambda path: write_file(path, "x" * 2000, "out"),
    "perfetto": lambda path: write_perfetto(TRACE, path),
    "kernels": lambda path: write_kernel_traces(path, [KernelTrace(TRACE.header, TRACE.events)]),
    "a story": lambda path: write_story(path, paging()),
    "a page": lambda path: save_html(path, "a page", [scene()]),
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_good_file_is_not_replaced_by_half_of_another(name, tmp_path):
    path = tmp_path / "good"
    path.write_text("good")
    with small_disk(600), pytest.raises(CannotWrite, match=str(path)):
        WRITERS[name](path)
    assert path.read_text() == "good" and os.listdir(tmp_path) == ["good"]
    WRITERS[name](path)
    assert path.stat().st_size > 600 and os.listdir(tmp_path) == ["good"]


def test_a_link_and_a_device_stay_what_they_are(tmp_path):
    (tmp_path / "target").write_text("old")
    (tmp_path / "link").symlink_to("target")
    write_file(tmp_path / "link", "new", "out")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "target").read_text() == "new"
    with pytest.raises(CannotWrite, match="out: cannot write to /dev/full: No space left"):
        write_file("/dev/full", "x", "out")
    assert not os.path.isfile("/dev/full")


@pytest.mark.parametrize("path", ["no/such/folder/x", "a\x00b", "x" * 5000, "/proc/x"])
def test_a_place_that_cannot_be_written_to_is_told(path):
    with pytest.raises(CannotWrite, match="out: cannot write to"):
        write_file(path, "x", "out")


def test_a_result_that_cannot_be_written_is_a_sentence_and_exit_code_1(tmp_path, capsys):
    path = trace_factory.write(TRACE, tmp_path / "run.jsonl")
    assert run(["trace", "export", str(path), "--perfetto", "--out", "/dev/full"]) == 1
    said = " ".join(capsys.readouterr().err.split())
    assert said == "error: out: cannot write to /dev/full: No space left on device"


# ── traces ────────────────────────────────────────────────────────────────────────────────────────────────


class FaultyDisk:
    """A file that takes so many bytes, and then fails."""

    def __init__(self, file, num_bytes, error):
        self.file, self.left, self.error = file, num_bytes, error

    def write(self, data):
        taken = data[: self.left]
        self.left -= len(taken)
        self.file.write(taken)
        self.file.flush()
        if len(taken) < len(data):
            raise self.error

    def flush(self):
        pass

    def close(self):
        self.file.close()
        raise self.error


def serve(recorder):
    """Three requests; the tokens of each."""
    engine = make_engine(recorder=recorder)
    for number in range(3):
        engine.add_request(str(number), [1, 2, 3 + number], greedy(6))
    tokens = {}
    while engine.has_unfinished_requests():
        for output in engine.step():
            tokens[output.request_id] = output.outputs[0].token_ids
    return tokens


ERRORS = [OSError(code, os.strerror(code)) for code in (errno.ENOSPC, errno.EIO, errno.EFBIG, errno.EBADF)]


@given(num_bytes=st.integers(0, 4000), error=st.sampled_from([*ERRORS, ValueError("write to closed file")]))
def test_a_disk_that_fails_ends_the_trace_with_one_warning_and_not_the_run(
    num_bytes, error, tmp_path_factory
):
    path = tmp_path_factory.mktemp("disk") / "run.jsonl"
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        recorder = Recorder(path)
        recorder._file = FaultyDisk(recorder._file, num_bytes, error)
        tokens = serve(recorder)
        recorder.close()
        recorder.close()
    assert tokens == serve(Recorder())
    assert len(told) == 1 and str(told[0].message) == recorder.problem and "ends here" in recorder.problem
    try:
        trace = read_trace(path)
    except TraceError as problem:
        assert "is empty" in str(problem) or "header" in str(problem)  # not even the header fitted
    else:
        assert any("no end mark" in warning for warning in trace.warnings)
        assert summarize(trace).num_steps == trace.num_steps


def test_a_full_disk_and_a_removed_folder_are_no_matter_to_the_run(tmp_path):
    expected = serve(Recorder())
    with pytest.warns(UserWarning, match="No space left on device"), Recorder("/dev/full") as recorder:
        assert serve(recorder) == expected
    path = tmp_path / "run.jsonl"
    with small_disk(700), pytest.warns(UserWarning, match="File too large"), Recorder(path) as recorder:
        assert serve(recorder) == expected
    assert read_trace(path).warnings
    (tmp_path / "gone").mkdir()
    with Recorder(tmp_path / "gone" / "run.jsonl") as recorder:
        (tmp_path / "gone" / "run.jsonl").unlink()
        (tmp_path / "gone").rmdir()
        assert serve(recorder) == expected and not recorder.problem


def test_the_demo_prints_all_texts_and_then_says_that_its_trace_is_not_whole(tmp_path, monkeypatch, capsys):
    completion = CompletionOutput(0, "[red]a text[/red]", [2])
    said = RequestOutput("0", "[/b] a prompt", [1], None, [completion], True)
    scenario = demo.DEMO_SCENARIOS["paging"]
    outputs = {str(number): said for number in range(len(scenario.arrivals))}
    monkeypatch.setattr(demo, "create_engine", lambda *args, **more: None)
    monkeypatch.setattr(demo, "play", lambda engine, scenario: outputs)
    monkeypatch.setattr(demo, "Recorder", lambda path: Recorder("/dev/full"))
    with pytest.warns(UserWarning, match="No space left"), pytest.raises(CannotWrite, match="ends here"):
        demo.run_demo(tmp_path, Console())
    assert capsys.readouterr().out.count("[red]a text[/red]") == len(outputs)


def test_a_trace_that_a_full_disk_has_left_empty_is_not_pointed_to(tmp_path, capsys):
    for name, content in (("empty", ""), ("whole", "{}")):
        (tmp_path / name).write_text(content)
        Console(width=500).point_to(tmp_path / name)
    assert capsys.readouterr().out == f"To look at it: minivllm dashboard {tmp_path / 'whole'}\n"
