"""Another engine for the same structures: `llguidance`, which reads by derivatives and in Earley's way.

    StructuredOutputsParams ──► its grammar (Lark, or a schema) ──► LLMatcher ──► a mask
    token bytes ──► its tokenizer: one token more, which stands for "it may end here"

It is faster where a grammar has very many states, and knows more of JSON Schema. What differs: where one text
alone can follow, it allows only the tokens that a greedy tokenizer would choose for it; and structural tags
are not handed to it.

Source: github.com/guidance-ai/llguidance. Read next: `guided_progress.py`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib import import_module
from typing import Any

from minivllm.decoding.structured.expressions import StructureError
from minivllm.structured_outputs import StructuredOutputsParams

LAYOUT = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""White space as `json.dumps` writes it, which is what our own automata do."""


class GuidanceVocabulary:
    """A model's tokens, as this engine takes them: what it calls a tokenizer wrapper.

    Args:
        token_bytes: of each token, by id; None for special ones and for ids without a token.

    Attributes:
        end_token: an id behind all others, which stands for the end of a text.
        tokenizer: the engine's own.
    """

    bos_token_id = None

    def __init__(self, token_bytes: Sequence[bytes | None]) -> None:
        library: Any = import_module("llguidance")
        self.token_bytes = tuple(token_bytes)
        self.end_token = self.eos_token_id = len(self.token_bytes)
        self.tokens = [data or b"\xff[%d]" % token for token, data in enumerate(self.token_bytes)]
        self.tokens.append(b"\xff[end]")
        self.special_token_ids = [
            token for token in range(len(self.tokens)) if self.tokens[token][:2] == b"\xff["
        ]
        self._ids = {data: token for token, data in enumerate(self.token_bytes) if data}
        self._longest = max(map(len, self._ids), default=1)
        self.tokenizer = library.LLTokenizer(library.TokenizerWrapper(self))

    def __call__(self, text: str | bytes) -> list[int]:
        """Of a text that must come, tokens, the longest first; a byte that is no token is left out."""
        data, found, place = text.encode() if isinstance(text, str) else text, list[int](), 0
        while place < len(data):
            for end in range(min(len(data), place + self._longest), place, -1):
                if (token := self._ids.get(data[place:end])) is not None:
                    found.append(token)
                    break
            else:
                end = place + 1
            place = end
        return found


class GuidedStructure:
    """What an output must be, ready to be followed by `GuidedProgress`.

    Attributes:
        words: as it was asked for.
        matcher: at the beginning; it is copied for each output.
        endings: tokens that may come where the text may end.
    """

    def __init__(
        self, params: StructuredOutputsParams, vocabulary: GuidanceVocabulary, endings: Sequence[int]
    ) -> None:
        """Raises `StructureError`: it cannot be followed, and why."""
        self.words, self.vocabulary = params.words, vocabulary
        self.endings = tuple(token for token in endings if token < vocabulary.end_token)
        library: Any = import_module("llguidance")
        try:
            grammar = _grammar(library, params)
        except Exception as error:  # its parsers raise no narrower one
            raise StructureError(_first_line(str(error))) from None
        self.matcher = library.LLMatcher(vocabulary.tokenizer, grammar, log_level=0)
        if self.matcher.is_error():
            raise StructureError(_first_line(self.matcher.get_error()))
        if self.matcher.is_stopped():
            raise StructureError("it allows no text but the empty one, so there is nothing to generate")


def _grammar(library: Any, params: StructuredOutputsParams) -> str:
    """In a form that its matcher takes."""
    make = library.LLMatcher
    match params.kind:
        case "regex":
            return str(make.grammar_from_lark(f"start: /{library.regex_to_lark(params.regex, 'dws')}/"))
        case "choice":
            texts = " | ".join(json.dumps(text, ensure_ascii=False) for text in params.choice or ())
            return str(make.grammar_from_lark(f"start: {texts}"))
        case "grammar":
            to_lark: Any = import_module("llguidance.gbnf_to_lark")
            return str(make.grammar_from_lark(to_lark.gbnf_to_lark(params.grammar)))
        case "structural_tag":
            raise ValueError(
                "structural tags are followed by the backend 'minivllm' alone "
                "(structured_outputs_config['backend'])"
            )
    schema: Any = {"type": "object"} if params.kind == "json_object" else params.json
    layout: dict[str, Any] = dict(LAYOUT)
    if params.whitespace_pattern is not None:
        layout = {"whitespace_pattern": params.whitespace_pattern}
    closed = schema if params.kind == "json_object" else without_others(schema)
    return str(make.grammar_from_json_schema(closed, layout))


def without_others(schema: Any) -> Any:
    """The same schema, in which objects have no other properties than those named, unless it says so."""
    if isinstance(schema, list):
        return [without_others(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    made = {
        name: value if name in ("enum", "const", "default", "examples") else without_others(value)
        for name, value in schema.items()
    }
    if "properties" in schema and "additionalProperties" not in schema and "$ref" not in schema:
        made["additionalProperties"] = False
    return made


def _first_line(words: str) -> str:
    return (words.strip().splitlines() or ["it is not understood"])[0][:300]
