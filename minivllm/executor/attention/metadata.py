"""From a plan to arrays: the one place where tokens become rows, and positions become slots.

A plan speaks of sequences; the model wants one flat run of tokens. Laid end to end, the new tokens of
all sequences become rows `0 … T-1`, and a few small arrays remember what is whose:

    sequences        A: start 0, 3 tokens     B: start 5, 1 token     C: start 4, 2 tokens
    rows             0    1    2              3                       4    5
    positions        0    1    2              5                       4    5
    query_starts     0                        3                       4              6
    context_lens     3                        6                       6

Where a token's keys and values live follows from its position and its sequence's block table:

    slot = block_table[position // block_size] * block_size + position % block_size

Arrays are numpy on the host, built without a loop over tokens. Backends written in numba read them as
they are, torch looks at them without copying, and a backend on a device moves them once a step.

Read next: `minivllm/executor/attention/backend.py`.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from minivllm.scheduling.plan import StepPlan

IntArray = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class AttentionMetadata:
    """One step in arrays. T tokens (rows), S sequences, in plan order."""

    token_ids: IntArray
    """[T]"""
    positions: IntArray
    """[T] place of each token in its sequence, counted from 0."""
    slot_mapping: IntArray
    """[T] the cell of the KV cache that each token's key and value are written to."""
    query_starts: IntArray
    """[S + 1] sequence i owns rows `query_starts[i] … query_starts[i + 1] - 1`."""
    context_lens: IntArray
    """[S] tokens each sequence has once this step is written: what its last token may look at."""
    block_tables: IntArray
    """[S, longest table] physical block of each logical block, filled up with 0."""
    logit_rows: IntArray
    """[sum of num_logits] the rows after which logits are wanted, in plan order."""

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)

    @property
    def num_sequences(self) -> int:
        return len(self.context_lens)

    @property
    def is_decode(self) -> bool:
        """Does every sequence compute one token, and want to know what comes next?"""
        return self.num_tokens == self.num_sequences == len(self.logit_rows)

    def first_seen(self, window: int | None) -> IntArray:
        """[S] the first position that any new token of each sequence sees, in layers with this window."""
        if window is None:
            return np.zeros_like(self.context_lens)
        return np.maximum(0, self.context_lens - np.diff(self.query_starts) - window + 1)


def build_metadata(plan: StepPlan, block_size: int) -> AttentionMetadata:
    """Lay the plan's sequences end to end. Raises `ValueError` if a block table is too short."""
    scheduled = plan.scheduled
    starts = np.array([item.start for item in scheduled], np.int64)
    lengths = np.array([len(item.token_ids) for item in scheduled], np.int64)
    wanted = np.array([item.num_logits for item in scheduled], np.int64)
    table_lengths = np.array([len(item.block_table) for item in scheduled], np.int64)
    context_lens = starts + lengths
    query_starts = np.concatenate(([0], lengths.cumsum()))
    _check(plan, context_lens, table_lengths, lengths, wanted, block_size)

    owners = np.repeat(np.arange(len(scheduled)), lengths)  # [T] the sequence that each row belongs to
    positions = _ranges(starts, lengths)
    block_tables = np.zeros((len(scheduled), table_lengths.max(initial=0)), np.int64)
    in_table = np.arange(block_tables.shape[1]) < table_lengths[:, None]
    block_tables[in_table] = _flat(item.block_table for item in scheduled)
    slot_mapping = block_tables[owners, positions // block_size] * block_size + positions % block_size
    return AttentionMetadata(
        token_ids=_flat(item.token_ids for item in scheduled),
        positions=positions,
        slot_mapping=slot_mapping,
        query_starts=query_starts,
        context_lens=context_lens,
        block_tables=block_tables,
        logit_rows=_ranges(query_starts[1:] - wanted, wanted),
    )


def one_token_each(
    token_ids: IntArray, positions: IntArray, block_tables: IntArray, block_size: int
) -> AttentionMetadata:
    """What `build_metadata` says of a plan with one token of each sequence, whose logits are wanted."""
    rows = np.arange(len(token_ids) + 1)
    slots = block_tables[rows[:-1], positions // block_size] * block_size + positions % block_size
    return AttentionMetadata(token_ids, positions, slots, rows, positions + 1, block_tables, rows[:-1])


def _ranges(starts: IntArray, lengths: IntArray) -> IntArray:
    """`start, start + 1, … start + length - 1` for each pair, end to end: one arange, shifted piecewise."""
    before = lengths.cumsum() - lengths
    return np.arange(lengths.sum()) + np.repeat(starts - before, lengths)


def _flat(arrays: Iterable[array[int]]) -> IntArray:
    """Many `array('i')` as one numpy array, by their bytes instead of element by element."""
    return np.frombuffer(b"".join(arrays), np.intc).astype(np.int64)


def _check(
    plan: StepPlan,
    context_lens: IntArray,
    table_lengths: IntArray,
    lengths: IntArray,
    wanted: IntArray,
    block_size: int,
) -> None:
    """A plan that breaks its own promises would read or overwrite other sequences' cells."""
    bad = (table_lengths * block_size < context_lens) | (lengths < 1) | (wanted < 0) | (wanted > lengths)
    if bad.any():
        item = plan.scheduled[int(bad.argmax())]
        raise ValueError(
            f"sequence {item.seq_id} in step {plan.step}: {item.num_tokens} tokens from position "
            f"{item.start} on, {item.num_logits} logits wanted, {len(item.block_table)} blocks of "
            f"{block_size} tokens; a plan needs at least one token, no more logits than tokens, and "
            "blocks for every position"
        )
