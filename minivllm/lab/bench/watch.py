"""What a run's events say about it: the parts of a step, the blocks in use, the gaps between tokens.

One walk over the trace, as any reader of a file could make it: the engine is not asked, and what an event
means is known to `minivllm/trace/timeline.py` alone.

Read next: `throughput.py`, which prints it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from minivllm.lab.subjects.workload import Played
from minivllm.trace.events import AnyEvent, Event, TraceHeader
from minivllm.trace.reader import make_trace
from minivllm.trace.timeline import walk

MODEL, ATTENTION, REST = "model without attention", "attention", "rest"


@dataclass
class Watched:
    """The sum of a run, gathered from its events."""

    step_seconds: float = 0.0
    """Time of all steps together, measured from outside."""
    num_steps: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    """Part of a step → its time over all steps; with "rest", adding up to `step_seconds`."""
    token_gaps: list[float] = field(default_factory=list)
    """Seconds between two consecutive tokens of one sequence, over all sequences."""
    peak_blocks: int = 0
    """Most blocks in use after any step."""
    num_preemptions: int = 0
    mean_batch: float = 0.0
    mean_step_tokens: float = 0.0
    waste: float = 0.0

    def shares(self) -> dict[str, float]:
        """`seconds` as parts of the whole, adding up to 1."""
        whole = sum(self.seconds.values())
        return {name: value / whole for name, value in self.seconds.items()}


def watch(events: Sequence[Event], played: Played) -> Watched:
    """Look at the events of one run, its header first, from its first request to its last."""
    header, *others = events
    assert isinstance(header, TraceHeader), "a recorder keeps the header first"
    trace = make_trace(header, list[AnyEvent](others))  # type: ignore[arg-type]
    watched = Watched(step_seconds=played.step_seconds)
    parts: dict[str, float] = {}
    last_token_time: dict[int, float] = {}
    sequences = tokens = cells_held = cells_filled = 0
    for record, _ in walk(trace):
        watched.num_steps += 1
        watched.num_preemptions += len(record.preempted)
        watched.peak_blocks = max(watched.peak_blocks, record.num_used_blocks)
        sequences += len(record.batch)
        tokens += sum(item.num_tokens for item in record.batch)
        cells_held += record.num_used_blocks * header.block_size
        cells_filled += record.num_filled_slots
        for name, seconds in record.seconds.items():
            parts[name] = parts.get(name, 0.0) + seconds
        for seq, _, _ in record.sampled:
            if seq in last_token_time:
                watched.token_gaps.append(record.end - last_token_time[seq])
            last_token_time[seq] = record.end
    watched.seconds = _split(parts, played.step_seconds)
    watched.mean_batch = sequences / max(1, watched.num_steps)
    watched.mean_step_tokens = tokens / max(1, watched.num_steps)
    watched.waste = 1 - cells_filled / cells_held if cells_held else 0.0
    return watched


def _split(parts: dict[str, float], step_seconds: float) -> dict[str, float]:
    """Disjoint parts of the time of all steps, in the order in which a step goes through them."""
    attention = parts.get("attention", 0.0)
    split = {
        "schedule": parts.pop("schedule", 0.0),
        MODEL: max(0.0, parts.pop("model", 0.0) - attention),
        ATTENTION: parts.pop("attention", 0.0),
        **parts,
    }
    split[REST] = max(0.0, step_seconds - sum(split.values()))
    return split
