"""The prefix cache: which physical block holds which tokens, so that nobody computes them twice.

Keys and values of a token depend on all tokens before it and on nothing else. So a full block can serve every
sequence that begins with the same tokens, now or later, if somebody remembers it. Two ways to remember are in
use, and both stand behind this face:

    hash    every full block has a key made of its tokens and its predecessor's key     (vLLM)
    radix   a tree whose edges are runs of blocks; a prefix is a path from the root     (SGLang)

What they have in common: only full blocks are known; a block is known by its whole path, so equal tokens
after different beginnings never meet; requests with different salts never meet either. A known block that no
table holds is *idle*. It costs nothing, because it can be evicted at once: the least recently used first, and
always the end of a path before its beginning.

Read next: `hash_prefix_cache.py`, `radix_tree.py`; `prefixes.py` for when all this is called.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


class PrefixCache(Protocol):
    """What both forms can do. A path is given by its last block; None is the beginning.

    The caller keeps two promises: the known blocks of a table are a path from the beginning, and whatever a
    table holds has been acquired once for it.
    """

    name: str

    @property
    def num_idle_blocks(self) -> int:
        """Known blocks that no table holds: as many can be evicted."""
        ...

    def __len__(self) -> int:
        """Known blocks."""
        ...

    def __contains__(self, block: object) -> bool: ...

    def match(self, after: int | None, token_ids: Sequence[int], salt: str | None = None) -> list[int]:
        """The blocks that continue the path behind block `after` with these tokens, as far as it is known.

        Whole blocks only. Nothing changes but that the path has been used just now.
        """
        ...

    def insert(
        self, after: int | None, token_ids: Sequence[int], blocks: Sequence[int], salt: str | None = None
    ) -> int:
        """Know that `blocks` continue the path behind `after`, which the inserting table holds.

        Returns how many are known now, each acquired once: all, or none if the first of them has a rival,
        another block with the same tokens in the same place. The rival stays.
        """
        ...

    def acquire(self, blocks: Sequence[int]) -> None:
        """One more table holds these consecutive blocks of a path, and those before them already."""
        ...

    def release(self, blocks: Sequence[int]) -> None:
        """A table lets go of its whole path, given from its beginning."""
        ...

    def evict(self, count: int) -> list[int]:
        """Forget `count` idle blocks and return them in the order in which they went.

        Raises:
            ValueError: fewer are idle; nothing is forgotten.
        """
        ...

    def forget(self, blocks: Sequence[int]) -> None:
        """Forget these idle blocks, ends of paths, given in the order in which they were inserted."""
        ...

    def reset(self) -> list[int]:
        """Forget all idle blocks and return them."""
        ...

    def parent_of(self, block: int) -> int | None:
        """The block before this one in its path; None for the first."""
        ...

    def check_invariants(self, ref_counts: Sequence[int]) -> None:
        """Raise `AssertionError` unless the structure is sound, and held as often as tables map it."""
        ...


def make_prefix_cache(name: str | None, block_size: int) -> PrefixCache | None:
    """The prefix cache of that name, "hash" or "radix"; None for None."""
    # Imported here, because both import this module's words.
    from minivllm.memory.hash_prefix_cache import HashPrefixCache
    from minivllm.memory.radix_tree import RadixTree

    forms: dict[str, type[HashPrefixCache] | type[RadixTree]] = {"hash": HashPrefixCache, "radix": RadixTree}
    return None if name is None else forms[name](block_size)


def cut_into_blocks(token_ids: Sequence[int], block_size: int) -> list[bytes]:
    """The tokens of each full block as bytes: they compare and hash faster than lists of numbers."""
    from array import array

    whole = array("i", token_ids[: len(token_ids) // block_size * block_size]).tobytes()
    width = array("i").itemsize * block_size
    return [whole[start : start + width] for start in range(0, len(whole), width)]
