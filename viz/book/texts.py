"""The texts of the book: what lessons, glossary and figures say, as the Markdown that Sphinx reads.

Pictures become frames in which they play; links to lessons and glossary lead to their pages; a file of the
repository is its path, as the book does not have it. The words are those of the files, in their language.

Read next: `site.py`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path

from lessons.catalogue import Lesson
from viz.book.pictures import WHOLE, Played
from viz.glossary import FILES, ROOT
from viz.language import LANGUAGES, _, speaking
from viz.lesson_text import Folded, Part, Picture, Words, body, parts_of

FIGURES = ROOT / "docs" / "figures"
"""The papers' figures, redrawn: Markdown and pictures, in English."""
OTHER = {"en": "zh", "zh": "en"}


def lesson_page(
    lesson: Lesson, language: str, played: Mapping[str, Played], stills: Path, known: Iterable[Lesson]
) -> str:
    """A lesson's page.

    Args:
        played: by the names of pictures in the text, their pages.
        stills: where pictures go that cannot be played.
        known: the lessons that this book has.
    """
    numbers = {item.number: item.name for item in known}
    with speaking(language):
        return _lesson_page(lesson, language, played, stills, numbers)


def _lesson_page(
    lesson: Lesson, language: str, played: Mapping[str, Played], stills: Path, numbers: Mapping[str, str]
) -> str:
    parts = parts_of(body(lesson.text(language)), lesson.folder)
    text = [
        switch(f"lessons/{lesson.name}", language),
        f"# {lesson.heading(language)}",
        lesson.about(language),
    ]
    whole = played.get(WHOLE)
    for part in parts:
        told = _part(part, played, stills)
        place = _after_walkthrough(told, lesson) if whole and isinstance(part, Words) else -1
        if whole and place >= 0:
            told = f"{told[:place]}\n\n{_frame(whole, '../')}\n\n{told[place:]}"
            whole = None
        text.append(told)
    if whole:
        text.append(_frame(whole, "../"))
    return _linked("\n\n".join(text) + "\n", numbers)


def _part(part: Part, played: Mapping[str, Played], stills: Path) -> str:
    if isinstance(part, Words):
        return part.markdown
    if isinstance(part, Picture):
        if part.path.name in played:
            return _frame(played[part.path.name], "../", part.words)
        stills.mkdir(parents=True, exist_ok=True)
        (stills / part.path.name).write_bytes(part.path.read_bytes())
        return f"![{part.words}]({stills.name}/{part.path.name})"
    inner = "\n\n".join(_part(item, played, stills) for item in part.parts)
    return f"<details><summary>{_inline(part.summary)}</summary>\n\n{inner}\n\n</details>"


def _after_walkthrough(words: str, lesson: Lesson) -> int:
    """The end of the paragraph that names the walkthrough; -1 if none does."""
    at = words.find(f"{lesson.name}/walkthrough.py")
    if at < 0:
        return -1
    end = words.find("\n\n", at)
    return len(words) if end < 0 else end


def _frame(played: Played, up: str, words: str = "") -> str:
    """A picture that plays. `up` leads from the page to the folder of the language."""
    title = escape(words or played.title)
    source = f"{up}pictures/{played.file}"
    style = f"aspect-ratio: 1 / {played.ratio + 0.25:.2f}"
    return (
        f'<figure class="playing"><iframe class="playing" loading="lazy" src="{source}" title="{title}" '
        f'style="{style}"></iframe><figcaption>{title} (<a href="{source}">{_("alone")}</a>)'
        "</figcaption></figure>"
    )


def _inline(text: str) -> str:
    """A line of Markdown within HTML: text and code."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text))


def _linked(text: str, numbers: Mapping[str, str]) -> str:
    """The dashboard's links (`lesson_text.py`) become those of the book."""

    def to_lesson(match: re.Match[str]) -> str:
        name = numbers.get(match[2])
        return f"[{match[1]}]({name}.md)" if name else match[1]

    text = re.sub(r"\[((?:[^\]`]|`[^`]*`)+)\]\(\?lesson=(\w+)[^)]*\)", to_lesson, text)
    if all((ROOT / name).is_file() for name in FILES.values()):
        return re.sub(r"\(/glossary\?lang=\w+\)", "(../glossary.md)", text)
    return re.sub(r"\[((?:[^\]`]|`[^`]*`)+)\]\(/glossary\?lang=\w+\)", r"\1", text)


def switch(page: str, language: str) -> str:
    """The link to the same page in the other language."""
    other = OTHER[language]
    up = "../" * (page.count("/") + 1)
    return f'<a class="language" lang="{other}" href="{up}{other}/{page}.html">{LANGUAGES[other]}</a>'


def glossary_page(language: str) -> str | None:
    """The glossary's page; None if this installation has none."""
    try:
        text = (ROOT / FILES[language]).read_text(encoding="utf-8")
    except OSError:
        return None
    lines = [line for line in text.splitlines() if not re.fullmatch(r"\[[^\]]*\]\(GLOSSARY[^)]*\)", line)]
    title, rest = lines[0], "\n".join(lines[1:])
    told = "\n\n".join(part.markdown for part in parts_of(rest, ROOT) if isinstance(part, Words))
    told = re.sub(r"\[((?:[^\]`]|`[^`]*`)+)\]\((\?lesson|/glossary)[^)]*\)", r"\1", told)
    return f"{switch('glossary', language)}\n\n{title}\n\n{told}\n"


def samples_page(language: str, samples: Iterable[tuple[str, Sequence[Played]]]) -> str:
    """The page of the project's samples: their titles, and the pictures that they are best seen on."""
    with speaking(language):
        text = [switch("samples", language), f"# {_('Samples')}"]
        text += [_("Small runs that come with minivllm. The dashboard opens each of them on every page.")]
        for title, pictures in samples:
            text += [f"## {_(title)}", *(_frame(played, "") for played in pictures)]
    return "\n\n".join(text) + "\n"


def figures_page(language: str, folder: Path) -> str | None:
    """The page of the papers' figures, whose pictures go beside it; None if this installation has none."""
    try:
        text = (FIGURES / "figures.md").read_text(encoding="utf-8")
        for path in sorted(FIGURES.glob("*.png")):
            (folder / path.name).write_bytes(path.read_bytes())
    except OSError:
        return None
    parts = parts_of(text, FIGURES)
    told = [
        f"![{part.words}]({part.path.name})"
        if isinstance(part, Picture)
        else _part(part, {}, folder)
        if isinstance(part, Folded)
        else part.markdown
        for part in parts
    ]
    return "\n\n".join([switch("figures", language), *told]) + "\n"


def front_page(language: str, lessons: Iterable[Lesson], others: Iterable[str]) -> str:
    """The first page of a language, with the contents.

    Args:
        others: names of the pages beside the lessons.
    """
    with speaking(language):
        words = _(
            "minivllm is to vLLM what a glass engine is to a car: small, true, readable. This book has its "
            "lessons, and every picture in it plays: click it, then step with ← and →; Space plays, Home and "
            "End go to the first and the last step. What you see are recorded runs of the real engine."
        )
        contents, more = _("Lessons"), _("Look up")
        titles = {"figures": _("The papers' figures")}  # whose page is in English
    names = "\n".join(f"lessons/{lesson.name}" for lesson in lessons)
    rest = "\n".join(f"{titles[name]} <{name}>" if name in titles else name for name in others)
    return (
        f"{switch('index', language)}\n\n# minivllm\n\n{words}\n\n"
        f"```{{toctree}}\n:caption: {contents}\n:maxdepth: 1\n\n{names}\n```\n\n"
        f"```{{toctree}}\n:caption: {more}\n:maxdepth: 1\n\n{rest}\n```\n"
    )
