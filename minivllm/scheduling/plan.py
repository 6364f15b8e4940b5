"""What crosses between control plane and data plane: a `StepPlan` one way, what was `Sampled` the other.

The scheduler *decides* (plain Python, no tensors); the executor *obeys*. A plan is only data, and says
all there is to say about one step: which blocks are moved first, which tokens of which sequences are
computed, where each sequence's keys and values live, and after which tokens logits are wanted.

    scheduler ──► StepPlan ──► executor ──► logits, one row for each wanted position, in plan order

There are no phases in it. A prefill is a sequence with many new tokens, a decode one with a single new
token (and perhaps drafts), a chunk one whose last token is not yet the sequence's last: all are `(start,
token_ids)`.

Moves come before everything else and in their order: a block may be copied and its original allocated to
another sequence in the same step, so a copy that came late would copy that sequence's data.

Numbers that the data plane reads in bulk are `array('i')`: plain Python that numpy and torch can look
at without a loop. See `minivllm/executor/attention/metadata.py` for what becomes of them.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import msgspec

from minivllm.memory.block_move import BlockMove
from minivllm.scheduling.request import Finish

PENDING = -1
"""In the place of a token that an earlier plan, still in flight, will sample: `fill_pending` writes it."""


class ScheduledSequence(msgspec.Struct, frozen=True, gc=False):
    """One sequence's share of a step: compute `token_ids` at positions `start`, `start + 1`, …"""

    seq_id: int
    start: int
    """Position of the first token to compute = tokens whose keys and values are already in the cache."""
    token_ids: array[int]
    """The tokens to compute in this step, at least one."""
    block_table: array[int]
    """Physical block of each logical block; covers at least positions `0 … start + len(token_ids) - 1`."""
    num_logits: int
    """Logits wanted for the last `num_logits` of these tokens: 0 for a chunk that does not reach the
    sequence's end, 1 to sample the next token, more for drafts and for prompt log-probabilities."""
    num_draft_tokens: int = 0
    """So many of the tokens, at the end, are drafts: guesses that its logits will accept or reject."""
    num_prompt_tokens: int | None = None
    """Tokens of the sequence that are its prompt, the others being generated; None: all of these are."""

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)

    @property
    def end(self) -> int:
        """Context length once this step is done: the tokens that attention may look at."""
        return self.start + len(self.token_ids)


class StepPlan(msgspec.Struct, frozen=True, gc=False):
    """Everything the executor must do in one step, and nothing about why."""

    step: int
    scheduled: tuple[ScheduledSequence, ...]
    moves: tuple[BlockMove, ...] = ()
    """Copies and swaps, to be carried out one after another before any token is written."""
    num_padding_tokens: int = 0
    """Tokens to compute and throw away, because a static batch is a rectangle. Nothing of them is stored."""
    request_ids: tuple[str, ...] = ()
    """The requests that it computes or moves: those that begin again if it fails."""

    @property
    def total_num_scheduled_tokens(self) -> int:
        """Tokens computed in this step, never more than `max_num_batched_tokens`."""
        return sum(len(item.token_ids) for item in self.scheduled)


def fill_pending(plan: StepPlan, sampled: Mapping[int, int]) -> None:
    """Write the tokens that have been sampled, by sequence, in the places that the plan has left for them.

    A sequence for which there is none has ended: something harmless is computed for it, and thrown away.
    """
    for item in plan.scheduled:
        tokens = item.token_ids
        if tokens[-1] == PENDING:
            tokens[-1] = sampled.get(item.seq_id, 0)


class NextToken(NamedTuple):
    """The next token of one output."""

    seq_id: int
    """The sequence that was computed up to its end."""
    token_id: int
    text: str = ""
    """What it adds to the output, for the trace."""
    is_fork: bool = False
    """It goes to a new fork of the sequence, and not to the sequence itself, whose own token comes last."""
    finish: Finish | None = None
    """Why the output ends with this token; None if it goes on."""
    allowed: tuple[int, Sequence[tuple[int, str, float, bool]]] | None = None
    """Tokens that it was chosen from, and the likeliest of all, for the trace (`AllowedTokens`)."""


class BeamStep(NamedTuple):
    """One step of a beam search: which beams go on, and with which token.

    Scores are sums of log-probabilities; of `finished`, divided by length ** length_penalty.
    """

    request_id: str
    kept: Sequence[tuple[int, int, float, str]]
    """`(parent seq_id, token_id, score, text)` of each new beam, best first; none when the search is over."""
    finished: Sequence[tuple[int, int, float, str]] = ()
    """The same of each hypothesis that ended in this step and is among the best: for the trace."""
    rejected: Sequence[tuple[int, int, float, str]] = ()
    """The same of the best candidates that were not kept: for the trace."""
    finish: Finish | None = None
    """Why the search is over; None if it goes on."""


class Sampled(NamedTuple):
    """What came out of a step."""

    tokens: Sequence[NextToken] = ()
    """One of each output, or several where drafts were accepted: those, and one more."""
    beams: Sequence[BeamStep] = ()
    failed: Sequence[tuple[str, Finish]] = ()
    """Requests that end with all their sequences, because no token could be chosen; and why."""
    draft_texts: Mapping[int, tuple[str, ...]] = MappingProxyType({})
    """Texts of the drafts of each sequence that had some, for the trace."""
