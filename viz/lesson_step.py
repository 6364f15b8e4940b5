"""The part "Step" of a lesson: its walkthrough is run here, and what it recorded is played here.

The walkthrough is a script; it runs as a process of its own, because it starts an engine and may take a
minute. Its traces are drawn by the same functions as on the dashboard's other pages.

Read next: `lesson_desk.py`.
"""

from __future__ import annotations

import subprocess
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import streamlit as st

from lessons.catalogue import Lesson, relative
from lessons.walkthroughs import trace_folder
from minivllm.processes import child_command, end_group, python_variables
from minivllm.trace.reader import TraceError
from viz import jobs, links, loading
from viz.about import about
from viz.jobs import Job
from viz.language import _
from viz.lesson_words import say
from viz.loading import KernelRun, Run
from viz.pages import ENGINE_PAGES, KERNEL_PAGES
from viz.plain import plain
from viz.views import compare

MOST_SECONDS = 600.0
MOST_LINES = 400


def show(lesson: Lesson) -> None:
    """The walkthrough: a button to run it, what it printed, and what it recorded."""
    if not lesson.walkthrough.is_file():
        st.info(say("no walkthrough"))
        return
    try:
        constants = lesson.constants()
    except (OSError, SyntaxError, ValueError) as error:
        st.error(_("{place} cannot be read: {error}").format(place=plain(_place(lesson)), error=plain(error)))
        return
    traces = [trace_folder() / Path(name).name for name in constants.get("TRACES", ())]
    _run_it(lesson, is_there=all(path.is_file() for path in traces))
    if traces and all(path.is_file() for path in traces):
        _draw(str(constants.get("PAGE", "")), traces)


def _place(lesson: Lesson) -> str:
    """The walkthrough's place in the repository, wherever that is."""
    return lesson.walkthrough.relative_to(lesson.folder.parent.parent).as_posix()


def printed_file(lesson: Lesson) -> Path:
    """Where the walkthrough's words are kept, beside its traces."""
    return trace_folder() / f"{lesson.name}.txt"


def _run_it(lesson: Lesson, is_there: bool) -> None:
    name = ("walkthrough", str(printed_file(lesson).resolve()))
    job = jobs.find(name)
    is_running = job is not None and job.is_running
    label = say("run it again" if is_there else "run it")
    kind: Any = "secondary" if is_there else "primary"
    with st.container(horizontal=True, vertical_alignment="center"):
        st.markdown(say("about step", file=_place(lesson)), width="stretch")
        is_asked = st.button(label, key=f"run-{lesson.name}", type=kind, disabled=is_running)
    if not is_there and not is_running:
        st.caption(say("not run"))
    if is_asked:
        jobs.start(name, lambda job: run_walkthrough(lesson, job))
        st.rerun()
    if job is not None and is_running:
        jobs.watch(job, _progress)
        return
    if job is not None and job.problem:
        st.error(plain(job.problem))
    with st.expander(say("questions")):
        st.code(lesson.walkthrough.read_text(encoding="utf-8"), language="python")
    if printed_file(lesson).is_file():
        with st.expander(say("printed"), expanded=bool(job and job.problem)):
            st.code(printed_file(lesson).read_text(encoding="utf-8", errors="replace"), language=None)


def _progress(job: Job) -> None:
    st.info(say("running", seconds=job.seconds))
    if job.told:
        st.code("\n".join(job.told[-8:]), language=None)


def run_walkthrough(lesson: Lesson, job: Job) -> None:
    """Run the script; tell its lines as they come, and keep them in a file.

    Raises:
        ValueError: it failed, took too long, or nothing can be written; the last thing it said.
    """
    lines: list[str] = []
    try:
        printed_file(lesson).parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile() as complaints:
            process = subprocess.Popen(
                child_command(str(lesson.walkthrough)),
                env=python_variables(PYTHONUNBUFFERED="1", PYTHONIOENCODING="utf-8"),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=complaints,
                encoding="utf-8",
                errors="replace",
                start_new_session=True,
            )
            code = _listen(process, lines, job)
            complaints.seek(0)
            said = complaints.read().decode("utf-8", "replace")
        printed_file(lesson).write_text("\n".join([*lines, *(said.splitlines() if code else [])]) + "\n")
    except OSError as error:
        raise ValueError(f"{relative(trace_folder())} cannot be written to: {error.strerror}") from error
    if code:
        last = next((line for line in reversed(said.splitlines()) if line.strip()), _("no word of why"))
        raise ValueError(f"{_place(lesson)} ended with exit code {code}: {last.strip()[:500]}")


def _listen(process: subprocess.Popen[str], lines: list[str], job: Job) -> int:
    assert process.stdout is not None
    timer = threading.Timer(MOST_SECONDS, end_group, (process.pid,))
    timer.start()
    try:
        for line in process.stdout:
            if len(lines) < MOST_LINES:
                lines.append(line.rstrip("\n"))
                job.tell(lines)
        return process.wait()
    finally:
        timer.cancel()


def _draw(page: str, traces: list[Path]) -> None:
    """What was recorded, as the page of that name shows it."""
    engine = {module.URL: module for module in ENGINE_PAGES}
    kernels = {module.URL: module for module in KERNEL_PAGES}
    try:
        if page == compare.URL and len(traces) > 1:
            first, second = (loading.open_run(path) for path in traces[:2])
            _heading(compare, first, second.path)
            about(f"{_(compare.INTRODUCTION)}\n\n{_(compare.what_to_try(first, second))}")
            compare.both(first, second)
        elif page in kernels:
            _page(kernels[page], loading.open_kernel_run(_one_of(traces)))
        elif page in engine:
            _page(engine[page], loading.open_run(_one_of(traces)))
        else:
            st.info(say("unknown page", file=relative(traces[0])))
    except TraceError as error:
        st.error(plain(error))


def _one_of(traces: list[Path]) -> Path:
    """The trace to draw; asked only if the walkthrough records several."""
    if len(traces) == 1:
        return traces[0]
    label = say("which run")
    chosen: Path = st.selectbox(label, traces, format_func=lambda path: path.stem, width=360)
    return chosen


def _page(module: Any, run: Run | KernelRun) -> None:
    _heading(module, run)
    draw: Callable[[Any], None] = module.page
    draw(run)


def _heading(module: Any, run: Run | KernelRun, other: Path | None = None) -> None:
    """Which run this is, and the way to its own page."""
    with st.container(horizontal=True, horizontal_alignment="distribute", vertical_alignment="center"):
        st.header(_(module.TITLE), width="content")
        if links.has_page(module.URL) and st.button(say("open page", page=_(module.TITLE))):
            if other is not None:
                loading.choose_other(other)
            links.go(module.URL, trace=run.path)
