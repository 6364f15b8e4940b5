"""Traces that need no path: samples, and those that were opened last.

Read next: `loading.py`, whose form has these above its own fields.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import streamlit as st

from viz import state
from viz.language import _
from viz.plain import plain
from viz.samples import SAMPLES, Sample
from viz.state import Recent

Take = Callable[[Path], None]


def offered(take: Take, take_second: Take | None, key: str) -> None:
    """Two lists; what is chosen is taken at once, and the page runs again.

    Args:
        take_second: takes the one that belongs beside it, if it has one.
        key: tells this form from others on the page.
    """
    _samples(take, take_second, f"{key}-sample")
    _recent(take, f"{key}-recent")


def _samples(take: Take, take_second: Take | None, key: str) -> None:
    def chosen() -> None:
        sample: Sample | None = st.session_state[key]
        st.session_state[key] = None
        if sample is None:
            return
        try:
            paths = sample.unpacked()
        except ValueError as error:
            st.session_state[f"{key} problem"] = str(error)
            return
        if take_second is not None and len(paths) > 1:
            take_second(paths[1])
        take(paths[0])

    st.selectbox(
        _("A sample"),
        SAMPLES,
        None,
        key=key,
        on_change=chosen,
        format_func=lambda sample: _(sample.title),
        placeholder=_("Choose one"),
    )
    if problem := st.session_state.pop(f"{key} problem", ""):
        st.error(plain(problem))


def _recent(take: Take, key: str) -> None:
    found = state.recent()
    if not found:
        return

    def chosen() -> None:
        recent: Recent | None = st.session_state[key]
        st.session_state[key] = None
        if recent is not None:
            take(recent.path)

    st.selectbox(
        _("Opened before"),
        found,
        None,
        key=key,
        on_change=chosen,
        format_func=words_of,
        placeholder=_("Choose one"),
    )


def words_of(recent: Recent) -> str:
    """Its name, the folder that it is in, and whether it is gone."""
    name = f"{recent.path.name} · {recent.path.parent}"
    return name if recent.is_there else _("{name} (gone)").format(name=name)
