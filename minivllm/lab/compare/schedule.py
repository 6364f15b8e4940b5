"""The same requests under one scheduling policy after another: what each gives, and what it costs.

    workload ──► policy A ──► trace A ──► throughput, latencies, batch, padding, preemptions, fairness
            └──► policy B ──► trace B ──► …

On this machine with a real model, in real time; or simulated, on hardware that is not here. Either way each
run leaves a trace, and two of them open side by side on the dashboard's Compare page.

Policies are compared in a rush: requests arrive a fifth faster than first come, first served can serve them,
which is measured first. Where no request has to wait, all policies are the same.

Read next: `schedule_report.py`; `minivllm/scheduling/policies.py`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from minivllm.config import SchedulerConfig
from minivllm.executor.simulated_executor import VirtualClock
from minivllm.files import CannotWrite
from minivllm.lab.simulation.cluster import Cluster
from minivllm.lab.simulation.cost_model import CostModel
from minivllm.lab.simulation.replica import Replica
from minivllm.lab.workloads.workload import Workload, WorkloadRequest
from minivllm.scheduling.choose_policy import POLICIES, make_policy
from minivllm.trace.events import HardwareShape, ModelShape
from minivllm.trace.reader import make_trace, read_trace
from minivllm.trace.recorder import Recorder
from minivllm.trace.summary import Percentiles, percentiles
from minivllm.trace.timeline import StepRecord, Timeline, make_timeline

DEFAULT_POLICIES = tuple(POLICIES)
LOAD = 1.2
"""Requests arrive so many times as fast as first come, first served can serve them."""
PRIORITIES = 3


@dataclass(frozen=True)
class PolicyRun:
    """The result of one policy; everything is read from its trace.

    Attributes:
        mean_batch: requests in the batch, the parked ones included, averaged over busy time.
        mean_computed: sequences that compute something in a step, likewise.
        padding_share: of all tokens computed, those thrown away.
        fairness: Jain's index of the requests' latencies for each output token: 1 if all are treated alike.
        same_tokens: requests with the same tokens as under the first policy; None in a simulation.
    """

    policy: str
    trace: Path
    num_requests: int
    num_steps: int
    duration_seconds: float
    output_tokens_per_second: float
    ttft: Percentiles
    inter_token: Percentiles
    end_to_end: Percentiles
    mean_batch: float
    mean_computed: float
    padding_share: float
    num_preemptions: int
    fairness: float
    same_tokens: int | None


class World:
    """Where requests are served: a real engine, or a simulated one."""

    title: str
    config: SchedulerConfig

    def run(self, config: SchedulerConfig, workload: Workload, recorder: Recorder) -> dict[str, list[int]]:
        """Serve everything under this configuration; returns the answers, if there are real ones."""
        raise NotImplementedError


@dataclass
class SimulatedWorld(World):
    """One replica on a virtual clock."""

    title: str
    config: SchedulerConfig
    cost_model: CostModel
    model_shape: ModelShape
    hardware: HardwareShape

    def run(self, config: SchedulerConfig, workload: Workload, recorder: Recorder) -> dict[str, list[int]]:
        clock = VirtualClock()
        recorder.use_clock(clock)
        replica = Replica(
            config,
            self.cost_model,
            recorder=recorder,
            clock=clock,
            model_shape=self.model_shape,
            hardware=self.hardware,
        )
        Cluster([replica]).run(workload)
        if replica.metrics.num_refused:
            raise ValueError(f"a request of the workload: {replica.metrics.first_refusal}")
        return {}


@dataclass(frozen=True)
class Prioritised:
    """A workload whose requests have three priorities, one after another, so that they matter to a policy."""

    inner: Workload

    def arrivals(self) -> Iterator[WorkloadRequest]:
        for index, request in enumerate(self.inner.arrivals()):
            yield replace(request, priority=index % PRIORITIES)

    def after(
        self, request: WorkloadRequest, finished_seconds: float, output_token_ids: Sequence[int]
    ) -> WorkloadRequest | None:
        following = self.inner.after(request, finished_seconds, output_token_ids)
        return None if following is None else replace(following, priority=request.priority)


def check_policies(text: str) -> list[str]:
    """The policies of a comma-separated list; a comma within brackets is part of a policy's settings."""
    policies = [name.strip() for name in re.split(r",(?![^(]*\))", text) if name.strip()]
    if not policies:
        raise ValueError(f"policies must name at least one policy, got {text!r}")
    for index, name in enumerate(policies):
        make_policy(name)
        if name in policies[:index]:
            raise ValueError(f"policies must name each policy once, got {name!r} twice")
    return policies


def sustainable_rate(world: World, workload: Workload) -> float:
    """Requests a second that first come, first served gets done while its queue is never empty.

    All requests are there from the start. What counts is the time until none waits any more; the batch that
    runs empty afterwards would make the rate look lower than it is.
    """
    config = replace(world.config, scheduling_policy="fcfs")
    world.run(config, workload, Recorder())  # the first run of a model is slower than all others
    recorder = Recorder()
    world.run(config, workload, recorder)
    recorder.close()
    header, *events = recorder.events
    timeline = make_timeline(make_trace(header, events))  # type: ignore[arg-type]
    crowded = [record for record in timeline.records if record.num_waiting] or timeline.records
    tokens = sum(len(record.sampled) for record in crowded)
    seconds = sum(record.end - record.start for record in crowded)
    tokens_each = sum(len(record.sampled) for record in timeline.records) / len(timeline.spans)
    return tokens / tokens_each / max(seconds, 1e-9)


def compare_policies(
    world: World,
    policies: Sequence[str],
    workload: Workload,
    folder: Path,
    *,
    progress: Callable[[str], None] = lambda policy: None,
) -> list[PolicyRun]:
    """Play the workload under each policy, one after another; traces go into `folder`."""
    runs: list[PolicyRun] = []
    expected: dict[str, list[int]] = {}
    for policy in policies:
        progress(policy)
        path = folder / f"{re.sub(r'[^a-z0-9]+', '-', policy.lower()).strip('-')}.jsonl"
        with Recorder(path) as recorder:
            answers = world.run(replace(world.config, scheduling_policy=policy), workload, recorder)
        if recorder.problem:
            raise CannotWrite(recorder.problem)  # half a trace would give other numbers
        expected = expected or answers
        same = sum(tokens == expected[name] for name, tokens in answers.items()) if answers else None
        runs.append(measure(policy, path, same))
    return runs


def measure(policy: str, path: Path, same_tokens: int | None = None) -> PolicyRun:
    """Everything about one run, from its trace."""
    timeline = make_timeline(read_trace(path))
    sequences = [sequence for sequence in timeline.sequences.values() if sequence.finished_time is not None]
    latencies = [(sequence.finished_time or 0.0) - sequence.queued_time for sequence in sequences]
    firsts = [
        sequence.first_token_time - sequence.queued_time
        for sequence in sequences
        if sequence.first_token_time is not None
    ]
    per_token = [
        latency / max(sequence.num_output_tokens, 1)
        for latency, sequence in zip(latencies, sequences, strict=True)
    ]
    began = min((sequence.queued_time for sequence in sequences), default=0.0)
    duration = max((sequence.finished_time or 0.0 for sequence in sequences), default=0.0) - began
    output_tokens = sum(sequence.num_output_tokens for sequence in sequences)
    computed = sum(item.num_tokens for record in timeline.records for item in record.batch)
    padding = sum(record.num_padding_tokens for record in timeline.records)
    busy = [(record.end - record.start, record) for record in timeline.records if record.batch]
    busy_seconds = sum(seconds for seconds, _ in busy) or 1.0
    squares = sum(value * value for value in per_token)
    return PolicyRun(
        policy=policy,
        trace=path,
        num_requests=len(sequences),
        num_steps=timeline.num_steps,
        duration_seconds=duration,
        output_tokens_per_second=output_tokens / duration if duration else 0.0,
        ttft=percentiles(firsts),
        inter_token=percentiles(_gaps(timeline)),
        end_to_end=percentiles(latencies),
        mean_batch=_batch_seconds(timeline.records) / busy_seconds,
        mean_computed=sum(seconds * len(record.batch) for seconds, record in busy) / busy_seconds,
        padding_share=padding / (computed + padding) if computed else 0.0,
        num_preemptions=sum(len(record.preempted) for record in timeline.records),
        fairness=sum(per_token) ** 2 / (len(per_token) * squares) if squares else 1.0,
        same_tokens=same_tokens,
    )


def _batch_seconds(records: Sequence[StepRecord]) -> float:
    """Requests in the batch, the parked ones included, times seconds, over all steps that compute."""
    total = 0.0
    running = 0
    for record in records:
        # A record counts after the step; in the batch were those of the step before, and those admitted.
        in_batch = running + len(record.scheduled) - len(record.preempted)
        if record.batch:
            total += (record.end - record.start) * in_batch
        running = record.num_running
    return total


def _gaps(timeline: Timeline) -> Iterator[float]:
    """Seconds between two consecutive tokens of one sequence."""
    last: dict[int, float] = {}
    for record in timeline.records:
        for seq, _, _ in record.sampled:
            if seq in last:
                yield record.end - last[seq]
            last[seq] = record.end
