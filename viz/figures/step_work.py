"""The work of each step's prefill part and decode part, and how fast it was done.

The arithmetic is that of `minivllm/trace/work.py`, each part as if it read the weights alone; here it meets
the clock. A step has one measured time of its model, so the work of both parts is divided by all of it.

Read next: `roofline.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

from minivllm.trace.timeline import Phase, Timeline
from minivllm.trace.work import work_by_phase


@dataclass(frozen=True)
class PhaseWork:
    """One part of one step."""

    step: int
    phase: Phase
    num_sequences: int
    num_tokens: int
    flops: float
    num_bytes: float
    """Read and written by the processor: weights, keys and values."""
    seconds: float
    """The model's time in this step, for both parts together."""

    @property
    def intensity(self) -> float:
        """FLOP per byte."""
        return self.flops / self.num_bytes

    @property
    def achieved(self) -> float:
        """FLOP/s."""
        return self.flops / self.seconds


def timed_work(timeline: Timeline) -> list[PhaseWork]:
    """All parts of all steps whose model's time is known; none if the model's shape is not."""
    model = timeline.trace.header.model
    if model is None:
        return []
    found = []
    for record in timeline.records:
        seconds = record.seconds.get("model", 0.0)
        if seconds <= 0:
            continue
        for phase, work in work_by_phase(model, record).items():
            # A header whose numbers contradict each other has no place on a logarithmic axis.
            if work.flops <= 0 or work.num_bytes <= 0:
                continue
            items = [item for item in record.batch if item.phase is phase]
            num_tokens = sum(item.num_tokens for item in items)
            part = PhaseWork(record.step, phase, len(items), num_tokens, work.flops, work.num_bytes, seconds)
            found.append(part)
    return found
