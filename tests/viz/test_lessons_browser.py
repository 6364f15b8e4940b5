"""A newcomer in a real browser: by clicks alone from the first page to a lesson that is judged."""

import re
import sys

import pytest

from lessons.catalogue import lessons
from tests import profiles
from tests.viz.narrow import fits
from tests.viz.servers import answering
from tests.viz.test_axe import DONE
from tests.viz.test_browser import expect
from viz.views import start

PHONE = {"width": 375, "height": 800}
SERVE = """
from lessons import runner
from viz import serve

{stories}
serve.main()
"""
FEW_STORIES = "runner.SHARE, runner.new_seed = 0.1, lambda: 1"
"""But always the same ones, as those of `few_stories`."""


@pytest.fixture(scope="module")
def desk(tmp_path_factory):
    return tmp_path_factory.mktemp("desk")


@pytest.fixture(scope="module")
def own_server(desk, trace_file):
    """A dashboard whose learner works in a folder of the test, and whose judge tells few stories by day."""
    folders = {"MINIVLLM_WORK": str(desk / "work"), "MINIVLLM_LESSON_TRACES": str(desk / "traces")}
    script = SERVE.format(stories=FEW_STORIES if profiles.is_day() else "")
    command = [sys.executable, "-c", script, "--port", "0", "--no-browser", str(trace_file)]
    with answering(command, **folders) as address:
        yield address


@pytest.fixture
def window(browser):
    """A window; no script may have failed in it, and nothing may have been complained about."""
    context = browser.new_context(viewport={"width": 1440, "height": 900})
    page = context.new_page()
    errors = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    # Streamlit asks for health and host settings of the place that serves it; not every place has them.
    page.on("console", lambda m: errors.append(m.text) if m.type == "error" and "404" not in m.text else None)
    yield page
    context.close()
    assert not errors


def button(page, name):
    return page.get_by_role("button", name=name, exact=True)


def heading(page, name):
    expect(page.get_by_role("heading", name=name, exact=True)).to_be_visible()


def test_a_newcomer_comes_by_clicks_alone_to_a_lesson_that_is_judged(window, own_server, desk):
    lesson = start.first_lesson()
    window.goto(own_server)
    heading(window, "Overview")
    expect(window.get_by_text("New here?")).to_be_visible()
    window.get_by_test_id("stMain").get_by_role("link", name="Start here", exact=True).click()
    heading(window, "Start here")
    for idea in start.IDEAS:
        expect(window.get_by_test_id("stMain")).to_contain_text(idea.split("**")[1])
    card = window.locator("[class*=st-key-stop-]").filter(has_text=f"Lesson {lesson.heading()}")
    card.get_by_role("button", name="Open").click()

    # Read.
    heading(window, lesson.heading())
    window.wait_for_url(re.compile(rf"lessons\?.*lesson={lesson.number}"))
    expect(window.get_by_text(f"Lesson {lessons().index(lesson) + 1} of")).to_be_visible()
    window.get_by_text("中文", exact=True).click()
    heading(window, lesson.heading("zh"))
    window.wait_for_url(re.compile("lang=zh"))
    window.get_by_text("English", exact=True).click()
    heading(window, lesson.heading())
    button(window, "Next: Step →").click()
    window.wait_for_url(re.compile("part=step"))
    button(window, "Next: Write →").click()

    # Write: start, and be judged.
    window.wait_for_url(re.compile("part=write"))
    button(window, "Start").click()
    expect(button(window, "Check my work")).to_be_visible()
    work = desk / "work" / f"{lesson.name}.py"
    assert work.read_text() == lesson.exercise.read_text()
    work.write_text(lesson.reference.read_text())
    button(window, "Check my work").click()
    expect(window.get_by_text("The lesson is passed.")).to_be_visible()
    assert window.locator(".stException").count() == 0

    # It is kept: in the link, and in the course.
    other = window.context.new_page()
    other.goto(window.url)
    heading(other, lesson.heading())
    button(other, "← All lessons").click()
    expect(other.get_by_text(re.compile("^1 of .* lessons passed"))).to_be_visible()


def test_a_failing_story_is_seen_on_its_own_page_and_back(window, own_server, desk):
    (desk / "work").mkdir(exist_ok=True)
    lesson = next(one for one in lessons() if one.name == "04_paging")
    right = lesson.reference.read_text()
    (desk / "work" / "04_paging.py").write_text(right.replace("% self.block_size", "% len(self.blocks)"))
    window.goto(f"{own_server}/lessons?lesson=04&part=write")
    button(window, "Check my work").click()
    expect(window.get_by_text("The smallest story in which P6 fails")).to_be_visible()
    button(window, "Next hint (1 of 3)").click()
    expect(button(window, "Next hint (2 of 3)")).to_be_visible()
    button(window, "See it, step by step").click()
    heading(window, "Your bug")
    expect(window.locator(".player")).to_be_visible()
    window.get_by_role("link", name="Next: Lessons").click()
    expect(button(window, "Next hint (2 of 3)")).to_be_visible()


@pytest.mark.parametrize("theme", profiles.by_day(["light"], ["light", "dark"]))
def test_nothing_is_wider_than_a_phone(browser, own_server, theme):
    context = browser.new_context(viewport=PHONE, color_scheme=theme)
    page = context.new_page()

    def is_narrow(title):
        heading(page, title)
        page.wait_for_function(DONE)
        fits(page, PHONE["width"])

    lesson = next(one for one in lessons() if one.name == "04_paging")
    page.goto(f"{own_server}/start")
    is_narrow("Start here")
    page.goto(f"{own_server}/lessons?lesson=04")
    is_narrow(lesson.heading())
    page.get_by_text("中文", exact=True).click()
    is_narrow(lesson.heading("zh"))
    page.get_by_text("English", exact=True).click()
    for part in ("Step", "Write"):
        button(page, f"Next: {part} →").click()
        page.wait_for_url(re.compile(f"part={part.lower()}"))
        is_narrow(lesson.heading())
    page.get_by_text("中文", exact=True).click()
    is_narrow(lesson.heading("zh"))
    page.get_by_text("English", exact=True).click()
    button(page, "← All lessons").click()
    is_narrow("Lessons")
    context.close()
