"""How fast is the dashboard? `python -m viz.bench_dashboard [TRACE] [--presses N]`: about two minutes.

What a reader waits for is timed, in a real Chromium and a dashboard that was just started:

    up               from the command until it says where it is
    first picture    from the link to a trace's KV pool until that is drawn
    keys             from a key press until it is painted (`bench_player.py`)
    next page        from a click on "Scheduler" until that page's pictures are drawn
    first run        from a click on "Run" until the run is shown by the page "Overview"

for the sample "paging", which is what the demo records, and for a trace of 31,000 events, 987 blocks and 400
requests, which the tests' trace factory invents (in a checkout only), or for TRACE. Beside each stand the
seconds that processors have worked for it: those of the dashboard and of the programs that it has started.

Read next: `stage.py`, which puts pictures on pages; `views/run.py`.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psutil

from minivllm.processes import child_command, end_in_order, python_variables
from minivllm.scratch import ScratchFolder
from minivllm.trace.reader import Trace, TraceError, read_trace
from viz import state
from viz.bench_player import FLAGS, SHOWN, about, find_browser, press_keys, trace_factory
from viz.samples import unpacked

ADDRESS = re.compile(r"http://[^/\s]+")
PATIENCE_MS = 300_000
# Shown is what has been painted: after two frames.
PAINTED = "() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m viz.bench_dashboard", description=__doc__.split("\n")[0])
    parser.add_argument("trace", nargs="?", type=Path, help="instead of one that is invented")
    parser.add_argument("--presses", type=int, default=60, help="of a key, of each kind (default: 60)")
    given = parser.parse_args(arguments)
    browser = find_browser()
    if browser is None:
        return 2
    with ScratchFolder("dashboard") as folder:
        os.environ[state.ENVIRONMENT] = str(folder)  # nothing that is measured is remembered
        try:
            large = given.trace or invented(folder / "large.jsonl")
            print(f"large: {about(read_trace(large))}")
        except TraceError as error:
            print(error, file=sys.stderr)
            return 2
        measure(browser, {"demo": unpacked("paging"), "large": large}, given.presses)
    return 0


def invented(path: Path) -> Path:
    factory = trace_factory()
    trace: Trace = factory.wide_trace()
    factory.write(trace, path)
    return path


def measure(browser: str, traces: dict[str, Path], presses: int) -> None:
    from playwright.sync_api import sync_playwright

    folders = [argument for trace in traces.values() for argument in ("--folder", str(trace.parent))]
    began = time.perf_counter()
    with dashboard(*folders) as (address, process), sync_playwright() as playwright:
        print(f"{'up':<22} {time.perf_counter() - began:6.2f} s   processors {worked(process):6.2f} s")
        chromium = playwright.chromium.launch(executable_path=browser, args=list(FLAGS))
        page = chromium.new_page(viewport={"width": 1400, "height": 900})
        page.set_default_timeout(PATIENCE_MS)
        for name, trace in traces.items():
            link = f"{address}/kv_pool?trace={quote(str(trace))}"
            with timed(f"{name}: first picture", process):
                page.goto(link)
                drawn(page, "KV pool")
            press_keys(page, presses)
            with timed(f"{name}: next page", process):
                page.get_by_role("link", name="Scheduler", exact=True).click()
                drawn(page, "Scheduler")
        page.goto(f"{address}/run")
        run = page.get_by_role("button", name="Run", exact=True)
        run.wait_for()
        with timed("first run", process):
            run.click()
            drawn(page, "Overview")
        chromium.close()


def drawn(page: Any, title: str) -> None:
    """Wait until the page of this title shows its pictures."""
    page.get_by_role("heading", name=title, exact=True).wait_for()
    page.wait_for_selector(SHOWN)
    page.evaluate(PAINTED)


@contextmanager
def dashboard(*arguments: str) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """A dashboard that has just been started: where it answers, and its process."""
    process = subprocess.Popen(
        child_command("-m", "viz.serve", "--port", "0", "--no-browser", *arguments),
        env=python_variables(), stdout=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        said = process.stdout.readline().decode()
        found = ADDRESS.search(said)
        if not found:
            raise SystemExit(f"The dashboard did not start: {said}")
        yield found.group(), process
    finally:
        end_in_order(process)


@contextmanager
def timed(what: str, process: subprocess.Popen[bytes]) -> Iterator[None]:
    began, before = time.perf_counter(), worked(process)
    yield
    seconds = time.perf_counter() - began
    print(f"{what:<22} {seconds:6.2f} s   processors {worked(process) - before:6.2f} s", flush=True)


def worked(process: subprocess.Popen[bytes]) -> float:
    """Processor seconds of a process and its children that have ended."""
    times = psutil.Process(process.pid).cpu_times()
    return float(times.user + times.system + times.children_user + times.children_system)


if __name__ == "__main__":
    sys.exit(main())
