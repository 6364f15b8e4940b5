"""What an engine has done since it started, counted from its events, and from nothing else.

    engine ── events ──► EngineCounts.emit ──► counters, and histograms of requests' times and sizes

A step is counted when it is over, with its time: so the numbers are those that a trace of the same run gives
(`minivllm/trace/summary.py`). A request that has ended is forgotten: a server may run for months. Only the
engine's thread writes here; who reads sees numbers that are at most one step old.

Source of the names: vLLM's metrics. Read next: `metrics.py`, which shows them to Prometheus.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from minivllm.trace.events import (
    BatchPlanned,
    BlocksShared,
    Event,
    RequestPreempted,
    RequestQueued,
    RequestRefused,
    RequestScheduled,
    SequenceFinished,
    SequenceForked,
    StateRebuilt,
    StepAbandoned,
    StepFinished,
    StepStarted,
    TokensSampled,
    TraceHeader,
)

_TTFT = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80)
_TOKEN = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80)
_REQUEST = (0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680)
_FINE = (0.0002, 0.0005, 0.001, 0.002, 0.005)
"""Below vLLM's buckets: a token of a small model takes less than 10 ms on a CPU, too."""
_POWERS = tuple(2**power for power in range(15))

BUCKETS: dict[str, tuple[float, ...]] = {
    "time_to_first_token_seconds": (*_TTFT, 160, 640, 2560),
    "inter_token_latency_seconds": (*_FINE, *_TOKEN),
    "request_time_per_output_token_seconds": (*_FINE, *_TOKEN),
    "e2e_request_latency_seconds": (*_FINE, 0.01, 0.05, 0.1, *_REQUEST),
    "request_queue_time_seconds": (*_FINE, 0.01, 0.05, 0.1, *_REQUEST),
    "request_inference_time_seconds": (*_FINE, 0.01, 0.05, 0.1, *_REQUEST),
    "request_prefill_time_seconds": (*_FINE, 0.01, 0.05, 0.1, *_REQUEST),
    "request_decode_time_seconds": (*_FINE, 0.01, 0.05, 0.1, *_REQUEST),
    "iteration_tokens_total": _POWERS,
    "request_prompt_tokens": _POWERS,
    "request_generation_tokens": _POWERS,
    "request_params_max_tokens": _POWERS,
    "request_params_n": (1, 2, 5, 10, 20),
    "request_num_preemptions": (0, 1, 2, 5, 10, 20),
}
"""Upper edges, by the name of what is measured."""


class Tally:
    """A histogram: how many values were at most each of the edges, and their sum."""

    def __init__(self, edges: Sequence[float]) -> None:
        self.edges = edges
        self.counts = [0] * (len(edges) + 1)
        self.sum = 0.0

    def add(self, value: float, times: int = 1) -> None:
        self.counts[bisect_left(self.edges, value)] += times
        self.sum += value * times

    @property
    def num_values(self) -> int:
        return sum(self.counts)


@dataclass(slots=True)
class _Request:
    """What must be remembered of a request until it ends."""

    arrival: float
    num_prompt_tokens: int
    max_tokens: int
    num_outputs: int
    sequences: set[int]
    """Those that go on."""
    all_sequences: list[int] = field(default_factory=list)
    num_generated: int = 0
    num_preemptions: int = 0
    scheduled: float | None = None
    first_token: float | None = None
    last_token: float = 0.0
    num_steps_with_tokens: int = 0
    reason: str = ""
    finished: float = 0.0


class EngineCounts:
    """A sink of events (`minivllm/trace/tee.py`).

    Attributes:
        counters: by vLLM's names, without the prefix.
        finished: requests that have ended, by reason.
        tallies: by the names of `BUCKETS`.
        header: of the run; None before it begins.
    """

    wants_texts = False

    def __init__(self) -> None:
        self.counters: Counter[str] = Counter()
        self.finished: Counter[str] = Counter(dict.fromkeys(("stop", "length", "abort", "error"), 0))
        self.tallies = {name: Tally(edges) for name, edges in BUCKETS.items()}
        self.header: TraceHeader | None = None
        self._requests: dict[str, _Request] = {}
        self._request_of: dict[int, str] = {}
        self._step_start = 0.0
        self._is_stepping = False
        self._in_step: Counter[str] = Counter()  # tokens that requests have got in this step
        self._num_batched = 0
        self._ended: list[str] = []  # requests that are over with this step
        self._handlers: dict[type[Event], Callable[[Any], None]] = {
            TraceHeader: self._on_header,
            RequestQueued: self._on_queued,
            RequestRefused: self._on_refused,
            StepStarted: self._on_step_started,
            BlocksShared: self._on_blocks_shared,
            RequestScheduled: self._on_scheduled,
            RequestPreempted: self._on_preempted,
            SequenceForked: self._on_forked,
            BatchPlanned: self._on_batch,
            TokensSampled: self._on_tokens,
            SequenceFinished: self._on_sequence_finished,
            StepFinished: self._on_step_finished,
            StepAbandoned: self._on_step_abandoned,
            StateRebuilt: self._on_rebuilt,
        }

    def emit(self, event: Event) -> None:
        if handler := self._handlers.get(type(event)):
            handler(event)

    def _on_header(self, event: TraceHeader) -> None:
        self.header = event

    def _on_queued(self, event: RequestQueued) -> None:
        self._requests[event.request] = _Request(
            event.time,
            len(event.prompt_token_ids),
            event.max_tokens,
            event.num_outputs,
            {event.seq},
            [event.seq],
        )
        self._request_of[event.seq] = event.request

    def _on_refused(self, event: RequestRefused) -> None:
        self.counters["requests_refused"] += 1

    def _on_step_started(self, event: StepStarted) -> None:
        self._step_start = event.time
        self._is_stepping = True
        self._num_batched = 0

    def _on_blocks_shared(self, event: BlocksShared) -> None:
        if event.source == "cache" and self.header:
            self.counters["prefix_cache_hits"] += len(event.blocks) * self.header.block_size

    def _on_scheduled(self, event: RequestScheduled) -> None:
        request = self._requests[event.request]
        if self.header and self.header.prefix_cache:
            self.counters["prefix_cache_queries"] += request.num_prompt_tokens + request.num_generated

    def _on_preempted(self, event: RequestPreempted) -> None:
        self.counters["num_preemptions"] += 1
        self._requests[event.request].num_preemptions += 1

    def _on_forked(self, event: SequenceForked) -> None:
        request = self._requests[event.request]
        request.sequences.add(event.child)
        request.all_sequences.append(event.child)
        self._request_of[event.child] = event.request

    def _on_batch(self, event: BatchPlanned) -> None:
        self._num_batched = sum(count for _, _, count in event.items)
        for seq, _, _ in event.items:
            request = self._requests[self._request_of[seq]]
            if request.scheduled is None:
                request.scheduled = self._step_start

    def _on_tokens(self, event: TokensSampled) -> None:
        self._in_step.update(self._request_of[seq] for seq, _, _ in event.items)
        self.counters["generation_tokens"] += len(event.items)

    def _on_sequence_finished(self, event: SequenceFinished) -> None:
        request = self._requests[self._request_of[event.seq]]
        request.sequences.discard(event.seq)
        if event.reason != "pruned":
            request.reason, request.finished = event.reason, event.time
        if not request.sequences:
            self._ended.append(self._request_of[event.seq])
        if not self._is_stepping:  # aborted between two steps
            self._end_all()

    def _on_step_finished(self, event: StepFinished) -> None:
        for name, count in self._in_step.items():
            if request := self._requests.get(name):  # an interrupt may have ended it
                self._note_tokens(request, count, event.time)
        self._in_step.clear()
        self.counters["steps"] += 1
        self.tallies["iteration_tokens_total"].add(self._num_batched)
        self._is_stepping = False
        self._end_all()

    def _on_step_abandoned(self, event: StepAbandoned) -> None:
        self.counters["steps_failed"] += 1
        self._is_stepping = False

    def _on_rebuilt(self, event: StateRebuilt) -> None:
        """Requests that the engine no longer has ended while nothing was told."""
        self._end_all()
        there = {request.request: request for request in event.requests}
        for name in [name for name in self._requests if name not in there]:
            self._end(name)
        self._request_of.clear()
        for name, rebuilt in there.items():
            sequences = {sequence.seq for sequence in rebuilt.sequences}
            request = self._requests.setdefault(
                name,
                _Request(
                    rebuilt.time, rebuilt.num_prompt_tokens, rebuilt.max_tokens, len(sequences), sequences
                ),
            )
            request.sequences = sequences
            request.all_sequences = [*sequences]
            self._request_of |= dict.fromkeys(sequences, name)
        self._is_stepping = False

    def _note_tokens(self, request: _Request, count: int, now: float) -> None:
        if request.first_token is None:
            request.first_token = now
            self.tallies["time_to_first_token_seconds"].add(now - request.arrival)
            self.counters["prompt_tokens"] += request.num_prompt_tokens
        else:
            self.tallies["inter_token_latency_seconds"].add(now - request.last_token)
        request.last_token = now
        request.num_generated += count
        request.num_steps_with_tokens += 1

    def _end_all(self) -> None:
        ended, self._ended = self._ended, []
        for name in ended:
            self._end(name)

    def _end(self, name: str) -> None:
        """A request is over: count it, and forget it."""
        request = self._requests.pop(name)
        self.finished[request.reason or "abort"] += 1
        for seq in request.all_sequences:
            self._request_of.pop(seq, None)
        self._tally(
            request_prompt_tokens=request.num_prompt_tokens,
            request_generation_tokens=request.num_generated,
            request_params_n=request.num_outputs,
            request_params_max_tokens=request.max_tokens,
            request_num_preemptions=request.num_preemptions,
        )
        if request.reason in ("", "abort"):
            return
        self._tally(e2e_request_latency_seconds=request.finished - request.arrival)
        if request.scheduled is not None and request.first_token is not None:
            self._tally(
                request_queue_time_seconds=request.scheduled - request.arrival,
                request_prefill_time_seconds=request.first_token - request.scheduled,
                request_decode_time_seconds=request.last_token - request.first_token,
                request_inference_time_seconds=request.last_token - request.scheduled,
            )
            if request.num_steps_with_tokens > 1:
                mean = (request.last_token - request.first_token) / (request.num_steps_with_tokens - 1)
                self._tally(request_time_per_output_token_seconds=mean)

    def _tally(self, **values: float) -> None:
        for name, value in values.items():
            self.tallies[name].add(value)
