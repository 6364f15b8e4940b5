"""Measures: every latency of a run, and how full its batches were.

`minivllm.trace.summary` keeps the percentiles of a run; a picture of a distribution needs all of it. The two
count alike: the percentiles of these lists are those of the summary, and a test holds them together.

    arrival ──queue time──► first step ────► first token ─inter-token─► … ─inter-token─► last token
       └──────────── TTFT ────────────────────┘
       └──────────────────────────── end to end ──────────────────────────────────────────┘

Read next: `charts/latencies.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from minivllm.trace.snapshots import older_requests
from minivllm.trace.timeline import Phase, StepRecord, Timeline

KINDS = ("ttft", "inter_token", "end_to_end", "queue_time")


@dataclass(frozen=True)
class Latencies:
    """All latencies of a run in seconds, each list in the order in which they were measured."""

    ttft: list[float] = field(default_factory=list)
    inter_token: list[float] = field(default_factory=list)
    end_to_end: list[float] = field(default_factory=list)
    queue_time: list[float] = field(default_factory=list)
    steps: dict[str, list[int]] = field(default_factory=lambda: {name: [] for name in KINDS})
    """For each of these lists, the step at whose end each of its durations was known."""


# A request's id may come again once the first is finished; with its arrival it is unique.
_Request = tuple[str, float]


def latencies(timeline: Timeline) -> Latencies:
    """Walk the records once."""
    found = Latencies()
    requests: dict[int, _Request] = {
        seq: (sequence.request, sequence.queued_time) for seq, sequence in timeline.sequences.items()
    }
    scheduled: set[_Request] = set()
    older: set[_Request] = set()
    last_token: dict[_Request, float] = {}
    last_step: dict[_Request, int] = {}
    for record in timeline.records:
        if record.snapshot:
            scheduled, older = older_requests(record.snapshot)
        for request in dict.fromkeys(requests[item.seq] for item in record.batch):
            if request not in scheduled:
                scheduled.add(request)
                found.queue_time.append(record.start - request[1])
                found.steps["queue_time"].append(record.step)
        for request in dict.fromkeys(requests[seq] for seq, _, _ in record.sampled):
            if request in last_token:
                found.inter_token.append(record.end - last_token[request])
                found.steps["inter_token"].append(record.step)
            elif request not in older:
                found.ttft.append(record.end - request[1])
                found.steps["ttft"].append(record.step)
            last_token[request], last_step[request] = record.end, record.step
    ended: dict[_Request, list[float]] = {}
    left_out: set[_Request] = set()
    for seq, sequence in timeline.sequences.items():
        if sequence.finish_reason in (None, "abort", "error"):
            left_out.add(requests[seq])
        ended.setdefault(requests[seq], []).append(sequence.finished_time or 0.0)
    for request, times in ended.items():
        if request not in left_out:
            found.end_to_end.append(max(times) - request[1])
            found.steps["end_to_end"].append(last_step.get(request, 0))
    return found


@dataclass(frozen=True)
class BatchUse:
    """How full the batches of a run were."""

    prefill_tokens: int
    decode_tokens: int
    padding_tokens: int
    """Computed only to make batches rectangular, and thrown away."""
    mean_sequences: float
    """Sequences of which a step computes at least one token, averaged over steps."""
    parked_share: float
    """Of the slots of running requests, steps summed up, those that computed nothing, 0 … 1."""

    @property
    def padding_share(self) -> float:
        """Of all tokens that went through the model, those that were padding, 0 … 1."""
        return self.padding_tokens / max(self.prefill_tokens + self.decode_tokens + self.padding_tokens, 1)


def batch_use(timeline: Timeline) -> BatchUse:
    """Sums and means over all steps."""
    records = timeline.records
    spans = [span for spans in timeline.spans.values() for span in spans]
    in_batch = (Phase.PREFILL, Phase.DECODE, Phase.PARKED)
    slots = sum(span.last - span.first + 1 for span in spans if span.phase in in_batch)
    parked = sum(span.last - span.first + 1 for span in spans if span.phase is Phase.PARKED)
    return BatchUse(
        prefill_tokens=sum(record.num_tokens(Phase.PREFILL) for record in records),
        decode_tokens=sum(record.num_tokens(Phase.DECODE) for record in records),
        padding_tokens=sum(record.num_padding_tokens for record in records),
        mean_sequences=sum(len(record.batch) for record in records) / max(len(records), 1),
        parked_share=parked / max(slots, 1),
    )


def parked_by_step(timeline: Timeline) -> list[int]:
    """For each step: requests in the batch of which nothing is computed."""
    changes = [0] * (timeline.num_steps + 1)
    for spans in timeline.spans.values():
        for span in spans:
            if span.phase is Phase.PARKED:
                changes[span.first] += 1
                changes[span.last + 1] -= 1
    parked, now = [], 0
    for change in changes[:-1]:
        now += change
        parked.append(now)
    return parked


def num_computed_tokens(record: StepRecord) -> int:
    """Tokens of a step that were asked for: all but padding."""
    return sum(item.num_tokens for item in record.batch)
