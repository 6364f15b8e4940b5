# %% [markdown]
# # 03 What contiguous reservation wastes, step by step
#
# Eight requests, and a memory of 56 blocks of 4 slots: room for the keys and values of 224 tokens. They are
# answered three times, by the same engine with the same model; only the way to allocate memory differs:
#
#     contiguous   a strip for the longest answer that is allowed: 64 tokens, for each request
#     oracle       a strip of exactly the right length, as if the future were known
#     paged        no strip: a block of 4 slots whenever one is needed (lesson 04)
#
# Before each result there is a question: answer it first.

# %%
from typing import NamedTuple

from lessons.walkthroughs import trace_path
from minivllm.engine.create_engine import create_engine
from minivllm.engine.engine import Engine
from minivllm.engine.engine_args import EngineArgs
from minivllm.lab.compare.memory import MemorySettings
from minivllm.lab.compare.memory import play as play_at_scale
from minivllm.lab.papers import EFFECTIVE, EXTERNAL, INTERNAL, NUM_SLOTS, RESERVED
from minivllm.memory.block_table import blocks_needed
from minivllm.memory.waste import MemoryShares, Progress, memory_shares
from minivllm.model.tiny import MODEL_PATH
from minivllm.sampling_params import RequestOutputKind, SamplingParams
from minivllm.trace.recorder import Recorder

TRACES = ("03_contiguous.jsonl", "03_paged.jsonl", "03_oracle.jsonl")
PAGE = "kv_pool"
PICTURES = {
    "strips.svg": ("block_pool", 0, 12, {"tables": False}),
    "gaps.svg": ("block_pool", 2, 12, {"tables": False}),
    "paged.svg": ("block_pool", 1, 12, {"tables": False}),
    "over_time.svg": ("memory_over_time", 0, -1),
}

NUM_BLOCKS, BLOCK_SIZE, LONGEST = 56, 4, 64


class Arrival(NamedTuple):
    """A request: when it comes, its prompt, and how many tokens it is answered with."""

    step: int
    prompt: str
    output: int


ARRIVALS = (
    Arrival(0, "Once upon a time,", 12),
    Arrival(0, "Question: What is a KV cache?\nAnswer:", 20),
    Arrival(0, "Long ago, a small fox", 36),
    Arrival(0, "从前，", 10),
    Arrival(2, "Question: What is continuous batching?\nAnswer:", 24),
    Arrival(4, "问：什么是KV缓存？\n答：", 30),
    Arrival(6, "Question: What is PagedAttention?\nAnswer:", 16),
    Arrival(8, "Question: What is preemption?\nAnswer:", 28),
)

# %% [markdown]
# How a run is driven, and what is looked at after each step. `memory_shares` is the engine's own count; it
# must be told how long each request will become, and whether the head of the queue fits.


# %%
class Look(NamedTuple):
    """The memory after a step."""

    shares: MemoryShares
    running: int
    gaps: list[int]
    """Lengths of the gaps, in blocks, by address. In paged memory any free block will do: one gap."""
    head: str
    """The request at the head of the queue; "" if none waits."""
    needed: int
    """Blocks that it needs at once, to be admitted."""

    @property
    def head_waits(self) -> bool:
        return bool(self.head) and self.needed > max(self.gaps, default=0)


def look(engine: Engine, final: dict[str, int]) -> Look:
    """Sort the memory of this moment. `final`: tokens that each request will have kept in the end."""
    cache, state = engine.cache, engine.core.state
    is_paged = engine.config.allocator == "paged"
    gaps = [cache.num_free_blocks] if is_paged else [gap.num_blocks for gap in cache.placement.gaps()]
    head, needed = "", 0
    for request in state.waiting.in_order_of_arrival()[:1]:
        head, prompt = request.request_id, request.sequences[0].num_prompt_tokens
        needed = cache.max_blocks(prompt, final[head], 1)
        if is_paged:
            needed = blocks_needed(prompt, BLOCK_SIZE)  # nothing is reserved for the answer
    progress = {}
    for number in cache.tables:
        sequence = state.sequences[number]
        progress[number] = Progress(sequence.num_computed_tokens, final[sequence.request_id])
    now = Look(MemoryShares(0, 0, 0, 0, 0), len(state.running), gaps, head, needed)
    shares = memory_shares(
        NUM_BLOCKS * BLOCK_SIZE,
        cache.num_free_blocks * BLOCK_SIZE,
        cache.tables,
        progress,
        head_waits=now.head_waits,
    )
    return now._replace(shares=shares)


def run(allocator: str, trace: str) -> list[Look]:
    """Answer all requests; what was seen after each step."""
    with Recorder(trace_path(trace)) as recorder:
        args = EngineArgs(
            MODEL_PATH,
            allocator=allocator,
            num_gpu_blocks_override=NUM_BLOCKS,
            block_size=BLOCK_SIZE,
            max_model_len=LONGEST,
            watermark=0,
            trace=recorder,
        )
        engine = create_engine(args)
        assert engine.tokenizer is not None
        final: dict[str, int] = {}
        looks: list[Look] = []
        while len(final) < len(ARRIVALS) or engine.has_unfinished_requests():
            for number, (step, prompt, output) in enumerate(ARRIVALS):
                if step == len(looks):
                    tokens = engine.tokenizer.encode(prompt)
                    # The last token of an answer is never read back: it needs no slot.
                    final[str(number)] = len(tokens) + output - 1
                    params = SamplingParams(
                        temperature=0,
                        max_tokens=output,
                        ignore_eos=True,  # so that the length is known before, and the oracle is one
                        output_kind=RequestOutputKind.FINAL_ONLY,
                    )
                    engine.add_request(str(number), tokens, params, prompt=prompt)
            engine.step()
            looks.append(look(engine, final))
    return looks


looks = {
    "contiguous": run("contiguous", TRACES[0]),
    "paged": run("paged", TRACES[1]),
    "oracle": run("oracle", TRACES[2]),
}


def table(columns: dict[str, MemoryShares], whole: int, unit: str) -> None:
    """Shares of `whole`, side by side."""
    print(" " * 10 + "".join(f"{name:>22}" for name in columns))
    for kind in MemoryShares._fields:
        counts = (f"{whole * getattr(shares, kind):.4g} {unit}" for shares in columns.values())
        print(f"{kind:10}" + "".join(f"{count:>22}" for count in counts))


# %% [markdown]
# ## How many fit at once?
#
# Predict: 224 slots, and strips of 64. How many requests can run at the same time? How many slots are
# left over, and of what use are they?

# %%
for name, seen in looks.items():
    most = max(now.running for now in seen)
    print(
        f"{name:11} at most {most} requests at once; all {len(ARRIVALS)} are answered after {len(seen)} steps"
    )

# %% [markdown]
# ## Where is the memory?
#
# Look at one moment, after step 12. The engine calls *effective* what the lesson calls used. Predict: of the
# three strips of 64 slots, how much is filled? How much will ever be? (The longest of the eight requests
# needs 42 slots in the end.)

# %%
table({name: seen[12].shares for name, seen in looks.items()}, NUM_BLOCKS * BLOCK_SIZE, "slots")

# %% [markdown]
# ## Free, and of no use
#
# The oracle reserves not one block too many. Predict: can a request be kept waiting although enough memory is
# free for it?

# %%
for step, now in enumerate(looks["oracle"]):
    if now.head_waits and now.needed <= sum(now.gaps):
        gaps = ", ".join(map(str, now.gaps))
        print(f"step {step}: request {now.head} needs {now.needed} blocks; gaps of {gaps} = {sum(now.gaps)}")

# %% [markdown]
# ## And at the size of the paper?
#
# The same count with the real scheduler and no model: 100 conversations with lengths as in ShareGPT, in the
# memory that OPT-13B has on an A100: 15,728 slots, and a sequence has at most 2,048 tokens. Predict: if
# every request reserves 2,048 slots, how much of the memory holds a token?

# %%
settings = MemorySettings(requests=100, seed=0, block_size=16, num_slots=NUM_SLOTS)
at_scale = {
    name: play_at_scale(settings, "single", "sharegpt", name, "single", 1).played
    for name in ("contiguous", "paged")
}
figure_2 = [kind["contiguous"] for kind in (EFFECTIVE, RESERVED, INTERNAL, EXTERNAL)]
columns = {
    "contiguous": at_scale["contiguous"].shares,
    "in the paper": MemoryShares(*figure_2, free=0),
    "paged": at_scale["paged"].shares,
}
table(columns, 100, "%")
print(f"effective in the paper, paged: {EFFECTIVE['paged']:.1%}")
for name, played in at_scale.items():
    print(f"{name}: {played.requests_at_once:.1f} requests at once")
print(f"\nThe first run, step by step: minivllm dashboard {trace_path(TRACES[0])}")
