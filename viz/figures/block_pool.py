"""The block pool: every physical block of the KV cache, who owns it, and what just happened to it.

    logical blocks of A    [0][1][2][3]
                             │  \\    \\ \\        arrows: A's block table
    physical blocks        [A][B][A][ ][A]
                           [B][ ][ ][A][C]      + taken, × given back, strip at the bottom: empty slots

The point of PagedAttention is to be seen here: neighbours in a sequence need not be neighbours in memory,
only the last block of a sequence is ever partly empty, and a block given back serves anybody next.

Source: Kwon et al. (SOSP 2023), figures 5 and 6. Read next: `block_table.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from minivllm.trace.replay import ReplayState
from minivllm.trace.timeline import BatchItem, StepRecord, Timeline, walk
from viz.figures.captions import captions
from viz.figures.common import MARKS, NARROW, Mark, Name, names_of, plural
from viz.scene import Scene, Value, rounded

MOST_BLOCKS = 4096
MOST_LOGICAL = 32
LABELLED = 20.0
"""Cells of at least this size carry letters and marks; smaller ones speak by fill, outline and tooltip."""
GRID_HEIGHT = 560.0
LOGICAL_SIZE = 36.0
ARROW_SPACE = 64.0


@dataclass(frozen=True)
class Cell:
    """Where one physical block is drawn, and by which shapes."""

    x: float
    y: float
    shape: int
    mark: int | None


@dataclass(frozen=True)
class Owner:
    """Which sequence holds a block, as which of its logical blocks."""

    seq: int
    logical: int


def block_pool(timeline: Timeline, selected: str | None = None) -> Scene:
    """The grid of all blocks, with the block table of request `selected` as arrows."""
    picture = _BlockPool(timeline, selected)
    sentences = captions(timeline)
    for record, state in walk(timeline.trace):
        picture.scene.begin_step(sentences[record.step])
        picture.update(record, state)
    return picture.scene


def drawn_blocks(timeline: Timeline) -> list[int]:
    """All blocks if they can be told apart, else the first of those that the run ever uses."""
    num_blocks = timeline.trace.header.num_blocks
    if num_blocks <= MOST_BLOCKS:
        return list(range(num_blocks))
    used = {block for record in timeline.records for block in record.taken}
    return sorted(used)[:MOST_BLOCKS]


class _BlockPool:
    """Builds the scene: `__init__` lays the shapes out, `update` says what one step changes."""

    def __init__(self, timeline: Timeline, selected: str | None) -> None:
        self.header = timeline.trace.header
        self.names = names_of(timeline)
        self.owners: dict[int, Owner] = {}
        self.requests = {seq: sequence.request for seq, sequence in timeline.sequences.items()}
        self.selected = {seq for seq, request in self.requests.items() if request == selected}
        self.name = self.names.get(selected or "")
        self.changed_before: set[int] = set()
        self.table_before: list[int] = []
        blocks = drawn_blocks(timeline)
        # Rows of 16, 32 or 64, so that a block's number can be told from its place.
        columns = 16 if len(blocks) <= 256 else 32 if len(blocks) <= 1024 else 64
        rows = ceil(max(len(blocks), 1) / columns)
        self.size = min(NARROW / columns, max(8.0, GRID_HEIGHT / rows))
        most_logical = longest_table(timeline, self.selected)
        top = self._table_height(most_logical)
        # An outline that would cover a small cell says less than a thin one.
        self.bold = 2.5 if self.size >= LABELLED else 1.6
        bottom = top + rows * self.size
        notes = self._notes(len(blocks))
        self.scene = Scene("KV block pool", NARROW, bottom + 50 + 18 * len(notes))
        self.cells = self._grid(blocks, columns, top)
        most_running = max((record.num_running for record in timeline.records), default=0)
        self.empties = [self.scene.rect(0, 0, 0, 0, fill="free") for _ in range(most_running)]
        self.logical = self._logical_blocks(min(most_logical, MOST_LOGICAL))
        self._strip(bottom + 12)
        for line, note in enumerate(notes):
            self.scene.text(0, bottom + 66 + 18 * line, note, size=13, fill="muted")

    # ── the layout ────────────────────────────────────────────────────────────────────────────────────

    def _table_height(self, most_logical: int) -> float:
        if not self.name:
            return 4.0
        rows = ceil(min(most_logical, MOST_LOGICAL) / 16)
        return 24 + rows * (LOGICAL_SIZE + 4) + ARROW_SPACE

    def _notes(self, num_drawn: int) -> list[str]:
        if num_drawn == self.header.num_blocks:
            return []
        return [
            f"The pool has {self.header.num_blocks:,} blocks; drawn are {num_drawn:,} that this run uses."
        ]

    def _grid(self, blocks: list[int], columns: int, top: float) -> dict[int, Cell]:
        cells = {}
        inner = self.size - (2 if self.size >= 12 else 1)
        for index, block in enumerate(blocks):
            x, y = (index % columns) * self.size + 1, top + (index // columns) * self.size
            tip = f"Block {block}: free"
            label_size = 15 if self.size >= 34 else 11
            shape = self.scene.rect(
                x, y, inner, inner, fill="free", stroke="outline", label_size=label_size, tip=tip
            )
            cells[block] = Cell(x, y, shape, None)
        if self.size >= LABELLED:
            for block, cell in cells.items():
                mark = self.scene.rect(cell.x - 1, cell.y - 1, 0, 13, label_size=12)
                cells[block] = Cell(cell.x, cell.y, cell.shape, mark)
        return cells

    def _logical_blocks(self, count: int) -> list[tuple[int, int]]:
        """The selected request's logical blocks, each with its arrow: `(box, arrow)`."""
        if not self.name:
            return []
        self.title = self.scene.text(0, 15, "", size=15, weight="bold")
        arrows = [self.scene.path("", stroke="cursor", stroke_width=1.6, opacity=0.8) for _ in range(count)]
        boxes = [
            self.scene.rect(
                (index % 16) * (LOGICAL_SIZE + 4) + 1,
                24 + (index // 16) * (LOGICAL_SIZE + 4),
                LOGICAL_SIZE,
                LOGICAL_SIZE,
                label_size=15,
            )
            for index in range(count)
        ]
        return list(zip(boxes, arrows, strict=True))

    def _strip(self, y: float) -> None:
        self.strip = {name: self.scene.rect(0, y, 0, 14, fill=name) for name in ("filled", "wasted")}
        self.scene.rect(0.5, y, NARROW - 1, 14, stroke="outline")
        self.strip_text = self.scene.text(0, y + 32, "", size=15)

    # ── one step ──────────────────────────────────────────────────────────────────────────────────────

    def update(self, record: StepRecord, state: ReplayState) -> None:
        """Patch what this step changed, what the last one had marked, and the growing last blocks."""
        changed = set(record.taken) | set(record.returned)
        self._note_owners(record, state)
        growing = {block for item in record.batch for block in self._written(item, state)}
        for block in changed | self.changed_before | growing:
            if block in self.cells:
                self._draw_cell(block, record, state)
        self.changed_before = changed
        self._draw_empty_slots(state)
        if self.name:
            self._draw_table(state)
        self._draw_strip(record)

    def _written(self, item: BatchItem, state: ReplayState) -> list[int]:
        """The blocks that receive this step's keys and values of one sequence."""
        size = self.header.block_size
        table = state.tables.get(item.seq, [])
        return table[item.start // size : ceil((item.start + item.num_tokens) / size)]

    def _note_owners(self, record: StepRecord, state: ReplayState) -> None:
        for block in record.returned:
            if not state.ref_counts[block]:
                self.owners.pop(block, None)
        for seq in set(record.taken.values()):
            for logical, block in enumerate(state.tables.get(seq, ())):
                if block in record.taken:
                    self.owners[block] = Owner(seq, logical)

    def _draw_cell(self, block: int, record: StepRecord, state: ReplayState) -> None:
        cell, owner = self.cells[block], self.owners.get(block)
        mark = MARKS["taken"] if owner and block in record.taken else None
        if not owner and block in record.returned:
            mark = MARKS["returned"]
        look: dict[str, Value] = {
            "fill": "free",
            "label": "",
            "stroke": "ink" if mark else "outline",
            "stroke_width": self.bold if mark else 1.0,
            "dash": mark.dash if mark else "",
        }
        if owner:
            name = self.names[self.requests[owner.seq]]
            look["fill"] = name.colour
            look["label"] = self._label(name, owner)
            if owner.seq in self.selected:
                look |= {"stroke": "cursor", "stroke_width": self.bold + 0.5}
        look["tip"] = self._tip(block, owner, state.ref_counts[block])
        look["detail"] = self._detail(owner, mark, state)
        self.scene.set(cell.shape, **look)
        if cell.mark is not None:
            references = state.ref_counts[block]
            sign = mark.sign if mark else f"={references}" if references > 1 else ""
            width = 7.0 + 6 * len(sign) if sign else 0.0
            self.scene.set(cell.mark, label=sign, width=width, fill="ink" if sign else "none")

    def _label(self, name: Name, owner: Owner) -> str:
        if self.size < LABELLED:
            return ""
        if owner.seq not in self.selected or self.size < 34:
            return name.tag
        return f"{name.tag}{'' if name.tag.isalpha() else ':'}{owner.logical}"

    def _tip(self, block: int, owner: Owner | None, references: int) -> str:
        if owner is None:
            return f"Block {block}: free"
        shared = f", shared by {references} sequences" if references > 1 else ""
        name = self.names[self.requests[owner.seq]]
        return f"Block {block}: request {name.full}, logical block {owner.logical}{shared}"

    def _detail(self, owner: Owner | None, mark: Mark | None, state: ReplayState) -> str:
        words = [mark.words] if mark else []
        if owner:
            filled = filled_slots(state, owner.seq, owner.logical)
            words.append(f"{filled} of {self.header.block_size} slots filled")
        return ", ".join(words)

    def _draw_empty_slots(self, state: ReplayState) -> None:
        """The empty part of each sequence's last block: a strip under the letter, or the upper part."""
        inner = self.size - (2 if self.size >= 12 else 1)
        slots = iter(self.empties)
        for seq, table in state.tables.items():
            block = table[-1]
            share = 1 - filled_slots(state, seq, len(table) - 1) / self.header.block_size
            if share <= 0 or block not in self.cells:
                continue
            cell, shape = self.cells[block], next(slots)
            if self.size >= LABELLED:
                x, y, width, height = cell.x + inner * (1 - share), cell.y + inner - 8, inner * share - 1, 6.5
            else:
                x, y, width, height = cell.x + 1, cell.y + 1, inner - 2, (inner - 2) * share
            box = {"x": x, "y": y, "width": max(0.0, width), "height": height}
            self.scene.set(shape, **{name: rounded(value) for name, value in box.items()})
        for shape in slots:
            self.scene.set(shape, width=0.0)

    def _draw_table(self, state: ReplayState) -> None:
        """The selected request's logical blocks, the newest ones if they are too many, and their arrows."""
        assert self.name
        table = next((state.tables[seq] for seq in self.selected if seq in state.tables), [])
        if table == self.table_before:
            if not self.table_before:
                self.scene.set(self.title, text=f"Block table of {self.name.full}: it holds no blocks")
            return
        self.table_before = list(table)
        first = max(0, len(table) - MOST_LOGICAL)
        words = f"Block table of {self.name.full}: {plural(len(table), 'logical block')} → physical blocks"
        if first:
            words += f" (the last {MOST_LOGICAL} are shown)"
        self.scene.set(
            self.title, text=words if table else f"Block table of {self.name.full}: it holds no blocks"
        )
        for index, (box, arrow) in enumerate(self.logical):
            logical = first + index
            if logical >= len(table):
                self.scene.set(box, fill="none", stroke="none", label="", tip="")
                self.scene.set(arrow, d="")
                continue
            tip = f"Logical block {logical} of {self.name.tag} is physical block {table[logical]}"
            self.scene.set(box, fill=self.name.colour, stroke="cursor", label=f"{logical}", tip=tip)
            self.scene.set(arrow, d=self._arrow(index, table[logical]))

    def _arrow(self, index: int, block: int) -> str:
        """From the foot of a logical block to the top of its physical block, with a small head."""
        if block not in self.cells:
            return ""
        cell = self.cells[block]
        x1 = (index % 16) * (LOGICAL_SIZE + 4) + 1 + LOGICAL_SIZE / 2
        y1 = 24 + (index // 16) * (LOGICAL_SIZE + 4) + LOGICAL_SIZE
        x2, y2 = cell.x + self.size / 2 - 1, cell.y + 1
        bend = max(24.0, (y2 - y1) * 0.45)
        return (
            f"M{x1:g},{y1:g}C{x1:g},{y1 + bend:g},{x2:g},{y2 - bend:g},{x2:g},{y2:g}"
            f"M{x2 - 3.5:g},{y2 - 7:g}L{x2:g},{y2:g}L{x2 + 3.5:g},{y2 - 7:g}"
        )

    def _draw_strip(self, record: StepRecord) -> None:
        size = self.header.block_size
        unit = NARROW / (self.header.num_blocks * size)
        filled, held = record.num_filled_slots, record.num_used_blocks * size
        self.scene.set(self.strip["filled"], width=rounded(filled * unit))
        self.scene.set(self.strip["wasted"], x=rounded(filled * unit), width=rounded((held - filled) * unit))
        free = self.header.num_blocks - record.num_used_blocks
        words = (
            f"{record.num_used_blocks:,} blocks in use, {free:,} free · "
            f"of {held:,} slots held, {held - filled:,} are empty"
        )
        self.scene.set(self.strip_text, text=words + (f" ({1 - filled / held:.1%})" if held else ""))


def filled_slots(state: ReplayState, seq: int, logical: int) -> int:
    """How many slots of a sequence's logical block hold the keys and values of a token."""
    size = state.header.block_size
    return max(0, min(size, state.sequences[seq].num_computed_tokens - logical * size))


def longest_table(timeline: Timeline, seqs: set[int]) -> int:
    """Most blocks that any of these sequences holds at once."""
    size = timeline.trace.header.block_size
    ends = (item.start + item.num_tokens for r in timeline.records for item in r.batch if item.seq in seqs)
    return ceil(max(ends, default=0) / size)
