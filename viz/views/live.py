"""Page "Live": the running engine of a server, while it answers.

The page is put together once; after that the browser asks for frames by itself (`viz/live/feed.py`). A link
connects to nothing: the address is typed, or named by the command.

Read next: `viz/live/__init__.py`.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import streamlit as st

from viz import links, loading, player
from viz.figures.common import MARKS
from viz.folders import upload_folder
from viz.live import feed, window
from viz.plain import plain
from viz.stage import THEME

TITLE = "Live"
URL = "live"
TEASER = "A server's engine while it answers: its pool, its queues, its texts."
ENVIRONMENT = "MINIVLLM_LIVE"
"""The server that the command named."""
KEY = "VLLM_API_KEY"
HOW = "minivllm serve --live"

INTRODUCTION = (
    "What the engine of a server does, while it does it: which **blocks** hold whose tokens, which requests "
    "are in the **batch** and which wait, and what each of them says. **Pause** to look at a step, drag on "
    "the curve (or press ← and →) to go back over the last minutes, and **Resume**."
)
KEPT = (
    f"The page keeps the last {window.MOST_SECONDS / 60:g} minutes, at most {window.MOST_STEPS:,} steps; "
    "older ones are forgotten. Steps are counted from the start of the server. What is kept can be saved as "
    "a **trace**, which begins with the state before its first step, and opens on all pages."
)
SIGNS = (
    "In a cell: the letter and colour of the request that reads the block, =3 if three sequences do; a pale "
    "strip for slots that are still empty; dashed and grey: cached, and evictable. In the step shown: "
    + ", ".join(
        f"**{mark.sign}** {mark.words.split(' in this')[0].split(' during')[0]}" for mark in MARKS.values()
    )
    + ". Point at a block or a text to read all of it."
)
COMPONENT = st.components.v2.component(
    "minivllm_live", html=player.live_html(), css=player.live_css() + THEME, js=player.live_javascript()
)


def page(run: object = None) -> None:
    """The address, and below it what is seen there."""
    st.title(TITLE)
    st.markdown(INTRODUCTION)
    if "live token" not in st.session_state and (named := os.environ.get(ENVIRONMENT)):
        _connect(named, os.environ.get(KEY, ""))
    token = st.session_state.get("live token", "")
    watched = feed.find(token)
    with st.expander("The server", expanded=watched is None):
        _form(watched)
    if watched is None:
        return
    COMPONENT(data={"feed": f"{feed.PREFIX}{token}"}, key=f"live-{token}")
    st.caption(SIGNS)
    st.caption(KEPT)
    if st.button("Open what was seen on all pages", help="As it is now; the live view goes on meanwhile."):
        _open(watched)


def _form(watched: feed.Watched | None) -> None:
    with st.form("live-server", border=False):
        address = watched.connection.url if watched else os.environ.get(ENVIRONMENT, "http://127.0.0.1:8000")
        url = st.text_input("Address of the server", address)
        key = st.text_input("Its API key, if it asks for one", type="password", autocomplete="off")
        submitted = st.form_submit_button("Connect")
    st.markdown("The server must allow it:")
    st.code(HOW, language="shell")
    if submitted and _connect(url, key):
        st.rerun()


def _connect(url: str, key: str) -> bool:
    """Watch this server, and no longer the one before."""
    try:
        token = feed.watch(url, key)
    except ValueError as error:
        st.error(plain(error))
        return False
    if before := st.session_state.get("live token"):
        feed.forget(before)
    st.session_state["live token"] = token
    return True


def _open(watched: feed.Watched) -> None:
    content = watched.trace()
    if b'"event":"StepFinished"' not in content:
        st.error("No step was seen yet, so there is nothing to open.")
        return
    path = Path(tempfile.mkdtemp(dir=upload_folder())) / "live.jsonl"
    path.write_bytes(content)
    loading.choose(path)
    links.go("overview")
