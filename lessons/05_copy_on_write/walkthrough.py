# %% [markdown]
# # 05 Sharing and copy-on-write, step by step
#
# First the memory alone, by hand; then the real engine with the model that comes with minivllm: three outputs
# of one prompt, the same with a shorter prompt, and a beam search, in a pool of 24 blocks of 8 tokens. Before
# each result there is a question: answer it first.

# %%
from lessons.walkthroughs import trace_path
from minivllm import LLM, SamplingParams
from minivllm.memory.cache_manager import Admission, Span
from minivllm.memory.kv_cache_manager import KVCacheManager
from minivllm.model.tiny import MODEL_PATH
from minivllm.trace.events import BlockCopied, SequenceForked
from minivllm.trace.reader import read_trace
from minivllm.trace.replay import Replay

TRACES = ("05_copy_on_write.jsonl",)
PAGE = "kv_pool"
PICTURES = {
    "forked.svg": ("block_pool", 0, 0, {"request": "0"}),
    "copied.svg": ("block_pool", 0, 1, {"request": "0"}),
    "beams.svg": ("block_pool", 0, 46, {"request": "2"}),
}

BLOCK_SIZE = 8

# %% [markdown]
# ## By hand
#
# The engine's own memory, with blocks of 4. Sequence 0 has 6 tokens, and forks to sequence 1. Then sequence 1
# writes its token 6, and after it sequence 0 writes its own.
#
# Predict: which of the two writes moves data, from which block to which?

# %%
memory = KVCacheManager(num_blocks=6, block_size=4)


def look(what: str) -> None:
    """Tables, references, and the copies that the data plane is told to make."""
    tables = "   ".join(f"s{seq}: {list(table.blocks)}" for seq, table in sorted(memory.tables.items()))
    references = {block: count for block, count in enumerate(memory.pool.ref_counts) if count}
    copies = [f"{move.source} → {move.target}" for move in memory.take_moves()]
    print(f"{what:<22} {tables:<28} references {references}   copies {copies}")


memory.allocate_slots([Span(0, 0, 6)], Admission(0, range(6), max_total_tokens=7))
look("s0 has 6 tokens")
memory.fork(0, 1)
look("s0 forks to s1")
memory.allocate_slots([Span(1, 6, 7)])
look("s1 writes token 6")
memory.allocate_slots([Span(0, 6, 7)])
look("s0 writes token 6")
memory.free(0)
look("s0 ends")

# %% [markdown]
# ## The run
#
# A prompt of 20 tokens with three outputs, one of 16 tokens with three outputs, and a search with four beams.

# %%
LONG = "Long ago, a small fox lived at the edge of a quiet forest. One sunny morning,"
SHORT = "Long ago, a small fox lived at the edge of a quiet forest."
path = trace_path(TRACES[0])
with LLM(MODEL_PATH, block_size=BLOCK_SIZE, num_gpu_blocks_override=24, trace=path) as llm:
    sampled = SamplingParams(n=3, temperature=0.9, seed=7, max_tokens=24, ignore_eos=True)
    shorter = SamplingParams(n=3, temperature=0.9, seed=7, max_tokens=8, ignore_eos=True)
    searched = SamplingParams(n=4, use_beam_search=True, temperature=0, max_tokens=24, ignore_eos=True)
    outputs = [
        llm.generate(prompt, params, use_tqdm=False)[0]
        for prompt, params in ((LONG, sampled), (SHORT, shorter), (LONG, searched))
    ]
for output in outputs:
    print(f"{output.prompt}   ({len(output.prompt_token_ids)} tokens)")
    for completion in output.outputs:
        print(f"    …{completion.text}")
trace = read_trace(path)
replay = Replay(trace)


def steps_of(request: str) -> list[int]:
    """Steps in which a request holds blocks."""
    members = [replay.state_at(step).members for step in range(trace.num_steps)]
    return [step for step, now in enumerate(members) if now.get(request)]


# %% [markdown]
# ## Where does a fork happen, and what does it take?
#
# Predict: the prompt of 20 tokens needs 3 blocks. After the fork into three sequences, how many are in use?

# %%
for event in trace.step_events(0):
    if isinstance(event, SequenceForked):
        print(f"step 0: s{event.parent} forks to s{event.child}")
state = replay.state_at(0)
for seq, table in sorted(state.tables.items()):
    print(f"s{seq} maps {list(table)}, with {[state.ref_counts[block] for block in table]} readers")
print(f"blocks in use: {len(state.ref_counts) - len(state.free)}")

# %% [markdown]
# ## Where is the first copy?
#
# Predict: each of the three writes its first token in step 1. How many copies are made: none, two or three?
# Of which of the three blocks? And which sequence makes none?

# %%
for step in steps_of("0"):
    for event in trace.step_events(step):
        if isinstance(event, BlockCopied):
            print(
                f"step {step}: s{event.seq} copies block {event.source} to {event.target}, "
                f"which is logical block {event.index} of its table"
            )
state = replay.state_at(1)
for seq, table in sorted(state.tables.items()):
    print(f"s{seq} maps {list(table)}, with {[state.ref_counts[block] for block in table]} readers")

# %% [markdown]
# ## A prompt of 16 tokens
#
# Predict: the same with a prompt that fills its two blocks exactly. How many copies?

# %%
copies = [
    event for step in steps_of("1") for event in trace.step_events(step) if isinstance(event, BlockCopied)
]
print(f"copies for the prompt of 16 tokens: {len(copies)}")

# %% [markdown]
# ## What is saved?
#
# Without sharing, each table would have all its blocks for itself: as many as the tables have entries.
#
# Predict: is the saving the same number of blocks from the first step to the last? And the same share?


# %%
def print_saving(request: str) -> None:
    """A line for each step in which something changes."""
    before = None
    for step in steps_of(request):
        state = replay.state_at(step)
        tables = [state.tables[seq] for seq in state.members[request]]
        entries = sum(len(table) for table in tables)
        blocks = len({block for table in tables for block in table})
        if (entries, blocks) != before:
            saved = f"{entries - blocks:2d} saved, {1 - blocks / entries:.0%}"
            print(f"step {step:2d}: {blocks:2d} blocks, {entries:2d} without sharing: {saved}")
        before = (entries, blocks)


print_saving("0")

# %% [markdown]
# ## A beam search
#
# Each step, the best four of all candidates go on. A beam with two good candidates forks; one with none ends,
# and its blocks lose a reader.
#
# Predict: does the saving stay the same, as above? (What do four beams have in common after twenty steps, and
# why?)

# %%
print_saving("2")
steps = steps_of("2")
events = [event for step in steps for event in trace.step_events(step)]
forks = [event for event in events if isinstance(event, SequenceForked)]
copies = [event for event in events if isinstance(event, BlockCopied)]
whole = 0
for step in steps:
    for event in trace.step_events(step):
        if isinstance(event, SequenceForked):  # a child has the length that its parent has after this step
            state = replay.state_at(step)
            sequence = state.sequences.get(event.child) or state.finished[event.child]
            whole += -(-sequence.num_computed_tokens // BLOCK_SIZE)
print(
    f"\n{len(forks)} forks, {len(copies)} blocks copied; with a copy of the whole cache at each fork: {whole}"
)

# %% [markdown]
# ## And in the end?
#
# Predict: all sequences have ended. How many blocks are free?

# %%
state = replay.state_at(trace.num_steps - 1)
print(f"free blocks: {len(state.free)} of {trace.header.num_blocks}; references: {sum(state.ref_counts)}")
print(f"\nThe whole run, step by step: minivllm dashboard {path}")
