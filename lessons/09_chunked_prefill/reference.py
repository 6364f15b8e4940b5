"""Chunked prefill: a long prompt is computed a chunk per step, beside the answers that have begun.

A step takes longer the more tokens it computes, and every answer in it waits for the whole step. So the
budget of a step, in tokens, bounds the time for which an answer can come to a standstill:

    whole prompt        a chunk of it per step
    a 1                 a 1  a 1  a 1  a 1  a 1       a writes an answer, a token per step
    b 40                b 9  b 9  b 9  b 9  b 4       b has a prompt of 40 tokens
    a step of 41        steps of at most 10           a waits for 41 tokens of work, or for 10

The plan is a function of what the requests have: nothing is kept from step to step.

    chunks = plan([Request("a", 13, 12), Request("b", 40)], Limits(10, 4))
    ►  [Chunk("a", 12, 13), Chunk("b", 0, 9)]     compute a's token 12, and b's tokens 0 to 8

Source: Agrawal et al., "Taming Throughput-Latency Tradeoff in LLM Inference with Sarathi-Serve" (OSDI 2024),
section 4. In the engine: minivllm/scheduling/policies.py, `Chunked`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple


@dataclass(frozen=True)
class Request:
    """One request, as it is before a step.

    It waits if none of its tokens is computed; otherwise it runs, and holds a slot in the batch. A request
    that was preempted has lost what was computed, and waits again; the tokens of its answer are kept.

    Attributes:
        request_id: its name.
        num_tokens: of its prompt and, as far as it is known, of its answer.
        num_computed_tokens: so many of them, from the first, are in the cache; always less than `num_tokens`.
    """

    request_id: str
    num_tokens: int
    num_computed_tokens: int = 0


class Chunk(NamedTuple):
    """Tokens of one request that a step computes: those at `start`, `start + 1` … `end - 1`."""

    request_id: str
    start: int
    end: int


@dataclass(frozen=True)
class Limits:
    """What a step may be.

    Attributes:
        max_num_batched_tokens: budget: most tokens that one step computes, of all requests together.
        max_num_seqs: slots in the batch: most requests that run at a time.
        long_prefill_token_threshold: most tokens of one request in one step; 0 for no such limit.
    """

    max_num_batched_tokens: int
    max_num_seqs: int
    long_prefill_token_threshold: int = 0

    def __post_init__(self) -> None:
        """Refuse limits that promise nothing.

        Raises:
            ValueError: there is no slot; or so many that the budget has not one token for each; or the
                threshold is negative.
        """
        if not 1 <= self.max_num_seqs <= self.max_num_batched_tokens:
            raise ValueError(
                f"max_num_seqs must be from 1 to {self.max_num_batched_tokens}, got {self.max_num_seqs}"
            )
        if self.long_prefill_token_threshold < 0:
            raise ValueError(
                f"long_prefill_token_threshold must be 0 or more, got {self.long_prefill_token_threshold}"
            )


def plan(requests: Iterable[Request], limits: Limits) -> list[Chunk]:
    """What the next step computes.

    The requests get the budget one after another, each all that it can use of what is left:

    1. The running requests that have exactly one token left to compute: an answer, mostly, that has begun.
    2. The other running requests, in the order in which they are given.
    3. The waiting requests, in the order in which they are given, while a slot in the batch is free. One that
       gets tokens runs from now on, and holds a slot.

    A request can use as many tokens as it has left to compute, and never more than the threshold. If the
    budget is less, it gets what there is. No request is skipped because another would fit better.

    Args:
        requests: all that run or wait, each once, in order of arrival; perhaps none. Any iterable. At most
            `max_num_seqs` of them run.
        limits: of this step.

    Returns:
        One chunk for each request that computes something, at least one token each, in any order. Each begins
        where the request's computed tokens end.
    """
    given = list(requests)
    running = [request for request in given if request.num_computed_tokens > 0]
    waiting = [request for request in given if request.num_computed_tokens == 0]
    num_free_slots = limits.max_num_seqs - len(running)
    decodes = [request for request in running if _left(request) == 1]
    prompts = [request for request in running if _left(request) > 1]
    chunks: list[Chunk] = []
    budget = limits.max_num_batched_tokens
    for request in decodes + prompts + waiting[:num_free_slots]:
        most = limits.long_prefill_token_threshold or budget
        num_tokens = min(_left(request), most, budget)
        if num_tokens > 0:
            start = request.num_computed_tokens
            chunks.append(Chunk(request.request_id, start, start + num_tokens))
            budget -= num_tokens
    return chunks


def _left(request: Request) -> int:
    """Tokens that it has and that are not computed."""
    return request.num_tokens - request.num_computed_tokens
