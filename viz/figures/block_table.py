"""The block table: one request's logical blocks, line by line, with what each of them holds.

    logical   physical   filled              holds
          0          7   ████████  16/16     prompt “A large language model writes …”
          1          3   █████░░░  10/16     “ blocks of a page”

To the request its memory looks contiguous: token `t` is in logical block `t // block_size`, at offset
`t % block_size`. Only this table knows where that block really is. Of a request with several sequences the
first is shown, in a search the best beam.

Source: Kwon et al. (SOSP 2023), figure 6. Read next: `memory.py`.
"""

from __future__ import annotations

from minivllm.trace.replay import ReplayState, SequenceState
from minivllm.trace.timeline import StepRecord, Timeline, walk_again
from viz import subjects
from viz.figures.captions import captions
from viz.figures.common import NARROW, clip, names_of
from viz.figures.selected_tables import longest_table
from viz.figures.texts import TokenTexts
from viz.language import N_, _
from viz.scene import Scene, rounded

MOST_ROWS = 12
ROW = 30.0
TOP = 52.0
COLUMNS = {N_("logical"): 0.0, N_("physical"): 78.0, N_("filled"): 166.0, N_("holds"): 330.0}
BAR = 96.0


def block_table(timeline: Timeline, selected: str) -> Scene:
    """The table of request `selected`; its newest blocks if there are too many to show."""
    picture = BlockTablePicture(timeline, selected)
    sentences = captions(timeline)
    for record, state in walk_again(timeline):
        picture.step(record, state, sentences[record.step])
    return picture.scene


class BlockTablePicture:
    """Builds the scene, one `step` after the other."""

    def __init__(self, timeline: Timeline, selected: str) -> None:
        self.name = names_of(timeline)[selected]
        self.block_size = timeline.trace.header.block_size
        seqs = {seq for seq, sequence in timeline.sequences.items() if sequence.request == selected}
        num_rows = max(1, min(MOST_ROWS, longest_table(timeline, seqs)))
        self.texts = TokenTexts()
        self.scene = Scene(
            _("Block table of request {tag}").format(tag=self.name.tag), NARROW, TOP + num_rows * ROW + 6
        )
        self.title = self.scene.text(0, 16, "", size=15, weight="bold")
        for heading, x in COLUMNS.items():
            self.scene.text(x, 40, _(heading), size=13, fill="muted")
        self.before: object = None
        self.rows = [self._row(TOP + index * ROW) for index in range(num_rows)]

    def _row(self, y: float) -> dict[str, int]:
        scene = self.scene
        return {
            "logical": scene.rect(COLUMNS["logical"], y, 48, 22, label_size=14),
            "physical": scene.rect(COLUMNS["physical"], y, 60, 22, label_size=14),
            "frame": scene.rect(COLUMNS["filled"], y + 3, BAR, 15),
            "bar": scene.rect(COLUMNS["filled"], y + 3, 0, 15),
            "count": scene.text(COLUMNS["filled"] + BAR + 6, y + 16, "", size=14),
            "holds": scene.text(COLUMNS["holds"], y + 16, "", size=14),
        }

    def step(self, record: StepRecord, state: ReplayState, caption: str) -> None:
        """Patch what this step changed."""
        self.scene.begin_step(caption)
        self.texts.note(record)
        self._update(state)

    def _update(self, state: ReplayState) -> None:
        members = state.members.get(self.name.request, [])
        with_table = [state.sequences[seq] for seq in members if seq in state.tables]
        best = min(with_table, key=lambda s: (-(s.beam_score or 0.0), s.seq), default=None)
        table = state.tables[best.seq] if best else []
        now = (best and best.seq, best and best.num_computed_tokens, len(members), list(table))
        if now == self.before:
            return
        self.before = now
        first = max(0, len(table) - len(self.rows))
        title = _("Inside the blocks of {name}").format(name=self.name.full)
        if best and len(members) > 1:
            title = _("{title}, sequence {seq}").format(title=title, seq=best.seq)
        if first:
            title = _("{title}: logical blocks {first} to {last}").format(
                title=title, first=first, last=len(table) - 1
            )
        self.scene.set(self.title, text=title if table else _("{title}: no blocks now").format(title=title))
        for index, row in enumerate(self.rows):
            logical = first + index
            if best is None or logical >= len(table):
                self._clear(row)
            else:
                computed = best.num_computed_tokens - logical * self.block_size
                self._fill(row, logical, table[logical], max(0, min(self.block_size, computed)), best)

    def _clear(self, row: dict[str, int]) -> None:
        self.scene.set(row["logical"], label="", fill="none")
        self.scene.set(row["physical"], label="", stroke="none", subject="")
        self.scene.set(row["frame"], stroke="none")
        self.scene.set(row["bar"], width=0.0)
        for text in ("count", "holds"):
            self.scene.set(row[text], text="", tip="")

    def _fill(
        self, row: dict[str, int], logical: int, block: int, filled: int, sequence: SequenceState
    ) -> None:
        scene = self.scene
        start = logical * self.block_size
        words = self.texts.words(sequence, start, start + filled)
        scene.set(row["logical"], label=f"{logical}", fill=self.name.colour)
        scene.set(row["physical"], label=f"→ {block}", stroke="outline", subject=subjects.block(block))
        scene.set(row["frame"], stroke="outline")
        scene.set(row["bar"], width=rounded(BAR * filled / self.block_size), fill="filled")
        scene.set(row["count"], text=f"{filled}/{self.block_size}")
        scene.set(row["holds"], text=clip(words, 40), tip=words)
