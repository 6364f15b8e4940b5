"""The pages about kernels in a real browser: stepping, a phone's width, both themes."""

import re
from urllib.parse import quote

import pytest

from minivllm.trace.kernel_events import write_kernel_traces
from tests import patience
from tests.viz.kernel_factory import flash, traces
from tests.viz.narrow import fits
from tests.viz.test_browser import drawn, expect, wanted
from viz.figures.kernel_tiles import pieces
from viz.kernel_steps import Follow, played
from viz.views.flash_attention import attention_scenes
from viz.views.microscope import microscope_scenes

PHONE = {"width": 390, "height": 800}


@pytest.fixture(scope="module")
def paged_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("kernel") / "paged.jsonl"
    write_kernel_traces(path, traces("paged-attention")[:1])
    return path


@pytest.fixture(scope="module")
def flash_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("kernel") / "flash.jsonl"
    write_kernel_traces(path, [flash("2", ((3, 40),), 1, True)])
    return path


def at_moment(player, step):
    """A request or a tile is a moment: its number is not that of an event in the trace."""
    expect(player.locator(".count")).to_have_text(re.compile(rf"^moment {step} of "))


def jump_to(player, step):
    player.get_by_role("slider").evaluate(
        "(slider, step) => { slider.value = step; slider.dispatchEvent(new Event('input')); }", step
    )
    at_moment(player, step)


def scenes_of(path):
    if path == "microscope":
        trace = traces("paged-attention")[0]
        return microscope_scenes(trace, played(trace, Follow()), Follow())
    trace = flash("2", ((3, 40),), 1, True)
    return attention_scenes(trace, pieces(trace))


@pytest.mark.parametrize("path", ["microscope", "flash_attention"])
def test_a_page_about_kernels_in_a_browser(browser, server, paged_file, flash_file, path):
    trace_file = paged_file if path == "microscope" else flash_file
    scenes = scenes_of(path)
    last = scenes[0].num_steps - 1
    context = browser.new_context(viewport={"width": 1200, "height": 900}, color_scheme="dark")
    page = context.new_page()
    errors = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    # Streamlit asks for health and host settings of the place that serves it; not every place has them.
    page.on("console", lambda m: errors.append(m.text) if m.type == "error" and "404" not in m.text else None)
    page.goto(f"{server}/{path}?trace={quote(str(trace_file))}")
    player = page.locator(".player")
    at_moment(player, 0)

    # Stepping: what is drawn, and what the caption says, is what the scene says.
    for key, step in (("ArrowRight", 1), ("ArrowRight", 2), ("ArrowLeft", 1), ("End", last)):
        page.keyboard.press(key)
        at_moment(player, min(step, last))
        expect(player.locator(".caption")).to_have_text(scenes[0].captions[min(step, last)])
    assert scenes[0].captions[0] != scenes[0].captions[1] != scenes[0].captions[last]
    for step in (last, last // 2, 0):
        jump_to(player, step)
        for number, scene in enumerate(scenes):
            shown = [(s["fill"], s["stroke"], s["text"], s["d"]) for s in drawn(player, number)]
            assert shown == wanted(scene, step), scene.title
        seen = player.locator(".stack > .frame").evaluate_all(
            "frames => frames.map((frame) => getComputedStyle(frame).visibility)"
        )
        assert seen == ["hidden" if scene.idle[step] else "visible" for scene in scenes if scene.idle]

    # In the dark, what is written is light, and stands out from what is behind it.
    inks = player.evaluate("""player => [...player.querySelectorAll(".caption, svg > text")]
      .filter(e => e.textContent && e.getClientRects().length)
      .map(e => getComputedStyle(e)[e instanceof SVGElement ? "fill" : "color"])""")
    assert len(inks) > 20
    for ink in set(inks):
        assert sum(map(int, re.findall(r"\d+", ink)[:3])) > 330, ink

    # On a phone nothing is wider than the screen.
    page.set_viewport_size(PHONE)
    fits(page, PHONE["width"])

    def all_on_the_screen():
        boxes = player.evaluate("""player => [...player.querySelectorAll(
          "button, input, .caption, svg, svg > text")]
          .map(e => e.getBoundingClientRect()).filter(b => b.width).map(b => [b.left, b.right])""")
        return len(boxes) > 20 and all(left >= 0 and right <= PHONE["width"] for left, right in boxes)

    patience.until(all_on_the_screen)
    context.close()
    assert not errors
