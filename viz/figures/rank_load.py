"""The load of ranks: how each divides the time of every step of the run.

    rank 0   ▇▇▇▇▇▇▇▆▇▇▇▇      a column a step: computing from the bottom, above it exchanging, then waiting;
             ▁▁▁▁▁▁▁▂▁▁▁▁      what is left empty is idle, up to the beginning of its next step
    rank 1   ▇▇▅▇▇▇▇▇▇▇▇▇

Beside a pipeline's stages stands what they idle if m micro-batches go through them once.

Read next: `rank_ownership.py`.
"""

from __future__ import annotations

from collections import defaultdict

from minivllm.trace.rank_times import Doing, rank_shares
from minivllm.trace.timeline import StepRecord, Timeline
from viz.figures.common import WIDE, StepCursor, folded, step_axis_labels, swatches
from viz.figures.ranks import LOOKS, RankRun, bubble_words, entries, more_ranks, rank_captions, rank_run
from viz.language import _
from viz.scene import Scene, bars_path, rounded

BAND, BARS = 74.0, 52.0


def rank_load(timeline: Timeline, width: float = WIDE, screen: str = "") -> Scene:
    """One band for each rank.

    Raises:
        ValueError: the trace tells of no ranks at work.
    """
    run = rank_run(timeline)
    if run is None:
        raise ValueError("rank_load: this run tells of no ranks at work")
    narrow = width < 800
    left = 88.0 if narrow else 150.0
    scene = Scene(_("What ranks do with the time of each step"), width, 0.0, screen=screen)
    top = swatches(scene, 18, entries(run, narrow=True), 4) + 20
    bottom = top + BAND * len(run.ranks)
    whole = {share.rank: share for share in rank_shares(run.steps.values())}
    for index, rank in enumerate(run.ranks):
        y = top + BAND * index
        share = whole[rank]
        scene.text(4, y + 14, run.name(rank), size=15, weight="bold")
        if not narrow:
            scene.text(4, y + 32, run.place(rank), size=12, fill="muted")
        told = _("computes {share:.0%}").format(share=share.share(Doing.COMPUTE))
        scene.text(4, y + (32 if narrow else 48), told, size=12, fill="muted")
        _bars(scene, timeline, _divided(run, rank), left, y)
    step_axis_labels(scene, timeline.num_steps, left, bottom + 12)
    scene.height = bottom + 20
    notes = [*bubble_words(timeline, run), more_ranks(run)]
    cursor = StepCursor(scene, timeline.num_steps, left, top, bottom - 10)
    for words in filter(None, notes):
        scene.text(4, scene.height + 14, words, size=14)
        scene.height += 20
    scene.height += 4
    for step, sentence in enumerate(rank_captions(timeline, run)):
        scene.begin_step(sentence)
        cursor.move(step)
    return scene


Divided = dict[int, dict[Doing, float]]
"""Step → the share of each thing in the time until the rank's next step."""


def _divided(run: RankRun, rank: int) -> Divided:
    every = ((step, one) for step, times in run.steps.items() for one in times)
    own = {step: one for step, one in every if one.rank == rank}
    numbers = sorted(own)
    found: Divided = {}
    for place, step in enumerate(numbers):
        one = own[step]
        following = own[numbers[place + 1]].start if place + 1 < len(numbers) else one.end
        whole = max(following, one.end) - one.start
        found[step] = {doing: one.seconds(doing) / whole if whole > 0 else 0.0 for doing in LOOKS}
    return found


def _bars(scene: Scene, timeline: Timeline, divided: Divided, left: float, y: float) -> None:
    """The columns of one rank; of several steps in one, their mean."""
    step_width = (scene.width - left - 4) / max(timeline.num_steps, 1)
    gap = 0.12 * step_width if step_width > 4 else 0.0
    bottom = y + BARS
    bars: dict[Doing, list[tuple[float, float, float, float]]] = defaultdict(list)
    for first, last, _record in folded(timeline.records, _length):
        steps = [divided[step] for step in range(first, last + 1) if step in divided]
        x, width = rounded(left + first * step_width), rounded((last - first + 1) * step_width - gap)
        floor = bottom
        for doing in LOOKS:
            height = rounded(BARS * sum(step[doing] for step in steps) / len(steps)) if steps else 0.0
            if height > 0:
                floor -= height
                bars[doing].append((x, rounded(floor), max(0.4, width), height))
    right = scene.width - 4
    scene.rect(left, y, right - left, BARS, fill="free", stroke="outline", stroke_width=0.8)
    for doing, boxes in bars.items():
        scene.path(bars_path(boxes), fill=LOOKS[doing].fill, tip=_(LOOKS[doing].words))
    scene.path(f"M{left:g},{bottom:g}L{right:g},{bottom:g}", stroke="outline", stroke_width=1.0)


def _length(record: StepRecord) -> float:
    return record.end - record.start
