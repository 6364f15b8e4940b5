"""The 32 lanes of a warp, and what each of them asks memory for.

    lanes      0 1 2 3 4 …                       0 1 2 3 4 …
               │ │ │ │ │                         │ │ └─┼─┐
    global     ██░░ ██░░ ██░░       shared       █ █   █ █    banks: one word of each a turn
               sectors, by address               █            second turn: this bank has two words

Of a sector that is touched all 32 bytes are moved; those that no lane requests are hatched. A bank that must
give two words takes two turns, and the whole warp waits. Each request goes to one kind of memory: the picture
of the other one is empty but for its title.

Source: NVIDIA, CUDA C++ Best Practices Guide, "Coalesced Access to Global Memory" and "Shared Memory". Read
next: `kernel_blocks.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

from minivllm.trace.kernel_events import KernelArray, KernelHeader, WarpAccess
from viz.figures.common import WASTE, plural, swatches
from viz.figures.kernel_captions import COLUMN, VERBS, cost_words, kernel_captions, lanes_words
from viz.figures.kernel_memory import (
    SECTOR_BYTES,
    TURN_BYTES,
    WARP_SIZE,
    array_of,
    asked_bytes,
    bank_words,
    byte_starts,
    cell_words,
    colliding_lanes,
    moved_bytes,
    requested_ranges,
    touched_sectors,
)
from viz.language import N_, _, current
from viz.scene import Scene, bars_path, hatch_path

LEFT, LANE = 16.0, 16.5
LANES_TOP, LANE_HEIGHT = 46.0, 14.0
TARGET = 128.0
STRIP_HEIGHT = 30.0
GRID_HEIGHT, MOST_ROW = 128.0, 16.0
WIDEST_SECTOR = 66.0
GAP = 0.5
"""Between sectors that are not neighbours, in sectors."""

FILLS = {"read": "read", "write": "write", "atomic": "atomic"}


def kernel_lanes(header: KernelHeader, accesses: Sequence[WarpAccess]) -> list[Scene]:
    """Global memory and shared memory: one picture for each that the kernel has."""
    kinds = sorted({array.is_shared for array in header.arrays})
    pictures: list[_Memory] = [_Shared() if is_shared else _Global() for is_shared in kinds]
    told = kernel_captions(header, accesses)
    for access, sentence in zip(accesses, told, strict=True):
        array = array_of(access, header)
        for picture in pictures:
            picture.scene.begin_step(sentence)
            picture.step(access, array)
    scenes = [picture.scene for picture in pictures]
    for scene in scenes[1:]:
        scene.stacked = True
    return scenes


def lane_x(lane: int) -> float:
    """The middle of a lane."""
    return LEFT + (lane + 0.5) * LANE


class Strip:
    """Sectors side by side in the order of their addresses, with gaps where some are left out."""

    def __init__(self, sectors: Sequence[int]) -> None:
        self.places: dict[int, float] = {}
        place = 0.0
        for number, sector in enumerate(sectors):
            if number and sector != sectors[number - 1] + 1:
                place += GAP
            self.places[sector] = place
            place += 1.0
        self.width = min(WIDEST_SECTOR, WARP_SIZE * LANE / max(place, 1.0))
        self.right = LEFT + place * self.width

    def x(self, byte: float, sector: int) -> float:
        """Where a byte of a sector is."""
        return LEFT + (self.places[sector] + byte / SECTOR_BYTES - sector) * self.width

    def gaps(self) -> list[tuple[float, float]]:
        """From where to where nothing is."""
        ends = [LEFT + (place + 1) * self.width for place in self.places.values()]
        begins = [LEFT + place * self.width for place in self.places.values()]
        return [
            (end, begin) for end, begin in zip(ends[:-1], begins[1:], strict=True) if begin > end + 0.01
        ] + [(self.right, LEFT + WARP_SIZE * LANE + 1)]


class _Memory:
    """What both kinds of memory have in common: the warp on top, a title, a cover."""

    kind = ""

    def __init__(self, height: float) -> None:
        self.scene = scene = Scene(
            _("{kind}: what the lanes of the warp ask for").format(kind=_(self.kind)), COLUMN, height
        )
        self.title = scene.text(
            4, 16, _("{kind}: nothing yet").format(kind=_(self.kind)), size=15, weight="bold"
        )
        for lane in range(WARP_SIZE):
            scene.text(lane_x(lane), LANES_TOP - 5, f"{lane}", size=10, fill="muted", anchor="middle")
        # Those that stay without a colour have nothing to do.
        scene.path(lanes_path(tuple(range(WARP_SIZE))), stroke="outline", stroke_width=0.8)
        self.lanes = scene.path("", fill="read")
        self.lines = scene.path("", stroke="muted", stroke_width=1.0)

    def finish(self) -> None:
        """After all other shapes: a cover over everything below the title."""
        self.veil = self.scene.rect(0, 24, COLUMN, self.scene.height - 24, fill="page")

    def step(self, access: WarpAccess, array: KernelArray) -> None:
        """Show the request if it goes to this memory."""
        mine = array.is_shared == isinstance(self, _Shared)
        self.scene.idle.append(not mine)
        self.scene.set(self.veil, opacity=0.0 if mine else 1.0)
        if not mine:
            self.scene.set(self.title, text=_("{kind}: not in this request").format(kind=_(self.kind)))
            return
        verb = _(VERBS.get(access.kind, access.kind))
        self.scene.set(
            self.title,
            text=_("{kind}: warp {warp} {verb} {name}").format(
                kind=_(self.kind), warp=access.warp, verb=verb, name=array.name
            ),
        )
        self.scene.set(self.lanes, d=lanes_path(access.lanes), fill=FILLS.get(access.kind, "muted"))
        self.show(access, array)

    def show(self, access: WarpAccess, array: KernelArray) -> None:
        raise NotImplementedError


class _Global(_Memory):
    """Sectors of 32 bytes, by address."""

    kind = N_("Global memory")

    def __init__(self) -> None:
        super().__init__(TARGET + STRIP_HEIGHT + 86)
        scene, width = self.scene, WARP_SIZE * LANE
        # Everything is waste, unless a lane requests it or it is not there at all.
        scene.rect(LEFT, TARGET, width, STRIP_HEIGHT, fill=WASTE)
        scene.path(hatch_path([(LEFT, TARGET, width, STRIP_HEIGHT)]), stroke="outline", stroke_width=0.9)
        self.gaps = scene.path(bars_path([(LEFT - 1, TARGET - 1, width + 2, STRIP_HEIGHT + 2)]), fill="page")
        self.wanted = scene.path("", fill="filled")
        self.frames = scene.path("", stroke="ink", stroke_width=1.0)
        self.first = scene.text(LEFT, TARGET + STRIP_HEIGHT + 16, "", size=13)
        self.last = scene.text(LEFT, TARGET + STRIP_HEIGHT + 34, "", size=13)
        self.cost = scene.text(LEFT, TARGET + STRIP_HEIGHT + 54, "", size=14, weight="bold")
        entries = [("filled", _("bytes that a lane requests"), 1.0), (WASTE, _("moved for nothing"), 1.0)]
        swatches(scene, TARGET + STRIP_HEIGHT + 78, entries, LEFT, hatched=True)
        self.finish()

    def show(self, access: WarpAccess, array: KernelArray) -> None:
        scene, starts = self.scene, byte_starts(access, array)
        base = min(starts) // SECTOR_BYTES * SECTOR_BYTES
        relative = tuple(start - base for start in starts)
        drawing = draw_sectors(access.lanes, relative, access.count * array.itemsize)
        for shape, d in zip((self.lines, self.gaps, self.wanted, self.frames), drawing, strict=True):
            scene.set(shape, d=d)
        low, high = min(access.first), max(access.first) + access.count - 1
        words = _("from byte {low:,}, {cell}").format(low=low * array.itemsize, cell=cell_words(low, array))
        scene.set(self.first, text=words)
        end = (high + 1) * array.itemsize
        scene.set(
            self.last,
            text=_("up to byte {end:,}, {cell}").format(end=end - 1, cell=cell_words(high, array)),
        )
        asked, moved = asked_bytes(access, array), moved_bytes(access, array)
        words = _("{cost} · {asked:,} bytes asked for, {moved:,} moved").format(
            cost=cost_words(access, array), asked=asked, moved=moved
        )
        scene.set(self.cost, text=words)


class _Shared(_Memory):
    """Banks across, turns downward."""

    kind = N_("Shared memory")

    def __init__(self) -> None:
        super().__init__(TARGET + GRID_HEIGHT + 88)
        scene = self.scene
        self.crowd = scene.path("", stroke="cursor", stroke_width=2.0)
        for bank in range(WARP_SIZE):
            x = LEFT + bank * LANE
            scene.path(f"M{x:g},{TARGET:g}L{x:g},{TARGET + GRID_HEIGHT:g}", stroke="rule", stroke_width=0.6)
            if bank % 4 == 0 or bank == WARP_SIZE - 1:
                words = _("bank {bank}").format(bank=bank) if bank == 0 else f"{bank}"
                y = TARGET + GRID_HEIGHT + 13
                scene.text(lane_x(bank), y, words, size=11, fill="muted", anchor="middle")
        frame = (LEFT, TARGET, WARP_SIZE * LANE, GRID_HEIGHT)
        scene.path(bars_path([frame]), stroke="outline", stroke_width=0.8)
        self.served = scene.path("", fill="filled", stroke="page", stroke_width=0.6)
        self.late = scene.path("", fill="late", stroke="page", stroke_width=0.6)
        self.cost = scene.text(LEFT, TARGET + GRID_HEIGHT + 34, "", size=14, weight="bold")
        self.collisions = scene.text(LEFT, TARGET + GRID_HEIGHT + 54, "", size=13)
        entries = [
            ("filled", _("a word, for all its lanes"), 1.0),
            ("late", _("waits for a turn of its bank"), 1.0),
        ]
        swatches(scene, TARGET + GRID_HEIGHT + 80, entries, LEFT)
        self.finish()

    def show(self, access: WarpAccess, array: KernelArray) -> None:
        scene, starts = self.scene, byte_starts(access, array)
        base = min(starts) // TURN_BYTES * TURN_BYTES
        relative = tuple(start - base for start in starts)
        drawing = draw_banks(access.lanes, relative, access.count * array.itemsize, current())
        scene.set(self.lines, d=drawing.lines)
        scene.set(self.served, d=drawing.served)
        scene.set(self.late, d=drawing.late)
        scene.set(self.crowd, d=drawing.crowd)
        asked = asked_bytes(access, array)
        scene.set(
            self.cost,
            text=_("{cost} · {asked:,} bytes asked for").format(cost=cost_words(access, array), asked=asked),
        )
        scene.set(self.collisions, text=drawing.words)


class Sectors(NamedTuple):
    """Paths of a request to global memory."""

    lines: str
    gaps: str
    wanted: str
    frames: str


class Banks(NamedTuple):
    """Paths of a request to shared memory, and which lanes collide, in words."""

    lines: str
    served: str
    late: str
    crowd: str
    words: str


# Loops ask for the same pattern again and again, at another address: so patterns are drawn once.


@lru_cache(maxsize=4096)
def draw_sectors(lanes: tuple[int, ...], starts: tuple[int, ...], size: int) -> Sectors:
    """Lanes that access `size` bytes each, counted from the first sector that any of them touches."""
    strip = Strip(touched_sectors(starts, size))
    bars = []
    for begin, end in requested_ranges(starts, size):
        for sector in range(begin // SECTOR_BYTES, (end - 1) // SECTOR_BYTES + 1):
            left = strip.x(max(begin, sector * SECTOR_BYTES), sector)
            right = strip.x(min(end, (sector + 1) * SECTOR_BYTES), sector)
            bars.append((left, TARGET, right - left, STRIP_HEIGHT))
    frames = [(strip.x(s * SECTOR_BYTES, s), TARGET, strip.width, STRIP_HEIGHT) for s in strip.places]
    ends = []
    for lane, start in zip(lanes, starts, strict=True):
        sector = start // SECTOR_BYTES
        own_end = min(start + size, (sector + 1) * SECTOR_BYTES)
        ends.append((lane, strip.x((start + own_end) / 2, sector), TARGET))
    gaps = [(left, TARGET - 1, right - left, STRIP_HEIGHT + 2) for left, right in strip.gaps()]
    return Sectors(lines_to(ends), _short_bars(gaps), _short_bars(bars), _short_bars(frames))


@lru_cache(maxsize=4096)
def draw_banks(lanes: tuple[int, ...], starts: tuple[int, ...], size: int, language: str) -> Banks:
    """Lanes that access `size` bytes each, counted from the lowest word of bank 0 that may be among them.

    `language` is the current one: what is drawn once is kept, and has words in it.
    """
    words = bank_words(lanes, starts, size)
    row = min(MOST_ROW, GRID_HEIGHT / (max((word.turn for word in words), default=0) + 1))
    boxes: dict[bool, list[tuple[float, float, float, float]]] = {False: [], True: []}
    for bank, turn, is_late in sorted({word[1:] for word in words}):
        y = TARGET + turn * row
        boxes[is_late].append((LEFT + bank * LANE + 1, y, LANE - 2, max(row - 0.5, 1.0)))
    first = {word.lane: word for word in reversed(words)}
    ends = [(lane, lane_x(w.bank), TARGET + w.turn * row) for lane, w in sorted(first.items())]
    crowd = colliding_lanes(lanes, starts, size)
    marks = [(LEFT + i * LANE - 1, LANES_TOP - 2, LANE, LANE_HEIGHT + 4) for i in crowd]
    told = _collision_words(crowd, len({(w.turn, w.bank) for w in words}), len(words))
    return Banks(lines_to(ends), _short_bars(boxes[False]), _short_bars(boxes[True]), bars_path(marks), told)


@lru_cache(maxsize=256)
def lanes_path(lanes: tuple[int, ...]) -> str:
    """The cells of these lanes."""
    return bars_path([(LEFT + i * LANE, LANES_TOP, LANE - 2, LANE_HEIGHT) for i in lanes])


def lines_to(ends: Sequence[tuple[int, float, float]]) -> str:
    """From lanes to places `(lane, x, y)`."""
    foot = LANES_TOP + LANE_HEIGHT
    return "".join(f"M{lane_x(lane):g},{foot:g}L{x:.5g},{y:.5g}" for lane, x, y in ends)


def _collision_words(crowd: Sequence[int], num_words: int, num_wanted: int) -> str:
    """Which lanes collide; if none do, whether they share words."""
    if crowd:
        return _("Lanes {lanes} (red) request different words of one bank.").format(lanes=lanes_words(crowd))
    if num_words < num_wanted:
        return _("No conflict; {words} for all of them: lanes may share a word.").format(
            words=plural(num_words, "word")
        )
    return _("No conflict: every lane has banks of its own.")


def _short_bars(bars: Sequence[tuple[float, float, float, float]]) -> str:
    """As `bars_path`, with shorter numbers: there are many of these."""
    return "".join(
        f"M{x:.5g},{y:.5g}L{x + width:.5g},{y:.5g}L{x + width:.5g},{y + height:.5g}L{x:.5g},{y + height:.5g}Z"
        for x, y, width, height in bars
    )
