"""Addresses as people type them: what nearly is the address of a page leads to it.

    /overview      → /              the first page has no name of its own in Streamlit
    /KV-Pool/      → /kv_pool       other letters, other dashes, a dash at the end
    /gantt         → /scheduler     what a page shows, or was once called
    /no/such/page  → /no-such-page  Streamlit's page finds its scripts beside itself, so not this deep

A link keeps its trace and its step. All else goes on to Streamlit, which says what is not found.

Read next: `gate.py`, the other ASGI application before Streamlit.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from urllib.parse import quote

from viz.gate import App, Message, Receive, Send
from viz.own_place import asks_for_a_page

VIEWS = Path(__file__).parent / "views"
OTHER_NAMES = {
    "overview": "", "home": "", "index": "", "index.html": "",
    "pool": "kv_pool", "block_pool": "kv_pool", "kvpool": "kv_pool", "kv_cache": "kv_pool",
    "schedule": "scheduler", "gantt": "scheduler",
    "beam": "beam_tree", "beams": "beam_tree", "beam_search": "beam_tree",
    "prefix": "prefix_tree", "prefixes": "prefix_tree", "prefix_cache": "prefix_tree",
    "structured": "structured_output", "structured_outputs": "structured_output",
    "kernel": "microscope", "kernels": "microscope",
    "flash": "flash_attention", "flashattention": "flash_attention",
    "lesson": "lessons", "bug": "story", "your_bug": "story",
}  # fmt: skip
STREAMLITS_OWN = {"_stcore", "app", "auth", "component", "media", "static"}
"""Below these are files and answers, which are as deep as they are."""
SEE_THERE = 307


@cache
def pages() -> frozenset[str]:
    """All pages but the first, as links name them. Their files are read: to import them takes Streamlit."""
    sources = (path.read_text(encoding="utf-8") for path in VIEWS.glob("*.py"))
    found = (re.search(r'^URL = "(\w+)"', source, re.MULTILINE) for source in sources)
    return frozenset(match[1] for match in found if match) - {"overview"}


class Addresses:
    """An ASGI application before another one."""

    def __init__(self, app: App) -> None:
        self.app = app

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        page = None
        if scope["type"] == "http":
            page = meant(scope["path"])
            if page is None and asks_for_a_page(scope["headers"]):
                page = flat(scope["path"])
        if page is None or scope["method"] not in ("GET", "HEAD"):
            await self.app(scope, receive, send)
            return
        query = scope.get("query_string", b"")
        there = b"/" + page.encode() + (b"?" + query if query else b"")
        await send({"type": "http.response.start", "status": SEE_THERE, "headers": [(b"location", there)]})
        await send({"type": "http.response.body", "body": b""})


def meant(path: str) -> str | None:
    """The page that a path means and does not name; None if it names one, or means none."""
    name = path.strip("/").lower().replace("-", "_").replace(" ", "_")
    page = OTHER_NAMES.get(name, name)
    known = name in OTHER_NAMES or page in pages()
    return page if known and path != f"/{page}" else None


def flat(path: str) -> str | None:
    """For a path of several parts, a name that no page has, either; None if it is Streamlit's own."""
    parts = [part for part in path.split("/") if part]
    if len(parts) < 2 or parts[0] in STREAMLITS_OWN:
        return None
    return quote("-".join(parts), safe="")
