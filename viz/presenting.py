"""Presenting: one picture of a page, in large type, for a projector; kept in the link.

    ?present=1      nothing but the picture, the player and its caption
    &picture=2      which picture of the page

The player's own keys move in time; N and P go to another picture, Esc leaves. All else on the page is hidden,
not left out: a reader who leaves is where they were.

Read next: `stage.py`, which plays the one picture.
"""

from __future__ import annotations

from collections.abc import Sequence

import streamlit as st

from viz import links
from viz.language import _
from viz.scene import Scene

NAME, PICTURE = "present", "picture"
MOST = 20
NOW = "presented"
COUNT = "num_pictures"
# The player stands in a shadow of the page, which only such variables get into.
STYLE = """
<style>
:root { --player-legend: none; --player-caption: 1.55rem; --player-zoom: 4;
  --player-tools: none; --player-top: 0rem; }
:root { --player-height: calc(100vh - 20.5rem); }
[data-testid="stHeader"], .st-key-language-switch { display: none !important; }
.stMainBlockContainer { padding-top: 0.8rem; max-width: none; }
.stMainBlockContainer > .stVerticalBlock > *:not([class*="st-key-player"]):not(:has(> .st-key-presenting)) {
  display: none;
}
.st-key-presenting p { font-size: 1.1rem; }
</style>
"""


def begin(*, may_present: bool) -> bool:
    """Said first on each page: is one picture presented? Then the bar above it is drawn."""
    is_on = may_present and links.kept(NAME, ("", "1"), "") == "1"
    st.session_state[NOW] = int(links.kept(PICTURE, [str(n) for n in range(1, MOST)], "1")) if is_on else 0
    if is_on:
        st.html(STYLE)
    return is_on


def button() -> None:
    """The way in."""
    st.button(
        _("Present"),
        key="present",
        on_click=_go,
        args=("1", "1"),
        help=_("One picture of this page in large type, for a projector"),
    )


def bar(title: str) -> None:
    """Which page this is, other pictures, and the way out."""
    count, now = int(st.session_state.get(COUNT, 1)), int(st.session_state[NOW])
    with st.container(key="presenting", horizontal=True, vertical_alignment="center"):
        st.markdown(f"**{title}**", width="stretch")
        for label, step, key in ((_("Previous picture"), -1, "P"), (_("Next picture"), 1, "N")):
            to = str((now - 1 + step) % count + 1)
            st.button(label, key=f"present-{key}", shortcut=key, on_click=_go, args=("1", to))
        st.button(_("Leave"), key="present-leave", shortcut="Esc", on_click=_go, args=("", ""))


def shown(scenes: Sequence[Scene], number: int) -> Sequence[Scene]:
    """The one that is presented, of those for wide screens; all of them if `number` is 0."""
    if not number:
        return scenes
    found = places(scenes)
    return found[(number - 1) % len(found)]


def places(scenes: Sequence[Scene]) -> list[list[Scene]]:
    """What stands where on a wide screen: mostly one picture in each place."""
    found: list[list[Scene]] = []
    for scene in scenes:
        if scene.stacked:
            found[-1].append(scene)
        elif scene.screen != "narrow":
            found.append([scene])
    return found


def _go(is_on: str, picture: str) -> None:
    links.keep(NAME, is_on)
    links.keep(PICTURE, picture)
