"""Through the block table: which physical block, and which row of it, each lane goes to.

    lanes        0 … 15   16 … 31
                    └───┐     └──────────┐
    block    0   1   2  │ 3   4   5   6  │ 7        an array of [blocks, heads, rows, head_dim]
            ┌──┐┌──┐┌──┐│┌──┐┌──┐┌──┐┌──┐│┌──┐
            │  ││  ││  │└►██││  ││  ││  │└►██│
            └──┘└──┘└──┘ └──┘└──┘└──┘└──┘ └──┘

To the kernel the tokens of a request are neighbours; the table has scattered them over the pool. Read next:
`kernel_source.py`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from math import ceil

from minivllm.trace.kernel_events import KernelArray, KernelHeader, WarpAccess
from viz.figures.common import listing
from viz.figures.kernel_captions import COLUMN, VERBS, kernel_captions, lanes_words
from viz.figures.kernel_lanes import FILLS, LANE, LANE_HEIGHT, LEFT, lane_x
from viz.figures.kernel_memory import WARP_SIZE, array_of, cell
from viz.language import _, counted
from viz.scene import Scene, bars_path

POOLS = ("keys", "values")
MOST_BLOCKS, MOST_ROWS = 256, 64
LANES_TOP, TOP = 46.0, 116.0
ROW_HEIGHT = 6.0


def has_blocks(array: KernelArray) -> bool:
    """Is it a pool of blocks, [blocks, heads, rows, head_dim], that can be drawn?

    Other arrays have four dimensions, too: the partial outputs of paged attention, for example.
    """
    if array.name not in POOLS or array.is_shared or len(array.shape) != 4:
        return False
    return array.shape[0] <= MOST_BLOCKS and array.shape[2] <= MOST_ROWS


def kernel_blocks(header: KernelHeader, accesses: Sequence[WarpAccess]) -> list[Scene]:
    """One picture for all pools of blocks of one shape, if the kernel has one."""
    pools = [array for array in header.arrays if has_blocks(array)]
    if not pools:
        return []
    shape = pools[0].shape
    places = BlockPlaces(shape[0], shape[2])
    names = listing([array.name for array in pools if array.shape == shape])
    scene = Scene(_("Blocks of {names}").format(names=names), COLUMN, places.bottom + 52)
    title = scene.text(4, 16, "", size=15, weight="bold")
    for lane in range(WARP_SIZE):
        scene.text(lane_x(lane), LANES_TOP - 5, f"{lane}", size=10, fill="muted", anchor="middle")
    cells = [(LEFT + i * LANE, LANES_TOP, LANE - 2, LANE_HEIGHT) for i in range(WARP_SIZE)]
    scene.path(bars_path(cells), stroke="outline", stroke_width=0.8)
    active = scene.path("", fill="read")
    rows = scene.path("", fill="read")
    for block in range(shape[0]):
        x, y, width, height = places.box(block)
        tip = _("Block {block}").format(block=block)
        scene.rect(x, y, width, height, stroke="outline", stroke_width=0.8, tip=tip)
        if width >= 14:
            scene.text(x + width / 2, y - 3, f"{block}", size=10, fill="muted", anchor="middle")
    lines = scene.path("", stroke="ink", stroke_width=0.9, opacity=0.7)
    which = scene.text(4, places.bottom + 20, "", size=13)
    more = scene.text(4, places.bottom + 38, "", size=13)
    veil = scene.rect(0, 24, COLUMN, scene.height - 24, fill="page")
    for access, sentence in zip(accesses, kernel_captions(header, accesses), strict=True):
        scene.begin_step(sentence)
        array = array_of(access, header)
        is_mine = array.shape == shape and not array.is_shared
        scene.set(veil, opacity=0.0 if is_mine else 1.0)
        if not is_mine:
            scene.set(title, text=_("Blocks of {names}: not in this request").format(names=names))
            continue
        fill = FILLS.get(access.kind, "muted")
        verb, words = _(VERBS.get(access.kind, access.kind)), _("Blocks: warp {warp} {verb} {name}")
        scene.set(title, text=words.format(warp=access.warp, verb=verb, name=array.name))
        own = [(LEFT + i * LANE, LANES_TOP, LANE - 2, LANE_HEIGHT) for i in access.lanes]
        scene.set(active, d=bars_path(own), fill=fill)
        found = lane_rows(access, array)
        scene.set(rows, d=bars_path([places.row(block, row) for _, block, row in sorted(found)]), fill=fill)
        scene.set(lines, d="".join(_line(places, key, lanes) for key, lanes in found.items()))
        told = [_where(place, lanes, several_heads=shape[1] > 1) for place, lanes in found.items()]
        scene.set(which, text=_("; ").join(told[:2]))
        rest = _("; ").join(told[2:4])
        if len(told) > 4:
            rest += counted("; and {count} row more", "; and {count} rows more", len(told) - 4)
        scene.set(more, text=rest)
    return [scene]


def _where(place: tuple[int, int, int], lanes: list[int], *, several_heads: bool) -> str:
    words = _("lanes {lanes} → block {block}, row {row}")
    if several_heads:
        words = _("lanes {lanes} → block {block}, row {row} (head {head})")
    return words.format(lanes=lanes_words(lanes), head=place[0], block=place[1], row=place[2])


def lane_rows(access: WarpAccess, array: KernelArray) -> dict[tuple[int, int, int], list[int]]:
    """`(head, block, row)` → the lanes that go there, in the order of the lanes."""
    found: dict[tuple[int, int, int], list[int]] = defaultdict(list)
    for lane, first in zip(access.lanes, access.first, strict=True):
        block, head, row, _ = cell(first, array.shape)
        found[head, block, row].append(lane)
    return dict(found)


class BlockPlaces:
    """Where blocks and their rows are: as many blocks in a line as fit."""

    def __init__(self, num_blocks: int, num_rows: int) -> None:
        self.num_rows = num_rows
        self.per_line = max(min(num_blocks, 16), ceil(num_blocks / 6))
        self.pitch = WARP_SIZE * LANE / self.per_line
        self.height = max(12.0, min(96.0, num_rows * ROW_HEIGHT))
        num_lines = ceil(num_blocks / self.per_line)
        self.bottom = TOP + num_lines * (self.height + 18) - 18

    def box(self, block: int) -> tuple[float, float, float, float]:
        """The whole block."""
        line, place = divmod(block, self.per_line)
        width = self.pitch - min(8.0, self.pitch * 0.25)
        return LEFT + place * self.pitch, TOP + line * (self.height + 18), width, self.height

    def row(self, block: int, row: int) -> tuple[float, float, float, float]:
        """One row of it."""
        x, y, width, height = self.box(block)
        pitch = height / self.num_rows
        return x, y + row * pitch, width, pitch


def _line(places: BlockPlaces, key: tuple[int, int, int], lanes: Sequence[int]) -> str:
    """From the middle of these lanes to the row: the first, the last, and the middle of both."""
    x, y, width, height = places.row(key[1], key[2])
    middle, foot = (lane_x(lanes[0]) + lane_x(lanes[-1])) / 2, LANES_TOP + LANE_HEIGHT
    knee = foot + 10
    return (
        f"M{lane_x(lanes[0]):g},{foot:g}L{middle:g},{knee:g}L{lane_x(lanes[-1]):g},{foot:g}"
        f"M{middle:g},{knee:g}L{x + width / 2:.1f},{y + height / 2:.1f}"
    )
