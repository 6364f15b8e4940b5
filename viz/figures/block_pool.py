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

from typing import Any

from minivllm.trace.replay import ReplayState
from minivllm.trace.timeline import StepRecord, Timeline, walk_again
from viz import subjects
from viz.figures.block_grid import BlockGrid
from viz.figures.block_history import BlockHistory
from viz.figures.block_looks import BlockLooks
from viz.figures.captions import captions
from viz.figures.common import NARROW, names_of
from viz.figures.pool_strip import PoolStrip
from viz.figures.readers import StepMarks
from viz.figures.selected_tables import SelectedTables
from viz.language import _
from viz.scene import Scene

MOST_BLOCKS = 4096
MOST_HOST_BLOCKS = 1024
GRID_HEIGHT = 560.0
HOST_GRID_HEIGHT = 240.0


def block_pool(timeline: Timeline, selected: str | None = None, *, spotlight: bool = False) -> Scene:
    """The grid of all blocks, with the block tables of request `selected`.

    `spotlight` leaves the blocks of all other requests grey.
    """
    picture = BlockPoolPicture(timeline, selected, spotlight)
    sentences = captions(timeline)
    for record, state in walk_again(timeline):
        picture.step(record, state, sentences[record.step])
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


class BlockPoolPicture:
    """Builds the scene: `__init__` lays the shapes out, `step` says what one step changes.

    If it `is_touchable`, the player outlines the blocks of whichever request the reader selects, and the
    histories of all blocks come with the scene.
    """

    def __init__(
        self,
        timeline: Timeline,
        selected: str | None,
        spotlight: bool = False,
        *,
        is_touchable: bool = False,
    ) -> None:
        self.header = timeline.trace.header
        self.names = names_of(timeline)
        self.requests = {seq: sequence.request for seq, sequence in timeline.sequences.items()}
        self.selected = selected
        self.spotlight = spotlight
        outlined = None if is_touchable else selected
        self.looks = BlockLooks(self.header, self.names, self.requests, outlined, spotlight)
        self.history = BlockHistory(self.names, self.requests) if is_touchable else None
        self.host_history = BlockHistory(self.names, self.requests, is_host=True) if is_touchable else None
        self.readers, self.host_readers = self.looks.readers, self.looks.host_readers
        self.changed_before: set[int] = set()
        self.host_changed_before: set[int] = set()
        self.scene = Scene(_("KV block pool"), NARROW, 0, filled_words=self.looks.filled_words)
        name = self.names.get(selected or "")
        self.tables = SelectedTables(self.scene, timeline, name) if name else None
        blocks = drawn_blocks(timeline)
        top = self.tables.height if self.tables else 4.0
        about = subjects.block if is_touchable else None
        self.grid = BlockGrid(self.scene, blocks, top, GRID_HEIGHT, _("Block"), about=about)
        self.grid.add_strips(max(map(self._most_partly_filled, timeline.records), default=0))
        half = self.grid.inner / 2
        self.cell_tops = {block: (cell.x + half, cell.y + 1) for block, cell in self.grid.cells.items()}
        if self.tables:
            self.tables.lay()
        self.grid.add_arrows(max((len(record.copied) for record in timeline.records), default=0))
        self.strip = PoolStrip(self.scene, self.header, self.grid.bottom + 12)
        bottom = self.strip.bottom
        if len(blocks) < self.header.num_blocks:
            total, drawn = self.header.num_blocks, len(blocks)
            note = _("The pool has {total:,} blocks; drawn are {drawn:,} that this run uses.").format(
                total=total, drawn=drawn
            )
            self.scene.text(0, bottom + 16, note, size=13, fill="muted")
            bottom += 18
        self.host_grid: BlockGrid | None = None
        if self.header.num_host_blocks:
            self.host_title = self.scene.text(0, bottom + 34, "", size=15, weight="bold")
            self.host_grid = BlockGrid(
                self.scene,
                drawn_host_blocks(timeline),
                bottom + 46,
                HOST_GRID_HEIGHT,
                _("Host block"),
                about=subjects.host_block if is_touchable else None,
            )
            bottom = self.host_grid.bottom
        self.scene.height = bottom + 12

    # ── one step ──────────────────────────────────────────────────────────────────────────────────────

    def step(self, record: StepRecord, state: ReplayState, caption: str) -> None:
        """Patch what this step changed, what the last one had marked, and the growing last blocks."""
        self.scene.begin_step(caption)
        marks = StepMarks.of_step(record, state)
        changed = self.readers.update(record.touched_seqs, state.tables) | set(marks.device)
        changed.update(block for event in record.cached for block in event.blocks)
        if self.history:
            self.history.note(record, changed, marks, self.readers)
        for block in changed | self.changed_before:
            self.grid.draw(block, self.looks.of(block, marks, state))
        growing = self._growing(record, state)
        filled = {block: self.looks.filled(block, state) for block in changed | growing}
        for block in growing - changed:
            self.grid.fill(block, filled[block] or 0)
        self.changed_before = changed
        self.grid.change_strips({block: self._empty_share(count) for block, count in filled.items()})
        self.grid.draw_copies(marks.copies)
        if self.tables:
            self.tables.update(state, self.cell_tops)
        self.strip.draw(record)
        if self.host_grid:
            self._update_host(self.host_grid, record, marks, state)

    def histories(self, timeline: Timeline) -> dict[str, Any] | None:
        """What there is to tell of all blocks; None if nothing was noted."""
        if self.history is None or self.host_history is None:
            return None
        size = self.header.block_size
        found = self.history.to_data(timeline.sequences, size)
        if self.header.num_host_blocks:
            found["host"] = self.host_history.to_data({}, size)
        return found

    def _empty_share(self, filled: int | None) -> float:
        """Of a block with so many slots filled; 0 if no sequence reads it."""
        return 0.0 if filled is None else 1 - filled / self.header.block_size

    def _update_host(self, grid: BlockGrid, record: StepRecord, marks: StepMarks, state: ReplayState) -> None:
        changed = self.host_readers.update(record.touched_seqs, state.blocks.host_tables) | set(marks.host)
        if self.host_history:
            self.host_history.note(record, changed, marks, self.host_readers)
        for block in changed | self.host_changed_before:
            grid.draw(block, self.looks.of_host(block, marks, state))
        self.host_changed_before = changed
        total = self.header.num_host_blocks
        words = _("Swap space in the host's memory: {host_blocks:,} of {total:,} blocks in use").format(
            host_blocks=record.num_host_blocks, total=total
        )
        self.scene.set(self.host_title, text=words)

    def _growing(self, record: StepRecord, state: ReplayState) -> set[int]:
        """The blocks that receive this step's keys and values."""
        size, tables = self.header.block_size, state.tables
        growing: set[int] = set()
        for item in record.batch:
            first, last = item.start // size, (item.start + item.num_tokens - 1) // size
            growing.update(tables.get(item.seq, ())[first : last + 1])
        return growing

    def _most_partly_filled(self, record: StepRecord) -> int:
        """So many blocks may have an empty part: one of each table, and those that are only reserved."""
        size = self.header.block_size
        reserved = (record.num_used_blocks * size - record.num_filled_slots) // size
        return min(record.num_used_blocks, record.num_tables + reserved)
