"""A data centre in one loop: arrivals and ends of steps, in the order of their times.

    t = 3.07 s   replica 5 finishes a step        its requests get their tokens, some finish
                 a request arrives                the router sends it to replica 5
                 replica 5 begins its next step   it will be over at t = 3.11 s

At each moment first the steps end, then requests arrive, then steps begin: so a request that arrives as a
step ends can be in the next one, as it would be in the engine. Nothing is kept but what is under way, so a
million requests need no more memory than a thousand.

Source: a discrete-event simulation as in any textbook. Read next: `minivllm/scheduling/router.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from heapq import heappop, heappush
from itertools import count
from math import inf

from minivllm.executor.simulated_executor import SAMPLED_TOKEN
from minivllm.lab.simulation.replica import Replica
from minivllm.lab.workloads.workload import Workload, WorkloadRequest
from minivllm.scheduling.router import RoundRobin, Router


class Cluster:
    """Plays a workload on replicas that share the clock of a data centre.

    Args:
        replicas: they may be different from each other.
        router: chooses the replica of each request.
    """

    def __init__(self, replicas: Sequence[Replica], router: Router | None = None) -> None:
        if not replicas:
            raise ValueError("replicas must be at least one, got none")
        self.replicas = replicas
        self.router = router if router is not None else RoundRobin()
        self._ends: list[tuple[float, int]] = []  # (when its step or its pause ends, replica)
        self._due: dict[int, float] = {}  # the valid one of each: a pause may end earlier than announced
        self._ready: dict[int, None] = {}  # replicas to begin a step at this moment
        self._follow_ups: list[tuple[float, int, WorkloadRequest]] = []  # what finished requests have led to
        self._order = count()

    def run(
        self,
        workload: Workload,
        *,
        most_seconds: float = inf,
        progress: Callable[[int], None] | None = None,
    ) -> None:
        """Until everything is served, or `most_seconds` of virtual time have passed.

        `progress` is told of the number of requests that have arrived, now and then.
        """
        arrivals = workload.arrivals()
        arriving = next(arrivals, None)
        num_arrived = 0
        while True:
            time = min(
                arriving.arrival_seconds if arriving else inf,
                self._follow_ups[0][0] if self._follow_ups else inf,
                self._ends[0][0] if self._ends else inf,
            )
            if time == inf or time > most_seconds:
                return
            while self._ends and self._ends[0][0] <= time:
                end, index = heappop(self._ends)
                if self._due.get(index) == end:
                    self._finish(index, time, workload)
            while arriving and arriving.arrival_seconds <= time:
                self._arrive(arriving, time)
                arriving = next(arrivals, None)
                num_arrived += 1
                if progress and num_arrived % 1000 == 0:
                    progress(num_arrived)
            while self._follow_ups and self._follow_ups[0][0] <= time:
                self._arrive(heappop(self._follow_ups)[2], time)
            self._begin(time)

    def _finish(self, index: int, time: float, workload: Workload) -> None:
        replica = self.replicas[index]
        replica.clock.now = time
        self._ready[index] = None
        del self._due[index]
        for request in replica.finish():
            answer = [SAMPLED_TOKEN] * request.num_output_tokens
            follow_up = workload.after(request, time, answer)
            if follow_up is not None:
                arrival = max(follow_up.arrival_seconds, time)
                if arrival != follow_up.arrival_seconds:
                    follow_up = replace(follow_up, arrival_seconds=arrival)
                heappush(self._follow_ups, (arrival, next(self._order), follow_up))

    def _arrive(self, request: WorkloadRequest, time: float) -> None:
        index = self.router.choose(request, self.replicas)
        replica = self.replicas[index]
        replica.clock.now = time  # perhaps in the middle of a step
        if replica.plan is None:
            self._ready[index] = None
        replica.add(request)

    def _begin(self, time: float) -> None:
        ready, self._ready = self._ready, {}
        for index in ready:
            replica = self.replicas[index]
            replica.clock.now = time
            end = replica.begin()
            if end is not None:
                self._due[index] = end
                heappush(self._ends, (end, index))
