"""The books of all blocks, rebuilt from events: both pools, the block tables, and the prefix cache.

    event ──► device pool   free list, reference counts      tables        sequence → its blocks
              host pool     the same, for the swap space     host_tables
              cached        block → the block before it, and the sequence whose tokens it holds

Every block is free, in use (mapped by a table), or evictable (cached and mapped by none).

Read next: `replay.py`, which keeps everything else of the engine's state.
"""

from __future__ import annotations

import copy
from collections.abc import Container, Iterable
from dataclasses import dataclass, field

from minivllm.trace.events import (
    BlockCopied,
    BlockEvent,
    BlockMerged,
    BlocksAllocated,
    BlocksCached,
    BlocksEvicted,
    BlocksFreed,
    BlocksShared,
    BlocksSwappedIn,
    BlocksSwappedOut,
    BlocksTruncated,
    HostBlocksFreed,
    SequenceForked,
    SnapshotTaken,
    StateRebuilt,
)
from minivllm.trace.reader import refuse_event


@dataclass(frozen=True, slots=True)
class CachedBlock:
    """What the prefix cache remembers of one block."""

    after: int | None
    """The block before it in its path; None at the root."""
    seq: int
    """The sequence that filled it."""
    index: int
    """Its place in that sequence's table: it holds tokens `index · block_size …`."""
    salt: str | None


@dataclass
class PoolBooks:
    """One pool: its free list, in order, and its reference counts."""

    # Ordered: blocks are taken from the front and come back at the end, as in the block pool.
    free: dict[int, None]
    ref_counts: list[int]

    @classmethod
    def of_size(cls, num_blocks: int) -> PoolBooks:
        """A pool of free blocks."""
        return cls(dict.fromkeys(range(num_blocks)), [0] * num_blocks)

    def take(self, blocks: Iterable[int]) -> None:
        """One more reference to each block; free ones leave the free list."""
        for block in blocks:
            if self.ref_counts[block] == 0:
                self.free.pop(block, None)
            self.ref_counts[block] += 1

    def drop(self, blocks: Iterable[int], cached: Container[int] = ()) -> int:
        """One reference less; a block without any is free, unless cached. Returns how many are evictable."""
        num_evictable = 0
        for block in blocks:
            self.ref_counts[block] -= 1
            if self.ref_counts[block] == 0:
                if block in cached:
                    num_evictable += 1
                else:
                    self.free[block] = None
        return num_evictable

    def copy(self) -> PoolBooks:
        """A copy that shares nothing."""
        return PoolBooks(dict(self.free), list(self.ref_counts))


@dataclass
class BlockBooks:
    """The state of all blocks after the events applied so far, which must fit (`contradictions.py`)."""

    device: PoolBooks
    host: PoolBooks
    tables: dict[int, list[int]] = field(default_factory=dict)
    host_tables: dict[int, list[int]] = field(default_factory=dict)
    cached: dict[int, CachedBlock] = field(default_factory=dict)
    num_evictable: int = 0
    """Device blocks that are cached and in no table."""

    @classmethod
    def of_sizes(cls, num_blocks: int, num_host_blocks: int = 0) -> BlockBooks:
        """Two pools of free blocks."""
        return cls(PoolBooks.of_size(num_blocks), PoolBooks.of_size(num_host_blocks))

    def apply(self, event: BlockEvent) -> None:
        """Let one event happen.

        Raises:
            TraceError: it is none of the events that change blocks.
        """
        match event:
            case BlocksAllocated():
                self.device.take(event.blocks)
                self.tables.setdefault(event.seq, []).extend(event.blocks)
            case BlocksShared():
                self._map(event.seq, event.blocks)
            case SequenceForked():
                self._map(event.child, self.tables.get(event.parent, []))
            case BlockCopied():
                self._replace(event.seq, event.index, event.source, event.target)
            case BlockMerged():
                self._replace(event.seq, event.index, event.block, event.twin)
            case BlocksFreed():
                del self.tables[event.seq]
                self._drop(event.blocks)
            case BlocksTruncated():
                del self.tables[event.seq][-len(event.blocks) :]
                self._drop(event.blocks)
            case BlocksCached():
                table = self.tables[event.seq]
                for index, block in enumerate(event.blocks, event.first):
                    after = table[index - 1] if index else None
                    self.cached[block] = CachedBlock(after, event.seq, index, event.salt)
            case BlocksEvicted():
                for block in event.blocks:
                    del self.cached[block]
                    self.device.free[block] = None
                self.num_evictable -= len(event.blocks)
            case BlocksSwappedOut():
                del self.tables[event.seq]
                self._drop(event.blocks)
                # In the event, blocks come in the order in which they are dropped: from the table's end.
                self.host_tables[event.seq] = list(reversed(event.host_blocks))
                self.host.take(event.host_blocks)
            case BlocksSwappedIn():
                del self.host_tables[event.seq]
                self._map(event.seq, event.blocks)
                self.host.drop(event.host_blocks)
            case HostBlocksFreed():
                del self.host_tables[event.seq]
                self.host.drop(event.host_blocks)
            case StateRebuilt():
                self._free_all()
            case SnapshotTaken():
                self._restore(event)
            case _:
                refuse_event(event)

    def copy(self) -> BlockBooks:
        """A copy that shares nothing that may change."""
        twin = copy.copy(self)
        twin.device, twin.host = self.device.copy(), self.host.copy()
        twin.tables = {seq: list(blocks) for seq, blocks in self.tables.items()}
        twin.host_tables = {seq: list(blocks) for seq, blocks in self.host_tables.items()}
        twin.cached = dict(self.cached)
        return twin

    def _map(self, seq: int, blocks: Iterable[int]) -> None:
        """Append blocks to a table; other tables may map them too."""
        blocks = list(blocks)
        self.num_evictable -= sum(
            self.device.ref_counts[block] == 0 and block in self.cached for block in set(blocks)
        )
        self.device.take(blocks)
        self.tables.setdefault(seq, []).extend(blocks)

    def _replace(self, seq: int, index: int, old: int, new: int) -> None:
        """Map another block at one place of a table."""
        self.num_evictable -= self.device.ref_counts[new] == 0 and new in self.cached
        self._drop((old,))
        self.device.take((new,))
        self.tables[seq][index] = new

    def _drop(self, blocks: Iterable[int]) -> None:
        self.num_evictable += self.device.drop(blocks, self.cached)

    def _free_all(self) -> None:
        """All blocks are free, in the order of their numbers; no table and no cached block is left."""
        self.device = PoolBooks.of_size(len(self.device.ref_counts))
        self.host = PoolBooks.of_size(len(self.host.ref_counts))
        self.tables, self.host_tables, self.cached, self.num_evictable = {}, {}, {}, 0

    def _restore(self, event: SnapshotTaken) -> None:
        """Begin with what a snapshot tells. Reference counts follow from the tables."""
        self._free_all()
        for books, runs, tables in (
            (self.device, event.free, event.tables),
            (self.host, event.host_free, event.host_tables),
        ):
            books.free = {block: None for first, length in runs for block in range(first, first + length)}
            for table in tables.values():
                books.take(table)
        self.tables = {seq: list(table) for seq, table in event.tables.items()}
        self.host_tables = {seq: list(table) for seq, table in event.host_tables.items()}
        self.cached = {
            block: CachedBlock(after, seq, index, salt) for block, after, seq, index, salt in event.cached
        }
        self.num_evictable = sum(not self.device.ref_counts[block] for block in self.cached)
