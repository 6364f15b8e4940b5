# %% [markdown]
# # 11 From online softmax to FlashAttention 1: what global memory sees
#
# The engine's own kernels run thread by thread under the microscope: FlashAttention 1, and naive attention,
# which writes all N × N scores to global memory. 80 tokens, one head of 32 numbers, causal. Tiles have 32
# keys and 8 queries; the last tile of keys has only 16.

# %%
import numpy as np

from kernels_numba.cuda.flash_attention_1 import flash_attention_1
from kernels_numba.cuda.naive_attention import naive_attention
from kernels_numba.cuda.tiles import Tiles
from lessons.walkthroughs import trace_path
from minivllm.lab.microscope.record import kernel_trace
from minivllm.trace.kernel_events import SoftmaxUpdated, write_kernel_traces

TRACES = ("11_flash.jsonl", "11_naive.jsonl")
PAGE = "flash_attention"
PICTURES = {
    "matrix.svg": ("kernel_matrix", 0, 12),
    "softmax.svg": ("kernel_softmax", 0, 17),
    "traffic.svg": ("kernel_traffic", 0, -1),
}

TOKENS, HEAD_DIM, TILE_Q, TILE_K = 80, 32, 8, 32
BYTES, SECTOR = 4, 32  # of a float32; of the smallest piece that global memory moves

random = np.random.default_rng(7)
query, key, value = (random.standard_normal((TOKENS, 1, HEAD_DIM), dtype=np.float32) for _ in range(3))
out, maxima, sums = np.zeros_like(query), *(np.zeros((1, TOKENS), np.float32) for _ in range(2))
launch = flash_attention_1(query, key, value, out, maxima, sums, tiles=Tiles(rows=4, warps=2, keys=TILE_K))
flash = launch.observe()
title = f"{TOKENS} tokens, head_dim {HEAD_DIM}, causal"
flash_trace = kernel_trace(flash, f"FlashAttention 1: {title}")
write_kernel_traces(trace_path(TRACES[0]), [flash_trace])

# %% [markdown]
# ## One row of the softmax, as it grows
#
# The last query sees all three tiles of keys. Predict: can its maximum fall from tile to tile? Can its sum?
# If the maximum stays, by what is the old sum multiplied?

# %%
scores = query[-1, 0].astype(float) @ key[:, 0].T.astype(float) / HEAD_DIM**0.5
updates = [e for e in flash_trace.events if isinstance(e, SoftmaxUpdated) and e.query == TOKENS - 1]
for tile, update in enumerate(updates):
    seen = scores[: (tile + 1) * TILE_K]
    print(
        f"after {len(seen):2d} keys: m = {update.maximum:6.3f}  l = {update.total:7.3f}  "
        f"the old sum and output × {update.rescale:.3f}     at once: m = {seen.max():6.3f}  "
        f"l = {np.exp(seen - seen.max()).sum():7.3f}"
    )

# %% [markdown]
# ## What moves: first the formula
#
# Keys and values are outside, so they come once: 80 rows of 32 numbers each. Queries come once for each tile
# of keys that they may see. Predict: how many of the 10 tiles of queries have something to see in keys 0 to
# 31? In keys 32 to 63? In keys 64 to 79?

# %%
visits = 0
for first_key in range(0, TOKENS, TILE_K):
    visiting = [first for first in range(0, TOKENS, TILE_Q) if first_key <= first + TILE_Q - 1]
    visits += len(visiting) * TILE_Q
    print(f"keys {first_key:2d} …: {len(visiting):2d} tiles of queries, from query {visiting[0]}")
row = HEAD_DIM * BYTES
predicted = {
    "query": visits * row,
    "key": TOKENS * row,
    "value": TOKENS * row,
    "out": (visits - TOKENS + visits)
    * row,  # this kernel knows the empty state: the first visit reads nothing
    "maxima": (visits - TOKENS + visits) * SECTOR,  # one number, but memory moves a whole sector
    "sums": (visits - TOKENS + visits) * SECTOR,
}
print(f"{visits} rows of queries come and go, of {TOKENS} in the sequence")

# %% [markdown]
# ## Then the microscope
#
# Predict: `maxima` has one number for each query. How many bytes move for each of them?

# %%
moved = {line.array: line.moved_bytes for line in flash.traffic() if not line.is_shared}
for name, count in predicted.items():
    print(f"{name:7s} predicted {count:7,} bytes, moved {moved[name]:7,}")
    assert count == moved[name]
print(f"together {sum(moved.values()):,} bytes")

# %% [markdown]
# ## Naive attention
#
# Three kernels: all scores, their softmax, the weighted values. `scores` has 80 × 80 numbers, 25,600 bytes.
# Predict: how often does all of it go through global memory? In the paper's count it is 4 times: written,
# read, written, read.

# %%
naive_out, matrix = np.zeros_like(query), np.zeros((1, TOKENS, TOKENS), np.float32)
naive = [step.observe() for step in naive_attention(query, key, value, naive_out, matrix)]
write_kernel_traces(
    trace_path(TRACES[1]), [kernel_trace(seen, f"naive: {title}", n) for n, seen in enumerate(naive)]
)
square, times = TOKENS * TOKENS * BYTES, 0.0
for seen in naive:
    for line in seen.traffic():
        if line.array == "scores":
            moves = line.moved_bytes
            times += moves / square
            print(f"{seen.kernel:14s} moves {moves:7,} bytes of scores: {moves / square:g} ×")
print("(value_kernel: all lanes of a warp read the same number, and memory moves a sector of 8)")
everything = sum(line.moved_bytes for seen in naive for line in seen.traffic())
print(f"scores {times:g} × {square:,} = {times * square:,.0f} bytes; with all other arrays {everything:,}")
print(
    "(the latter is mostly keys, read again and again by each block: the microscope has no cache, a GPU does)"
)
print(f"the two answers differ by {np.abs(out - naive_out).max():.1g} at most")

# %% [markdown]
# ## Larger tiles
#
# The last 16 of 64 tokens, no mask. Predict: if a tile has 64 keys and not 32, what becomes of the bytes of
# `query`? Of `key`? Of `out`? And of shared memory?

# %%
for keys in (32, 64):
    last, states = query[48:64], (np.zeros((1, 16), np.float32) for _ in range(2))
    tiles = Tiles(rows=4, warps=2, keys=keys)
    some = (last, key[:64], value[:64], np.zeros_like(last), *states)
    seen = flash_attention_1(*some, causal=False, tiles=tiles).observe(keep=False)
    told = "  ".join(f"{name} {sum(seen.asked_bytes[name]):5,}" for name in ("query", "key", "value", "out"))
    print(f"{keys} keys a tile: {told}  bytes; shared memory {seen.shared_bytes:6,} bytes")

# %% [markdown]
# ## When is it worth it?
#
# Numbers that move for one head of 64 columns, no mask: naive 4 N d + 4 N², FlashAttention 1
# 2 N d + T · N · (3 d + 4), where T = N / (keys of a tile). Predict: double N. What happens to each of them?


# %%
def naive_numbers(n: int, d: int) -> int:
    return 4 * n * d + 4 * n * n


def flash_numbers(n: int, d: int, tile_k: int) -> int:
    return 2 * n * d + -(-n // tile_k) * n * (3 * d + 4)


for n in (1024, 2048, 4096):
    told = "  ".join(
        f"{tile_k:3d} keys a tile {flash_numbers(n, 64, tile_k) / 1e6:6.2f}" for tile_k in (32, 64, 128, 256)
    )
    print(f"N = {n:4d}, millions of numbers: naive {naive_numbers(n, 64) / 1e6:6.2f}   {told}")
print(f"\nThe run, tile by tile: minivllm dashboard {trace_path(TRACES[0])}")
