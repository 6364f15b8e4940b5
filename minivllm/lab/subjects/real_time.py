"""A workload, played on a real engine in real time: each request is added at its arrival time.

Read next: `minivllm/lab/compare/schedule.py`; `minivllm/lab/simulation/cluster.py` does the same in virtual
time.
"""

from __future__ import annotations

from heapq import heappop, heappush
from itertools import count
from math import inf
from time import perf_counter, sleep
from typing import TYPE_CHECKING

from minivllm.lab.workloads.workload import Workload, WorkloadRequest
from minivllm.sampling_params import SamplingParams

if TYPE_CHECKING:
    from minivllm.engine.engine import Engine
    from minivllm.outputs import RequestOutput

LONGEST_NAP_SECONDS = 0.005


def play(engine: Engine, workload: Workload) -> dict[str, RequestOutput]:
    """Serve everything; returns the finished outputs by request.

    The engine must run on the wall clock. Every answer has exactly as many tokens as the workload says: the
    engine is told that number as `max_tokens`, and to go on past the end of the text.

    Raises:
        ValueError: a request could never be served; it says which, and why.
    """
    began = perf_counter()
    arrivals = workload.arrivals()
    arriving = next(arrivals, None)
    follow_ups: list[tuple[float, int, WorkloadRequest]] = []
    order = count()
    under_way: dict[str, WorkloadRequest] = {}
    finished: dict[str, RequestOutput] = {}
    while arriving or follow_ups or under_way:
        now = perf_counter() - began
        while arriving and arriving.arrival_seconds <= now:
            _add(engine, arriving, began, under_way)
            arriving = next(arrivals, None)
        while follow_ups and follow_ups[0][0] <= now:
            _add(engine, heappop(follow_ups)[2], began, under_way)
        if not under_way:
            soonest = min(
                arriving.arrival_seconds if arriving else inf, follow_ups[0][0] if follow_ups else inf
            )
            sleep(min(max(soonest - now, 0.0), LONGEST_NAP_SECONDS))
            continue
        for output in engine.step():
            if output.finished:
                finished[output.request_id] = output
                request = under_way.pop(output.request_id)
                seconds = perf_counter() - began
                follow_up = workload.after(request, seconds, output.outputs[0].token_ids)
                if follow_up is not None:
                    heappush(follow_ups, (follow_up.arrival_seconds, next(order), follow_up))
    return finished


def _add(
    engine: Engine, request: WorkloadRequest, began: float, under_way: dict[str, WorkloadRequest]
) -> None:
    try:
        engine.add_request(
            request.request_id,
            request.prompt_token_ids,
            SamplingParams(temperature=0, max_tokens=request.num_output_tokens, ignore_eos=True),
            prompt=request.prompt,
            arrival_time=began + request.arrival_seconds,
            priority=request.priority,
        )
    except ValueError as error:
        raise ValueError(f"request {request.request_id!r} of the workload: {error}") from error
    under_way[request.request_id] = request
