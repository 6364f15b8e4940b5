"""The order of requests: what the policy says, and a rule that no policy can break.

A request's key is compared everywhere that an order is needed: in the waiting queue (the smallest key is
admitted first) and when a request must be preempted (the largest key is preempted first).

    key   (protected first,  rank by the policy,  order of arrival)

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

    def key(self, request: Request) -> Key:
        """Ask the policy for the request's rank, and return its key.

        Raises:
            PolicyError: the policy failed, or its rank is not a number; nothing has changed.
        """
        try:
            rank = float(self.policy.rank(request))
            if isnan(rank):
                raise ValueError("a rank must be a number, got nan")
        except Exception as error:
            raise PolicyError.in_method(self.policy, "rank", error) from error
        request.rank = rank
        return self.last_key(request)

    def last_key(self, request: Request) -> Key:
        """The key by the rank that the policy last gave."""
        if request.num_preemptions >= MAX_PREEMPTIONS:
            return False, 0.0, request.arrival_index
        return True, request.rank, request.arrival_index
