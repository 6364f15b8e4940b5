"""Prefix caching: when a full block enters the prefix cache, and when it leaves it.

A prefix cache (`prefix_cache.py`) knows *which* block holds which tokens. This module keeps it in step with
the block pool and the block tables, so it knows *when*:

    find               the longest cached prefix of a prompt: its blocks are mapped instead of computed
    cache_full_blocks  a block that is full after this step is cached from now on, so that an identical prompt
                       that is admitted later in the same step shares it: a step writes all keys before it
                       reads any
    seal               a step is planned: it is known which blocks it fills
    commit             the oldest step is done. If two sequences filled the same block at the same time, both
                       map one of the two now, unless a plan in flight names one of the sequences
    truncate           a table maps fewer cached blocks; those that no table maps any more are evictable
    evict              the least recently used evictable blocks are forgotten, when new blocks are needed
    abandon            the steps in flight failed: the blocks that they would have filled are forgotten

The cached blocks of a table are always its first `num_cached_blocks`, and always one path in the cache.

Source: vLLM's automatic prefix caching; SGLang's RadixAttention. Read next: `prefix_cache.py`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import NamedTuple

from minivllm.memory.block_pool import BlockPool
from minivllm.memory.block_table import BlockTable
from minivllm.memory.prefix_cache import PrefixCache
from minivllm.trace.events import BlockMerged, BlocksCached, BlocksEvicted, Event


class PrefixCaching:
    """Keeps a prefix cache in step with one block pool and its tables."""

    def __init__(self, pool: BlockPool, cache: PrefixCache, emit: Callable[[Event], None] | None) -> None:
        self.pool = pool
        self.cache = cache
        self._emit = emit
        self._planned = Filling([], [])  # of the step that is being planned
        self._in_flight: deque[Filling] = deque()  # of those that were planned, and are not done

    def cached_blocks(self) -> list[int]:
        """All blocks that are cached. O(pool): for snapshots and tests."""
        return [block for block, cached in enumerate(self.pool.cached) if cached]

    def find(self, token_ids: Sequence[int], block_size: int, salt: str | None) -> list[int]:
        """The blocks that hold the longest cached prefix, without the last token. Nothing changes.

        To know what comes after the last token, that one at least must be computed.
        """
        most = (len(token_ids) - 1) // block_size * block_size
        return self.cache.match(None, token_ids[:most], salt)

    def attach(self, table: BlockTable, num_blocks: int) -> None:
        """The first `num_blocks` of a new table are cached: they must not be evicted while it maps them."""
        self.cache.acquire(table.blocks[:num_blocks].tolist())
        table.num_cached_blocks = num_blocks

    def truncate(self, table: BlockTable, num_blocks: int) -> None:
        """The table maps only its first `num_blocks` cached blocks from now on."""
        cached = table.blocks[: table.num_cached_blocks].tolist()
        if num_blocks < len(cached):
            self.cache.release(cached)
            if num_blocks:
                self.cache.acquire(cached[:num_blocks])
            table.num_cached_blocks = num_blocks

    def cache_full_blocks(
        self,
        seq_id: int,
        table: BlockTable,
        token_ids: Sequence[int],
        end: int,
        *,
        in_flight: bool = False,
    ) -> None:
        """The first `end` tokens will be computed when this step is done, or the oldest one in flight."""
        if end // table.block_size > table.num_cached_blocks:
            step = self._in_flight[0] if in_flight else self._planned
            step.fresh.extend(self._insert(seq_id, table, token_ids, end))
            if table.num_cached_blocks < end // table.block_size:
                # Another block with these tokens is cached. Ours is being written in this step, so it is too
                # early to drop it.
                step.duplicates.append(Duplicate(seq_id, table, token_ids, end))

    def evict(self, count: int) -> None:
        """Forget `count` evictable blocks; they are free now."""
        self._uncache(self.cache.evict(count), "capacity")

    def reset(self) -> None:
        """Forget all evictable blocks."""
        self._uncache(self.cache.reset(), "reset")

    def seal(self) -> None:
        """What was cached until now is filled by the step that has just been planned."""
        self._in_flight.append(self._planned)
        self._planned = Filling([], [])

    def commit(self, named: Collection[int] = ()) -> bool:
        """The oldest step is done: its blocks are filled, and duplicates can be merged.

        Not those of sequences that plans in flight have `named`, with the blocks of their tables: they are
        found again, when the sequences advance. Returns whether there are some.
        """
        if not self._in_flight:
            self.seal()
        duplicates = self._in_flight.popleft().duplicates
        for duplicate in duplicates:
            if duplicate.seq_id not in named:
                self._merge(duplicate)
        return any(duplicate.seq_id in named for duplicate in duplicates)

    def abandon(self) -> None:
        """All steps failed: their blocks were never filled. The tables of their sequences are gone."""
        self.seal()
        fresh = [block for step in self._in_flight for block in step.fresh]
        self._in_flight.clear()
        self.cache.remove(fresh)
        self._uncache(fresh, "abandoned")

    def _insert(self, seq_id: int, table: BlockTable, token_ids: Sequence[int], end: int) -> list[int]:
        """Cache the table's full blocks as far as possible; returns those that were not cached before.

        A block that a fork of the same table has cached counts as ours. Caching ends where another block with
        the same tokens is cached.
        """
        size, first = table.block_size, table.num_cached_blocks
        last = end // size
        after = table.blocks[first - 1] if first else None
        tokens, blocks = token_ids[first * size : last * size], table.blocks[first:last].tolist()
        cached = self.cache.match(after, tokens, table.salt)
        ours = 0
        while ours < len(cached) and cached[ours] == blocks[ours]:
            ours += 1
        if ours:
            self.cache.acquire(blocks[:ours])
            table.num_cached_blocks += ours
        if ours < len(cached) or ours == len(blocks):
            return []
        after = blocks[ours - 1] if ours else after
        fresh = blocks[ours:]
        num_fresh = self.cache.insert(after, tokens[ours * size :], fresh, table.salt)
        assert num_fresh == len(fresh), "nothing behind `ours` was cached, so all of them are inserted"
        self.pool.cache(fresh)
        table.num_cached_blocks += num_fresh
        if self._emit:
            self._emit(BlocksCached(seq_id, first + ours, tuple(fresh), table.salt))
        return fresh

    def _merge(self, duplicate: Duplicate) -> None:
        """Let the table map the cached block instead of its own, which holds the same."""
        seq_id, table, token_ids, end = duplicate
        size = table.block_size
        while table.num_cached_blocks < end // size:
            index = table.num_cached_blocks
            after = table.blocks[index - 1] if index else None
            tokens = token_ids[index * size : (index + 1) * size]
            cached = self.cache.match(after, tokens, table.salt)
            own = table.blocks[index]
            if cached and any(cached[0] in step.fresh for step in self._in_flight):
                return  # it is not filled yet
            if not cached or cached[0] == own:
                self._insert(seq_id, table, token_ids, end)
                continue
            self.pool.touch(cached)
            self.cache.acquire(cached)
            self.pool.free_blocks((own,))
            table.blocks[index] = cached[0]
            table.num_cached_blocks += 1
            if self._emit:
                self._emit(BlockMerged(seq_id, index, own, cached[0]))

    def _uncache(self, blocks: list[int], reason: str) -> None:
        self.pool.uncache(blocks)
        if self._emit and blocks:
            self._emit(BlocksEvicted(tuple(blocks), reason))

    def check_invariants(self, tables: Mapping[int, BlockTable]) -> None:
        """Raise `AssertionError` unless the cache, the pool and the tables agree on what is cached."""
        self.cache.check_invariants(self.pool.ref_counts)
        assert self.cache.num_evictable_blocks == self.pool.num_evictable_blocks, (
            "cache and pool disagree on what is evictable"
        )
        assert len(self.cache) == sum(self.pool.cached), "cache and pool disagree on what is cached"
        for seq_id, table in tables.items():
            before = None
            for block in table.blocks[: table.num_cached_blocks]:
                assert block in self.cache, f"sequence {seq_id}: block {block} should be cached"
                assert self.cache.parent_of(block) == before, f"sequence {seq_id} has left its path"
                before = block


class Filling(NamedTuple):
    """What becomes of a step's blocks when it is done."""

    fresh: list[int]
    """Cached already, and filled only then."""
    duplicates: list[Duplicate]


class Duplicate(NamedTuple):
    """A table that is filling a block while another block with the same tokens is cached."""

    seq_id: int
    table: BlockTable
    token_ids: Sequence[int]
    end: int
