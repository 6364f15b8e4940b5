"""Which requests of a kernel are played, and the places among them worth jumping to.

A place is kept as the number of its event in the kernel's trace: so both pages about kernels stand at the
same one, whichever block is followed. Read next: `views/microscope.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from minivllm.trace.kernel_events import FaultFound, KernelHeader, KernelTrace, WarpAccess
from viz.figures.kernel_captions import line_words
from viz.figures.kernel_memory import array_of, cell
from viz.judge_words import as_judged
from viz.language import _
from viz.player import Jump

MOST_STEPS = 10_000
"""Requests that are played at once: more would take seconds to open. A block can be chosen instead."""
MOST_CHOICES = 500
MOST_FAULTS = 8


class Follow(NamedTuple):
    """The requests that are played: of one thread block, of one of its warps, or, with None, of all."""

    block: int | None = None
    warp: int | None = None

    @property
    def name(self) -> str:
        """For links."""
        return ".".join(str(number) for number in self if number is not None) or "all"

    @property
    def words(self) -> str:
        if self.block is None:
            return _("all thread blocks, in order")
        return _("thread block {block}").format(block=self.block) + (
            _(", warp {warp}").format(warp=self.warp) if self.warp is not None else ""
        )

    def takes(self, access: WarpAccess) -> bool:
        return self.block in (None, access.block) and self.warp in (None, access.warp)


class Played(NamedTuple):
    """Requests in their order, and for each the number of its event."""

    accesses: list[WarpAccess]
    steps: list[int]
    left_out: int
    """Requests behind the last that is played."""


def played(trace: KernelTrace, follow: Follow, most: int = MOST_STEPS) -> Played:
    """The requests that `follow` takes, not more than `most`."""
    chosen = [
        (event, number)
        for number, event in enumerate(trace.events)
        if isinstance(event, WarpAccess) and follow.takes(event)
    ]
    shown = chosen[:most]
    return Played([e for e, _ in shown], [number for _, number in shown], len(chosen) - len(shown))


def choices(trace: KernelTrace) -> list[Follow]:
    """All blocks and warps that a reader can follow."""
    seen = dict.fromkeys((e.block, e.warp) for e in trace.events if isinstance(e, WarpAccess))
    warps: dict[int, list[int]] = {}
    for block, warp in seen:
        warps.setdefault(block, []).append(warp)
    found = [Follow()]
    for block, own in sorted(warps.items()):
        if len(warps) > 1:
            found.append(Follow(block))
        if len(own) > 1:
            found += [Follow(block, warp) for warp in sorted(own)]
    return found[:MOST_CHOICES]


def faults(trace: KernelTrace) -> list[FaultFound]:
    """All that is wrong with the kernel."""
    return [event for event in trace.events if isinstance(event, FaultFound)]


def microscope_jumps(trace: KernelTrace, accesses: Sequence[WarpAccess]) -> list[Jump]:
    """Faults first, then the dearest requests, the first barrier, and the first request to each array."""
    header = trace.header

    def first(fits: Callable[[WarpAccess], object]) -> int | None:
        return next((step for step, access in enumerate(accesses) if fits(access)), None)

    told = [
        Jump(
            _("{kind} in {place}").format(kind=as_judged(fault.kind), place=_place(fault)),
            fault_step(fault, header, accesses),
        )
        for fault in faults(trace)
    ]
    jumps = list(dict.fromkeys(told))[:MOST_FAULTS]  # several faults may meet in one request
    jumps += [
        Jump(_("worst coalescing"), worst(header, accesses, is_shared=False)),
        Jump(_("worst bank conflict"), worst(header, accesses, is_shared=True)),
        Jump(_("first barrier passed"), first(lambda access: access.epoch > accesses[0].epoch)),
    ]
    beginnings: dict[int, int] = {}
    for step, access in enumerate(accesses):
        beginnings.setdefault(access.array, step)
    return jumps + [
        Jump(_("first {name}").format(name=header.arrays[index].name), beginnings[index])
        for index in sorted(beginnings)
    ]


def worst(header: KernelHeader, accesses: Sequence[WarpAccess], *, is_shared: bool) -> int | None:
    """The request to this kind of memory that costs most for nothing; None if none does."""
    steps = [step for step, access in enumerate(accesses) if array_of(access, header).is_shared == is_shared]
    step = max(steps, key=lambda step: accesses[step].units - accesses[step].ideal_units, default=None)
    return step if step is not None and accesses[step].units > accesses[step].ideal_units else None


def fault_step(fault: FaultFound, header: KernelHeader, accesses: Sequence[WarpAccess]) -> int | None:
    """The first request to the faulty cell in a line of the fault, by the block that was there."""
    blocks = fault.blocks or (None,) * len(fault.lines)  # older traces do not tell them
    for line, block in zip(fault.lines, blocks, strict=True):
        for step, access in enumerate(accesses):
            if access.line == line and block in (None, access.block) and touches(access, header, fault):
                return step
    return None


def touches(access: WarpAccess, header: KernelHeader, fault: FaultFound) -> bool:
    """Does a lane of this request go to the faulty cell?"""
    array = array_of(access, header)
    return array.name == fault.array and any(
        cell(element, array.shape) == fault.cell
        for first in access.first
        for element in range(first, first + access.count)
    )


def _place(fault: FaultFound) -> str:
    return line_words(fault.lines[0] if fault.lines else 0)
