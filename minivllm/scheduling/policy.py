"""What a scheduling policy is: it orders the requests of each step, and decides nothing else.

Before every step the scheduler asks the policy for an order, and lets one request after another have what it
can use of the step's token budget:

    policy.schedule_order(view)  ──►  B, A, D, …     scheduler:   B runs     it gets its tokens
                                                                  A runs     no free block: one is preempted
                                                                  D waits    slot, blocks, budget? admitted

Limits (slots of the batch, token budget, blocks, the length of the model) are kept by the scheduler and
never by the policy: a wrong policy can be slow, and cannot be unsafe. If it names no request although there
is work, the scheduler falls back to the order of arrival for that step.

A policy of one's own is a class with one method, in a file of one's own:

    class Shortest(SchedulingPolicy):
        def rank(self, request):                      # the smaller goes first
            return request.sequences[0].num_prompt_tokens

    LLM(model, scheduling_policy="my_file:Shortest")

Read next: `policies.py` for those that come with the project, then `scheduler.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple, Protocol

from minivllm.scheduling.request import Request
from minivllm.validation import error_words


class PolicyError(ValueError):
    """A scheduling policy failed. Nothing was lost: the requests of the step compute their caches anew."""

    @classmethod
    def in_method(cls, policy: SchedulingPolicy, method: str, error: Exception) -> PolicyError:
        """The policy's own error, under the policy's name."""
        name = type(policy).__name__
        return cls(f"the scheduling policy {name} failed in `{method}`: {error_words(error)}")


class Pause(NamedTuple):
    """Compute nothing before `until` (seconds on the engine's clock): more requests may come.

    Obeyed only as the first word of `schedule_order`, and only while no request runs: nothing is lost by it.
    """

    until: float


class SchedulerView(Protocol):
    """What a policy may look at. It is the state *now*: it changes while `schedule_order` is being read."""

    @property
    def time(self) -> float:
        """Seconds on the engine's clock, the one of `Request.arrival_time`."""
        ...

    @property
    def running(self) -> tuple[Request, ...]:
        """The batch as it was when the step began, in the order of admission."""
        ...

    @property
    def waiting(self) -> WaitingView:
        """The waiting requests, by rank."""
        ...

    @property
    def num_admitted(self) -> int:
        """Requests that were admitted in this step, so far."""
        ...

    @property
    def num_scheduled(self) -> int:
        """Sequences that compute something in this step, so far."""
        ...

    @property
    def max_num_seqs(self) -> int:
        """Most sequences in one step."""
        ...

    @property
    def num_free_blocks(self) -> int:
        """Blocks that could be allocated now."""
        ...


class WaitingView(Protocol):
    """The waiting queue: iterate over it in order of rank, as far as needed. Each look costs O(log n).

    Once no request can be admitted in this step any more, it is empty.
    """

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Request]: ...


class SchedulingPolicy:
    """First come, first served; a policy overrides `rank`, or `schedule_order`, or both.

    Attributes:
        pads: every step is computed as a rectangle, all rows as long as the longest (static batching).
        releases_together: a finished request keeps its slot and its blocks until its whole batch is done.
    """

    pads = False
    releases_together = False

    def rank(self, request: Request) -> float:
        """The smaller is admitted earlier and preempted later; of equals, that with the least `arrival_time`.

        Asked when a request begins to wait, and again of all running ones when one must be preempted.
        """
        return 0.0

    def schedule_order(self, view: SchedulerView) -> Iterable[Request | Pause]:
        """The requests that may advance in this step, one after another; one that is not named does not."""
        yield from view.running
        yield from view.waiting


def is_decoding(request: Request) -> bool:
    """Does it compute only its newest tokens, rather than catch up with a prompt?"""
    return all(
        sequence.num_uncomputed_tokens == 1 and sequence.num_output_tokens + sequence.num_pending_tokens
        for sequence in request.sequences
    )


def num_tokens_left(request: Request) -> int:
    """Output tokens that it may still come to, by the limit that its sender has set."""
    return request.max_tokens - min(sequence.num_output_tokens for sequence in request.sequences)
