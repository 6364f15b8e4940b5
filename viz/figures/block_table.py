"""The block table: one request's logical blocks, line by line, with what each of them holds.

    logical   physical   filled              holds
          0          7   ████████  16/16     prompt “A large language model writes …”
          1          3   █████░░░  10/16     “ blocks of a page”

To the request its memory looks contiguous: token `t` is in logical block `t // block_size`, at offset
`t % block_size`. Only this table knows where that block really is.

Source: Kwon et al. (SOSP 2023), figure 6. Read next: `memory.py`.
"""

from __future__ import annotations

from minivllm.trace.replay import ReplayState, SequenceState
from minivllm.trace.timeline import Timeline, walk
from viz.figures.block_pool import filled_slots, longest_table
from viz.figures.captions import captions
from viz.figures.common import NARROW, clip, names_of
from viz.scene import Scene, rounded

MOST_ROWS = 12
ROW = 30.0
TOP = 52.0
COLUMNS = {"logical": 0.0, "physical": 78.0, "filled": 166.0, "holds": 330.0}
BAR = 96.0


def block_table(timeline: Timeline, selected: str) -> Scene:
    """The table of request `selected`; its newest blocks if there are too many to show."""
    picture = _BlockTable(timeline, selected)
    sentences = captions(timeline)
    for record, state in walk(timeline.trace):
        picture.scene.begin_step(sentences[record.step])
        picture.note_texts(record.sampled)
        picture.update(state)
    return picture.scene


class _BlockTable:
    def __init__(self, timeline: Timeline, selected: str) -> None:
        self.name = names_of(timeline)[selected]
        self.block_size = timeline.trace.header.block_size
        self.seqs = {seq for seq, sequence in timeline.sequences.items() if sequence.request == selected}
        num_rows = max(1, min(MOST_ROWS, longest_table(timeline, self.seqs)))
        self.texts: list[str] = []
        """What each output token added to the text."""
        self.scene = Scene(f"Block table of request {self.name.tag}", NARROW, TOP + num_rows * ROW + 6)
        self.title = self.scene.text(0, 16, "", size=15, weight="bold")
        for heading, x in COLUMNS.items():
            self.scene.text(x, 40, heading, size=13, fill="muted")
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

    def note_texts(self, sampled: tuple[tuple[int, int, str], ...]) -> None:
        self.texts += [text for seq, _, text in sampled if seq in self.seqs]

    def update(self, state: ReplayState) -> None:
        seq = next((seq for seq in self.seqs if seq in state.tables), None)
        table = state.tables[seq] if seq is not None else []
        first = max(0, len(table) - len(self.rows))
        title = f"Inside the blocks of {self.name.full}"
        if first:
            title += f": logical blocks {first} to {len(table) - 1}"
        self.scene.set(self.title, text=title if table else f"{title}: none held now")
        for index, row in enumerate(self.rows):
            logical = first + index
            if seq is None or logical >= len(table):
                self._clear(row)
            else:
                filled = filled_slots(state, seq, logical)
                self._fill(row, logical, table[logical], filled, state.sequences[seq])

    def _clear(self, row: dict[str, int]) -> None:
        self.scene.set(row["logical"], label="", fill="none")
        self.scene.set(row["physical"], label="", stroke="none")
        self.scene.set(row["frame"], stroke="none")
        self.scene.set(row["bar"], width=0.0)
        for text in ("count", "holds"):
            self.scene.set(row[text], text="", tip="")

    def _fill(
        self, row: dict[str, int], logical: int, block: int, filled: int, sequence: SequenceState
    ) -> None:
        scene = self.scene
        words = self._contents(sequence, logical * self.block_size, logical * self.block_size + filled)
        scene.set(row["logical"], label=f"{logical}", fill=self.name.colour)
        scene.set(row["physical"], label=f"→ {block}", stroke="outline")
        scene.set(row["frame"], stroke="outline")
        scene.set(row["bar"], width=rounded(BAR * filled / self.block_size), fill="filled")
        scene.set(row["count"], text=f"{filled}/{self.block_size}")
        scene.set(row["holds"], text=clip(words, 40), tip=words)

    def _contents(self, sequence: SequenceState, start: int, end: int) -> str:
        """The tokens `start` … `end - 1` as text, or as ids where a model has no tokenizer."""
        split = min(max(sequence.num_prompt_tokens, start), end)
        parts = []
        if start < split:
            text = "".join(sequence.prompt_pieces[start:split])
            ids = " ".join(map(str, sequence.token_ids[start:split]))
            parts.append(f"prompt “{text}”" if text else f"prompt ids {ids}")
        if split < end:
            first = split - sequence.num_prompt_tokens
            text = "".join(self.texts[first : end - sequence.num_prompt_tokens])
            parts.append(f"“{text}”" if text else f"output ids {sequence.token_ids[split:end]}")
        return " · ".join(parts)
