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

from viz import jobs, links, loading, player
from viz.about import about
from viz.figures.common import MARKS
from viz.folders import upload_folder
from viz.language import N_, _, current
from viz.live import feed, own_server, window
from viz.live.own_server import OwnServer
from viz.plain import plain
from viz.stage import THEME

TITLE = N_("Live")
URL = "live"
TEASER = N_("A server's engine while it answers: its pool, its queues, its texts.")
ENVIRONMENT = "MINIVLLM_LIVE"
"""The server that the command named."""
KEY = "VLLM_API_KEY"
HOW = "minivllm serve --live"

INTRODUCTION = N_(
    "What the engine of a server does, while it does it: which **blocks** hold whose tokens, which requests "
    "are in the **batch** and which wait, and what each of them says. **Pause** to look at a step, drag on "
    "the curve (or press ← and →) to go back over the last minutes, and **Resume**."
)
KEPT = N_(
    "The page keeps the last {minutes:g} minutes, at most {steps:,} steps; older ones are forgotten. Steps "
    "are counted from the start of the server. What is kept can be saved as a **trace**, which begins with "
    "the state before its first step, and opens on all pages."
)
SIGNS = N_(
    "In a cell: the letter and colour of the request that reads the block, =3 if three sequences do; a pale "
    "strip for slots that are still empty; dashed and grey: cached, and evictable. Signs of what a step did: "
    "{signs}. Point at a block or a text to read all of it."
)
OWN = N_(
    "The dashboard can start one for you: `minivllm serve --live` with the **shipped model** and a small "
    "pool, at a free port of **this machine** (127.0.0.1), with a key of its own. It ends when you stop it, "
    "with the dashboard, and {minutes:g} minutes after no page watches it any more."
)
COMPONENT = st.components.v2.component(
    "minivllm_live", html=player.live_html(), css=player.live_css() + THEME, js=player.live_javascript()
)


def page(run: object = None) -> None:
    """The address, and below it what is seen there."""
    st.title(_(TITLE))
    told = st.container()  # folded away once there is something to look at
    if "live token" not in st.session_state and (named := os.environ.get(ENVIRONMENT)):
        _connect(named, os.environ.get(KEY, ""))
    token = st.session_state.get("live token", "")
    watched = feed.find(token)
    with told:
        about(_about()) if watched else st.markdown(_(INTRODUCTION))
    own = _running_here()
    with st.expander(_("The server"), expanded=watched is None and own is None):
        _form(watched)
        _own(own)
    if own:
        _running(own)
    if watched is None:
        return
    data = {"feed": f"{feed.PREFIX}{token}", "language": current(), "words": player.words("live")}
    COMPONENT(data=data, key=f"live-{token}")
    if st.button(
        _("Open what was seen on all pages"), help=_("As it is now; the live view goes on meanwhile.")
    ):
        _open(watched)


def _about() -> str:
    """What is seen, what its signs mean, and how much of it is kept."""
    signs = _(", ").join(f"**{mark.sign}** {mark.words}" for mark in MARKS.values())
    kept = _(KEPT).format(minutes=window.MOST_SECONDS / 60, steps=window.MOST_STEPS)
    return "\n\n".join([_(INTRODUCTION), _(SIGNS).format(signs=signs), kept])


def _form(watched: feed.Watched | None) -> None:
    with st.form("live-server", border=False):
        address = watched.connection.url if watched else os.environ.get(ENVIRONMENT, "http://127.0.0.1:8000")
        url = st.text_input(_("Address of the server"), address)
        key = st.text_input(_("Its API key, if it asks for one"), type="password", autocomplete="off")
        submitted = st.form_submit_button(_("Connect"))
    st.markdown(_("The server must allow it:"))
    st.code(HOW, language="shell")
    if submitted and _connect(url, key):
        st.rerun()


def _running_here() -> OwnServer | None:
    """The dashboard's own server, if it runs."""
    server = getattr(jobs.find(own_server.NAME), "result", None)
    return server if isinstance(server, OwnServer) and server.is_running else None


def _own(server: OwnServer | None) -> None:
    """How the dashboard's own server is asked, or how it is started."""
    if server:
        st.markdown(_("Ask it yourself"))
        st.code(own_server.command(server), language="shell")
        return
    job = jobs.find(own_server.NAME)
    st.divider()
    st.markdown(_(OWN).format(minutes=own_server.UNWATCHED_SECONDS / 60))
    if job and job.is_running:
        jobs.watch(job, _starting)
        return
    if job and job.problem:
        st.error(plain(job.problem))
    if st.button(_("Start a server here")):
        jobs.start(own_server.NAME, own_server.start)
        st.rerun()


def _starting(job: jobs.Job) -> None:
    st.info(
        _(
            "The server starts ({seconds:.0f} s). The first time on a machine it compiles its "
            "kernels, which takes half a minute."
        ).format(seconds=job.seconds)
    )
    if job.told:
        st.code("\n".join(job.told[-4:]), language=None)


def _running(server: OwnServer) -> None:
    """What can be done with it: watch it, ask it, stop it."""
    token = st.session_state.get("live token", "")
    watched = feed.find(token)
    is_watched = watched is not None and watched.connection.url == server.url
    words = _("This dashboard runs a server at {url} (process {pid}).").format(url=server.url, pid=server.pid)
    asking = jobs.find(own_server.ASKING)
    is_asking = bool(asking and asking.is_running)
    row = st.container(horizontal=True, vertical_alignment="center")
    row.success(words)
    if row.button(_("Watch it"), disabled=is_watched) and _connect(server.url, server.key):
        st.rerun()
    how_many = _("Send it {count} requests").format(count=len(own_server.PROMPTS))
    if row.button(how_many, disabled=is_asking):
        jobs.start(own_server.ASKING, lambda _: own_server.ask(server))
        st.rerun()
    if row.button(_("Stop it")):
        with st.spinner(_("The server stops …")):
            server.stop()
        st.rerun()
    if asking and asking.is_running:
        jobs.watch(asking, _answering)
    elif asking and asking.problem:
        st.error(plain(asking.problem))


def _answering(job: jobs.Job) -> None:
    st.caption(_("It answers ({seconds:.0f} s) …").format(seconds=job.seconds))


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
    own = getattr(jobs.find(own_server.NAME), "result", None)
    found = feed.find(token)
    if isinstance(own, OwnServer) and found and own.url == found.connection.url:
        own.watched_by(found.connection)
    return True


def _open(watched: feed.Watched) -> None:
    content = watched.trace()
    if b'"event":"StepFinished"' not in content:
        st.error(_("No step was seen yet, so there is nothing to open."))
        return
    path = Path(tempfile.mkdtemp(dir=upload_folder())) / "live.jsonl"
    path.write_bytes(content)
    loading.choose(path)
    links.go("overview")
