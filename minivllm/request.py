"""Requests and sequences, as the scheduler sees them.

A `Request` is what somebody asked for. A `Sequence` is one string of tokens that grows on its behalf;
today a request owns exactly one. Neither knows anything of text, sampling or tensors.

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
from collections.abc import Sequence as SequenceOf


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

    __slots__ = ("num_computed_tokens", "num_prompt_tokens", "seq_id", "token_ids", "wants_prompt_logits")

    def __init__(
        self, seq_id: int, prompt_token_ids: Iterable[int], *, wants_prompt_logits: bool = False
    ) -> None:
        self.seq_id = seq_id
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

    def append_token(self, token_id: int) -> None:
        self.token_ids.append(token_id)

    def check_invariants(self) -> None:
        """Raise `AssertionError` unless the cache is behind the tokens, and never ahead of them."""
        assert 0 <= self.num_computed_tokens <= self.num_tokens, f"sequence {self.seq_id} is ahead of itself"
        assert self.num_prompt_tokens >= 1, f"sequence {self.seq_id} has no prompt"


class Request:
    """What somebody asked for: an id, a priority, a place in the queue, and the sequences that serve it."""

    __slots__ = (
        "arrival_time",
        "max_tokens",
        "num_preemptions",
        "priority",
        "request_id",
        "sequences",
        "status",
    )

    def __init__(
        self,
        request_id: str,
        sequences: SequenceOf[Sequence],
        *,
        max_tokens: int,
        arrival_time: float,
        priority: int = 0,
    ) -> None:
        self.request_id = request_id
        self.sequences = list(sequences)
        self.max_tokens = max_tokens
        self.arrival_time = arrival_time
        self.priority = priority
        self.num_preemptions = 0
        self.status = RequestStatus.WAITING

    @property
    def sequence(self) -> Sequence:
        """The request's only sequence."""
        (sequence,) = self.sequences
        return sequence
