"""JSON's own values as expressions: strings, numbers, and any value whatever.

Text in JSON is not the text that it means: a quote is written `\\"`, a line's end `\\n`. So a pattern for a
string is translated character by character into what JSON writes for it (`quoted_pattern`).

White space is what Python's `json.dumps` writes: one blank after `,` and after `:`, and no other. A small
model that may write blanks for ever does so.

Source: RFC 8259. Read next: `json_schema.py`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from minivllm.decoding.structured.characters import Ranges, common, complement, minus, normal
from minivllm.decoding.structured.expressions import (
    EMPTY,
    Call,
    Characters,
    Choice,
    Concat,
    Expression,
    Literal,
    Repeat,
    choice,
    concat,
    optional,
    text,
)
from minivllm.decoding.structured.integers import DIGIT, integer

QUOTE = text('"')
CONTROLS: Ranges = ((0, 31),)
TO_ESCAPE = normal([*CONTROLS, (ord('"'),) * 2, (ord("\\"),) * 2])
PLAIN = complement(TO_ESCAPE)
"""Characters that stand for themselves in a string of JSON."""
ASCII: Ranges = ((0, 127),)
MANY_CHARACTERS = 16
HEX = Characters(normal([(48, 57), (65, 70), (97, 102)]))


@dataclass(frozen=True)
class Layout:
    """The white space between the parts of JSON."""

    comma: Expression = field(default_factory=lambda: text(", "))
    colon: Expression = field(default_factory=lambda: text(": "))
    inner: Expression = EMPTY
    """After an opening bracket, and before the closing one."""

    @classmethod
    def with_space(cls, space: Expression) -> Layout:
        """The same white space everywhere."""
        return cls(concat(space, text(","), space), concat(space, text(":"), space), space)


def literal(value: Any) -> Expression:
    """One value, as `json.dumps` writes it."""
    return text(json.dumps(value, ensure_ascii=False))


@cache
def _escape() -> Expression:
    """Any of JSON's escapes; half of a surrogate pair is none."""
    hexadecimal = choice(
        [
            concat(Characters(normal([(48, 57), (65, 67), (69, 70), (97, 99), (101, 102)])), HEX, HEX, HEX),
            concat(Characters(((68, 68), (100, 100))), Characters(((48, 55),)), HEX, HEX),
            concat(
                Characters(((68, 68), (100, 100))),
                Characters(normal([(56, 57), (65, 66), (97, 98)])),
                HEX,
                HEX,
                text("\\u"),
                Characters(((68, 68), (100, 100))),
                Characters(normal([(67, 70), (99, 102)])),
                HEX,
                HEX,
            ),
        ]
    )
    named = Characters(normal((ord(sign), ord(sign)) for sign in '"\\/bfnrt'))
    return concat(text("\\"), choice([named, concat(text("u"), hexadecimal)]))


@cache
def character() -> Expression:
    """One character of a string: itself, or an escape."""
    return choice([Characters(PLAIN), _escape()])


def _odd_character() -> Expression:
    """The same without those of ASCII that stand for themselves."""
    return choice([Characters(minus(PLAIN, ASCII)), _escape()])


def string(least: int = 0, most: int | None = None) -> Expression:
    """A string of so many characters. Where they are many, only the usual ones are spelled out each time."""
    one = character()
    if max(least, most or 0) > MANY_CHARACTERS:
        one = choice([Characters(common(PLAIN, ASCII)), Call("character")])
    return concat(QUOTE, Repeat(one, least, most), QUOTE)


def quoted_pattern(pattern: Expression) -> Expression:
    """A string whose meaning matches a pattern; what must be escaped is written in JSON's shortest way."""
    return concat(QUOTE, _escaped(pattern), QUOTE)


def _escaped(pattern: Expression) -> Expression:
    match pattern:
        case Literal():
            return text(json.dumps(pattern.data.decode(), ensure_ascii=False)[1:-1])
        case Characters():
            odd = common(pattern.ranges, TO_ESCAPE)
            spelled = [
                text(json.dumps(chr(code), ensure_ascii=False)[1:-1])
                for low, high in odd
                for code in range(low, high + 1)
            ]
            plain = minus(pattern.ranges, TO_ESCAPE)
            return choice([*([Characters(plain)] if plain else []), *spelled])
        case Concat():
            return Concat(tuple(map(_escaped, pattern.parts)))
        case Choice():
            return Choice(tuple(map(_escaped, pattern.options)))
        case Repeat():
            return Repeat(_escaped(pattern.part), pattern.least, pattern.most)
        case Call():
            return pattern


def number() -> Expression:
    """A number that a float can hold: digits, perhaps a fraction, perhaps an exponent of two digits."""
    fraction = concat(text("."), Repeat(DIGIT, 1, 16))
    exponent = concat(
        Characters(((69, 69), (101, 101))),
        optional(Characters(((43, 43), (45, 45)))),
        Repeat(DIGIT, 1, 2),
    )
    minus_zero = text("-0")
    return concat(choice([integer(), minus_zero]), optional(fraction), optional(exponent))


def joined(item: Expression, comma: Expression, least: int = 0, most: int | None = None) -> Expression:
    """So many items, with commas between them."""
    if most == 0:
        return EMPTY
    more = Repeat(concat(comma, item), max(0, least - 1), None if most is None else most - 1)
    some = concat(item, more)
    return some if least else optional(some)


def any_value_rules(layout: Layout) -> dict[str, Expression]:
    """The rules of any JSON: `value`, `object`, `array`, `string`, `number`."""
    pair = concat(Call("string"), layout.colon, Call("value"))
    return {
        "value": choice(
            [
                Call("object"),
                Call("array"),
                Call("string"),
                Call("number"),
                *map(text, ("true", "false", "null")),
            ]
        ),
        "object": concat(text("{"), layout.inner, joined(pair, layout.comma), layout.inner, text("}")),
        "array": concat(
            text("["), layout.inner, joined(Call("value"), layout.comma), layout.inner, text("]")
        ),
        "string": string(),
        "character": _odd_character(),
        "number": number(),
    }
