"""The glossary: a file of the repository, read as it is, and searched by typing."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.viz.test_kernel_pages import links, open_page
from tests.viz.test_pages import words
from viz import glossary
from viz.glossary import Group, Term, parse, read_glossary
from viz.language import _, speaking
from viz.lesson_text import Words, parts_of
from viz.views import glossary as page
from viz.views import kv_pool, lessons, start

pytestmark = pytest.mark.usefixtures("own_folders")

ENGLISH = """# Glossary

One line a term.
[中文](GLOSSARY.zh.md)

## Memory

Of the KV cache.

| term | meaning | where in the code |
|---|:--|---|
| **block table** | The physical block of a logical one: `table[i]` <b>. | [table](minivllm/memory/table.py) |
| evictable block | A cached block that no table maps \\| 0 readers. | `minivllm/memory/pool.py` |

## Scheduling

| term | meaning | where in the code |
|---|---|---|
| preempt | A running request waits again. | |
"""
CHINESE = """# 术语表

## 内存（Memory）

| 术语 | 含义 | 代码 |
|---|---|---|
| block table · 块表 | 每个逻辑块对应的物理块。 | `minivllm/memory/table.py` |
"""
HEADINGS = ("term", "meaning", "where in the code")
MEMORY = Group(
    "Memory",
    HEADINGS,
    (
        Term(
            "block table",
            "The physical block of a logical one: `table[i]` <b>.",
            "`minivllm/memory/table.py`",
        ),
        Term(
            "evictable block", "A cached block that no table maps | 0 readers.", "`minivllm/memory/pool.py`"
        ),
    ),
)
SCHEDULING = Group("Scheduling", HEADINGS, (Term("preempt", "A running request waits again.", ""),))


@pytest.fixture
def both_files(tmp_path, monkeypatch):
    (tmp_path / "GLOSSARY.md").write_text(ENGLISH, encoding="utf-8")
    (tmp_path / "GLOSSARY.zh.md").write_text(CHINESE, encoding="utf-8")
    monkeypatch.setattr(glossary, "ROOT", tmp_path)
    return tmp_path


def told(app):
    """What the table on the page was given."""
    [data] = [json.loads(e.proto.json) for e in app.main if "bidi" in e.type]
    return data


# ── the file ──────────────────────────────────────────────────────────────────────────────────────────────


def test_a_file_is_taken_apart():
    assert parse(ENGLISH) == ("One line a term.", (MEMORY, SCHEDULING))


cells = st.text("ab `<*", min_size=1).map(str.strip).filter(lambda text: text and "**" not in text)


@given(st.dictionaries(cells, st.lists(st.tuples(cells, cells, cells), min_size=1), min_size=1))
def test_every_line_of_every_table_is_a_term(groups):
    lines = ["# Glossary"]
    for title, rows in groups.items():
        lines += [f"## {title}", "| a | b | c |", "|---|---|---|"]
        lines += [f"| {' | '.join(row)} |" for row in rows]
    assert [(g.title, [tuple(t) for t in g.terms]) for g in parse("\n".join(lines)).groups] == [
        *groups.items()
    ]


@pytest.mark.parametrize("content", [None, b"", b"# Glossary\n\nStill empty.\n", b"\xff\xfe"])
def test_without_a_file_or_without_terms_there_is_no_glossary(content, tmp_path, monkeypatch):
    monkeypatch.setattr(glossary, "ROOT", tmp_path)
    if content is not None:
        (tmp_path / "GLOSSARY.md").write_bytes(content)
    assert read_glossary("en") is None


# ── the page ──────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("language", "title"), [("en", "Glossary"), ("zh", "术语表")])
def test_the_page_shows_the_file_of_its_language(both_files, language, title):
    app = open_page(page, lang=language)
    assert not app.exception and app.title[0].value == title
    groups = json.loads(json.dumps([group._asdict() for group in read_glossary(language).groups]))
    assert told(app)["groups"] == groups and groups
    assert ("One line a term." in words(app)) == (language == "en")


@pytest.mark.parametrize("language", ["en", "zh"])
def test_an_installation_without_the_file_says_so_kindly(tmp_path, monkeypatch, language):
    monkeypatch.setattr(glossary, "ROOT", tmp_path)
    app = open_page(page, lang=language)
    assert not app.exception and not app.error
    assert f"`{glossary.FILES[language]}`" in app.info[0].value
    with speaking(language):
        assert links(app)[-1] == _("Next: {page}").format(page=_(lessons.TITLE))


def test_a_link_may_say_what_to_search_for(both_files):
    assert told(open_page(page, term="block table"))["query"] == "block table"
    assert told(open_page(page))["query"] == ""


def test_other_pages_link_to_it():
    assert page.TITLE in links(open_page(lessons))
    assert "术语表" in links(open_page(lessons, lang="zh"))
    for other in (start, kv_pool):
        assert any(label.startswith(f"{page.TITLE}: ") for label in links(open_page(other)))


def test_a_lesson_links_to_it_in_its_own_language(tmp_path):
    text = "An [evictable](../../GLOSSARY.md) block, [可驱逐](../../GLOSSARY.zh.md#memory)."
    [part] = parts_of(text, tmp_path)
    assert part == Words("An [evictable](/glossary?lang=en) block, [可驱逐](/glossary?lang=zh).")
