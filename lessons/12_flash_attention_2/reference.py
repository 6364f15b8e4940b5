"""FlashAttention 2: the loops turned around; and split-K, for the one row of queries that decoding has.

Lesson 11 went through the keys outside, and every query's state came from global memory and went back again
for each tile of them. Here a thread block has a tile of queries and stays with it:

    for each tile of queries:                 a thread block, and each of its threads is one query
        for each tile of keys and values:     all threads bring it into shared memory
            maximum, total, mine              the state of the thread's query: its own variables
        out = mine / total                    the only division, and the only visit to `out`

`mine` is the sum of e^(score - maximum) · value: the output, not yet divided.

A step of decoding has one row of queries, so there would be one thread block. Then the keys are cut instead:

    keys       0 1 2 3 | 4 5 6 7 | 8 9        10 keys, 3 splits: ceil(10 / 3) = 4 keys each, and 2 are left
    decode_split   ▼         ▼        ▼       three thread blocks
              (m, l, o)  (m, l, o) (m, l, o)  three states
    merge_splits   └─────────┼────────┘       one output

Sources: Dao, "FlashAttention-2" (2023), sections 3.1 and 3.2; Dao et al., "Flash-Decoding" (2023).
In the engine: kernels_numba/cuda/flash_attention_2.py and paged_attention.py.
"""

from __future__ import annotations

import math

from numba import cuda, float32

TILE_KEYS = 16
"""Keys of a tile. The check counts on it: leave it as it is."""
MOST_HEAD_DIM = 128
"""The widest head: sizes of shared and local arrays are constants."""


@cuda.jit
def flash2(query, key, value, scale, causal, out):
    """Attention of one head: out = softmax(scale · query · keyᵀ) · value.

    The grid is (tiles of queries,), and a block has as many threads as a tile has queries, 1 to 64: thread t
    of block b is query `b * cuda.blockDim.x + t`. The last tile may have fewer queries; its other threads are
    there all the same.

    Args:
        query: [num_queries, head_dim], float32; head_dim is at most MOST_HEAD_DIM.
        key, value: [num_keys, head_dim], float32, at least one key. They come in tiles of TILE_KEYS; the last
            one may have fewer.
        scale: of the scores, a number.
        causal: does a query see only keys that are not after it? Key j stands at position j, and query i, the
            i-th of the last tokens, at position i + num_keys - num_queries. There may be fewer queries than
            keys, or more; a query that sees no key gets 0.
        out: like query; written.

    What it promises:
        A block reads each number of its queries once, and once each number of the keys and values that at
        least one of its queries may see. A tile of keys in which none of them may see anything is not read;
        of a tile in which they see some keys, those behind the last visible one may be read, too, once.
        Each cell of `out` is written once, and none is read. Nothing else in global memory is written.
        Between two threads that touch one cell of shared memory, one of them to write, lies a barrier, and
        all threads of a block come to every barrier.
        Beside the products with keys and values, a query costs one exponential for each key, one more for
        each tile of keys (with it, total and output are rescaled), and at most head_dim + 1 divisions.
        Scores may be thousands, of either sign: no exponential overflows, and not all of them vanish.
    """
    first, thread = cuda.blockIdx.x * cuda.blockDim.x, cuda.threadIdx.x
    num_queries, head_dim = query.shape
    row, end = first + thread, key.shape[0]
    own_end = end if row < num_queries else 0
    if causal:
        earlier = end - num_queries  # query i stands at position i + earlier
        own_end = min(own_end, row + earlier + 1)
        end = min(first + cuda.blockDim.x, num_queries) + earlier  # what the last query of the tile sees
    mine = cuda.local.array(MOST_HEAD_DIM, float32)
    _, total = _attend(query, row, key, value, scale, 0, end, own_end, mine)
    if row < num_queries:
        for c in range(head_dim):
            out[row, c] = mine[c] / total if total > 0 else float32(0)


@cuda.jit
def decode_split(query, key, value, scale, maxima, sums, parts):
    """The state of each query over the keys of one split; every query sees every key.

    The grid is (num_splits,). The keys are cut into splits of `ceil(num_keys / num_splits)`, one after
    another, as far as there are keys: the last that has any may have fewer, and after it come splits without
    a key. A block has at least as many threads as there are queries: thread t is query t, and those without a
    query help to bring the keys.

    Args:
        query: [rows, head_dim], float32: one token's queries, of the heads that share these keys.
        key, value: [num_keys, head_dim], float32, at least one key.
        scale: of the scores, a number.
        maxima: [num_splits, rows], float32, written: the largest score of a query in a split.
        sums: [num_splits, rows], float32, written: the sum of e^(score - maximum).
        parts: [num_splits, rows, head_dim], float32, written: the sum of e^(score - maximum) · value, not
            divided.

    What it promises:
        A split without a key leaves the empty state: -inf, 0, and zeros.
        Each number of keys and values is read once, by the block of its split; each cell of the state is
        written once, and none is read. Barriers and large scores as in `flash2`.
    """
    split, row, num_keys = cuda.blockIdx.x, cuda.threadIdx.x, key.shape[0]
    per_split = (num_keys + cuda.gridDim.x - 1) // cuda.gridDim.x
    end = min(num_keys, (split + 1) * per_split)
    mine = cuda.local.array(MOST_HEAD_DIM, float32)
    own_end = end if row < query.shape[0] else 0
    maximum, total = _attend(query, row, key, value, scale, split * per_split, end, own_end, mine)
    if row < query.shape[0]:
        maxima[split, row], sums[split, row] = maximum, total
        for c in range(query.shape[1]):
            parts[split, row, c] = mine[c]


@cuda.jit
def merge_splits(maxima, sums, parts, out):
    """One output from the states of all splits.

    The grid is (rows,), and a block has head_dim threads: thread c of block r is number c of the output of
    query r.

    Args:
        maxima, sums, parts: as `decode_split` leaves them. Any of the states may be the empty state; a
            query that has seen nothing in any split gets 0. Maxima may be thousands apart.
        out: [rows, head_dim], float32; each cell is written once, and none is read.

    Splits may come in any order. No number of `parts` is read twice, and there are no barriers to wait for.
    """
    row, c, num_splits = cuda.blockIdx.x, cuda.threadIdx.x, maxima.shape[0]
    maximum, total, mine = float32(-math.inf), float32(0), float32(0)
    for split in range(num_splits):
        maximum = max(maximum, maxima[split, row])
    if maximum > -math.inf:
        for split in range(num_splits):
            weight = math.exp(maxima[split, row] - maximum)
            total += weight * sums[split, row]
            mine += weight * parts[split, row, c]
    out[row, c] = mine / total if total > 0 else float32(0)


@cuda.jit(device=True)
def _attend(query, row, key, value, scale, start, end, own_end, mine):
    """Maximum and sum of one query over the keys `start … own_end - 1`; `mine` gets its output, not divided.

    The block brings the keys `start … end - 1`; a thread without a query has an own_end of 0.
    """
    thread, head_dim = cuda.threadIdx.x, key.shape[1]
    keys = cuda.shared.array((TILE_KEYS, MOST_HEAD_DIM), float32)
    values = cuda.shared.array((TILE_KEYS, MOST_HEAD_DIM), float32)
    own_query = cuda.local.array(MOST_HEAD_DIM, float32)
    scores = cuda.local.array(TILE_KEYS, float32)
    maximum, total = float32(-math.inf), float32(0)
    for c in range(head_dim):
        mine[c] = float32(0)
        if own_end > start:
            own_query[c] = query[row, c]
    for first in range(start, end, TILE_KEYS):
        count = min(TILE_KEYS, end - first)
        for i in range(thread, count * head_dim, cuda.blockDim.x):
            k, c = i // head_dim, i % head_dim
            keys[k, c], values[k, c] = key[first + k, c], value[first + k, c]
        cuda.syncthreads()  # the tile is there
        seen = min(count, own_end - first)
        if seen > 0:
            highest = maximum
            for k in range(seen):
                score = float32(0)
                for c in range(head_dim):
                    score += own_query[c] * keys[k, c]
                scores[k] = score * scale
                highest = max(highest, scores[k])
            rescale = math.exp(maximum - highest)
            maximum = highest
            total *= rescale
            for c in range(head_dim):
                mine[c] *= rescale
            for k in range(seen):
                weight = math.exp(scores[k] - maximum)
                total += weight
                for c in range(head_dim):
                    mine[c] += weight * values[k, c]
        cuda.syncthreads()  # all have used it: the next one may take its place
    return maximum, total
