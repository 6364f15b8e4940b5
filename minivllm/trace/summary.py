"""The summary: a trace goes in, the numbers by which a serving engine is judged come out.

    arrival ──queue time──► scheduled ────► first token ─inter-token─► … ─inter-token─► last token
       └───────── time to first token (TTFT) ────┘└──── TPOT = mean of these gaps ─────────┘
       └───────────────────────────── end-to-end latency ─────────────────────────────────┘

One pass over the events; only the latencies are kept, to be sorted at the end. Times are those of the clock
that the trace's header names, so a simulated run is summarised in simulated seconds. Latencies are those of
requests: of several outputs, or beams, that get a token in the same step, the caller sees one step.

Source of the names: vLLM's metrics and `benchmark_serving`. Read next: `perfetto.py`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from math import floor

from minivllm.trace.reader import Trace
from minivllm.trace.replay import ReplayState, SequenceState
from minivllm.trace.timeline import Phase, StepRecord, walk

PEAKS = ("num_used_blocks", "num_saved_blocks", "num_host_blocks")
"""Numbers of a step's record of which the largest is wanted."""


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
    """Of all sequences, pruned beams included."""
    computed_tokens: int
    """Prompt and output tokens that went through the model, again after each preemption."""
    recomputed_tokens: int
    """Tokens whose keys and values were given up by a preemption that did not swap them out."""
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
    num_forks: int = 0
    num_copies: int = 0
    """Blocks that were copied because somebody was about to write to a shared one."""
    peak_saved_blocks: int = 0
    mean_saved_blocks: float = 0.0
    """Blocks that would be needed on top if nothing were shared, averaged over steps with used blocks."""
    mean_saved_share: float = 0.0
    """The same as a share of the blocks that would be needed, 0 … 1."""
    hit_tokens: int = 0
    """Tokens that the prefix cache had, so that they need not be computed."""
    hit_rate: float = 0.0
    """Their share of all tokens that had to be in the cache before the next could be chosen, 0 … 1."""
    num_evicted_blocks: int = 0
    num_swaps: int = 0
    """Preemptions whose blocks went to the swap space; the other preemptions computed their tokens anew."""
    num_blocks_swapped_out: int = 0
    num_blocks_swapped_in: int = 0
    peak_host_blocks: int = 0
    num_abandoned_steps: int = 0

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
            *self._sharing(),
            ("wasted slots", f"{self.mean_waste:.1%} of the slots of used blocks, on average"),
            ("token budget used", f"{self.mean_budget_use:.1%} of max_num_batched_tokens, on average"),
            ("time goes to", self._step_time_in_words()),
        ]

    def _sharing(self) -> list[tuple[str, str]]:
        """What sharing, caching and swapping did: only what happened."""
        happened = [
            (
                self.peak_saved_blocks,
                "saved by sharing",
                f"{self.mean_saved_blocks:,.1f} blocks on average ({self.mean_saved_share:.1%} of what would "
                f"be needed otherwise), at most {self.peak_saved_blocks:,}",
            ),
            (
                self.num_forks,
                "forks",
                f"{self.num_forks:,}, after which {self.num_copies:,} blocks had to be copied",
            ),
            (
                self.hit_tokens,
                "prefix cache",
                f"{self.hit_tokens:,} tokens found and not computed ({self.hit_rate:.1%} of what had to be "
                f"in the cache before a token could be chosen)",
            ),
            (self.num_evicted_blocks, "evicted", f"{self.num_evicted_blocks:,} cached blocks"),
            (
                self.num_swaps,
                "swapped",
                f"{self.num_blocks_swapped_out:,} blocks out, {self.num_blocks_swapped_in:,} back in; "
                f"at most {self.peak_host_blocks:,} in the swap space",
            ),
            (
                self.num_abandoned_steps,
                "failed steps",
                f"{self.num_abandoned_steps:,}; whoever was in them started again",
            ),
        ]
        return [(name, words) for count, name, words in happened if count]

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
        again = f"{self.recomputed_tokens:,} tokens to be computed again"
        if not self.num_swaps:
            return f"{self.num_preemptions} ({again})"
        others = self.num_preemptions - self.num_swaps
        return f"{self.num_preemptions} ({self.num_swaps} swapped out, {others} recomputed: {again})"

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


# A request's id may come again once the first is finished; with its arrival it is unique.
_Request = tuple[str, float]


def _request_of(sequence: SequenceState) -> _Request:
    return sequence.request, sequence.queued_time


@dataclass
class _Tally:
    """Sums and latencies, gathered step by step."""

    num_steps: int = 0
    num_steps_with_blocks: int = 0
    sums: Counter[str] = field(default_factory=Counter)
    peaks: dict[str, int] = field(default_factory=lambda: dict.fromkeys(PEAKS, 0))
    waste: float = 0.0
    saved_share: float = 0.0
    step_seconds: dict[str, float] = field(default_factory=dict)
    queue_times: list[float] = field(default_factory=list)
    inter_token: list[float] = field(default_factory=list)
    scheduled: set[_Request] = field(default_factory=set)
    first_token_time: dict[_Request, float] = field(default_factory=dict)
    last_token_time: dict[_Request, float] = field(default_factory=dict)
    steps_with_tokens: Counter[_Request] = field(default_factory=Counter)

    def add(self, record: StepRecord, state: ReplayState) -> None:
        self.num_steps += 1
        block_size = state.header.block_size
        self.sums.update(
            preemptions=len(record.preempted),
            swaps=sum(event.mode == "swap" for event in record.preempted),
            recomputed_tokens=sum(event.num_computed_tokens for event in record.preempted),
            computed_tokens=sum(item.num_tokens for item in record.batch),
            prefill_tokens=record.num_tokens(Phase.PREFILL),
            output_tokens=len(record.sampled),
            used_blocks=record.num_used_blocks,
            saved_blocks=record.num_saved_blocks,
            forks=len(record.forked),
            copies=len(record.copied),
            hit_tokens=sum(len(e.blocks) * block_size for e in record.shared if e.source == "cache"),
            evicted=sum(len(event.blocks) for event in record.evicted),
            swapped_out=len({host for event in record.swapped_out for host in event.host_blocks}),
            swapped_in=len({host for event in record.swapped_in for host in event.host_blocks}),
            abandoned=len(record.abandoned),
        )
        for name in PEAKS:
            self.peaks[name] = max(self.peaks[name], getattr(record, name))
        slots = record.num_used_blocks * block_size
        if record.num_filled_slots:  # where a trace is cut off, blocks were taken and nothing filled them yet
            self.waste += 1 - record.num_filled_slots / slots
            self.saved_share += record.num_saved_blocks / (record.num_saved_blocks + record.num_used_blocks)
            self.num_steps_with_blocks += 1
        for part, seconds in record.seconds.items():
            self.step_seconds[part] = self.step_seconds.get(part, 0.0) + seconds
        self._note_latencies(record, state)

    def _note_latencies(self, record: StepRecord, state: ReplayState) -> None:
        def request_of(seq: int) -> _Request:
            return _request_of(state.sequences.get(seq) or state.finished[seq])

        for request in dict.fromkeys(request_of(item.seq) for item in record.batch):
            if request not in self.scheduled:
                self.scheduled.add(request)
                self.queue_times.append(record.start - request[1])
        for request in dict.fromkeys(request_of(seq) for seq, _, _ in record.sampled):
            if request in self.last_token_time:
                self.inter_token.append(record.end - self.last_token_time[request])
            self.first_token_time.setdefault(request, record.end)
            self.last_token_time[request] = record.end
            self.steps_with_tokens[request] += 1

    def summary(self, trace: Trace, state: ReplayState) -> RunSummary:
        sums = self.sums
        live = {_request_of(sequence) for sequence in state.sequences.values()}
        ended: dict[_Request, list[SequenceState]] = {}
        for sequence in state.finished.values():
            if (request := _request_of(sequence)) not in live:
                ended.setdefault(request, []).append(sequence)
        finished = {
            request: max(sequence.finished_time or 0.0 for sequence in sequences)
            for request, sequences in ended.items()
            if all(sequence.finish_reason != "abort" for sequence in sequences)
        }
        prompts = {
            _request_of(sequence): sequence.num_prompt_tokens
            for sequence in (*state.finished.values(), *state.sequences.values())
        }
        began = min((queued for _, queued in prompts), default=state.time)
        steps, steps_with_blocks = max(self.num_steps, 1), max(self.num_steps_with_blocks, 1)
        return RunSummary(
            num_steps=self.num_steps,
            duration_seconds=max(0.0, state.time - began),
            num_requests=len(prompts),
            num_finished=len(finished),
            num_aborted=len(ended) - len(finished),
            num_refused=state.num_refused,
            num_preemptions=sums["preemptions"],
            prompt_tokens=sum(prompts.values()),
            output_tokens=sums["output_tokens"],
            computed_tokens=sums["computed_tokens"],
            recomputed_tokens=sums["recomputed_tokens"],
            num_blocks=trace.header.num_blocks,
            peak_used_blocks=self.peaks["num_used_blocks"],
            mean_used_blocks=sums["used_blocks"] / steps,
            mean_waste=self.waste / steps_with_blocks,
            mean_budget_use=sums["computed_tokens"] / (steps * trace.header.max_num_batched_tokens),
            ttft=percentiles(time - queued for (_, queued), time in self.first_token_time.items()),
            tpot=percentiles(self._mean_gap(r) for r, steps in self.steps_with_tokens.items() if steps > 1),
            inter_token=percentiles(self.inter_token),
            end_to_end=percentiles(time - queued for (_, queued), time in finished.items()),
            queue_time=percentiles(self.queue_times),
            step_seconds=self.step_seconds,
            num_forks=sums["forks"],
            num_copies=sums["copies"],
            peak_saved_blocks=self.peaks["num_saved_blocks"],
            mean_saved_blocks=sums["saved_blocks"] / steps_with_blocks,
            mean_saved_share=self.saved_share / steps_with_blocks,
            hit_tokens=sums["hit_tokens"],
            hit_rate=sums["hit_tokens"] / max(sums["hit_tokens"] + sums["prefill_tokens"], 1),
            num_evicted_blocks=sums["evicted"],
            num_swaps=sums["swaps"],
            num_blocks_swapped_out=sums["swapped_out"],
            num_blocks_swapped_in=sums["swapped_in"],
            peak_host_blocks=self.peaks["num_host_blocks"],
            num_abandoned_steps=sums["abandoned"],
        )

    def _mean_gap(self, request: _Request) -> float:
        gaps = self.steps_with_tokens[request] - 1
        return (self.last_token_time[request] - self.first_token_time[request]) / gaps


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
