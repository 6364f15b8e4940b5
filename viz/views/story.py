"""Page "Your bug": the story on which a property of a lesson failed, beside the reference's.

Read next: `viz/figures/story.py`.
"""

from __future__ import annotations

import re
from urllib.parse import quote

import streamlit as st

from lessons.catalogue import find_lesson
from lessons.language import in_language
from minivllm.trace.story_events import StoryHeader
from viz import stage
from viz.about import about
from viz.figures.story import story_scenes
from viz.figures.story_words import num_shown, parted_step
from viz.judge_words import judged_in_words
from viz.language import N_, _, current
from viz.loading import StoryRun
from viz.plain import code, plain
from viz.player import Jump

TITLE = N_("Your bug")
URL = "story"
TEASER = N_("The shortest story on which your solution fails, beside the right one.")

INTRODUCTION = N_(
    "The judge has found a story on which your code fails, and has made it as short as it could. Here it is "
    "**twice**: what yours did, and what the reference did on the same operations. It opens where the two "
    "**part**; step back to see how it came to that. Which is the first thing that is not as you meant it?"
)
LEGEND = N_(
    "Colours of cells say whose they are. Only **facts** must be equal: a board may differ where a solution "
    "is free to choose, which free block it takes, for example."
)
KERNELS = N_("Both kernels ran under the microscope, so you can see what they asked memory for:")
NEXT = N_("What to do next: change your file, and let it be judged again; a hint helps if you are stuck.")
WITHOUT = N_(
    "When `minivllm lesson check` finds that a property of your solution does not hold, it writes down the "
    "**shortest story** on which it fails: what your code did, step by step, and what the right one did on "
    "the same operations. This page plays both. To get one:"
)
HOW = """minivllm lesson start 4
# write work/04_paging.py, then:
minivllm lesson check 4
minivllm lesson see 4"""


def page(run: StoryRun) -> None:
    story = judged_in_words(run.story)
    header = story.header
    about(_(INTRODUCTION))
    where = _("in {file}").format(file=code(header.file)) + (
        f", {code(header.where)}" if header.where else ""
    )
    st.error(
        _(
            "{title} · **{property}** {sentence}  \nexpected: {expected} · got: {got} · noticed {where}"
        ).format(
            title=plain(_heading(header)),
            property=plain(header.property),
            sentence=plain(_sentence(header)),
            expected=code(header.expected),
            got=code(header.got),
            where=where,
        )
    )
    parted = parted_step(story)
    jumps = [Jump(_("where they part"), parted), Jump(_("end"), num_shown(story) - 1)]

    stage.show_scenes(
        run.fingerprint,
        "story",
        lambda: story_scenes(story),
        jumps,
        first=1,
        start=parted,
        legend=[_(LEGEND)],
    )
    _kernels(run)
    st.markdown(_(NEXT))
    number = re.match(r"\d+", header.lesson)
    lesson = number[0] if number else "LESSON"
    st.code(
        f"minivllm lesson check {lesson}\nminivllm lesson hint {lesson}",
        language="shell",
    )


def _heading(header: StoryHeader) -> str:
    """The lesson, as the reader speaks."""
    try:
        return find_lesson(header.lesson).heading(current())
    except ValueError:
        return header.title


def _sentence(header: StoryHeader) -> str:
    """What must always hold, as the reader speaks; a file of another course says it in its own words."""
    try:
        return in_language(find_lesson(header.lesson), header.sentence, current())
    except ValueError:
        return header.sentence


def _kernels(run: StoryRun) -> None:
    """Links to the pages about kernels, if the story has any kernels and their files are still there."""
    names = run.story.header.kernels
    if len(names) < 2:
        return
    paths = [run.path.resolve().parent / name for name in names[:2]]
    if missing := [path.name for path in paths if not path.is_file()]:
        st.caption(
            _("The traces of the kernels are gone: {files}. Check again.").format(
                files=plain(", ".join(missing))
            )
        )
        return
    yours, reference = (quote(str(path)) for path in paths)
    speaks = f"&lang={current()}"  # they open in windows of their own
    st.markdown(_(KERNELS))
    with st.container(horizontal=True):
        st.link_button(_("Your kernel"), f"/microscope?trace={yours}{speaks}")
        st.link_button(_("The reference's kernel"), f"/microscope?trace={reference}{speaks}")
        st.link_button(
            _("Both, side by side"),
            f"/flash_attention?trace={yours}&with={reference}{speaks}",
        )
