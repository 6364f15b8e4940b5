"""What an instruction means, in plain Python, for a machine that cannot execute it.

A few instructions of the hardware (a 128-bit load, a matrix product on tensor cores) have no Python of their
own: Numba compiles them from a line of PTX. The microscope runs kernels without a compiler, so each of them
says here what it does:

    @means(load_float4)
    def _(lane, array, row, column):
        return tuple(lane.read(array, (row, column), 4))

The first argument is the lane that executes it (`microscope/executing_lane.py`), the others are the
instruction's own.

Read next: `cuda/instructions.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

_meanings: dict[int, tuple[object, Callable[..., Any]]] = {}


def means(instruction: object) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorator: this Python function is what `instruction` does."""

    def remember(meaning: Callable[..., Any]) -> Callable[..., Any]:
        _meanings[id(instruction)] = (
            instruction,
            meaning,
        )  # the instruction is kept, so its id stays its own
        return meaning

    return remember


def meaning_of(instruction: object) -> Callable[..., Any] | None:
    """What it does; None if it is not an instruction of ours."""
    known = _meanings.get(id(instruction))
    return known[1] if known else None
