"""Who owns what, in the words of a trace's header: `layout.py`'s shares, and what ranks have counted.

Read next: `minivllm/model/parallel/layout.py`.
"""

from __future__ import annotations

from minivllm.model.parallel.layout import Part, Share
from minivllm.trace.events import PartShape, RankShape


def rank_shape(rank: int, share: Share, weight_bytes: int, cache_bytes: int, *, tied: bool) -> RankShape:
    """What one rank owns.

    Args:
        weight_bytes, cache_bytes: what this takes, as the rank itself has counted it.
        tied: the embedding is the output matrix, too, so that the last stage has one.
    """
    return RankShape(
        rank=rank,
        stage=share.place.pipeline,
        tensor=share.place.tensor,
        layers=_ends(share.layers),
        parts=tuple(map(_part_shape, share.parts)),
        padded_vocabulary=share.padded_vocabulary,
        has_embedding=share.is_first or (tied and share.is_last),
        has_head=share.is_last,
        weight_bytes=weight_bytes,
        cache_bytes=cache_bytes,
    )


def _part_shape(part: Part) -> PartShape:
    ranges = (part.heads, part.kv_heads, part.intermediate, part.vocabulary)
    return PartShape(part.number, *map(_ends, ranges))


def _ends(numbers: range) -> tuple[int, int]:
    return numbers.start, numbers.stop
