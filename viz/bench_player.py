"""How long does a step take? `python -m viz.bench_player [TRACE] [--steps N]`.

A real Chromium opens the KV pool, the largest picture, as a self-contained page; keys are pressed. Told are

    updated      from the key press until the page has been changed
    painted      until the browser has painted it: with the wait for a frame, which comes every 16.7 ms
    processor    what the page's thread computed for it, as the processor counts: a busy machine adds nothing

Without a trace, one of 20,000 events is invented by the tests' trace factory (in a checkout only).

Read next: `bench_dashboard.py`, which does the same where a reader does.
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
from types import ModuleType
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
SHOWN = ".player .count:not(:empty)"
"""A player that has drawn its pictures."""
COUNTED = ("ScriptDuration", "RecalcStyleDuration", "LayoutDuration", "TaskDuration")
MOST_PAUSE_MS = 34.0
"""Between two keys, so that they come at any moment between two frames."""

# Time from the event's own time stamp (taken by the browser when the key went down) to the end of the work,
# and until the next frame is painted.
MEASURE = """
() => {
  window.addEventListener("keydown", (event) => { window.began = event.timeStamp; }, true);
  document.addEventListener("keydown", () => {
    const began = window.began;
    const updated = performance.now() - began;
    window.painted = new Promise((resolve) => requestAnimationFrame(() => {
      // A message that is sent before a frame arrives when it has been painted.
      const { port1, port2 } = new MessageChannel();
      port1.onmessage = () => resolve([updated, performance.now() - began]);
      port2.postMessage(0);
    }));
  });
}
"""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m viz.bench_player", description=__doc__.split("\n")[0])
    parser.add_argument("trace", nargs="?", type=Path)
    parser.add_argument("--steps", type=int, default=200, help="key presses of each kind (default: 200)")
    given = parser.parse_args(arguments)
    browser = find_browser()
    if browser is None:
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
        print(f"{about(trace)}: scenes made in {seconds:.2f} s, page of {page.stat().st_size / 1e6:.1f} MB")
        measure(browser, page, given.steps)
    return 0


def find_browser() -> str | None:
    """The program; if there is none, that is said."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        print(f"No browser to measure with: none of {', '.join(BROWSERS)} is installed.", file=sys.stderr)
    return browser


def about(trace: Trace) -> str:
    return f"{len(trace.events):,} events, {trace.num_steps:,} steps, {trace.header.num_blocks:,} blocks"


def invented_trace() -> Trace:
    trace: Trace = trace_factory().long_trace()
    return trace


def trace_factory() -> ModuleType:
    """The tests' own. Raises `TraceError` where there are no tests."""
    spec = importlib.util.spec_from_file_location("trace_factory", FACTORY)
    if spec is None or spec.loader is None or not FACTORY.exists():
        raise TraceError("name a trace to measure with: the tests that could invent one are not installed")
    factory = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = factory
    spec.loader.exec_module(factory)
    return factory


def measure(browser: str, page_file: Path, count: int) -> None:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=browser, args=list(FLAGS))
        page = chromium.new_page(viewport={"width": 1400, "height": 900})
        began = time.perf_counter()
        page.goto(page_file.as_uri())
        page.wait_for_selector(SHOWN)
        print(f"page open after {time.perf_counter() - began:.2f} s")
        press_keys(page, count)
        report_seeks(page, count)
        chromium.close()


# ── keys, on any page with a player ───────────────────────────────────────────────────────────────────────


def press_keys(page: Any, count: int) -> None:
    """Press keys of each kind, and print what they took."""
    session = page.context.new_cdp_session(page)
    session.send("Performance.enable", {"timeDomain": "threadTicks"})
    page.evaluate(MEASURE)
    painted: list[float] = []
    for name, keys in key_presses(count).items():
        painted += report(page, session, name, keys)
    print(f"{'all keys':<20} painted {spread(painted)}", flush=True)


def key_presses(count: int) -> dict[str, list[str]]:
    return {
        "one step forward": ["ArrowRight"] * count,
        "one step back": ["ArrowLeft"] * (count // 2),
        "ten steps forward": ["Shift+ArrowRight"] * (count // 4),
        "ten steps back": ["Shift+ArrowLeft"] * (count // 4),
        "end and home": ["End", "Home"] * (count // 10),
    }


def report(page: Any, session: Any, name: str, keys: list[str]) -> Sequence[float]:
    """Press them, and print what they took; returns when each was painted, in milliseconds."""
    dice = random.Random(0)
    times, costs = [], []
    before = processor_seconds(session)
    for key in keys:
        page.wait_for_timeout(dice.uniform(0, MOST_PAUSE_MS))
        page.keyboard.press(key)
        times.append(page.evaluate("() => window.painted"))
        now = processor_seconds(session)
        costs.append([1000 * (now[part] - before[part]) for part in COUNTED])
        before = now
    script, style, layout, all_tasks = zip(*costs, strict=True)
    updated, painted = zip(*times, strict=True)
    parts = zip(("script", "style", "layout"), (script, style, layout), strict=True)
    mean = ", ".join(f"{part} {sum(found) / len(found):.1f}" for part, found in parts)
    shown = {"updated": updated, "painted": painted, "processor": all_tasks}
    print(f"{name:<20} {'   '.join(f'{part} {spread(found)}' for part, found in shown.items())} ({mean})")
    return painted


def processor_seconds(session: Any) -> dict[str, float]:
    """What the page's thread has computed so far."""
    found = session.send("Performance.getMetrics")["metrics"]
    return {metric["name"]: metric["value"] for metric in found if metric["name"] in COUNTED}


def report_seeks(page: Any, count: int) -> None:
    """The slider, thrown to random places."""
    dice = random.Random(0)
    places = [dice.random() for _ in range(count // 3)]
    script = """(places) => { const slider = document.querySelector(".player input");
      return places.map((place) => { slider.value = Math.floor(place * slider.max);
        const began = performance.now(); slider.oninput(); return performance.now() - began; }); }"""
    print(f"{'slider to anywhere':<20} updated {spread(page.evaluate(script, places))}")


def spread(times: Sequence[float]) -> str:
    """In milliseconds."""
    found = percentiles(list(times))
    return f"p50 {found.p50:5.1f} p95 {found.p95:5.1f}"


if __name__ == "__main__":
    sys.exit(main())
