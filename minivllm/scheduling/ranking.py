"""The order of requests: what the policy says, and a rule that no policy can break.

A request's key is compared everywhere that an order is needed: in the waiting queue (the smallest key is
admitted first) and when a request must be preempted (the largest key is preempted first).

    key   (protected first,  rank by the policy,  time of arrival,  order in which they were added)

Of equals, the one that arrived first goes first, by the `arrival_time` that its caller gave (vLLM's order).

No request is ever preempted for one with a larger key. So there is always one that keeps what it has
computed, and everything finishes. A policy whose ranks jump about could still let two requests preempt each
other in turns: so a request that was preempted `MAX_PREEMPTIONS` times is protected, and goes before all
that were not; among themselves the protected go in order of arrival.

Read next: `policy.py`, where ranks come from.
"""

from __future__ import annotations

from math import isnan

from minivllm.scheduling.policy import PolicyError, SchedulingPolicy
from minivllm.scheduling.queue import Key
from minivllm.scheduling.request import Request

MAX_PREEMPTIONS = 64
"""Preemptions of one request before it is protected. Far more than a sane policy ever causes."""


class Ranking:
    """Keys of requests under one policy."""

    def __init__(self, policy: SchedulingPolicy) -> None:
        self.policy = policy

    def rank(self, request: Request) -> float:
        """What the policy says of a request now. Nothing changes.

        Raises:
            PolicyError: the policy failed, or its rank is not a number.
        """
        try:
            rank = float(self.policy.rank(request))
            if isnan(rank):
                raise ValueError("a rank must be a number, got nan")
        except Exception as error:
            raise PolicyError.in_method(self.policy, "rank", error) from error
        return rank

    def key(self, request: Request) -> Key:
        """Its key now. Nothing changes; `PolicyError` as for `rank`."""
        return self._key(request, self.rank(request))

    def last_key(self, request: Request) -> Key:
        """Its key by the rank with which it last began to wait: the policy is not asked."""
        return self._key(request, request.rank)

    def _key(self, request: Request, rank: float) -> Key:
        is_protected = request.num_preemptions >= MAX_PREEMPTIONS
        return not is_protected, 0.0 if is_protected else rank, request.arrival_time, request.arrival_index
