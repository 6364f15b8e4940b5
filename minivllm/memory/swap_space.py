"""The swap space: a second pool of blocks in the host's memory, for the tables of preempted requests.

When the pool is full, a request is preempted. Computing its blocks again costs FLOPs; keeping them in the
host's memory costs two copies instead. A request moves as a whole, and a block that several of its sequences
share travels once and is shared at the other end too:

    device   A: 7 ─ 2 ─ 5        B: 7 ─ 2 ─ 9              five blocks mapped, four of them different
    host     A: 0 ─ 1 ─ 2        B: 0 ─ 1 ─ 3              references: 2, 2, 1, 1

Source: Kwon et al. (SOSP 2023), sections 4.5 and 6.4. Read next: `kv_cache_manager.py`, which uses it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from minivllm.memory.block_pool import BlockPool
from minivllm.memory.block_table import BlockTable


class SwapSpace:
    """Host blocks, and the tables of all sequences that are swapped out.

    Raises:
        ValueError: `num_blocks` is not an integer of at least 1.
    """

    def __init__(self, num_blocks: int) -> None:
        self.pool = BlockPool(num_blocks)
        self.tables: dict[int, BlockTable] = {}

    def take(self, tables: Mapping[int, BlockTable]) -> dict[int, int]:
        """Map these tables to host blocks, one for each device block that they map.

        Returns:
            Device block → host block, in the order in which they should be copied. The caller has made
            sure that there is room (`OutOfBlocksError` otherwise, and nothing has changed).
        """
        new_blocks = self.pool.get_new_blocks(len(distinct_blocks(tables.values())))
        host_of, host_tables = map_elsewhere(tables, self.pool, new_blocks)
        self.tables |= host_tables
        return host_of

    def free(self, seq_id: int) -> tuple[int, ...]:
        """Drop a table; returns the host blocks that it mapped."""
        blocks = tuple(self.tables.pop(seq_id).blocks)
        self.pool.free_blocks(blocks)
        return blocks

    def check_invariants(self) -> None:
        """Raise `AssertionError` unless references equal the number of tables that map each host block."""
        self.pool.check_invariants()
        check_references(self.pool, self.tables)


def map_elsewhere(
    tables: Mapping[int, BlockTable], pool: BlockPool, new_blocks: Sequence[int]
) -> tuple[dict[int, int], dict[int, BlockTable]]:
    """Tables that map `new_blocks` of `pool` just as `tables` map their own: what was shared stays shared.

    Returns:
        Old block → new block, in the order in which the tables first name them; and the new tables. Their
        salts are the old ones. None of their blocks is cached: the prefix cache knows the old blocks.
    """
    new_of = dict(zip(distinct_blocks(tables.values()), new_blocks, strict=True))
    new_tables: dict[int, BlockTable] = {}
    mapped: set[int] = set()
    for seq_id, table in tables.items():
        blocks = [new_of[block] for block in table.blocks]
        pool.touch([block for block in blocks if block in mapped])
        mapped.update(blocks)
        new_tables[seq_id] = BlockTable(table.block_size, blocks, table.salt)
    return new_of, new_tables


def distinct_blocks(tables: Iterable[BlockTable]) -> list[int]:
    """Every block that these tables map, once, in the order in which they first name it."""
    return list(dict.fromkeys(block for table in tables for block in table.blocks))


def check_references(pool: BlockPool, tables: Mapping[int, BlockTable]) -> None:
    """Raise `AssertionError` unless each block has one reference for each table that maps it."""
    mapped = [0] * pool.num_blocks
    for table in tables.values():
        for block in table.blocks:
            mapped[block] += 1
    assert mapped == pool.ref_counts.tolist(), "references differ from the tables that map each block"
