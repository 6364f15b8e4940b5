"""The README's pictures: `python -m viz.readme_pictures [NAME …]`, from the samples, by a real browser.

    sample ──► the dashboard, in a process of its own ──► Chromium, at the page and step ──► docs/NAME.png

Pictures that were taken by hand show what pages looked like once. Needs Chromium, and playwright of the
`test` extra.

Read next: `samples/__init__.py`.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from shutil import which
from typing import Any

from minivllm.processes import ROOT, child_command, end_in_order, python_variables
from viz.samples import folder_of_unpacked, unpacked

DOCS = ROOT / "docs"
ADDRESS = re.compile(r"http://[^/\s]+")
LOAD_MILLISECONDS = 120_000


@dataclass(frozen=True)
class Shot:
    """A page as a reader would meet it."""

    page: str
    """Its name in links."""
    samples: tuple[str, ...]
    step: int | None = None
    """None: where the page opens."""
    jump: str = ""
    """A button of the player that is pressed first."""
    request: str = ""
    """The one that is selected."""
    size: tuple[int, int] = (1280, 900)


SHOTS = {
    "kv-pool": Shot("kv_pool", ("paging",), jump="first preemption", request="8", size=(1120, 730)),
    "beam-tree": Shot("beam_tree", ("sharing",), size=(1280, 1000)),
    "prefix-tree": Shot("prefix_tree", ("sharing",), step=150, size=(1280, 1000)),
    "compare": Shot("compare", ("static", "continuous"), size=(1280, 1250), step=60),
    "microscope": Shot("microscope", ("paged-attention",), jump="first keys", size=(1280, 1150)),
    "flash-attention": Shot(
        "flash_attention", ("flash-attention-2",), jump="most rescales", size=(1280, 1400)
    ),
    "your-bug": Shot("story", ("story",), size=(1280, 1400)),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("names", nargs="*", help=f"of {', '.join(SHOTS)}; all if left out")
    names = parser.parse_args().names or list(SHOTS)
    for name in names:
        if name not in SHOTS:
            parser.error(f"name must be one of {', '.join(SHOTS)}; got {name!r}")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=which("chromium"), args=["--no-sandbox"])
        for name in names:
            shot = SHOTS[name]
            page = browser.new_page(viewport={"width": shot.size[0], "height": shot.size[1]})
            take(page, shot, DOCS / f"{name}.png")
            page.close()
            print(f"docs/{name}.png")
        browser.close()


def take(page: Any, shot: Shot, path: Path) -> None:
    """One picture, of a dashboard that is there for it alone."""
    files, samples = [str(unpacked(name)) for name in shot.samples], str(folder_of_unpacked())
    process = subprocess.Popen(
        child_command("-m", "viz.serve", files[0], "--no-browser", "--port", "0", "--folder", samples),
        env=python_variables(PYTHONUNBUFFERED="1"), stdout=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        found = ADDRESS.search(process.stdout.readline().decode())
        if found is None:
            sys.exit("error: the dashboard did not start")
        link = f"{found[0]}/{shot.page}?trace={files[0]}" + (f"&with={files[1]}" if len(files) > 1 else "")
        link += f"&step={shot.step}" if shot.step is not None else ""
        link += f"&request={shot.request}" if shot.request else ""
        page.goto(link, timeout=LOAD_MILLISECONDS)
        page.locator(".player .caption").first.wait_for(timeout=LOAD_MILLISECONDS)
        if shot.jump:
            page.get_by_role("button", name=shot.jump, exact=True).click()
        page.wait_for_timeout(1_500)  # what fades has faded
        page.screenshot(path=path)
    finally:
        end_in_order(process)


if __name__ == "__main__":
    main()
