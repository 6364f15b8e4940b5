"""Patterns: the automaton accepts what Python's `re` matches; what it cannot follow is refused by name."""

import re
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minivllm.decoding.structured.expressions import StructureError
from minivllm.decoding.structured.pushdown import Pushdown
from minivllm.decoding.structured.regex import parse_regex
from minivllm.decoding.structured.rules import make_rules
from tests.decoding.structured.walks import accepts, complete, pushdown_of, structure, walk

ALPHABET = ["a", "b", "0", "_", " ", "é", "一", '"']
ATOMS = [
    "a",
    "b",
    "0",
    "é",
    "一",
    ".",
    r"\d",
    r"\w",
    r"\s",
    r"\D",
    r"\W",
    r"\S",
    "[ab]",
    "[^ab]",
    "[a-z0]",
    r"\x61",
]


def _quantified(part):
    # A group around it: Python refuses to repeat a repeat.
    repeats = st.sampled_from(["*", "+", "?", "{2}", "{1,}", "{0,2}", "{,1}", "*?", "+?"])
    return st.builds(lambda inner, times: f"(?:{inner}){times}", part, repeats)


patterns = st.recursive(
    st.sampled_from(ATOMS),
    lambda part: st.one_of(
        st.lists(part, min_size=1, max_size=3).map("".join),
        st.lists(part, min_size=1, max_size=3).map(lambda parts: "(" + "|".join(parts) + ")"),
        _quantified(part),
    ),
    max_leaves=6,
)
SHORT = [  # texts of at most three characters
    "".join(letters) for length in range(4) for letters in product(ALPHABET, repeat=length)
]


@given(patterns)
def test_a_text_is_accepted_exactly_if_the_pattern_matches_it(pattern):
    pushdown = pushdown_of(regex=pattern)
    matches = re.compile(pattern, re.ASCII).fullmatch
    for text in SHORT:
        assert accepts(pushdown, text.encode()) == bool(matches(text)), text


@given(patterns, st.integers(0, 100))
def test_every_output_matches_and_every_cut_one_can_be_completed(pattern, seed):
    try:
        made = structure(regex=pattern)
    except StructureError as error:
        assert "but the empty one" in str(error)
        return
    data, is_whole = walk(made, seed)
    for end in range(len(data) + 1):
        text = complete(made, data[:end]).decode()
        assert re.fullmatch(pattern, text, re.ASCII), text
    if is_whole:
        assert re.fullmatch(pattern, data.decode(), re.ASCII)


@given(patterns, st.sampled_from(["", "^"]), st.sampled_from(["", "$"]))
def test_a_search_finds_what_python_finds(pattern, start, end):
    asked = f"{start}(?:{pattern}){end}"
    automaton = make_rules({"root": parse_regex(asked, is_search=True)}, "root")
    pushdown = Pushdown(automaton)
    for text in SHORT[:: max(1, len(SHORT) // 60)]:
        # `$` stands before a last line's end in Python; a JSON schema means the end.
        found = re.search(f"{start}(?:{pattern}){end and chr(92) + 'Z'}", text, re.ASCII)
        assert accepts(pushdown, text.encode()) == bool(found), text


@pytest.mark.parametrize(
    ("pattern", "problem"),
    [
        ("(?=a)b", r"a lookahead, \(\?=…\), which cannot be followed"),
        ("a(?!b)", "a negative lookahead"),
        ("(?<=a)b", "a lookbehind"),
        ("(?<!a)b", "a negative lookbehind"),
        (r"(a)\1", r"a backreference, \\1"),
        ("(?P<x>a)(?P=x)", "a backreference"),
        (r"\bword", "a word boundary"),
        (r"\p{L}", "a Unicode property"),
        ("(?i)a", r"flags, \(\?…\)"),
        ("a++", "a possessive repeat"),
        ("a**", "repeats a repeat"),
        ("*a", "repeats nothing"),
        ("a{3,1}", "at least 3 and at most 1"),
        ("(a", r"a '\(' that is not closed"),
        ("a)", r"a '\)' that closes nothing"),
        ("[a", r"ends within a class"),
        ("[b-a]", "runs backwards"),
        ("[^\\x00-\\U0010ffff]", "without any character"),
        ("a^b", r"the anchor \^ elsewhere"),
        ("a$b", r"the anchor \$ elsewhere"),
        ("(a$)*", "which has an anchor"),
        ("a\\", "ends within an escape"),
        ("(" * 101 + ")" * 101, "more than 100 deep"),
        ("a{1000000}", "more than 100,000 times"),
        ("(a{1000}){1000}", "too large"),
        ("(((){9999}){9999}){9999}a", "too large"),
        ("(a|b)*a(a|b){25}", "too large"),
        ("[^\\s\\S]", "without any character"),
        ("", "no text but the empty one"),
    ],
)
def test_what_cannot_be_followed_is_refused_with_its_name(pattern, problem):
    with pytest.raises(StructureError, match=problem):
        structure(regex=pattern)


@pytest.mark.parametrize(
    ("pattern", "text"),
    [
        ("^abc$", "abc"),
        ("^(a|b)$", "b"),
        ("(^a$)|(^b$)", "b"),
        (r"\Aabc\Z", "abc"),
        ("a{,2}", "aa"),
        ("a{x}", "a{x}"),
        ("[]a]", "]"),
        ("[a-]", "-"),
        (r"[\d-]", "-"),
        (r"[\]\\]", "\\"),
        ("(?P<year>[0-9])", "7"),
        (r"\u4e00\x41\U0001F600\.\-\/", "一A😀.-/"),
        ("{", "{"),
    ],
)
def test_usual_spellings_are_understood(pattern, text):
    pushdown = pushdown_of(regex=pattern)
    assert accepts(pushdown, text.encode()) and re.fullmatch(pattern, text)
    assert not accepts(pushdown, (text + "?").encode())
