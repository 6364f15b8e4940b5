"""Requests and their sequences: the state that the scheduler moves forward.

A sequence is a list of tokens and one number. The tokens are prompt and output so far; the number,
`num_computed_tokens`, says how many of them have their keys and values in the KV cache. Each step lets the
number catch up with the tokens. A prompt that has just arrived is far behind, a decoding sequence is one
behind, a preempted one starts again from zero: the same rule with other numbers (house rule 3).

    token_ids              p p p p p p p p o o o        p = prompt, o = output
    num_computed_tokens    ─────────────────► 10        one behind: this is a decode step

It advances when a step is *planned*. Plans may be made while earlier ones are in flight (`engine/core.py`),
and then a token may be counted that is not there yet:

    token_ids              p p p p p p p p o o o ?      ? = pending: a plan in flight will sample it
    num_computed_tokens    ───────────────────► 11      one behind: the next plan computes "?"

The sequence owns its tokens: what is sampled is appended here, and every other part of the engine reads it
here. Drafts (`minivllm/decoding/speculation/`) are tokens that it may come to have; the next plan takes them.

Read next: `batch_state.py`, the queues; then `scheduler.py`.
"""

from __future__ import annotations

import enum
from array import array
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple


class RequestStatus(enum.Enum):
    """Where a request is in its life (vLLM's names)."""

    WAITING = "waiting"
    RUNNING = "running"
    PREEMPTED = "preempted"
    FINISHED_STOPPED = "stop"
    FINISHED_LENGTH_CAPPED = "length"
    FINISHED_ABORTED = "abort"
    FINISHED_ERROR = "error"

    @property
    def is_finished(self) -> bool:
        return self not in (self.WAITING, self.RUNNING, self.PREEMPTED)


class Finish(NamedTuple):
    """Why a sequence ended."""

    reason: str
    """"stop", "length", "abort" or "error"."""
    stop: int | str | None = None
    """The stop token id or stop string that ended it, if one did; of an error, what went wrong."""


NO_DRAFTS: array[int] = array("i")
"""Shared by all sequences without drafts, and never changed."""


class Sequence:
    """One growing list of tokens, and how far the cache has caught up with it."""

    __slots__ = (
        "draft_token_ids",
        "finish",
        "num_computed_tokens",
        "num_pending_tokens",
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
        self.num_pending_tokens = 0
        """Most tokens that plans in flight will sample for it."""
        self.finish: Finish | None = None
        """Why it ended, while a plan in flight still names it; None otherwise."""
        self.draft_token_ids = NO_DRAFTS
        self.wants_prompt_logits = wants_prompt_logits

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)

    @property
    def num_output_tokens(self) -> int:
        return len(self.token_ids) - self.num_prompt_tokens

    @property
    def num_uncomputed_tokens(self) -> int:
        """Tokens, pending ones too, whose keys and values are not in the cache yet: a step's work."""
        return len(self.token_ids) + self.num_pending_tokens - self.num_computed_tokens

    def output_token_ids(self, start: int = 0) -> list[int]:
        """A copy of the output from its `start`-th token on."""
        return self.token_ids[self.num_prompt_tokens + start :].tolist()

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

    def ahead(self, drafts: Iterable[int]) -> Sequence:
        """The sequence as it would be if these drafts were accepted; this one stays as it is."""
        other = self.fork(self.seq_id)
        other.token_ids.extend(drafts)
        return other

    def append_token(self, token_id: int) -> None:
        self.token_ids.append(token_id)

    def check_invariants(self) -> None:
        """Raise `AssertionError` unless the cache is behind the tokens, and never ahead of them."""
        most = self.num_tokens + self.num_pending_tokens
        assert 0 <= self.num_computed_tokens <= most, f"sequence {self.seq_id} is ahead of itself"
        assert self.num_prompt_tokens >= 1, f"sequence {self.seq_id} has no prompt"


@dataclass(slots=True, eq=False)
class Request:
    """A prompt to be continued: its limits, its place in the queues, and the sequences that serve it.

    Attributes:
        sequences: its unfinished sequences; one at first. Of a beam search, the best beam comes first.
        max_tokens: most output tokens of each sequence.
        max_num_sequences: most sequences that it may come to, by forks: slots that it takes in the batch.
        is_beam_search: all its sequences compute their next token in the same step, or none does, because
            the search chooses among all of them.
        salt: only requests with the same salt share cached prefixes with it.
        num_cached_tokens: prompt tokens that the prefix cache knew when it was first scheduled; None before.
        arrival_time: on the engine's clock; of requests with the same rank, the earlier goes first.
        arrival_index: its place in the order in which requests were added, given by the engine core.
        first_seq_id: of the sequence that it began with.
        rank: what the scheduling policy said of it when it last began to wait; the smaller goes first.
        finish: why its last sequence ended; None while it goes on.
    """

    request_id: str
    sequences: list[Sequence]
    max_tokens: int
    arrival_time: float
    priority: int = 0
    max_num_sequences: int = 1
    is_beam_search: bool = False
    salt: str | None = None
    num_cached_tokens: int | None = None
    num_preemptions: int = 0
    arrival_index: int = -1
    first_seq_id: int = -1
    rank: float = 0.0
    status: RequestStatus = RequestStatus.WAITING
    finish: Finish | None = None

    @property
    def max_total_tokens(self) -> int:
        """Most tokens that one of its sequences may come to, prompt included."""
        return self.sequences[0].num_prompt_tokens + self.max_tokens

    def goes_on(self, sequence: Sequence) -> bool:
        """Is there a token of it to be computed, when pending ones have come? Its last one never is."""
        if sequence.finish is not None:
            return False
        pending = sequence.num_pending_tokens
        return not pending or len(sequence.token_ids) + pending < self.max_total_tokens

    def num_drafts(self, sequence: Sequence, room: int) -> int:
        """How many of a sequence's drafts may be computed: at most `room`, and none that would be its last
        token, which is never computed."""
        if not sequence.draft_token_ids:
            return 0
        missing = self.max_total_tokens - len(sequence.token_ids) - 1
        return max(0, min(len(sequence.draft_token_ids), missing, room))
