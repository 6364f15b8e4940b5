"""What an engine has done since it started, counted from its events, and from nothing else.

    engine ── events ──┬──► EngineCounts.emit ──► counters, and tallies of requests' times and sizes
    trace  ── events ──┘                            │
                                                    ├──► `/metrics` of the server, for Prometheus
                                                    └──► the dashboard's page of metrics

So the numbers of a server are those of a trace of the same run: it is the same code that counts. A step is
counted when it is over, and not if it fails. A request that has ended is forgotten: a server may run for
months. Only the engine's thread writes here; a reader sees numbers that are at most one step old.

Source of the names: vLLM's metrics. Read next: `tallies.py`; `minivllm/server/metrics.py`, which shows them
to Prometheus.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from minivllm.trace.events import (
    BatchPlanned,
    BlocksShared,
    BlocksSwappedIn,
    DraftsVerified,
    Event,
    RequestPreempted,
    RequestQueued,
    RequestRefused,
    RequestScheduled,
    SequenceFinished,
    SequenceForked,
    SnapshotTaken,
    StateRebuilt,
    StepAbandoned,
    StepFinished,
    StepStarted,
    TokensSampled,
    TraceHeader,
)
from minivllm.trace.request_times import RequestTimes
from minivllm.trace.snapshots import older_requests
from minivllm.trace.tallies import BUCKETS, Tally
from minivllm.trace.work import BatchShape, batch_shape, work_of

LABELLED = {
    "request_success": ("stop", "length", "abort", "error"),
    "prompt_tokens_by_source": ("local_compute", "local_cache_hit"),
    "prompt_tokens_cached_by_source": ("device",),
    "spec_decode_num_accepted_tokens_per_pos": (),
}
"""Counters with one more label, and the values of it that are shown from the start."""


@dataclass(slots=True)
class _Sequence:
    request: str
    num_tokens: int


class EngineCounts:
    """A sink of events (`tee.py`).

    Args:
        on_end: is told of each request that is over, with its name. It must not raise.

    Attributes:
        counters: by vLLM's names, without the prefix.
        labelled: counters with one more label, by its values: the names of `LABELLED`.
        tallies: by the names of `BUCKETS`.
        header: of the run; None before it begins.
    """

    wants_texts = False

    def __init__(self, on_end: Callable[[str, RequestTimes], None] | None = None) -> None:
        self._on_end = on_end
        self.counters: Counter[str] = Counter()
        self.labelled = {name: Counter(dict.fromkeys(values, 0)) for name, values in LABELLED.items()}
        self.tallies = {name: Tally(edges) for name, edges in BUCKETS.items()}
        self.header: TraceHeader | None = None
        self._requests: dict[str, RequestTimes] = {}
        self._sequences: dict[int, _Sequence] = {}
        self._step_start = 0.0
        self._is_stepping = False
        self._swapped_in: set[str] = set()  # requests whose blocks came back in this step
        self._in_step: Counter[str] = Counter()  # tokens that requests have got in this step
        self._looked_up: Counter[str] = Counter()  # in the prefix cache, for this step
        self._batch: BatchPlanned | None = None
        self._ended: list[str] = []  # requests that are over with this step
        self._handlers: dict[type[Event], Callable[[Any], None]] = {
            TraceHeader: self._on_header,
            RequestQueued: self._on_queued,
            RequestRefused: self._on_refused,
            StepStarted: self._on_step_started,
            BlocksShared: self._on_blocks_shared,
            BlocksSwappedIn: self._on_swapped_in,
            RequestScheduled: self._on_scheduled,
            RequestPreempted: self._on_preempted,
            SequenceForked: self._on_forked,
            BatchPlanned: self._on_batch,
            DraftsVerified: self._on_drafts,
            TokensSampled: self._on_tokens,
            SequenceFinished: self._on_sequence_finished,
            StepFinished: self._on_step_finished,
            StepAbandoned: self._on_step_abandoned,
            StateRebuilt: self._on_rebuilt,
            SnapshotTaken: self._on_snapshot,
        }

    @property
    def finished(self) -> Counter[str]:
        """Requests that have ended, by reason."""
        return self.labelled["request_success"]

    def emit(self, event: Event) -> None:
        if handler := self._handlers.get(type(event)):
            handler(event)

    def _on_header(self, event: TraceHeader) -> None:
        self.header = event

    def _on_queued(self, event: RequestQueued) -> None:
        if event.request in self._ended:  # in the step that goes on, since plans are in flight
            self._ended.remove(event.request)
            self._end(event.request)
        num_tokens = len(event.prompt_token_ids)
        self._requests[event.request] = RequestTimes(
            event.time, num_tokens, event.max_tokens, event.num_outputs, {event.seq}, [event.seq]
        )
        self._sequences[event.seq] = _Sequence(event.request, num_tokens)

    def _on_refused(self, event: RequestRefused) -> None:
        self.counters["requests_refused"] += 1

    def _on_step_started(self, event: StepStarted) -> None:
        self._step_start = event.time
        self._is_stepping = True
        self._batch = None
        self._swapped_in.clear()

    def _on_blocks_shared(self, event: BlocksShared) -> None:
        if event.source == "cache" and self.header:
            self._looked_up["prefix_cache_hits"] += len(event.blocks) * self.header.block_size

    def _on_swapped_in(self, event: BlocksSwappedIn) -> None:
        self._swapped_in.add(self._sequences[event.seq].request)

    def _on_scheduled(self, event: RequestScheduled) -> None:
        """A request that is admitted looks all its tokens up, unless its blocks have come back."""
        if self.header and self.header.prefix_cache and event.request not in self._swapped_in:
            sequences = self._requests[event.request].sequences
            tokens = max(self._sequences[seq].num_tokens for seq in sequences)
            self._looked_up["prefix_cache_queries"] += tokens

    def _on_preempted(self, event: RequestPreempted) -> None:
        self.counters["num_preemptions"] += 1
        self._requests[event.request].num_preemptions += 1

    def _on_forked(self, event: SequenceForked) -> None:
        request = self._requests[event.request]
        request.sequences.add(event.child)
        request.all_sequences.append(event.child)
        self._sequences[event.child] = _Sequence(event.request, self._sequences[event.parent].num_tokens)

    def _on_batch(self, event: BatchPlanned) -> None:
        self._batch = event  # counted when the step is over: it may fail

    def _on_drafts(self, event: DraftsVerified) -> None:
        by_position = self.labelled["spec_decode_num_accepted_tokens_per_pos"]
        for item in event.items:
            self.counters["spec_decode_num_drafts"] += 1
            self.counters["spec_decode_num_draft_tokens"] += len(item.token_ids)
            self.counters["spec_decode_num_accepted_tokens"] += item.num_accepted
            for position in range(len(item.token_ids)):
                by_position[str(position)] += position < item.num_accepted

    def _on_tokens(self, event: TokensSampled) -> None:
        for seq, _, _ in event.items:
            sequence = self._sequences[seq]
            sequence.num_tokens += 1
            self._in_step[sequence.request] += 1
            request = self._requests[sequence.request]
            request.longest_output = max(
                request.longest_output, sequence.num_tokens - request.num_prompt_tokens
            )
        self.counters["generation_tokens"] += len(event.items)

    def _on_sequence_finished(self, event: SequenceFinished) -> None:
        name = self._sequences[event.seq].request
        request = self._requests[name]
        request.sequences.discard(event.seq)
        if event.reason != "pruned":
            request.reason, request.finished = event.reason, event.time
        if not request.sequences:
            self._ended.append(name)
        if not self._is_stepping:  # aborted between two steps
            self._end_all()

    def _on_step_finished(self, event: StepFinished) -> None:
        self._note_batch()
        self._note_lookups()
        for name, count in self._in_step.items():
            if request := self._requests.get(name):  # an interrupt may have ended it
                self._note_tokens(request, count, event.time)
        self._in_step.clear()
        self.counters["steps"] += 1
        self._is_stepping = False
        self._end_all()

    def _on_step_abandoned(self, event: StepAbandoned) -> None:
        self.counters["steps_failed"] += 1
        self._note_lookups()
        self._batch = None
        self._is_stepping = False

    def _on_rebuilt(self, event: StateRebuilt) -> None:
        """Requests that the engine no longer has ended while nothing was told."""
        self._note_lookups()
        self._end_all()
        there = {request.request: request for request in event.requests}
        for name in [name for name in self._requests if name not in there]:
            self._end(name)
        self._sequences.clear()
        for name, rebuilt in there.items():
            sequences = {sequence.seq for sequence in rebuilt.sequences}
            request = self._requests.setdefault(
                name,
                RequestTimes(
                    rebuilt.time, rebuilt.num_prompt_tokens, rebuilt.max_tokens, len(sequences), sequences
                ),
            )
            request.sequences = sequences
            request.all_sequences = [*sequences]
            self._sequences |= {it.seq: _Sequence(name, len(it.token_ids)) for it in rebuilt.sequences}
        self._batch = None
        self._is_stepping = False

    def _on_snapshot(self, event: SnapshotTaken) -> None:
        """What came before is not told, so requests that have begun have no times; their end is counted."""
        begun = {name for kind in older_requests(event) for name, _ in kind}
        for item in event.sequences:
            self._sequences[item.seq] = _Sequence(item.request, len(item.token_ids))
            seqs = event.members[item.request]
            self._requests[item.request] = RequestTimes(
                item.queued_time,
                item.num_prompt_tokens,
                item.max_tokens,
                len(seqs),
                set(seqs),
                list(seqs),
                is_whole=item.request not in begun,
            )

    # ── a step is over ────────────────────────────────────────────────────────────────────────────────

    def _note_lookups(self) -> None:
        """Of a step that was planned while another was computed they are told before that is finished."""
        self.counters.update(self._looked_up)
        self._looked_up.clear()

    def _note_batch(self) -> None:
        """What the step has computed, and for which requests it was the first."""
        batch, self._batch = self._batch, None
        items = batch.items if batch else ()
        for seq, start, _ in items:
            request = self._requests.get(self._sequences[seq].request)
            if request and request.scheduled is None:
                request.scheduled = self._step_start
                request.num_cached_tokens = min(start, request.num_prompt_tokens)
        self.tallies["iteration_tokens_total"].add(sum(count for _, _, count in items))
        if batch and self.header and self.header.model:
            work = work_of(self.header.model, self._shape_of(batch))
            self.counters["estimated_flops_per_gpu"] += round(work.flops)
            self.counters["estimated_read_bytes_per_gpu"] += round(work.weight_bytes + work.kv_read_bytes)
            self.counters["estimated_write_bytes_per_gpu"] += round(work.kv_written_bytes)

    def _shape_of(self, batch: BatchPlanned) -> BatchShape:
        """Which tokens are behind their prompts counts only where they have weights of their own."""
        generated: list[int] = []
        if self.header and self.header.model and self.header.model.decode_layer_bytes:
            for seq, start, count in batch.items:
                request = self._requests.get(self._sequences[seq].request)
                prompt_end = request.num_prompt_tokens if request else 0
                generated.append(start + count - max(start, prompt_end))
        return batch_shape(
            ((start, count) for _, start, count in batch.items),
            None,
            batch.num_padding_tokens,
            sum(number for number in generated if number > 0),
            sum(number > 0 for number in generated),
        )

    def _note_tokens(self, request: RequestTimes, count: int, now: float) -> None:
        if not request.is_whole:
            return
        if request.first_token is None:
            request.first_token = now
            self.tallies["time_to_first_token_seconds"].add(now - request.arrival)
            self._note_prompt(request)
        else:
            self.tallies["inter_token_latency_seconds"].add(now - request.last_token)
        request.last_token = now
        request.num_generated += count
        request.num_steps_with_tokens += 1

    def _note_prompt(self, request: RequestTimes) -> None:
        """A prompt counts when it is done: where its tokens' keys and values came from."""
        cached = request.num_cached_tokens
        self.counters["prompt_tokens"] += request.num_prompt_tokens
        self.counters["prompt_tokens_cached"] += cached
        self.labelled["prompt_tokens_by_source"]["local_cache_hit"] += cached
        self.labelled["prompt_tokens_by_source"]["local_compute"] += request.num_prompt_tokens - cached
        self.labelled["prompt_tokens_cached_by_source"]["device"] += cached

    def _end_all(self) -> None:
        ended, self._ended = self._ended, []
        for name in ended:
            self._end(name)

    def _end(self, name: str) -> None:
        """A request is over: count it, and forget it."""
        request = self._requests.pop(name)
        self.finished[request.reason or "abort"] += 1
        for seq in request.all_sequences:
            self._sequences.pop(seq, None)
        if not request.is_whole:
            return
        self._tally(
            request_prompt_tokens=request.num_prompt_tokens,
            request_generation_tokens=request.num_generated,
            request_max_num_generation_tokens=request.longest_output,
            request_params_n=request.num_outputs,
            request_params_max_tokens=request.max_tokens,
            request_num_preemptions=request.num_preemptions,
        )
        if self._on_end:
            self._on_end(name, request)
        if request.reason in ("", "abort"):
            return
        self._tally(e2e_request_latency_seconds=request.finished - request.arrival)
        if request.scheduled is not None and request.first_token is not None:
            self._tally(
                request_queue_time_seconds=request.scheduled - request.arrival,
                request_prefill_time_seconds=request.first_token - request.scheduled,
                request_decode_time_seconds=request.last_token - request.first_token,
                request_inference_time_seconds=request.last_token - request.scheduled,
                request_prefill_kv_computed_tokens=request.num_prompt_tokens - request.num_cached_tokens,
            )
            if request.num_steps_with_tokens > 1:
                mean = (request.last_token - request.first_token) / (request.num_steps_with_tokens - 1)
                self._tally(request_time_per_output_token_seconds=mean)

    def _tally(self, **values: float) -> None:
        for name, value in values.items():
            self.tallies[name].add(value)
