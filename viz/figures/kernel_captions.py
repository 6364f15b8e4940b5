"""What a request of a warp does, in words: the captions of the page "Kernel microscope".

Read next: `kernel_lanes.py`.
"""

from __future__ import annotations

from collections.abc import Sequence

from minivllm.trace.kernel_events import KernelArray, KernelHeader, WarpAccess
from viz.figures.common import plural
from viz.figures.kernel_memory import array_of, cell_words

VERBS = {"read": "reads", "write": "writes", "atomic": "changes (atomically)"}
COLUMN = 560.0
"""Units across of a picture that stands beside another one: kernels have much to show at once."""


def kernel_captions(header: KernelHeader, accesses: Sequence[WarpAccess]) -> list[str]:
    """One sentence for each request."""
    return [caption(access, header) for access in accesses]


def caption(access: WarpAccess, header: KernelHeader) -> str:
    """What a warp does to which cells, where in the source, and what it costs."""
    array = array_of(access, header)
    size = access.count * array.itemsize
    return (
        f"Warp {access.warp} of thread block {access.block} {VERBS.get(access.kind, access.kind)} "
        f"{cells_words(access, array)} in {line_words(access.line)}, {plural(len(access.lanes), 'lane')} × "
        f"{plural(size, 'byte')}: {cost_words(access, array)}."
    )


def cells_words(access: WarpAccess, array: KernelArray) -> str:
    """`key[0, 0, 0] … key[0, 0, 31]`: the lowest and the highest address, with what may lie in between."""
    first, last = min(access.first), max(access.first) + access.count - 1
    if first == last:
        return cell_words(first, array)
    return f"{cell_words(first, array)} … {cell_words(last, array)}"


def line_words(line: int) -> str:
    """Where in the source."""
    return f"line {line}" if line else "another file"


def cost_words(access: WarpAccess, array: KernelArray) -> str:
    """`32 sectors, 4 would do`."""
    unit = "turn" if array.is_shared else "sector"
    return f"{plural(access.units, unit)}, {access.ideal_units:,} would do"


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
        words = [*words[:3], f"{len(set(lanes)) - sum(b - a + 1 for a, b in ranges[:3])} more"]
    return f"{', '.join(words[:-1])} and {words[-1]}" if len(words) > 1 else "".join(words)
