"""The overview: what every request has said so far, how far it is, and what it is doing.

    [A] decode                                   12 of at most 40 tokens
    Once upon a time there was                                    (the prompt)
    a small block of memory that was always full …                (the answer, growing)
    ▓▓▓▓▓▓▓▓▓▓▓▓▓▓░░░░░░░░                                        (tokens in the cache)

Of a request with several sequences the first is quoted, in a search the best.

Read next: `viz/views/overview.py`.
"""

from __future__ import annotations

from collections.abc import Mapping

from minivllm.trace.replay import ReplayState, SequenceState
from minivllm.trace.timeline import Phase, StepRecord, Timeline, walk_again
from viz import subjects
from viz.figures.captions import captions
from viz.figures.common import NARROW, PHONE, Name, clip, names_of
from viz.figures.search import search_of, searched_requests
from viz.language import N_, _
from viz.scene import Scene, rounded

MOST_ROWS = 24
ROW = 88.0
PROMPT_CELLS, ANSWER_CELLS = 86, 80
"""What fits into a line of `NARROW` units; a Chinese character takes two cells."""

DOING = {
    Phase.WAITING: N_("waits"),
    Phase.PREFILL: N_("prefill"),
    Phase.DECODE: N_("decode"),
    Phase.PARKED: N_("parked"),
    Phase.PREEMPTED: N_("preempted, waits"),
    Phase.SWAPPED: N_("swapped out, waits"),
}
ENDED = {
    "stop": N_("finished (stop)"),
    "length": N_("finished (length)"),
    "abort": N_("aborted"),
    "error": N_("failed"),
    "pruned": N_("pruned"),
}


def overview(timeline: Timeline) -> list[Scene]:
    """The first requests to arrive: two scenes side by side, and one of larger type for a narrow screen."""
    requests = list(timeline.spans)[:MOST_ROWS]
    half = (len(requests) + 1) // 2 if len(requests) > 1 else len(requests)
    columns = [_Column(timeline, part, NARROW, "half") for part in (requests[:half], requests[half:]) if part]
    columns.append(_Column(timeline, requests, PHONE, "narrow"))
    sentences = captions(timeline)
    for record, state in walk_again(timeline):
        for column in columns:
            column.scene.begin_step(sentences[record.step])
            column.update(record, state)
    return [column.scene for column in columns]


class _Column:
    """One column of requests."""

    def __init__(self, timeline: Timeline, requests: list[str], width: float, screen: str) -> None:
        self.width, share = width, width / NARROW
        self.prompt_cells, self.answer_cells = int(share * PROMPT_CELLS), int(share * ANSWER_CELLS)
        title = _("What each request says so far")
        self.scene = Scene(title, width, ROW * len(requests), screen=screen)
        self.names = names_of(timeline)
        self.settled: set[str] = set()
        """Finished requests, which never change again."""
        self.ended: dict[str, list[SequenceState]] = {}
        """The outputs of a request that have ended already."""
        self.preempted: dict[str, Phase] = {}
        self.rows = {request: self._row(request, ROW * index) for index, request in enumerate(requests)}
        searches = {request: search_of(timeline, request) for request in searched_requests(timeline)}
        self.searches = {request: search for request, search in searches.items() if request in self.rows}

    def _row(self, request: str, y: float) -> dict[str, int]:
        scene, name = self.scene, self.names[request]
        scene.rect(0, y + 2, self.width, ROW - 10, fill="panel", radius=6)
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
                tip=_("Request {full}").format(full=name.full),
                subject=subjects.request(name.number),
            ),
            "doing": scene.text(64, y + 26, _("not here yet"), size=15, weight="bold", fill="muted"),
            "count": scene.text(self.width - 10, y + 26, "", size=14, anchor="end", fill="muted"),
            "prompt": scene.text(10, y + 48, "", size=14, fill="muted"),
            "answer": scene.text(10, y + 67, "", size=15),
            "frame": scene.rect(10, y + 73, self.width - 20, 4, fill="none"),
            "cached": scene.rect(10, y + 73, 0, 4, fill="none"),
        }

    def update(self, record: StepRecord, state: ReplayState) -> None:
        phases: dict[str, Phase] = {}
        for item in record.batch:
            if phases.get(item.request) is not Phase.PREFILL:
                phases[item.request] = item.phase
        for event in record.preempted:
            self.preempted[event.request] = Phase.SWAPPED if event.mode == "swap" else Phase.PREEMPTED
        for sequence in record.finished:
            self.ended.setdefault(sequence.request, []).append(sequence)
        for request, row in self.rows.items():
            members = [state.sequences[seq] for seq in state.members.get(request, ())]
            if members:
                best = min(members, key=lambda s: (-(s.beam_score or 0.0), s.seq))
                self._show(row, best, len(members), self._phase(request, phases, state))
            elif request in self.ended and request not in self.settled:
                self.settled.add(request)
                self._show_end(request, row, record.step)

    def _phase(self, request: str, phases: Mapping[str, Phase], state: ReplayState) -> Phase:
        if request in phases:
            return phases[request]
        if any(seq in state.tables for seq in state.members[request]):
            return Phase.PARKED
        return self.preempted.get(request, Phase.WAITING)

    def _show(self, row: dict[str, int], sequence: SequenceState, count: int, phase: Phase) -> None:
        name = self.names[sequence.request]
        most = sequence.num_prompt_tokens + sequence.max_tokens
        width = self.width - 20
        doing = _(DOING[phase])
        if count > 1:
            doing = _("{doing}, {count} sequences").format(doing=doing, count=count)
        self.scene.set(row["chip"], fill=name.colour)
        self.scene.set(row["doing"], text=doing, fill="ink")
        self.scene.set(row["count"], text=self._count(sequence, name, sequence.num_output_tokens))
        self.scene.set(
            row["prompt"], text=clip(_prompt(sequence), self.prompt_cells), tip=_prompt(sequence)[:600]
        )
        answer = clip(sequence.text.lstrip(), self.answer_cells, keep_end=True)
        self.scene.set(row["answer"], text=answer)
        self.scene.set(row["frame"], fill="rule")
        share = rounded(width * sequence.num_computed_tokens / most)
        self.scene.set(row["cached"], fill="filled", width=share)

    def _show_end(self, request: str, row: dict[str, int], step: int) -> None:
        """Everything that a request has come to; pruned beams are not part of it."""
        outputs = [s for s in self.ended[request] if s.finish_reason != "pruned"] or self.ended[request]
        first = outputs[0]
        reason = outputs[-1].finish_reason or ""
        texts = [sequence.text for sequence in sorted(outputs, key=lambda s: s.seq)]
        doing = _(ENDED[reason]) if reason in ENDED else _("finished ({reason})").format(reason=reason)
        num_tokens = first.num_output_tokens
        if search := self.searches.get(request):
            best = search.best(search.column_at(step))
            if best is not None:
                texts = [search.text_to(best)]
                num_tokens = search.nodes[best].column + 1
                doing = _("{doing}, the best of its search").format(doing=doing)
        elif len(outputs) > 1:
            doing = _("{doing}, {count} outputs").format(doing=doing, count=len(outputs))
        self.scene.set(row["chip"], fill=self.names[request].colour)
        self.scene.set(row["doing"], text=doing, fill="ink")
        self.scene.set(row["count"], text=self._count(first, self.names[request], num_tokens))
        self.scene.set(row["prompt"], text=clip(_prompt(first), self.prompt_cells), tip=_prompt(first)[:600])
        said = "\n—\n".join(text.strip() for text in texts)
        answer = clip(texts[0].lstrip(), self.answer_cells, keep_end=True)
        self.scene.set(row["answer"], text=answer, tip=said[:2000])
        self.scene.set(row["frame"], fill="none")
        self.scene.set(row["cached"], fill="none", width=0.0)

    def _count(self, sequence: SequenceState, name: Name, num_output_tokens: int) -> str:
        if self.width < NARROW:
            return _("{prompt_tokens} + {outputs} of {max_tokens:,} tokens").format(
                prompt_tokens=f"{sequence.num_prompt_tokens:,}",
                outputs=f"{num_output_tokens:,}",
                max_tokens=sequence.max_tokens,
            )
        return _count(sequence, name, num_output_tokens)


def _count(sequence: SequenceState, name: Name, num_output_tokens: int) -> str:
    request = "" if name.tag == name.request else _("id {request} · ").format(request=clip(name.request, 12))
    return _(
        "{request}{prompt_tokens:,} prompt + {output_tokens:,} of at most {max_tokens:,} output tokens"
    ).format(
        request=request,
        prompt_tokens=sequence.num_prompt_tokens,
        output_tokens=num_output_tokens,
        max_tokens=sequence.max_tokens,
    )


def _prompt(sequence: SequenceState) -> str:
    if sequence.prompt:
        return sequence.prompt
    ids = " ".join(map(str, sequence.token_ids[: min(40, sequence.num_prompt_tokens)]))
    return _("(only token ids: {ids} …)").format(ids=ids)
