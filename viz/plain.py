"""A text of a stranger's on a page: nothing in it is Markdown, an icon, a formula or a link.

Streamlit takes most of the texts that it is given for Markdown, with additions of its own, some of which look
at a text after its escapes are gone. So marks are escaped, and where that does not help, an invisible word
joiner stands in between:

    [a](b) `c` $d$ <e>        \\[a\\]\\(b\\) …                        escaped: Markdown, formulas, HTML
    :red[a]  :smile:  http:   \\:⁠red …                              joined: directives, emoji, icons, links
    a -> b                    a ⁠\\-\\> b                            joined: Streamlit makes an arrow of it

Pictures need none of it: the player writes with `textContent`, and `backends/` escape for themselves.
Read next: `minivllm/text.py`, which knows the characters that are dangerous everywhere.
"""

from __future__ import annotations

import re

from minivllm.text import printable

MARKS = "\\`*_{}[]<>()#+-.!|~$:&"
JOINER = "\u2060"
AFTER = re.compile(r"(:|@|\bwww)(?=\S)", re.IGNORECASE)
"""What begins an icon, an emoji or a link, if something follows it."""
ARROWS = re.compile(r"(?<!\S)(?=(?:<->|->|<-|--|>=|<=|~=)(?!\S))")


def plain(text: object) -> str:
    """The text as it is, on one line, for whatever takes Markdown."""
    words = " ".join(printable(str(text)).split())
    words = ARROWS.sub(JOINER, AFTER.sub(rf"\1{JOINER}", words))
    return "".join(f"\\{char}" if char in MARKS else char for char in words)


def code(text: object) -> str:
    """The same in the font of code, for whatever takes Markdown."""
    words = " ".join(printable(str(text)).split())
    fence = "`" * (1 + max(map(len, re.findall("`+", words)), default=0))
    room = " " if "`" in words else ""
    return f"{fence}{room}{words}{room}{fence}" if words else ""
