"""The keywords of JSON Schema that are followed, those that say nothing, and the formats of strings.

A keyword that is in no list here is refused by its name and place: a schema that is obeyed in part would be
obeyed by chance.

Source: JSON Schema 2020-12; formats after RFC 3339 and RFC 4122. Read next: `json_schema.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from minivllm.decoding.structured.expressions import StructureError

Schema = Mapping[str, Any] | bool

ANNOTATIONS = frozenset(
    {
        "$comment",
        "$defs",
        "$id",
        "$schema",
        "default",
        "definitions",
        "deprecated",
        "description",
        "discriminator",
        "example",
        "examples",
        "readOnly",
        "title",
        "writeOnly",
    }
)
"""Keywords that allow and forbid nothing."""
OF_TYPE = {
    "object": ("properties", "required", "additionalProperties", "minProperties", "maxProperties"),
    "array": ("items", "prefixItems", "minItems", "maxItems", "uniqueItems"),
    "string": ("minLength", "maxLength", "pattern", "format"),
    "number": ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"),
    "integer": ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"),
    "boolean": (),
    "null": (),
}
"""Type → keywords that say something of values of this type alone."""
COMBINING = ("$ref", "allOf", "anyOf", "oneOf")
KNOWN = ANNOTATIONS | {"type", "enum", "const", "nullable"} | set(COMBINING) | {
    keyword for keywords in OF_TYPE.values() for keyword in keywords
}  # fmt: skip

COUNTS = ("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties")
BOUNDS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")
FORMS: Mapping[str, tuple[type, str]] = {
    "properties": (Mapping, "an object"),
    "required": (list, "a list of names"),
    "enum": (list, "a list"),
    "pattern": (str, "a regular expression"),
    "format": (str, "a name"),
}
"""Keyword → what its value must be, in Python and in words."""

_DATE = (
    r"\d{4}-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12]\d|3[01])|(?:0[469]|11)-(?:0[1-9]|[12]\d|30)"
    r"|02-(?:0[1-9]|1\d|2[0-8]))"
)
_TIME = r"(?:[01]\d|2[0-3]):[0-5]\d:[0-5]\d(?:\.\d{1,6})?(?:Z|[+-](?:[01]\d|2[0-3]):[0-5]\d)"
_BYTE = r"(?:25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d)"
_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,30}[A-Za-z0-9])?"
FORMATS = {
    "date": _DATE,
    "time": _TIME,
    "date-time": f"{_DATE}T{_TIME}",
    "uuid": r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}",
    "ipv4": rf"{_BYTE}(?:\.{_BYTE}){{3}}",
    "hostname": rf"{_LABEL}(?:\.{_LABEL}){{0,5}}",
    "email": rf"[A-Za-z0-9_+-]+(?:\.[A-Za-z0-9_+-]+)*@{_LABEL}(?:\.{_LABEL}){{1,5}}",
}
"""Format → what is written: texts that every reader takes for one, though not all that some would (no 29
February, say)."""


def refuse(path: str, problem: str) -> StructureError:
    """What is wrong with a schema, and where."""
    return StructureError(f"json, at {path}: {problem}")


def check_keywords(schema: Mapping[str, Any], path: str) -> None:
    """Raise `StructureError` for a keyword that is not followed, or whose value is of another form.

    Schemas are joined (`json_merge.py`) before anything is made of them: here is the place to look at values.
    """
    for keyword, value in schema.items():
        if keyword not in KNOWN and not keyword.startswith("x-"):
            raise refuse(path, f"the keyword {keyword!r} is not supported")
        if keyword in COUNTS:
            count_of(schema, keyword, path)
        elif keyword in BOUNDS:
            bound_of(schema, keyword, path)
        elif keyword in FORMS:
            kind, words = FORMS[keyword]
            is_right = isinstance(value, kind)
            if not is_right or (keyword == "required" and not all(isinstance(name, str) for name in value)):
                raise refuse(path, f"{keyword} must be {words}, got {value!r:.60}")


def check_schema(schema: Any, path: str) -> Schema:
    """Raise `StructureError` unless it is a schema."""
    if not isinstance(schema, Mapping | bool):
        raise refuse(path, f"a schema must be an object, true or false, got {schema!r:.60}")
    return schema


def count_of(schema: Mapping[str, Any], keyword: str, path: str) -> int | None:
    """A keyword that is a number of things, or None. 2.0 is 2 in JSON."""
    value = schema.get(keyword)
    if value is None and keyword not in schema:
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise refuse(path, f"{keyword} must be an integer that is not negative, got {value!r:.60}")
    return value


def bound_of(schema: Mapping[str, Any], keyword: str, path: str) -> int | float:
    """A keyword that is a number."""
    value = schema[keyword]
    if isinstance(value, bool) or not isinstance(value, int | float) or abs(value) > 10**18:
        raise refuse(path, f"{keyword} must be a number of at most 18 digits, got {value!r:.60}")
    return value


def list_of(schema: Mapping[str, Any], keyword: str, path: str) -> list[Any]:
    """A keyword that is a list with at least one item."""
    value = schema[keyword]
    if not isinstance(value, list) or not value:
        raise refuse(path, f"{keyword} must be a list that is not empty, got {value!r:.60}")
    return value


def is_of_type(value: Any, kind: str) -> bool:
    """Is this value of JSON of this type?"""
    match kind:
        case "null":
            return value is None
        case "boolean":
            return isinstance(value, bool)
        case "string":
            return isinstance(value, str)
        case "array":
            return isinstance(value, list)
        case "object":
            return isinstance(value, dict)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return kind == "number" or isinstance(value, int) or value.is_integer()


def types_of(schema: Mapping[str, Any], path: str) -> list[str]:
    """The types that a schema names, or those whose keywords it uses; all, if it uses none."""
    if "type" in schema:
        named = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
        for kind in named:
            if not isinstance(kind, str) or kind not in OF_TYPE:
                raise refuse(path, f"type must be one of {', '.join(OF_TYPE)}, or several, got {kind!r:.60}")
    else:
        named = [kind for kind, keywords in OF_TYPE.items() if any(word in schema for word in keywords)]
        named = named or list(OF_TYPE)
    if schema.get("nullable") is True and "null" not in named:
        named = [*named, "null"]
    if "number" in named:  # every integer is a number
        named = [kind for kind in named if kind != "integer"]
    return list(dict.fromkeys(named))
