"""What a scheduling policy is: it says who goes first, and nothing else.

Before every step the scheduler asks the policy whose turn it is, and offers the step's token budget to one
request after another in the order that it hears:

    policy.turns(view)  ──►  B, A, D, …        scheduler:   B runs      give it its tokens
                                                            A runs      no block left: somebody steps aside
                                                            D waits     a place, blocks, budget? it joins

Limits (places, token budget, blocks, the length of the model) are the scheduler's business and never the
policy's: a wrong policy can be slow, and cannot be unsafe. If it names nobody although there is work, the
scheduler falls back to the order of arrival for that step.

A policy of one's own is a class with one method, in a file of one's own:

    class Shortest(SchedulingPolicy):
        def rank(self, request):                      # smaller goes first
            return request.sequences[0].num_prompt_tokens

    LLM(model, scheduling_policy="my_file:Shortest")

Read next: `policies.py` for those that come with the project, then `scheduler.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple, Protocol

from minivllm.scheduling.request import Request


class PolicyError(ValueError):
    """A scheduling policy failed. Nothing was lost: whoever was in the step computes its cache anew."""


class Pause(NamedTuple):
    """Let nobody compute before `until` (seconds on the engine's clock): somebody else may still come.

    Obeyed only as the first word of `turns`, and while nothing could be lost by it: when nobody runs.
    """

    until: float


class SchedulerView(Protocol):
    """What a policy may look at. All of it is the state *now*: it changes while `turns` is being read."""

    @property
    def time(self) -> float:
        """Seconds on the engine's clock, the one of `Request.arrival_time`."""
        ...

    @property
    def running(self) -> tuple[Request, ...]:
        """The batch as it was when the step began, in the order in which they joined it."""
        ...

    @property
    def waiting(self) -> WaitingView:
        """Those who wait, by rank."""
        ...

    @property
    def num_joined(self) -> int:
        """Requests that have joined the batch in this step, so far."""
        ...

    @property
    def num_scheduled(self) -> int:
        """Requests that compute something in this step, so far."""
        ...

    @property
    def max_num_seqs(self) -> int:
        """Most sequences in one step."""
        ...

    @property
    def num_free_blocks(self) -> int:
        """Blocks that could be handed out now."""
        ...


class WaitingView(Protocol):
    """The waiting queue: iterate over it in order of rank, as far as needed. Each look costs O(log n).

    Once nobody can join in this step any more, it is empty.
    """

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Request]: ...


class SchedulingPolicy:
    """First come, first served; a policy overrides `rank`, or `turns`, or both.

    Attributes:
        pads: every step is computed as a rectangle, all rows as long as the longest (static batching).
        releases_together: a finished request keeps its place and its blocks until its whole batch is done.
    """

    pads = False
    releases_together = False

    def rank(self, request: Request) -> float:
        """Smaller waits further ahead, and steps aside later; of equals, those who came first.

        Asked when a request begins to wait, and again of all who run when somebody must step aside.
        """
        return 0.0

    def turns(self, view: SchedulerView) -> Iterable[Request | Pause]:
        """Who may advance in this step, one after another; whoever is not named has to sit it out."""
        yield from view.running
        yield from view.waiting


def is_decoding(request: Request) -> bool:
    """Does it compute only its newest tokens, rather than catch up with a prompt?"""
    return all(
        sequence.num_uncomputed_tokens == 1 and sequence.num_output_tokens for sequence in request.sequences
    )


def num_tokens_left(request: Request) -> int:
    """Output tokens that it may still come to, by the limit that its sender has set."""
    return request.max_tokens - min(sequence.num_output_tokens for sequence in request.sequences)
