"""The summary: a trace goes in, the numbers by which a serving engine is judged come out.

    arrival ──queue time──► scheduled ────► first token ─inter-token─► … ─inter-token─► last token
       └───────── time to first token (TTFT) ────┘└──── TPOT = mean of these gaps ─────────┘
       └───────────────────────────── end-to-end latency ─────────────────────────────────┘

One pass over the events; only the latencies are kept, to be sorted at the end. Times are those of the clock
that the trace's header names, so a simulated run is summarised in simulated seconds.

Source of the names: vLLM's metrics and `benchmark_serving`. Read next: `perfetto.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from math import floor

from minivllm.trace.reader import Trace
from minivllm.trace.replay import ReplayState, SequenceState
from minivllm.trace.timeline import StepRecord, walk


@dataclass(frozen=True)
class Percentiles:
    """Of one kind of latency, in seconds; all None if nothing was measured."""

    p50: float | None = None
    p90: float | None = None
    p95: float | None = None
    p99: float | None = None
    count: int = 0


@dataclass(frozen=True)
class RunSummary:
    """What a run did, how fast, and how well it used its memory."""

    num_steps: int
    duration_seconds: float
    """From the first arrival to the end of the last step."""
    num_requests: int
    num_finished: int
    num_aborted: int
    num_refused: int
    num_preemptions: int
    prompt_tokens: int
    output_tokens: int
    computed_tokens: int
    """Prompt and output tokens that went through the model, again after each preemption."""
    recomputed_tokens: int
    """Tokens whose keys and values were given up by a preemption."""
    num_blocks: int
    peak_used_blocks: int
    mean_used_blocks: float
    """Averaged over steps, as the other means."""
    mean_waste: float
    """Share of the slots of used blocks that hold no token, 0 … 1."""
    mean_budget_use: float
    """Share of `max_num_batched_tokens` that a step used, 0 … 1."""
    ttft: Percentiles
    tpot: Percentiles
    inter_token: Percentiles
    end_to_end: Percentiles
    queue_time: Percentiles
    step_seconds: dict[str, float] = field(default_factory=dict)
    """Seconds of all steps together, by part: schedule, model, attention (within model), sample, update."""

    @property
    def output_tokens_per_second(self) -> float | None:
        return self.output_tokens / self.duration_seconds if self.duration_seconds > 0 else None

    @property
    def computed_tokens_per_second(self) -> float | None:
        return self.computed_tokens / self.duration_seconds if self.duration_seconds > 0 else None

    def facts(self) -> list[tuple[str, str]]:
        """Name and value of everything worth printing, in reading order."""
        return [
            ("requests", self._requests_in_words()),
            ("steps", f"{self.num_steps} in {format_seconds(self.duration_seconds)}"),
            ("tokens", f"{self.prompt_tokens:,} in prompts, {self.output_tokens:,} generated"),
            ("throughput", self._throughput_in_words()),
            ("time to first token", _percentiles_in_words(self.ttft)),
            ("time per output token", _percentiles_in_words(self.tpot)),
            ("inter-token latency", _percentiles_in_words(self.inter_token)),
            ("end-to-end latency", _percentiles_in_words(self.end_to_end)),
            ("queue time", _percentiles_in_words(self.queue_time)),
            ("preemptions", self._preemptions_in_words()),
            ("blocks in use", self._blocks_in_words()),
            ("wasted slots", f"{self.mean_waste:.1%} of the slots of used blocks, on average"),
            ("token budget used", f"{self.mean_budget_use:.1%} of max_num_batched_tokens, on average"),
            ("time goes to", self._step_time_in_words()),
        ]

    def lines(self) -> list[str]:
        """The facts as a table of plain text."""
        facts = self.facts()
        width = max(len(name) for name, _ in facts)
        return [f"{name:<{width}}  {value}" for name, value in facts]

    def _requests_in_words(self) -> str:
        parts = [f"{self.num_finished} finished"]
        unfinished = self.num_requests - self.num_finished - self.num_aborted
        for count, word in ((unfinished, "unfinished"), (self.num_aborted, "aborted")):
            if count:
                parts.append(f"{count} {word}")
        refused = f"; {self.num_refused} refused at the door" if self.num_refused else ""
        return f"{self.num_requests} ({', '.join(parts)}){refused}"

    def _throughput_in_words(self) -> str:
        output, computed = self.output_tokens_per_second, self.computed_tokens_per_second
        if output is None or computed is None:
            return "–"
        return f"{output:,.1f} output tokens/s ({computed:,.1f} tokens/s computed, prompts included)"

    def _preemptions_in_words(self) -> str:
        if not self.num_preemptions:
            return "none"
        return f"{self.num_preemptions} ({self.recomputed_tokens:,} tokens to be computed again)"

    def _blocks_in_words(self) -> str:
        share = self.peak_used_blocks / self.num_blocks
        peak = f"peak {self.peak_used_blocks:,} of {self.num_blocks:,} ({share:.0%})"
        return f"{peak}, mean {self.mean_used_blocks:,.1f}"

    def _step_time_in_words(self) -> str:
        # Attention is a part of the model's time, so it stays out of the whole that the shares are of.
        whole = sum(seconds for part, seconds in self.step_seconds.items() if part != "attention")
        if whole <= 0:
            return "–"
        shares = [
            f"{part} {self.step_seconds[part] / whole:.0%}"
            for part in self.step_seconds
            if part != "attention"
        ]
        if attention := self.step_seconds.get("attention"):
            shares.append(f"(attention alone {attention / whole:.0%})")
        return ", ".join(shares[:-1]) + f" {shares[-1]}" if attention else ", ".join(shares)


def summarize(trace: Trace) -> RunSummary:
    """One pass over a trace. Raises `TraceError` if its events contradict each other."""
    tally = _Tally()
    state = ReplayState(trace.header)
    for record, state in walk(trace):
        tally.add(record, state)
    return tally.summary(trace, state)


@dataclass
class _Tally:
    """Sums and latencies, gathered step by step."""

    num_steps: int = 0
    num_preemptions: int = 0
    recomputed_tokens: int = 0
    computed_tokens: int = 0
    used_blocks: int = 0
    peak_used_blocks: int = 0
    waste: float = 0.0
    num_steps_with_blocks: int = 0
    step_seconds: dict[str, float] = field(default_factory=dict)
    queue_times: list[float] = field(default_factory=list)
    inter_token: list[float] = field(default_factory=list)
    first_step_time: dict[int, float] = field(default_factory=dict)
    first_token_time: dict[int, float] = field(default_factory=dict)
    last_token_time: dict[int, float] = field(default_factory=dict)

    def add(self, record: StepRecord, state: ReplayState) -> None:
        self.num_steps += 1
        self.num_preemptions += len(record.preempted)
        self.recomputed_tokens += sum(lost for _, lost in record.preempted)
        self.computed_tokens += sum(item.num_tokens for item in record.batch)
        self.used_blocks += record.num_used_blocks
        self.peak_used_blocks = max(self.peak_used_blocks, record.num_used_blocks)
        if slots := record.num_used_blocks * state.header.block_size:
            self.waste += 1 - record.num_filled_slots / slots
            self.num_steps_with_blocks += 1
        for part, seconds in record.seconds.items():
            self.step_seconds[part] = self.step_seconds.get(part, 0.0) + seconds
        self._note_latencies(record, state)

    def _note_latencies(self, record: StepRecord, state: ReplayState) -> None:
        for item in record.batch:
            sequence = state.sequences.get(item.seq) or state.finished.get(item.seq)
            if sequence and item.seq not in self.first_step_time:
                self.first_step_time[item.seq] = record.start
                self.queue_times.append(record.start - sequence.queued_time)
        for seq, _, _ in record.sampled:
            if seq in self.last_token_time:
                self.inter_token.append(record.end - self.last_token_time[seq])
            self.first_token_time.setdefault(seq, record.end)
            self.last_token_time[seq] = record.end

    def summary(self, trace: Trace, state: ReplayState) -> RunSummary:
        sequences = [*state.finished.values(), *state.sequences.values()]
        ended = [sequence for sequence in state.finished.values() if sequence.finish_reason != "abort"]
        answered = [sequence for sequence in sequences if sequence.seq in self.first_token_time]
        began = min((sequence.queued_time for sequence in sequences), default=state.time)
        budget = max(self.num_steps, 1) * trace.header.max_num_batched_tokens
        return RunSummary(
            num_steps=self.num_steps,
            duration_seconds=max(0.0, state.time - began),
            num_requests=len({(s.request, s.queued_time) for s in sequences}),
            num_finished=len(ended),
            num_aborted=len(state.finished) - len(ended),
            num_refused=state.num_refused,
            num_preemptions=self.num_preemptions,
            prompt_tokens=sum(sequence.num_prompt_tokens for sequence in sequences),
            output_tokens=sum(sequence.num_output_tokens for sequence in sequences),
            computed_tokens=self.computed_tokens,
            recomputed_tokens=self.recomputed_tokens,
            num_blocks=trace.header.num_blocks,
            peak_used_blocks=self.peak_used_blocks,
            mean_used_blocks=self.used_blocks / max(self.num_steps, 1),
            mean_waste=self.waste / max(self.num_steps_with_blocks, 1),
            mean_budget_use=self.computed_tokens / budget,
            ttft=percentiles(self.first_token_time[s.seq] - s.queued_time for s in answered),
            tpot=percentiles(self._mean_gap(s) for s in answered if s.num_output_tokens > 1),
            inter_token=percentiles(self.inter_token),
            end_to_end=percentiles((s.finished_time or 0.0) - s.queued_time for s in ended),
            queue_time=percentiles(self.queue_times),
            step_seconds=self.step_seconds,
        )

    def _mean_gap(self, sequence: SequenceState) -> float:
        gaps = sequence.num_output_tokens - 1
        return (self.last_token_time[sequence.seq] - self.first_token_time[sequence.seq]) / gaps


def percentiles(values: Iterable[float]) -> Percentiles:
    """With linear interpolation between neighbours, as numpy does by default."""
    ordered = sorted(values)
    if not ordered:
        return Percentiles()
    p50, p90, p95, p99 = (_percentile(ordered, share) for share in (0.50, 0.90, 0.95, 0.99))
    return Percentiles(p50=p50, p90=p90, p95=p95, p99=p99, count=len(ordered))


def _percentile(ordered: Sequence[float], share: float) -> float:
    position = share * (len(ordered) - 1)
    below = floor(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (position - below)


def format_seconds(seconds: float | None) -> str:
    """Three digits and a unit that fits: 1.23 s, 45.6 ms, 789 µs."""
    if seconds is None:
        return "–"
    if seconds >= 1 or seconds == 0:
        return f"{seconds:,.3g} s" if seconds < 1000 else f"{seconds:,.0f} s"
    if seconds >= 1e-3:
        return f"{seconds * 1e3:.3g} ms"
    return f"{seconds * 1e6:.3g} µs"


def _percentiles_in_words(latency: Percentiles) -> str:
    if not latency.count:
        return "–"
    p50, p90, p99 = (format_seconds(value) for value in (latency.p50, latency.p90, latency.p99))
    return f"p50 {p50}, p90 {p90}, p99 {p99}"
