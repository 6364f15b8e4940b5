"""JSON Schema: from a schema to the rules of a grammar.

Each schema within a schema becomes a rule, so one that refers to itself is a rule that calls itself:

    {"$defs": {"tree": {"type": "object",                        root ::= tree
      "properties": {"left": {"$ref": "#/$defs/tree"}}}},   ►    tree ::= "{" (`"left": ` tree)? "}"
     "$ref": "#/$defs/tree"}

What is allowed is never more than the schema allows; of what it allows, some is left out, because a model
has no use for it: properties in another order or not named (unless `additionalProperties` is given), items
behind `prefixItems` (unless `items` is given), other white space, numbers of more than 16 digits. Where
`type` is missing, it is the type whose keywords are used. Any keyword that is not followed is refused by its
name and place (`json_keywords.py`).

Source: JSON Schema 2020-12. Read next: `json_values.py`, `json_merge.py`, `json_objects.py`.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Mapping
from typing import Any

from minivllm.decoding.structured.expressions import (
    NOTHING,
    Call,
    Expression,
    choice,
    text,
)
from minivllm.decoding.structured.integers import decimal, integer
from minivllm.decoding.structured.json_keywords import (
    ANNOTATIONS,
    COMBINING,
    FORMATS,
    OF_TYPE,
    Schema,
    bound_of,
    check_keywords,
    check_schema,
    count_of,
    is_of_type,
    list_of,
    refuse,
    types_of,
)
from minivllm.decoding.structured.json_merge import Document
from minivllm.decoding.structured.json_objects import Maker, array_of, object_of
from minivllm.decoding.structured.json_values import (
    Layout,
    any_value_rules,
    literal,
    number,
    quoted_pattern,
    string,
)
from minivllm.decoding.structured.regex import parse_regex

MOST_RULES = 20_000
MOST_CHARACTERS = 1 << 24
"""Of schemas that were looked at: those within a schema are part of it, and count again."""


def schema_rules(schema: Schema, layout: Layout | None = None) -> dict[str, Expression]:
    """The rules of a schema; it begins with `root`.

    Raises:
        StructureError: a keyword that is not followed, or is of no use, with its place.
    """
    return _Compiler(schema, layout or Layout()).compile()


class _Compiler:
    def __init__(self, schema: Schema, layout: Layout) -> None:
        self._document = Document(schema)
        self.rules = any_value_rules(layout)
        self._names: dict[str, str] = {}
        self._waiting: deque[tuple[str, Schema, str]] = deque()
        self._num_characters = 0
        self._maker = Maker(layout, self._call, self._add)

    def compile(self) -> dict[str, Expression]:
        root = self._call(self._document.root, "#")
        while self._waiting:
            name, schema, path = self._waiting.popleft()
            self.rules[name] = self._expression(schema, path)
        return self.rules | {"root": root}

    def _call(self, schema: Schema, path: str) -> Expression:
        """A call of the rule of a schema, which is made later; equal schemas have one rule."""
        if schema is False:
            return NOTHING
        if schema is True or not schema.keys() - ANNOTATIONS:
            if schema is not True:
                check_keywords(schema, path)
            return Call("value")
        key = json.dumps(schema)
        self._num_characters += len(key)
        if self._num_characters > MOST_CHARACTERS or len(self.rules) > MOST_RULES:
            raise refuse(path, "the schema is too large")
        if key not in self._names:
            self._names[key] = name = self._new_name(path)
            self._waiting.append((name, schema, path))
        return Call(self._names[key])

    def _add(self, name: str, expression: Expression) -> Call:
        name = self._new_name(name)
        self.rules[name] = expression
        return Call(name)

    def _new_name(self, path: str) -> str:
        name = path
        while name in self.rules:
            name = f"{path} ({len(self.rules)})"
        self.rules[name] = NOTHING  # the name is taken
        return name

    def _expression(self, schema: Schema, path: str) -> Expression:
        """What one schema allows."""
        assert isinstance(schema, Mapping), "true and false have no rules"
        check_keywords(schema, path)
        combining = [keyword for keyword in COMBINING if keyword in schema]
        if not combining:
            return self._plain(schema, path)
        if len(combining) == 1 and not schema.keys() - ANNOTATIONS - set(combining):
            keyword = combining[0]
            if keyword == "$ref":
                return self._call(self._document.resolve(schema["$ref"], path), str(schema["$ref"]))
            if keyword == "oneOf":
                self._document.branches(schema, keyword, path)  # do they exclude each other?
            if keyword != "allOf" or len(list_of(schema, keyword, path)) == 1:
                return choice(
                    self._call(check_schema(branch, f"{path}/{keyword}/{i}"), f"{path}/{keyword}/{i}")
                    for i, branch in enumerate(list_of(schema, keyword, path))
                )
        return choice(self._call(plain, path) for plain in self._document.alternatives(schema, path))

    def _plain(self, schema: Mapping[str, Any], path: str) -> Expression:
        """A schema without combining keywords."""
        if "enum" in schema or "const" in schema:
            return self._named_values(schema, path)
        return choice(self._of_type(kind, schema, path) for kind in types_of(schema, path))

    def _named_values(self, schema: Mapping[str, Any], path: str) -> Expression:
        allowed = {"enum", "const", "type", "nullable"} | ANNOTATIONS
        kinds = types_of(schema, path) if "type" in schema else list(OF_TYPE)
        for keyword in sorted(schema.keys() - allowed):
            if any(keyword in OF_TYPE[kind] for kind in kinds):
                raise refuse(path, f"{keyword} beside enum or const is not supported")
        values = [schema["const"]] if "const" in schema else list(schema["enum"] or ())
        if "enum" in schema:
            values = [value for value in values if value in schema["enum"]]
        if schema.get("nullable") is True and "type" in schema and "enum" not in schema:
            values.append(None)
        return choice(literal(value) for value in values if any(is_of_type(value, kind) for kind in kinds))

    def _of_type(self, kind: str, schema: Mapping[str, Any], path: str) -> Expression:
        match kind:
            case "object":
                if not any(keyword in schema for keyword in OF_TYPE["object"]):
                    return Call("object")
                return object_of(schema, path, self._maker)
            case "array":
                return array_of(schema, path, self._maker)
            case "string":
                return self._string(schema, path)
            case "boolean":
                return choice([text("true"), text("false")])
            case "null":
                return text("null")
        return _number(kind, schema, path)

    def _string(self, schema: Mapping[str, Any], path: str) -> Expression:
        least, most = count_of(schema, "minLength", path), count_of(schema, "maxLength", path)
        given = [keyword for keyword in ("pattern", "format") if keyword in schema]
        if len(given) == 2 or (given and (least is not None or most is not None)):
            raise refuse(path, "pattern, format and minLength or maxLength together are not supported")
        if "pattern" in schema:
            name = f"json, at {path}: pattern"
            return quoted_pattern(parse_regex(schema["pattern"], name=name, is_search=True))
        if "format" in schema:
            if schema["format"] not in FORMATS:
                raise refuse(
                    path, f"format must be one of {', '.join(FORMATS)}, got {schema['format']!r:.60}"
                )
            return quoted_pattern(parse_regex(FORMATS[schema["format"]]))
        if least is None and most is None:
            return Call("string")
        if most is not None and (least or 0) > most:
            return NOTHING
        return string(least or 0, most)


def _number(kind: str, schema: Mapping[str, Any], path: str) -> Expression:
    """Bounds of integers are any numbers; those of other numbers must be whole."""
    low, open_low = _bound(schema, "minimum", "exclusiveMinimum", path)
    high, open_high = _bound(schema, "maximum", "exclusiveMaximum", path)
    if low is None and high is None:
        return integer() if kind == "integer" else number()
    if kind == "integer":
        at_least = None if low is None else -int(-low // 1) if not open_low else int(low // 1) + 1
        at_most = None if high is None else int(high // 1) if not open_high else -int(-high // 1) - 1
        return integer(at_least, at_most)
    for keyword, value in (("minimum", low), ("maximum", high)):
        if value is not None and value != int(value):
            raise refuse(path, f"{keyword} of numbers must be whole, got {value!r:.60}")
    return decimal(
        None if low is None else int(low),
        None if high is None else int(high),
        open_low=open_low,
        open_high=open_high,
    )


def _bound(schema: Mapping[str, Any], closed: str, opened: str, path: str) -> tuple[int | float | None, bool]:
    """The stricter of two bounds, and whether the bound itself is left out."""
    found: list[tuple[int | float, bool]] = []
    for keyword, is_open in ((closed, False), (opened, True)):
        if keyword not in schema:
            continue
        found.append((bound_of(schema, keyword, path), is_open))
    if not found:
        return None, False
    sign = 1 if closed == "minimum" else -1
    return max(found, key=lambda bound: (sign * bound[0], bound[1]))
