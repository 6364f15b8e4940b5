"""What each rank did when: computing, sending, waiting for others. One process of ranks a lane, on one clock.

    rank 0   │ step 7 ▓▓▓▓▓▓ sum ▒ ▓▓▓▓▓▓ sum ▒▒▒▒ ▓▓▓ logits ▒▒▒ │ (plans the next one)   │ step 8 …
    rank 1   │ step 7 ▓▓▓▓▓▓▓▓▓▓ sum ▒ ▓▓▓▓▓▓▓ sum ▒ ▓▓ logits ▒  │ idle                   │ step 8 …

Every rank notes its own spans (`RankSpans`), rank 0 gets them at the end, and they become a file for
ui.perfetto.dev. What of a step is in no talk is computing. Ranks of one machine share its monotonic clock, so
nothing has to be put right; those of other machines would be off by the difference of the machines' clocks.

Read next: `minivllm/executor/distributed/groups.py`, which notes; `perfetto.py` for the engine's own view.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from minivllm.files import write_file

MOST_SPANS = 100_000
"""A rank remembers its latest ones."""
STEP = "step"
Span = tuple[int, str, float, float]
"""The number of the step, what was done, and when it began and ended, in seconds."""


class RankSpans:
    """Of one rank. Set `step` when one begins."""

    def __init__(self) -> None:
        self.step = 0
        self._spans: deque[Span] = deque(maxlen=MOST_SPANS)

    def note(self, what: str, begin: float, end: float) -> None:
        self._spans.append((self.step, what, begin, end))

    def encoded(self) -> bytes:
        return msgspec.json.encode(list(self._spans))


def decode_spans(message: bytes) -> list[Span]:
    return msgspec.json.decode(message, type=list[Span])


def write_rank_spans(path: str | Path, spans: Mapping[int, Sequence[Span]], places: Sequence[str]) -> None:
    """A file for ui.perfetto.dev, whole or not at all: a process for each rank, named by its place."""
    write_file(path, msgspec.json.encode(to_chrome_trace(spans, places)), "trace")


def to_chrome_trace(spans: Mapping[int, Sequence[Span]], places: Sequence[str]) -> dict[str, Any]:
    """The spans as Chrome trace events, from the first one on, in microseconds."""
    start = min((span[2] for of_rank in spans.values() for span in of_rank), default=0.0)
    records: list[dict[str, Any]] = []
    for rank, of_rank in sorted(spans.items()):
        pid = rank + 1
        name = {"name": f"rank {rank} · {places[rank]}"}
        records.append({"ph": "M", "pid": pid, "tid": 0, "name": "process_name", "args": name})
        for step, what, begin, end in of_rank:
            records.append(
                {
                    "ph": "X",
                    "pid": pid,
                    "tid": 10,
                    "name": f"step {step}" if what == STEP else what,
                    "cat": "step" if what == STEP else "talk",
                    "ts": round((begin - start) * 1e6, 3),
                    "dur": max(round((end - begin) * 1e6, 3), 0.001),
                    "args": {"step": step},
                }
            )
    return {"traceEvents": records, "displayTimeUnit": "ms"}
