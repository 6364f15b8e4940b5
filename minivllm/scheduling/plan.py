"""The one thing that crosses from the control plane to the data plane: a `StepPlan`.

The scheduler *decides* (plain Python, no tensors); the executor *obeys*. A plan is only data, and says
all there is to say about one step: which blocks are moved first, which tokens of which sequences are
computed, where each sequence's keys and values live, and after which tokens somebody wants logits.

    scheduler ──► StepPlan ──► executor ──► logits, one row for each wanted position, in plan order

There are no phases in it. A prefill is a sequence with many new tokens, a decode one with a single new
token, a chunk one whose last token is not yet the sequence's last: all are `(start, token_ids)`.

Moves come before everything else and in their order: a block may be copied and its original given to
somebody else in the same step, so a copy that came late would copy the newcomer's data.

Numbers that the data plane reads in bulk are `array('i')`: plain Python that numpy and torch can look
at without a loop. See `minivllm/executor/attention/metadata.py` for what becomes of them.
"""

from __future__ import annotations

from array import array

import msgspec

from minivllm.memory.block_move import BlockMove


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
    sequence's end, 1 to sample the next token, more for prompt log-probabilities."""

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

    @property
    def total_num_scheduled_tokens(self) -> int:
        """Tokens computed in this step, never more than `max_num_batched_tokens`."""
        return sum(len(item.token_ids) for item in self.scheduled)
