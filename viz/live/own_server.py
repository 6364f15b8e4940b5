"""A server of the dashboard's own: the shipped model, so that there is something to watch at once.

    Start ──► minivllm serve --live, at a free port of this machine, with a key of its own ──► it is watched
    Ask   ──► a few requests at once, which the page then shows
    Stop  ──► SIGTERM; SIGKILL if that takes too long

There is one for all windows of a dashboard, with a small pool, so that blocks run short. Nothing that a
visitor types is in its command. It ends with the dashboard, however that ends (`minivllm/processes.py`), and
by itself when no page has watched it for some minutes.

Read next: `viz/views/live.py`; SECURITY.md.
"""

from __future__ import annotations

import json
import secrets
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from http.client import HTTPConnection, HTTPException
from time import monotonic, sleep
from urllib.parse import urlsplit

from minivllm.processes import START_SECONDS, Server, start_server
from minivllm.text import printable
from viz.jobs import Job
from viz.live.connection import Connection

NAME = "a server of our own"
ASKING = "requests for our own server"
KEY_VARIABLE = "VLLM_API_KEY"
FLAGS = ("--live", "--host", "127.0.0.1", "--shutdown-timeout", "1")
POOL = ("--num-gpu-blocks-override", "20", "--max-model-len", "256")
"""So few blocks that eight stories do not fit at once: some are preempted."""
LOOK_SECONDS = 0.2
UNWATCHED_SECONDS = 300.0
PROMPTS = (
    "Once upon a time, there was a little fox named",
    "What is paging?",
    "There once was a squirrel who lived by the sea. One sunny morning,",
    "Tell me about continuous batching.",
    "Long ago, a small mouse found a silver key",
    "What does the scheduler do?",
    "Tell me a story.",
    "Why are blocks of a fixed size?",
)
MOST_TOKENS = 160


class OwnServer:
    """A server that runs, at `url`; it asks for `key`."""

    def __init__(self, server: Server, key: str) -> None:
        self._server = server
        self.url, self.key = server.url, key
        self._connections: list[Connection] = []
        self._seen = monotonic()
        threading.Thread(target=self._end_unwatched, name="ends our own server", daemon=True).start()

    @property
    def pid(self) -> int:
        return self._server.process.pid

    @property
    def is_running(self) -> bool:
        return self._server.process.poll() is None

    def watched_by(self, connection: Connection) -> None:
        """While this connection is open, it does not end by itself."""
        self._connections = [one for one in self._connections if not one.is_closed]
        self._connections.append(connection)

    def stop(self) -> None:
        """End it; returns when it has ended."""
        self._server.end()

    def _end_unwatched(self) -> None:
        while self.is_running:
            sleep(LOOK_SECONDS)
            if any(not one.is_closed for one in self._connections):
                self._seen = monotonic()
            elif monotonic() - self._seen > UNWATCHED_SECONDS:
                self.stop()


def start(job: Job, flags: Sequence[str] = ()) -> OwnServer:
    """The work of a job (`viz/jobs.py`): start it, and tell what it says meanwhile.

    Raises:
        ValueError: it did not start, and its own words why.
    """
    key = secrets.token_urlsafe(24)
    # The key is in no command: every user of this machine can read those.
    return OwnServer(start_server([*FLAGS, *POOL, *flags], job.tell, variables={KEY_VARIABLE: key}), key)


def ask(server: OwnServer) -> int:
    """Send all prompts at once, and wait for the answers; returns how many came.

    Raises:
        ValueError: one was not answered, and why.
    """
    with ThreadPoolExecutor(len(PROMPTS)) as pool:
        return sum(pool.map(lambda prompt: _ask_one(server, prompt), PROMPTS))


def _ask_one(server: OwnServer, prompt: str) -> bool:
    body = json.dumps({"prompt": prompt, "max_tokens": MOST_TOKENS, "temperature": 0.8})
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {server.key}"}
    try:
        with closing(HTTPConnection(urlsplit(server.url).netloc, timeout=START_SECONDS)) as http:
            http.request("POST", "/v1/completions", body, headers)
            response = http.getresponse()
            said = response.read()
    except (OSError, HTTPException) as error:
        raise ValueError(f"the server did not answer: {error or type(error).__name__}") from None
    if response.status != 200:
        raise ValueError(f"the server answered with {response.status}: {printable(said[:300].decode())}")
    return True


def command(server: OwnServer) -> str:
    """How to ask it by hand."""
    return (
        f"curl {server.url}/v1/completions -H 'Authorization: Bearer {server.key}' \\\n"
        '     -H \'Content-Type: application/json\' -d \'{"prompt": "Tell me a story.", "max_tokens": 100}\''
    )
