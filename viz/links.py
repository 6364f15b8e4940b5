"""Links from page to page, by their names.

Streamlit forgets the link's parameters when the page changes; what must not be forgotten is kept in the
session, and written into the link again. A link that was followed says more than what was kept.

Read next: `views/lessons.py`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

import streamlit as st

from viz import loading


def kept(name: str, allowed: Collection[str], default: str) -> str:
    """What the link says, or else what was kept, or else the default; kept, and in the link, from now on."""
    value = st.query_params.get(name) or st.session_state.get(f"kept {name}") or default
    if value not in allowed:
        value = default
    keep(name, value)
    return value


def keep(name: str, value: str) -> None:
    """Keep a value, and put it into the link; nothing: take it out."""
    st.session_state[f"kept {name}"] = value
    if value:
        st.query_params[name] = value
    else:
        st.query_params.pop(name, None)


def choice(name: str, options: tuple[str, ...], value: str, label: str, words: Mapping[str, str]) -> None:
    """Buttons for a value that is kept in the link; the page runs again with another one."""
    key = f"choice {name}"
    st.session_state[key] = value

    def chosen() -> None:  # nothing, if the pressed button was pressed again
        keep(name, st.session_state[key] or value)

    st.segmented_control(
        label,
        options,
        key=key,
        on_change=chosen,
        format_func=lambda option: words[option],
        label_visibility="collapsed",
    )


def select(
    name: str, options: Mapping[str, str], label: str, *, width: int = 360, otherwise: str = ""
) -> str:
    """A list of values, each with its words, of which one is kept in the link; of a single one, no list.

    Args:
        otherwise: what stands there while nothing ("") is chosen, if that is one of the options.
    """
    if len(options) == 1:
        return next(iter(options))
    value = kept(name, options, next(iter(options)))
    named = [option for option in options if option]
    # A key of its own would be forgotten when the page changes.
    chosen = st.selectbox(
        label,
        named,
        named.index(value) if value else None,
        format_func=options.__getitem__,
        placeholder=otherwise or None,
        width=width,
    )
    if (chosen or "") != value:
        keep(name, chosen or "")
    return chosen or ""


def has_page(url: str) -> bool:
    """Is there a page of this name? (Pages are also drawn alone, in tests.)"""
    return url in st.session_state.get("pages", {})


def page_link(url: str, label: str) -> None:
    """A link to a page of the dashboard, if there is one of this name."""
    if has_page(url):
        st.page_link(st.session_state.pages[url], label=label)


def go(url: str, trace: Path | None = None, values: Mapping[str, str] | None = None) -> None:
    """Go to a page at once: with another trace, with other values to keep."""
    if trace is not None:
        loading.choose(trace)
    for name, value in (values or {}).items():
        keep(name, value)
    st.switch_page(st.session_state.pages[url])
