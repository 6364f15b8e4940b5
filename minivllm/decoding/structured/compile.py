"""From what a request asks for to an automaton over the model's tokens.

    StructuredOutputsParams ──► expressions ──► rules ──► Pushdown ──┐
                                                                     ├──► Structure
    tokenizer ──► bytes of each token ──► Vocabulary ────────────────┘

With another engine (`guidance.py`) it makes a grammar of the request, and we only ask for masks.

A structure is made when a request is checked, so what cannot be followed is refused before anything is
computed. The last ones are kept: requests with the same schema share its states and masks.

Read next: `progress.py`, one output on its way through a structure.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from minivllm.decoding.structured.characters import minus
from minivllm.decoding.structured.expressions import (
    Call,
    Characters,
    Choice,
    Concat,
    Expression,
    Literal,
    Repeat,
    StructureError,
    choice,
    text,
)
from minivllm.decoding.structured.gbnf import parse_gbnf
from minivllm.decoding.structured.guidance import GuidanceVocabulary, GuidedStructure
from minivllm.decoding.structured.json_schema import schema_rules
from minivllm.decoding.structured.json_values import Layout, any_value_rules
from minivllm.decoding.structured.pushdown import Pushdown
from minivllm.decoding.structured.regex import parse_regex
from minivllm.decoding.structured.rules import make_rules
from minivllm.decoding.structured.structural_tags import structural_tag_rules
from minivllm.decoding.structured.token_masks import InsideMasks, TokenMasks
from minivllm.decoding.structured.vocabulary import Vocabulary
from minivllm.structured_outputs import StructuredOutputsParams
from minivllm.structured_outputs_config import OWN

MOST_KEPT = 32
JSON_SPACES = ((9, 10), (13, 13), (32, 32))


class Structure(NamedTuple):
    """What an output must be, ready to be followed."""

    words: str
    """As it was asked for."""
    pushdown: Pushdown
    masks: TokenMasks


AnyStructure = Structure | GuidedStructure


class StructureCompiler:
    """Makes structures for one model.

    Args:
        backend: which engine follows them, `structured_outputs_config.OWN` or `GUIDANCE`.
        token_bytes: gives the bytes of each token, by id (None: it has none); asked once, when first needed.
        vocab_size: ids are 0 … vocab_size - 1, whether the tokenizer knows them or not.
    """

    def __init__(
        self, token_bytes: Callable[[], Sequence[bytes | None]], vocab_size: int, backend: str = OWN
    ) -> None:
        self._token_bytes = token_bytes
        self._vocab_size = vocab_size
        self._make = self._make_own if backend == OWN else self._make_guided
        self._inside: InsideMasks | None = None
        self._guidance: GuidanceVocabulary | None = None
        self._kept: OrderedDict[tuple[Any, ...], AnyStructure] = OrderedDict()

    def compile(self, params: StructuredOutputsParams, endings: Iterable[int] = ()) -> AnyStructure:
        """The structure of an output that may end with one of the tokens `endings`.

        Raises:
            StructureError: it cannot be followed, and why.
        """
        key = (params.words, tuple(sorted(set(endings))))
        if key not in self._kept:
            try:
                self._kept[key] = self._make(params, key[1])
            except StructureError as error:
                raise _refused(params, str(error)) from None
            except RecursionError:
                raise _refused(params, "it is nested too deep") from None
        self._kept.move_to_end(key)
        while len(self._kept) > MOST_KEPT:
            self._kept.popitem(last=False)
        return self._kept[key]

    def _all_tokens(self) -> list[bytes | None]:
        known = list(self._token_bytes())[: self._vocab_size]
        return [*known, *[None] * (self._vocab_size - len(known))]

    def _make_guided(self, params: StructuredOutputsParams, endings: tuple[int, ...]) -> AnyStructure:
        if self._guidance is None:
            self._guidance = GuidanceVocabulary(self._all_tokens())
        return GuidedStructure(params, self._guidance, endings)

    def _make_own(self, params: StructuredOutputsParams, endings: tuple[int, ...]) -> AnyStructure:
        if self._inside is None:
            self._inside = InsideMasks(Vocabulary(self._all_tokens()))
        single = self._inside.vocabulary.single_bytes
        pushdown = Pushdown(
            make_rules(rules_of(params), "root", None if len(single) == 256 else frozenset(single))
        )
        if pushdown.start.is_exhausted:
            raise StructureError("it allows no text but the empty one, so there is nothing to generate")
        return Structure(params.words, pushdown, TokenMasks(pushdown, self._inside, endings))


def _refused(params: StructuredOutputsParams, problem: str) -> StructureError:
    return StructureError(f"structured_outputs ({params.kind}): {problem}", problem)


def rules_of(params: StructuredOutputsParams) -> dict[str, Expression]:
    """The grammar that a request asks for; it begins with `root`.

    Raises:
        StructureError: it cannot be understood, and where.
    """
    match params.kind:
        case "regex":
            return {"root": parse_regex(params.regex or "")}
        case "choice":
            return {"root": choice(map(text, params.choice or ()))}
        case "grammar":
            return parse_gbnf(params.grammar or "")
        case "structural_tag":
            return structural_tag_rules(str(params.structural_tag))
    layout = Layout()
    if params.whitespace_pattern is not None:
        space = parse_regex(params.whitespace_pattern, name="whitespace_pattern")
        if not _is_white(space):
            raise StructureError(
                "whitespace_pattern must match nothing but blanks, tabs and ends of lines, got "
                f"{params.whitespace_pattern[:60]!r}"
            )
        layout = Layout.with_space(space)
    if params.kind == "json_object":
        return any_value_rules(layout) | {"root": Call("object")}
    assert isinstance(params.json, dict | bool), "the parameters have read it"
    return schema_rules(params.json, layout)


def _is_white(expression: Expression) -> bool:
    """Is it made of JSON's white space alone?"""
    match expression:
        case Characters():
            return not minus(expression.ranges, JSON_SPACES)
        case Concat():
            return all(map(_is_white, expression.parts))
        case Choice():
            return all(map(_is_white, expression.options))
        case Repeat():
            return _is_white(expression.part)
        case Literal():
            return not expression.data.strip(b" \t\r\n")
    return False
