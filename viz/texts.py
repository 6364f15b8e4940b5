"""The catalogue of texts: `python -m viz.texts` brings it up to date, and says what is to be translated.

    viz/**/*.py         _("…")  N_("…")  counted("…", "…", n)  plural(n, "noun")  ─┐
    viz/player/*.js     say("…")                                                   ─┼─►  minivllm.po ─► .mo
    viz/player/*.html   data-say="…"  data-label="…"                               ─┘

Texts are found by reading the source, not by running it. New ones are added without a translation, to be
written into the .po file; what no source says any more is taken out. A file is written only if it
changes. A translation must have the placeholders and the `code` of its text. Needs Babel, which comes with
the `dev` extra; pages do not.

    python -m viz.texts            write both files, report
    python -m viz.texts --check    write nothing; 1 if something is missing, obsolete or wrong

Read next: `language.py`.
"""

from __future__ import annotations

import argparse
import ast
import re
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path
from string import Formatter
from typing import NamedTuple

from minivllm.files import write_file
from viz.language import DOMAIN, LOCALE

HERE = Path(__file__).parent
CATALOGUE = LOCALE / "zh" / "LC_MESSAGES" / f"{DOMAIN}.po"
COMPILED = CATALOGUE.with_suffix(".mo")
IN_JAVASCRIPT = re.compile(r'\bsay\("((?:[^"\\]|\\.)*)"')
IN_HTML = re.compile(r'\bdata-(?:say|label)="([^"]*)"')
LONG_AGO = datetime(2026, 1, 1, tzinfo=UTC)
HEADER = """\
# What the dashboard says in Chinese; the words are those of GLOSSARY.zh.md.
# Written by `python -m viz.texts`, all but the translations.
msgid ""
msgstr ""
"Content-Type: text/plain; charset=utf-8\\n"
"Plural-Forms: nplurals=1; plural=0;\\n"

"""


class Text(NamedTuple):
    """A text that pages say."""

    one: str
    many: str
    """The form for more than one; "" if there is a single form."""
    file: str
    """Where it is said."""


# ── finding texts ─────────────────────────────────────────────────────────────────────────────────────


def all_texts() -> list[Text]:
    """All texts of this package, file by file.

    Raises:
        ValueError: a text is put together where it is said, so no catalogue could have it.
    """
    found: list[Text] = []
    for path in sorted(HERE.rglob("*.py")):
        found += texts_of(path.read_text(encoding="utf-8"), path.relative_to(HERE.parent).as_posix())
    for path in sorted((HERE / "player").iterdir()):
        name = path.relative_to(HERE.parent).as_posix()
        found += [Text(text, "", name) for text in texts_of_player(path)]
    return found


def texts_of(source: str, file: str) -> Iterator[Text]:
    """The texts of a Python module."""
    for node in ast.walk(ast.parse(source)):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name)):
            continue
        name, arguments = node.func.id, node.args
        if name in ("_", "N_"):
            if text := _literal(arguments[0], file):
                yield Text(text, "", file)
        elif name in ("ngettext", "counted"):
            one, many = _literal(arguments[0], file), _literal(arguments[1], file)
            if one and many:
                yield Text(one, many, file)
        elif name == "plural" and (noun := _literal(arguments[1], file)):
            yield Text(f"{{count}} {noun}", f"{{count}} {noun}s", file)


def texts_of_player(path: Path) -> list[str]:
    """The texts of a file of the player."""
    pattern = {".js": IN_JAVASCRIPT, ".html": IN_HTML}.get(path.suffix)
    return pattern.findall(path.read_text(encoding="utf-8")) if pattern else []


def _literal(node: ast.expr, file: str) -> str:
    """A text that is written out; "" for a name, whose text is marked where it is given."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr | ast.BinOp):
        raise ValueError(f"{file}:{node.lineno}: fill a text in after `_`, not within: no catalogue has it")
    if isinstance(node, ast.IfExp) and (_literal(node.body, file) or _literal(node.orelse, file)):
        raise ValueError(f"{file}:{node.lineno}: each of two texts needs a `_` of its own")
    return ""


# ── judging translations ──────────────────────────────────────────────────────────────────────────────


def placeholders(text: str) -> set[str]:
    """The names in braces."""
    return {name for _, name, _, _ in Formatter().parse(text) if name is not None}


def code_spans(text: str) -> Counter[str]:
    """What stands in backticks, which no translation may change."""
    return Counter(re.findall(r"`([^`]+)`", text))


def fault(english: str, translation: str) -> str:
    """What is wrong with a translation; "" if nothing is."""
    try:
        if placeholders(translation) != placeholders(english):
            return f"placeholders {sorted(placeholders(translation))}, not {sorted(placeholders(english))}"
    except ValueError as error:
        return f"not a format: {error}"
    if code_spans(translation) != code_spans(english):
        return f"code {sorted(code_spans(translation))}, not {sorted(code_spans(english))}"
    if stars := unseen_bold(translation):
        return f"Markdown sees no bold type in {stars!r}: take the punctuation out of it"
    return ""


def unseen_bold(text: str) -> str:
    """Where `**` is neither the beginning nor the end of bold type: between a mark and a letter, if wrong."""
    for number, match in enumerate(re.finditer(r"\*\*", text)):
        outer, inner = text[match.start() - 1 : match.start()], text[match.end() : match.end() + 1]
        if number % 2:
            outer, inner = inner, outer
        is_mark = inner and not (inner.isalnum() or inner in "`{")
        if is_mark and outer and (outer.isalnum() or outer in "{}"):
            return text[max(0, match.start() - 6) : match.end() + 6]
    return ""


# ── the catalogue ─────────────────────────────────────────────────────────────────────────────────────


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m viz.texts", description="Keep the catalogue of texts.")
    parser.add_argument("--check", action="store_true", help="write nothing; 1 if it is not in order")
    given = parser.parse_args(arguments)
    try:
        return update(check=given.check)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2


def update(*, check: bool) -> int:
    """Bring the catalogue up to date, or look whether it is."""
    from babel.messages.catalog import Catalog
    from babel.messages.mofile import write_mo
    from babel.messages.pofile import read_po, write_po

    with CATALOGUE.open("rb") as file:
        known = {_first(message.id): _first(message.string) for message in read_po(file, locale="zh")}
    # Without a date of its own, the compiled catalogue would be another one every minute.
    wanted = Catalog(
        locale="zh", charset="utf-8", fuzzy=False, creation_date=LONG_AGO, revision_date=LONG_AGO
    )
    texts = all_texts()
    for text in texts:
        said = known.get(text.one, "")
        names = (text.one, text.many) if text.many else text.one
        wanted.add(names, (said,) if text.many and said else said, locations=[(text.file, 0)])
    report = faults(texts, known)
    print("\n".join([*report, f"{len(wanted)} texts in {CATALOGUE.name}, {len(report)} to be looked at"]))
    if check:
        return 1 if report else 0
    written = BytesIO()
    write_po(written, wanted, width=110, omit_header=True, include_lineno=False)
    _write(CATALOGUE, HEADER.encode() + written.getvalue())
    for message in [message for message in wanted if message.id and not any(message.string or "")]:
        wanted.delete(message.id)  # Babel would write English plurals in its place
    compiled = BytesIO()
    write_mo(compiled, wanted)
    _write(COMPILED, compiled.getvalue())
    return 0


def _write(path: Path, content: bytes) -> None:
    if not path.is_file() or path.read_bytes() != content:
        write_file(path, content, "catalogue")


def faults(texts: Sequence[Text], translations: Mapping[str, str]) -> list[str]:
    """What is missing, wrong, or said by no source any more."""
    wanted = {text.one: text.file for text in texts}
    several = {text.one: text.many or text.one for text in texts}  # the one may do without its number
    missing = [f"missing: {file}: {one}" for one, file in wanted.items() if not translations.get(one)]
    wrong = [
        f"wrong: {file}: {one}: {reason}"
        for one, file in wanted.items()
        if translations.get(one) and (reason := fault(several[one], translations[one]))
    ]
    return [*wrong, *missing, *(f"obsolete: {one}" for one in translations if one and one not in wanted)]


def _first(form: str | tuple[str, ...] | list[str] | None) -> str:
    """Of a text with several forms, the first: its key; and the only one that Chinese has."""
    return form[0] if isinstance(form, tuple | list) else form or ""


if __name__ == "__main__":
    sys.exit(main())
