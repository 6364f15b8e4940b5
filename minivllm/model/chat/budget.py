"""The steps that one rendering of a chat template may take.

    one step = one node of the template that runs, one element of a list, or 32 characters

Whatever works for the template pays here, as much as it works. What costs more than is left is not begun.

Read next: `prices.py`, what each function costs; `sandbox.py`, which pays.
"""

from __future__ import annotations

from collections.abc import ItemsView, Iterable, Iterator, KeysView, ValuesView
from types import GeneratorType
from typing import Any

import jinja2
from jinja2.runtime import LoopContext

MAX_STEPS = 2_000_000
"""Of one rendering. A thousand messages take up to 350,000, and four megabytes of text up to a million
(nine templates in the style of well-known models)."""
CHARACTERS_PER_STEP = 32
CALL_STEPS = 10
"""Of a call of anything, besides what it works on."""
MAX_WIDTH = 1_000
"""Of a column, an indentation, or a date's format."""
MAX_BITS = 4_096
"""Of a whole number."""


class TemplateLimitError(jinja2.TemplateRuntimeError):
    """A template that does more than a chat template may."""


_COLLECTIONS: Any = (list, tuple, set, frozenset, KeysView, ValuesView, ItemsView)


class Budget:
    """The steps that one rendering has left."""

    def __init__(self, steps: int = MAX_STEPS) -> None:
        self.steps = self.left = steps

    def spend(self, steps: int) -> None:
        self.left -= steps
        if self.left < 0:
            raise TemplateLimitError(f"it takes more than {self.steps:,} steps")

    def spend_characters(self, count: int) -> None:
        self.spend(1 + count // CHARACTERS_PER_STEP)

    def size(self, value: Any) -> int:
        """What it takes to walk over a value, parts that occur twice counted twice, in steps.

        Larger than `left` if it is too large: what contains itself is walked over until then.
        """
        steps, waiting = 1, [value]
        while waiting and steps <= self.left:
            item = waiting.pop()
            if isinstance(item, str):
                steps += len(item) // CHARACTERS_PER_STEP
            elif isinstance(item, int):
                if item.bit_length() > MAX_BITS:
                    raise TemplateLimitError(f"it makes a number of more than {MAX_BITS:,} bits")
            elif isinstance(item, _COLLECTIONS):
                steps += len(item)
                waiting += item
            elif isinstance(item, dict):
                steps += 2 * len(item)
                waiting += [*item, *item.values()]
            elif isinstance(item, range):
                steps += len(item)
            elif isinstance(item, LoopContext):  # `loop` can be walked over, too
                waiting.append(item._iterable)
        return steps

    def weigh(self, value: Any) -> Any:
        """Pay for a value as large as it is, and hand it on; what comes one by one is paid so."""
        if isinstance(value, GeneratorType):
            return self.counted(value)
        self.spend(self.size(value))
        return value

    def copied(self, value: Any) -> Any:
        """Pay for a slice, whose parts are paid for."""
        self.spend_characters(len(value)) if isinstance(value, str) else self.spend(len(value))
        return value

    def tick(self, steps: int) -> bool:
        """Pay for one run of a body, as an expression that is always true."""
        self.spend(steps)
        return True

    def counted(self, items: Iterable[Any], extra_characters: int = 0) -> Iterator[Any]:
        for item in items:
            self.spend_characters(extra_characters)
            yield self.weigh(item)
