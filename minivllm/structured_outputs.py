"""What shape an output must have: vLLM's `StructuredOutputsParams`, and what OpenAI's `response_format`
means.

    StructuredOutputsParams(regex=r"\\d{4}-\\d{2}")          a year and a month
    StructuredOutputsParams(choice=["yes", "no"])          one of these texts
    StructuredOutputsParams(json={"type": "object", …})    JSON by a schema
    StructuredOutputsParams(json_object=True)              any JSON object
    StructuredOutputsParams(grammar='root ::= …')          a grammar in GBNF, the form of llama.cpp
    StructuredOutputsParams(structural_tag='{"format": …}')  text with structured parts in it

Exactly one of the six says what is allowed. Here only its form is checked; what it means, and whether any
text satisfies it, is found out when a request is made (`minivllm/decoding/structured/compile.py`).

Read next: `minivllm/decoding/structured/__init__.py`, which tells how every output comes to have its shape.
"""

from __future__ import annotations

import json as json_library
from collections.abc import Mapping
from dataclasses import dataclass, fields
from math import isfinite
from typing import Any, NoReturn

from minivllm.validation import check_boolean, check_list, check_text, shown

KINDS = ("json", "regex", "choice", "grammar", "json_object", "structural_tag")
"""What an output may be constrained by."""
MOST_CHARACTERS = 1 << 20
"""Of a schema, a pattern or a grammar: reading one must not hold up the engine."""


@dataclass
class StructuredOutputsParams:
    """What shape an output must have; exactly one of those that say what it must be.

    Attributes:
        json: a JSON schema, as a dictionary or as text.
        regex: a regular expression that the whole output matches (Python's syntax, with `re.ASCII`).
        choice: texts, one of which is the output.
        grammar: a context-free grammar in GBNF; the output is what `root` derives.
        json_object: True for any JSON object.
        disable_any_whitespace: accepted as in vLLM, without effect: there is never more white space than
            `json.dumps` writes, unless `whitespace_pattern` asks for it.
        disable_additional_properties: accepted as in vLLM, without effect: objects have no other properties
            than those named, unless `additionalProperties` asks for them.
        whitespace_pattern: a regular expression of the white space between the parts of JSON.
        structural_tag: free text with tags in it, as JSON or a dictionary (its formats: `tag_formats.py`).

    Raises:
        TypeError: there is no argument of this name.
        ValueError: an argument of another form, none of the six, or several; the message names them.
    """

    json: str | Mapping[str, Any] | bool | None = None
    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = None
    json_object: bool | None = None
    disable_any_whitespace: bool = False
    disable_additional_properties: bool = False
    whitespace_pattern: str | None = None
    structural_tag: str | Mapping[str, Any] | None = None

    def __new__(cls, *_: object, **named: object) -> StructuredOutputsParams:
        known = [field.name for field in fields(cls)]
        for name in named:
            if name not in known:
                raise TypeError(
                    f"StructuredOutputsParams has no argument {name!r}; it has {', '.join(known)}"
                )
        return super().__new__(cls)

    def __post_init__(self) -> None:
        for name in ("disable_any_whitespace", "disable_additional_properties"):
            check_boolean(name, getattr(self, name))
        if self.json_object is not None and not check_boolean("json_object", self.json_object):
            self.json_object = None
        given = [name for name in KINDS if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(
                f"structured_outputs must have exactly one of {', '.join(KINDS)}, got "
                f"{' and '.join(given) or 'none of them'}"
            )
        for name in ("regex", "grammar", "whitespace_pattern"):
            if getattr(self, name) is not None:
                setattr(self, name, _short_text(name, getattr(self, name)))
        if self.choice is not None:
            self.choice = _choices(self.choice)
        if self.json is not None:
            self.json = _schema(self.json)
        if self.structural_tag is not None:
            self.structural_tag = _tag(self.structural_tag)
        if self.whitespace_pattern is not None and self.kind not in ("json", "json_object"):
            raise ValueError(f"whitespace_pattern belongs to json and json_object, got it with {self.kind}")

    @property
    def kind(self) -> str:
        """Which of the six it is."""
        return next(name for name in KINDS if getattr(self, name) is not None)

    @property
    def words(self) -> str:
        """It all as one text: what a trace shows, and what tells two of them apart."""
        value = getattr(self, self.kind)
        said = value if isinstance(value, str) else json_library.dumps(value, ensure_ascii=False)
        around = "" if self.whitespace_pattern is None else f" with white space {self.whitespace_pattern}"
        return f"{self.kind} {said}{around}"


def _short_text(name: str, value: object) -> str:
    text = check_text(name, value)
    if len(text) > MOST_CHARACTERS:
        raise ValueError(f"{name} must have at most {MOST_CHARACTERS:,} characters, got {len(text):,}")
    return text


def _choices(value: object) -> list[str]:
    texts = check_list("choice", value, of="strings", may_be_set=False)
    choices = [check_text(f"choice[{index}]", text) for index, text in enumerate(texts)]
    if not choices:
        raise ValueError("choice must have at least one text, got []")
    if sum(map(len, choices)) > MOST_CHARACTERS:
        raise ValueError(f"choice must have at most {MOST_CHARACTERS:,} characters together")
    return choices


def _json_of(name: str, wanted: str, value: object) -> Any:
    """What a text of JSON says, or a copy of what a user made of dictionaries and lists.

    Python's `json` also knows NaN and infinity, which JSON does not.
    """
    try:
        text = value if isinstance(value, str) else json_library.dumps(value, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{name} must be {wanted}, but JSON cannot express it: {error}") from None
    text = _short_text(name, text)
    try:
        return json_library.loads(text, parse_constant=_refuse_constant, parse_float=_finite)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{name} must be {wanted}, but its text is no JSON: {error}") from None


def _refuse_constant(word: str) -> NoReturn:
    raise ValueError(f"{word} is no number of JSON")


def _finite(word: str) -> float:
    """A number beyond any float would be an infinity, which JSON cannot write again."""
    number = float(word)
    return number if isfinite(number) else _refuse_constant(word)


def _tag(value: object) -> str:
    """A structural tag as JSON, in one form."""
    if not isinstance(value, str | Mapping):
        raise ValueError(f"structural_tag must be JSON, or a dictionary, got {shown(value)}")
    tag = _json_of("structural_tag", "JSON", value)
    if not isinstance(tag, dict) or not ("format" in tag or {"structures", "triggers"} <= tag.keys()):
        raise ValueError(
            "structural_tag must be an object with a format, or with structures and triggers, got "
            f"{shown(tag)}"
        )
    return check_text("structural_tag", json_library.dumps(tag, ensure_ascii=False))


def _schema(value: object) -> Mapping[str, Any] | bool:
    """A schema as JSON has it: a copy of its own, which nothing changes later."""
    if not isinstance(value, str | Mapping | bool):
        raise ValueError(f"json must be a JSON schema (a dictionary, or its text), got {shown(value)}")
    schema = _json_of("json", "a JSON schema", value)
    if not isinstance(schema, dict | bool):
        raise ValueError(f"json must be a JSON schema, that is an object, got {shown(schema)}")
    check_text("json", json_library.dumps(schema, ensure_ascii=False))  # JSON can spell half a character
    return schema


def from_response_format(wanted: Mapping[str, Any]) -> StructuredOutputsParams | None:
    """What OpenAI's `response_format` asks for; None if it is plain text.

    Raises:
        ValueError: it is of no known type, or has no schema where it needs one.
    """
    kind = wanted.get("type")
    if kind == "text":
        return None
    if kind == "json_object":
        return StructuredOutputsParams(json_object=True)
    if kind == "structural_tag":
        return StructuredOutputsParams(structural_tag=wanted)
    if kind != "json_schema":
        raise ValueError(
            "response_format: type must be one of 'text', 'json_object', 'json_schema', 'structural_tag', "
            f"got {shown(kind)}"
        )
    named = wanted.get("json_schema")
    schema = named.get("schema") if isinstance(named, Mapping) else None
    if not isinstance(schema, Mapping | bool):
        raise ValueError(
            f"response_format: json_schema must be an object with a name and a schema, got {shown(named)}"
        )
    return StructuredOutputsParams(json=schema)
