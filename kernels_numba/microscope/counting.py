"""Counting arithmetic: numbers whose every use is counted.

While a kernel is counted, everything that it reads as a floating-point number is a `float` that adds one to
a tally whenever it takes part in an addition, a multiplication, and so on; what comes out is such a number,
too. Integers (indices, loop counters) are not counted.

Read next: `recording.py`, which owns the tally.
"""

from __future__ import annotations

import math
from types import ModuleType, SimpleNamespace
from typing import Any


class Tally:
    """Operations on floating-point numbers."""

    __slots__ = ("additions", "divisions", "exponentials", "multiplications")

    def __init__(self) -> None:
        self.additions = self.multiplications = self.divisions = self.exponentials = 0

    @property
    def flops(self) -> int:
        """Additions (and subtractions), multiplications and divisions."""
        return self.additions + self.multiplications + self.divisions


def counted_float(tally: Tally) -> type[float]:
    """The type of numbers whose uses are counted in `tally`."""

    class Counted(float):
        __slots__ = ()

        def __add__(self, other: Any) -> Any:
            tally.additions += 1
            return Counted(float(self) + float(other))

        def __sub__(self, other: Any) -> Any:
            tally.additions += 1
            return Counted(float(self) - float(other))

        def __rsub__(self, other: Any) -> Any:
            tally.additions += 1
            return Counted(float(other) - float(self))

        def __mul__(self, other: Any) -> Any:
            tally.multiplications += 1
            return Counted(float(self) * float(other))

        def __truediv__(self, other: Any) -> Any:
            tally.divisions += 1
            return Counted(float(self) / float(other))

        def __rtruediv__(self, other: Any) -> Any:
            tally.divisions += 1
            return Counted(float(other) / float(self))

        def __neg__(self) -> Any:
            return Counted(-float(self))

        __radd__, __rmul__ = __add__, __mul__

    return Counted


def counted_math(tally: Tally, counted: type[float]) -> Any:
    """The module `math`, whose functions of floating-point numbers are counted as exponentials."""

    def watched(function: Any) -> Any:
        def call(*values: Any) -> Any:
            tally.exponentials += 1
            return counted(function(*values))

        return call

    return SimpleNamespace(
        **{
            name: watched(thing) if callable(thing) else thing
            for name, thing in vars(math).items()
            if not name.startswith("_")
        }
    )


def is_math(thing: Any) -> bool:
    """Is it the module `math`?"""
    return isinstance(thing, ModuleType) and thing is math
