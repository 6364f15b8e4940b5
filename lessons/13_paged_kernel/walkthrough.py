# %% [markdown]
# # 13 The paged kernel, step by step
#
# The engine's own paged attention, under the microscope: it runs the very function that a GPU would run,
# thread by thread, and writes down what each of them reads and writes. One sequence of 64 tokens, one head of
# 32 numbers, four warps; only the size of a block changes. Before each result there is a question: answer it
# first.

# %%
import numpy as np
from numba import cuda, float32

from kernels_numba.microscope import observe
from kernels_numba.microscope.analysis import SECTOR_BYTES
from lessons.walkthroughs import trace_path
from minivllm.lab.microscope.record import kernel_trace
from minivllm.lab.microscope.subjects import make_subject
from minivllm.trace.kernel_events import WarpAccess, write_kernel_traces

TRACES = ("13_block_4.jsonl", "13_block_1.jsonl", "13_block_32.jsonl", "13_by_token.jsonl", "13_race.jsonl")
PAGE = "microscope"
PICTURES = {
    "blocks.svg": ("kernel_blocks", 0, 6, {"block": 0, "warp": 0}),
    "four_rows.svg": ("kernel_memory", 0, 6, {"block": 0, "warp": 0}),
    "one_row.svg": ("kernel_memory", 1, 6, {"block": 0, "warp": 0}),
    "by_token.svg": ("kernel_memory", 3, 1, {"block": 0, "warp": 0}),
}

CONTEXT, HEAD_DIM, FLOAT_BYTES = 64, 32, 4
BLOCK_SIZES = (32, 16, 4, 1)

# %%
runs = {}
for size in BLOCK_SIZES:
    shape = {"sequences": 1, "context": CONTEXT, "heads": 1, "kv_heads": 1}
    subject = make_subject("paged-attention", {**shape, "head_dim": HEAD_DIM, "block_size": size}, seed=0)
    launch = subject.launches[0]
    seen = launch.observe(poison=subject.poison).check()
    runs[size] = seen, kernel_trace(seen, subject.title)
    if f"13_block_{size}.jsonl" in TRACES:
        write_kernel_traces(trace_path(f"13_block_{size}.jsonl"), [runs[size][1]])
print(f"grid {runs[4][0].grid}, {runs[4][0].block[0]} threads: {runs[4][0].block[0] // 32} warps of 32 lanes")


# %%
def reads(size, array):
    """What warps ask an array for: one request is one instruction of one warp."""
    trace = runs[size][1]
    names = [info.name for info in trace.header.arrays]
    return [
        e for e in trace.events if isinstance(e, WarpAccess) and e.kind == "read" and names[e.array] == array
    ]


# %% [markdown]
# ## What does a warp ask for at once?
#
# A key is 32 float32: 128 bytes. A lane loads 16 bytes in one instruction.
#
# Predict: how many lanes does one key take? How many keys does a warp read at once, from a block of 4 tokens?

# %%
first = reads(4, "keys")[0]
print(f"lanes of one key     : {HEAD_DIM * FLOAT_BYTES // 16}")
print(
    f"lanes of the request : {len(first.lanes)}, so {len(first.lanes) * 16 // (HEAD_DIM * FLOAT_BYTES)} keys"
)
print(f"sectors of 32 bytes  : {first.units}, and at least {first.ideal_units} are needed")

# %% [markdown]
# ## What does block size 1 cost?
#
# Now every token may lie anywhere: no two keys are neighbours. A sector of 32 bytes is moved as a whole.
#
# Predict, from blocks of 16 to blocks of 1: will more bytes of keys be moved? Will there be more requests?
# How many lanes of a warp will have something to do?

# %%
print("block size   requests for keys   lanes in each   sectors in each   bytes moved")
for size in BLOCK_SIZES:
    asked = reads(size, "keys")
    lanes, sectors = (
        sum(map(len, lists)) for lists in ([e.lanes for e in asked], [range(e.units) for e in asked])
    )
    print(
        f"{size:10d}   {len(asked):17d}   {lanes / len(asked):13.0f}   {sectors / len(asked):15.0f}   "
        f"{sectors * SECTOR_BYTES:11,}"
    )
    assert (
        sectors * SECTOR_BYTES == CONTEXT * HEAD_DIM * FLOAT_BYTES
    )  # no byte for nothing, whatever the size

# %% [markdown]
# The bytes are the same. Coalescing lives in the row: the numbers of one head of one token are side by side
# in any block, and 128 bytes are 4 whole sectors. What is lost is work at once: 8 lanes of 32.
#
# ## And the table?
#
# Predict: how often is the table asked, for 64 tokens in blocks of 16? In blocks of 1?

# %%
print("block size   requests for the table   entries")
for size in BLOCK_SIZES:
    print(f"{size:10d}   {len(reads(size, 'tables')):22d}   {-(-CONTEXT // size):7d}")

# %% [markdown]
# ## Then why not very large blocks?
#
# Each of the four warps walks through its own blocks: 0, 4, 8 … is warp 0's, 1, 5, 9 … warp 1's.
#
# Predict: 64 tokens in blocks of 32. How many warps read a key?

# %%
for size in BLOCK_SIZES:
    by_warp = [sum(e.warp == warp for e in reads(size, "keys")) for warp in range(4)]
    print(f"blocks of {size:2d}: requests for keys by warp {by_warp}")

# %% [markdown]
# ## What if each lane read a key of its own?
#
# That is simpler to write: thread t is token t, and goes through the 32 numbers of its key one by one. So
# does the score kernel of the engine's naive attention.
#
# Predict: lanes side by side now load the first number of 16 different keys, 4 bytes each. How many sectors?

# %%
naive = make_subject("naive-attention", {"tokens": 32, "head_dim": HEAD_DIM}, seed=0)
trace = kernel_trace(naive.launches[0].observe().check(), naive.title)
write_kernel_traces(trace_path("13_by_token.jsonl"), [trace])
asked = next(
    e for e in trace.events if isinstance(e, WarpAccess) and trace.header.arrays[e.array].name == "key"
)
needed = len(set(asked.first)) * FLOAT_BYTES
print(f"{needed} bytes are asked for, {asked.units} sectors are moved: {asked.units * SECTOR_BYTES} bytes")

# %% [markdown]
# ## Is what lies behind the last token ever read?
#
# 61 tokens in blocks of 4: three rows of the last block hold nothing. The microscope is told so (they are
# *poison*), and they are NaN.
#
# Predict: the warp reads four keys at once. What do the lanes of the last three rows do?

# %%
subject = make_subject(
    "paged-attention", {**shape, "context": 61, "head_dim": HEAD_DIM, "block_size": 4}, seed=0
)
for name in ("keys", "values"):
    cells = subject.launches[0].arguments[("query", "keys", "values").index(name)]
    cells[subject.poison[name]] = np.nan
seen = subject.launches[0].observe(poison=subject.poison)
last = [e for e in kernel_trace(seen, "").events if isinstance(e, WarpAccess) and e.array == 1][-1]
print(
    f"faults: {len(seen.faults)}; the last request for keys has {len(last.lanes)} lanes of 32: {last.lanes}"
)


# %% [markdown]
# ## Right, and wrong all the same
#
# Thread 0 finds the largest score and leaves it in shared memory for all. The barrier is missing.
#
# Predict: is the answer right, here, where threads run one by one, in order? What does the microscope say?


# %%
@cuda.jit
def less_the_largest(scores, out):
    thread = cuda.threadIdx.x
    largest = cuda.shared.array(1, float32)
    if thread == 0:
        largest[0] = scores[0]
        for t in range(1, scores.shape[0]):
            largest[0] = max(largest[0], scores[t])
    out[thread] = scores[thread] - largest[0]


scores = np.random.default_rng(0).standard_normal(32).astype(np.float32)
out = np.zeros_like(scores)
seen = observe(less_the_largest, 1, 32, scores, out)
write_kernel_traces(trace_path("13_race.jsonl"), [kernel_trace(seen, "a barrier is missing")])
print(f"the answer is right: {np.array_equal(out, scores - scores.max())}")
for fault in seen.faults[:1]:
    print(f"{fault.kind}: {fault.message}")
print(f"\nEvery request, lane by lane: minivllm dashboard {trace_path(TRACES[0])}")
