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
<html lang="{language}"{kind}>
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
{style}<style>
:root {{ color-scheme: light dark; }}
body {{ margin: 0 auto; padding: 1rem; max-width: 75rem; font-family: system-ui, sans-serif;
  background: light-dark(#FFFFFF, #0E1117); color: light-dark(#1F2328, #F0F2F6); }}
html.framed body {{ max-width: none; padding: 4px; }}
html.framed :is(h1, .tools) {{ display: none; }}
svg[aria-label^="{code}"] text {{ font-family: monospace; }}
</style>
</head>
<body>
<main>
<h1>{title}</h1>
{html}
</main>
<script type="application/json" id="data">{data}</script>
{script}<script type="module">
{module}const data = JSON.parse(document.getElementById("data").textContent);
data.linked = false; // a file has no link to keep
mount({{ data, parentElement: document.body }});
{more}</script>
</body>
</html>
"""

SCRIPT, STYLE = "player.js", "player.css"


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


def page_of(
    title: str, data: bytes, language: str | None = None, *, framed: bool = False, beside: bool = False
) -> str:
    """The page for what the player gets, as JSON (`player.player_data`).

    Args:
        beside: the player's script and style are files beside it (`write_player`): for many pages.
        framed: it stands in a frame of another page, which has the title, chooses light or dark, and is told
            how high the picture is.
    """
    # Within a script element only "</script" and "<!--" mean anything; without "<" there is neither.
    return PAGE.format(
        language=language or current(),
        title=escape(printable(title)),
        kind=' class="framed"' if framed else "",
        style=f'<link rel="stylesheet" href="{STYLE}">\n' if beside else f"<style>\n{player.css()}</style>\n",
        code=CODE,
        html=player.html(),
        data=data.decode().replace("<", "\\u003c"),
        script=f'<script src="{SCRIPT}"></script>\n' if beside else "",
        module="" if beside else f"{player.javascript()}\n",
        more=player.framed() if framed else "",
    )


def write_player(folder: Path) -> None:
    """The player as two files, for pages beside them. Raises `CannotWrite` if that cannot be.

    A browser loads no module from the disk, so the script is none: all of it is within one function.
    """
    script = player.javascript().replace("export default function mount", "function mount")
    write_file(folder / SCRIPT, f"const mount = (() => {{\n{script}\nreturn mount;\n}})();\n", "out")
    write_file(folder / STYLE, player.css(), "out")


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
