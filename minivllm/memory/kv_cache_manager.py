"""The KV-cache manager: paged memory with sharing, as the scheduler sees it.

The scheduler asks one question, "may these sequences write so many tokens?", and never sees a free list. The
answer is all or nothing. It costs little, because several tables may map one block:

    admit     the prefix cache has blocks with the same tokens: they are mapped and not computed
    grow      a sequence that *writes* to a block that other tables map gets a copy first (`copy_on_write.py`)
    cache     a block that is full can be found by later requests (`prefix_caching.py`)
    fork      the child's table maps the parent's blocks; each gets one more reference, no data moves
    truncate  the last blocks come back: drafts were written there, and rejected
    free      each block loses one reference; with its last one it is free, or evictable if it is cached

    allocate_slots(spans, admission) ─► allocate_slots(spans) ─► … ─► fork ─► allocate_slots(spans) ─► free
           └── cache_full_blocks ──────────┴────────────────────────────────────────┘

Every change of ownership becomes an event.

Source: Kwon et al. (SOSP 2023), sections 4.2–4.5; vLLM's `KVCacheManager`. Read next: `copy_on_write.py`,
`prefix_caching.py`, `swap_space.py`, then `minivllm/scheduling/scheduler.py`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from itertools import chain

from minivllm.memory.block_move import BlockMove
from minivllm.memory.block_pool import BlockPool
from minivllm.memory.block_table import BlockTable, blocks_needed
from minivllm.memory.cache_manager import Admission, Span, SwapOut
from minivllm.memory.copy_on_write import CopyOnWrite
from minivllm.memory.prefix_cache import PrefixCache
from minivllm.memory.prefix_caching import PrefixCaching
from minivllm.memory.swap_space import SwapSpace, check_references, distinct_blocks, map_elsewhere
from minivllm.trace.events import (
    BlockCopied,
    BlocksAllocated,
    BlocksFreed,
    BlocksShared,
    BlocksSwappedIn,
    BlocksSwappedOut,
    BlocksTruncated,
    Event,
    HostBlocksFreed,
)
from minivllm.validation import check_integer


class KVCacheManager:
    """One block pool and the block tables of all sequences. See `CacheManager` for the contract.

    Args:
        num_blocks: physical blocks in the pool.
        block_size: tokens per block.
        emit: receives every change as an event; None records nothing and costs nothing.
        prefix_cache: finds full blocks again across requests; None forgets them at once.
        num_host_blocks: size of the swap space; 0 for none.
        copy_on_fork: see `CopyOnWrite`; not together with a prefix cache.

    Raises:
        ValueError: a number is out of range, or blocks are to be shared and copied at the same time.
    """

    def __init__(
        self,
        num_blocks: int,
        block_size: int,
        emit: Callable[[Event], None] | None = None,
        *,
        prefix_cache: PrefixCache | None = None,
        num_host_blocks: int = 0,
        copy_on_fork: bool = False,
    ) -> None:
        if copy_on_fork and prefix_cache is not None:
            raise ValueError("copy_on_fork must be False where prefix_cache shares blocks, got True")
        self.block_size = check_integer("block_size", block_size, at_least=1)
        self.pool = BlockPool(num_blocks)
        self.tables: dict[int, BlockTable] = {}
        self.copy_on_write = CopyOnWrite(block_size, copy_on_fork=copy_on_fork)
        self.prefix_caching = (
            PrefixCaching(self.pool, prefix_cache, emit) if prefix_cache is not None else None
        )
        self.swap_space = SwapSpace(num_host_blocks) if num_host_blocks else None
        self._moves: list[BlockMove] = []
        self._emit = emit

    # ── the life of a sequence ────────────────────────────────────────────────────────────────────────

    def get_computed_blocks(self, admission: Admission) -> Sequence[int]:
        """The cached blocks that hold the longest prefix of its tokens. Nothing changes."""
        if self.prefix_caching is None or not admission.use_cache:
            return ()
        return self.prefix_caching.find(admission.token_ids, self.block_size, admission.salt)

    def allocate_slots(
        self, spans: Sequence[Span], admission: Admission | None = None, computed: Sequence[int] = ()
    ) -> bool:
        """Make the slots of all spans writable, each by its own sequence alone, or change nothing."""
        if admission is not None:
            has_room = self._admit(spans, admission, computed)
        else:
            if len(spans) == 1 and self._writes_to_own_last_block(spans[0]):
                return True  # the usual case: a decode needs a new block only once in `block_size` steps
            needed = self.copy_on_write.count_new_blocks(spans, self.tables, self.pool)
            has_room = needed <= self.num_free_blocks
        if not has_room:
            return False
        for span in spans:
            table = self.tables[span.seq_id]
            for index in self.copy_on_write.shared_blocks(span, table, self.pool):
                self._copy_block(span.seq_id, table, index)
            missing = table.missing_blocks(span.end)
            if missing:
                blocks = self._get_new_blocks(missing)
                table.append(blocks)
                if self._emit:
                    self._emit(BlocksAllocated(span.seq_id, tuple(blocks)))
        return True

    def _writes_to_own_last_block(self, span: Span) -> bool:
        """Does the span end in the table's last block, begin there, and is that block in no other table?"""
        blocks, (_, start, end) = self.tables[span.seq_id].blocks, span
        last = len(blocks) - 1
        return (
            last >= 0
            and start >= last * self.block_size
            and end <= (last + 1) * self.block_size
            and self.pool.ref_counts[blocks[last]] == 1
            and not self.copy_on_write.copy_on_fork
        )

    def could_admit(
        self, admission: Admission, computed: Sequence[int], without: Collection[int] = ()
    ) -> bool:
        """Is there room for all tokens of a sequence whose table begins with `computed`?

        Nothing is reserved for the tokens and forks to come: not having to know them is what paging is for.
        """
        gone = self._count_references(without)
        missing = blocks_needed(len(admission.token_ids), self.block_size) - len(computed)
        # Computed blocks that no table maps count as free until now, and not once they are mapped.
        evictable = [block for block in computed if self.pool.ref_counts[block] == gone.get(block, 0)]
        assert all(self.pool.cached[block] for block in evictable), "a computed block has been evicted"
        wanted = missing + admission.extra_blocks + admission.reserved_blocks
        return wanted <= self.num_free_blocks + self._num_freed(gone) - len(evictable)

    def _count_references(self, seq_ids: Collection[int]) -> Mapping[int, int]:
        """Block → tables of these sequences that map it."""
        tables = (self.tables[seq_id].blocks for seq_id in seq_ids if seq_id in self.tables)
        return Counter(chain.from_iterable(tables)) if seq_ids else {}

    def _num_freed(self, gone: Mapping[int, int]) -> int:
        """Blocks that no table would map without so many references to each."""
        ref_counts = self.pool.ref_counts
        return sum(ref_counts[block] == count for block, count in gone.items())

    def _admit(self, spans: Sequence[Span], admission: Admission, computed: Sequence[int]) -> bool:
        """Give a sequence a table that begins with `computed`, if there is room for all of its tokens."""
        admission.check(spans, self.tables, len(computed) * self.block_size)
        if not self.could_admit(admission, computed):
            return False
        table = BlockTable(self.block_size, computed, admission.salt)
        self._add_table(admission.seq_id, table, num_cached_blocks=len(computed))
        if self._emit and computed:
            self._emit(BlocksShared(admission.seq_id, tuple(computed), "cache"))
        return True

    def cache_full_blocks(
        self, seq_id: int, token_ids: Sequence[int], end: int, *, in_flight: bool = False
    ) -> None:
        """The first `end` tokens are computed once this step is done: other requests may find full blocks."""
        if self.prefix_caching:
            table = self.tables[seq_id]
            self.prefix_caching.cache_full_blocks(seq_id, table, token_ids, end, in_flight=in_flight)

    def fork(self, parent: int, child: int) -> None:
        """Let `child` map every block of `parent`. Costs O(blocks of the table), and no data."""
        table = self.tables[parent].fork()
        self._add_table(child, table, table.num_cached_blocks)

    def share(self, donor: int, seq_id: int, num_blocks: int) -> None:
        """Let a sequence that holds nothing map the donor's first `num_blocks` blocks."""
        source = self.tables[donor]
        table = BlockTable(self.block_size, source.blocks[:num_blocks], source.salt)
        self._add_table(seq_id, table, min(num_blocks, source.num_cached_blocks))
        if self._emit and num_blocks:
            self._emit(BlocksShared(seq_id, tuple(table.blocks), "sibling"))

    def truncate(self, seq_id: int, num_tokens: int) -> None:
        """Free the blocks behind the first `num_tokens` tokens, the last block first."""
        table = self.tables[seq_id]
        kept = blocks_needed(num_tokens, self.block_size)
        if kept < len(table):
            blocks = tuple(reversed(table.blocks[kept:]))
            if self.prefix_caching:
                self.prefix_caching.truncate(table, min(kept, table.num_cached_blocks))
            del table.blocks[kept:]
            self.pool.free_blocks(blocks)
            if self._emit:
                self._emit(BlocksTruncated(seq_id, blocks))

    def free(self, seq_id: int) -> None:
        """Free everything that a sequence holds, here or in the swap space.

        Its last block goes first: it is the least likely to be found again, so it should be reused first.
        """
        if self.swap_space is not None and seq_id in self.swap_space.tables:
            host_blocks = self.swap_space.free(seq_id)
            if self._emit:
                self._emit(HostBlocksFreed(seq_id, host_blocks))
        if seq_id in self.tables:
            blocks = self._remove_table(seq_id)
            if self._emit and blocks:
                self._emit(BlocksFreed(seq_id, blocks))

    # ── how much there is ─────────────────────────────────────────────────────────────────────────────

    @property
    def num_free_blocks(self) -> int:
        """Blocks that could be allocated now, evictable ones included."""
        return self.pool.num_free_blocks + self.pool.num_evictable_blocks

    @property
    def usage(self) -> float:
        """Share of the blocks that sequences hold, 0 … 1 (vLLM's `kv_cache_usage_perc`)."""
        return self.pool.num_used_blocks / self.pool.num_blocks

    def max_blocks(self, prompt_length: int, max_kv_tokens: int, max_num_sequences: int) -> int:
        """Blocks that a request holds at most when it is alone: whole blocks of the prompt are shared."""
        shared = 0 if self.copy_on_write.copy_on_fork else prompt_length // self.block_size
        return shared + max_num_sequences * (blocks_needed(max_kv_tokens, self.block_size) - shared)

    def table(self, seq_id: int) -> BlockTable:
        """The block table of a sequence; `KeyError` if it holds none."""
        return self.tables[seq_id]

    # ── out of the pool and back ──────────────────────────────────────────────────────────────────────

    def is_swapped(self, seq_id: int) -> bool:
        """Is its table in the swap space?"""
        return self.swap_space is not None and seq_id in self.swap_space.tables

    def swap_out(self, seq_ids: Sequence[int]) -> SwapOut:
        """Move a request's tables to the swap space, all or nothing."""
        if self.swap_space is None:
            return SwapOut(False, "there is no swap space")
        held = [seq_id for seq_id in seq_ids if seq_id in self.tables]
        tables = {seq_id: self.tables[seq_id] for seq_id in held if self.tables[seq_id].blocks}
        needed, room = len(distinct_blocks(tables.values())), self.swap_space.pool.num_free_blocks
        if needed > room:
            shortage = f"{needed} blocks do not fit into the {room} that are free in the swap space"
            return SwapOut(False, shortage)
        host_of = self.swap_space.take(tables)
        self._moves += [BlockMove("swap_out", device, host) for device, host in host_of.items()]
        for seq_id in held:  # also those whose table is empty, and that have nothing to swap
            blocks = self._remove_table(seq_id)
            if self._emit and blocks:
                self._emit(BlocksSwappedOut(seq_id, blocks, tuple(host_of[block] for block in blocks)))
        return SwapOut(True)

    def could_swap_in(
        self, spans: Sequence[Span], reserved_blocks: int, without: Collection[int] = ()
    ) -> bool:
        """Is there room for these sequences and for what `spans` will need?"""
        assert self.swap_space is not None, "nothing can be swapped in where nothing was swapped out"
        host_tables = {span.seq_id: self.swap_space.tables[span.seq_id] for span in spans}
        needed = len(distinct_blocks(host_tables.values()))
        needed += self.copy_on_write.count_new_blocks(spans, host_tables, self.swap_space.pool)
        room = self.num_free_blocks + self._num_freed(self._count_references(without))
        return needed + reserved_blocks <= room

    def swap_in(self, spans: Sequence[Span], reserved_blocks: int) -> bool:
        """Bring sequences back, if there is room for them and for what `spans` will need. All or nothing."""
        if not self.could_swap_in(spans, reserved_blocks):
            return False
        assert self.swap_space is not None, "there is something to swap in"
        host_tables = {span.seq_id: self.swap_space.tables[span.seq_id] for span in spans}
        new_blocks = self._get_new_blocks(len(distinct_blocks(host_tables.values())))
        device_of, tables = map_elsewhere(host_tables, self.pool, new_blocks)
        self._moves += [BlockMove("swap_in", host, device) for host, device in device_of.items()]
        self.tables |= tables
        for seq_id, table in tables.items():
            host_blocks = self.swap_space.free(seq_id)
            if self._emit:
                self._emit(BlocksSwappedIn(seq_id, host_blocks, tuple(table.blocks)))
        return True

    # ── once a step ───────────────────────────────────────────────────────────────────────────────────

    def take_moves(self) -> tuple[BlockMove, ...]:
        """The moves ordered since the last call, for the plan of this step."""
        moves, self._moves = tuple(self._moves), []
        return moves

    def seal(self) -> None:
        """A step is planned, and in flight now."""
        if self.prefix_caching:
            self.prefix_caching.seal()

    def commit(self, named: Collection[int] = ()) -> bool:
        """The oldest step was carried out: what it filled and moved is really there."""
        return self.prefix_caching.commit(named) if self.prefix_caching else False

    def abandon(self) -> None:
        """All steps failed: forget what they would have filled. The caller has freed their sequences."""
        self._moves.clear()
        if self.prefix_caching:
            self.prefix_caching.abandon()

    def reset_prefix_cache(self) -> bool:
        """Forget every cached block that no table maps. Returns whether no block is cached now."""
        if self.prefix_caching is None:
            return True
        self.prefix_caching.reset()
        return not len(self.prefix_caching.cache)

    # ── how it is done ────────────────────────────────────────────────────────────────────────────────

    def _add_table(self, seq_id: int, table: BlockTable, num_cached_blocks: int) -> None:
        """One more table maps blocks that are in use or cached; the first of them are cached."""
        if table.blocks:
            self.pool.touch(table.blocks)
            if self.prefix_caching:
                self.prefix_caching.attach(table, num_cached_blocks)
        self.tables[seq_id] = table

    def _remove_table(self, seq_id: int) -> tuple[int, ...]:
        """One reference less to each block of a table; returns them, the last first."""
        table = self.tables.pop(seq_id)
        if self.prefix_caching:
            self.prefix_caching.truncate(table, 0)
        blocks = tuple(reversed(table.blocks))
        self.pool.free_blocks(blocks)
        return blocks

    def _copy_block(self, seq_id: int, table: BlockTable, index: int) -> None:
        """Copy-on-write: replace a shared block by a copy that only this table maps."""
        source = table.blocks[index]
        (target,) = self._get_new_blocks(1)
        if self.prefix_caching:
            self.prefix_caching.truncate(table, index)
        self.pool.free_blocks((source,))
        table.blocks[index] = target
        self._moves.append(BlockMove("copy", source, target))
        if self._emit:
            self._emit(BlockCopied(seq_id, index, source, target))

    def _get_new_blocks(self, count: int) -> list[int]:
        """Free blocks; cached ones are evicted if there are too few."""
        shortage = count - self.pool.num_free_blocks
        if shortage > 0 and self.prefix_caching:
            self.prefix_caching.evict(shortage)
        return self.pool.get_new_blocks(count)

    def check_invariants(self) -> None:
        """Raise `AssertionError` unless references equal the number of tables that map each block."""
        self.pool.check_invariants()
        check_references(self.pool, self.tables)
        for seq_id, table in self.tables.items():
            assert table.block_size == self.block_size, f"sequence {seq_id} uses another block size"
        if self.prefix_caching:
            self.prefix_caching.check_invariants(self.tables)
        if self.swap_space:
            self.swap_space.check_invariants()
            assert not set(self.tables) & set(self.swap_space.tables), "a table is in both pools"
