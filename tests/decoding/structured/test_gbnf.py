"""Grammars in GBNF: what is derived is accepted, and what is none is refused with its place."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minivllm.decoding.structured.expressions import StructureError
from tests.decoding.structured.walks import accepts, complete, pushdown_of, structure, walk

ARITHMETIC = r"""
# sums of products
root   ::= sum "\n"?
sum    ::= product (("+" | "-") product)*
product ::= factor
          | factor "*" product
factor ::= [0-9]{1,3} | "(" sum ")"
"""


@given(st.integers(0, 10**6))
def test_every_output_of_a_grammar_is_read_by_another_reader(seed):
    data, is_whole = walk(structure(grammar=ARITHMETIC), seed, most=200, hurry=20)
    text = data.decode() if is_whole else complete(structure(grammar=ARITHMETIC), data).decode()
    if len(text) < 90:  # Python's own parser has a limit of nested brackets
        compile(re.sub(r"\b0+(?=\d)", "", text.strip()), "text", "eval")


@pytest.mark.parametrize(
    ("grammar", "yes", "no"),
    [
        ('root ::= "a"+', "aaa", ""),
        ("root ::= [^a-c]", "d", "b"),
        ("root ::= [a-]", "-", "b"),
        (r'root ::= "\x41\u4e00\n\"\\"', 'A一\n"\\', "A"),
        ('root ::= x-1 | y_2\nx-1 ::= "a"\ny_2 ::= "b"', "b", "c"),
        ('root ::=\n  "a"\n  | "b" # either\n', "b", "ab"),
        ('root ::= ("a" | "b"){2}', "ba", "b"),
        ('root ::= "a"{2,} "b"{0,1}', "aaab", "ab"),
        ("root ::= .", "\n", ""),
        ('root ::= "" | "a"', "", "b"),
        ("root ::= ARITH\nARITH ::= [0-9]", "5", "a"),
        (ARITHMETIC, "(1+2)*34", "1+"),
    ],
)
def test_what_a_grammar_allows(grammar, yes, no):
    pushdown = pushdown_of(grammar=grammar)
    assert accepts(pushdown, yes.encode()) and not accepts(pushdown, no.encode())


@pytest.mark.parametrize(
    ("grammar", "problem"),
    [
        ("start: /a/", "must be GBNF"),
        ('root = "a"', "must be GBNF"),
        ("", "must have a rule 'root'"),
        ('other ::= "a"', "it has other"),
        ("root ::= missing", "calls a rule 'missing'"),
        ('root ::= root "a" | "b"', "left-recursive.*root → root"),
        ('root ::= x "a"\nx ::= y | "b"\ny ::= "c"? x', "left-recursive.*x → y → x"),
        ('root ::= "a" root', "no text of any length"),
        ('root ::= ""', "but the empty one"),
        ('root ::= "a', r"line 1, character \d+: it ends within quotes"),
        ('root ::= ("a"', "is not closed"),
        ('root ::= "a")', "closes nothing"),
        ("root ::= [b-a]", "runs backwards"),
        (r'root ::= "\q"', "is no escape"),
        ('root ::= "a"{3,2}', "the fewest first"),
        ('root ::= "a"\nroot ::= "b"', "'root' comes twice"),
        ('root ::= "a" ::= ', "is no item"),
        ("root ::= " + "(" * 101, "more than 100 deep"),
        ("root ::= ([a-z]{9000}){9000}", "too large"),
    ],
)
def test_what_is_no_grammar_is_refused(grammar, problem):
    with pytest.raises(StructureError, match=problem):
        structure(grammar=grammar)


def test_a_long_chain_of_rules_is_no_recursion():
    rules = [f'r{index} ::= r{index + 1} | "a"' for index in range(1500)]
    pushdown = pushdown_of(grammar="root ::= r0\n" + "\n".join(rules[:200]) + '\nr200 ::= "b"')
    assert accepts(pushdown, b"b")
