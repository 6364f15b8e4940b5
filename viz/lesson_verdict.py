"""A verdict on the page: each property with its mark, and the smallest story in which one fails.

What `lessons/report.py` is for a terminal. Words of the learner's code may be anything: they are never taken
for Markdown.

Read next: `views/lessons.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import streamlit as st

from lessons.catalogue import relative
from lessons.language import in_language
from lessons.runner import NOT_STARTED, PASSED, Outcome, Result
from viz.judge_words import as_judged
from viz.language import current
from viz.lesson_words import say
from viz.plain import plain

FIRST_STEPS, LAST_STEPS = 3, 11
"""Of a long story, these are shown."""
MOST_PRINTED = 10


def show_progress(result: Result | None, seconds: float) -> None:
    """While the judge plays; at the very beginning it has said nothing yet."""
    st.info(say("judging", seconds=seconds))
    if result is not None:
        _list(result)


def show_result(result: Result) -> None:
    """All that was found."""
    if result.problem:
        st.error(say("unjudged", words=plain(as_judged(result.problem))))
        if result.raw:
            with st.expander(say("all that Python says")):
                st.code(result.raw, language=None)
        return
    numbers = {"passed": result.num_passed, "all": len(result.outcomes)}
    if result.tampering:
        st.error(say("tampered", words=plain(as_judged(result.tampering))))
    elif result.code == PASSED:
        st.success(say("all hold", **numbers))
    elif result.code == NOT_STARTED and not result.missing:
        st.info(say("nothing written", file=relative(result.path)))
    else:
        st.warning(say("some hold", **numbers))
    for words in result.missing:
        st.error("✘ " + say("lacks", words=plain(as_judged(words))))
    _list(result)
    if result.failed:
        _story(result.failed, result.lesson.number)


def _list(result: Result) -> None:
    st.markdown("  \n".join(_line(outcome, result) for outcome in list(result.outcomes)))


def _line(outcome: Outcome, result: Result) -> str:
    """A property: how it stands, its sentence, and a few words more."""
    mark, more = "–", ""
    if outcome.status == "passed":
        mark, more = ":green[✔]", say("stories", count=outcome.stories)
    elif outcome.status == "failed":
        mark = ":red[✘]"
    elif outcome.status == "playing":
        mark, more = "▸", say("playing", count=outcome.stories)
    elif outcome.status == "unwritten":
        more = say("unwritten", name=outcome.missing)
    elif result.failed:
        more = say("waits", number=result.failed.number)
    words = f"{mark} **{outcome.number}** {in_language(result.lesson, outcome.sentence, current())}"
    return f"{words} :gray[{more}]" if more else words


def _story(outcome: Outcome, lesson: str) -> None:
    with st.container(border=True):
        st.markdown(f"{say('smallest', number=outcome.number)}:")
        if outcome.steps:
            rows = _rows(outcome.steps, lesson)
            names = (say("number"), say("operation"), say("changed"))
            st.table(
                {name: [row[column] for row in rows] for column, name in enumerate(names)},
                border="horizontal",
                hide_index=True,
            )
        elif outcome.case is not None:
            st.markdown(f"**{say('in story')}**: {plain(str(outcome.case)[:500])}")
        alone = say("holds alone") if outcome.holds_alone else ""
        told = (
            ("expected", as_judged(outcome.expected, lesson)),
            ("got", as_judged(outcome.got, lesson)),
            ("where", as_judged(outcome.where, lesson)),
            ("but", alone),
        )
        st.markdown("  \n".join(f"**{say(name)}**: {plain(words)}" for name, words in told if words))
        if outcome.printed:
            st.caption(say("your code printed"))
            st.code("\n".join(outcome.printed.rstrip().splitlines()[:MOST_PRINTED]), language=None)


def _rows(steps: Sequence[dict[str, Any]], lesson: str) -> list[tuple[str, str, str]]:
    """Number, operation, and the facts that it changed."""
    rows = []
    before: dict[str, str] = {}
    for number, step in enumerate(steps, 1):
        changed = {key: value for key, value in step["facts"].items() if before.get(key) != value}
        before = step["facts"]
        facts = ", ".join(
            f"{as_judged(key, lesson)}={as_judged(value, lesson)}" for key, value in changed.items()
        )
        rows.append((str(number), plain(as_judged(step["text"], lesson)), plain(facts)))
    left_out = len(rows) - FIRST_STEPS - LAST_STEPS
    if left_out > 0:
        rows[FIRST_STEPS : FIRST_STEPS + left_out] = [("", say("more steps", count=left_out), "")]
    return rows
