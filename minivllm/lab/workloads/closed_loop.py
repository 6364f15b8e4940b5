"""A closed loop: a fixed number of users, and each sends its next request when the last has come back.

    user-0   ├─ request ─┤ think ├─ request ─────┤ think ├─ …
    user-1     ├─ request ───┤ think ├─ …                          never more than num_users in flight

This is how many benchmarks drive a server ("concurrency 64"). It cannot overload anything: a server that
is twice as slow gets half the requests. How many each user sends is settled beforehand, so that
a run sends the same requests however fast they come back.

Read next: `chats.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from minivllm.lab.workloads.draws import exponential
from minivllm.lab.workloads.mix import RequestMix
from minivllm.lab.workloads.workload import WorkloadRequest
from minivllm.validation import check_integer, check_number


@dataclass(frozen=True)
class ClosedLoop:
    """`num_users` users, and `num_requests` requests divided among them as evenly as possible.

    Attributes:
        think_seconds: the mean of an exponential distribution; a user thinks before each request, the
            first included, so that not all begin at once. With 0 they do.
    """

    mix: RequestMix
    num_users: int
    num_requests: int
    think_seconds: float = 0.0

    def __post_init__(self) -> None:
        check_integer("num_users", self.num_users, at_least=1)
        check_integer("num_requests", self.num_requests, at_least=1)
        check_number("think_seconds", self.think_seconds, at_least=0)

    def arrivals(self) -> Iterator[WorkloadRequest]:
        """Each user's first request; only their times are kept."""
        users = range(min(self.num_users, self.num_requests))
        firsts = sorted((self._thinks(f"user-{user}-0"), user) for user in users)
        for arrival_seconds, user in firsts:
            yield self.mix.request(f"user-{user}-0", arrival_seconds, f"user-{user}")

    def after(
        self, request: WorkloadRequest, finished_seconds: float, output_token_ids: Sequence[int]
    ) -> WorkloadRequest | None:
        """The same user's next request, if there is one."""
        _, user, number = request.request_id.split("-")
        following = int(number) + 1
        if int(user) + following * self.num_users >= self.num_requests:
            return None
        name = f"user-{user}-{following}"
        return self.mix.request(name, finished_seconds + self._thinks(name), request.user)

    def _thinks(self, name: str) -> float:
        return exponential(f"{self.mix.seed}:{name}:think", self.think_seconds)
