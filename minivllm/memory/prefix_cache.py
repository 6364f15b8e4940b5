"""The prefix cache: which physical block holds which tokens, so that none are computed twice.

Keys and values of a token depend on all tokens before it and on nothing else. So a full block can serve every
sequence that begins with the same tokens, now or later, if it can be found again. Two data structures are in
use, and both implement this protocol:

    hash    every full block has a key made of its tokens and its predecessor's key     (vLLM)
    radix   a tree whose edges are runs of blocks; a prefix is a path from the root     (SGLang)

What they have in common: only full blocks are cached; a block stands for its whole path, so equal tokens
after different beginnings never meet; requests with different salts never meet either. A cached block that no
table maps is *evictable*: it costs nothing, because it can be freed at once. The least recently used go
first, and always the end of a path before its beginning. A block is used while a table maps it; a look-up
alone is no use.

Read next: `hash_prefix_cache.py`, `radix_tree.py`; `prefix_caching.py` for when all this is called.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import Protocol


class PrefixCache(Protocol):
    """What both forms can do. A path is given by its last block; None is the beginning.

    The caller keeps two promises: the cached blocks of a table are a path from the beginning, and each block
    is acquired once for each table that maps it.
    """

    name: str

    @property
    def num_evictable_blocks(self) -> int:
        """Cached blocks that no table maps."""
        ...

    def __len__(self) -> int:
        """Cached blocks."""
        ...

    def __contains__(self, block: object) -> bool: ...

    def match(self, after: int | None, token_ids: Sequence[int], salt: str | None = None) -> list[int]:
        """The blocks that continue the path behind block `after` with these tokens, as far as it is cached.

        Whole blocks only. A pure query: nothing changes, recency included.
        """
        ...

    def insert(
        self, after: int | None, token_ids: Sequence[int], blocks: Sequence[int], salt: str | None = None
    ) -> int:
        """Cache `blocks` as the continuation of the path behind `after`, which the inserting table maps.

        Returns how many are cached now, each acquired once: all, or none if another block with the tokens of
        the first is cached in the same place. That one stays.
        """
        ...

    def acquire(self, blocks: Sequence[int]) -> None:
        """One more table maps these consecutive blocks of a path, and those before them already."""
        ...

    def release(self, blocks: Sequence[int]) -> None:
        """One table less maps this path, given from its beginning. It has been used just now."""
        ...

    def evict(self, count: int) -> list[int]:
        """Forget the `count` least recently used evictable blocks; returns them in that order.

        Raises:
            ValueError: fewer are evictable; nothing has changed.
        """
        ...

    def remove(self, blocks: Sequence[int]) -> None:
        """Forget these evictable blocks, ends of paths, given in the order in which they were inserted."""
        ...

    def reset(self) -> list[int]:
        """Forget all evictable blocks and return them."""
        ...

    def parent_of(self, block: int) -> int | None:
        """The block before this one in its path; None for the first."""
        ...

    def check_invariants(self, ref_counts: Sequence[int]) -> None:
        """Raise `AssertionError` unless the structure is sound and counts the tables of each block right."""
        ...


def cut_into_blocks(token_ids: Sequence[int], block_size: int) -> list[bytes]:
    """The tokens of each full block as bytes: they compare and hash faster than lists of numbers."""
    whole = array("i", token_ids[: len(token_ids) // block_size * block_size]).tobytes()
    num_bytes = array("i").itemsize * block_size
    return [whole[start : start + num_bytes] for start in range(0, len(whole), num_bytes)]
