"""The card of every request: what it asked for, what became of it, and its phases with their steps.

Read next: `viz/subjects.py`; `viz/player/panel.js`, which shows it.
"""

from __future__ import annotations

from typing import Any

from minivllm.text import printable
from minivllm.trace.replay import SequenceState
from minivllm.trace.timeline import Span, Timeline
from viz.figures.common import clip, names_of
from viz.figures.scheduler_gantt import LOOKS
from viz.language import _

MOST_TEXT = 400
MOST_SPANS = 200
"""Of each request; one that was preempted more often has a card that says so."""


def request_cards(timeline: Timeline) -> list[dict[str, Any]]:
    """One for each request, in order of arrival."""
    sequences: dict[str, list[SequenceState]] = {}
    for sequence in timeline.sequences.values():
        sequences.setdefault(sequence.request, []).append(sequence)
    return [
        {
            "tag": name.tag,
            "id": printable(request),
            "colour": name.colour,
            "prompt": _clipped(sequences[request][0].prompt or ""),
            "output": _clipped(sequences[request][0].text),
            "facts": _facts(sequences[request]),
            **dict(zip(("first", "last"), life(timeline, request), strict=True)),
            "history": [[span.first, _phase(span)] for span in timeline.spans[request][:MOST_SPANS]],
        }
        for request, name in names_of(timeline).items()
    ]


def life(timeline: Timeline, request: str) -> tuple[int, int]:
    """The first and the last step of a request; (0, 0) if it was aborted between two steps."""
    spans = timeline.spans[request]
    return min((span.first for span in spans), default=0), max((span.last for span in spans), default=0)


def lives_at(timeline: Timeline, request: str, step: int) -> bool:
    """As the player sees it."""
    first, last = life(timeline, request)
    return first <= step <= last


def _clipped(text: str) -> str:
    return printable(clip(text, MOST_TEXT))


def _facts(sequences: list[SequenceState]) -> str:
    first = sequences[0]
    words = _("{prompt} prompt tokens, {output} of at most {most} output tokens").format(
        prompt=f"{first.num_prompt_tokens:,}",
        output=f"{first.num_output_tokens:,}",
        most=f"{first.max_tokens:,}",
    )
    if len(sequences) > 1:
        words += ", " + _("{count} sequences").format(count=f"{len(sequences):,}")
    return words


def _phase(span: Span) -> str:
    words = _(LOOKS[span.phase][2]).lstrip("×↑ ")
    count = span.last - span.first + 1
    return f"{words} · " + (_("1 step") if count == 1 else _("{count} steps").format(count=f"{count:,}"))
