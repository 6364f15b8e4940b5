"""Requests with several sequences: how they advance together, and how they are recomputed.

While its prompt is computed, a request has one sequence, whatever it asked for. Its forks share all its
blocks, so a group costs little more than what its sequences do not have in common. Two rules:

    beams are compared with each other, so all of a request compute their next token in the same step
    after a preemption by recompute, the first sequence catches up alone; then each sibling maps the blocks
    of their common prefix, and computes only what is its own

        first    p p p p p p p p a b c d          computed anew
        sibling  p p p p p p p p a e f g          shares  p p p p  p p p p  (whole blocks), computes the rest

Until all have caught up, none samples: so a group resumes as it was.

Source: the sequence groups of Kwon et al. (SOSP 2023), section 4.5. Read next: `scheduler.py`.
"""

from __future__ import annotations

from collections.abc import Callable

from minivllm.memory.block_table import blocks_needed
from minivllm.memory.cache_manager import CacheManager, Span
from minivllm.scheduling.request import Request, Sequence


def advance_group(
    request: Request, cache: CacheManager, budget: int, chunk: Callable[[int, int], int]
) -> list[Span]:
    """What a request with several sequences computes next, at most `budget` tokens; [] if it must wait.

    `chunk(count, budget)` says how many of `count` tokens may be computed in one step.
    """
    if any(sequence.num_uncomputed_tokens > 1 for sequence in request.sequences):
        return _catch_up(request, cache, budget, chunk)
    if request.is_beam_search and len(request.sequences) > budget:
        return []
    room = budget - len(request.sequences)
    spans = []
    for sequence in list(filter(request.goes_on, request.sequences))[:budget]:
        num_drafts = request.num_drafts(sequence, room)
        end = sequence.num_tokens + sequence.num_pending_tokens + num_drafts
        spans.append(Span(sequence.seq_id, sequence.num_computed_tokens, end))
        room -= num_drafts
    return spans


def _catch_up(
    request: Request, cache: CacheManager, budget: int, chunk: Callable[[int, int], int]
) -> list[Span]:
    """Everything but each sequence's last token, the first sequence before its siblings."""
    first, *siblings = request.sequences
    if first.num_uncomputed_tokens > 1:
        siblings = []
    for sibling in siblings:
        if sibling.seq_id not in cache.tables:
            num_blocks = common_blocks(first, sibling, cache.block_size)
            cache.share(first.seq_id, sibling.seq_id, num_blocks)
            sibling.num_computed_tokens = num_blocks * cache.block_size
    spans = []
    for sequence in (first, *siblings):
        behind = sequence.num_uncomputed_tokens - 1
        count = chunk(behind, budget) if behind and budget else 0
        if count:
            start = sequence.num_computed_tokens
            spans.append(Span(sequence.seq_id, start, start + count))
            budget -= count
    return spans


def common_blocks(computed: Sequence, other: Sequence, block_size: int) -> int:
    """Whole blocks at the beginning that both sequences have in common and the first has computed.

    The other's last token is left out, because it must be computed.
    """
    limit = min(computed.num_computed_tokens, other.num_tokens - 1) // block_size
    for index in range(limit):
        part = slice(index * block_size, (index + 1) * block_size)
        if computed.token_ids[part] != other.token_ids[part]:
            return index
    return limit


def blocks_for_siblings(request: Request, block_size: int, *, shared: bool = True) -> int:
    """Blocks that the sequences behind the first need when they come back: all but those of the prompt,
    which they share (unless the memory cannot share)."""
    prompt_blocks = request.sequences[0].num_prompt_tokens // block_size if shared else 0
    return sum(
        blocks_needed(sequence.num_tokens, block_size) - prompt_blocks for sequence in request.sequences[1:]
    )
