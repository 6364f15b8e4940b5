"""What pictures of ranks have in common: which ranks there are, what each did, how that looks, and captions.

Read next: `rank_lanes.py`, `rank_load.py`, `rank_ownership.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from minivllm.trace.events import RankShape
from minivllm.trace.rank_times import Doing, RankStepTimes, expected_bubble, rank_shares, rank_steps
from minivllm.trace.timeline import Timeline
from viz.figures.captions import captions
from viz.figures.common import listing, plural
from viz.figures.time_axis import unit_for
from viz.language import N_, _, sentences

MOST_LANES = 16
STATED = 4
"""So many ranks are told of in a sentence."""


class Look(NamedTuple):
    """How a lane shows what a rank does: by colour, and by where in the lane it is, and how high."""

    fill: str
    top: float
    height: float
    """Both as shares of the lane."""
    words: str


LOOKS = {
    Doing.COMPUTE: Look("line0", 0.0, 1.0, N_("computes")),
    Doing.ALL_GATHER: Look("line2", 0.2, 0.6, N_("all-gather: sends its parts, gets those of the others")),
    Doing.SEND: Look("line3", 0.0, 0.45, N_("sends")),
    Doing.RECEIVE: Look("line1", 0.55, 0.45, N_("receives")),
    Doing.WAIT: Look("preempted", 0.4, 0.2, N_("waits for another rank")),
}
"""Between two steps a rank is idle, and its lane is empty."""


class RankRun(NamedTuple):
    """A run of several ranks."""

    steps: Mapping[int, Sequence[RankStepTimes]]
    ranks: tuple[int, ...]
    """Those that are drawn."""
    num_ranks: int
    shapes: Mapping[int, RankShape]

    def name(self, rank: int) -> str:
        return _("rank {rank}").format(rank=rank)

    def place(self, rank: int) -> str:
        """Where it is in the grid; nothing if that is not told."""
        shape = self.shapes.get(rank)
        if shape is None:
            return ""
        return _("stage {stage}, tensor {tensor}").format(stage=shape.stage, tensor=shape.tensor)

    @property
    def num_stages(self) -> int:
        return len({shape.stage for shape in self.shapes.values()}) or 1


def rank_run(timeline: Timeline) -> RankRun | None:
    """None if the trace tells of no ranks at work."""
    steps = rank_steps(timeline.trace)
    if not steps:
        return None
    every = sorted({one.rank for step in steps.values() for one in step})
    shapes = {shape.rank: shape for shape in timeline.trace.header.ranks}
    return RankRun(steps, tuple(every[:MOST_LANES]), len(every), shapes)


def entries(run: RankRun, *, narrow: bool) -> list[tuple[str, str, float]]:
    """For `swatches`: what occurs in this run."""
    present = {part.doing for step in run.steps.values() for one in step for part in one.stretches}
    found = [
        (look.fill, _(look.words).split(":")[0].split("：")[0] if narrow else _(look.words), look.height)
        for doing, look in LOOKS.items()
        if doing in present
    ]
    return [*found, ("free", _("idle") if narrow else _("empty: idle, it has no plan"), 1.0)]


def more_ranks(run: RankRun) -> str:
    """That some are left out; or nothing."""
    if run.num_ranks <= len(run.ranks):
        return ""
    words = _("The first {drawn} of {all:,} ranks are drawn.")
    return words.format(drawn=len(run.ranks), all=run.num_ranks)


def duration(seconds: float) -> str:
    """With three figures, in the unit that fits."""
    unit, length = unit_for(seconds)
    return f"{seconds / length:.3g} {unit}"


def rank_captions(timeline: Timeline, run: RankRun) -> list[str]:
    """The usual caption of each step, and what its ranks did."""
    return [
        sentences([sentence, _told(run, run.steps.get(step, ()))])
        for step, sentence in enumerate(captions(timeline))
    ]


def _told(run: RankRun, step: Sequence[RankStepTimes]) -> str:
    if not step:
        return _("What ranks did in this step is not told.")
    parts = []
    for one in step[:STATED]:
        whole = max(one.end - one.start, 1e-9)
        parts.append(
            _("{rank} computes {share:.0%} of its {time}").format(
                rank=run.name(one.rank), share=one.seconds(Doing.COMPUTE) / whole, time=duration(whole)
            )
        )
    talks = plural(max(one.num_talks for one in step), "exchange")
    return _("In this step {ranks}; {talks} with others.").format(ranks=listing(parts, STATED), talks=talks)


def bubble_words(timeline: Timeline, run: RankRun) -> list[str]:
    """What stages compute nothing in, measured and by the formula; nothing without a pipeline."""
    stages = run.num_stages
    if stages < 2:
        return []
    plans = stages if any(record.is_ahead for record in timeline.records) else 1
    measured: dict[int, list[float]] = {}
    for share in rank_shares(run.steps.values()):
        if shape := run.shapes.get(share.rank):
            measured.setdefault(shape.stage, []).append(1 - share.share(Doing.COMPUTE))
    told = [
        _("stage {stage} {share:.0%}").format(stage=stage, share=sum(own) / len(own))
        for stage, own in sorted(measured.items())
    ]
    return [
        _("The bubble, time without computing: {stages}.").format(stages=listing(told, STATED)),
        _(
            "(p − 1) / (m + p − 1) = {share:.0%} for p = {stages} stages and m = {plans} plans in flight."
        ).format(share=expected_bubble(stages, plans), stages=stages, plans=plans),
    ]
