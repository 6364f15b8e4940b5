"""The overview: what every request has said so far, how far it is, and what it is doing.

    [A] decode                                   12 of at most 40 tokens
    Once upon a time there was                                    (the prompt)
    a small block of memory that nobody wanted …                  (the answer, growing)
    ▓▓▓▓▓▓▓▓▓▓▓▓▓▓░░░░░░░░                                        (tokens in the cache)

Read next: `viz/views/overview.py`.
"""

from __future__ import annotations

from collections.abc import Mapping

from minivllm.trace.replay import ReplayState, SequenceState
from minivllm.trace.timeline import Phase, StepRecord, Timeline, walk
from viz.figures.captions import captions
from viz.figures.common import NARROW, Name, clip, names_of
from viz.scene import Scene, rounded

MOST_ROWS = 24
ROW = 88.0
PROMPT_CELLS, ANSWER_CELLS = 86, 80
"""What fits into a line; a Chinese character takes two cells."""

DOING = {
    Phase.WAITING: "waits",
    Phase.PREFILL: "prefill",
    Phase.DECODE: "decode",
    Phase.HELD: "held",
    Phase.PREEMPTED: "preempted, waits",
}
ENDED = {"stop": "finished (stop)", "length": "finished (length)", "abort": "aborted"}


def overview(timeline: Timeline) -> list[Scene]:
    """The first requests to arrive, in two scenes that stand side by side where there is room."""
    seqs = list(timeline.sequences)[:MOST_ROWS]
    half = (len(seqs) + 1) // 2 if len(seqs) > 1 else len(seqs)
    columns = [_Column(timeline, part) for part in (seqs[:half], seqs[half:]) if part]
    sentences = captions(timeline)
    for record, state in walk(timeline.trace):
        for column in columns:
            column.scene.begin_step(sentences[record.step])
            column.update(record, state)
    return [column.scene for column in columns]


class _Column:
    """One column of requests."""

    def __init__(self, timeline: Timeline, seqs: list[int]) -> None:
        self.scene = Scene("What each request says so far", NARROW, ROW * len(seqs))
        self.seqs = seqs
        self.names = names_of(timeline)
        self.requests = {seq: timeline.sequences[seq].request for seq in seqs}
        self.settled: set[int] = set()
        """Finished requests, which never change again."""
        self.rows = {seq: self._row(seq, ROW * index) for index, seq in enumerate(seqs)}

    def _row(self, seq: int, y: float) -> dict[str, int]:
        scene, name = self.scene, self.names[self.requests[seq]]
        scene.rect(0, y + 2, NARROW, ROW - 10, fill="panel", radius=6)
        return {
            "chip": scene.rect(
                10,
                y + 10,
                44,
                22,
                stroke="outline",
                label=name.tag,
                label_size=15,
                radius=4,
                tip=f"Request {name.full}",
            ),
            "doing": scene.text(64, y + 26, "not here yet", size=15, weight="bold", fill="muted"),
            "count": scene.text(NARROW - 10, y + 26, "", size=14, anchor="end", fill="muted"),
            "prompt": scene.text(10, y + 48, "", size=14, fill="muted"),
            "answer": scene.text(10, y + 67, "", size=15),
            "frame": scene.rect(10, y + 73, NARROW - 20, 4, fill="none"),
            "cached": scene.rect(10, y + 73, 0, 4, fill="none"),
        }

    def update(self, record: StepRecord, state: ReplayState) -> None:
        phases = {item.seq: item.phase for item in record.batch}
        for seq in self.seqs:
            sequence = state.sequences.get(seq)
            if sequence:
                self._show(seq, sequence, self._phase(sequence, phases, state))
            elif seq in state.finished and seq not in self.settled:
                self.settled.add(seq)
                self._show(seq, state.finished[seq], None)

    def _phase(self, sequence: SequenceState, phases: Mapping[int, Phase], state: ReplayState) -> Phase:
        if sequence.seq in phases:
            return phases[sequence.seq]
        if sequence.seq in state.tables:
            return Phase.HELD
        return Phase.PREEMPTED if sequence.num_preemptions else Phase.WAITING

    def _show(self, seq: int, sequence: SequenceState, phase: Phase | None) -> None:
        row, name = self.rows[seq], self.names[sequence.request]
        reason = sequence.finish_reason or ""
        doing = DOING[phase] if phase else ENDED.get(reason, f"finished ({reason})")
        most = sequence.num_prompt_tokens + sequence.max_tokens
        cached = sequence.num_computed_tokens if phase else 0
        width = NARROW - 20
        self.scene.set(row["chip"], fill=name.colour)
        self.scene.set(row["doing"], text=doing, fill="ink")
        self.scene.set(row["count"], text=_count(sequence, name))
        self.scene.set(row["prompt"], text=clip(_prompt(sequence), PROMPT_CELLS), tip=_prompt(sequence)[:600])
        answer = clip(sequence.text.lstrip(), ANSWER_CELLS, keep_end=True)
        self.scene.set(row["answer"], text=answer)
        self.scene.set(row["frame"], fill="rule" if phase else "none")
        share = rounded(width * cached / most)
        self.scene.set(row["cached"], fill="filled" if phase else "none", width=share)
        if not phase:
            self.scene.set(row["answer"], tip=sequence.text[:2000])


def _count(sequence: SequenceState, name: Name) -> str:
    request = "" if name.tag == name.request else f"id {clip(name.request, 12)} · "
    return (
        f"{request}{sequence.num_prompt_tokens:,} prompt + {sequence.num_output_tokens:,} "
        f"of at most {sequence.max_tokens:,} output tokens"
    )


def _prompt(sequence: SequenceState) -> str:
    if sequence.prompt:
        return sequence.prompt
    ids = " ".join(map(str, sequence.token_ids[: min(40, sequence.num_prompt_tokens)]))
    return f"(only token ids: {ids} …)"
