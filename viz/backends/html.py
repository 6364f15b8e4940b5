"""HTML: scenes and player as one file that needs no server: for a mail, a notebook, a web page.

It is the same player as in the dashboard, with the scenes embedded as JSON. A trace may hold any text, so
nothing of it is ever markup: `<` is escaped in the JSON (a prompt with `</script>` would end it otherwise),
and the player writes only with `textContent`.

Read next: `viz/player/player.js`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import sha256
from html import escape
from pathlib import Path
from typing import Any

import msgspec

from minivllm.files import write_file
from minivllm.text import printable
from viz import player
from viz.backends.svg import CODE
from viz.language import current, speaking
from viz.player import Jump
from viz.scene import Scene

PAGE = """<!doctype html>
<html lang="{language}" class="{kind}">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; }}
body {{ margin: 0 auto; padding: 1rem; max-width: 75rem; font-family: system-ui, sans-serif;
  background: light-dark(#FFFFFF, #0E1117); color: light-dark(#1F2328, #F0F2F6); }}
html.framed body {{ max-width: none; padding: 4px; }}
html.framed :is(h1, .tools) {{ display: none; }}
{css}
svg[aria-label^="{code}"] text {{ font-family: monospace; }}
</style>
</head>
<body>
<main>
<h1>{title}</h1>
{html}
</main>
<script type="application/json" id="data">{data}</script>
<script type="module">
{javascript}
const data = JSON.parse(document.getElementById("data").textContent);
data.linked = false; // a file has no link to keep
mount({{ data, parentElement: document.body }});
{more}</script>
</body>
</html>
"""

# The frames of a page that is opened from the disk may not look into each other: they send messages.
FRAMED = """
if (parent === window) document.documentElement.classList.remove("framed"); // it was opened by itself
addEventListener("message", ({ data: said }) => {
  if (["light", "dark"].includes(said?.minivllmTheme)) {
    document.documentElement.style.colorScheme = said.minivllmTheme;
  }
});
const tell = () => parent.postMessage({ minivllmHeight: document.body.scrollHeight }, "*");
new ResizeObserver(tell).observe(document.body);
tell();
"""


def to_html(
    title: str,
    scenes: Sequence[Scene],
    jumps: Sequence[Jump] = (),
    language: str | None = None,
    requests: Sequence[Mapping[str, Any]] = (),
) -> str:
    """One page that plays the scenes side by side.

    Args:
        language: what its buttons speak; None: the current one. Scenes speak the language they were made in.
        requests: the cards of all requests (`figures/request_cards.py`): then they can be selected.
    """
    fingerprint = sha256(repr((title, scenes[0].captions)).encode()).hexdigest()[:16]
    with speaking(language or current()):
        data = player.player_data(fingerprint, fingerprint, scenes, jumps, requests=requests)
    return page_of(title, msgspec.json.encode(data), language)


def page_of(title: str, data: bytes, language: str | None = None, *, framed: bool = False) -> str:
    """The page for what the player gets, as JSON (`player.player_data`).

    Args:
        framed: it stands in a frame of another page, which has the title, chooses light or dark, and is told
            how high the picture is.
    """
    # Within a script element only "</script" and "<!--" mean anything; without "<" there is neither.
    return PAGE.format(
        language=language or current(),
        title=escape(printable(title)),
        kind="framed" if framed else "",
        css=player.css(),
        code=CODE,
        html=player.html(),
        data=data.decode().replace("<", "\\u003c"),
        javascript=player.javascript(),
        more=FRAMED if framed else "",
    )


def save_html(
    path: str | Path,
    title: str,
    scenes: Sequence[Scene],
    jumps: Sequence[Jump] = (),
    language: str | None = None,
    requests: Sequence[Mapping[str, Any]] = (),
) -> None:
    """Write the page to a file, whole or not at all. Raises `CannotWrite` if that cannot be."""
    write_file(path, to_html(title, scenes, jumps, language, requests), "path")
