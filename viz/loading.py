"""Which trace the dashboard shows: from the link, from the command line, typed in, or uploaded.

A trace is of a run of the engine, of kernels under the microscope, of a comparison of precisions, or it is a
failing story of a lesson: each page shows one kind of them.

    ?trace=… in the link  ►  MINIVLLM_TRACE (set by `viz.serve`)  ►  the form on the page
    ?with=…  in the link  ►  the form on the page "Compare"           (a second trace, beside the first)

A file that cannot be shown is told in one sentence (`TraceError`), never as a stack trace; one that lies in
no folder that the command named is not opened at all (`folders.py`). What was read is kept, and read again
when the file has changed: a trace that is still growing can be looked at meanwhile.

Read next: `stage.py`.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

import streamlit as st

from minivllm.trace.kernel_events import KernelTrace, WarpAccess, is_kernel_trace, read_kernel_traces
from minivllm.trace.lines import begins_as, check_is_file, words
from minivllm.trace.precision_events import PrecisionTrace, is_precision, read_precision
from minivllm.trace.reader import TraceError, read_trace
from minivllm.trace.story_events import StoryTrace, is_story, read_story
from minivllm.trace.summary import RunSummary, timeline_and_summary
from minivllm.trace.timeline import Timeline
from minivllm.uncollected import without_collections
from viz import long_runs, samples
from viz.folders import check_may_open, upload_folder
from viz.language import _
from viz.offered import offered
from viz.state import note_recent

ENVIRONMENT = "MINIVLLM_TRACE"
MOST_NEIGHBOURS = 50
OF_ONE_TRACE = ("kernel", "follow", "matrix", "search", "output", "device")
"""What is chosen on pages and kept in the link (`links.py`), and means nothing in another trace."""


class Run(NamedTuple):
    """A trace that can be shown."""

    path: Path
    fingerprint: str
    """Names this file with this content, for caches and for the browser's memory of the step."""
    timeline: Timeline
    summary: RunSummary
    part: tuple[int, int, int] = (0, 0, 0)
    """When the file was changed, its size, and the step of it at which this begins (`long_runs.py`)."""


class KernelRun(NamedTuple):
    """A file with traces of kernels: those of one computation, in their order."""

    path: Path
    fingerprint: str
    traces: list[KernelTrace]
    is_whole: bool
    """Was the file written to its end?"""


class StoryRun(NamedTuple):
    """A failing story of a lesson."""

    path: Path
    fingerprint: str
    story: StoryTrace


class PrecisionRun(NamedTuple):
    """A comparison of precisions."""

    path: Path
    fingerprint: str
    trace: PrecisionTrace


AnyRun = Run | KernelRun | StoryRun | PrecisionRun


def open_run(path: Path) -> Run:
    """Read a trace of the engine, or take it from the cache if the file has not changed.

    Raises:
        TraceError: it cannot be shown, and why.
    """
    modified, size = _looked_at(path)
    if is_kernel_trace(path):
        raise TraceError(f"{words(path)} is a trace of a kernel; here one of the engine is needed")
    if is_story(path):
        raise TraceError(f"{words(path)} is a story of a lesson; here a trace of the engine is needed")
    if is_precision(path):
        raise TraceError(f"{words(path)} is a comparison of precisions; here a trace of the engine is needed")
    return _open_cached(path, modified, size, long_runs.chosen_first(size))


def open_kernel_run(path: Path) -> KernelRun:
    """The same for a file with traces of kernels.

    Raises:
        TraceError: it cannot be shown, and why.
    """
    modified, size = _looked_at(path)
    if not is_kernel_trace(path):
        raise TraceError(
            f"{words(path)} is not a trace of a kernel: `minivllm microscope … --trace …` makes one"
        )
    return _open_kernels_cached(path, modified, size)


def open_story(path: Path) -> StoryRun:
    """The same for a failing story of a lesson.

    Raises:
        TraceError: it cannot be shown, and why.
    """
    modified, size = _looked_at(path)
    return _open_story_cached(path, modified, size)


def open_precision(path: Path) -> PrecisionRun:
    """The same for a comparison of precisions.

    Raises:
        TraceError: it cannot be shown, and why.
    """
    modified, size = _looked_at(path)
    return _open_precision_cached(path, modified, size)


def open_any(path: Path) -> AnyRun:
    """Whichever of them it is.

    Raises:
        TraceError: it cannot be shown, and why.
    """
    samples.restore(path)
    check_may_open(path)
    if is_story(path):
        return open_story(path)
    if is_precision(path):
        return open_precision(path)
    return open_kernel_run(path) if is_kernel_trace(path) else open_run(path)


def warnings_of(run: AnyRun) -> list[str]:
    """What a reader of these pictures should know: what was lost, mostly."""
    if isinstance(run, Run):
        return run.timeline.trace.warnings
    if isinstance(run, StoryRun):
        return [] if run.story.is_whole else [_("The story was cut off: its last steps are missing.")]
    if isinstance(run, PrecisionRun):
        return [] if run.trace.is_whole else [_("The trace was cut off: the last grids are missing.")]
    return (
        []
        if run.is_whole
        else [_("The trace was cut off: the last requests, and what is wrong with the kernel, are missing.")]
    )


def _looked_at(path: Path) -> tuple[int, int]:
    """When the file was changed, and its size; first of all, that it may be opened."""
    check_may_open(path)
    return check_is_file(path)


@st.cache_resource(max_entries=4, show_spinner=False)
def _open_cached(path: Path, modified: int, size: int, first: int) -> Run:
    is_long = long_runs.is_long(size)
    with without_collections():
        trace = long_runs.stretch(path, modified, size, first) if is_long else read_trace(path)
        if not trace.num_steps:
            raise TraceError(f"{words(path)} has no steps yet: a header, and nothing that happened after it")
        timeline, summary = timeline_and_summary(trace)
    if not timeline.spans:
        raise TraceError(f"{words(path)} holds no request that was accepted, so there is nothing to draw")
    mark = _fingerprint(path, modified, size) + (f"-{first}" if first else "")
    return Run(path, mark, timeline, summary, (modified, size, first))


@st.cache_resource(max_entries=4, show_spinner=False)
def _open_kernels_cached(path: Path, modified: int, size: int) -> KernelRun:
    traces = read_kernel_traces(path)
    shown = [trace for trace in traces if any(isinstance(event, WarpAccess) for event in trace.events)]
    if not shown:
        raise TraceError(f"{words(path)} holds no kernel that accessed memory, so there is nothing to draw")
    is_whole = all(trace.is_whole for trace in traces)
    return KernelRun(path, _fingerprint(path, modified, size), shown, is_whole)


@st.cache_resource(max_entries=4, show_spinner=False)
def _open_story_cached(path: Path, modified: int, size: int) -> StoryRun:
    return StoryRun(path, _fingerprint(path, modified, size), read_story(path))


@st.cache_resource(max_entries=4, show_spinner=False)
def _open_precision_cached(path: Path, modified: int, size: int) -> PrecisionRun:
    trace = read_precision(path)
    if not trace.variants and not any(found.grids for found in trace.matrices):
        raise TraceError(f"{words(path)} holds no precision and no matrix, so there is nothing to draw")
    return PrecisionRun(path, _fingerprint(path, modified, size), trace)


def _fingerprint(path: Path, modified: int, size: int) -> str:
    key = f"{path.resolve()}:{modified}:{size}"
    return sha256(key.encode()).hexdigest()[:16]


def chosen_path() -> Path | None:
    """The path that this session looks at, if it has one yet."""
    if "trace" not in st.session_state:
        given = st.query_params.get("trace") or os.environ.get(ENVIRONMENT)
        st.session_state.trace = given or None
    return Path(st.session_state.trace) if st.session_state.trace else None


def note(path: Path) -> None:
    """It was opened: once a session, it moves to the front of the recent ones; no upload, and no sample."""
    if st.session_state.get("noted") != str(path):
        st.session_state["noted"] = str(path)
        if not path.resolve().is_relative_to(upload_folder()) and not samples.is_sample(path):
            note_recent(path)


def choose(path: Path) -> None:
    """Look at another trace, from its first step on."""
    if st.session_state.get("trace") != str(path):
        st.session_state.trace = str(path)
        for name in ("request", "first shown", *(f"kept {name}" for name in OF_ONE_TRACE)):
            st.session_state.pop(name, None)
        st.query_params.clear()


def chosen_other() -> Path | None:
    """The second trace, to be compared with the first, if there is one yet."""
    if "other" not in st.session_state:
        st.session_state.other = st.query_params.get("with") or None
    return Path(st.session_state.other) if st.session_state.other else None


def choose_other(path: Path | None) -> None:
    """Compare with this trace, or with none."""
    st.session_state.other = str(path) if path else None
    st.query_params.pop("with", None)


def neighbours(path: Path, *, kernels: bool = False) -> list[Path]:
    """Other traces of the same kind in the same folder, the newest first."""
    try:
        files = [file for file in path.parent.glob("*.jsonl") if file.is_file() and not file.samefile(path)]
        files.sort(key=lambda file: -file.stat().st_mtime_ns)
    except OSError:
        return []
    is_one = is_kernel_trace if kernels else _is_trace
    return [file for file in files[:MOST_NEIGHBOURS] if is_one(file)]


def _is_trace(path: Path) -> bool:
    """By its first characters: the page lists files that it has not read."""
    return begins_as(path, "TraceHeader")


def chooser(take: Callable[[Path], None] = choose, key: str = "open") -> None:
    """Samples, recent traces, a path, or a file to upload; `take` is told what was chosen."""
    offered(take, choose_other if take is choose else None, key)
    with st.form(key, border=False):
        typed = st.text_input(_("Path of a trace"), placeholder="minivllm-out/trace.jsonl")
        submitted = st.form_submit_button(_("Open"))
    if submitted and typed.strip():
        take(Path(os.path.expanduser(typed.strip())))
        st.rerun()
    uploaded = st.file_uploader(
        _("Or upload one"),
        help=_("The .jsonl file that a run with `trace=…` has written."),
        key=f"{key}-file",
    )
    if uploaded and uploaded.file_id != st.session_state.get(f"{key}-uploaded"):
        st.session_state[f"{key}-uploaded"] = uploaded.file_id
        take(_keep(uploaded.name, uploaded.getvalue()))
        st.rerun()


def _keep(name: str, content: bytes) -> Path:
    """An upload becomes a file in a folder of its own, under its own name, which messages can then quote."""
    path = Path(tempfile.mkdtemp(dir=upload_folder())) / Path(name).name
    path.write_bytes(content)
    return path
