"""The KV-cache manager: paged memory with sharing, behind the face that the scheduler talks to.

The scheduler asks one question, "may these sequences grow to so many tokens?", and never sees a free
list. The answer is all or nothing. What makes the answer cheap is that a block may have many readers:

    fork        the child's table maps the parent's blocks; each gets one more reference, no data moves
    begin       the prefix cache knows blocks with the same tokens: they are mapped and not computed
    allocate    whoever is about to *write* to a block that others read gets a copy first (copy-on-write)
    free        every block loses one reference; the last reader's farewell sets it free

    A: 7 ─ 2 ─ 5     A writes to 5      A: 7 ─ 2 ─ 8     move: copy 5 → 8, before anything is written
    B: 7 ─ 2 ─ 5     ────────────►      B: 7 ─ 2 ─ 5     B is alone with 5 now and writes in place

Every change of ownership becomes an event.

Source: Kwon et al. (SOSP 2023), sections 4.2–4.5; vLLM's `KVCacheManager`. Read next: `prefixes.py` for
what happens to full blocks, `swap_space.py`, then `minivllm/scheduling/scheduler.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from minivllm.memory.block_move import BlockMove
from minivllm.memory.block_pool import BlockPool
from minivllm.memory.block_table import BlockTable, blocks_needed
from minivllm.memory.cache_manager import Admission, Span
from minivllm.memory.prefix_cache import PrefixCache
from minivllm.memory.prefixes import Prefixes
from minivllm.memory.swap_space import SwapSpace, check_references, distinct_blocks
from minivllm.trace.events import (
    BlockCopied,
    BlocksAllocated,
    BlocksFreed,
    BlocksShared,
    BlocksSwappedIn,
    BlocksSwappedOut,
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
        prefix_cache: remembers full blocks across requests; None forgets them at once.
        num_host_blocks: size of the swap space; 0 for none.
        copy_on_fork: a fork gets copies of all its blocks, not only of those it writes to: what sharing
            is compared with (`minivllm bench beams`).
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
        self.block_size = check_integer("block_size", block_size, at_least=1)
        self.pool = BlockPool(num_blocks)
        self.tables: dict[int, BlockTable] = {}
        self.prefixes = Prefixes(self.pool, prefix_cache, emit) if prefix_cache is not None else None
        self.swap_space = SwapSpace(num_host_blocks) if num_host_blocks else None
        self.copy_on_fork = copy_on_fork
        self._moves: list[BlockMove] = []
        self._emit = emit

    # ── how much there is ─────────────────────────────────────────────────────────────────────────────

    @property
    def num_free_blocks(self) -> int:
        """Blocks that could be handed out now, idle cached ones included."""
        return self.pool.num_free_blocks + self.pool.num_idle_blocks

    @property
    def usage(self) -> float:
        """Share of the blocks that sequences hold, 0 … 1 (vLLM's `kv_cache_usage_perc`)."""
        return self.pool.num_used_blocks / self.pool.num_blocks

    def max_blocks(self, prompt_length: int, longest: int, width: int) -> int:
        """Blocks that a request holds at most when it is alone: whole blocks of the prompt are shared."""
        shared = 0 if self.copy_on_fork else prompt_length // self.block_size
        return shared + width * (blocks_needed(longest, self.block_size) - shared)

    def table(self, seq_id: int) -> BlockTable:
        """The block table of a sequence; `KeyError` if it holds none."""
        return self.tables[seq_id]

    def is_swapped(self, seq_id: int) -> bool:
        """Is its table in the swap space?"""
        return self.swap_space is not None and seq_id in self.swap_space.tables

    # ── the life of a sequence ────────────────────────────────────────────────────────────────────────

    def begin(
        self,
        seq_id: int,
        token_ids: Sequence[int],
        *,
        longest: int,
        width: int = 1,
        extra_blocks: int = 0,
        spare_blocks: int = 0,
        salt: str | None = None,
        use_cache: bool = True,
    ) -> int | None:
        """Give a sequence a table, if there is room for all of its tokens; see `CacheManager.begin`.

        Nothing is reserved for `longest` or `width`: not having to know them is what paging is for.
        """
        table = BlockTable(self.block_size, salt=salt)
        hits = self.prefixes.find(token_ids, table) if self.prefixes and use_cache else []
        missing = blocks_needed(len(token_ids), self.block_size) - len(hits) + extra_blocks
        idle = sum(self.pool.ref_counts[block] == 0 for block in hits)  # free until now, but not after
        if missing + spare_blocks > self.num_free_blocks - idle:
            return None
        self.tables[seq_id] = table
        if hits and self.prefixes:
            self.pool.touch(hits)
            table.append(hits)
            self.prefixes.adopt(table, len(hits))
            if self._emit:
                self._emit(BlocksShared(seq_id, tuple(hits), "cache"))
        return len(hits) * self.block_size

    def get_computed_blocks(self, admission: Admission) -> Sequence[int]:
        prefixes = getattr(self, "prefixes", None)
        if not prefixes or not admission.use_cache:
            return []
        return prefixes.find(admission.token_ids, BlockTable(self.block_size, salt=admission.salt))

    def allocate_slots(
        self, spans: Sequence[Span], admission: Admission | None = None, computed: Sequence[int] = ()
    ) -> bool:
        if admission is not None:
            found = self.begin(
                admission.seq_id,
                admission.token_ids,
                longest=admission.max_total_tokens,
                width=admission.max_num_sequences,
                extra_blocks=admission.extra_blocks,
                spare_blocks=admission.reserved_blocks,
                salt=admission.salt,
                use_cache=admission.use_cache,
            )
            if found is None:
                return False
        return self.allocate(spans)

    def allocate(self, spans: Sequence[Span]) -> bool:
        """Make the cells of all spans writable, each by its own sequence alone, or change nothing."""
        needed = self._missing_blocks(spans, self.tables, self.pool)
        if needed == 0:
            return True  # the usual case: a decode needs a new block only once in `block_size` steps
        if needed > self.num_free_blocks:
            return False
        for span in spans:
            table = self.tables[span.seq_id]
            self._copy_shared_blocks(span, table)
            missing = table.missing_blocks(span.end)
            if missing:
                blocks = self._get_new_blocks(missing)
                table.append(blocks)
                if self._emit:
                    self._emit(BlocksAllocated(span.seq_id, tuple(blocks)))
        return True

    def cache_full_blocks(self, seq_id: int, token_ids: Sequence[int], end: int) -> None:
        """The first `end` tokens are computed once this step is done: full blocks may be found by others."""
        if self.prefixes:
            self.prefixes.remember(seq_id, self.tables[seq_id], token_ids, end)

    def fork(self, parent: int, child: int) -> None:
        """Let `child` map every block of `parent`. Costs O(blocks of the table), and no data."""
        table = self.tables[parent].fork()
        self.pool.touch(table.blocks)
        self.tables[child] = table
        if self.prefixes:
            self.prefixes.adopt(table, table.num_cached_blocks)

    def share(self, donor: int, seq_id: int, num_blocks: int) -> None:
        """Let a sequence that holds nothing map the donor's first `num_blocks` blocks."""
        source = self.tables[donor]
        table = BlockTable(self.block_size, source.blocks[:num_blocks], source.salt)
        self.pool.touch(table.blocks)
        self.tables[seq_id] = table
        if self.prefixes:
            self.prefixes.adopt(table, min(num_blocks, source.num_cached_blocks))
        if self._emit and num_blocks:
            self._emit(BlocksShared(seq_id, tuple(table.blocks), "sibling"))

    def free(self, seq_id: int) -> None:
        """Give back everything that a sequence holds, here or in the swap space.

        The last block goes first: it is the least likely to be wanted again, so it should be reused first.
        """
        if self.swap_space and seq_id in self.swap_space.tables:
            host_blocks = self.swap_space.free(seq_id)
            if self._emit:
                self._emit(HostBlocksFreed(seq_id, host_blocks))
        table = self.tables.pop(seq_id, None)
        if table is None or not table.blocks:
            return
        blocks = self._drop_references(table)
        if self._emit:
            self._emit(BlocksFreed(seq_id, blocks))

    # ── out of the pool and back ──────────────────────────────────────────────────────────────────────

    def swap_out(self, seq_ids: Sequence[int]) -> str:
        """Move a request's tables to the swap space, all or nothing. Returns why not, or ""."""
        held = [seq_id for seq_id in seq_ids if seq_id in self.tables]
        tables = {seq_id: self.tables[seq_id] for seq_id in held if self.tables[seq_id].blocks}
        if self.swap_space is None:
            return "there is no swap space"
        needed, room = len(distinct_blocks(tables.values())), self.swap_space.pool.num_free_blocks
        if needed > room:
            return f"{needed} blocks do not fit into the {room} that are free in the swap space"
        twins = self.swap_space.take(tables)
        self._moves += [BlockMove("swap_out", device, host) for device, host in twins.items()]
        for seq_id in held:
            del self.tables[seq_id]  # also where there is nothing in it yet, and so nothing to swap
        for seq_id, table in tables.items():
            blocks = self._drop_references(table)
            if self._emit:
                self._emit(BlocksSwappedOut(seq_id, blocks, tuple(twins[block] for block in blocks)))
        return ""

    def swap_in(self, spans: Sequence[Span], spare_blocks: int) -> bool:
        """Bring sequences back, if there is room for them and for what `spans` will need. All or nothing."""
        assert self.swap_space is not None, "nothing can be swapped in where nothing was swapped out"
        tables = {span.seq_id: self.swap_space.tables[span.seq_id] for span in spans}
        host_blocks = distinct_blocks(tables.values())
        needed = len(host_blocks) + self._missing_blocks(spans, tables, self.swap_space.pool)
        if needed + spare_blocks > self.num_free_blocks:
            return False
        twins = dict(zip(host_blocks, self._get_new_blocks(len(host_blocks)), strict=True))
        self._moves += [BlockMove("swap_in", host, device) for host, device in twins.items()]
        seen: set[int] = set()
        for seq_id, host_table in tables.items():
            blocks = tuple(twins[block] for block in host_table.blocks)
            self.tables[seq_id] = BlockTable(self.block_size, blocks, host_table.salt)
            self.pool.touch(block for block in blocks if block in seen)
            seen.update(blocks)
            if self._emit:
                self._emit(BlocksSwappedIn(seq_id, tuple(host_table.blocks), blocks))
            self.swap_space.free(seq_id)
        return True

    # ── once a step ───────────────────────────────────────────────────────────────────────────────────

    def take_moves(self) -> tuple[BlockMove, ...]:
        """The moves ordered since the last call, for the plan of this step."""
        moves, self._moves = tuple(self._moves), []
        return moves

    def commit(self) -> None:
        """The step was carried out: what it filled and moved is really there."""
        if self.prefixes:
            self.prefixes.commit()

    def abandon(self) -> None:
        """The step failed: forget what it would have filled. Those who were in it have been freed."""
        self._moves.clear()
        if self.prefixes:
            self.prefixes.abandon()

    def reset_prefix_cache(self) -> None:
        """Forget everything that is cached and in nobody's table."""
        if self.prefixes:
            self.prefixes.reset()

    # ── how it is done ────────────────────────────────────────────────────────────────────────────────

    def _missing_blocks(self, spans: Sequence[Span], tables: dict[int, BlockTable], pool: BlockPool) -> int:
        """Blocks that `allocate` takes for these spans: to grow, and to copy what others read.

        Of a block with r readers that w of them write to, r - 1 at most need a copy: the last one to
        come is alone with it. `left` counts the readers down as `allocate` will.
        """
        needed = 0
        left: dict[int, int] = {}
        for seq_id, start, end in spans:
            blocks = tables[seq_id].blocks
            covered = blocks_needed(end, self.block_size)
            if covered > len(blocks):
                needed += covered - len(blocks)
                covered = len(blocks)
            for index in range(self._first_to_copy(start), covered):
                block = blocks[index]
                readers = left.get(block) or pool.ref_counts[block]
                if readers > 1:
                    needed += 1
                    left[block] = readers - 1
        return needed

    def _first_to_copy(self, start: int) -> int:
        """The first logical block that a write from position `start` on must have for itself."""
        return 0 if self.copy_on_fork else start // self.block_size

    def _copy_shared_blocks(self, span: Span, table: BlockTable) -> None:
        """Copy-on-write: replace each shared block in the span by a copy that only this table maps."""
        covered = min(blocks_needed(span.end, self.block_size), len(table))
        for index in range(self._first_to_copy(span.start), covered):
            source = table.blocks[index]
            if self.pool.ref_counts[source] > 1:
                (target,) = self._get_new_blocks(1)
                if self.prefixes:
                    self.prefixes.cut(table, index)
                self.pool.free_blocks((source,))
                table.blocks[index] = target
                self._moves.append(BlockMove("copy", source, target))
                if self._emit:
                    self._emit(BlockCopied(span.seq_id, index, source, target))

    def _get_new_blocks(self, count: int) -> list[int]:
        """Free blocks, evicting idle cached ones if need be."""
        short = count - self.pool.num_free_blocks
        if short > 0 and self.prefixes:
            self.prefixes.evict(short)
        return self.pool.get_new_blocks(count)

    def _drop_references(self, table: BlockTable) -> tuple[int, ...]:
        """One reference less to each block of a table that is no more; returns them, the last first."""
        if self.prefixes:
            self.prefixes.cut(table, 0)
        blocks = tuple(reversed(table.blocks))
        self.pool.free_blocks(blocks)
        return blocks

    def check_invariants(self) -> None:
        """Raise `AssertionError` unless references equal the number of tables that map each block."""
        self.pool.check_invariants()
        check_references(self.pool, self.tables)
        for seq_id, table in self.tables.items():
            assert table.block_size == self.block_size, f"sequence {seq_id} uses another block size"
        if self.prefixes:
            self.prefixes.check_invariants(self.tables)
        if self.swap_space:
            self.swap_space.check_invariants()
            assert not set(self.tables) & set(self.swap_space.tables), "a table is in both pools"
