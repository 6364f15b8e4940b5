"""Starting the dashboard: `python -m viz.serve [TRACE] [--port N] [--no-browser]`.

Streamlit runs as a process of its own, on this machine only: it sends nothing anywhere, asks for no e-mail
address, and watches no file. The command waits until the page answers, says where it is, opens a
browser if there is one, and stays until Ctrl-C.

Read next: `app.py`.
"""

from __future__ import annotations

import argparse
import errno
import signal
import socket
import subprocess
import sys
import time
import webbrowser
from collections.abc import Sequence
from pathlib import Path
from urllib.error import URLError
from urllib.parse import quote
from urllib.request import urlopen

from lessons.child import child_environment
from minivllm.trace.kernel_events import is_kernel_trace
from minivllm.trace.story_events import is_story

HOST = "127.0.0.1"
ROOT = Path(__file__).resolve().parent.parent
PATIENCE_SECONDS = 60.0


def serve(trace: Path | None, port: int = 8501, open_browser: bool = True) -> int:
    """Run the dashboard until it is stopped. Returns 2 if the port cannot be had, 1 if it did not start."""
    if obstacle := _obstacle(port):
        other = port + 1 if port < 65535 else 8502
        again = " ".join(["minivllm dashboard", *([str(trace)] if trace else []), f"--port {other}"])
        print(f"Port {port} {obstacle}. Choose another one: {again}", file=sys.stderr)
        return 2
    # A shell's process group gets Ctrl-C as a whole, so Streamlit ends with us.
    with subprocess.Popen(command(port), env=environment(trace), stdout=subprocess.DEVNULL) as server:
        try:
            if not wait_until_ready(server, port):
                print("The dashboard did not start; its own messages are above.", file=sys.stderr)
                return 1
            link = url(port, trace)
            print(f"The dashboard is at {link}\nPress Ctrl-C to stop it.", flush=True)
            if open_browser and not _open_browser(link):
                print("No browser was found on this machine: open the link above in one.", flush=True)
            return server.wait()
        except KeyboardInterrupt:
            return 0
        finally:
            server.terminate()


def command(port: int) -> list[str]:
    """The command that starts Streamlit."""
    settings = {
        "server.address": HOST,
        "server.port": str(port),
        "server.headless": "true",  # no question for an e-mail address, and no browser of its own
        "server.fileWatcherType": "none",
        "browser.gatherUsageStats": "false",
        "browser.serverAddress": HOST,
        "client.toolbarMode": "minimal",
        "logger.level": "error",
    }
    flags = [part for name, value in settings.items() for part in (f"--{name}", value)]
    return [sys.executable, "-m", "streamlit", "run", str(ROOT / "viz" / "app.py"), *flags]


def environment(trace: Path | None) -> dict[str, str]:
    """This process's environment, with the trace, and a path on which `viz` is found."""
    variables = child_environment()
    variables.pop("MINIVLLM_TRACE", None)
    if trace is not None:
        variables["MINIVLLM_TRACE"] = str(trace.resolve())
    return variables


def url(port: int, trace: Path | None) -> str:
    """The link to open: the first page that shows this kind of trace."""
    page = ""
    if trace:
        page = "microscope" if is_kernel_trace(trace) else "story" if is_story(trace) else ""
    return f"http://{HOST}:{port}/{page}" + (f"?trace={quote(str(trace.resolve()))}" if trace else "")


def wait_until_ready(server: subprocess.Popen[bytes], port: int) -> bool:
    """Wait until the server answers. False if it has ended, or still does not answer after a minute."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline and server.poll() is None:
        try:
            with urlopen(f"http://{HOST}:{port}/_stcore/health", timeout=2):
                return True
        except (URLError, OSError):
            time.sleep(0.1)
    return False


def _obstacle(port: int) -> str | None:
    """Why the server could not use this port; None if it could."""
    with socket.socket() as probe:
        # As the server will: a port whose last user has just left is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OverflowError:
            return "does not exist: ports go from 1 to 65535"
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                return "is taken by another program, perhaps by a dashboard that is still open"
            return f"cannot be used: {error.strerror}"
    return None


def _open_browser(link: str) -> bool:
    try:
        return webbrowser.open(link)
    except webbrowser.Error:
        return False


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m viz.serve", description="Show a trace in the browser.")
    parser.add_argument(
        "trace", nargs="?", type=Path, help="the trace to open; choose one on the page if left out"
    )
    parser.add_argument("--port", type=int, default=8501, help="port on this machine (default: 8501)")
    parser.add_argument("--no-browser", action="store_true", help="only print the link")
    given = parser.parse_args(arguments)
    # Being told to end is like Ctrl-C: the server must not stay behind.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    return serve(given.trace, given.port, not given.no_browser)


if __name__ == "__main__":
    sys.exit(main())
