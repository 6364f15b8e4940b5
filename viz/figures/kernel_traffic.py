"""What is in shared memory now, and how many bytes went where so far.

    queries   8 × 32     query rows 8–15                global memory   read      ████
    tile      32 × 33    key rows 0–31, then value …                    written   █
                                                        N² scores, not written    ///
                                                        shared memory   read      ███████████

Shared memory is FlashAttention's whole idea: a tile comes from global memory once and is read from nearby
many times. What is in it is seen from the requests: a warp writes to it what it has just read.

Source: Dao et al., "FlashAttention" (NeurIPS 2022), section 3.2. Read next: `views/flash_attention.py`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

from minivllm.trace.kernel_events import KernelArray, KernelTrace, WarpAccess
from viz.figures.common import hatch
from viz.figures.kernel_captions import COLUMN
from viz.figures.kernel_memory import cell
from viz.figures.kernel_tiles import Piece, matrix_bytes, score_array
from viz.figures.kernel_totals import Totals, add
from viz.language import N_, _
from viz.scene import Scene, rounded

ROW = 46.0
BAR_LEFT, BAR_WIDTH, BAR_ROW = 176.0, 262.0, 26.0

BARRIER = N_(
    "A tile begins with the barrier before its keys were loaded, so the bytes of loading them are its own."
)


class Load(NamedTuple):
    """Rows of a global array that are, or were, in a shared one."""

    source: str
    """Its name; "" if nothing was read before."""
    first_row: int
    last_row: int

    @property
    def words(self) -> str:
        if not self.source:
            return _("what was computed here")
        if self.first_row == self.last_row:
            return _("{source} row {row}").format(source=self.source, row=self.first_row)
        return _("{source} rows {first_row}–{last_row}").format(
            source=self.source, first_row=self.first_row, last_row=self.last_row
        )


class Traffic(NamedTuple):
    """All bytes up to the end of a piece."""

    global_read: int
    global_written: int
    moved: int
    shared_read: int
    shared_written: int
    scores: int
    """To and from the array of scores, if there is one."""


def traffic_by_piece(trace: KernelTrace, found: Sequence[Piece]) -> list[Traffic]:
    """For each piece, everything from the kernel's beginning to the piece's end."""
    sums = [Totals() for _ in trace.header.arrays]
    score, done, rows = score_array(trace.header), 0, []
    for piece in found:
        for event in trace.events[done : piece.end]:
            if isinstance(event, WarpAccess):
                sums[event.array] = add(sums[event.array], event, trace.header)
        done = max(done, piece.end)
        rows.append(traffic_of(trace.header.arrays, sums, score))
    return rows


def traffic_of(arrays: Sequence[KernelArray], sums: Sequence[Totals], score: int | None) -> Traffic:
    """Global and shared memory apart."""
    outside = [totals for array, totals in zip(arrays, sums, strict=True) if not array.is_shared]
    inside = [totals for array, totals in zip(arrays, sums, strict=True) if array.is_shared]
    return Traffic(
        sum(totals.read_bytes for totals in outside),
        sum(totals.written_bytes for totals in outside),
        sum(totals.moved_bytes for totals in outside),
        sum(totals.read_bytes for totals in inside),
        sum(totals.written_bytes for totals in inside),
        sums[score].asked_bytes if score is not None else 0,
    )


def shared_contents(trace: KernelTrace, found: Sequence[Piece]) -> list[dict[int, list[Load]]]:
    """For each piece, shared array → what is in it at the end; what the piece itself brought, in order."""
    arrays = trace.header.arrays
    contents: dict[int, list[Load]] = {}
    newest: dict[int, int] = {}
    """Shared array → the piece that wrote to it last."""
    brought = _Brought()
    told = []
    done, block = 0, -1
    for number, piece in enumerate(found):
        if piece.block != block:  # another block has a shared memory of its own
            contents, newest, block = {}, {}, piece.block
        for event in trace.events[done : piece.end]:
            if not isinstance(event, WarpAccess):
                continue
            array = arrays[event.array]
            if not array.is_shared:
                if event.kind == "read":
                    brought.read(event, array)
            elif event.kind == "write" and (load := brought.written(event)):
                loads = contents[event.array] if newest.get(event.array) == number else []
                if loads and loads[-1].source == load.source:
                    old = loads.pop()
                    first, last = min(old.first_row, load.first_row), max(old.last_row, load.last_row)
                    load = Load(load.source, first, last)
                contents[event.array] = [*loads, load]
                newest[event.array] = number
        done = max(done, piece.end)
        told.append(dict(contents))
    return told


class _Brought:
    """Where from comes what a warp writes to shared memory? It has just read it.

    A place of the source always brings from the same array. An asynchronous copy reads when it is sent and
    writes much later, in order, both at one place. What has not been read since is filled with zeros.
    """

    def __init__(self) -> None:
        self.fresh: dict[tuple[int, int, str], Load] = {}
        """By warp and array: rows that were read and not written yet."""
        self.latest: dict[tuple[int, int], str] = {}
        """By warp: the array that it read last."""
        self.sources: dict[Place, str] = {}
        self.sent: dict[tuple[Place, int, int], dict[int, deque[Load]]] = {}
        """By place and warp, for each lane: what it has read there and not written yet."""

    def read(self, access: WarpAccess, array: KernelArray) -> None:
        rows = [cell(first, array.shape)[0] for first in access.first]
        self.fresh[access.block, access.warp, array.name] = Load(array.name, min(rows), max(rows))
        self.latest[access.block, access.warp] = array.name
        lanes = self.sent.setdefault((_place(access), access.block, access.warp), {})
        for lane, row in zip(access.lanes, rows, strict=True):
            lanes.setdefault(lane, deque()).append(Load(array.name, row, row))

    def written(self, access: WarpAccess) -> Load | None:
        """What this request writes; None if it is nothing but zeros."""
        place = _place(access)
        lanes = self.sent.get((place, access.block, access.warp)) if access.line else None
        if lanes is not None:
            loads = [lanes[lane].popleft() for lane in access.lanes if lanes.get(lane)]
            rows = [load.first_row for load in loads]
            return Load(loads[0].source, min(rows), max(rows)) if loads else None
        source = self.latest.get((access.block, access.warp), "")
        if access.line:
            source = self.sources.setdefault(place, source)
        if not source:
            return Load("", 0, 0)
        return self.fresh.pop((access.block, access.warp, source), None)


Place = tuple[int, int]
"""Line and column."""


def _place(access: WarpAccess) -> Place:
    return access.line, access.column


def kernel_shared(trace: KernelTrace, found: Sequence[Piece], told: Sequence[str]) -> Scene | None:
    """One bar for each shared array, as long as its share of the block's shared memory."""
    header = trace.header
    shared = [index for index, array in enumerate(header.arrays) if array.is_shared]
    if not shared:
        return None
    scene = Scene(_("What is in shared memory"), COLUMN, 34 + len(shared) * ROW)
    words = _("In the shared memory of this thread block ({shared_bytes:,} bytes)").format(
        shared_bytes=header.shared_bytes
    )
    scene.text(4, 16, words, size=15, weight="bold")
    rows = {}
    for place, index in enumerate(shared):
        array, y = header.arrays[index], 30 + place * ROW
        shape = " × ".join(map(str, array.shape))
        scene.text(
            4,
            y + 14,
            _("{name}  {shape} of {dtype}").format(name=array.name, shape=shape, dtype=array.dtype),
            size=13,
        )
        rows[index] = scene.text(4, y + 32, "", size=14)
    for sentence, contents in zip(told, shared_contents(trace, found), strict=True):
        scene.begin_step(sentence)
        for index, text in rows.items():
            loads = contents.get(index, [])
            scene.set(
                text,
                text=_("holds {loads}").format(loads=_(", then ").join(load.words for load in loads))
                if loads
                else _("empty"),
            )
    return scene


def kernel_traffic(trace: KernelTrace, found: Sequence[Piece], told: Sequence[str]) -> Scene:
    """Bars that grow; the N² scores beside what global memory had to carry."""
    traffic = traffic_by_piece(trace, found)
    end, scores = traffic[-1], matrix_bytes(trace.header, found)
    has_scores = score_array(trace.header) is not None
    most_outside = max(end.global_read, end.global_written, end.moved, scores, 1)
    most_inside = max(end.shared_read, end.shared_written, 1)
    has_shared = bool(end.shared_read + end.shared_written)
    scene = Scene(_("Bytes so far"), COLUMN, 0)
    scene.text(4, 16, _("Bytes so far"), size=15, weight="bold")
    names = [
        (_("from global memory"), "global_read", most_outside, "decode"),
        (_("to global memory"), "global_written", most_outside, "decode"),
        (_("moved, in sectors"), "moved", most_outside, "decode"),
    ]
    if has_scores:
        names.append((_("of these, scores"), "scores", most_outside, "late"))
    y = 28.0
    bars = {}
    for words, name, most, fill in names:
        bars[name] = (*_bar(scene, y, words, fill), most)
        y += BAR_ROW
    width = BAR_WIDTH * scores / most_outside
    scene.text(4, y + 15, _("all scores, once") if has_scores else _("scores, not written"), size=14)
    scene.rect(BAR_LEFT, y + 4, rounded(width), 14, fill="none", stroke="outline", dash="3 2")
    if not has_scores:
        hatch(scene, [(BAR_LEFT, y + 4, rounded(width), 14)])
    scene.text(COLUMN - 4, y + 15, f"{scores:,}", size=14, anchor="end")
    y += BAR_ROW + 8
    if has_shared:
        for words, name in (
            (_("from shared memory"), "shared_read"),
            (_("to shared memory"), "shared_written"),
        ):
            bars[name] = (*_bar(scene, y, words, "filled"), most_inside)
            y += BAR_ROW
    note = (
        _("Global and shared memory each have a scale of their own.")
        if has_shared
        else _("All on one scale.")
    )
    scene.text(4, y + 16, note, size=12, fill="muted")
    scene.height = y + 26
    if found[0].verb == "computes":
        scene.notes.append(("words", _(BARRIER)))
    for sentence, row in zip(told, traffic, strict=True):
        scene.begin_step(sentence)
        for name, (bar, number, most) in bars.items():
            value = getattr(row, name)
            scene.set(bar, width=rounded(BAR_WIDTH * value / most))
            scene.set(number, text=f"{value:,}")
    return scene


def _bar(scene: Scene, y: float, words: str, fill: str) -> tuple[int, int]:
    """A bar without length, and the number beside it."""
    scene.text(4, y + 15, words, size=14)
    bar = scene.rect(BAR_LEFT, y + 4, 0, 14, fill=fill)
    return bar, scene.text(COLUMN - 4, y + 15, "", size=14, anchor="end")
