"""Take it with you: what a page shows as files that need neither dashboard nor server.

    SVG, PNG of the step        the player's own button (`player/take.js`): only the browser knows the step
    a page that plays           what the player was sent, with the player around it (`backends/html.py`)
    a film of some steps        GIF or MP4, drawn by matplotlib: at most `MOST_FRAMES` pictures, evenly chosen
    the run for Perfetto        `minivllm/trace/perfetto.py`

Nothing is made before its button is pressed.

Read next: `backends/html.py`, `backends/mp4.py`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from math import ceil
from typing import Any, TypeAlias

import msgspec
import streamlit as st

from minivllm.scratch import ScratchFolder
from minivllm.trace.perfetto import to_chrome_trace
from minivllm.trace.reader import Trace
from viz.backends.html import page_of
from viz.backends.mp4 import can_film, mp4
from viz.language import _, current, ngettext, speaking
from viz.plain import plain
from viz.scene import Scene

MOST_FRAMES = 60
FRAME_SECONDS = 0.3
"""About what matplotlib takes for one."""
FRAMES_PER_SECOND = (2, 4, 10)
HOW_TO_FILM = 'pip install "minivllm[video]"'
MakeFilm: TypeAlias = Callable[[Scene, Sequence[int], float], bytes]


class Picture(msgspec.Struct):
    """Of a scene that the player was sent, what is needed here; the rest is skipped unread."""

    title: str
    screen: str = ""


class Sent(msgspec.Struct):
    """What the player was sent."""

    captions: list[str]
    scenes: list[Picture]
    first: int = 0
    """What the reader is told that the first step is called."""


@lru_cache(maxsize=16)
def _sent(payload: bytes) -> Sent:
    return msgspec.json.decode(payload[payload.index(b"\n") + 1 :], type=Sent)


def offer(
    name: str, payload: bytes, make_scenes: Callable[[], Sequence[Scene]], trace: Trace | None = None
) -> None:
    """Put the button below a player.

    Args:
        name: of these pictures, which files are named after.
        payload: what the player was sent.
        make_scenes: draws them again, for a film.
        trace: the run that they are of, if it is one of the engine.
    """
    sent, language = _sent(payload), current()
    key = f"take-{name}"
    with st.popover(_("Take it with you")):
        st.markdown(
            _("The picture of one step, as PNG or SVG: **Save picture**, beside the player's slider.")
        )
        st.download_button(
            _("A page that plays ({size} MB, HTML)").format(size=f"{max(0.1, len(payload) / 1e6):.1f}"),
            lambda: page_of(sent.scenes[0].title, payload[payload.index(b"\n") + 1 :], language),
            file_name=file_name(name, "html"),
            mime="text/html",
            on_click="ignore",
            key=f"{key}-html",
        )
        if trace is not None:
            st.download_button(
                _("The run for Perfetto (ui.perfetto.dev)"),
                lambda: msgspec.json.encode(to_chrome_trace(trace)),
                file_name=file_name(name, "perfetto.json"),
                mime="application/json",
                on_click="ignore",
                key=f"{key}-perfetto",
            )
        if len(sent.captions) > 1:
            _film(name, sent, make_scenes, language)


def _film(name: str, sent: Sent, make_scenes: Callable[[], Sequence[Scene]], language: str) -> None:
    """What a film needs to know, and its button."""
    key = f"take-{name}"
    titles = [number for number, scene in enumerate(sent.scenes) if scene.screen != "narrow"]
    start, last = sent.first, sent.first + len(sent.captions) - 1
    of = f"{start}-{last}-{len(titles)}"  # of another trace other steps are chosen
    which: Any = titles[0]
    if len(titles) > 1:
        names = labels([sent.scenes[number].title for number in titles])
        which = st.selectbox(
            _("Film of"),
            titles,
            key=f"{key}-which-{of}",
            format_func=lambda number: names[titles.index(number)],
        )
    left, right = st.columns(2)
    one = left.number_input(_("From step"), start, last, start, key=f"{key}-first-{of}")
    other = right.number_input(_("To step"), start, last, last, key=f"{key}-end-{of}")
    first, end = sorted((one - start, other - start))
    speed: Any = st.segmented_control(
        _("Pictures per second"), FRAMES_PER_SECOND, default=FRAMES_PER_SECOND[1], key=f"{key}-speed"
    )
    steps = chosen_steps(first, end)
    told = ngettext(
        "{count} picture, about {seconds} s to draw.",
        "{count} pictures, about {seconds} s to draw.",
        len(steps),
    )
    words = told.format(count=len(steps), seconds=ceil(len(steps) * FRAME_SECONDS))
    if len(steps) < end - first + 1:
        most = _("A film has at most {most} pictures: steps between them are left out.")
        words += " " + most.format(most=MOST_FRAMES)
    st.markdown(words)

    def film(make: MakeFilm) -> bytes:
        with speaking(language):  # this runs in a thread of its own
            return make(make_scenes()[which], steps, speed or FRAMES_PER_SECOND[1])

    def offer_film(words: str, make: MakeFilm, ending: str, mime: str) -> None:
        st.download_button(
            words,
            partial(film, make),
            file_name=file_name(name, ending),
            mime=mime,
            on_click="ignore",
            key=f"{key}-{ending}",
        )

    offer_film(_("A film (GIF)"), gif, "gif", "image/gif")
    if can_film():
        offer_film(_("A film (MP4)"), video, "mp4", "video/mp4")
    else:
        st.caption(_("A film as MP4 needs an encoder: {command}").format(command=f"`{HOW_TO_FILM}`"))


def labels(titles: Sequence[str]) -> list[str]:
    """Titles for a choice. Of two that are alike Streamlit would take the second, so they get numbers."""
    return [
        plain(title if titles.count(title) == 1 else f"{title} ({number})")
        for number, title in enumerate(titles, 1)
    ]


def chosen_steps(first: int, last: int) -> list[int]:
    """The steps of a film: all, or `MOST_FRAMES` that lie evenly, the first and the last among them."""
    count = last - first + 1
    if count <= MOST_FRAMES:
        return list(range(first, last + 1))
    return [first + round(number * (count - 1) / (MOST_FRAMES - 1)) for number in range(MOST_FRAMES)]


def gif(scene: Scene, steps: Sequence[int], per_second: float) -> bytes:
    """The steps as a GIF."""
    from viz.backends.mpl import save_gif  # matplotlib takes a while to load, and few readers make films

    with ScratchFolder("film") as folder:
        path = folder / "film.gif"
        save_gif(scene, path, steps, per_second=per_second)
        return path.read_bytes()


def video(scene: Scene, steps: Sequence[int], per_second: float) -> bytes:
    """The steps as an MP4."""
    from viz.backends.mpl import pictures

    return mp4(pictures(scene, steps), per_second)


def file_name(name: str, ending: str) -> str:
    """A file's name that any system takes: a request may be called anything."""
    words = re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-")[:60] or "pictures"
    return f"minivllm-{words}.{ending}"
