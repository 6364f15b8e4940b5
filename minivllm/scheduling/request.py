"""Requests and sequences, as the scheduler sees them.

A `Request` is what somebody asked for. A `Sequence` is one string of tokens that grows on its behalf: it
starts with one, and parallel sampling and beam search fork that into several. Neither knows anything of
text, sampling or tensors.

There are no phases. A sequence has tokens, and the first `num_computed_tokens` of them have their keys
and values in the cache; each step lets the second number catch up with the first. A prompt that has just
arrived is far behind, a decoding sequence is one behind, a preempted one starts again from zero: the same
rule with other numbers (house rule 2).

    token_ids              p p p p p p p p o o o        p = prompt, o = output
    num_computed_tokens    ─────────────────► 10        one behind: this is a decode step

Read next: `minivllm/scheduling/scheduler.py`.
"""

from __future__ import annotations

import enum
from array import array
from collections.abc import Iterable
from dataclasses import dataclass


class RequestStatus(enum.Enum):
    """Where a request is in its life (vLLM's names)."""

    WAITING = "waiting"
    RUNNING = "running"
    PREEMPTED = "preempted"
    FINISHED_STOPPED = "stop"
    FINISHED_LENGTH_CAPPED = "length"
    FINISHED_ABORTED = "abort"

    @property
    def is_finished(self) -> bool:
        return self in (self.FINISHED_STOPPED, self.FINISHED_LENGTH_CAPPED, self.FINISHED_ABORTED)


class Sequence:
    """One growing string of tokens and how far its cache has caught up with it."""

    __slots__ = (
        "num_computed_tokens",
        "num_prompt_tokens",
        "request_id",
        "seq_id",
        "token_ids",
        "wants_prompt_logits",
    )

    def __init__(
        self,
        seq_id: int,
        prompt_token_ids: Iterable[int],
        *,
        request_id: str = "",
        wants_prompt_logits: bool = False,
    ) -> None:
        self.seq_id = seq_id
        self.request_id = request_id
        self.token_ids: array[int] = array("i", prompt_token_ids)
        self.num_prompt_tokens = len(self.token_ids)
        self.num_computed_tokens = 0
        self.wants_prompt_logits = wants_prompt_logits

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)

    @property
    def num_output_tokens(self) -> int:
        return len(self.token_ids) - self.num_prompt_tokens

    @property
    def num_uncomputed_tokens(self) -> int:
        """Tokens whose keys and values are not in the cache yet: what a step may work on."""
        return len(self.token_ids) - self.num_computed_tokens

    def fork(self, child_id: int) -> Sequence:
        """Another sequence with the same tokens, as far computed as this one."""
        child = Sequence(
            child_id,
            self.token_ids,
            request_id=self.request_id,
            wants_prompt_logits=self.wants_prompt_logits,
        )
        child.num_prompt_tokens = self.num_prompt_tokens
        child.num_computed_tokens = self.num_computed_tokens
        return child

    def append_token(self, token_id: int) -> None:
        self.token_ids.append(token_id)

    def check_invariants(self) -> None:
        """Raise `AssertionError` unless the cache is behind the tokens, and never ahead of them."""
        assert 0 <= self.num_computed_tokens <= self.num_tokens, f"sequence {self.seq_id} is ahead of itself"
        assert self.num_prompt_tokens >= 1, f"sequence {self.seq_id} has no prompt"


@dataclass(slots=True, eq=False)
class Request:
    """What somebody asked for: a place in the queue, and the sequences that serve it.

    Attributes:
        sequences: those that are alive; one at first. Of a beam search, the best beam comes first.
        max_tokens: most output tokens of each sequence.
        width: most sequences that it may come to.
        in_lockstep: its sequences compute their next token all in the same step, or none does. A beam
            search needs that, because it chooses among all of them.
        salt: only requests with the same salt share cached prefixes with it.
        num_cached_tokens: prompt tokens that the prefix cache knew when it was first scheduled; None before.
        number: its place in the order of arrival, given by the scheduler.
        rank: what the scheduling policy last thought of it; smaller goes first.
    """

    request_id: str
    sequences: list[Sequence]
    max_tokens: int
    arrival_time: float
    priority: int = 0
    width: int = 1
    in_lockstep: bool = False
    salt: str | None = None
    num_cached_tokens: int | None = None
    num_preemptions: int = 0
    number: int = -1
    rank: float = 0.0
    status: RequestStatus = RequestStatus.WAITING

    @property
    def longest(self) -> int:
        """Most tokens that one of its sequences may come to, prompt included."""
        return self.sequences[0].num_prompt_tokens + self.max_tokens
