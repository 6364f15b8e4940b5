"""A grammar within another one: its rules under other names.

Read next: `structural_tags.py`.
"""

from __future__ import annotations

from collections.abc import Callable

from minivllm.decoding.structured.expressions import Call, Choice, Concat, Expression, Repeat


def renamed(expression: Expression, rename: Callable[[str], str]) -> Expression:
    """The same, calling rules by their new names."""
    match expression:
        case Call():
            return Call(rename(expression.rule))
        case Concat():
            return Concat(tuple(renamed(part, rename) for part in expression.parts))
        case Choice():
            return Choice(tuple(renamed(option, rename) for option in expression.options))
        case Repeat():
            return Repeat(renamed(expression.part, rename), expression.least, expression.most)
    return expression
