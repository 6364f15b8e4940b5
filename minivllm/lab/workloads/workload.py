"""What a workload is: requests that arrive by themselves, and requests that follow from others.

    arrivals()                  A ─── B ───── C ───────────── D ──►  time
                                │     │
    after(A, 3.1 s, answer)     └─ A finishes ─ its sender thinks ─ A′ arrives

A driver (of an engine, a simulator, a comparison) merges the two: it takes the next arrival, and asks after
each finished request which one follows. An *open* workload has only the first kind: requests arrive at their
own rate, however slow the service is, so an overloaded service has an ever longer queue. In a *closed* one a
user waits for the answer before the next request, so slow service slows its own load down. A comparison that
mixes up the two measures something else than it says.

A workload is a function of its arguments and its seed: it holds no state, each call of `arrivals` begins
anew, and no request's content depends on the order in which others finish.

Source of the distinction: Schroeder, Wierman, Harchol-Balter, "Open Versus Closed: A Cautionary Tale" (NSDI
2006). Read next: `arrivals.py`.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import inf
from typing import Protocol

from minivllm.validation import check_integer, check_number


@dataclass(frozen=True, slots=True)
class WorkloadRequest:
    """One request as its sender sees it, and how long the answer will be.

    Attributes:
        arrival_seconds: since the workload began.
        prompt_token_ids: 32-bit integers, at least one.
        num_output_tokens: exactly so many come out: EOS is ignored.
        max_tokens: the limit that the sender sets, not knowing how long the answer will be.
        user: whose conversation it is, for routing that keeps a conversation in one place.
        prompt: the text, where there is one.
    """

    request_id: str
    arrival_seconds: float
    prompt_token_ids: array[int]
    num_output_tokens: int
    max_tokens: int
    priority: int = 0
    user: str | None = None
    prompt: str | None = None

    def __post_init__(self) -> None:
        good = (
            0 <= self.arrival_seconds < inf
            and 1 <= self.num_output_tokens <= self.max_tokens
            and self.prompt_token_ids
        )
        if not good:  # one comparison for each of millions; the words are found only for those that need them
            self._explain()

    def __hash__(self) -> int:
        return hash(self.request_id)

    def _explain(self) -> None:
        check_number("arrival_seconds", self.arrival_seconds, at_least=0)
        check_integer("number of prompt tokens", len(self.prompt_token_ids), at_least=1)
        check_integer("num_output_tokens", self.num_output_tokens, at_least=1)
        check_integer("max_tokens", self.max_tokens, at_least=self.num_output_tokens)


class Workload(Protocol):
    """What requests arrive, when, and how long they are."""

    def arrivals(self) -> Iterator[WorkloadRequest]:
        """Those that arrive by themselves, in order of time, made as they are asked for.

        A fresh iterator with every call, over the same requests every time.
        """
        ...

    def after(
        self, request: WorkloadRequest, finished_seconds: float, output_token_ids: Sequence[int]
    ) -> WorkloadRequest | None:
        """What arrives because this request has finished, not earlier than that; None if nothing does."""
        ...
