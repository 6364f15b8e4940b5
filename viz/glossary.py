"""The glossary: one line a term, as the repository's GLOSSARY.md has it, taken apart for a page.

    # Glossary
    A few sentences.                                                         introduction
    ## Memory                                                                title of a group
    | term | meaning | where in the code |                                   headings
    |---|---|---|
    | block table | Which physical block holds … | `minivllm/memory/…` |      a term

The file is read as it is, so there is one list of terms for the repository and for the dashboard. An
installation may come without it: then there is no glossary, and the page says so.

Read next: `glossary_table.py`, which shows it.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
FILES = {"en": "GLOSSARY.md", "zh": "GLOSSARY.zh.md"}
"""Language → its file at the root of the repository."""

LINK = re.compile(r"\[([^\]]*)\]\(([^)\s]+)[^)]*\)")
RULE = re.compile(r":?-+:?")


class Term(NamedTuple):
    """One line. Text between backticks is code; there is no other markup."""

    name: str
    meaning: str
    place: str
    """Where in the code."""


class Group(NamedTuple):
    """Terms about one subject."""

    title: str
    headings: tuple[str, ...]
    """Of the columns."""
    terms: tuple[Term, ...]


class Glossary(NamedTuple):
    """A whole file."""

    introduction: str
    groups: tuple[Group, ...]


def read_glossary(language: str) -> Glossary | None:
    """The glossary in a language; None if this installation has none that can be read."""
    try:
        text = (ROOT / FILES[language]).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None
    glossary = parse(text)
    return glossary if glossary.groups else None


def parse(text: str) -> Glossary:
    """Take a Markdown file apart; a group without terms is left out."""
    title, introduction, groups = "", list[str](), list[Group]()
    headings, terms = tuple[str, ...](), list[Term]()

    def close() -> None:
        if terms:
            groups.append(Group(title, headings, tuple(terms)))
        terms.clear()

    for line in text.splitlines():
        if match := re.match(r"(#+)\s+(.*)", line):
            close()
            if len(match[1]) > 1:
                title, headings = _plain(match[2]), ()
        elif line.lstrip().startswith("|"):
            cells = _cells(line)
            if not headings:
                headings = tuple(_plain(cell) for cell in cells)
            elif not all(RULE.fullmatch(cell) for cell in cells):
                terms.append(_term(cells))
        elif not title and not LINK.fullmatch(line.strip()):  # such a line leads to the other language
            introduction.append(_plain(line))
    close()
    return Glossary("\n".join(introduction).strip(), tuple(groups))


def _cells(line: str) -> list[str]:
    """The cells of a row of a table; `\\|` is a character of a cell."""
    parts = re.split(r"(?<!\\)\|", line.strip())
    return [part.replace("\\|", "|").strip() for part in parts[1 : -1 if not parts[-1] else None]]


def _term(cells: list[str]) -> Term:
    name, meaning, place = (*cells, "", "", "")[:3]
    # What a link of the last column leads to says more than its words.
    return Term(_plain(name), _plain(meaning), _plain(LINK.sub(r"`\2`", place)))


def _plain(text: str) -> str:
    """Without links and bold type; code stays between its backticks."""
    return LINK.sub(r"\1", text).replace("**", "")
