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
from dataclasses import dataclass, field
from typing import NamedTuple

from minivllm.trace.percentiles import Percentiles, format_seconds, percentiles
from minivllm.trace.rank_times import rank_shares, rank_steps
from minivllm.trace.reader import Trace
from minivllm.trace.replay import ReplayState, SequenceState
from minivllm.trace.run_summary import RunSummary
from minivllm.trace.snapshots import older_requests
from minivllm.trace.timeline import Phase, StepRecord, Timeline, make_timeline, walk

__all__ = ["Percentiles", "RunSummary", "format_seconds", "percentiles", "summarize", "timeline_and_summary"]

PEAKS = ("num_used_blocks", "num_saved_blocks", "num_host_blocks")
"""Numbers of a step's record of which the largest is wanted."""


def summarize(trace: Trace) -> RunSummary:
    """One pass over a trace. Raises `TraceError` if its events contradict each other."""
    tally = _Tally()
    state = ReplayState(trace.header)
    for record, state in walk(trace):
        tally.add(record, state)
    return tally.summary(trace, state)


def timeline_and_summary(trace: Trace) -> tuple[Timeline, RunSummary]:
    """Both in one pass. Raises what `summarize` raises."""
    tally = _Tally()
    last = ReplayState(trace.header)

    def see(record: StepRecord, state: ReplayState) -> None:
        nonlocal last
        last = state
        tally.add(record, state)

    timeline = make_timeline(trace, see)
    return timeline, tally.summary(trace, last)


# A request's id may come again once the first is finished; with its arrival it is unique.
_Request = tuple[str, float]


def _request_of(sequence: SequenceState) -> _Request:
    return sequence.request, sequence.queued_time


@dataclass
class _Latencies:
    """When each request was first scheduled, and got its tokens."""

    queue_times: list[float] = field(default_factory=list)
    inter_token: list[float] = field(default_factory=list)
    scheduled: set[_Request] = field(default_factory=set)
    first_token_time: dict[_Request, float] = field(default_factory=dict)
    last_token_time: dict[_Request, float] = field(default_factory=dict)
    steps_with_tokens: Counter[_Request] = field(default_factory=Counter)
    older: set[_Request] = field(default_factory=set)
    """Those that had got their first token before the trace began."""
    request_of: dict[int, _Request] = field(default_factory=dict)
    """By sequence, of those met so far."""

    def add(self, record: StepRecord, state: ReplayState) -> None:
        if record.snapshot:
            self.scheduled, self.older = older_requests(record.snapshot)
        for request in self._requests_of([item.seq for item in record.batch], state):
            if request not in self.scheduled:
                self.scheduled.add(request)
                self.queue_times.append(record.start - request[1])
        for request in self._requests_of([seq for seq, _, _ in record.sampled], state):
            if request in self.last_token_time:
                self.inter_token.append(record.end - self.last_token_time[request])
            self.first_token_time.setdefault(request, record.end)
            self.last_token_time[request] = record.end
            self.steps_with_tokens[request] += 1

    def _requests_of(self, seqs: list[int], state: ReplayState) -> dict[_Request, None]:
        """Each once, in the order of its first sequence."""
        for seq in seqs:
            if seq not in self.request_of:
                self.request_of[seq] = _request_of(state.sequences.get(seq) or state.finished[seq])
        return dict.fromkeys(self.request_of[seq] for seq in seqs)

    def ttft(self) -> Percentiles:
        known = (item for item in self.first_token_time.items() if item[0] not in self.older)
        return percentiles(time - queued for (_, queued), time in known)

    def tpot(self) -> Percentiles:
        several = (request for request, steps in self.steps_with_tokens.items() if steps > 1)
        return percentiles(self._mean_gap(request) for request in several)

    def _mean_gap(self, request: _Request) -> float:
        gaps = self.steps_with_tokens[request] - 1
        return (self.last_token_time[request] - self.first_token_time[request]) / gaps


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
    latencies: _Latencies = field(default_factory=_Latencies)
    began: float = 0.0
    num_steps_before: int = 0

    def add(self, record: StepRecord, state: ReplayState) -> None:
        self.num_steps += 1
        if record.snapshot:
            self.began, self.num_steps_before = record.snapshot.time, record.snapshot.num_steps
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
            drafts=len(record.drafts),
            draft_tokens=sum(len(item.token_ids) for item in record.drafts),
            accepted_tokens=sum(item.num_accepted for item in record.drafts),
            abandoned=len(record.abandoned),
            rebuilt=len(record.rebuilt),
        )
        for name in PEAKS:
            self.peaks[name] = max(self.peaks[name], getattr(record, name))
        slots = record.num_used_blocks * block_size
        if record.num_filled_slots:  # 0 where a cut-off trace has allocated blocks that no step filled yet
            self.waste += 1 - record.num_filled_slots / slots
            self.saved_share += record.num_saved_blocks / (record.num_saved_blocks + record.num_used_blocks)
            self.num_steps_with_blocks += 1
        for part, seconds in record.seconds.items():
            self.step_seconds[part] = self.step_seconds.get(part, 0.0) + seconds
        self.latencies.add(record, state)

    def summary(self, trace: Trace, state: ReplayState) -> RunSummary:
        sums, latencies, header = self.sums, self.latencies, trace.header
        requests = _Requests.of(state)
        steps, steps_with_blocks = max(self.num_steps, 1), max(self.num_steps_with_blocks, 1)
        return RunSummary(
            num_steps=self.num_steps,
            duration_seconds=max(0.0, state.time - max(requests.first_arrival, self.began)),
            num_requests=len(requests.prompt_tokens),
            num_finished=len(requests.finished_times),
            num_aborted=requests.num_aborted,
            num_failed=requests.num_failed,
            num_refused=state.num_refused,
            num_preemptions=sums["preemptions"],
            prompt_tokens=sum(requests.prompt_tokens.values()),
            output_tokens=sums["output_tokens"],
            computed_tokens=sums["computed_tokens"],
            recomputed_tokens=sums["recomputed_tokens"],
            num_blocks=header.num_blocks,
            peak_used_blocks=self.peaks["num_used_blocks"],
            mean_used_blocks=sums["used_blocks"] / steps,
            mean_waste=self.waste / steps_with_blocks,
            mean_budget_use=sums["computed_tokens"] / (steps * header.max_num_batched_tokens),
            ttft=latencies.ttft(),
            tpot=latencies.tpot(),
            inter_token=percentiles(latencies.inter_token),
            end_to_end=percentiles(time - queued for (_, queued), time in requests.finished_times.items()),
            queue_time=percentiles(latencies.queue_times),
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
            num_drafts=sums["drafts"],
            num_draft_tokens=sums["draft_tokens"],
            num_accepted_tokens=sums["accepted_tokens"],
            num_abandoned_steps=sums["abandoned"],
            num_rebuilds=sums["rebuilt"],
            num_steps_before=self.num_steps_before,
            rank_shares=tuple(rank_shares(rank_steps(trace).values())),
        )


class _Requests(NamedTuple):
    """All requests of a run, and how they ended."""

    prompt_tokens: dict[_Request, int]
    finished_times: dict[_Request, float]
    """Of requests that finished, and were not aborted and did not fail."""
    num_aborted: int
    num_failed: int
    first_arrival: float

    @classmethod
    def of(cls, state: ReplayState) -> _Requests:
        """From the state at the end of the trace."""
        unfinished = {_request_of(sequence) for sequence in state.sequences.values()}
        ended: dict[_Request, list[SequenceState]] = {}
        for sequence in state.finished.values():
            if (request := _request_of(sequence)) not in unfinished:
                ended.setdefault(request, []).append(sequence)
        reasons = {request: {item.finish_reason for item in ended[request]} for request in ended}
        num_failed = sum("error" in own for own in reasons.values())
        finished_times = {
            request: max(sequence.finished_time or 0.0 for sequence in sequences)
            for request, sequences in ended.items()
            if not reasons[request] & {"abort", "error"}
        }
        prompt_tokens = {
            _request_of(sequence): sequence.num_prompt_tokens
            for sequence in (*state.finished.values(), *state.sequences.values())
        }
        first_arrival = min((queued for _, queued in prompt_tokens), default=state.time)
        num_aborted = len(ended) - len(finished_times) - num_failed
        return cls(prompt_tokens, finished_times, num_aborted, num_failed, first_arrival)
