"""What can go wrong in a kernel, each with its own name and a sentence that says who, where and what.

Some faults end the run, because nothing after them would make sense (an address outside an array, threads
in a deadlock). Others are noted, and the run goes on: the answer may even be right, on this machine, this
time. A missing barrier is the most famous of them.

Read next: `threads.py`.
"""

from __future__ import annotations

from typing import NamedTuple


class KernelFault(Exception):
    """A kernel did something that no kernel may do."""


class OutOfBounds(KernelFault):
    """An index outside an array. On a GPU: the memory of another array, or none."""


class BarrierMismatch(KernelFault):
    """Threads of one block or warp wait at different barriers, or some have ended: on a GPU, for ever."""


class TooLong(KernelFault):
    """More memory accesses than were allowed: perhaps a loop without an end."""


class NotUnderstood(KernelFault):
    """Something that the microscope does not know."""


class Place(NamedTuple):
    """Where in the source."""

    file: str
    line: int
    column: int
    end_column: int
    """Of that line; beyond it if the expression goes on in the next."""

    def __str__(self) -> str:
        return f"line {self.line}"


class Fault(NamedTuple):
    """Something noted while the run went on."""

    kind: str
    """"race", "unwritten" or "poison"."""
    array: str
    cell: tuple[int, ...]
    message: str
    places: tuple[Place, ...]
    blocks: tuple[int, ...]
    """Of each place: the number of the block whose thread was there."""
