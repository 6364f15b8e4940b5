"""Changes: which attribute of which shape becomes what, step by step, as columns of numbers.

A long run changes its picture a million times. As dictionaries that is a gigabyte; as columns it is a few
bytes a change, which travel as they are and which the player reads without making an object of them:

    slots     0: (shape 1, "fill")     1: (shape 2, "text")       each attribute that ever changes
    values    0: "family2"     1: "free"     2: "B"               each value once
    steps        step 0 │ step 1 │ step 2
    slot         0      │        │ 0  1                           the three columns: where a step begins,
    value        0      │        │ 1  2                           and for each change its slot and its value

Read next: `scene.py`; `player/changes.js`, which reads the columns.
"""

from __future__ import annotations

import sys
from array import array
from base64 import b64encode
from collections.abc import Sequence
from typing import Any

from minivllm.text import printable

Value = str | float
Shape = dict[str, Value]


class Changes:
    """Columns that only grow."""

    def __init__(self) -> None:
        self.slots: list[tuple[int, str]] = []
        self.values: list[Value] = []
        self._number_of_slot: dict[int, dict[str, int]] = {}
        """By shape and attribute."""
        self._number_of_value: dict[Value, int] = {}
        """A text that may not be shown as it is has none (`_new_number`)."""
        self._starts, self._slot, self._value = array("I"), array("I"), array("I")

    @property
    def num_steps(self) -> int:
        return len(self._starts)

    def __len__(self) -> int:
        return len(self._slot)

    def begin_step(self) -> None:
        """What is added from here on belongs to the next step."""
        self._starts.append(len(self._slot))

    def add(self, shape: int, now: Shape, wanted: Shape) -> None:
        """In this step, the attributes of a shape become `wanted`; those that are so in `now` are left out.

        A long run comes here a million times: it is one loop, and calls nothing for what is known.
        """
        slots = self._number_of_slot.setdefault(shape, {})
        for name, value in wanted.items():
            if now[name] == value:
                continue
            number = self._number_of_value.get(value)
            if number is None:
                number = self._new_number(value)
                value = self.values[number]
                if now[name] == value:
                    continue
            now[name] = value
            slot = slots.get(name)
            if slot is None:
                slot = slots[name] = len(self.slots)
                self.slots.append((shape, name))
            self._slot.append(slot)
            self._value.append(number)

    def add_one(self, shape: int, now: Shape, name: str, value: Value) -> None:
        """`add` for a single attribute: half of all changes come alone."""
        if now[name] == value:
            return
        number = self._number_of_value.get(value)
        if number is None:
            number = self._new_number(value)
            value = self.values[number]
            if now[name] == value:
                return
        now[name] = value
        slots = self._number_of_slot.setdefault(shape, {})
        slot = slots.get(name)
        if slot is None:
            slot = slots[name] = len(self.slots)
            self.slots.append((shape, name))
        self._slot.append(slot)
        self._value.append(number)

    def _new_number(self, value: Value) -> int:
        """The number of a new value, or of what is shown for a text that may not be shown as it is.

        A trace may hold any text; none may act on what stands around it, in whichever backend.
        """
        shown = printable(value) if isinstance(value, str) else value
        number = self._number_of_value.setdefault(shown, len(self.values))
        if number == len(self.values):
            self.values.append(shown)
        return number

    def patch(self, step: int) -> dict[int, Shape]:
        """What one step changes: shape number → attributes."""
        patch: dict[int, Shape] = {}
        for index in range(self._starts[step], self._end(step)):
            shape, name = self.slots[self._slot[index]]
            patch.setdefault(shape, {})[name] = self.values[self._value[index]]
        return patch

    def apply(self, shapes: Sequence[Shape], step: int) -> None:
        """Change shapes as all steps up to `step` do."""
        for index in range(self._end(step)):
            shape, name = self.slots[self._slot[index]]
            shapes[shape][name] = self.values[self._value[index]]

    def to_data(self) -> dict[str, Any]:
        """For the player."""
        return {
            "slots": self.slots,
            "values": self.values,
            "starts": column(self._starts),
            "slot": column(self._slot),
            "value": column(self._value),
        }

    def _end(self, step: int) -> int:
        return self._starts[step + 1] if step + 1 < self.num_steps else len(self._slot)


def column(numbers: array[int]) -> list[Any]:
    """Whole numbers ≥ 0 for the player: bytes of each, and all of them, little end first, as base64."""
    most = max(numbers, default=0)
    code = "B" if most < 1 << 8 else "H" if most < 1 << 16 else "I"
    narrow = array(code, numbers)
    if sys.byteorder == "big":
        narrow.byteswap()
    return [narrow.itemsize, b64encode(narrow.tobytes()).decode()]
