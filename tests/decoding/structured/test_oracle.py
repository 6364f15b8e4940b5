"""The same masks as another engine: `llguidance`, in Rust, which reads by derivatives and Earley's way.

    pip install minivllm[structured]

Where the two mean different things by design, the inputs here avoid it: schemas name `additionalProperties`,
patterns have no `\\d` (which is Unicode's there), strings are given by patterns or lists (any escape of a
string is allowed here, and only some there). Token by token: where one text alone is possible, its masks hold
only the tokens that its own tokenizer would choose.
"""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minivllm.decoding.structured.expressions import StructureError
from minivllm.decoding.structured.progress import Progress
from tests.decoding.structured.walks import EOS, allowed, structure

llguidance = pytest.importorskip("llguidance", reason='pip install "minivllm[structured]"')
gbnf_to_lark = pytest.importorskip("llguidance.gbnf_to_lark")


class Wrapped:
    """Our vocabulary, as `llguidance` takes it."""

    def __init__(self, vocabulary):
        self.eos_token_id, self.bos_token_id, self.special_token_ids = EOS, None, [EOS]
        self.tokens = [b"<eos>", *vocabulary.token_bytes[1:]]
        self._single = {data: token for token, data in enumerate(self.tokens) if len(data) == 1}

    def __call__(self, text):
        data = text if isinstance(text, bytes) else text.encode()
        return [self._single[bytes([byte])] for byte in data]


_tokenizers = {}


def compare(made, grammar, seed, steps=12):
    """Walk at random, and compare the masks at every place."""
    vocabulary = made.masks.vocabulary
    if id(vocabulary) not in _tokenizers:
        _tokenizers[id(vocabulary)] = llguidance.LLTokenizer(llguidance.TokenizerWrapper(Wrapped(vocabulary)))
    theirs = llguidance.LLMatcher(_tokenizers[id(vocabulary)], grammar, log_level=0)
    assert not theirs.is_error(), theirs.get_error()
    ours, rng, data = Progress(made), random.Random(seed), b""
    for _ in range(steps):
        mine = allowed(ours)
        texts = [
            token for token in range(len(vocabulary)) if token != EOS and theirs.validate_tokens([token])
        ]
        assert mine == [EOS] * theirs.is_accepting() + texts, data
        if not texts or ours.is_over:
            return
        token = rng.choice(texts)
        data += vocabulary.token_bytes[token]
        ours.append(token)
        assert theirs.consume_token(token)
        if ours.is_over:
            return


ATOMS = ["a", "b", "0", "é", "一", ".", "[ab]", "[^ab]", "[a-z0]"]
patterns = st.recursive(
    st.sampled_from(ATOMS),
    lambda part: st.one_of(
        st.lists(part, min_size=1, max_size=3).map("".join),
        st.lists(part, min_size=1, max_size=3).map(lambda parts: "(" + "|".join(parts) + ")"),
        st.builds("(?:{}){}".format, part, st.sampled_from(["*", "+", "?", "{2}", "{1,}", "{0,2}"])),
    ),
    max_leaves=6,
)


@given(patterns, st.integers(0, 100))
def test_masks_of_patterns(pattern, seed):
    try:
        made = structure(regex=pattern)
    except StructureError:
        return
    compare(made, llguidance.LLMatcher.grammar_from_regex(pattern), seed)


GRAMMARS = [
    'root ::= "a" | "(" root (", " root)* ")"',
    'root ::= sum\nsum ::= term (("+" | "-") term)*\nterm ::= [0-9]{1,3} | "(" sum ")"',
    'root ::= item+\nitem ::= "ab" | "ba" "0"? | "aab" | "{" root "}"',
    'root ::= "a" root "b" | "0"',
    'root ::= ("é" | "一" [^a-c])+ tail?\ntail ::= " a" tail | "-1"',
]


@pytest.mark.parametrize("grammar", GRAMMARS)
@given(seed=st.integers(0, 1000))
def test_masks_of_grammars(grammar, seed):
    lark = gbnf_to_lark.gbnf_to_lark(grammar)
    compare(structure(grammar=grammar), llguidance.LLMatcher.grammar_from_lark(lark), seed)


scalars = st.one_of(
    st.sampled_from([{"type": "boolean"}, {"type": "null"}, {"type": "string", "pattern": "^[a-z]+$"}]),
    st.lists(st.sampled_from(["a", "ab", None, True, 10]), min_size=1, unique_by=repr).map(
        lambda values: {"enum": values}
    ),
    st.builds(
        lambda low, more: {"type": "integer", "minimum": low, "maximum": low + more},
        st.integers(-300, 300),
        st.integers(0, 2000),
    ).filter(lambda integer: not integer["minimum"] < 0 <= integer["maximum"]),  # where llguidance allows −0
)


def objects(inner):
    @st.composite
    def one(draw):
        names = draw(st.lists(st.sampled_from(["a", "b", "ab", "né"]), unique=True, min_size=1, max_size=3))
        return {
            "type": "object",
            "properties": {name: draw(inner) for name in names},
            "required": draw(st.lists(st.sampled_from(names), unique=True)),
            "additionalProperties": False,
        }

    return one()


schemas = st.recursive(
    scalars,
    lambda inner: st.one_of(
        objects(inner),
        st.builds(
            lambda item, least, more: {
                "type": "array",
                "items": item,
                "minItems": least,
                "maxItems": least + more,
            },
            inner,
            st.integers(0, 2),
            st.integers(0, 2),
        ),
        st.lists(inner, min_size=1, max_size=2).map(lambda branches: {"anyOf": branches}),
    ),
    max_leaves=5,
)


@given(schemas, st.integers(0, 100))
def test_masks_of_schemas(schema, seed):
    grammar = llguidance.LLMatcher.grammar_from_json_schema(
        schema, {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
    )
    compare(structure(json=schema), grammar, seed)
