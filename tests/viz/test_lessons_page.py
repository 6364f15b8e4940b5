"""The page "Lessons", run by Streamlit's own test harness: the course, and the texts."""

import re

import pytest

from lessons import catalogue, course
from lessons.catalogue import LANGUAGES, lessons
from lessons.work import Desk
from tests.viz.lesson_factory import labels
from tests.viz.test_kernel_pages import links, open_page
from tests.viz.test_pages import words
from viz.course_map import course_map
from viz.language import speaking
from viz.lesson_text import Folded, Picture, Words, body, in_theme, parts_of
from viz.lesson_words import say
from viz.views import lessons as page
from viz.views.lessons import is_complete

pytestmark = pytest.mark.usefixtures("own_folders")
COMPLETE = [lesson for lesson in lessons() if is_complete(lesson)]


def progress(app):
    [bar] = [element.proto for element in app.main if element.type == "progress"]
    return bar.text


# ── the course ────────────────────────────────────────────────────────────────────────────────────────


def test_the_course_lists_every_lesson_with_how_far_one_is(lesson):
    Desk().start(lesson)
    Desk().note(lesson, passed=3, of=7)
    app = open_page(page)
    assert not app.exception and app.title[0].value == "Lessons"
    for one in COMPLETE:
        [card] = [text.value for text in app.markdown if f"**{one.heading()}**" in text.value]
        assert one.about() in card
        assert ("3/7 properties hold" if one == lesson else "not started") in card
    assert progress(app) == f"0 of {len(COMPLETE)} lessons passed"


def test_the_course_has_a_map_of_what_stands_on_what():
    numbers = [one.number for one in COMPLETE]
    assert set(course.NEEDS) == set(numbers), "a lesson that the map does not know"
    for number, below in course.NEEDS.items():
        assert all(other < number for other in below), "nothing stands on what comes later"
    for path in course.PATHS.values():
        assert list(path) == sorted(path)
    assert course.minutes(lessons()[0]) == 50
    app = open_page(page)
    [card] = [text.value for text in app.markdown if "**08 " in text.value]
    assert "needs 05, 07" in card
    assert "a beginner 01 → 02 → 03 → 04 · an engineer 05 → 10 → 13" in words(app)


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_map_draws_every_lesson_and_all_of_its_title(language):
    marks = {one.number: "✔◐○"[number % 3] for number, one in enumerate(COMPLETE)}
    titles = {one.number: one.heading(language).removeprefix(one.number).strip() for one in COMPLETE}
    shapes = course_map(COMPLETE, marks, titles).at(0)
    said = "".join(str(shape["text"]) for shape in shapes if shape["kind"] == "text").replace(" ", "")
    for one in COMPLETE:
        assert titles[one.number].replace(" ", "") in said, "a title that does not fit"
    lines = [shape for shape in shapes if shape["kind"] == "path"]
    assert len(lines) == sum(len(below) for below in course.NEEDS.values())
    drawn = [str(shape["text"]) for shape in shapes if shape.get("weight") == "bold"]
    assert drawn == [f"{number} {mark}" for number, mark in marks.items()]


def test_pictures_follow_the_theme_of_the_page():
    svg = (COMPLETE[3].folder / "table.svg").read_text(encoding="utf-8")
    light, dark = in_theme(svg, "light"), in_theme(svg, "dark")
    assert "prefers-color-scheme" in svg and in_theme(svg, None) == svg
    for one, page_colour in ((light, "#FFFFFF"), (dark, "#0E1117")):
        assert "prefers-color-scheme" not in one
        assert re.findall(r"--page:(#\w+)", one)[-1] == page_colour


def test_the_course_counts_what_is_passed(lesson):
    Desk().start(lesson)
    Desk().note(lesson, state="passed", passed=7, of=7)
    app = open_page(page)
    [card] = [text.value for text in app.markdown if f"**{lesson.heading()}**" in text.value]
    assert card.startswith("✔") and card.endswith("· passed]")
    assert progress(app) == f"1 of {len(COMPLETE)} lessons passed"


def test_from_the_course_to_a_lesson_and_back(lesson):
    app = open_page(page)
    app.button(key=f"open-{lesson.name}").click().run()
    assert app.title[0].value == lesson.heading() and app.query_params["lesson"] == "04"
    assert f"Lesson {COMPLETE.index(lesson) + 1} of {len(COMPLETE)}" in app.caption[0].value
    next(button for button in app.button if "All lessons" in button.label).click().run()
    assert app.title[0].value == "Lessons" and "lesson" not in app.query_params


def test_every_part_leads_to_the_next_and_the_last_to_the_next_lesson():
    app = open_page(page, lesson=COMPLETE[0].number)
    for following in ("step", "write"):
        app.button(key="next-part").click().run()
        assert not app.exception and app.query_params["part"] == following
    if len(COMPLETE) > 1:
        app.button(key="next lesson").click().run()
        assert app.title[0].value == COMPLETE[1].heading() and app.query_params["part"] == "read"
        app.button(key="previous lesson").click().run()
        assert app.title[0].value == COMPLETE[0].heading()
    last = open_page(page, lesson=COMPLETE[-1].number, part="write")
    assert "the last lesson" in words(last)


@pytest.mark.parametrize("wanted", ["99", "x", "../..", "0" * 5000])
def test_a_link_to_a_lesson_that_is_not_there_is_told_in_a_sentence(wanted):
    app = open_page(page, lesson=wanted)
    assert not app.exception and "there is no lesson" in app.error[0].value
    assert app.title[0].value == "Lessons"


def test_a_link_to_no_part_and_no_language_opens_the_text(lesson):
    app = open_page(page, lesson="04", part="sleep", lang="la")
    assert not app.exception and app.query_params["part"] == "read"
    assert app.title[0].value == lesson.heading()


def test_a_lesson_without_its_text_is_not_listed(catalogue_of):
    lesson = catalogue_of()
    (lesson.folder / "lesson.zh.md").unlink()
    app = open_page(page)
    assert not app.exception and "no lessons" in app.info[0].value
    app = open_page(page, lesson="04")
    assert not app.exception and "is missing" in app.error[0].value


# ── read ──────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("each", COMPLETE, ids=lambda each: each.name)
def test_both_languages_have_the_same_parts(each):
    apps = [open_page(page, lesson=each.number, lang=language) for language in catalogue.LANGUAGES]
    shapes = []
    for app, language in zip(apps, catalogue.LANGUAGES, strict=True):
        assert not app.exception and app.title[0].value == each.heading(language)
        assert "](../" not in words(app) and "<details" not in words(app) and "<summary" not in words(app)
        text = "\n".join(str(element.value) for element in app.markdown)
        headings = sum(line.startswith("## ") for line in text.splitlines())
        shapes.append((headings, len(app.expander), len(pictures(app))))
    assert shapes[0] == shapes[1]


def test_the_language_is_switched_and_kept_in_the_link(lesson):
    app = open_page(page, lesson="04")
    app.segmented_control[0].set_value("zh").run()
    assert app.title[0].value == lesson.heading("zh") and app.query_params["lang"] == "zh"
    assert [control.options for control in app.segmented_control][1] == ["阅读", "单步", "编写"]
    app.button(key="next-part").click().run()
    assert app.query_params["lang"] == "zh" and app.title[0].value == lesson.heading("zh")


@pytest.mark.parametrize("language", ["en", "zh"])
def test_texts_call_the_button_of_the_walkthrough_as_the_page_does(language):
    with speaking(language):
        button = f"**{say('run it')}**"
    for lesson in catalogue.lessons():
        assert "walkthrough.py" not in lesson.text(language) or button in lesson.text(language), lesson.name


def test_a_text_is_taken_apart(catalogue_of, tmp_path):
    lesson = catalogue_of()
    parts = parts_of(body(lesson.text()), lesson.folder)
    kinds = [type(part).__name__ for part in parts]
    assert kinds == ["Words", "Picture", "Words", "Folded", "Folded"]
    why, picture, table, one, two = parts
    assert why.markdown.startswith("## Why") and "★" not in why.markdown
    assert "[lesson 04](?lesson=04&lang=en)" in why.markdown
    assert "`minivllm/memory/block_pool.py`" in why.markdown or "pool.py` (`minivllm" in why.markdown
    assert "one still to\nbe written," in why.markdown, "a link that leads nowhere is no link"
    assert "[the paper](https://example.org/paper.pdf)" in why.markdown and "`[a](b)`" in why.markdown
    assert picture == Picture(lesson.folder / "table.svg", "A picture of a table")
    assert "*A picture that is missing*" in table.markdown and "| 1 | 2 |" in table.markdown
    assert "# <details> ![not a picture](table.svg)\nx = blocks[0](../y)\n```" in table.markdown
    assert isinstance(one, Folded) and one.summary == "Why `one` size?"
    assert [type(part) for part in one.parts] == [Words, Picture]
    assert one.parts[0].markdown == "Because it (`docs/why.md`) fits."
    assert two == Folded("And two?", (Words("No."),))


def test_chinese_lines_are_joined_without_a_space(catalogue_of):
    lesson = catalogue_of()
    assert "中文没有空格。" in parts_of(lesson.text("zh"), lesson.folder)[0].markdown


def pictures(app):
    """The pictures of a page, as their protos say it."""
    found = [str(e.proto) for e in app.main if e.type in ("html", "image")]
    return [words.replace("\\", "") for words in found if "<img" in words or "imgs" in words]


def test_the_text_is_shown_with_pictures_and_folded_answers(catalogue_of):
    catalogue_of()
    app = open_page(page, lesson="04")
    assert not app.exception and labels(app) == ["Why `one` size?", "And two?"]
    assert not any(expander.proto.expanded for expander in app.expander), "an answer is not shown at once"
    shown = pictures(app)
    assert len(shown) == 2
    assert any('alt="A picture of a table"' in picture for picture in shown)


def test_the_lessons_need_no_trace_and_a_bad_one_does_not_disturb_them(tmp_path):
    app = open_page(page, trace=tmp_path / "nothing.jsonl")
    assert not app.exception and not app.error and app.title[0].value == "Lessons"
    assert links(app) == ["Glossary"], "from here one goes on from lesson to lesson"
