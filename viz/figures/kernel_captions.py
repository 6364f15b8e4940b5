"""What a request of a warp does, in words: the captions of the page "Kernel microscope".

Read next: `kernel_lanes.py`.
"""

from __future__ import annotations

from collections.abc import Sequence

from minivllm.trace.kernel_events import KernelArray, KernelHeader, WarpAccess
from viz.figures.common import listing, plural
from viz.figures.kernel_memory import array_of, cell_words
from viz.language import N_, _

VERBS = {"read": N_("reads"), "write": N_("writes"), "atomic": N_("changes (atomically)")}
COLUMN = 560.0
"""Units across of a picture that stands beside another one: kernels have much to show at once."""


def kernel_captions(header: KernelHeader, accesses: Sequence[WarpAccess]) -> list[str]:
    """One sentence for each request."""
    return [caption(access, header) for access in accesses]


def caption(access: WarpAccess, header: KernelHeader) -> str:
    """What a warp does to which cells, where in the source, and what it costs."""
    array = array_of(access, header)
    size = access.count * array.itemsize
    return _(
        "Warp {warp} of thread block {block} {verb} {cells} in {line}, {lanes} × {bytes}: {cost}."
    ).format(
        warp=access.warp,
        block=access.block,
        verb=_(VERBS.get(access.kind, access.kind)),
        cells=cells_words(access, array),
        line=line_words(access.line),
        lanes=plural(len(access.lanes), "lane"),
        bytes=plural(size, "byte"),
        cost=cost_words(access, array),
    )


def cells_words(access: WarpAccess, array: KernelArray) -> str:
    """`key[0, 0, 0] … key[0, 0, 31]`: the lowest and the highest address, with what may lie in between."""
    first, last = min(access.first), max(access.first) + access.count - 1
    if first == last:
        return cell_words(first, array)
    return f"{cell_words(first, array)} … {cell_words(last, array)}"


def line_words(line: int) -> str:
    """Where in the source."""
    return _("line {line}").format(line=line) if line else _("another file")


def cost_words(access: WarpAccess, array: KernelArray) -> str:
    """`32 sectors, 4 would do`."""
    units = plural(access.units, "turn") if array.is_shared else plural(access.units, "sector")
    return _("{units}, {ideal:,} would do").format(units=units, ideal=access.ideal_units)


def lanes_words(lanes: Sequence[int]) -> str:
    """`0–7 and 16–23`: neighbours as ranges."""
    ranges: list[list[int]] = []
    for lane in sorted(set(lanes)):
        if ranges and lane == ranges[-1][1] + 1:
            ranges[-1][1] = lane
        else:
            ranges.append([lane, lane])
    words = [f"{first}" if first == last else f"{first}–{last}" for first, last in ranges]
    if len(words) > 4:
        more = len(set(lanes)) - sum(b - a + 1 for a, b in ranges[:3])
        words = [*words[:3], _("{count} more").format(count=more)]
    return listing(words)
