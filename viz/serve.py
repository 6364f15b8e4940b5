"""Starting the dashboard: `python -m viz.serve [TRACE] [--live URL] [--port N] [--folder FOLDER] …`.

Streamlit runs in this process, on this machine only, behind a gate that lets in only its own pages: it sends
nothing anywhere, asks for no e-mail address, and watches no file. Once it answers, the command says where it
is, opens a browser if there is one, and stays until Ctrl-C.

Read next: `gate.py`, then `app.py`.
"""

from __future__ import annotations

import argparse
import errno
import os
import socket
import sys
import threading
import webbrowser
from collections.abc import Callable, Sequence
from pathlib import Path
from urllib.parse import quote

from minivllm.processes import ROOT
from minivllm.text import printable
from minivllm.trace.kernel_events import is_kernel_trace
from minivllm.trace.precision_events import is_precision
from minivllm.trace.story_events import is_story
from viz import folders
from viz.addresses import Addresses
from viz.gate import Gate
from viz.live.connection import check_url
from viz.live.feed import LiveFeed
from viz.own_place import OwnPlace
from viz.palette import DARK, colour

HOST = "127.0.0.1"
APP = ROOT / "viz" / "app.py"
TRACE = "MINIVLLM_TRACE"
LIVE = "MINIVLLM_LIVE"
GOODBYE_SECONDS = 1
"""What open pages are given to say goodbye."""
SETTINGS = {
    "server.address": HOST,
    "server.headless": True,  # no question for an e-mail address, and no browser of its own
    "server.fileWatcherType": "none",
    "browser.gatherUsageStats": False,
    "browser.serverAddress": HOST,
    "client.toolbarMode": "minimal",
    "logger.level": "error",
    # Pictures that stand still bring their own ground: that of the page.
    "theme.dark.backgroundColor": colour("page", DARK),
    "theme.dark.secondaryBackgroundColor": colour("panel", DARK),
}


def serve(
    trace: Path | None,
    port: int = 8501,
    open_browser: bool = True,
    more_folders: Sequence[Path] = (),
    live: str | None = None,
) -> int:
    """Run the dashboard until it is stopped. Returns 2 if the port cannot be had, 1 if it did not start."""
    if live is not None:
        try:
            check_url(live)
        except ValueError as error:
            print(f"--live: {error}", file=sys.stderr)
            return 2
    for folder in more_folders:
        if not folder.is_dir():
            print(f"--folder: there is no folder {printable(str(folder))!r}", file=sys.stderr)
            return 2
    bound = bind(port)
    if isinstance(bound, str):
        other = port + 1 if port < 65535 else 8502
        again = " ".join(["minivllm dashboard", *([str(trace)] if trace else []), f"--port {other}"])
        print(f"Port {port} {bound}. Choose another one: {again}", file=sys.stderr)
        return 2
    for name in (TRACE, LIVE):
        os.environ.pop(name, None)
    os.environ.update(variables(trace, more_folders) | ({LIVE: live} if live else {}))
    link = url(bound.getsockname()[1], trace, is_live=live is not None)

    def ready() -> None:
        print(f"The dashboard is at {link}\nPress Ctrl-C to stop it.", flush=True)
        if open_browser:
            # A browser in the terminal would hold up the pages that it waits for.
            threading.Thread(target=_open_browser, args=(link,), daemon=True).start()

    with bound:
        return 0 if run_server(bound, ready) else 1


def variables(trace: Path | None, more_folders: Sequence[Path] = ()) -> dict[str, str]:
    """What the pages are told by the environment."""
    named = folders.as_variable([trace.parent if trace else Path(), *more_folders])
    return {folders.ENVIRONMENT: named} | ({TRACE: str(trace.resolve())} if trace else {})


def run_server(bound: socket.socket, ready: Callable[[], None], script: Path = APP) -> bool:
    """Answer on a socket until a signal comes; `ready` is called once it does. False if it never did."""
    import streamlit as st
    import uvicorn
    from streamlit.web import bootstrap

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            if self.started:
                ready()

    app = st.App(script)
    # As Streamlit's own command does with its options; but that cannot put a gate before the server.
    bootstrap.load_config_options(SETTINGS | {"server.port": bound.getsockname()[1]})
    server = Server(
        uvicorn.Config(
            Gate(Addresses(OwnPlace(LiveFeed(app)))),
            log_config=None,
            access_log=False,
            ws_per_message_deflate=False,
            timeout_graceful_shutdown=GOODBYE_SECONDS,
        )
    )
    server.run([bound])
    return server.started


def url(port: int, trace: Path | None, *, is_live: bool = False) -> str:
    """The link to open: the first page that shows this kind of trace, or the live page."""
    page = "live" if is_live else ""
    if trace and not is_live:
        kinds = {"microscope": is_kernel_trace, "story": is_story, "precision": is_precision}
        page = next((name for name, is_one in kinds.items() if is_one(trace)), "")
    return f"http://{HOST}:{port}/{page}" + (f"?trace={quote(str(trace.resolve()))}" if trace else "")


def bind(port: int) -> socket.socket | str:
    """A socket at this port, or why there is none."""
    bound = socket.socket()
    # A port whose last user has just left is free.
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((HOST, port))
        return bound
    except OverflowError:
        reason = "does not exist: ports go from 1 to 65535"
    except OSError as error:
        taken = error.errno == errno.EADDRINUSE
        reason = (
            "is taken by another program, perhaps by a dashboard that is still open"
            if taken
            else f"cannot be used: {error.strerror}"
        )
    bound.close()
    return reason


def _open_browser(link: str) -> None:
    try:
        found = webbrowser.open(link)
    except webbrowser.Error:
        found = False
    if not found:
        print("No browser was found on this machine: open the link above in one.", flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m viz.serve", description="Show a trace in the browser.")
    parser.add_argument(
        "trace", nargs="?", type=Path, help="the trace to open; choose one on the page if left out"
    )
    parser.add_argument("--port", type=int, default=8501, help="port on this machine (default: 8501)")
    parser.add_argument(
        "--folder",
        type=Path,
        action="append",
        default=[],
        help="traces below it may be opened, too; may be given several times",
    )
    parser.add_argument("--live", metavar="URL", help="watch the server at this address as it runs")
    parser.add_argument("--no-browser", action="store_true", help="only print the link")
    given = parser.parse_args(arguments)
    return serve(given.trace, given.port, not given.no_browser, given.folder, given.live)


if __name__ == "__main__":
    sys.exit(main())
