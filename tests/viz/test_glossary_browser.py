"""The glossary's table in a real browser: terms are found while one types."""

import sys

import pytest

from minivllm.processes import ROOT
from tests import profiles
from tests.viz.narrow import fits
from tests.viz.servers import answering
from tests.viz.test_browser import expect
from tests.viz.test_glossary import CHINESE, ENGLISH

SCRIPT = """
import sys
from pathlib import Path

sys.path.insert(0, {root!r})
from viz import glossary, language_switch
from viz.views import glossary as page

glossary.ROOT = Path({folder!r})
language_switch.speak_as_chosen()
language_switch.switch()
page.page()
"""
SERVE = """
import sys
from pathlib import Path

from viz import serve

bound = serve.bind(0)
serve.run_server(bound, lambda: print(serve.url(bound.getsockname()[1], None), flush=True), Path(sys.argv[1]))
"""


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """Where the page alone, with the files above, answers."""
    folder = tmp_path_factory.mktemp("glossary")
    (folder / "GLOSSARY.md").write_text(ENGLISH, encoding="utf-8")
    (folder / "GLOSSARY.zh.md").write_text(CHINESE, encoding="utf-8")
    (folder / "alone.py").write_text(SCRIPT.format(root=str(ROOT), folder=str(folder)))
    with answering([sys.executable, "-c", SERVE, str(folder / "alone.py")]) as found:
        yield found


def names(window):
    return window.locator(".glossary td:nth-child(1)").all_text_contents()


def test_terms_are_found_while_one_types_and_nothing_is_markup(window_at):
    window = window_at("")
    count, field = window.locator(".glossary .count"), window.get_by_label("Find a term")
    expect(count).to_have_text("3 of 3 terms")
    field.press_sequentially("block NO")  # every word must occur, in any column, in capitals or not
    expect(count).to_have_text("1 of 3 terms")
    assert names(window) == ["evictable block"]
    field.fill("scheduling")  # the title of a group finds all that is in it
    expect(count).to_have_text("1 of 3 terms")
    assert names(window) == ["preempt"]
    assert window.locator(".glossary h2").all_text_contents() == ["Scheduling"]
    field.fill("no such word")
    expect(count).to_have_text("0 of 3 terms")
    field.fill("")
    expect(count).to_have_text("3 of 3 terms")
    meaning = window.locator(".glossary td:nth-child(2)").first
    assert meaning.text_content() == "The physical block of a logical one: table[i] <b>."
    assert meaning.locator("code").text_content() == "table[i]" and not meaning.locator("b").count()


def test_a_change_of_language_keeps_what_was_typed(window_at):
    window = window_at("?term=preempt")
    expect(window.locator(".glossary .count")).to_have_text("1 of 3 terms")
    window.get_by_label("Find a term").fill("block")
    expect(window.locator(".glossary .count")).to_have_text("2 of 3 terms")
    window.get_by_text("中文", exact=True).click()
    expect(window.locator(".glossary .count")).to_have_text("1 个术语中的 1 个")
    assert names(window) == ["block table · 块表"]
    expect(window.get_by_label("查找术语")).to_have_value("block")


@pytest.mark.parametrize("theme", profiles.by_day(["light"], ["light", "dark"]))
def test_nothing_is_wider_than_a_phone(window_at, theme):
    window = window_at("", {"width": 375, "height": 800}, theme)
    expect(window.locator(".glossary .count")).to_have_text("3 of 3 terms")
    fits(window, 375)


@pytest.fixture
def window_at(browser, address):
    """Opens the page in a window of its own; no script may have failed in any of them."""
    contexts, errors = [], []

    def open_window(query, viewport=None, theme="light"):
        context = browser.new_context(viewport=viewport or {"width": 1280, "height": 900}, color_scheme=theme)
        contexts.append(context)
        window = context.new_page()
        window.on("pageerror", lambda error: errors.append(str(error)))
        window.goto(f"{address}/{query}")
        return window

    yield open_window
    for context in contexts:
        context.close()
    assert not errors
