"""The site: texts and pictures go in, `site/en` and `site/zh` come out, made by Sphinx.

    site/index.html         leads to both languages
    site/en/lessons/…       the pages; site/en/pictures/ has those that play in their frames
    site/zh/…               the same in Chinese

Sphinx with MyST (Markdown) and Furo (light, dark, small screens): all are well kept, the search of the result
is a script that works from the disk, and nothing of it is fetched from elsewhere. They come with the extra
`book`.

Read next: `pictures.py`.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from shutil import copyfile, copytree

from lessons.catalogue import Lesson
from lessons.walkthroughs import run_walkthrough
from minivllm.files import CannotWrite, reason
from minivllm.processes import child_command, python_variables
from minivllm.scratch import ScratchFolder
from viz.backends.html import write_player
from viz.book import texts
from viz.book.links import broken_links
from viz.book.pictures import Played, make_pictures, make_samples
from viz.language import LANGUAGES

STATIC = Path(__file__).parent / "static"
MOST_BYTES = 25_000_000
"""Of the whole site."""
SPHINX_LANGUAGES = {"en": "en", "zh": "zh_CN"}
FRONT = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>minivllm</title>
<style>
:root { color-scheme: light dark; }
body { display: grid; place-content: center; min-height: 90vh; font-family: system-ui, sans-serif;
  font-size: 1.5rem; text-align: center; }
a { display: block; margin: 0.5rem; }
</style>
</head>
<body>
<main>
<h1>minivllm</h1>
<a href="en/index.html" lang="en">English</a>
<a href="zh/index.html" lang="zh">中文</a>
</main>
</body>
</html>
"""


def check_installed() -> None:
    """Raises `ValueError` if the generator is not installed: said before minutes are spent."""
    try:
        import furo  # noqa: F401
        import myst_parser  # noqa: F401
        import sphinx  # noqa: F401
    except ImportError as error:
        raise ValueError(
            f'the book is made by Sphinx, and {error.name} is not installed: pip install "minivllm[book]"'
        ) from error


def make_book(
    out: Path, lessons: Sequence[Lesson], traces: Path | None, tell: Callable[[str], None] = print
) -> int:
    """Write the site, and say what is done; how many bytes it has.

    Args:
        out: a new or an empty folder.
        traces: where the walkthroughs have left their traces; None runs them.
        tell: is told each step, and what could not be played.

    Raises:
        ValueError: a generator is missing, a walkthrough fails, a link leads nowhere, or it is too large.
        CannotWrite: the site is whole, and there is no room for it.
    """
    check_installed()
    with ScratchFolder("book") as folder:
        site = folder / "site"
        if traces is None:
            traces = folder / "traces"
            for lesson in lessons:
                tell(f"{lesson.name}: its walkthrough runs")
                traces.mkdir(parents=True, exist_ok=True)
                if lesson.walkthrough.is_file():
                    run_walkthrough(lesson.walkthrough, traces)
        for language in LANGUAGES:
            source = Path(folder) / language
            pictures = site / language / "pictures"
            pictures.mkdir(parents=True)
            write_player(pictures)
            _write_sources(source, pictures, lessons, traces, language, tell)
            tell(f"{LANGUAGES[language]}: {len(list(pictures.glob('*.html')))} pictures play; Sphinx runs")
            _run_sphinx(source, site / language, language)
        (site / "index.html").write_text(FRONT, encoding="utf-8")
        (site / ".nojekyll").touch()  # GitHub Pages leaves folders out that begin with "_"
        size = _checked(site)
        try:
            copytree(site, out, dirs_exist_ok=True)
        except OSError as error:  # a list of them is one, too
            raise CannotWrite(f"out: cannot write to {out}: {reason(error)}") from error
    return size


def _checked(site: Path) -> int:
    """How many bytes it has. Raises `ValueError` if a link leads nowhere, or it is too large."""
    if faults := broken_links(site):
        raise ValueError("the book has broken links:\n" + "\n".join(faults[:20]))
    size = sum(path.stat().st_size for path in site.rglob("*") if path.is_file())
    if size > MOST_BYTES:
        raise ValueError(f"the book has {size:,} bytes, and may have {MOST_BYTES:,}")
    return size


def _write_sources(
    source: Path,
    pictures: Path,
    lessons: Sequence[Lesson],
    traces: Path,
    language: str,
    tell: Callable[[str], None],
) -> None:
    """The Markdown of one language, and its pictures."""
    (source / "lessons").mkdir(parents=True)
    for lesson in lessons:
        played: dict[str, Played] = {}
        if lesson.walkthrough.is_file():
            for name, made in make_pictures(lesson, traces, pictures, language):
                if isinstance(made, Played):
                    played[name] = made
                else:
                    tell(f"does not play: {made}")
        stills = source / "lessons" / f"{lesson.name}-pictures"
        page = texts.lesson_page(lesson, language, played, stills, lessons)
        (source / "lessons" / f"{lesson.name}.md").write_text(page, encoding="utf-8")
    samples = make_samples(source.parent / "samples", pictures, language)
    others = {
        "samples": texts.samples_page(language, samples),
        "glossary": texts.glossary_page(language),
        "figures": texts.figures_page(language, source),
    }
    there = {name: text for name, text in others.items() if text is not None}
    for name, text in there.items():
        (source / f"{name}.md").write_text(text, encoding="utf-8")
    front = texts.front_page(language, lessons, there)
    (source / "index.md").write_text(front, encoding="utf-8")
    (source / "static").mkdir()
    for path in STATIC.iterdir():
        copyfile(path, source / "static" / path.name)


def _run_sphinx(source: Path, out: Path, language: str) -> None:
    """In a process of its own: one process has one Sphinx, and this needs two.

    Raises:
        ValueError: what Sphinx complains about.
    """
    configuration = f"from viz.book.site import settings\n\nglobals().update(settings({language!r}))\n"
    (source / "conf.py").write_text(configuration, encoding="utf-8")
    words = ("-m", "sphinx", "-b", "html", "-q", "-N", "-d", str(source / "doctrees"), str(source), str(out))
    done = subprocess.run(
        child_command(*words), env=python_variables(), capture_output=True, text=True, start_new_session=True
    )
    if done.returncode or done.stderr.strip():
        raise ValueError(f"Sphinx complains about the book:\n{done.stderr.strip()[:2000]}")
    for left in (".buildinfo", "objects.inv"):
        (out / left).unlink(missing_ok=True)


def settings(language: str) -> dict[str, object]:
    """Of Sphinx, for one language."""
    return {
        "project": "minivllm",
        "author": "minivllm",
        "project_copyright": "",
        "language": SPHINX_LANGUAGES[language],
        "extensions": ["myst_parser", "viz.book.search"],
        "exclude_patterns": ["doctrees"],
        "html_theme": "furo",
        "html_title": "minivllm",
        "html_static_path": ["static"],
        "html_css_files": ["book.css"],
        "html_js_files": ["book.js"],
        "html_search_language": language,
        "html_show_search_summary": False,  # it is fetched, which a browser does not do from the disk
        "html_copy_source": False,
        "html_show_sourcelink": False,
        "html_use_index": False,
        "html_show_sphinx": False,
        "html_show_copyright": False,
        "suppress_warnings": ["myst.header", "misc.highlighting_failure"],
    }
