"""Page "Lessons": the course, and each lesson in three parts: read, step, write. It needs no trace.

    ?lesson=04          which one; none: the whole course
    &part=read          read, step or write
    &lang=zh            the text in Chinese, as this page and all others

What the link says is kept while one looks at other pages. Nothing here imports Hypothesis: a Python without
it can still show, start and step through a lesson.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import streamlit as st

from lessons import catalogue, course
from lessons.catalogue import Lesson
from lessons.work import Desk
from viz import lesson_desk, lesson_step, lesson_text, links
from viz.backends.svg import to_svg
from viz.cards import card
from viz.course_map import course_map
from viz.language import N_, _, current
from viz.lesson_words import say
from viz.palette import DARK, LIGHT
from viz.plain import plain

TITLE = N_("Lessons")
URL = "lessons"
TEASER = N_("One idea after the other: read about it, step through a run, write it yourself.")

PARTS = ("read", "step", "write")
TEXT_WIDTH, DESK_WIDTH = 820, 1000
"""Lines that are longer are hard to read."""
MAP_WIDTH = 562
MARKS = {"not started": "○", "passed": "✔"}


def page(run: object = None) -> None:
    """The course or a lesson; the open trace, if there is one, plays no part in it."""
    lessons = tuple(lesson for lesson in catalogue.lessons() if is_complete(lesson))
    chosen = _chosen(lessons)
    with st.container(
        key="title-row", horizontal=True, horizontal_alignment="distribute", vertical_alignment="bottom"
    ):
        st.title(chosen.heading(current()) if chosen else say("title"), width="content")
        links.page_link("glossary", say("glossary"))
    if not lessons:
        st.info(say("no lessons"))
    elif chosen is None:
        _course(lessons)
    else:
        _lesson(chosen, lessons)


def is_complete(lesson: Lesson) -> bool:
    """Can it be shown? One without its texts is still being written."""
    try:
        return all(lesson.heading(language) and lesson.about(language) for language in catalogue.LANGUAGES)
    except (OSError, IndexError, UnicodeDecodeError):
        return False


def _chosen(lessons: tuple[Lesson, ...]) -> Lesson | None:
    """The lesson that the link names, or that was kept; one that is not there is told in a sentence."""
    wanted = st.query_params.get("lesson") or st.session_state.get("kept lesson") or ""
    if not wanted:
        return None
    try:
        lesson = catalogue.find_lesson(wanted)
    except ValueError as error:
        st.error(plain(error))
        links.keep("lesson", "")
        return None
    if lesson not in lessons:
        told = _("The text of lesson {number} is missing, or cannot be read.")
        st.error(told.format(number=lesson.number))
        links.keep("lesson", "")
        return None
    links.keep("lesson", lesson.number)
    return lesson


# ── the course ────────────────────────────────────────────────────────────────────────────────────────


def _course(lessons: tuple[Lesson, ...]) -> None:
    """All lessons, and how far the learner is."""
    desk = Desk()
    states = [desk.state(lesson) for lesson in lessons]
    passed = states.count("passed")
    st.markdown(say("introduction"))
    st.progress(passed / len(lessons), say("progress", passed=passed, all=len(lessons)))
    there = [lesson.number for lesson in lessons]
    paths = (f"{say(who)} {' → '.join(course.path(who, there))}" for who in course.PATHS)
    st.caption(f"{say('where to begin')} {' · '.join(paths)}")
    _map(lessons, dict(zip(there, states, strict=True)))
    following = next((number for number, state in enumerate(states) if state != "passed"), None)
    for number, (lesson, state) in enumerate(zip(lessons, states, strict=True)):
        with card(f"card-{lesson.name}"):
            mark = MARKS.get(state, "◐")
            st.markdown(
                f"{mark} **{lesson.heading(current())}**  \n"
                f":gray[{lesson.about(current())}{_needs(lesson, there)} · {state_words(state)}]",
                width="content",
            )
            st.button(
                say("open" if state in MARKS else "go on"),
                key=f"open-{lesson.name}",
                type="primary" if number == following else "secondary",
                on_click=_open,
                args=(lesson, "read" if state in MARKS else "write"),
            )


def _map(lessons: tuple[Lesson, ...], states: dict[str, str]) -> None:
    """What stands on what, how long it takes, and what is done."""
    titles = {one.number: one.heading(current()).removeprefix(one.number).strip() for one in lessons}
    marks = {number: MARKS.get(state, "◐") for number, state in states.items()}
    scene = course_map(lessons, marks, titles)
    theme = DARK if st.context.theme.type == "dark" else LIGHT
    # No wider than it is drawn, and on a phone as wide as that.
    with st.expander(say("map"), expanded=True), st.container(width=MAP_WIDTH):
        st.image(to_svg(scene, 0, theme), caption=say("map in words"))


def _needs(lesson: Lesson, there: Collection[str]) -> str:
    numbers = course.needs(lesson, there)
    return f" · {say('needs', numbers=', '.join(numbers))}" if numbers else ""


def state_words(state: str) -> str:
    """How far the learner is, in words."""
    if "/" in state:
        return say("properties hold", state=state)
    return say(state)


def _open(lesson: Lesson | None, part: str = "read") -> None:
    links.keep("lesson", lesson.number if lesson else "")
    links.keep("part", part if lesson else "")


# ── a lesson ──────────────────────────────────────────────────────────────────────────────────────────


def _lesson(lesson: Lesson, lessons: tuple[Lesson, ...]) -> None:
    place = lessons.index(lesson)
    part = links.kept("part", PARTS, "read")
    state = Desk().state(lesson)
    where = say("place", number=place + 1, all=len(lessons))
    st.caption(f"{where} · {lesson.about(current())} · {MARKS.get(state, '◐')} {state_words(state)}")
    with st.container(horizontal=True, horizontal_alignment="distribute", vertical_alignment="center"):
        words = {name: say(name) for name in PARTS}
        links.choice("part", PARTS, part, say("part"), words)
        st.button(f"← {say('all lessons')}", type="tertiary", on_click=_open, args=(None,))
    if part == "read":
        with st.container(key="lesson-text", width=TEXT_WIDTH):
            lesson_text.show(lesson_text.parts_of(lesson_text.body(lesson.text(current())), lesson.folder))
    elif part == "step":
        lesson_step.show(lesson)
    else:
        with st.container(width=DESK_WIDTH):
            lesson_desk.show(lesson)
    _what_next(lesson, place, lessons, part)


def _what_next(lesson: Lesson, place: int, lessons: tuple[Lesson, ...], part: str) -> None:
    """The next part, and after the last one the next lesson."""
    st.divider()
    with st.container(horizontal=True, horizontal_alignment="distribute"):
        if place > 0:
            _step_to("previous lesson", lessons[place - 1], "←")
        if part != PARTS[-1]:
            following = PARTS[PARTS.index(part) + 1]
            st.button(
                say("next part", part=say(following)) + " →",
                key="next-part",
                on_click=_open,
                args=(lesson, following),
            )
        elif place + 1 < len(lessons):
            _step_to("next lesson", lessons[place + 1], "→")
        else:
            st.caption(say("last lesson"))


def _step_to(name: str, lesson: Lesson, arrow: str) -> None:
    words = say(name, lesson=lesson.heading(current()))
    kind: Any = "secondary" if arrow == "→" else "tertiary"
    label = f"{words} →" if arrow == "→" else f"← {words}"
    st.button(label, key=name, type=kind, on_click=_open, args=(lesson,))
