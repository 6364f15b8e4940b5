# %% [markdown]
# # 10 Prefix caching, step by step
#
# Four people chat with one assistant. Every turn sends the whole conversation so far, and all conversations
# begin with the same instructions. The engine is the real one, with the model that comes with minivllm: once
# with a radix tree, once with hashes, once with no prefix cache. Two requests run at a time. Before each
# result there is a question: answer it first.

# %%
from pathlib import Path
from typing import NamedTuple

from lessons.walkthroughs import trace_path
from minivllm import LLM, SamplingParams
from minivllm.model.tiny import MODEL_PATH
from minivllm.trace.events import BlocksEvicted, BlocksShared
from minivllm.trace.reader import read_trace
from minivllm.trace.summary import summarize

TRACES = ("10_radix.jsonl", "10_hash.jsonl", "10_none.jsonl")
PAGE = "prefix_tree"
PICTURES = {
    "tree.svg": ("prefix_tree", 0, 20),
    "evicted.svg": ("prefix_tree", 0, 55),
}

BLOCK_SIZE = 8
SYSTEM = "You are a helpful assistant. Answer in one sentence.\n"
CHATS = (
    ("What is a KV cache?", "What is a block?", "And a slot?"),
    ("What is a KV cache?", "Why is it large?", "Who frees it?"),
    ("What is paging?", "Who found it?", "Why blocks?"),
    ("Tell me a story.", "And then?", "How does it end?"),
)

# %% [markdown]
# ## May the key of a block be a hash of its own tokens?
#
# Two prompts, in blocks of four tokens. Their second blocks hold the same tokens.
#
# Predict: are the keys and values in the two second blocks the same, too? And which keys are equal, if a key
# is made of the block's tokens alone, and if it is made of the parent's key as well?

# %%
ONE, OTHER = [1, 2, 3, 4, 9, 9, 9, 9], [5, 6, 7, 8, 9, 9, 9, 9]


def keys(tokens: list[int], with_parent: bool) -> list[int]:
    found: list[int] = []
    for start in range(0, len(tokens), 4):
        parent = found[-1] if found and with_parent else None
        found.append(hash((parent, *tokens[start : start + 4])) % 1000)  # short, to be read
    return found


for words, with_parent in (("the block alone", False), ("its parent's key, too", True)):
    one, other = keys(ONE, with_parent), keys(OTHER, with_parent)
    verdict = "the same: a collision" if one[1] == other[1] else "different"
    print(f"key made of {words:21s}: the second keys are {verdict}")

# %% [markdown]
# ## How much of each prompt is computed?
#
# A block has 8 tokens. Predict: the first prompt has 25 tokens. The second begins with the same
# instructions and asks the same question. How many of its tokens are cached, and why not all 25? And which
# share of a conversation's third turn?


# %%
class Run(NamedTuple):
    said: list[str]
    prompts: list[tuple[int, int]]
    """Tokens of each prompt, and how many of them were cached."""

    @property
    def hit_rate(self) -> float:
        return sum(cached for _, cached in self.prompts) / sum(tokens for tokens, _ in self.prompts)


def chat(path: Path, num_blocks: int, prefix_cache: str | None) -> Run:
    """Three turns of all conversations."""
    run = Run([SYSTEM for _ in CHATS], [])
    params = SamplingParams(temperature=0, max_tokens=10, ignore_eos=True)
    with LLM(
        MODEL_PATH,
        block_size=BLOCK_SIZE,
        num_gpu_blocks_override=num_blocks,
        max_num_seqs=2,
        prefix_cache=prefix_cache,
        trace=path,
    ) as llm:
        for turn in range(3):
            for who, questions in enumerate(CHATS):
                run.said[who] += f"Question: {questions[turn]}\nAnswer:"
            for who, output in enumerate(llm.generate(run.said, params, use_tqdm=False)):
                run.prompts.append((len(output.prompt_token_ids), output.num_cached_tokens or 0))
                run.said[who] += output.outputs[0].text + "\n"
    return run


NUM_BLOCKS = 24
paths = [trace_path(name) for name in TRACES]
kinds = ("radix", "hash", None)
radix, hashed, none = (chat(path, NUM_BLOCKS, kind) for path, kind in zip(paths, kinds, strict=True))
for turn in range(3):
    cells = [f"{cached:2d} of {tokens}" for tokens, cached in radix.prompts[turn * 4 : turn * 4 + 4]]
    print(f"turn {turn + 1}: cached tokens of the prompts A B C D: {', '.join(cells)}")

# %% [markdown]
# ## Are the answers still the same?
#
# Predict: a block that was computed for one request is read by another. Does any answer change?

# %%
assert radix.said == hashed.said == none.said
print(f"all three runs say the same; the first conversation:\n{radix.said[0]}")
for name, path in zip(("radix", "hash", "none"), paths, strict=True):
    summary = summarize(read_trace(path))
    print(f"{name:5s}: {summary.computed_tokens:3d} tokens were computed, in {summary.num_steps} steps")

# %% [markdown]
# ## What is evicted, and when?
#
# Predict: the pool has 24 blocks. In which turn is the first block evicted? Are the instructions, which every
# prompt begins with, ever among the evicted?

# %%
trace = read_trace(paths[0])
for step in range(trace.num_steps):
    for event in trace.step_events(step):
        if isinstance(event, BlocksShared) and event.source == "cache":
            print(
                f"step {step:2d}: s{event.seq} maps {len(event.blocks)} cached blocks: {list(event.blocks)}"
            )
        elif isinstance(event, BlocksEvicted):
            print(f"step {step:2d}: evicted: {list(event.blocks)}")

# %% [markdown]
# ## Hashes or a tree: which finds more?
#
# Predict: the same conversations, in pools of different sizes. Which of the two finds more, and by how much?

# %%
print("blocks    hash   radix   evicted")
for num_blocks in (64, 24, 16, 12):
    both = []
    for kind in ("hash", "radix"):
        path = trace_path(f"10_{kind}_{num_blocks}.jsonl")
        run = radix if (kind, num_blocks) == ("radix", NUM_BLOCKS) else chat(path, num_blocks, kind)
        path = paths[0] if run is radix else path
        both.append((run.hit_rate, summarize(read_trace(path)).num_evicted_blocks))
    assert both[0] == both[1]
    print(f"{num_blocks:6d}  {both[0][0]:6.1%}  {both[1][0]:6.1%}  {both[0][1]:6d}")
print(f"\nThe whole run, step by step: minivllm dashboard {paths[0]}")
