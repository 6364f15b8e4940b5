# %% [markdown]
# # 12 FlashAttention 2 and split-K: the loops turned around
#
# The engine's two FlashAttention kernels under the microscope, on the run of lesson 11: 80 tokens, one head
# of 32 numbers, causal; but with tiles of 32 queries and 32 keys. Then one step of decoding, in one piece and
# in splits. Before each result there is a question: answer it first.

# %%
import numpy as np

from kernels_numba.cuda.flash_attention_1 import flash_attention_1
from kernels_numba.cuda.flash_attention_2 import flash_attention_2
from kernels_numba.cuda.tiles import Tiles
from lessons.walkthroughs import trace_path
from minivllm.lab.microscope.record import kernel_trace
from minivllm.lab.microscope.subjects import make_subject
from minivllm.trace.kernel_events import TileStarted, write_kernel_traces

TRACES = ("12_flash_1.jsonl", "12_flash_2.jsonl", "12_splits.jsonl", "12_one_piece.jsonl")
PAGE = "flash_attention"
PICTURES = {
    "order_1.svg": ("kernel_matrix", 0, -1),
    "order_2.svg": ("kernel_matrix", 1, -1),
    "moved_1.svg": ("kernel_traffic", 0, -1),
    "moved_2.svg": ("kernel_traffic", 1, -1),
    "splits.svg": ("kernel_splits", 2, -1),
}

TOKENS, HEAD_DIM, TILE_Q, TILE_K = 80, 32, 32, 32
BYTES = 4  # of a float32
TILES = Tiles(rows=8, warps=4, keys=TILE_K)

random = np.random.default_rng(7)
query, key, value = (random.standard_normal((TOKENS, 1, HEAD_DIM), dtype=np.float32) for _ in range(3))
starts = np.array([0, TOKENS], np.int32)


def flash_2(tiles):
    arrays = query, key, value, np.zeros_like(query), starts, starts
    return flash_attention_2(*arrays, longest_query=TOKENS, tiles=tiles)


states = (np.zeros((1, TOKENS), np.float32) for _ in range(2))
launches = flash_attention_1(query, key, value, np.zeros_like(query), *states, tiles=TILES), flash_2(TILES)
first, second = (launch.observe(count=True).check() for launch in launches)
title = f"{TOKENS} tokens, head_dim {HEAD_DIM}, causal"
traces = [kernel_trace(seen, f"FlashAttention {n}: {title}") for n, seen in ((1, first), (2, second))]
for name, trace in zip(TRACES, traces, strict=False):
    write_kernel_traces(trace_path(name), [trace])
apart = np.abs(launches[0].arguments[3] - launches[1].arguments[3]).max()
print(f"two results, at most {apart:.0e} apart")

# %% [markdown]
# ## In which order?
#
# There are 3 tiles of queries and 3 of keys; 6 of the 9 pairs have something to see. FlashAttention 1 has
# keys outside: first come keys 0–31 with queries 0–31, 32–63 and 64–79. Predict: what comes first in
# FlashAttention 2? And how many thread blocks has either of them?

# %%
for seen, trace in zip((first, second), traces, strict=True):
    tiles = [event for event in trace.events if isinstance(event, TileStarted)]
    order = "  ".join(f"q{t.first_query} k{t.first_key}" for t in tiles)
    print(f"{seen.kernel}: {len(tiles)} tiles, {np.prod(seen.grid)} thread blocks: {order}")

# %% [markdown]
# ## What moves: first the formula
#
# Now queries are outside, and come once: 80 rows. So does the output. Maximum and sum never leave the
# registers. Keys and values come again for each tile of queries that sees something of their tile. Predict:
# of the 3 tiles of queries, how many need keys 0–31? Keys 32–63? Keys 64–79?

# %%
rows = 0
for first_key in range(0, TOKENS, TILE_K):
    count = min(TILE_K, TOKENS - first_key)
    needing = sum(first_key <= q + TILE_Q - 1 for q in range(0, TOKENS, TILE_Q))
    rows += needing * count
    print(f"keys {first_key:2d} …: {count} rows, for {needing:2d} tiles of queries")
row = HEAD_DIM * BYTES
predicted = {"query": TOKENS * row, "key": rows * row, "value": rows * row, "out": TOKENS * row}
print(f"{rows} rows of keys come, of {TOKENS} in the sequence")

# %% [markdown]
# ## Then the microscope
#
# Predict: which of the two moves more bytes of keys? Of output? Of everything together?

# %%
moved = [
    {line.array: line.moved_bytes for line in seen.traffic() if not line.is_shared}
    for seen in (first, second)
]
print("bytes moved   FlashAttention 1   FlashAttention 2   by the formula")
for name in ("query", "key", "value", "out", "maxima", "sums"):
    told = f"{predicted[name]:,}" if name in predicted else "–"
    print(f"{name:11s} {moved[0][name]:18,} {moved[1].get(name, 0):18,} {told:>16s}")
    assert moved[1].get(name, 0) == predicted.get(name, 0)
together = [sum(one.values()) for one in moved]
print(f"{'together':11s} {together[0]:18,} {together[1]:18,}      (the rest: where the sequence begins)")

# %% [markdown]
# ## What is computed beside the products?
#
# Multiplications of scores and values are the same in both. Predict: 80 queries, 32 numbers each. How many
# divisions does each of the kernels need? FlashAttention 1 divides whenever a tile has been worked on.

# %%
print("                   divisions   exponentials   multiplications")
for seen in (first, second):
    tally = seen.tally
    print(f"{seen.kernel} {tally.divisions:10,} {tally.exponentials:14,} {tally.multiplications:17,}")

# %% [markdown]
# ## Tiles of other sizes
#
# Predict, by the formula: if a tile has 8 queries and not 32, what becomes of the bytes of keys? Of the
# output? Of thread blocks? Is it still less than FlashAttention 1 moves?


# %%
def rows_of_keys(tile_q):
    """Rows of keys that come: for each tile of queries whole tiles of keys, up to its last query."""
    ends = (min(TOKENS, first + tile_q) for first in range(0, TOKENS, tile_q))
    return sum(min(TOKENS, -(-end // TILE_K) * TILE_K) for end in ends)


assert rows_of_keys(TILE_Q) == rows
for tile_q in (8, 16, 32, 80):
    bytes_moved = 2 * TOKENS * row + 2 * rows_of_keys(tile_q) * row
    blocks = -(-TOKENS // tile_q)
    print(f"{tile_q:2d} queries a tile: {blocks:2d} thread blocks, {bytes_moved:7,} bytes")

# %% [markdown]
# ## One new token
#
# Now decoding: one query, 64 keys in a cache of blocks of 8, one head. Predict: how many tiles of queries are
# there, and so how many thread blocks have something to do? How many if the keys are cut into 4 splits?

# %%
shape = {"sequences": 1, "context": 64, "heads": 1, "kv_heads": 1, "head_dim": HEAD_DIM, "block_size": 8}
runs = {}
for splits, name in ((4, "12_splits.jsonl"), (1, "12_one_piece.jsonl")):
    subject = make_subject("paged-attention", {**shape, "splits": splits}, seed=0)
    tables = subject.launches[0].arguments[3]
    tables[:] = np.arange(tables.size).reshape(tables.shape)  # blocks in order: so the picture is one of keys
    steps = [launch.observe() for launch in subject.launches]
    told = [kernel_trace(seen, subject.title, n) for n, seen in enumerate(steps)]
    write_kernel_traces(trace_path(name), told)
    runs[splits] = subject, steps
    for seen in steps:
        traffic = {line.array: line.moved_bytes for line in seen.traffic() if not line.is_shared}
        numbers = ", ".join(f"{what} {n:,}" for what, n in traffic.items())
        print(f"splits: {splits}, {seen.kernel}, thread blocks: {np.prod(seen.grid)}, bytes moved: {numbers}")

# %% [markdown]
# ## The merge, by hand
#
# The engine leaves each split's output divided, and the logarithm of its sum, m + ln l, in place of m and l.
# Predict: which split weighs most in the result, that with the largest m + ln l or that with the most keys?

# %%
parts, log_sums = runs[4][0].launches[0].arguments[5:7]
weights = np.exp(log_sums[0, 0] - log_sums[0, 0].max())
for split, (log_sum, weight) in enumerate(zip(log_sums[0, 0], weights / weights.sum(), strict=True)):
    print(f"split {split}: m + ln l = {log_sum:6.3f}, weight in the result {weight:.3f}")
merged = (weights[:, None] * parts[0, 0]).sum(axis=0) / weights.sum()
outs = [runs[4][0].launches[1].arguments[2][0, 0], runs[1][0].launches[0].arguments[5].reshape(-1)]
print(f"merged by hand, and by the kernel: at most {np.abs(merged - outs[0]).max():.0e} apart")
print(f"4 splits, and one piece:           at most {np.abs(outs[0] - outs[1]).max():.0e} apart")

# %% [markdown]
# ## When is it worth it?
#
# A GPU with 132 multiprocessors, 8 KV heads of 128 numbers, one sequence of 32,768 keys. Each thread block
# needs time for its keys; 132 of them run side by side. Predict: how many splits bring the time down to that
# of a GPU on which everything is busy? What do 1,000 splits cost?

# %%
heads, keys, width, processors = 8, 32_768, 128, 132
for splits in (1, 4, 16, 33, 64, 1024):
    rounds, each = -(-heads * splits // processors), -(-keys // splits)
    states = heads * splits * (width + 2)
    share = 2 * states / (2 * heads * keys * width)  # written and read again, beside keys and values
    print(
        f"{splits:4d} splits: {heads * splits:4d} thread blocks, {rounds * each:6,} keys one after another, "
        f"states are {share:6.2%} of the keys and values"
    )
print(f"\nTile by tile: minivllm dashboard {trace_path(TRACES[1])}")
