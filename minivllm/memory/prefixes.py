"""Between block tables and the prefix cache: when full blocks become known, and when they are let go.

A prefix cache (`prefix_cache.py`) knows which block holds which tokens. This module knows *when*:

    begin      find the longest known prefix of a prompt, and map its blocks instead of computing them
    plan       a block that will be full after this step is known from now on, so that an identical prompt
               that is admitted later in the same step shares it: all keys are written before any are read
    commit     two sequences that filled the same block at the same time keep one of the two
    cut        a table lets go of its known blocks; those that no table holds any more are idle
    evict      idle blocks are forgotten, the least recently used first, when somebody needs the space
    abandon    the step failed: what it would have filled was never there

A table's known blocks are always its first `num_cached_blocks`, and always one path in the cache.

Source: vLLM's automatic prefix caching; SGLang's RadixAttention. Read next: `prefix_cache.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from minivllm.memory.block_pool import BlockPool
from minivllm.memory.block_table import BlockTable
from minivllm.memory.prefix_cache import PrefixCache
from minivllm.trace.events import BlockMerged, BlocksCached, BlocksEvicted, Event


class Duplicate(NamedTuple):
    """A table that is filling a block whose tokens the cache knows in another block."""

    seq_id: int
    table: BlockTable
    token_ids: Sequence[int]
    end: int


class Prefixes:
    """The prefix cache of one block pool, kept in step with its tables."""

    def __init__(self, pool: BlockPool, cache: PrefixCache, emit: Callable[[Event], None] | None) -> None:
        self.pool = pool
        self.cache = cache
        self._emit = emit
        self._fresh: list[int] = []  # known since this step was planned, and filled only when it is done
        self._duplicates: list[Duplicate] = []

    def blocks(self) -> list[int]:
        """All blocks that the cache remembers. O(pool): for readers."""
        return [block for block, kept in enumerate(self.pool.kept) if kept]

    def find(self, token_ids: Sequence[int], table: BlockTable) -> list[int]:
        """The blocks that hold the longest known prefix, without the last token.

        Whoever wants to know what comes after the last token must compute that one at least.
        """
        longest = (len(token_ids) - 1) // table.block_size * table.block_size
        return self.cache.match(None, token_ids[:longest], table.salt)

    def adopt(self, table: BlockTable, num_blocks: int) -> None:
        """The first `num_blocks` of a new table are known: the cache must not lose them."""
        self.cache.acquire(table.blocks[:num_blocks].tolist())
        table.num_cached_blocks = num_blocks

    def remember(self, seq_id: int, table: BlockTable, token_ids: Sequence[int], end: int) -> None:
        """The first `end` tokens will be computed when this step is done."""
        if end // table.block_size > table.num_cached_blocks:
            fresh = self._insert(seq_id, table, token_ids, end)
            self._fresh += fresh
            if table.num_cached_blocks < end // table.block_size:
                # Somebody else's block has these tokens already. Ours is being written, so it is too early
                # to drop it.
                self._duplicates.append(Duplicate(seq_id, table, token_ids, end))

    def cut(self, table: BlockTable, num_blocks: int) -> None:
        """The table keeps only its first `num_blocks` known blocks; of the others it lets go."""
        known = table.blocks[: table.num_cached_blocks].tolist()
        if num_blocks < len(known):
            self.cache.release(known)
            if num_blocks:
                self.cache.acquire(known[:num_blocks])
            table.num_cached_blocks = num_blocks

    def evict(self, count: int) -> None:
        """Forget `count` idle blocks; they are free now."""
        self._forget(self.cache.evict(count), "capacity")

    def reset(self) -> None:
        """Forget all idle blocks."""
        self._forget(self.cache.reset(), "reset")

    def commit(self) -> None:
        """The step is done: its blocks are filled, and duplicates can be dropped."""
        self._fresh.clear()
        duplicates, self._duplicates = self._duplicates, []
        for duplicate in duplicates:
            self._merge(duplicate)

    def abandon(self) -> None:
        """The step failed: its blocks were never filled. Its sequences have let go of them."""
        self._duplicates.clear()
        fresh, self._fresh = self._fresh, []
        self.cache.forget(fresh)
        self._forget(fresh, "abandoned")

    def _insert(self, seq_id: int, table: BlockTable, token_ids: Sequence[int], end: int) -> list[int]:
        """Let the cache know the table's full blocks as far as it can; returns those that were news to it.

        Blocks that a sibling has made known count too; it ends where the cache has a block of its own.
        """
        size, first = table.block_size, table.num_cached_blocks
        last = end // size
        after = table.blocks[first - 1] if first else None
        tokens, blocks = token_ids[first * size : last * size], table.blocks[first:last].tolist()
        known = self.cache.match(after, tokens, table.salt)
        ours = 0
        while ours < len(known) and known[ours] == blocks[ours]:
            ours += 1
        if ours:
            self.cache.acquire(blocks[:ours])
            table.num_cached_blocks += ours
        if ours < len(known) or ours == len(blocks):
            return []
        after = blocks[ours - 1] if ours else after
        fresh = blocks[ours:]
        num_fresh = self.cache.insert(after, tokens[ours * size :], fresh, table.salt)
        assert num_fresh == len(fresh), "the cache knew nothing more, so it takes them all"
        self.pool.keep(fresh)
        table.num_cached_blocks += num_fresh
        if self._emit:
            self._emit(BlocksCached(seq_id, first + ours, tuple(fresh), table.salt))
        return fresh

    def _merge(self, duplicate: Duplicate) -> None:
        """Let the table map the cache's block instead of its own, which holds the same."""
        seq_id, table, token_ids, end = duplicate
        size = table.block_size
        while table.num_cached_blocks < end // size:
            index = table.num_cached_blocks
            after = table.blocks[index - 1] if index else None
            tokens = token_ids[index * size : (index + 1) * size]
            twins = self.cache.match(after, tokens, table.salt)
            own = table.blocks[index]
            if not twins or twins[0] == own:
                self._insert(seq_id, table, token_ids, end)
                continue
            self.pool.touch(twins)
            self.cache.acquire(twins)
            self.pool.free_blocks((own,))
            table.blocks[index] = twins[0]
            table.num_cached_blocks += 1
            if self._emit:
                self._emit(BlockMerged(seq_id, index, own, twins[0]))

    def _forget(self, blocks: list[int], reason: str) -> None:
        self.pool.unkeep(blocks)
        if self._emit and blocks:
            self._emit(BlocksEvicted(tuple(blocks), reason))

    def check_invariants(self, tables: Mapping[int, BlockTable]) -> None:
        """Raise `AssertionError` unless the cache, the pool and the tables agree on what is known."""
        self.cache.check_invariants(self.pool.ref_counts)
        assert self.cache.num_idle_blocks == self.pool.num_idle_blocks, "the two disagree on what is idle"
        assert len(self.cache) == sum(self.pool.kept), "the two disagree on what is kept"
        for seq_id, table in tables.items():
            before = None
            for block in table.blocks[: table.num_cached_blocks]:
                assert block in self.cache, f"sequence {seq_id}: block {block} should be known"
                assert self.cache.parent_of(block) == before, f"sequence {seq_id} has left its path"
                before = block
