"""What a run's events say about it: the parts of a step, the blocks held, the gaps between tokens.

One pass over the list of events, as any reader of a trace file could make it: the engine is not asked.

Read next: `minivllm/trace/events.py` for the vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from minivllm.bench.workload import Played
from minivllm.trace.events import (
    BatchPlanned,
    BlocksAllocated,
    BlocksFreed,
    Event,
    RequestPreempted,
    StepFinished,
    TokensSampled,
)

MODEL, ATTENTION, REST = "model without attention", "attention", "rest"


@dataclass
class Watched:
    """The sum of a run, gathered from its events."""

    block_size: int
    step_seconds: float = 0.0
    """Time of all steps together, measured from outside."""
    num_steps: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    """Part of a step → its time over all steps; with "rest", adding up to `step_seconds`."""
    token_gaps: list[float] = field(default_factory=list)
    """Seconds between two consecutive tokens of one sequence, over all sequences."""
    peak_blocks: int = 0
    num_preemptions: int = 0
    mean_batch: float = 0.0
    mean_step_tokens: float = 0.0
    waste: float = 0.0

    def shares(self) -> dict[str, float]:
        """`seconds` as parts of the whole, adding up to 1."""
        whole = sum(self.seconds.values())
        return {name: value / whole for name, value in self.seconds.items()}


def watch(events: Iterable[Event], played: Played, block_size: int) -> Watched:
    """Fold the events of one run that was recorded from its first request to its last."""
    watched = Watched(block_size, step_seconds=played.step_seconds)
    parts: dict[str, float] = {}
    books = _Books()
    for event in events:
        books.note(event, block_size)
        if isinstance(event, StepFinished):
            watched.num_steps += 1
            watched.token_gaps += books.gaps_until(event.time)
            for name, seconds in event.seconds.items():
                parts[name] = parts.get(name, 0.0) + seconds
    watched.seconds = _split(parts, played.step_seconds)
    watched.peak_blocks = books.peak_blocks
    watched.num_preemptions = books.num_preemptions
    watched.mean_batch = books.sequences_computed / max(1, watched.num_steps)
    watched.mean_step_tokens = books.tokens_computed / max(1, watched.num_steps)
    watched.waste = 1 - books.cells_filled / books.cells_held if books.cells_held else 0.0
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


class _Books:
    """Who holds which blocks, how full they are, and when each sequence last got a token."""

    def __init__(self) -> None:
        self.blocks: dict[int, int] = {}
        self.tokens: dict[int, int] = {}
        self.last_token_time: dict[int, float] = {}
        self.sampled_now: list[int] = []
        self.used = self.peak_blocks = self.num_preemptions = 0
        self.sequences_computed = self.tokens_computed = 0
        self.cells_held = self.cells_filled = 0

    def note(self, event: Event, block_size: int) -> None:
        if isinstance(event, BlocksAllocated):
            self.blocks[event.seq] = self.blocks.get(event.seq, 0) + len(event.blocks)
            self.used += len(event.blocks)
            self.peak_blocks = max(self.peak_blocks, self.used)
        elif isinstance(event, BlocksFreed):
            self.used -= self.blocks.pop(event.seq)
            self.tokens.pop(event.seq, None)
        elif isinstance(event, BatchPlanned):
            self._note_batch(event, block_size)
        elif isinstance(event, TokensSampled):
            self.sampled_now = [seq for seq, _, _ in event.items]
        elif isinstance(event, RequestPreempted):
            self.num_preemptions += 1

    def gaps_until(self, time: float) -> list[float]:
        """The gaps that the tokens of the step ending at `time` close."""
        gaps = []
        for seq in self.sampled_now:
            if seq in self.last_token_time:
                gaps.append(time - self.last_token_time[seq])
            self.last_token_time[seq] = time
        self.sampled_now = []
        return gaps

    def _note_batch(self, event: BatchPlanned, block_size: int) -> None:
        """The moment of most blocks: the step's own are taken, those of the finished not yet returned."""
        self.sequences_computed += len(event.items)
        for seq, start, count in event.items:
            self.tokens_computed += count
            self.tokens[seq] = start + count
        self.cells_held += self.used * block_size
        self.cells_filled += sum(self.tokens.values())
