"""How long does a step take? `python -m viz.bench_player [TRACE] [--steps N]`.

A real Chromium opens the KV pool, the largest picture, as a self-contained page; keys are pressed, and the
time from each key press until the page is updated, and until the browser has painted it, is taken. The first
number is the work alone, the second includes waiting for the frame, which comes every 16.7 ms at 60 Hz.

Without a trace, one of 20,000 events is invented by the tests' trace factory (in a checkout only).
"""

from __future__ import annotations

import argparse
import importlib.util
import random
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from minivllm.scratch import ScratchFolder
from minivllm.trace.reader import Trace, TraceError, read_trace
from minivllm.trace.summary import percentiles
from minivllm.trace.timeline import make_timeline
from viz import figures
from viz.backends.html import save_html

FACTORY = Path(__file__).resolve().parent.parent / "tests" / "viz" / "trace_factory.py"
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update")

# Time from the event's own time stamp (taken by the browser when the key went down) to the end of the work,
# and until the next frame is painted.
MEASURE = """
() => {
  window.work = []; window.frame = [];
  window.addEventListener("keydown", (event) => { window.began = event.timeStamp; }, true);
  document.addEventListener("keydown", () => {
    const began = window.began;
    window.work.push(performance.now() - began);
    // A message that is sent before a frame arrives when it has been painted.
    requestAnimationFrame(() => {
      const { port1, port2 } = new MessageChannel();
      port1.onmessage = () => window.frame.push(performance.now() - began);
      port2.postMessage(0);
    });
  });
}
"""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m viz.bench_player", description=__doc__.split("\n")[0])
    parser.add_argument("trace", nargs="?", type=Path)
    parser.add_argument("--steps", type=int, default=300, help="key presses of each kind (default: 300)")
    given = parser.parse_args(arguments)
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        print(f"No browser to measure with: none of {', '.join(BROWSERS)} is installed.", file=sys.stderr)
        return 2
    try:
        trace = read_trace(given.trace) if given.trace else invented_trace()
    except TraceError as error:
        print(error, file=sys.stderr)
        return 2
    with ScratchFolder("player") as folder:
        page = folder / "page.html"
        began = time.perf_counter()
        timeline = make_timeline(trace)
        request = next(iter(timeline.spans))
        scenes = figures.kv_pictures(timeline, request)
        save_html(page, "KV pool", scenes, requests=figures.request_cards(timeline))
        seconds = time.perf_counter() - began
        print(
            f"{len(trace.events):,} events, {trace.num_steps:,} steps, {trace.header.num_blocks:,} blocks: "
            f"scenes made in {seconds:.2f} s, page of {page.stat().st_size / 1e6:.1f} MB"
        )
        measure(browser, page, given.steps)
    return 0


def invented_trace() -> Trace:
    spec = importlib.util.spec_from_file_location("trace_factory", FACTORY)
    if spec is None or spec.loader is None or not FACTORY.exists():
        raise TraceError("name a trace to measure with: the tests that could invent one are not installed")
    factory = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = factory
    spec.loader.exec_module(factory)
    trace: Trace = factory.long_trace()
    return trace


def measure(browser: str, page_file: Path, count: int) -> None:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=browser, args=list(FLAGS))
        page = chromium.new_page(viewport={"width": 1400, "height": 900})
        began = time.perf_counter()
        page.goto(page_file.as_uri())
        page.wait_for_selector(".player .count:not(:empty)")
        print(f"page open after {time.perf_counter() - began:.2f} s")
        page.evaluate(MEASURE)
        for name, keys in key_presses(count).items():
            report(page, name, keys)
        report_seeks(page, count)
        chromium.close()


def key_presses(count: int) -> dict[str, list[str]]:
    return {
        "one step forward": ["ArrowRight"] * count,
        "one step back": ["ArrowLeft"] * (count // 2),
        "ten steps forward": ["Shift+ArrowRight"] * (count // 4),
        "ten steps back": ["Shift+ArrowLeft"] * (count // 4),
        "end and home": ["End", "Home"] * (count // 10),
    }


def report(page: Any, name: str, keys: list[str]) -> None:
    page.evaluate("() => { window.work = []; window.frame = []; }")
    for key in keys:
        page.keyboard.press(key)
        page.wait_for_timeout(5)
    page.wait_for_timeout(100)
    print_times(name, page.evaluate("() => window.work"), page.evaluate("() => window.frame"))


def report_seeks(page: Any, count: int) -> None:
    """The slider, thrown to random places."""
    dice = random.Random(0)
    places = [dice.random() for _ in range(count // 3)]
    script = """(places) => { const slider = document.querySelector(".player input");
      return places.map((place) => { slider.value = Math.floor(place * slider.max);
        const began = performance.now(); slider.oninput(); return performance.now() - began; }); }"""
    print_times("slider to anywhere", page.evaluate(script, places), [])


def print_times(name: str, work: list[float], frame: list[float]) -> None:
    shown = []
    for words, times in (("updated", work), ("painted", frame)):
        if times:
            spread = percentiles(times)
            shown.append(f"{words}: p50 {spread.p50:5.1f} ms, p95 {spread.p95:5.1f} ms")
    print(f"{name:<20} {'   '.join(shown)}")


if __name__ == "__main__":
    sys.exit(main())
