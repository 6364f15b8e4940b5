"""Objects and arrays: where commas stand when anything may be left out.

Properties come in the schema's order; those that are not required may be missing. A comma stands before each
property but the first one that is there, so there are two rules for each place in the list: nothing has come
yet, or something has.

    first(i)  ::=  property(i) rest(i+1)  |  first(i+1)     the second, if property i may be missing
    rest(i)   ::=  ", " property(i) rest(i+1)  |  rest(i+1)
    rest(n)   ::=  "}"

Each ends with a call, so the stack does not grow. Any subset of the properties takes a number of rules that
grows with the number of properties, and not with that of subsets.

Read next: `json_schema.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from minivllm.decoding.structured.characters import Ranges, minus, normal
from minivllm.decoding.structured.expressions import (
    EMPTY,
    NOTHING,
    Call,
    Characters,
    Expression,
    Repeat,
    choice,
    concat,
    optional,
    text,
)
from minivllm.decoding.structured.json_keywords import Schema, check_schema, count_of, refuse
from minivllm.decoding.structured.json_values import PLAIN, QUOTE, Layout, joined, literal


@dataclass(frozen=True)
class Maker:
    """What objects and arrays need of the compiler of a schema."""

    layout: Layout
    call: Callable[[Schema, str], Expression]
    """A schema and its place → a call of its rule."""
    add: Callable[[str, Expression], Call]
    """A rule of this name, made unique → a call of it."""


def object_of(schema: Mapping[str, Any], path: str, maker: Maker) -> Expression:
    """An object of these properties."""
    properties = schema.get("properties", {})
    required = schema.get("required", [])
    additional = check_schema(schema.get("additionalProperties", not properties), path)
    others = schema.get("additionalProperties", True)
    named = dict(properties) | {name: others for name in required if name not in properties}
    _check_numbers(schema, path, len(set(required)), None if additional is not False else len(named))
    layout = maker.layout
    close = concat(layout.inner, text("}"))
    pairs = [
        concat(
            literal(name),
            layout.colon,
            maker.call(check_schema(item, f"{path}/properties/{name}"), f"{path}/properties/{name}"),
        )
        for name, item in named.items()
    ]
    rest, first = close, close
    if additional is not False:
        key = _other_key(list(named), maker)
        pair = concat(key, layout.colon, maker.call(additional, f"{path}/additionalProperties"))
        rest = concat(Repeat(concat(layout.comma, pair), 0, None), close)
        first = concat(joined(pair, layout.comma), close)
    for index in reversed(range(len(pairs))):
        after = maker.add(f"{path} after {index}", rest)
        may_miss = list(named)[index] not in required
        first = choice([concat(pairs[index], after), *([first] if may_miss else [])])
        rest = choice([concat(layout.comma, pairs[index], after), *([after] if may_miss else [])])
        if may_miss:
            first = maker.add(f"{path} from {index}", first)
    return concat(text("{"), layout.inner, first)


def _check_numbers(schema: Mapping[str, Any], path: str, fewest: int, most: int | None) -> None:
    """`minProperties` and `maxProperties`, as far as they say nothing new."""
    least = count_of(schema, "minProperties", path)
    if least is not None and least > fewest:
        raise refuse(
            path, "the keyword 'minProperties' is not supported where it asks for more than required"
        )
    limit = count_of(schema, "maxProperties", path)
    if limit is not None and (most is None or limit < most):
        raise refuse(
            path, "the keyword 'maxProperties' is not supported where it allows fewer than are named"
        )


def _other_key(names: Sequence[str], maker: Maker) -> Expression:
    """Any name but these, written without escapes (`"\\u0061"` would be another way to write `"a"`)."""
    if not names:
        return Call("string")
    plain = [name for name in names if all(_is_plain(character) for character in name)]
    return maker.add("another key", concat(QUOTE, _other_than(plain), QUOTE))


def _is_plain(character: str) -> bool:
    return any(low <= ord(character) <= high for low, high in PLAIN)


def _other_than(texts: Sequence[str]) -> Expression:
    """Any text of plain characters but these: where it leaves their tree of beginnings, or ends before."""
    begun: dict[str, list[str]] = {}
    for item in texts:
        if item:
            begun.setdefault(item[0], []).append(item[1:])
    taken: Ranges = normal((ord(character), ord(character)) for character in begun)
    options: list[Expression] = [] if "" in texts else [EMPTY]
    options.append(concat(Characters(minus(PLAIN, taken)), Repeat(Characters(PLAIN), 0, None)))
    options += [concat(text(character), _other_than(rests)) for character, rests in begun.items()]
    return choice(options)


def array_of(schema: Mapping[str, Any], path: str, maker: Maker) -> Expression:
    """An array of these items."""
    if schema.get("uniqueItems", False) is not False:
        raise refuse(path, "the keyword 'uniqueItems' is not supported")
    if isinstance(schema.get("items"), list):
        raise refuse(path, "items must be a schema; a list of them is called prefixItems")
    prefix = schema.get("prefixItems", [])
    if not isinstance(prefix, list):
        raise refuse(path, f"prefixItems must be a list of schemas, got {prefix!r:.60}")
    least, most = count_of(schema, "minItems", path) or 0, count_of(schema, "maxItems", path)
    if most is not None and least > most:
        return NOTHING
    others = check_schema(schema.get("items", not prefix or least > len(prefix)), f"{path}/items")
    item = maker.call(others, f"{path}/items")
    comma = maker.layout.comma
    if not prefix:
        items = joined(item, comma, least, most)
    else:
        more = None if most is None else max(0, most - len(prefix))
        items = Repeat(concat(comma, item), max(0, least - len(prefix)), more)
        if item == NOTHING or more == 0:
            items = NOTHING if least > len(prefix) else EMPTY
        for index in reversed(range(len(prefix))):
            place = f"{path}/prefixItems/{index}"
            own = maker.call(check_schema(prefix[index], place), place)
            part = concat(*([comma] if index else []), own, maker.add(f"{place} rest", items))
            items = part if index < least else optional(part)
            if most is not None and index >= most:
                items = EMPTY
    return concat(text("["), maker.layout.inner, items, maker.layout.inner, text("]"))
