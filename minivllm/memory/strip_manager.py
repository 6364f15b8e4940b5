"""What all memories without sharing have in common: every sequence writes to a strip of its own.

They implement the same protocol as paging (`CacheManager`), so the same scheduler drives both, and block
tables are still block tables: only that they count 4, 5, 6, … No attention kernel can tell the difference.

A fork must have everything its parent has, and there is only one way to give it that: copy. The copy is made
when the child is about to write, for two reasons. Pruned beams have been freed by then, so that their strips
can be used again; and a child whose parent has been freed meanwhile takes over the parent's strip.

    fork              parent 4 5 6     child 4 5 6      the child is a guest: it reads the parent's strip
    allocate_slots    parent 4 5 6     child 8 9 10     copy 4 → 8, 5 → 9, as far as anything is written

Until then the parent may go on to write in its strip: it only appends, behind all that the guest reads.

Read next: `reservation.py` (a strip of fixed length) and `virtual_memory.py` (one that grows).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple

from minivllm.memory.block_move import BlockMove
from minivllm.memory.block_table import BlockTable, blocks_needed
from minivllm.memory.cache_manager import Admission, Span, SwapOut
from minivllm.memory.strips import NamedPool, Strip
from minivllm.trace.events import BlockCopied, BlocksAllocated, BlocksFreed, BlocksShared, Event
from minivllm.validation import check_integer


class Promise(NamedTuple):
    """Blocks that are taken and that no table maps yet: for positions from `start` on."""

    seq_id: int
    """The sequence that will use them, or one of the request that will."""
    start: int
    num_blocks: int


class StripManager(ABC):
    """Block tables of consecutive blocks; see `CacheManager` for the contract.

    Args:
        num_blocks: blocks that have a number. Not all of them need to exist at the same time.
        block_size: tokens per block.
        emit: receives every change as an event, or None.
    """

    def __init__(self, num_blocks: int, block_size: int, emit: Callable[[Event], None] | None) -> None:
        self.block_size = check_integer("block_size", block_size, at_least=1)
        self.pool = NamedPool(num_blocks)
        self.tables: dict[int, BlockTable] = {}
        self._strips: dict[int, Strip] = {}  # of each sequence that has a strip of its own
        self._guests: dict[int, Strip] = {}  # of each other sequence: the strip that it reads
        self._filled: dict[int, int] = {}  # positions of each sequence that are written, or planned to be
        self._moves: list[BlockMove] = []
        self._emit = emit

    # ── where subclasses differ ───────────────────────────────────────────────────────────────────────

    @abstractmethod
    def could_admit(
        self, admission: Admission, computed: Sequence[int], without: Collection[int]
    ) -> bool: ...

    @abstractmethod
    def _admit(self, admission: Admission) -> bool:
        """Give a sequence a strip with room for all tokens it has, or change nothing."""

    @abstractmethod
    def _has_room(self, spans: Sequence[Span]) -> bool:
        """Is there room for all of these writes?"""

    @abstractmethod
    def _new_strip(self, seq_id: int) -> Strip:
        """A strip for a guest that needs one of its own."""

    @abstractmethod
    def _extent(self, strip: Strip, num_tokens: int) -> int:
        """Blocks of the strip that a table maps whose sequence writes `num_tokens` tokens."""

    @abstractmethod
    def _free_strip(self, seq_id: int, strip: Strip | None) -> None:
        """A sequence was freed; `strip` is what no sequence uses any more."""

    @property
    @abstractmethod
    def num_free_blocks(self) -> int: ...

    @property
    @abstractmethod
    def usage(self) -> float: ...

    @abstractmethod
    def max_blocks(self, prompt_length: int, max_kv_tokens: int, max_num_sequences: int) -> int: ...

    @abstractmethod
    def promises(self) -> list[Promise]:
        """Everything that is taken without being in a table: what `waste.py` has to know."""

    # ── the life of a sequence ────────────────────────────────────────────────────────────────────────

    def get_computed_blocks(self, admission: Admission) -> Sequence[int]:
        """None: no request finds what is in another's strip."""
        return ()

    def allocate_slots(
        self, spans: Sequence[Span], admission: Admission | None = None, computed: Sequence[int] = ()
    ) -> bool:
        """Make the slots of all spans writable, each by its own sequence alone, or change nothing."""
        if admission is not None:
            admission.check(spans, self.tables, len(computed) * self.block_size)
            if not self._admit(admission):
                return False
        if not self._has_room(spans):
            return False
        for seq_id, _, end in spans:
            if seq_id in self._guests:
                self._copy_to_own_strip(seq_id)
            self._extend(seq_id, end)
            self._filled[seq_id] = max(self._filled[seq_id], end)
        return True

    def fork(self, parent: int, child: int) -> None:
        """Let `child` read the parent's strip until it writes for the first time."""
        table = self.tables[parent].fork()
        self.pool.touch(table.blocks)
        self._become_guest(parent, child, table, self._filled[parent])

    def share(self, donor: int, seq_id: int, num_blocks: int) -> None:
        """Let a sequence that holds nothing read the donor's first blocks until it writes itself."""
        table = BlockTable(self.block_size, self.tables[donor].blocks[:num_blocks])
        self.pool.touch(table.blocks)
        self._become_guest(donor, seq_id, table, num_blocks * self.block_size)
        if self._emit and num_blocks:
            self._emit(BlocksShared(seq_id, tuple(table.blocks), "sibling"))

    def free(self, seq_id: int) -> None:
        """Free everything that a sequence holds. Nothing held is no error."""
        table = self.tables.pop(seq_id, None)
        if table is None:
            return
        del self._filled[seq_id]
        strip = self._strips.pop(seq_id, None)
        self._guests.pop(seq_id, None)
        guests = [guest for guest, host in self._guests.items() if host == strip]
        if strip is not None and guests:
            # One takes the strip over and needs no copy: who reads furthest, since it goes on behind that.
            heir = max(guests, key=self._filled.__getitem__)
            self._strips[heir] = self._guests.pop(heir)
            strip = None
        blocks = tuple(table.blocks)
        self.pool.release(blocks)
        if self._moves:  # what would have been copied here is not needed any more
            gone = {block for block in blocks if self.pool.ref_counts[block] == 0}
            self._moves = [move for move in self._moves if move.target not in gone]
        if self._emit and blocks:
            self._emit(BlocksFreed(seq_id, blocks))
        self._free_strip(seq_id, strip)

    # ── what strips cannot do, or need not ────────────────────────────────────────────────────────────

    def truncate(self, seq_id: int, num_tokens: int) -> None:
        """A strip keeps its length; what lies behind these tokens will be overwritten."""
        self._filled[seq_id] = min(self._filled[seq_id], num_tokens)

    def cache_full_blocks(  # noqa: B027
        self, seq_id: int, token_ids: Sequence[int], end: int, *, in_flight: bool = False
    ) -> None:
        """Nothing: no other request finds what is in a strip."""

    def is_swapped(self, seq_id: int) -> bool:
        """Never."""
        return False

    def swap_out(self, seq_ids: Sequence[int]) -> SwapOut:
        """Always declined."""
        return SwapOut(False, "there is no swap space: only paged memory has one")

    def could_swap_in(self, spans: Sequence[Span], reserved_blocks: int, without: Collection[int]) -> bool:
        raise AssertionError("nothing can be swapped in where nothing is ever swapped out")

    def swap_in(self, spans: Sequence[Span], reserved_blocks: int) -> bool:
        raise AssertionError("nothing can be swapped in where nothing is ever swapped out")

    def take_moves(self) -> tuple[BlockMove, ...]:
        """The copies ordered since the last call, for the plan of this step."""
        moves, self._moves = tuple(self._moves), []
        return moves

    def seal(self) -> None:  # noqa: B027
        """Nothing is noted for a step."""

    def commit(self, named: Collection[int] = ()) -> bool:
        """Nothing is left to do."""
        return False

    def abandon(self) -> None:
        """The step failed; the caller has freed its sequences."""
        self._moves.clear()

    def reset_prefix_cache(self) -> bool:
        """Nothing is cached."""
        return True

    # ── how it is done ────────────────────────────────────────────────────────────────────────────────

    def _place(self, seq_id: int, strip: Strip) -> None:
        """A sequence that holds nothing gets a strip of its own, and an empty table."""
        self.tables[seq_id] = BlockTable(self.block_size)
        self._strips[seq_id] = strip
        self._filled[seq_id] = 0

    def _become_guest(self, host: int, seq_id: int, table: BlockTable, filled: int) -> None:
        self.tables[seq_id] = table
        self._guests[seq_id] = self._strips[host] if host in self._strips else self._guests[host]
        self._filled[seq_id] = filled

    def _extend(self, seq_id: int, num_tokens: int) -> None:
        """Let a table reach as far as these tokens need."""
        strip, table = self._strips[seq_id], self.tables[seq_id]
        blocks = strip.blocks[len(table) : self._extent(strip, num_tokens)]
        if blocks:
            self.pool.take(blocks)
            table.append(blocks)
            if self._emit:
                self._emit(BlocksAllocated(seq_id, tuple(blocks)))

    def _copy_to_own_strip(self, seq_id: int) -> None:
        """A guest gets a strip of its own, and a copy of what it has computed.

        A forked table also maps slots of the parent's strip that are not written yet. They are not worth a
        copy: in the trace the table is freed after the copies, and allocated again as what it is now.
        """
        strip, table = self._new_strip(seq_id), self.tables[seq_id]
        del self._guests[seq_id]
        self._strips[seq_id] = strip
        num_written = blocks_needed(self._filled[seq_id], self.block_size)
        for index in range(num_written):
            source, target = table.blocks[index], strip.first + index
            self.pool.take((target,))
            self.pool.release((source,))
            table.blocks[index] = target
            self._moves.append(BlockMove("copy", source, target))
            if self._emit:
                self._emit(BlockCopied(seq_id, index, source, target))
        if len(table) > num_written:
            self.pool.release(table.blocks)
            if self._emit:
                self._emit(BlocksFreed(seq_id, tuple(table.blocks)))
            del table.blocks[:]

    def check_invariants(self) -> None:
        """Raise `AssertionError` unless tables, strips and references agree."""
        self.pool.check_invariants()
        mapped = [0] * self.pool.num_blocks
        for table in self.tables.values():
            for block in table.blocks:
                mapped[block] += 1
        assert mapped == self.pool.ref_counts.tolist(), (
            "references differ from the tables that map each block"
        )
        assert set(self.tables) == set(self._filled) == set(self._strips) | set(self._guests)
        assert not set(self._strips) & set(self._guests), "a guest has a strip of its own"
        strips = list(self._strips.values())
        assert len(strips) == len(set(strips)), "two sequences have the same strip"
        assert set(self._guests.values()) <= set(strips), "the strip that a guest reads is gone"
        for seq_id, table in self.tables.items():
            strip = self._strips.get(seq_id) or self._guests[seq_id]
            assert table.blocks.tolist() == list(strip.blocks[: len(table)]), (
                f"sequence {seq_id} is scattered"
            )
