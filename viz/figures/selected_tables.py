"""The block tables of one request, above the pool.

A cell always means the same: the small number is the logical block, the large one the physical block that the
table has for it (dashed: a block of the swap space).

One sequence: its logical blocks in a row, and arrows that say where each of them really is.

    A    [0][1][2][3]
           │  \\   \\ \\

Several (parallel samples, beams): one row per sequence, with the numbers of the physical blocks. What two
neighbouring rows share grows together into one piece.

    seq 3    [ 7][ 2][ 5]
              ██  ██
    seq 4    [ 7][ 2][ 9]

Source: Kwon et al. (SOSP 2023), figures 6, 8 and 9. Read next: `block_pool.py`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from math import ceil

from minivllm.trace.replay import ReplayState
from minivllm.trace.timeline import Timeline
from viz import subjects
from viz.figures.common import NARROW, Name, plural, text_cells
from viz.language import _
from viz.scene import Scene

MOST_LOGICAL = 32
MOST_TABLES = 8
COLUMNS = 16
BOX, GAP, TITLE = 36.0, 4.0, 24.0
TITLE_CELL = 7.6
ROW_LABEL, ROW_BOX, ROW_HEIGHT = 60.0, 32.0, 32.0
ARROW_SPACE = 64.0

Where = Mapping[int, tuple[float, float]]
"""Physical block → the middle of its cell's upper edge."""


class SelectedTables:
    """Lays out the tables of one request from y = 0 on; `height` units are taken."""

    def __init__(self, scene: Scene, timeline: Timeline, name: Name) -> None:
        self.scene, self.name = scene, name
        seqs = {s.seq for s in timeline.sequences.values() if s.request == name.request}
        self.most_logical = longest_table(timeline, seqs)
        self.has_several = most_sequences(timeline, name.request) > 1
        self.before: object = None
        if self.has_several:
            self.num_rows = min(MOST_TABLES, most_sequences(timeline, name.request))
            self.columns = max(1, min(COLUMNS, self.most_logical))
            self.height = TITLE + self.num_rows * ROW_HEIGHT + 18
        else:
            self.num_boxes = min(MOST_LOGICAL, self.most_logical)
            self.height = TITLE + ceil(self.num_boxes / COLUMNS) * (BOX + GAP) + ARROW_SPACE

    def lay(self) -> None:
        """Add the shapes. Called after the grid's, so that arrows lie on top of it."""
        self.title = self.scene.text(0, 15, "", size=15, weight="bold")
        if self.has_several:
            self._lay_rows()
        else:
            self._lay_boxes()

    def update(self, state: ReplayState, where: Where) -> None:
        """Show the tables as they are now."""
        members = state.members.get(self.name.request, [])
        best_first = sorted(members, key=lambda seq: (-(state.sequences[seq].beam_score or 0.0), seq))
        tables, hosts = state.blocks.tables, state.blocks.host_tables
        shown = {seq: (seq in hosts, list(tables.get(seq) or hosts.get(seq) or [])) for seq in best_first}
        shown = {seq: (is_host, table) for seq, (is_host, table) in shown.items() if table}
        now = list(shown.items())
        if now == self.before:
            return
        self.before = now
        self.scene.set(self.title, text=self._title(shown))
        if self.has_several:
            self._draw_rows(shown)
        else:
            self._draw_boxes(shown, where)

    def _title(self, shown: dict[int, tuple[bool, list[int]]]) -> str:
        name = self.name.full
        if not shown:
            return _("Block table of {name}: no blocks").format(name=name)
        is_host = any(host for host, _table in shown.values())
        place = _("in the swap space") if is_host else _("physical blocks")
        entries = sum(len(table) for _host, table in shown.values())
        if len(shown) == 1:
            words = _("Block table of {name}: {blocks} → {place}").format(
                name=name, blocks=plural(entries, "logical block"), place=place
            )
        else:
            different = len({block for _host, table in shown.values() for block in table})
            words = _("{count} block tables of {name}: {entries:,} entries → {different:,} {place}").format(
                count=len(shown), name=name, entries=entries, different=different, place=place
            )
            if entries > different:
                words = _("{words}, {count:,} saved").format(words=words, count=entries - different)
        most = COLUMNS if self.has_several else MOST_LOGICAL
        if max(len(table) for _host, table in shown.values()) > most:
            words = _("{words} (the last {most} are shown)").format(words=words, most=most)
        if len(shown) > MOST_TABLES:
            words = _("{words} (the first {most} tables)").format(words=words, most=MOST_TABLES)
        if TITLE_CELL * text_cells(words) > self.scene.width:  # then without the caller's own id
            words = words.replace(name, self.name.tag)
        return words

    # ── one sequence: logical blocks with arrows ──────────────────────────────────────────────────────

    def _lay_boxes(self) -> None:
        scene, count = self.scene, self.num_boxes
        self.arrows = [scene.path("", stroke="cursor", stroke_width=1.6, opacity=0.8) for _ in range(count)]
        self.boxes, self.numbers = [], []
        for index in range(count):
            x, y = (index % COLUMNS) * (BOX + GAP) + 1, TITLE + (index // COLUMNS) * (BOX + GAP)
            self.boxes.append(scene.rect(x, y, BOX, BOX, label_size=15))
            self.numbers.append(scene.text(x + 3, y + 10, "", size=9))

    def _draw_boxes(self, shown: dict[int, tuple[bool, list[int]]], where: Where) -> None:
        is_host, table = next(iter(shown.values()), (False, []))
        first = max(0, len(table) - MOST_LOGICAL)
        for index, (box, arrow) in enumerate(zip(self.boxes, self.arrows, strict=True)):
            logical = first + index
            if logical >= len(table):
                self.scene.set(self.numbers[index], text="")
                self.scene.set(box, fill="none", stroke="none", label="", tip="", subject="")
                self.scene.set(arrow, d="")
                continue
            tip = _("Logical block {logical} of {tag} is physical block {block}")
            if is_host:
                tip = _("Logical block {logical} of {tag} is host block {block}")
            tip = tip.format(logical=logical, tag=self.name.tag, block=table[logical])
            fill, dash = ("panel", "3 2") if is_host else (self.name.colour, "")
            about = (subjects.host_block if is_host else subjects.block)(table[logical])
            look = {"fill": fill, "stroke": "cursor", "dash": dash, "label": f"{table[logical]}"}
            self.scene.set(self.numbers[index], text=f"{logical}", fill=f"on-{fill}")
            self.scene.set(box, **look, tip=tip, subject=about)
            self.scene.set(arrow, d="" if is_host else self._arrow(index, where.get(table[logical])))

    def _arrow(self, index: int, target: tuple[float, float] | None) -> str:
        """From the foot of a logical block to the top of its physical block, with a small head."""
        if target is None:
            return ""
        x1 = (index % COLUMNS) * (BOX + GAP) + 1 + BOX / 2
        y1 = TITLE + (index // COLUMNS) * (BOX + GAP) + BOX
        x2, y2 = target
        bend = max(24.0, (y2 - y1) * 0.45)
        return (
            f"M{x1:g},{y1:g}C{x1:g},{y1 + bend:g},{x2:g},{y2 - bend:g},{x2:g},{y2:g}"
            f"M{x2 - 3.5:g},{y2 - 7:g}L{x2:g},{y2:g}L{x2 + 3.5:g},{y2 - 7:g}"
        )

    # ── several: one row each ─────────────────────────────────────────────────────────────────────────

    def _lay_rows(self) -> None:
        scene = self.scene
        pitch = (NARROW - ROW_LABEL) / COLUMNS
        place = [ROW_LABEL + column * pitch for column in range(self.columns)]
        self.labels, self.rows, self.bonds = [], [], []
        self.row_numbers: list[list[int]] = []
        for row in range(self.num_rows):
            y = TITLE + row * ROW_HEIGHT
            self.bonds.append(
                [scene.rect(x + 3, y + 20, ROW_BOX - 6, ROW_HEIGHT - 12) for x in place]
                if row + 1 < self.num_rows
                else []
            )
        for row in range(self.num_rows):
            y = TITLE + row * ROW_HEIGHT
            self.labels.append(scene.text(0, y + 17, "", size=13))
            self.rows.append([scene.rect(x, y, ROW_BOX, 24, label_size=13) for x in place])
            self.row_numbers.append([scene.text(x + 2, y + 8, "", size=8) for x in place])

    def _draw_rows(self, shown: dict[int, tuple[bool, list[int]]]) -> None:
        tables = list(shown.items())[:MOST_TABLES]
        longest = max((len(table) for _seq, (_host, table) in tables), default=0)
        first = max(0, longest - self.columns)
        for row, boxes in enumerate(self.rows):
            seq, is_host, table = -1, False, list[int]()
            if row < len(tables):
                seq, (is_host, table) = tables[row]
            below = tables[row + 1][1][1] if row + 1 < len(tables) else []
            self.scene.set(self.labels[row], text=_("seq {seq}").format(seq=seq) if table else "")
            for column, box in enumerate(boxes):
                logical = first + column
                block = table[logical] if logical < len(table) else None
                self._draw_box(box, seq, logical, block, is_host)
                fill = "panel" if is_host else self.name.colour
                words = "" if block is None else f"{logical}"
                self.scene.set(self.row_numbers[row][column], text=words, fill=f"on-{fill}")
                if row < len(self.bonds) and self.bonds[row]:
                    is_shared = block is not None and logical < len(below) and below[logical] == block
                    fill = ("panel" if is_host else self.name.colour) if is_shared else "none"
                    self.scene.set(self.bonds[row][column], fill=fill)

    def _draw_box(self, box: int, seq: int, logical: int, block: int | None, is_host: bool) -> None:
        if block is None:
            self.scene.set(box, fill="none", stroke="none", label="", tip="", subject="")
            return
        tip = _("Logical block {logical} of sequence {seq} is physical block {block}")
        if is_host:
            tip = _("Logical block {logical} of sequence {seq} is host block {block}")
        tip = tip.format(logical=logical, seq=seq, block=block)
        fill, dash = ("panel", "3 2") if is_host else (self.name.colour, "")
        about = (subjects.host_block if is_host else subjects.block)(block)
        look = {"fill": fill, "stroke": "outline", "dash": dash, "label": f"{block}"}
        self.scene.set(box, **look, tip=tip, subject=about)


def longest_table(timeline: Timeline, seqs: set[int]) -> int:
    """Most blocks that any of these sequences has at once."""
    size = timeline.trace.header.block_size
    ends = (item.start + item.num_tokens for r in timeline.records for item in r.batch if item.seq in seqs)
    longest = ceil(max(ends, default=0) / size)
    for record in timeline.records:
        # Where memory is reserved, a table is as long at once as it may become.
        at_once = Counter(seq for seq in record.taken.values() if seq in seqs)
        longest = max(longest, *at_once.values(), 0)
    last = timeline.records[-1]
    if not last.batch:
        # The trace was cut off in the middle of a step: tables may have grown for a batch that it lacks.
        gained = [seq for seq in last.taken.values() if seq in seqs]
        gained += [event.seq for event in last.shared for _ in event.blocks if event.seq in seqs]
        longest += max(map(gained.count, gained), default=0)
    return longest


def most_sequences(timeline: Timeline, request: str) -> int:
    """Most sequences that a request has after any step."""
    count = most = 1
    for record in timeline.records:
        count += sum(fork.request == request for fork in record.forked)
        count -= sum(sequence.request == request for sequence in record.finished)
        most = max(most, count)
    return most


def most_interesting_request(timeline: Timeline) -> str:
    """The longest request, of those with several sequences, or of the preempted ones, if there are any:
    most happens to its blocks."""
    lengths = {seq.request: len(seq.token_ids) for seq in timeline.sequences.values()}
    forked = {event.request for record in timeline.records for event in record.forked}
    preempted = {event.request for record in timeline.records for event in record.preempted}
    return max(lengths, key=lambda name: (name in forked, name in preempted, lengths[name]))
