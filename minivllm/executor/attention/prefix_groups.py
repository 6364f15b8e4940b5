"""Prefix groups: sequences whose block tables begin with the same blocks, which are then read only once.

Sharing saves memory by itself. It saves time too, if the backend that attends knows of it: four beams that
have 32 blocks in common and one each of their own need 36 blocks, and not 132.

    tables     7 ─ 2 ─ 5 ─ 1        read for each:   7 2 5 1   7 2 5 9   7 2 5 4
               7 ─ 2 ─ 5 ─ 9        as a group:      7 2 5   1   9   4        owners  - - -  0  1  2
               7 ─ 2 ─ 5 ─ 4

Every member's query meets every block of the group, and a mask hides those of the others. That is worth it
only while the members' own blocks are few beside what they share.

Source: the idea of reading a common prefix once is in Juravsky et al., "Hydragen" (arXiv 2402.05099).
Read next: `torch_backend.py`, which attends to them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from minivllm.executor.attention.metadata import IntArray


@dataclass(frozen=True, slots=True)
class PrefixGroup:
    """Some of a step's sequences, with all of their blocks: the common ones first, then member by member."""

    members: IntArray
    """[T] sequences, in plan order."""
    blocks: IntArray
    """[width] physical blocks."""
    logical: IntArray
    """[width] place of each of them in its owner's block table."""
    owners: IntArray
    """[width] index in `members`, or -1 for the blocks that all of them share."""


def find_prefix_groups(
    block_tables: IntArray, num_blocks: IntArray, candidates: IntArray
) -> tuple[list[PrefixGroup], IntArray]:
    """Groups among the sequences `candidates`, and those candidates that belong to none.

    Args:
        block_tables: [S, longest table] physical blocks.
        num_blocks: [S] how many of them each sequence uses.
        candidates: some of 0 … S - 1, ascending.
    """
    first_blocks = block_tables[candidates, 0] if len(candidates) else candidates
    different, group_of, sizes = np.unique(first_blocks, return_inverse=True, return_counts=True)
    if len(different) == len(candidates):
        return [], candidates  # the usual case: no two sequences share a block
    groups, alone = [], [candidates[sizes[group_of] == 1]]
    for number in np.flatnonzero(sizes > 1):
        members = candidates[group_of == number]
        shared = _common_prefix(block_tables[members], int(num_blocks[members].min()))
        own = num_blocks[members] - shared
        if own.sum() > shared:
            alone.append(members)
        else:
            groups.append(_make_group(block_tables, members, shared, own))
    return groups, np.sort(np.concatenate(alone))


def _common_prefix(tables: IntArray, most: int) -> int:
    """How many of the first `most` blocks are the same in all tables."""
    same = (tables[:, :most] == tables[0, :most]).all(axis=0)
    return most if same.all() else int(same.argmin())


def _make_group(block_tables: IntArray, members: IntArray, shared: int, own: IntArray) -> PrefixGroup:
    places = [np.arange(shared), *(np.arange(shared, shared + count) for count in own)]
    owners = np.repeat(np.arange(-1, len(members)), [shared, *own])
    logical = np.concatenate(places)
    holders = members[np.maximum(owners, 0)]
    return PrefixGroup(members, block_tables[holders, logical], logical, owners)
