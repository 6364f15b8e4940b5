"""Online softmax, and FlashAttention 1: attention tile by tile, without a matrix of scores in global memory.

Each query has a state, which says all that has to be known of the keys that it has seen so far:

    maximum   m = max s_j                      of its scores s_j
    total     l = Σ e^(s_j - m)                so the largest term is 1: nothing overflows
    out       o = Σ e^(s_j - m) · v_j / l      attention over these keys: already the right answer for them

States of different keys can be merged, in any order; a query that has seen no key is in the empty state,
(-inf, 0, 0). So keys can come in tiles, and a row of scores need never be there as a whole:

    for each tile of keys and values:          loaded once
        for each tile of queries:              loaded, with their states, once for each tile of keys
            scores  ►  state of this tile  ►  merged with the old state  ►  stored

All numbers are float64. Shared memory and registers are your local variables: at any time one tile of keys,
one of values, one of queries, their scores and states.

Sources: Milakov and Gimelshein, "Online normalizer calculation for softmax" (2018), section 3; Dao et al.,
"FlashAttention" (NeurIPS 2022), section 3.1, algorithm 1.
In the engine: kernels_numba/cuda/flash_attention_1.py.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


class State(NamedTuple):
    """The softmax of some queries over the keys that they have seen so far: a row for each query."""

    maximum: Floats
    """[rows], the largest score; -inf for a query that has seen no key."""
    total: Floats
    """[rows], the sum of e^(score - maximum); 0 for a query that has seen no key."""
    out: Floats
    """[rows, head_dim], the weighted sum of values divided by `total`; 0 for a query that has seen no key."""


class GlobalMemory:
    """Arrays that are large and slow. Rows of them are loaded and stored, and every number is counted.

    `GlobalMemory(query=…, key=…, value=…)` keeps copies; `maximum`, `total` and `out` begin as the state of
    nothing. The check brings a memory of its own, which has `shape`, `load` and `store`, and nothing else.
    """

    # given
    def __init__(self, query: Floats, key: Floats, value: Floats) -> None:
        rows = len(query)
        self.arrays = {
            "query": query.copy(),
            "key": key.copy(),
            "value": value.copy(),
            "maximum": np.full(rows, -np.inf),
            "total": np.zeros(rows),
            "out": np.zeros(query.shape),
        }
        self.num_loaded = self.num_stored = 0

    # given
    def shape(self, name: str) -> tuple[int, ...]:
        """Of the array: its first number counts rows. Costs nothing."""
        return self.arrays[name].shape

    # given
    def load(self, name: str, start: int, end: int) -> Floats:
        """A copy of rows `start … end - 1`; IndexError if they are not all there."""
        if not 0 <= start < end <= len(self.arrays[name]):
            raise IndexError(f"{name} has {len(self.arrays[name])} rows, not rows {start} … {end - 1}")
        tile = self.arrays[name][start:end].copy()
        self.num_loaded += tile.size
        return tile

    # given
    def store(self, name: str, start: int, tile: Floats) -> None:
        """Put rows in the place of rows `start …`."""
        self.arrays[name][start : start + len(tile)] = tile
        self.num_stored += tile.size


def state_of(scores: Floats, values: Floats) -> State:
    """The state of queries that have seen these keys, and no others.

    Args:
        scores: [rows, keys], at least one key; -inf where a query may not see a key.
        values: [keys, head_dim].

    A query that may see none of the keys has the empty state, and nowhere is there a NaN. Scores may be
    large (10,000) or far below zero (-10,000).
    """
    raise NotImplementedError


def merge(a: State, b: State) -> State:
    """The state of queries that have seen the keys of both; row i of `a` and `b` belongs to the same query.

    Any row of either may be the empty state: then the other's row is the answer, and of two empty ones it
    is empty. Neither `a` nor `b` is changed.
    """
    raise NotImplementedError


def flash1(memory: GlobalMemory, tile_q: int, tile_k: int, causal: bool) -> None:
    """Attention of one head: out = softmax(query · keyᵀ / √head_dim) · value, as in algorithm 1.

    Args:
        memory: has `query` and `out` [queries, head_dim], `key` and `value` [keys, head_dim], `maximum` and
            `total` [queries]. The last two and `out` begin as the empty state, and are written.
        tile_q, tile_k: queries and keys of a tile. Tiles begin at its multiples; the last may be smaller.
        causal: does a query see only keys that are not after it? Key j stands at position j, and query i, the
            i-th of the last tokens, at position i + keys - queries. There may be fewer queries than keys, or
            more; a query that sees no key keeps the empty state.

    What global memory sees:
        Keys and values are loaded once, one tile after another. When a tile of keys has been worked through,
        `maximum`, `total` and `out` hold the state of the keys so far, and the next one may come.
        For each of them, every tile of queries is loaded once with its states, and they are stored once; but
        when none of its queries may see any of these keys, it is not touched at all.
        At no time is more than a tile loaded or stored, and scores never are.
    """
    raise NotImplementedError
