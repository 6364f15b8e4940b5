"""The block pool: every physical block of the KV cache, its readers, and what just happened to it.

    block tables of A      [0][1][2][3]
                             │  \\    \\ \\        arrows: where A's blocks really are
    physical blocks        [A][B][A][ ][A]
                           [B][ ][ ][A][C]      + allocated, = shared, c copied, − freed, × evicted
    strip                  used │ cached │ free
    swap space             [D][D][ ][ ]         ↑ swapped out, ↓ back in; only if the run has one

The point of PagedAttention is to be seen here: neighbours in a sequence need not be neighbours in memory,
only the last block of a sequence is ever partly empty, a block may have several readers, and a free block
can be allocated to any request.

Source: Kwon et al. (SOSP 2023), figures 5 to 9. Read next: `block_table.py`.
"""

from __future__ import annotations

from math import ceil

from minivllm.trace.replay import ReplayState
from minivllm.trace.timeline import BatchItem, StepRecord, Timeline, walk
from viz.figures.block_grid import BlockGrid, Look
from viz.figures.captions import captions
from viz.figures.common import NARROW, names_of
from viz.figures.readers import Readers, StepMarks, filled_slots, mark_of
from viz.figures.selected_tables import SelectedTables
from viz.scene import Scene, rounded

MOST_BLOCKS = 4096
MOST_HOST_BLOCKS = 1024
GRID_HEIGHT = 560.0
HOST_GRID_HEIGHT = 240.0


def block_pool(timeline: Timeline, selected: str | None = None, *, spotlight: bool = False) -> Scene:
    """The grid of all blocks, with the block tables of request `selected`.

    `spotlight` leaves the blocks of all other requests grey.
    """
    picture = _BlockPool(timeline, selected, spotlight)
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


def drawn_host_blocks(timeline: Timeline) -> list[int]:
    """The same for the swap space."""
    num_blocks = timeline.trace.header.num_host_blocks
    if num_blocks <= MOST_HOST_BLOCKS:
        return list(range(num_blocks))
    used = {
        block for record in timeline.records for event in record.swapped_out for block in event.host_blocks
    }
    return sorted(used)[:MOST_HOST_BLOCKS]


class _BlockPool:
    """Builds the scene: `__init__` lays the shapes out, `update` says what one step changes."""

    def __init__(self, timeline: Timeline, selected: str | None, spotlight: bool) -> None:
        self.header = timeline.trace.header
        self.names = names_of(timeline)
        self.requests = {seq: sequence.request for seq, sequence in timeline.sequences.items()}
        self.selected = selected
        self.spotlight = spotlight
        self.readers, self.host_readers = Readers(), Readers()
        self.changed_before: set[int] = set()
        self.host_changed_before: set[int] = set()
        self.scene = Scene("KV block pool", NARROW, 0)
        name = self.names.get(selected or "")
        self.tables = SelectedTables(self.scene, timeline, name) if name else None
        blocks = drawn_blocks(timeline)
        top = self.tables.height if self.tables else 4.0
        self.grid = BlockGrid(self.scene, blocks, top, GRID_HEIGHT, "Block")
        self.grid.add_strips(max(map(self._most_partly_filled, timeline.records), default=0))
        half = self.grid.inner / 2
        self.cell_tops = {block: (cell.x + half, cell.y + 1) for block, cell in self.grid.cells.items()}
        if self.tables:
            self.tables.lay()
        self.grid.add_arrows(max((len(record.copied) for record in timeline.records), default=0))
        bottom = self._strip(self.grid.bottom + 12)
        if len(blocks) < self.header.num_blocks:
            total, drawn = self.header.num_blocks, len(blocks)
            note = f"The pool has {total:,} blocks; drawn are {drawn:,} that this run uses."
            self.scene.text(0, bottom + 16, note, size=13, fill="muted")
            bottom += 18
        self.host_grid: BlockGrid | None = None
        if self.header.num_host_blocks:
            self.host_title = self.scene.text(0, bottom + 34, "", size=15, weight="bold")
            self.host_grid = BlockGrid(
                self.scene, drawn_host_blocks(timeline), bottom + 46, HOST_GRID_HEIGHT, "Host block"
            )
            bottom = self.host_grid.bottom
        self.scene.height = bottom + 12

    def _strip(self, y: float) -> float:
        names = ("filled", "wasted", "cached") if self.header.prefix_cache else ("filled", "wasted")
        self.strip = {name: self.scene.rect(0, y, 0, 14, fill=name) for name in names}
        self.scene.rect(0.5, y, NARROW - 1, 14, stroke="outline")
        self.strip_text = self.scene.text(0, y + 32, "", size=15)
        return y + 38

    # ── one step ──────────────────────────────────────────────────────────────────────────────────────

    def update(self, record: StepRecord, state: ReplayState) -> None:
        """Patch what this step changed, what the last one had marked, and the growing last blocks."""
        marks = StepMarks.of_step(record, state)
        changed = self.readers.update(record.touched_seqs, state.tables) | set(marks.device)
        changed.update(block for event in record.cached for block in event.blocks)
        growing = {block for item in record.batch for block in self._written(item, state)}
        for block in changed | self.changed_before | growing:
            self.grid.draw(block, self._look(block, marks, state))
        self.changed_before = changed
        self._draw_empty_slots(state)
        self.grid.draw_copies(marks.copies)
        if self.tables:
            self.tables.update(state, self.cell_tops)
        self._draw_strip(record)
        if self.host_grid:
            self._update_host(self.host_grid, record, marks, state)

    def _update_host(self, grid: BlockGrid, record: StepRecord, marks: StepMarks, state: ReplayState) -> None:
        changed = self.host_readers.update(record.touched_seqs, state.blocks.host_tables) | set(marks.host)
        for block in changed | self.host_changed_before:
            grid.draw(block, self._host_look(block, marks))
        self.host_changed_before = changed
        total = self.header.num_host_blocks
        words = f"Swap space in the host's memory: {record.num_host_blocks:,} of {total:,} blocks in use"
        self.scene.set(self.host_title, text=words)

    def _written(self, item: BatchItem, state: ReplayState) -> list[int]:
        """The blocks that receive this step's keys and values of one sequence."""
        size = self.header.block_size
        table = state.tables.get(item.seq, [])
        return table[item.start // size : ceil((item.start + item.num_tokens) / size)]

    def _look(self, block: int, marks: StepMarks, state: ReplayState) -> Look:
        first = self.readers.first(block)
        if first is None:
            return self._look_unread(block, marks, state)
        readers = self.readers.of[block]
        mark = mark_of(marks.device.get(block, set()), len(readers))
        seq, logical = first
        name = self.names[self.requests[seq]]
        is_selected = self.selected is not None and any(
            self.requests[reader] == self.selected for reader in readers
        )
        words = [mark.words] if mark else []
        words += [f"copied from block {source}" for source, target in marks.copies if target == block][-1:]
        words.append(f"{filled_slots(state, readers)} of {self.header.block_size} slots filled")
        if block in state.blocks.cached:
            words.append("in the prefix cache")
        is_lit = is_selected or not self.spotlight
        if self.spotlight and is_selected:
            name = self.names[self.selected or ""]
        return Look(
            fill=name.colour if is_lit else "waiting",
            label=name.tag if is_lit else "",
            references=len(readers) if is_lit else 0,
            mark=mark if is_lit else None,
            is_selected=is_selected and not self.spotlight,
            tip=f"Block {block}: {self._owner_words(readers, seq, logical)}",
            detail=", ".join(words),
        )

    def _owner_words(self, readers: dict[int, int], seq: int, logical: int) -> str:
        words = f"request {self.names[self.requests[seq]].full}, logical block {logical}"
        if len(readers) > 1:
            words += f", shared by {len(readers)} sequences"
            others = {self.requests[reader] for reader in readers} - {self.requests[seq]}
            if others:
                words += f" of {len(others) + 1} requests"
        return words

    def _look_unread(self, block: int, marks: StepMarks, state: ReplayState) -> Look:
        """A free block, or one that is cached and evictable."""
        mark = mark_of(marks.device.get(block, set()), 0)
        detail = mark.words if mark else ""
        entry = state.blocks.cached.get(block)
        if entry is None:
            return Look(mark=mark, detail=detail)
        name = self.names.get(self.requests.get(entry.seq, ""))
        owner = f"request {name.full}" if name else "a request from before the trace"
        tip = f"Block {block}: cached and evictable, tokens that {owner} computed"
        label = name.tag if name and not self.spotlight else ""
        return Look(fill="cached", label=label, mark=mark, is_evictable=True, tip=tip, detail=detail)

    def _host_look(self, block: int, marks: StepMarks) -> Look:
        first = self.host_readers.first(block)
        references = len(self.host_readers.of.get(block, ()))
        mark = mark_of(marks.host.get(block, set()), references, is_host=True)
        detail = mark.words if mark else ""
        if first is None:
            return Look(mark=mark, detail=detail)
        seq, logical = first
        name = self.names[self.requests[seq]]
        is_lit = not self.spotlight or self.requests[seq] == self.selected
        return Look(
            fill=name.colour if is_lit else "waiting",
            label=name.tag if is_lit else "",
            references=references if is_lit else 0,
            mark=mark if is_lit else None,
            is_selected=self.requests[seq] == self.selected and not self.spotlight,
            tip=f"Host block {block}: {self._owner_words(self.host_readers.of[block], seq, logical)}",
            detail=detail,
        )

    def _draw_empty_slots(self, state: ReplayState) -> None:
        """The empty part of each sequence's last blocks: a strip under the letter, or the upper part."""
        empty: dict[int, float] = {}
        for table in state.tables.values():
            for block in reversed(table):  # more than one where memory is reserved
                filled = filled_slots(state, self.readers.of[block])
                if filled == self.header.block_size:
                    break
                empty[block] = 1 - filled / self.header.block_size
        self.grid.draw_strips(empty)

    def _most_partly_filled(self, record: StepRecord) -> int:
        """So many blocks may have an empty part: one of each table, and those that are only reserved."""
        size = self.header.block_size
        reserved = (record.num_used_blocks * size - record.num_filled_slots) // size
        return min(record.num_used_blocks, record.num_tables + reserved)

    def _draw_strip(self, record: StepRecord) -> None:
        size, total = self.header.block_size, self.header.num_blocks
        unit = NARROW / (total * size)
        filled, used = record.num_filled_slots, record.num_used_blocks * size
        self.scene.set(self.strip["filled"], width=rounded(filled * unit))
        self.scene.set(self.strip["wasted"], x=rounded(filled * unit), width=rounded((used - filled) * unit))
        words = f"{record.num_used_blocks:,} blocks in use, "
        if "cached" in self.strip:
            evictable = record.num_evictable_blocks
            width = rounded(evictable * size * unit)
            self.scene.set(self.strip["cached"], x=rounded(used * unit), width=width)
            words += f"{evictable:,} cached and evictable, "
        words += f"{total - record.num_used_blocks - record.num_evictable_blocks:,} free"
        if used:
            words += f" · {used - filled:,} of {used:,} slots empty ({1 - filled / used:.1%})"
        self.scene.set(self.strip_text, text=words)
