"""How large a tile should be: what fits into shared memory, and what keeps every multiprocessor busy.

The keys of a tile are 32, one for each lane of a warp: their scores are computed side by side, and the
softmax of a row is a butterfly. What is chosen is how many queries a block takes, `warps · rows`:

    more queries a block    keys and values are read once for more of them: less traffic
    more blocks             more multiprocessors have something to do

    shared memory   32 keys (or values, in the same place), and the queries:
                    (32 · (head_dim + 1) + queries · head_dim) · 4 bytes
    registers       a lane keeps rows · head_dim / 32 sums, so wide heads get fewer rows

Source: Dao, "FlashAttention-2" (2023), sections 3.2 and 3.3. Read next: `flash_attention_2.py`.
"""

from __future__ import annotations

from typing import NamedTuple

KEYS = 32
"""Keys of a tile: one for each lane."""
HEAD_DIMS = (32, 64, 96, 128, 160, 192, 224, 256)
STATIC_SHARED_BYTES = 48 * 1024
"""What every device since 2010 gives a block without being asked."""
MAX_SUMS = 32
"""Sums that a lane keeps: with more, registers run out."""
MAX_WARPS = 4
MAX_THREADS = 1024
"""Of a block, on any device."""


class Tiles(NamedTuple):
    """Queries of a block, and keys of a tile."""

    rows: int
    """Queries of each warp."""
    warps: int
    keys: int = KEYS
    """A multiple of 32; FlashAttention-2 takes 32."""

    @property
    def num_queries(self) -> int:
        return self.rows * self.warps

    @property
    def num_threads(self) -> int:
        return 32 * self.warps


def check_tiles(tiles: Tiles, needed_bytes: int, keys: tuple[int, ...] = (KEYS,)) -> None:
    """Refuse tiles that a kernel is not made for, or that no block has room for.

    Raises:
        ValueError: which, and what is allowed.
    """
    if min(tiles) < 1 or tiles.num_threads > MAX_THREADS:
        raise ValueError(f"tiles must have at least one row and 1 to {MAX_THREADS // 32} warps, got {tiles}")
    if tiles.keys not in keys:
        raise ValueError(f"keys of tiles must be one of {', '.join(map(str, keys))}, got {tiles.keys}")
    if needed_bytes > STATIC_SHARED_BYTES:
        raise ValueError(
            f"tiles must fit into {STATIC_SHARED_BYTES:,} bytes of shared memory, and {tiles} would take "
            f"{needed_bytes:,}"
        )


def shared_bytes(tiles: Tiles, head_dim: int) -> int:
    """Shared memory of one block."""
    return 4 * (KEYS * (head_dim + 1) + tiles.num_queries * head_dim)


def choose_tiles(
    head_dim: int,
    num_queries: int,
    num_heads: int,
    num_processors: int = 108,
    shared_memory: int = STATIC_SHARED_BYTES,
) -> Tiles:
    """The largest tiles that fit, unless that left multiprocessors idle.

    Args:
        num_queries, num_heads: of all sequences together.
        num_processors: multiprocessors of the device (an A100 has 108).
        shared_memory: bytes that one block may have.

    Raises:
        ValueError: not even the smallest tile fits into that memory.
    """
    fitting = [
        Tiles(rows, warps)
        for rows in (8, 4, 2, 1)
        for warps in (MAX_WARPS, 2, 1)
        if rows * head_dim // 32 <= MAX_SUMS and shared_bytes(Tiles(rows, warps), head_dim) <= shared_memory
    ]
    if not fitting:
        needed = shared_bytes(Tiles(1, 1), head_dim)
        raise ValueError(
            f"shared_memory must be at least {needed} bytes for head_dim {head_dim}, got {shared_memory}"
        )
    fitting.sort(key=lambda tiles: (-tiles.num_queries, -tiles.warps))
    for tiles in fitting:
        if -(-num_queries // tiles.num_queries) * num_heads >= num_processors:
            return tiles
    return fitting[-1]
