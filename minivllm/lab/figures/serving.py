"""One simulated service under one load, and a sweep of loads: what every figure of this room is made of.

A service is *sustained* up to the request rate at which an answer comes at the pace of a reader. Below it,
the latency of each token hardly depends on the rate; above it, the queue grows as long as requests come, and
the latency with it. So the rate itself depends little on where exactly the line is drawn.

Read next: `request_rate.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import exp, log
from typing import NamedTuple

from minivllm.lab.simulation.cards import HardwareCard
from minivllm.lab.simulation.cluster import Cluster
from minivllm.lab.simulation.metrics import Metrics
from minivllm.lab.simulation.replica import Replica
from minivllm.lab.simulation.setting import Setting
from minivllm.lab.subjects.settings import usable_cores
from minivllm.lab.workloads.arrivals import AllAtOnce, ArrivalProcess, Poisson
from minivllm.lab.workloads.mix import RequestMix
from minivllm.lab.workloads.open_workload import OpenWorkload
from minivllm.processes import Result, Task, map_in_processes

READING_PACE = 0.2
"""Seconds for each token, on average over requests: five tokens a second, as fast as people read."""
STEP = 1.35
"""From one rate of a sweep to the next."""
MOST_POINTS = 40
LEAST_REQUESTS = 60


class Point(NamedTuple):
    """One load."""

    rate: float
    latency: float
    """Mean normalized latency: seconds of a request, from arrival to its last token, for each token of it."""
    batch: float
    """Requests in the batch, on average over busy time."""


@dataclass(frozen=True)
class Load:
    """Requests like these for so many seconds of virtual time."""

    mix: RequestMix
    seconds: float

    def at(self, rate: float) -> OpenWorkload:
        """Arriving at `rate` requests a second."""
        return OpenWorkload(self.mix, Poisson(rate), max(LEAST_REQUESTS, round(rate * self.seconds)))


def serve(setting: Setting, workload: OpenWorkload, card: HardwareCard | None = None) -> Metrics:
    """Serve a workload with one replica; `card` stands in for the setting's own hardware."""
    cost = setting.cost_model()
    if card is not None:
        cost = replace(cost, hardware=card)
    metrics = Metrics()
    Cluster([Replica(setting.scheduler_config(), cost, metrics)]).run(workload)
    assert not metrics.num_refused, metrics.first_refusal
    return metrics


def serve_all_at_once(setting: Setting, mix: RequestMix, num_requests: int) -> Metrics:
    """The same where all requests are there from the start."""
    process: ArrivalProcess = AllAtOnce()
    return serve(setting, OpenWorkload(mix, process, num_requests))


def measure(setting: Setting, load: Load, rate: float, card: HardwareCard | None = None) -> Point:
    """One load."""
    metrics = serve(setting, load.at(rate), card)
    return Point(rate, metrics.normalized.mean or 0.0, metrics.mean_batch_size)


def sweep(setting: Setting, load: Load, first_rate: float, card: HardwareCard | None = None) -> list[Point]:
    """From a rate that is easy to one that is too much, each `STEP` times the last."""
    points = [measure(setting, load, first_rate, card)]
    while points[-1].latency < 3 * READING_PACE and len(points) < MOST_POINTS:
        points.append(measure(setting, load, points[-1].rate * STEP, card))
    return points


def sustained(points: Sequence[Point], pace: float = READING_PACE) -> float:
    """The request rate at which the mean latency reaches the pace, between two points in logarithms.

    Raises:
        ValueError: the first rate is too much already.
    """
    if points[0].latency >= pace:
        raise ValueError(f"a sweep must begin below its sustained rate, got {points[0]}")
    before = points[0]
    for point in points[1:]:
        if point.latency >= pace:
            share = log(pace / before.latency) / log(point.latency / before.latency)
            return exp(log(before.rate) + share * log(point.rate / before.rate))
        before = point
    return before.rate


def in_parallel(function: Callable[[Task], Result], tasks: Sequence[Task]) -> list[Result]:
    """`function` of every task, on all cores; simulations share nothing."""
    return map_in_processes(function, tasks, usable_cores())
