"""Schemas that are combined: `$ref` with keywords beside it, `allOf`, `anyOf`, `oneOf`.

What is combined becomes a list of plain schemas, one of which must hold:

    {"type": "object", "anyOf": [A, B]}     ►   [object and A, object and B]
    {"allOf": [A, B]}                       ►   [A and B]

Two schemas are joined keyword by keyword: the larger of two minimums, the types that both have, and so on.
Keywords that cannot be joined like this are refused by name. `oneOf` means exactly one; as an automaton
cannot count the ways in which a text is read, its branches must show that no value fits two of them: by their
types, by their `const` or `enum`, or by a required property that tells them apart.

Read next: `json_objects.py`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from itertools import combinations
from typing import Any
from urllib.parse import unquote

from minivllm.decoding.structured.json_keywords import (
    ANNOTATIONS,
    COMBINING,
    Schema,
    check_keywords,
    check_schema,
    list_of,
    refuse,
    types_of,
)

MOST_ALTERNATIVES = 256
MOST_REFERENCES = 32
"""Of references that lead to references."""
LARGER = ("minLength", "minItems", "minimum", "exclusiveMinimum", "minProperties")
SMALLER = ("maxLength", "maxItems", "maximum", "exclusiveMaximum", "maxProperties")


class Document:
    """The whole schema, in which references are looked up."""

    def __init__(self, root: Schema) -> None:
        self.root = root

    def resolve(self, reference: Any, path: str) -> Schema:
        """The schema that `$ref` names: `#`, or a path within the document."""
        if not isinstance(reference, str) or not (reference == "#" or reference.startswith("#/")):
            raise refuse(path, f"$ref must name a place in this schema (#/$defs/…), got {reference!r:.100}")
        found: Any = self.root
        for part in reference[2:].split("/") if len(reference) > 1 else ():
            key = unquote(part).replace("~1", "/").replace("~0", "~")
            if isinstance(found, list) and key.isdecimal() and int(key) < len(found):
                found = found[int(key)]
            elif isinstance(found, Mapping) and key in found:
                found = found[key]
            else:
                raise refuse(path, f"$ref names {reference!r:.100}, which is not there")
        return check_schema(found, reference)

    def alternatives(self, schema: Schema, path: str, depth: int = 0) -> list[Schema]:
        """Plain schemas, of which one must hold."""
        if isinstance(schema, bool):
            return [schema]
        check_keywords(schema, path)
        if depth > MOST_REFERENCES:
            raise refuse(path, "it refers to itself without end")
        found: list[Schema] = [{key: value for key, value in schema.items() if key not in COMBINING}]
        for group in self._groups(schema, path, depth):
            if len(found) * len(group) > MOST_ALTERNATIVES:
                raise refuse(path, f"more than {MOST_ALTERNATIVES} combinations of anyOf, oneOf and allOf")
            found = [joined(one, other, path) for one in found for other in group]
        return found

    def _groups(self, schema: Mapping[str, Any], path: str, depth: int) -> Iterator[list[Schema]]:
        """Alternatives of each combining keyword: of every group, one must hold."""
        if "$ref" in schema:
            target = self.resolve(schema["$ref"], path)
            yield self.alternatives(target, str(schema["$ref"]), depth + 1)
        for index, part in enumerate(list_of(schema, "allOf", path) if "allOf" in schema else ()):
            place = f"{path}/allOf/{index}"
            yield self.alternatives(check_schema(part, place), place, depth + 1)
        for keyword in ("anyOf", "oneOf"):
            if keyword in schema:
                branches = self.branches(schema, keyword, path, depth)
                yield [item for branch in branches for item in branch]

    def branches(
        self, schema: Mapping[str, Any], keyword: str, path: str, depth: int = 0
    ) -> list[list[Schema]]:
        """The alternatives of each branch of `anyOf` or `oneOf`; those of `oneOf` exclude each other."""
        found = []
        for index, branch in enumerate(list_of(schema, keyword, path)):
            place = f"{path}/{keyword}/{index}"
            found.append(self.alternatives(check_schema(branch, place), place, depth + 1))
        if keyword == "oneOf":
            self._check_apart(found, path)
        return found

    def _check_apart(self, branches: list[list[Schema]], path: str) -> None:
        for (first, ones), (second, others) in combinations(enumerate(branches), 2):
            for one in ones:
                for other in others:
                    if not self._are_apart(one, other, path):
                        raise refuse(
                            path,
                            f"oneOf: a value might fit both branch {first} and branch {second}; use anyOf, "
                            "or give them different types, or a required property with different const "
                            "values",
                        )

    def _are_apart(self, one: Schema, other: Schema, path: str, depth: int = 0) -> bool:
        """Is it plain to see that no value fits both?"""
        if one is False or other is False:
            return True
        if one is True or other is True or depth > 3:
            return False
        assert isinstance(one, Mapping) and isinstance(other, Mapping)
        values = _values(one), _values(other)
        if values[0] is not None and values[1] is not None:
            return not values[0] & values[1]
        types = [set(types_of(item, path)) if "type" in item else None for item in (one, other)]
        if types[0] is not None and types[1] is not None:
            wide = [
                kinds | ({"integer"} if "number" in kinds else set()) for kinds in types if kinds is not None
            ]
            if not wide[0] & wide[1]:
                return True
            if types[0] != {"object"} or types[1] != {"object"}:
                return False
        shared = set(one.get("required") or ()) & set(other.get("required") or ())
        mine, theirs = one.get("properties") or {}, other.get("properties") or {}
        return any(
            name in mine
            and name in theirs
            and all(
                self._are_apart(left, right, path, depth + 1)
                for left in self.alternatives(check_schema(mine[name], path), path)
                for right in self.alternatives(check_schema(theirs[name], path), path)
            )
            for name in sorted(shared)
        )


def _values(schema: Mapping[str, Any]) -> set[str] | None:
    """The values that `const` or `enum` name, as text; None if neither does."""
    if "const" in schema:
        return {json.dumps(schema["const"], sort_keys=True)}
    named = schema.get("enum")
    return {json.dumps(value, sort_keys=True) for value in named} if isinstance(named, list) else None


def joined(one: Schema, other: Schema, path: str) -> Schema:
    """A schema of what both allow. Schemas within them are joined later, by `allOf`."""
    if isinstance(one, bool):
        return other if one else False
    if isinstance(other, bool):
        return one if other else False
    found: dict[str, Any] = dict(one)
    for keyword, value in other.items():
        if keyword not in found or found[keyword] == value or keyword in ANNOTATIONS:
            found[keyword] = value
        elif keyword == "type":
            found[keyword] = _common_types(one, other, path)
        elif keyword == "required":
            found[keyword] = list(dict.fromkeys([*found[keyword], *value]))
        elif keyword in LARGER:
            found[keyword] = max(found[keyword], value)
        elif keyword in SMALLER:
            found[keyword] = min(found[keyword], value)
        elif keyword == "enum":
            found[keyword] = [item for item in found[keyword] if item in value]
        elif keyword in ("items", "additionalProperties"):
            found[keyword] = both(found[keyword], value)
        elif keyword != "properties":
            raise refuse(path, f"{keyword} stands in two schemas that must hold together, and differs")
    if "enum" in found and "const" in found:
        found["enum"] = [found["const"]] if found["const"] in found["enum"] else []
        del found["const"]
    properties = dict(_joined_properties(one, other))
    return found | {"properties": properties} if properties else found


def _joined_properties(one: Mapping[str, Any], other: Mapping[str, Any]) -> Iterator[tuple[str, Schema]]:
    """A property that only one schema names must be what the other allows of additional ones."""
    mine, theirs = one.get("properties") or {}, other.get("properties") or {}
    for name in dict.fromkeys((*mine, *theirs)):
        yield (
            name,
            both(
                mine.get(name, one.get("additionalProperties", True)),
                theirs.get(name, other.get("additionalProperties", True)),
            ),
        )


def both(one: Schema, other: Schema) -> Schema:
    """Both must hold."""
    if one is False or other is False:
        return False
    if one is True or one == other:
        return other
    return one if other is True else {"allOf": [one, other]}


def _common_types(one: Mapping[str, Any], other: Mapping[str, Any], path: str) -> list[str]:
    mine, theirs = types_of(one, path), types_of(other, path)
    common = [kind for kind in mine if kind in theirs]
    if ("integer" in mine and "number" in theirs) or ("number" in mine and "integer" in theirs):
        common.append("integer")
    return common
