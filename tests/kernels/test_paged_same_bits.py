"""With splits of a fixed size, a token's attention is the same bits alone, in any company and in any blocks.

Not "close": equal. The order of every sum follows from positions (`kernels_numba/cuda/paged_attention.py`);
what is checked here, thread by thread, is the very source that a GPU runs.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from kernels_numba.cuda import paged_attention as paged
from tests.kernels.oracle import SEEDS, as_cache, as_small_cache, normal, observe_all
from tests.kernels.test_planted_faults import Plant, plant

SPLIT = 64
"""Positions of a split here: as few as warps can share."""
DIM = 32
NAN = np.float32(np.nan)
__all__ = ["plant"]


class Token(NamedTuple):
    """One new token, and the keys and values of its sequence as a cache keeps them, by position."""

    query: Any
    cells: tuple[Any, Any]
    scales: tuple[Any, Any]


def make_token(rng: np.random.Generator, length: int, heads: tuple[int, int], dtype: str) -> Token:
    query = normal(rng, heads[0], DIM)
    numbers = [normal(rng, length, heads[1], DIM) for _ in range(2)]
    if dtype in paged.SMALL_DTYPES:
        keys, values = (as_small_cache(one, dtype) for one in numbers)
        return Token(query, (keys[0], values[0]), (keys[1], values[1]))
    return Token(query, tuple(as_cache(one, dtype)[0] for one in numbers), (1.0, 1.0))


def attended(
    tokens: list[Token],
    dtype: str,
    block_size: int,
    rng: np.random.Generator,
    module: Any = paged,
    num_splits: int | None = None,
) -> Any:
    """[tokens, heads, DIM] of all at once, in blocks that lie anywhere; maybe in a given number of splits."""
    widths = [-(-len(token.cells[0]) // block_size) for token in tokens]
    free = rng.permutation(sum(widths) + 1).tolist()
    tables = np.full((len(tokens), max(widths) + 1), free.pop(), np.int32)
    kv_heads, width = tokens[0].cells[0].shape[1:]
    shape = (sum(widths) + 1, kv_heads, block_size)
    cells = [np.zeros((*shape, width), tokens[0].cells[0].dtype) for _ in range(2)]
    scales: Any = tokens[0].scales
    if dtype == "int8":
        scales = [np.full(shape, NAN) for _ in range(2)]
    for number, token in enumerate(tokens):
        for position in range(len(token.cells[0])):
            index, row = divmod(position, block_size)
            if row == 0:
                tables[number, index] = free.pop()
            place = tables[number, index], slice(None), row
            for part in range(2):
                cells[part][place] = token.cells[part][position]
                if dtype == "int8":
                    scales[part][place] = token.scales[part][position]
    query = np.stack([token.query for token in tokens])
    out = np.full_like(query, NAN)
    splits = num_splits or -(-tables.shape[1] * block_size // SPLIT)
    several = (*query.shape[:2], splits, DIM)
    launches = module.paged_attention(
        query, *cells, tables, np.array([len(token.cells[0]) for token in tokens], np.int32), out,
        np.full(several, NAN), np.full(several[:3], NAN), split_keys=None if num_splits else SPLIT,
        cache_dtype=dtype, key_scales=scales[0], value_scales=scales[1],
    )  # fmt: skip
    observe_all(launches)
    return out


@settings(max_examples=max(3, settings.default.max_examples // 30))
@given(
    seed=SEEDS,
    length=st.sampled_from([1, 17, 63, 64, 65, 100, 140]),
    company=st.lists(st.sampled_from([0, 1, 20, 130]), max_size=2),
    size=st.sampled_from([1, 3, 8, 16, 24, 32]),
    heads=st.sampled_from([(1, 1), (2, 1)]),
    dtype=st.sampled_from(paged.CACHE_DTYPES),
)
@example(1, 100, [130], 3, (1, 1), "float32")
@example(2, 70, [1, 130], 32, (2, 1), "int8")
def test_a_token_gets_the_same_bits_alone_and_in_any_company_and_blocks(
    seed, length, company, size, heads, dtype
):
    rng = np.random.default_rng(seed)
    mine, *others = (make_token(rng, count, heads, dtype) for count in (length, *company))
    alone = attended([mine], dtype, 16, rng)
    beside = attended([*others, mine], dtype, size, rng)
    assert np.isfinite(alone).all()
    assert alone[0].tobytes() == beside[-1].tobytes()


def changes(module: Any = paged, splits: tuple[int | None, int | None] = (None, None)) -> bool:
    """Has a token other bits beside a longer one, in smaller blocks? They must be close in any case."""
    rng = np.random.default_rng(3)
    mine, other = (make_token(rng, count, (1, 1), "float32") for count in (100, 130))
    alone = attended([mine], "float32", 16, rng, module, splits[0])
    beside = attended([mine, other], "float32", 3, rng, module, splits[1])
    assert np.allclose(alone[0], beside[0], atol=1e-5), "the fault is one of rounding"
    return bool((alone[0] != beside[0]).any())


def test_a_number_of_splits_that_is_taken_from_the_batch_is_caught():
    chosen = [paged.choose_splits(number, 1, 64, num_processors=2) for number in (1, 2)]
    assert chosen == [4, 2] and changes(splits=(4, 2))
    assert not changes()


def test_a_tile_that_begins_with_a_block_is_caught(plant: Plant):
    planted = plant(
        paged,
        "position = first + row\n",
        "position = first + (row + block_size) % TILE_KEYS\n",
    )
    assert changes(planted)


def test_a_split_size_that_would_cut_tiles_or_leave_keys_out_is_refused():
    query, cells = np.zeros((1, 1, DIM), np.float32), np.zeros((9, 1, 16, DIM), np.float32)
    arrays = query, cells, cells, np.zeros((1, 9), np.int32), np.array([144], np.int32), query
    parts = np.zeros((1, 1, 2, DIM), np.float32), np.zeros((1, 1, 2), np.float32)
    with pytest.raises(ValueError, match="split_keys must be a multiple of 64, got 100"):
        paged.paged_attention(*arrays, *parts, split_keys=100)
    with pytest.raises(ValueError, match=r"room for 3 splits of 64 positions, .* \(144\); got 2"):
        paged.paged_attention(*arrays, *parts, split_keys=64)
