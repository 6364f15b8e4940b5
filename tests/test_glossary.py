"""The two glossaries: the same terms in the same order, one line each, and every place in the code exists."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ENGLISH, CHINESE = ROOT / "GLOSSARY.md", ROOT / "GLOSSARY.zh.md"


def groups(path):
    """`{heading: [(term, meaning, place), …]}` of a glossary."""
    found = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("## "):
            rows = found.setdefault(line[3:], [])
        elif line.startswith("| ") and not line.startswith(("| term |", "| 术语 |")):
            rows.append(tuple(part.strip() for part in line.strip("|").split(" | ")))
    return found


def english_name(term):
    """The Chinese glossary gives each term in both languages: "block · 块"."""
    return term.split(" · ")[0]


def test_both_have_the_same_terms_in_the_same_order_and_places():
    english, chinese = groups(ENGLISH), groups(CHINESE)
    assert list(english) == [heading.split("（")[1].rstrip("）") for heading in chinese]
    for ours, theirs in zip(english.values(), chinese.values(), strict=True):
        assert [(term, place) for term, _, place in ours] == [
            (english_name(term), place) for term, _, place in theirs
        ]


def test_each_term_has_one_line_in_its_alphabetical_place():
    terms = []
    for rows in groups(ENGLISH).values():
        names = [term for term, _, _ in rows]
        assert names == sorted(names, key=str.casefold)
        terms += names
    assert len(terms) == len(set(terms)) and 60 <= len(terms) <= 100


def test_meanings_are_one_sentence_in_the_language_of_the_file():
    for path, end in ((ENGLISH, "."), (CHINESE, "。")):
        for rows in groups(path).values():
            for term, meaning, _ in rows:
                assert meaning.endswith(end) and meaning.count(f"{end} ") == 0, term
                assert bool(re.search(r"[\u4e00-\u9fff]", meaning)) == (path == CHINESE), term


def test_every_place_in_the_code_exists():
    places = [place for rows in groups(ENGLISH).values() for _, _, place in rows]
    assert all(re.fullmatch(r"`[\w./]+`", place) for place in places)
    assert [place for place in places if not (ROOT / place.strip("`")).exists()] == []
