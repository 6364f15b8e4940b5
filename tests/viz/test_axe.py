"""axe-core finds nothing to complain about, on any page, in either theme, with something to show on each.

`axe.min.js` is axe-core 4.12.1 by Deque Systems, unchanged, under the Mozilla Public License 2.0: it is used
by this test alone, and no part of what is installed. One visit for each page: the theme is changed under it.
By day every second page is looked at, in one theme. A link leads to the first page of what is shown, clicks
to the others: to load a page costs three times as much.
"""

import re
from itertools import groupby
from pathlib import Path
from urllib.parse import urlencode

import pytest

from tests import profiles
from viz.app import PAGES
from viz.samples import unpacked

expect = pytest.importorskip("playwright.sync_api", reason="playwright is not installed").expect

AXE = Path(__file__).with_name("axe.min.js")
SHOWN = {
    "overview": ("sharing",),
    "kv_pool": ("sharing",),
    "scheduler": ("paging",),
    "beam_tree": ("sharing",),
    "prefix_tree": ("sharing",),
    "structured_output": ("structured",),
    "speculation": ("speculation",),
    "ranks": ("pipeline-parallel",),
    "roofline": ("paging",),
    "metrics": ("paging",),
    "compare": ("static", "continuous"),
    "microscope": ("paged-attention",),
    "flash_attention": ("flash-attention-2",),
    "precision": ("precision",),
    "story": ("story",),
}
"""Page → the samples that it shows; the other pages need none."""
DONE = """() => new Promise((resolve) => {
  // The player has a document of its own, in which it counts steps once it plays.
  const isPlaying = ({ shadowRoot }) =>
    shadowRoot?.childElementCount && shadowRoot.querySelector(".count")?.textContent !== "";
  const isDone = () => document.querySelector("[data-testid=stMainBlockContainer] h1") &&
    document.querySelector("[data-test-script-state=notRunning][data-test-connection-state=CONNECTED]") &&
    !document.querySelector("[data-testid=stSpinner], [data-stale=true]") &&
    [...document.querySelectorAll("[data-testid=stBidiComponentIsolated]")].every(isPlaying);
  let timer = 0;
  const wait = () => {
    clearTimeout(timer);
    timer = setTimeout(() => { if (isDone()) resolve(true); else wait(); }, 400);
  };
  new MutationObserver(wait).observe(document, { subtree: true, childList: true, attributes: true });
  wait();
})"""
"""The page has come, and nothing in it has changed for a while: a theme or a link may make it run again."""
RUN = """(rules) => axe.run(
  { exclude: ["[data-testid=stFileUploaderDropzone]"] }, { resultTypes: ["violations"], ...rules }
).then((found) => found.violations.flatMap(({ id, nodes }) => nodes.map(({ target, html, failureSummary }) =>
  `${id}: ${target.join(" ")} ${html.slice(0, 160)} ${failureSummary}`)))"""
"""Streamlit's own upload area has a role that it should not have; what we cannot mend we leave out."""
CONTRAST = {"runOnly": ["color-contrast"]}
"""All that a theme can change."""


def shown_on(page):
    return SHOWN.get(page.URL, ())


def walks():
    """The pages, those together that show the same."""
    together = [list(pages) for _, pages in groupby(sorted(PAGES, key=shown_on), key=shown_on)]
    return [profiles.by_day(pages[::2], pages) for pages in together]


def address(page):
    """A link to a page that has something to show."""
    paths = [str(unpacked(name)) for name in shown_on(page)]
    found = dict(zip(("trace", "with"), paths, strict=False)) | ({"step": "30"} if paths else {})
    return f"{place(page)}?{urlencode(found)}"


def place(page):
    return "" if page.URL == "overview" else page.URL


def wait_for(window, page):
    """Until it is there."""
    expect(window).to_have_title(f"{page.TITLE} · minivllm")
    if page.URL in SHOWN:  # what has not come yet is not waited for
        window.locator(".player .count").filter(has_text=re.compile(r"\d")).wait_for()
    window.wait_for_function(DONE)


def wear(window, theme):
    window.emulate_media(color_scheme=theme)
    window.wait_for_function(
        "theme => getComputedStyle(document.querySelector('.stApp')).colorScheme === theme", arg=theme
    )
    window.wait_for_function(DONE)


def test_axe_finds_nothing_on_any_page_in_either_theme(browser, server):
    # A colour that is still on its way to another one has no contrast worth measuring.
    context = browser.new_context(viewport={"width": 1280, "height": 800}, reduced_motion="reduce")
    window, found, console = context.new_page(), {}, []
    window.on("console", lambda said: console.append(said.text) if said.type == "error" else None)
    for number, pages in enumerate(walks()):
        theme, other = ("light", "dark") if number % 2 else ("dark", "light")
        window.emulate_media(color_scheme=theme)
        window.goto(f"{server}/{address(pages[0])}")
        window.evaluate(AXE.read_text())
        for page in pages:
            if page is not pages[0]:
                window.locator(f"[data-testid=stTopNavLink][href$='/{place(page)}']").first.click()
            wait_for(window, page)
            found[page.URL, theme] = window.evaluate(RUN, {})
            if not profiles.is_day():
                wear(window, other)
                found[page.URL, other] = window.evaluate(RUN, CONTRAST)
                wear(window, theme)
    context.close()
    assert profiles.is_day() or {url for url, _ in found} == {page.URL for page in PAGES}
    assert not console, "the browser has nothing to complain about"
    told = [f"{url}, {theme}: {words}" for (url, theme), all_words in found.items() for words in all_words]
    assert not told, "\n".join(told)


def test_who_asked_for_less_motion_gets_less(browser, server):
    context = browser.new_context(reduced_motion="reduce")
    window = context.new_page()
    window.goto(f"{server}/kv_pool?{urlencode({'trace': str(unpacked('sharing'))})}")
    window.wait_for_function(DONE)
    assert window.get_by_role("combobox", name="steps per second").input_value() == "2"
    moving = """() => {
      const spinner = document.body.appendChild(document.createElement("p"));
      spinner.style.animation = "turn 1s infinite"; // as those that turn while a page runs
      return [...document.querySelectorAll("*")].filter((element) => {
        const { transitionDuration, animationDuration, animationIterationCount } = getComputedStyle(element);
        return animationIterationCount === "infinite" ||
          [transitionDuration, animationDuration].some((time) => parseFloat(time) > 0.01);
      }).length;
    }"""
    assert window.evaluate(moving) == 0
    context.close()
