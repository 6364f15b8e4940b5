# %% [markdown]
# # 04 Paging, step by step
#
# Three prompts, one small pool: 10 blocks of 8 tokens. The engine is the real one, with the model that comes
# with minivllm; everything it does to its memory is written into a trace. Before each result there is a
# question: answer it first.

# %%
from lessons.walkthroughs import trace_path
from minivllm import LLM, SamplingParams
from minivllm.memory.block_table import BlockTable, blocks_needed
from minivllm.model.tiny import MODEL_PATH
from minivllm.trace.events import BlocksAllocated, BlocksFreed
from minivllm.trace.reader import read_trace
from minivllm.trace.replay import Replay

TRACES = ("04_paging.jsonl",)
PAGE = "kv_pool"
PICTURES = {
    "pool.svg": ("block_pool", 0, 10, {"request": "1"}),
    "arrows.svg": ("block_pool", 0, 21, {"request": "1"}),
    "table.svg": ("block_table", 0, 21, {"request": "1"}),
}

BLOCK_SIZE = 8
PROMPTS = (
    "Question: What is a KV cache?\nAnswer:",
    "Once upon a time,",
    "Question: What is a block table?\nAnswer:",
)

# %%
path = trace_path(TRACES[0])
with LLM(MODEL_PATH, block_size=BLOCK_SIZE, num_gpu_blocks_override=10, trace=path) as llm:
    llm.generate(list(PROMPTS), [SamplingParams(temperature=0, max_tokens=n) for n in (12, 30, 20)])
trace = read_trace(path)
replay = Replay(trace)

# %% [markdown]
# ## How many blocks does a prompt take?
#
# Predict: a prompt of n tokens, in blocks of 8. Which n wastes nothing?

# %%
state = replay.state_at(0)
for number, sequence in sorted(state.sequences.items()):
    tokens, blocks = sequence.num_computed_tokens, len(state.tables[number])
    assert blocks == blocks_needed(tokens, BLOCK_SIZE)
    print(f"s{number}: {tokens:3d} tokens in {blocks} blocks, {blocks * BLOCK_SIZE - tokens} slots empty")

# %% [markdown]
# ## When does a sequence take its next block?
#
# Predict: s1 writes one token in every step. In which steps does its table grow?

# %%
for step in range(trace.num_steps):
    for event in trace.step_events(step):
        if isinstance(event, BlocksAllocated) and event.seq == 1:
            held = len(replay.state_at(step).tables.get(1, ()))
            print(f"step {step:2d}: s1 takes block {list(event.blocks)}, its table has {held}")

# %% [markdown]
# ## Where is a token?
#
# Predict: are the blocks of s1 side by side? From the table that is printed, compute the slot of position 21
# by hand: 21 = 2 · 8 + 5.

# %%
blocks = replay.state_at(21).tables[1]
table = BlockTable(BLOCK_SIZE, blocks)
print(f"block table of s1 after step 21: {list(blocks)}")
print(
    f"position 21 is in logical block {21 // BLOCK_SIZE}, physical block {blocks[21 // BLOCK_SIZE]}, "
    f"at offset {21 % BLOCK_SIZE}: slot {table.slot(21)}"
)

# %% [markdown]
# ## Which sequence uses a block again?
#
# Predict: s0 has finished. What becomes of its blocks? (The pool allocates the block first that has been free
# for longest.)

# %%
for step in range(trace.num_steps):
    for event in trace.step_events(step):
        if isinstance(event, BlocksFreed):
            print(f"step {step:2d}: s{event.seq} frees {list(event.blocks)}")
        elif isinstance(event, BlocksAllocated):
            print(f"step {step:2d}: s{event.seq} takes {list(event.blocks)}")

# %% [markdown]
# ## What is wasted?
#
# Predict: at most one block of each sequence is partly empty. What share of all held slots can that be, at
# worst, for sequences of 30 tokens in blocks of 8? And in blocks of 1?

# %%
worst = 0.0
for step in range(trace.num_steps):
    state = replay.state_at(step)
    held = sum(len(table) for table in state.tables.values()) * BLOCK_SIZE
    used = sum(state.sequences[number].num_computed_tokens for number in state.tables)
    if held:
        worst = max(worst, 1 - used / held)
print(f"largest share of held slots that were empty, over all steps: {worst:.1%}")
print(f"\nThe whole run, step by step: minivllm dashboard {path}")
