"""The live pictures: the pool and the requests of one step, drawn from the state alone.

The other figures are drawn once for a whole run. Here what comes is not known, so the shapes are laid out for
the header's limits, and every frame shows one state in them: only what changed since the last frame travels.

    pool        the cells of `block_pool.py`; of a large pool, one cell for each block that holds something
    requests    a row for each request: what it does, and what it says, growing

Read next: `feed.py`.
"""

from __future__ import annotations

from collections.abc import Mapping

from minivllm.trace.events import TraceHeader
from minivllm.trace.replay import ReplayState, SequenceState
from minivllm.trace.timeline import Phase, StepRecord
from viz.figures.block_grid import BlockGrid, Look
from viz.figures.block_looks import BlockLooks
from viz.figures.common import NARROW, PHONE, Name, clip, swatches
from viz.figures.overview import DOING, ENDED
from viz.figures.pool_strip import PoolStrip
from viz.figures.readers import StepMarks
from viz.language import _
from viz.live.window import MOST_ROWS, LiveWindow, Moment
from viz.scene import Scene, Shape, rounded

MOST_CELLS = 640
ROW, ROWS_TOP = 54.0, 36.0
MOST_CHIPS = 14
TEXT_CELLS, TEXT_CELLS_NARROW = 84, 60
"""What fits into a line."""
MOST_TIP = 2000

Patch = dict[int, Shape]


class LivePicture:
    """The scenes of a window, and what changed in them since the last frame."""

    def __init__(self, window: LiveWindow, *, is_narrow: bool = False) -> None:
        self.window = window
        self.pool = _Pool(window.header)
        self.requests = _Requests(PHONE if is_narrow else NARROW)
        self.scenes = [self.pool.scene, self.requests.scene]

    def draw(self, moment: Moment) -> list[Patch]:
        """Show this moment; what each scene changed for it."""
        names = {request: self.window.name_of(request) for request in _requests_of(moment.state)}
        for scene in self.scenes:
            scene.forget_steps()
            scene.begin_step("")
        self.pool.draw(moment, names)
        self.requests.draw(moment, names)
        return [scene.changes.patch(0) for scene in self.scenes]

    def shapes(self) -> list[list[Shape]]:
        """All shapes as they are now."""
        return [list(scene.now()) for scene in self.scenes]


def _requests_of(state: ReplayState) -> list[str]:
    sequences = (*state.former.values(), *state.finished.values(), *state.sequences.values())
    return list(dict.fromkeys(sequence.request for sequence in sorted(sequences, key=lambda s: s.seq)))


class _Pool:
    """The grid of blocks, its strip, and the swap space."""

    def __init__(self, header: TraceHeader) -> None:
        self.header = header
        filled_words = BlockLooks(header, {}, {}).filled_words
        self.scene = Scene(_("KV block pool"), NARROW, 0, filled_words=filled_words)
        self.title = self.scene.text(0, 18, "", size=15, weight="bold")
        self.is_whole = header.num_blocks <= MOST_CELLS
        cells = min(header.num_blocks, MOST_CELLS)
        self.grid = BlockGrid(self.scene, range(cells), 30.0, NARROW, "Block")
        self.grid.add_strips(min(cells, header.max_num_seqs + 8))
        self.strip = PoolStrip(self.scene, header, self.grid.bottom + 12)
        bottom = self.strip.bottom
        self.host_grid: BlockGrid | None = None
        if header.num_host_blocks:
            self.host_title = self.scene.text(0, bottom + 30, "", size=15, weight="bold")
            host_cells = min(header.num_host_blocks, MOST_CELLS)
            self.host_grid = BlockGrid(self.scene, range(host_cells), bottom + 42, 200.0, _("Host block"))
            bottom = self.host_grid.bottom
        legend = [("filled", _("filled"), 1.0), ("wasted", _("in use, empty"), 1.0)]
        swatches(self.scene, bottom + 26, legend, 0, hatched=True)
        self.scene.height = bottom + 40
        self._cell_of: dict[int, int] = {}
        self._shown: set[int] = set()
        self._host_shown: set[int] = set()

    def draw(self, moment: Moment, names: Mapping[str, Name]) -> None:
        state, record = moment.state, moment.record
        requests = {
            seq: sequence.request
            for group in (state.former, state.finished, state.sequences)
            for seq, sequence in group.items()
        }
        looks = BlockLooks(self.header, names, requests)
        looks.readers.update(state.tables, state.tables)
        marks = StepMarks.of_step(record, state)
        held = sorted({*looks.readers.of, *state.blocks.cached})
        held = [block for block in held if looks.readers.of.get(block) or block in state.blocks.cached]
        freed = [block for block in marks.device if not looks.readers.of.get(block)]
        cells = self._cells(held if not self.is_whole else [*held, *freed])
        for cell in self._shown - set(cells.values()):
            self.grid.draw(cell, Look(tip="" if self.is_whole else _("no block that holds anything")))
        for block, cell in cells.items():
            look = looks.of(block, marks, state)
            self.grid.draw(cell, look if look.tip else Look(mark=look.mark, detail=look.detail))
        self._shown = set(cells.values())
        empty = looks.empty_shares(state)
        self.grid.draw_strips({cells[block]: share for block, share in empty.items() if block in cells})
        self.strip.draw(record)
        missing = len(held) - len(cells)
        words = _("KV cache: {blocks:,} blocks of {block_size} tokens").format(
            blocks=self.header.num_blocks, block_size=self.header.block_size
        )
        if not self.is_whole:
            words = _("{words}; drawn are those that hold something").format(words=words)
        if missing > 0:
            words = _("{words} ({count:,} more do)").format(words=words, count=missing)
        self.scene.set(self.title, text=words)
        if self.host_grid:
            self._draw_host(self.host_grid, looks, marks, state, record)

    def _cells(self, blocks: list[int]) -> dict[int, int]:
        """Block → its cell: its own in a small pool; in a large one its number's, or the next free one."""
        size = len(self.grid.cells)
        if self.is_whole:
            return {block: block for block in blocks}
        cells: dict[int, int] = {}
        taken: set[int] = set()
        for block in blocks[:size]:
            cell = block % size
            while cell in taken:
                cell = (cell + 1) % size
            taken.add(cell)
            cells[block] = cell
        return cells

    def _draw_host(
        self, grid: BlockGrid, looks: BlockLooks, marks: StepMarks, state: ReplayState, record: StepRecord
    ) -> None:
        host_tables = state.blocks.host_tables
        looks.host_readers.update(host_tables, host_tables)
        now = {block for block in (*looks.host_readers.of, *marks.host) if block in grid.cells}
        for block in now | self._host_shown:
            grid.draw(block, looks.of_host(block, marks, state))
        self._host_shown = now
        total = self.header.num_host_blocks
        self.scene.set(
            self.host_title,
            text=_("Swap space in the host's memory: {host_blocks:,} of {total:,} blocks in use").format(
                host_blocks=record.num_host_blocks, total=total
            ),
        )


class _Requests:
    """A row for each request, and the waiting queue above them."""

    def __init__(self, width: float) -> None:
        self.width, self.is_narrow = width, width < NARROW
        self.scene = Scene(_("What each request says"), width, ROWS_TOP + ROW * MOST_ROWS + 28)
        self.queue = self.scene.text(0, 18, "", size=15, weight="bold")
        self.chips = [self._chip(self.width - 34.0 * (MOST_CHIPS - i), 3.0, 30) for i in range(MOST_CHIPS)]
        self.rows = [self._row(ROWS_TOP + ROW * index) for index in range(MOST_ROWS)]
        self.more = self.scene.text(0, ROWS_TOP + ROW * MOST_ROWS + 18, "", size=14, fill="muted")

    def _chip(self, x: float, y: float, width: float) -> int:
        return self.scene.rect(x, y, width, 20, label_size=14, radius=4)

    def _row(self, y: float) -> dict[str, int]:
        scene = self.scene
        return {
            "panel": scene.rect(0, y, self.width, ROW - 6, radius=6),
            "chip": self._chip(8, y + 5, 40),
            "doing": scene.text(56, y + 20, "", size=14, weight="bold"),
            "count": scene.text(self.width - 10, y + 20, "", size=13, anchor="end", fill="muted"),
            "text": scene.text(8, y + 40, "", size=15),
            "share": scene.rect(0, y + ROW - 9, 0, 3),
        }

    def draw(self, moment: Moment, names: Mapping[str, Name]) -> None:
        state, record = moment.state, moment.record
        self._draw_queue(state, names)
        phases: dict[str, Phase] = {}
        for item in record.batch:
            if phases.get(item.request) is not Phase.PREFILL:
                phases[item.request] = item.phase
        ended: dict[str, list[SequenceState]] = {}
        for sequence in state.finished.values():
            ended.setdefault(sequence.request, []).append(sequence)
        for row, request in zip(self.rows, moment.rows, strict=True):
            if request in state.members:
                members = [state.sequences[seq] for seq in state.members[request]]
                best = min(members, key=lambda s: (-(s.beam_score or 0.0), s.seq))
                doing = DOING[phase_of(request, members, phases, state)]
                if len(members) > 1:
                    doing = _("{doing}, {count} sequences").format(doing=doing, count=len(members))
                self._show(row, best, doing, names[request], is_over=False)
            elif request in ended:
                outputs = [s for s in ended[request] if s.finish_reason != "pruned"] or ended[request]
                reason = outputs[-1].finish_reason or ""
                self._show(row, outputs[0], ENDED.get(reason, reason), names[request], is_over=True)
            else:
                self._clear(row)
        shown = set(moment.rows)
        hidden = [request for request in (*state.running, *state.waiting) if request not in shown]
        self.scene.set(self.more, text=_("and {count:,} more").format(count=len(hidden)) if hidden else "")

    def _draw_queue(self, state: ReplayState, names: Mapping[str, Name]) -> None:
        running, waiting = len(state.running), len(state.waiting)
        words = _("{running:,} in the batch, {waiting:,} waiting").format(
            running=running, waiting=waiting
        ) + (": " if waiting else "")
        self.scene.set(self.queue, text=words)
        left = 8.0 + 7.5 * len(words)
        for chip in self.chips:
            self.scene.set(chip, fill="none", stroke="none", label="", tip="")
        for index, chip in enumerate(self.chips):
            x = left + 34.0 * index
            if index < waiting and x < self.width - 34:
                name = names[state.waiting[index]]
                tip = _("Request {full} waits, number {index} in order of arrival").format(
                    full=name.full, index=index + 1
                )
                is_last = x + 34 >= self.width - 34 and index + 1 < waiting
                look = {
                    "fill": "none",
                    "stroke": "none",
                    "label": "…",
                    "tip": _("{count:,} more wait").format(count=waiting - index),
                }
                if not is_last:
                    look = {"fill": name.colour, "stroke": "outline", "label": name.tag, "tip": tip}
                self.scene.set(chip, x=rounded(x), **look)

    def _show(
        self, row: dict[str, int], sequence: SequenceState, doing: str, name: Name, *, is_over: bool
    ) -> None:
        scene = self.scene
        scene.set(row["panel"], fill="panel")
        tip = _("Request {full}").format(full=name.full)
        scene.set(row["chip"], fill=name.colour, stroke="outline", label=name.tag, tip=tip)
        scene.set(row["doing"], text=doing, fill="muted" if is_over else "ink")
        prompt_tokens, outputs = f"{sequence.num_prompt_tokens:,}", f"{sequence.num_output_tokens:,}"
        count = _("{prompt_tokens} prompt + {outputs} of at most {max_tokens:,} output tokens").format(
            prompt_tokens=prompt_tokens, outputs=outputs, max_tokens=sequence.max_tokens
        )
        if self.is_narrow:
            count = _("{prompt_tokens} + {outputs} of {max_tokens:,} tokens").format(
                prompt_tokens=prompt_tokens, outputs=outputs, max_tokens=sequence.max_tokens
            )
        scene.set(row["count"], text=count)
        said, prompt = sequence.text, sequence.prompt or ""
        whole = f"{prompt}{said}" if said or prompt else " ".join(map(str, sequence.token_ids))
        scene.set(
            row["text"],
            text=clip(whole, TEXT_CELLS_NARROW if self.is_narrow else TEXT_CELLS, keep_end=True),
            fill="ink" if said and not is_over else "muted",
            tip=whole[-MOST_TIP:],
        )
        most = sequence.num_prompt_tokens + sequence.max_tokens
        share = 0.0 if is_over else self.width * min(1.0, sequence.num_computed_tokens / max(most, 1))
        scene.set(row["share"], fill="filled" if share else "none", width=rounded(share))

    def _clear(self, row: dict[str, int]) -> None:
        scene = self.scene
        scene.set(row["panel"], fill="none")
        scene.set(row["chip"], fill="none", stroke="none", label="", tip="")
        for name in ("doing", "count", "text"):
            scene.set(row[name], text="")
        scene.set(row["text"], tip="")
        scene.set(row["share"], fill="none", width=0.0)


def phase_of(
    request: str, members: list[SequenceState], phases: Mapping[str, Phase], state: ReplayState
) -> Phase:
    """What an unfinished request does."""
    if request in phases and request in state.running:
        return phases[request]
    if request in state.running:
        return Phase.PARKED
    if any(sequence.seq in state.blocks.host_tables for sequence in members):
        return Phase.SWAPPED
    preempted = any(sequence.num_preemptions for sequence in members)
    return Phase.PREEMPTED if preempted else Phase.WAITING
