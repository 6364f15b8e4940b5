"""Page "Start here": a newcomer's path through pages and lessons, with a sentence each on what to look for.

It needs no trace, and says how to make one. Read next: `lessons.py`.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import streamlit as st

from lessons import catalogue, course
from viz import empty, links, loading
from viz.cards import card
from viz.language import N_, _, current
from viz.lesson_words import say
from viz.loading import Run
from viz.views.lessons import is_complete

TITLE = N_("Start here")
URL = "start"
TEASER = N_("What this is, three ideas, and a path through it.")

WHAT = N_(
    "minivllm is a small server for language models in which nothing is hidden: requests come in, a "
    "**scheduler** decides which of them compute in each step, tokens come out, and everything that happens "
    "is written into a **trace**. The pages draw a trace, step by step, forward and back; the lessons let "
    "you build the parts yourself. Three ideas make it fast:"
)
IDEAS = (
    N_(
        "**Paging.** The keys and values of all tokens lie in small blocks of equal size, which may be "
        "anywhere in memory; a block table says where, so that almost nothing is wasted."
    ),
    N_(
        "**Sharing.** Several sequences can read the same block, and a sequence that is about to write to it "
        "gets a copy first; so a common prefix is stored, and computed, once."
    ),
    N_(
        "**Continuous batching.** The scheduler admits and finishes requests after every single step, so "
        "that no request waits for the longest answer of its batch."
    ),
)
DEMO = "minivllm demo"
WHERE_DEMO = Path("minivllm-out/trace.jsonl")
NEED = N_(
    "Steps 1 to 3 look at a run. There is none yet: this makes one in a minute, with a model that comes with "
    "the project, and opens it."
)
OTHER_KIND = N_("Steps 1 to 3 look at a run of the engine; another kind of trace is open. This makes one:")


class Stop(NamedTuple):
    """A page on the path."""

    url: str
    title: str
    look_for: str


BEFORE = (
    Stop(
        "overview",
        N_("Overview"),
        N_("Press **Play**: the answers grow together, a token of each in every step."),
    ),
    Stop(
        "kv_pool",
        N_("KV pool"),
        N_("Step until the selected request gets a new block. Is it beside its last one? Must it be?"),
    ),
    Stop(
        "scheduler",
        N_("Scheduler"),
        N_("Jump to the first preemption: which request is preempted, and for which one?"),
    ),
)
AFTER = (
    Stop(
        "beam_tree",
        N_("Beam tree"),
        N_("With `minivllm demo sharing`: beams fork, and share the blocks of what they have in common."),
    ),
    Stop(
        "prefix_tree",
        N_("Prefix tree"),
        N_("With the same run: which prompts hit the cache, and which blocks are evicted?"),
    ),
    Stop(
        "compare",
        N_("Compare"),
        N_("Two runs of the same requests on one clock: which requests wait, and what for?"),
    ),
    Stop(
        "microscope",
        N_("Kernel microscope"),
        N_("One kernel, line by line: when do 32 lanes need one trip to memory, and when 32?"),
    ),
    Stop("lessons", N_("Lessons"), N_("All of them: one idea after the other.")),
)


def page(run: object = None) -> None:
    """The path; it knows whether there is something to look at."""
    st.title(_(TITLE))
    st.markdown(_(WHAT))
    st.markdown("\n".join(f"{number}. {_(idea)}" for number, idea in enumerate(IDEAS, 1)))
    links.page_link("glossary", _("Glossary: what every word means"))
    if not isinstance(run, Run):
        _how_to_get_a_run(_(OTHER_KIND) if run else _(NEED))
    st.header(_("A path"))
    for number, stop in enumerate(BEFORE, 1):
        _stop(number, stop)
    lesson = first_lesson()
    if lesson is not None:
        _lesson(len(BEFORE) + 1, lesson)
        _other_beginnings()
    for number, stop in enumerate(AFTER, len(BEFORE) + 1 + (lesson is not None)):
        _stop(number, stop)


def _other_beginnings() -> None:
    """Who does not begin with the first lesson."""
    there = [lesson.number for lesson in catalogue.lessons() if is_complete(lesson)]
    words = {who: " → ".join(course.path(who, there)) for who in course.PATHS}
    told = " · ".join(f"{say(who)} {path}" for who, path in words.items() if path)
    st.caption(f"{say('where to begin')} {told}")


def first_lesson() -> catalogue.Lesson | None:
    """The lesson to begin with: the first that there is."""
    return next((lesson for lesson in catalogue.lessons() if is_complete(lesson)), None)


def _how_to_get_a_run(words: str) -> None:
    with st.container(border=True):
        st.markdown(words)
        st.code(DEMO, language="shell")
        empty.offer("overview")
        links.page_link("run", _("Or run prompts of your own, here"))
        if WHERE_DEMO.is_file() and st.button(_("Open {file}").format(file=WHERE_DEMO), key="open-demo"):
            loading.choose(WHERE_DEMO.resolve())
            st.rerun()


def _stop(number: int, stop: Stop) -> None:
    _card(number, _(stop.title), _(stop.look_for), stop.url, {"lesson": ""} if stop.url == "lessons" else {})


def _lesson(number: int, lesson: catalogue.Lesson) -> None:
    words = _(
        "Read it, step through its run, then write the part yourself: properties judge it, and show you the "
        "smallest story in which it fails."
    )
    _card(
        number,
        _("Lesson {heading}").format(heading=lesson.heading(current())),
        words,
        "lessons",
        {"lesson": lesson.number, "part": "read"},
    )


def _card(number: int, title: str, words: str, url: str, values: dict[str, str]) -> None:
    with card(f"stop-{number}"):
        st.markdown(f"**{number}. {title}**  \n{words}", width="content")
        # A lesson is a page with a choice, which a plain link would not carry.
        if st.button(_("Open"), key=f"go-{number}"):
            links.go(url, values=values)
