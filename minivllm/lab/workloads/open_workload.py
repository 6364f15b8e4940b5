"""An open workload: requests arrive at their own times, whether or not earlier ones have been served.

    request-0      request-1  request-2              request-3      …

Nothing is kept: a million requests cost no more memory than one.

Read next: `closed_loop.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from minivllm.lab.workloads.arrivals import ArrivalProcess
from minivllm.lab.workloads.mix import RequestMix
from minivllm.lab.workloads.workload import WorkloadRequest
from minivllm.validation import check_integer


@dataclass(frozen=True)
class OpenWorkload:
    """The first `num_requests` arrivals of a process, with requests of a mix."""

    mix: RequestMix
    process: ArrivalProcess
    num_requests: int

    def __post_init__(self) -> None:
        check_integer("num_requests", self.num_requests, at_least=1)

    def arrivals(self) -> Iterator[WorkloadRequest]:
        times = self.process.times(self.mix.seed)
        for index, arrival_seconds in zip(range(self.num_requests), times, strict=False):
            yield self.mix.request(f"request-{index}", arrival_seconds)

    def after(
        self, request: WorkloadRequest, finished_seconds: float, output_token_ids: Sequence[int]
    ) -> None:
        """None: no request waits for the answer to another."""
