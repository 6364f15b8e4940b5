"""The page "Your bug" in a real browser: where it opens, stepping, the strip, a phone, both themes."""

import re
from urllib.parse import quote

import pytest

from minivllm.trace.story_events import write_story
from tests import profiles
from tests.viz.narrow import fits
from tests.viz.story_factory import paging
from tests.viz.test_browser import drawn, expect, wanted
from viz.figures.story import story_scenes

PHONE = {"width": 375, "height": 800}


@pytest.fixture(scope="module")
def story_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("story") / "04_paging.story.jsonl"
    write_story(path, paging())
    return path


def at_step(player, step):
    expect(player.locator(".count")).to_have_text(re.compile(rf"^step {step + 1} of "))


@pytest.mark.parametrize("scheme", profiles.by_day(["dark"], ["light", "dark"]))
def test_your_bug_in_a_browser(browser, server, story_file, scheme):
    scenes = story_scenes(paging())
    context = browser.new_context(viewport={"width": 1200, "height": 900}, color_scheme=scheme)
    page = context.new_page()
    errors = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    # Streamlit asks for health and host settings of the place that serves it; not every place has them.
    page.on("console", lambda m: errors.append(m.text) if m.type == "error" and "404" not in m.text else None)
    page.goto(f"{server}/story?trace={quote(str(story_file))}")
    player = page.locator(".player")

    # It opens where the lanes part, without a step in the link, and puts it there.
    at_step(player, 1)
    expect(player.locator(".caption")).to_have_text(scenes[0].captions[1])
    page.wait_for_url(re.compile(r"step=1"))

    # Stepping: what is drawn is what the scene says; the link follows.
    for key, step in (("ArrowLeft", 0), ("End", 2), ("ArrowLeft", 1), ("ArrowRight", 2)):
        page.keyboard.press(key)
        at_step(player, step)
        for number, scene in enumerate(scenes):
            shown = [(s["fill"], s["stroke"], s["text"], s["d"]) for s in drawn(player, number)]
            assert shown == wanted(scene, step), scene.title
    page.wait_for_url(re.compile(r"step=2"))
    player.get_by_role("button", name="where they part").click()
    at_step(player, 1)

    # A click on the strip goes to that step.
    strip = player.locator("svg.steps").first
    box, axis = strip.bounding_box(), scenes[1].axis
    scale = box["width"] / scenes[1].width
    strip.click(position={"x": (axis.left + 0.5 * axis.step_width) * scale, "y": 40 * scale})
    at_step(player, 0)

    # What is written stands out from what is behind it.
    inks = player.evaluate("""player => [...player.querySelectorAll(".caption, svg > text")]
      .filter(e => e.textContent && e.getClientRects().length)
      .map(e => getComputedStyle(e)[e instanceof SVGElement ? "fill" : "color"])""")
    assert len(inks) > 15
    for ink in set(inks):
        red, green, blue = map(int, re.findall(r"\d+", ink)[:3])
        assert (red + green + blue > 330) == (scheme == "dark"), ink

    # On a phone nothing is wider than the screen.
    page.set_viewport_size(PHONE)
    fits(page, PHONE["width"])
    for step in (0, 2):
        page.keyboard.press("Home" if step == 0 else "End")
        at_step(player, step)
        boxes = player.evaluate("""player => [...player.querySelectorAll(
          "button, input, .caption, svg, svg > text")]
          .map(e => e.getBoundingClientRect()).filter(b => b.width).map(b => [b.left, b.right])""")
        assert len(boxes) > 15 and all(left >= 0 and right <= PHONE["width"] for left, right in boxes)
    context.close()
    assert not errors
