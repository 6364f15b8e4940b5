"""The formats of structural tags: their types, their fields, and what is wrong with one.

What is not followed is refused by its name and place, as with schemas.

Source: XGrammar's documentation of structural tags. Read next: `structural_tags.py`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from minivllm.decoding.structured.expressions import StructureError

Format = Mapping[str, Any]

FIELDS: Mapping[str, tuple[str, ...]] = {
    "const_string": ("value",),
    "json_schema": ("json_schema",),
    "regex": ("pattern",),
    "grammar": ("grammar",),
    "any_text": ("excludes",),
    "sequence": ("elements",),
    "or": ("elements",),
    "optional": ("content",),
    "plus": ("content",),
    "star": ("content",),
    "repeat": ("content", "min", "max"),
    "tag": ("begin", "content", "end"),
    "triggered_tags": ("triggers", "tags", "at_least_one", "stop_after_first", "excludes"),
    "tags_with_separator": ("tags", "separator", "at_least_one", "stop_after_first"),
}
"""Type of a format → its other fields."""


def check_fields(item: Format, known: Sequence[str], path: str) -> None:
    """Raise `StructureError` for a field that is none of these."""
    if unknown := [field for field in item if field not in known]:
        raise refuse(path, f"it has no field {unknown[0]!r:.60}; it has {', '.join(known)}")


def format_of(item: Any, path: str) -> Format:
    """Raise `StructureError` unless it is a format of a known type, with no fields but its own."""
    if not isinstance(item, Mapping) or "type" not in item:
        raise refuse(path, f'a format must be an object with a "type", got {item!r:.60}')
    kind = item["type"]
    if not isinstance(kind, str) or kind not in FIELDS:
        raise refuse(path, f"type must be one of {', '.join(FIELDS)}, got {kind!r:.60}")
    extra = dict(item)
    if kind == "json_schema" and extra.get("style") == "json":  # the default; no other is here
        del extra["style"]
    for field in extra.keys() - {"type", *FIELDS[kind]}:
        if extra[field] not in (None, False):
            raise refuse(path, f"{kind} has no field {field!r:.60} here; it has {', '.join(FIELDS[kind])}")
    return item


def of_older_form(tag: Format) -> Format:
    """Triggered tags, from the form that vLLM had first."""
    structures = tag.get("structures")
    if not isinstance(structures, list) or not all(isinstance(one, Mapping) for one in structures):
        raise refuse("#", f"structures must be a list of objects, got {structures!r:.60}")
    tags = []
    for index, one in enumerate(structures):
        check_fields(one, ("begin", "schema", "end"), f"#/structures/{index}")
        schema = one.get("schema")
        if isinstance(schema, str):
            try:
                schema = json.loads(schema)
            except ValueError as error:
                raise refuse(f"#/structures/{index}", f"schema is no JSON: {error}") from None
        if not isinstance(schema, Mapping | bool):
            raise refuse(f"#/structures/{index}", f"schema must be a JSON schema, got {schema!r:.60}")
        content = {"type": "json_schema", "json_schema": schema}
        tags.append({"begin": one.get("begin"), "content": content, "end": one.get("end")})
    return {"type": "triggered_tags", "triggers": tag.get("triggers"), "tags": tags}


def text_of(item: Format, field: str, path: str) -> str:
    """A field that must be a text."""
    value = item.get(field)
    if not isinstance(value, str):
        raise refuse(path, f"{field} must be a text, got {value!r:.60}")
    return value


def texts_of(item: Format, field: str, path: str) -> list[str]:
    """A field that must be a list of texts; each of them once, none if it is missing."""
    value = item.get(field) or []
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
        raise refuse(path, f"{field} must be a list of texts, got {value!r:.60}")
    return list(dict.fromkeys(value))


def flag_of(item: Format, field: str, path: str) -> bool:
    """A field that must be true or false; false if it is missing."""
    value = item.get(field, False)
    if not isinstance(value, bool):
        raise refuse(path, f"{field} must be true or false, got {value!r:.60}")
    return value


def refuse(path: str, problem: str) -> StructureError:
    """What is wrong with a structural tag, and where."""
    return StructureError(f"structural_tag, at {path}: {problem}")
