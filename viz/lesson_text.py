"""The text of a lesson as a page: what Markdown in a repository is, and a page of Streamlit is not.

    ![…](table.svg)          a picture of the lesson's folder: in the page's theme, with its words below
    [words](../../GLOSSARY.md)   the glossary: a link to its page
    [pool.py](../../a/b.py)  a file of the repository: its path, as a page of the dashboard cannot open it
    <details><summary>…      an answer to be unfolded: an expander

Everything else is Streamlit's own Markdown. Code is never touched.

Read next: `views/lessons.py`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from urllib.parse import unquote

import streamlit as st

from lessons import catalogue
from viz import glossary
from viz.language import current
from viz.still import still

CODE = r"`+(?:[^`\n]|\n(?!\n))+`+"
PICTURE = r"!\[(?P<alt>[^\]]*)\]\((?P<file>[^)\s]+)[^)]*\)"
LINK = r"\[(?P<words>(?:[^\]`]|`[^`]*`)+)\]\((?P<target>[^)\s]+)[^)]*\)"
INLINE = re.compile(f"{CODE}|{PICTURE}|{LINK}")
DARK_RULES = re.compile(r"@media \(prefers-color-scheme:dark\)\{(svg\{[^}]*\})\}")
FENCE = re.compile(r"\s*(```+|~~~+)")
SUMMARY = re.compile(r"<summary>(.*?)</summary>")
GLOSSARIES = {name: language for language, name in glossary.FILES.items()}
# Chinese has no spaces, but a line's end in Markdown is one.
HANZI = r"[\u3000-\u303f\u4e00-\u9fff\uff00-\uffef]"
WRAPPED = re.compile(f"(?<={HANZI})\n(?={HANZI})")


@dataclass(frozen=True)
class Words:
    """Markdown without pictures."""

    markdown: str


@dataclass(frozen=True)
class Picture:
    """A picture of the lesson's folder."""

    path: Path
    words: str


@dataclass(frozen=True)
class Folded:
    """An answer, hidden until it is asked for."""

    summary: str
    parts: tuple[Words | Picture, ...]


Part = Words | Picture | Folded


def show(parts: Iterable[Part]) -> None:
    """Put the parts on the page."""
    for part in parts:
        if isinstance(part, Words):
            st.markdown(part.markdown)
        elif isinstance(part, Picture):
            _show_picture(part)
        else:
            with st.expander(part.summary):
                show(part.parts)


def _show_picture(picture: Picture) -> None:
    """A picture of the lesson's folder."""
    try:
        svg = in_theme(picture.path.read_text(encoding="utf-8"), st.context.theme.type)
    except (OSError, UnicodeDecodeError):
        st.image(str(picture.path), caption=picture.words or None)  # no drawing: Streamlit says what it is
        return
    still(svg, picture.words)
    if picture.words:
        st.caption(picture.words)


def in_theme(svg: str, theme: str | None) -> str:
    """In a text a picture follows its viewer's system; on a page the page's theme, which may be another."""
    if theme == "dark":
        return DARK_RULES.sub(r"\1", svg, count=1)
    return DARK_RULES.sub("", svg, count=1) if theme == "light" else svg


def body(text: str) -> str:
    """The text without its first lines, which the page shows in its own way: title, stars and minutes."""
    return "\n".join(text.splitlines()[3:])


def parts_of(text: str, folder: Path) -> list[Part]:
    """A lesson's Markdown, taken apart.

    Args:
        folder: where pictures are, and from where links lead.
    """
    found: list[Part] = []
    lines: list[str] = []
    inner: list[Words | Picture] = []
    summary: str | None = None
    for line, is_code in _lines(text):
        opens, closes = not is_code and "<details" in line, not is_code and "</details>" in line
        if opens and summary is None:
            found += _plain_parts(lines, folder)
            lines, summary = [], ""
        if summary is not None and not is_code:
            if (match := SUMMARY.search(line)) and not summary:
                summary = _linked(match[1].strip(), folder)
                line = line.replace(match[0], "")
            line = re.sub(r"</?details[^>]*>", "", line)
        lines.append(line)
        if closes and summary is not None:
            inner = _plain_parts(lines, folder)
            found.append(Folded(summary or "…", tuple(inner)))
            lines, summary = [], None
    return found + _plain_parts(lines, folder)


def _lines(text: str) -> Iterator[tuple[str, bool]]:
    """Each line, and whether it belongs to a block of code."""
    fence = ""
    for line in text.splitlines():
        match = FENCE.match(line)
        yield line, bool(fence or match)
        if match and not fence:
            fence = match[1]
        elif match and match[1].startswith(fence):
            fence = ""


def _plain_parts(lines: list[str], folder: Path) -> list[Words | Picture]:
    """Pictures, and the words between them."""
    found: list[Words | Picture] = []
    words = ""

    def flush() -> None:
        nonlocal words
        if words.strip():
            found.append(Words(words.strip("\n")))
        words = ""

    for is_code, group in groupby(_lines("\n".join(lines)), key=lambda item: item[1]):
        rest = "\n".join(line for line, _ in group) + "\n"
        if is_code:
            words += rest
            continue
        rest = WRAPPED.sub("", rest)
        while match := _picture_in(rest):
            path = folder / unquote(match["file"])
            words += _linked(rest[: match.start()], folder)
            rest = rest[match.end() :]
            if path.is_file():
                flush()
                found.append(Picture(path, match["alt"]))
            else:
                words += f"*{match['alt'] or path.name}*"
        words += _linked(rest, folder)
    flush()
    return found


def _picture_in(text: str) -> re.Match[str] | None:
    return next((match for match in INLINE.finditer(text) if match["file"]), None)


def _linked(text: str, folder: Path) -> str:
    """Links to what the page cannot open become what they lead to."""

    def change(match: re.Match[str]) -> str:
        target, words = match["target"], match["words"]
        if not target or re.match(r"https?://", target):
            return match[0]
        if target.startswith("#"):
            return words
        path = (folder / unquote(target.split("#")[0])).resolve()
        if language := GLOSSARIES.get(path.name):
            return f"[{words}](/glossary?lang={language})"
        if lesson := _lesson_at(path):
            # It opens in a window of its own, which would speak as the browser does.
            return f"[{words}](?lesson={lesson.number}&lang={current()})"
        if path.name in catalogue.LANGUAGES.values():  # of a lesson that is still to be written
            return words
        try:
            place = path.relative_to(catalogue.ROOT.parent).as_posix()
        except ValueError:
            place = re.sub(r"^(\.\./)+", "", target)
        return f"`{place}`" if words.strip("`") in (path.name, place) else f"{words} (`{place}`)"

    return INLINE.sub(change, text)


def _lesson_at(path: Path) -> catalogue.Lesson | None:
    """The lesson that a path is the text or the folder of."""
    folder = path.parent if path.name in catalogue.LANGUAGES.values() else path
    return next((lesson for lesson in catalogue.lessons() if lesson.folder == folder), None)
