"""Masks: a token is allowed exactly if some continuation of it exists, by the plain definition."""

from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minivllm.decoding.structured import pushdown as pushdowns
from minivllm.decoding.structured.compile import StructureCompiler
from minivllm.decoding.structured.expressions import StructureError
from minivllm.decoding.structured.plain_text import PlainText
from minivllm.decoding.structured.progress import Progress
from minivllm.decoding.structured.vocabulary import Vocabulary
from tests.decoding.structured.walks import EOS, allowed, compiler, complete, structure, walk

TREES = 'root ::= "a" | "(" root (", " root)* ")"'
ASCII, OTHERS, QUOTE = r"[ !#-\x5b\x5d-\x7f]", r"c ::= [^\x00-\x7f]", r'"\""'
SHAPES = [
    {"regex": r"(ab|ba)*[0-9]{2,3}"},
    {"regex": r"[^\n]*é?"},
    {"choice": ["a", "ab", "aab", "null", "true"]},
    {"grammar": TREES},
    {"grammar": 'root ::= "a" root "b" | "ab" | ""\n'},
    {"grammar": 'root ::= "a" root x | "a" root y | "0"\nx ::= "b"\ny ::= "ba"'},
    {"json_object": True},
    {"json": {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "null"}}}},
    {"json": {"type": "array", "items": {"type": ["string", "boolean"]}, "maxItems": 3}},
    {"json": {"type": "string", "minLength": 2, "maxLength": 5}},
    {"json": {"type": "array", "items": {"type": "string", "maxLength": 17}}},
    {"regex": r"[^\x00-\x1f\"\\]{3}(x|.)"},
    {"grammar": 'root ::= any* "!"\nany ::= "a"? | [^"\\\x00-\x1f]'},
    {"grammar": f'root ::= "(" (c "ab" | s)\ns ::= ({ASCII} | c){{0,1}} {QUOTE}\n{OTHERS}'},
    {"grammar": f'root ::= "(" ({ASCII} | c){{0,2}} {QUOTE}\n{OTHERS} "b"?'},
    {"grammar": f'root ::= "(" ({ASCII} | c) ({QUOTE} | "ab")\n{OTHERS}'},
    {"grammar": f'root ::= "(" ({ASCII} | c){{0,1}} {QUOTE}\n{OTHERS} | "a" "b"?'},
    {"grammar": f'root ::= "(" ({ASCII} | c){{0,1}} {QUOTE}\n{OTHERS} | ""'},
    {"grammar": f'root ::= "(" ({ASCII} | c){{1,2}} c? {QUOTE}\n{OTHERS}'},
]
each_shape = pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: str(shape)[:40])


COMPLETED = {}
"""States of a structure that were seen to have a way to the end."""


def by_definition(made, data):
    """Tokens after which the automaton still has a way to the end: each is read by itself, byte by byte."""
    completed = COMPLETED.setdefault(id(made), set())
    found = [EOS] if made.pushdown.read(made.pushdown.start, data).has_empty else []
    for token, piece in enumerate(made.masks.vocabulary.token_bytes):
        reached = made.pushdown.read(made.pushdown.start, data + piece) if piece else None
        if reached is not None:
            if reached not in completed:
                complete(made, data + piece)  # raises, if there is no way to the end
                completed.add(reached)
            found.append(token)
    return found


@each_shape
@given(seed=st.integers(0, 1000))
def test_a_token_is_allowed_exactly_if_some_continuation_exists(shape, seed):
    made = structure(**shape)
    progress, data = Progress(made), b""
    known = made.masks.vocabulary.token_bytes
    for step in range(6):
        tokens = allowed(progress)
        assert tokens == by_definition(made, data)
        assert progress.mask().num_allowed == len(tokens)
        texts = [token for token in tokens if token != EOS]
        if not texts:
            assert progress.is_over
            return
        token = texts[(seed * 31 + step * 17) % len(texts)]
        progress.append(token)
        data += known[token]


@each_shape
def test_the_state_is_a_function_of_the_tokens(shape):
    made = structure(**shape)
    progress = Progress(made)
    for _ in range(5):
        tokens = [token for token in allowed(progress) if token != EOS]
        if not tokens:
            break
        progress.append(tokens[-1])
    seen = bytes(progress.mask().struck_out)
    made.pushdown.forget()  # what is remembered only saves time
    assert bytes(progress.mask().struck_out) == seen
    progress.rewind()
    assert bytes(progress.mask().struck_out) == bytes(Progress(made).mask().struck_out)


@given(st.lists(st.binary(max_size=4), max_size=40))
def test_the_tree_has_every_token_once_and_walks_like_a_list(tokens):
    tree = Vocabulary([token or None for token in tokens])
    even = set(range(0, 256, 2))

    def walk(tree, readable, **more):
        return sorted(tree.walk((), lambda done: readable, lambda done, byte: (*done, byte), **more))

    assert walk(tree, set(range(256))) == [i for i, token in enumerate(tokens) if token]
    wanted = [i for i, token in enumerate(tokens) if token and even.issuperset(token)]
    assert walk(tree, even) == wanted
    assert walk(tree.without(set(wanted[::2])), even) == wanted[1::2]
    seen = []
    walk(tree, even, at_branch=lambda branch, done: seen.append(bytes(done)))
    longer = {token[:end] for token in tokens for end in range(1, len(token))}
    assert sorted(seen) == sorted(start for start in longer if even.issuperset(start))


CHARACTERS = "a 0!~\x7f\x80éࠀ一\ud7ff\ue000\uffff\U00010000\U0010ffff"


@pytest.mark.parametrize(
    ("shape", "longest"),
    [
        ({"json": {"type": "string"}}, None),
        ({"json": {"type": "string", "maxLength": 5}}, 5),
        ({"json": {"type": "string", "maxLength": 20}}, 20),
        ({"regex": '"[^z]*"'}, 0),
        ({"regex": '"([ -~]|[^ -~]x)*"'}, 0),
        ({"regex": '"([ -\x7f]|[\x80-\uffff]x|[\U00010000-\U0010ffff])*"'}, 0),
        ({"regex": '"([^"\x00-\x1f]{4})*"'}, None),
    ],
    ids=str,
)
def test_a_run_is_what_can_be_read_whatever_the_characters_are(shape, longest):
    """It counts to the length of the longest plain token."""
    vocabulary = compiler(("abcdefgh", "一二三", '"a', "\n", "ab"))
    made = structure(vocabulary, **shape)
    pushdown, plain = made.pushdown, PlainText(made.masks.vocabulary)
    state = pushdown.read(pushdown.start, b'"')
    for num_read in range(10 if longest is None else longest + 1):
        left = 8 if longest is None else min(8, longest - num_read)
        assert plain.run(state) == left
        for character in CHARACTERS if left else ():
            assert pushdown.read(state, character.encode()) is not None
        if left:
            state = pushdown.read(state, CHARACTERS[num_read % len(CHARACTERS)].encode())


@cache
def few_bytes():
    return compiler(("ab", "ba", "cab"), b"ab01")


@given(st.integers(0, 1000))
def test_bytes_that_are_no_token_are_never_needed(seed):
    made = structure(few_bytes(), regex=r"(a|c|bc?)+[0-9]")
    data, is_whole = walk(made, seed)
    assert b"c" not in data
    assert data[-1:].isdigit() or not is_whole


def test_a_structure_that_the_tokens_cannot_spell_is_refused():
    with pytest.raises(StructureError, match="this model's tokens can spell"):
        structure(few_bytes(), regex="abc")


def test_ids_beyond_the_tokenizer_are_struck_out():
    made = StructureCompiler(lambda: [None, b"a", b"b"], 6)
    made = structure(made, regex="[ab]+")
    assert allowed(Progress(made)) == [1, 2]


CHAIN = 'root ::= "(" root ")" | one "!"\none ::= two "."\ntwo ::= three ","\nthree ::= "a"'


@pytest.mark.parametrize(
    ("grammar", "core", "height"), [('root ::= "(" root ")" | "a"', b"a", 2), (CHAIN, b"a,.!", 5)]
)
def test_a_stack_that_is_nearly_full_still_has_a_way_out(grammar, core, height):
    """The way out may need room itself: a rule is entered only if all that it must call fits, too."""
    made = structure(grammar=grammar)
    progress = Progress(made)
    known = made.masks.vocabulary.token_bytes
    data = b""
    while known.index(b"(") in allowed(progress):
        progress.append(known.index(b"("))
        data += b"("
    assert pushdowns.DEEPEST - height <= len(data) <= pushdowns.DEEPEST
    assert complete(made, data) == data + core + b")" * len(data)


def test_lists_that_call_themselves_at_their_end_may_be_of_any_length():
    made = structure(grammar='root ::= "a" root | "b"')
    assert made.pushdown.read(made.pushdown.start, b"a" * 5000 + b"b").is_exhausted


def test_ways_to_read_a_text_that_would_double_with_every_byte_are_one_graph():
    made = structure(grammar='root ::= "a" root x | "a" root y | "0"\nx ::= "b"\ny ::= "b"')
    state = made.pushdown.read(made.pushdown.start, b"a" * 100 + b"0" + b"b" * 100)
    assert state.is_exhausted and state.has_empty
    assert made.pushdown.num_states < 2000


def test_too_many_ways_at_once_are_a_problem_of_this_output_alone(monkeypatch):
    monkeypatch.setattr(pushdowns, "MOST_BRANCHES", 8)
    rules = "\n".join(f'r{i} ::= "a" r{i} | "{chr(98 + i)}"' for i in range(12))
    with pytest.raises(StructureError, match="too many ways at once"):
        structure(grammar=f"root ::= {' | '.join(f'r{i}' for i in range(12))}\n{rules}\n")
    made = structure(grammar=f'root ::= "a" ({" | ".join(f"r{i}" for i in range(12))})\n{rules}')
    progress = Progress(made)
    progress.append(made.masks.vocabulary.token_bytes.index(b"a"))
    assert progress.mask().num_allowed == 0 and "too many ways" in progress.problem
