"""Bytes so far, array by array: what the lanes asked for, what memory moved, and what was for nothing.

    global memory    requests   asked for      moved   for nothing
    key                   384      49,152     49,152             0 sectors
    scores                 64         …

Of global memory the unit is a sector of 32 bytes, of shared memory a turn. Read next: `kernel_lanes.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from minivllm.trace.kernel_events import KernelHeader, WarpAccess
from viz.figures.common import plural
from viz.figures.kernel_captions import COLUMN, kernel_captions
from viz.figures.kernel_memory import array_of, asked_bytes, moved_bytes
from viz.language import N_, _, counted, sentences
from viz.scene import Scene, rounded

ROW, TOP = 30.0, 48.0
MOST_ARRAYS = 16
RIGHT = {N_("requests"): 236.0, N_("asked for"): 326.0, N_("moved"): 416.0, N_("for nothing"): 548.0}
BAR = 150.0


class Totals(NamedTuple):
    """One array so far."""

    requests: int = 0
    read_bytes: int = 0
    written_bytes: int = 0
    moved_bytes: int = 0
    wasted_units: int = 0
    """Sectors that would not have been needed; of shared memory: turns."""

    @property
    def asked_bytes(self) -> int:
        return self.read_bytes + self.written_bytes


def add(totals: Totals, access: WarpAccess, header: KernelHeader) -> Totals:
    """One more request."""
    array = array_of(access, header)
    asked = asked_bytes(access, array)
    is_read = access.kind == "read"
    return Totals(
        totals.requests + 1,
        totals.read_bytes + (asked if is_read else 0),
        totals.written_bytes + (0 if is_read else asked),
        totals.moved_bytes + moved_bytes(access, array),
        totals.wasted_units + access.units - access.ideal_units,
    )


def sum_up(header: KernelHeader, accesses: Sequence[WarpAccess]) -> list[Totals]:
    """For each array, all of these requests together."""
    sums = [Totals() for _ in header.arrays]
    for access in accesses:
        sums[access.array] = add(sums[access.array], access, header)
    return sums


def kernel_totals(header: KernelHeader, accesses: Sequence[WarpAccess], whose: str = "") -> Scene:
    """One row for each array; the one that is accessed is marked.

    Args:
        whose: of which requests, in words, if not of all.
    """
    at_end = sum_up(header, accesses)
    order = sorted(range(len(header.arrays)), key=lambda index: header.arrays[index].is_shared)
    order = sorted(order, key=lambda index: not at_end[index].requests)[:MOST_ARRAYS]
    order.sort(key=lambda index: header.arrays[index].is_shared)
    scene = Scene(_("Bytes so far, by array"), COLUMN, TOP + len(order) * ROW + 28)
    scene.text(
        4,
        16,
        _("Bytes so far, {whose}").format(whose=whose) if whose else _("Bytes so far"),
        size=15,
        weight="bold",
    )
    for heading, x in RIGHT.items():
        scene.text(x, 38, _(heading), size=13, fill="muted", anchor="end")
    most = max((totals.asked_bytes for totals in at_end), default=0) or 1
    marker = scene.rect(0, TOP, COLUMN, ROW - 2, fill="none", radius=3)
    rows: dict[int, dict[str, int]] = {}
    for row, index in enumerate(order):
        rows[index] = _row(scene, TOP + row * ROW, header, index)
    words = _("The bar is what was asked for, on one scale for all arrays.")
    if more := len(header.arrays) - len(order):
        words = sentences([words, counted("{count} array more.", "{count} arrays more.", more)])
    scene.text(4, scene.height - 8, words, size=12, fill="muted")
    sums = [Totals() for _ in header.arrays]
    for access, sentence in zip(accesses, kernel_captions(header, accesses), strict=True):
        scene.begin_step(sentence)
        index = access.array
        totals = sums[index] = add(sums[index], access, header)
        if index not in rows:
            scene.set(marker, fill="none")
            continue
        own, is_shared = rows[index], header.arrays[index].is_shared
        scene.set(marker, y=TOP + order.index(index) * ROW, fill="panel")
        scene.set(own["requests"], text=f"{totals.requests:,}")
        scene.set(own["asked for"], text=f"{totals.asked_bytes:,}")
        if not is_shared:
            scene.set(own["moved"], text=f"{totals.moved_bytes:,}")
        wasted = totals.wasted_units
        words = plural(wasted, "turn") if is_shared else plural(wasted, "sector")
        scene.set(own["for nothing"], text=words)
        scene.set(own["bar"], width=rounded(BAR * totals.asked_bytes / most))
    return scene


def _row(scene: Scene, y: float, header: KernelHeader, index: int) -> dict[str, int]:
    array = header.arrays[index]
    shape = " × ".join(map(str, array.shape))
    tip = _("{name}: {shape} of {dtype}, global memory")
    if array.is_shared:
        tip = _("{name}: {shape} of {dtype}, shared memory")
    tip = tip.format(name=array.name, shape=shape, dtype=array.dtype)
    name = _("{name} (shared)").format(name=array.name[:20]) if array.is_shared else array.name[:28]
    scene.text(4, y + 15, name, size=14, tip=tip)
    own = {
        heading: scene.text(
            x, y + 15, "–" if heading == "moved" and array.is_shared else "0", size=14, anchor="end"
        )
        for heading, x in RIGHT.items()
    }
    own["bar"] = scene.rect(4, y + 20, 0, 5, fill="decode", tip=tip)
    return own
