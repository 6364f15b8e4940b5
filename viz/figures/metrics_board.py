"""The metrics board: what `/metrics` would have said after each step, one strip for each name.

    vllm:num_requests_running      3      gauges go up and down
      ▁▂▃▃▂▁
    vllm:generation_tokens_total  41      counters only grow: their slope is what `rate()` gives
      ▁▂▃▄▅▆

All strips share the steps along x, so that one sees which of them move together.

Read next: `viz/counted.py`; `viz/views/metrics.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from math import ceil

from minivllm.trace.timeline import Timeline
from viz.counted import Counted, count
from viz.figures.captions import captions
from viz.figures.common import MOST_COLUMNS, WIDE, StepCursor, step_axis_labels
from viz.language import _
from viz.scene import Scene, lines_path, rounded

LEFT = 40.0
TOP, ROW, HEIGHT = 4.0, 62.0, 32.0
"""Units: where the first strip begins, from one strip to the next, and how high a line may rise."""
ALWAYS = (
    ("vllm:num_requests_running", "decode"),
    ("vllm:num_requests_waiting", "preempted"),
    ("vllm:kv_cache_usage_perc", "filled"),
    ("vllm:prompt_tokens_total", "prefill"),
    ("vllm:generation_tokens_total", "decode"),
    ("vllm:request_success_total", "filled"),
)
IF_ANY = (
    ("vllm:num_requests_swapped", "swapped"),
    ("vllm:num_preemptions_total", "preempted"),
    ("vllm:prefix_cache_hits_total", "filled"),
)
"""Names that stay at zero in most runs, and are left out there."""


def metrics_board(
    timeline: Timeline,
    width: float = WIDE,
    screen: str = "",
    counted: Counted | None = None,
    told: Sequence[str] | None = None,
) -> Scene:
    """A strip for each metric, with its number after the step.

    Args:
        counted: the trace, if it was counted before.
        told: its captions, if they were written before.
    """
    counted, told = counted or count(timeline.trace, timeline.records), told or captions(timeline)
    rows = shown(counted)
    bottom = TOP + ROW * len(rows)
    scene = Scene(_("What /metrics would have said"), width, bottom + 24, screen=screen)
    step_width = (width - LEFT - 4) / max(timeline.num_steps, 1)
    for index, (name, fill) in enumerate(rows):
        _strip(
            scene, [moment.values[name] for moment in counted.moments], TOP + ROW * index, step_width, fill
        )
    step_axis_labels(scene, timeline.num_steps, LEFT, bottom + 16)
    cursor = StepCursor(scene, timeline.num_steps, LEFT, TOP, bottom)
    numbers = []
    for index, (name, _fill) in enumerate(rows):  # after the cursor, whose veil would dim them
        y = TOP + ROW * index + 15
        scene.rect(LEFT - 4, y - 15, width - LEFT + 4, 20, fill="page")  # the cursor must not cross the name
        scene.text(LEFT, y, name, size=14)
        numbers.append(scene.text(width - 4, y, "", size=15, anchor="end", weight="bold"))
    for moment, sentence, step in zip(counted.moments, told, range(timeline.num_steps), strict=True):
        scene.begin_step(sentence)
        cursor.move(step)
        for (name, _fill), number in zip(rows, numbers, strict=True):
            scene.set(number, text=in_words(name, moment.values[name]))
    return scene


def shown(counted: Counted) -> list[tuple[str, str]]:
    """Names, each with its colour."""
    return [*ALWAYS, *(row for row in IF_ANY if any(moment.values[row[0]] for moment in counted.moments))]


@lru_cache(maxsize=20_000)
def in_words(name: str, value: float) -> str:
    """A sample's value as a person reads it."""
    return f"{value:.1%}" if name.endswith("_perc") else f"{value:,.6g}" if value % 1 else f"{value:,.0f}"


def _strip(scene: Scene, values: Sequence[float], top: float, step_width: float, fill: str) -> None:
    floor = top + ROW - 8
    most = max(values, default=0.0) or 1.0
    # Of steps that share a column, the largest: counters only grow, and peaks of gauges are not lost.
    size = ceil(len(values) / MOST_COLUMNS)
    points: list[tuple[float, float]] = []
    for first in range(0, len(values), max(size, 1)):
        part = values[first : first + size]
        y = rounded(floor - HEIGHT * max(part) / most)
        points += [(rounded(LEFT + place * step_width), y) for place in (first, first + len(part))]
    if points:
        area = [(points[0][0], floor), *points, (points[-1][0], floor)]
        scene.path(f"{lines_path(area)}Z", fill=fill, opacity=0.25)
        scene.path(lines_path(points), stroke=fill, stroke_width=1.8)
    scene.path(f"M{LEFT:g},{floor:g}L{scene.width:g},{floor:g}", stroke="rule", stroke_width=1.0)
