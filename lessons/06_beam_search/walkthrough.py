# %% [markdown]
# # 06 Parallel sampling and beam search, step by step
#
# First the decisions alone, by hand, on a language of three tokens; then the real engine with the model that
# comes with minivllm: four samples of one prompt, and a search with four beams, in blocks of 8 tokens. Before
# each result there is a question: answer it first.

# %%
from itertools import product

from lessons.walkthroughs import trace_path
from minivllm import LLM, SamplingParams
from minivllm.decoding.beam_search import BeamSearch, Candidate
from minivllm.model.tiny import MODEL_PATH
from minivllm.trace.events import BeamsAdvanced, BlockCopied, SequenceForked
from minivllm.trace.reader import read_trace
from minivllm.trace.replay import Replay

TRACES = ("06_beam_search.jsonl",)
PAGE = "beam_tree"
PICTURES = {
    "tree.svg": ("beam_tree", 0, 25, {"request": "1"}),
    "blocks.svg": ("block_pool", 0, 25, {"request": "1"}),
}

BLOCK_SIZE, WIDTH, LENGTH = 8, 4, 16

# %% [markdown]
# ## By hand
#
# Three tokens: `a`, `b` and `.`, which ends. What the model says depends on the last token only.
#
# Predict: greedy decoding takes the likeliest token each time. Is its answer, of three tokens at most, the
# likeliest of all? Which width is enough to find that one?

# %%
TOKENS = "ab."
LOGPROBS = {"": (-0.6, -1.1, -3.0), "a": (-1.6, -1.5, -1.7), "b": (-2.5, -1.6, -0.2)}


def search(width: int) -> tuple[str, float]:
    """The engine's own decisions; the likeliest answer, by its sum (`length_penalty=0`)."""
    beams, decisions = (
        [""],
        BeamSearch(width, max_tokens=3, eos_token_ids=[2], length_penalty=0.0, early_stopping="never"),
    )
    while not decisions.is_done:
        candidates = [
            Candidate(place, token, score + LOGPROBS[beam[-1:]][token])
            for place, (beam, score) in enumerate(zip(beams, decisions.scores, strict=True))
            for token in range(3)
        ]
        candidates.sort(key=lambda candidate: -candidate.score)
        generated = [[TOKENS.index(letter) for letter in beam] for beam in beams]
        kept = decisions.advance(candidates[: decisions.num_candidates], generated.__getitem__).kept
        beams = [beams[beam] + TOKENS[token] for beam, token, _ in kept]
    tokens, total, *_ = decisions.best()[0]
    return "".join(TOKENS[token] for token in tokens), total


everything = []
for length in (1, 2, 3):
    for letters in product(TOKENS, repeat=length):
        text = "".join(letters)
        if "." not in text[:-1] and (text[-1] == "." or length == 3):
            total = sum(LOGPROBS[text[max(0, i - 1) : i]][TOKENS.index(c)] for i, c in enumerate(text))
            everything.append((total, text))
for width in (1, 2, 9):
    text, total = search(width)
    print(f"width {width}: {text:<3} {total:5.1f}")
print(f"all {len(everything)} answers tried: {max(everything)[1]:<3} {max(everything)[0]:5.1f}")

# %% [markdown]
# ## The run
#
# The same prompt twice: four samples, then four beams, 16 tokens each.

# %%
PROMPT = "Long ago, a small fox lived at the edge of a quiet forest. One sunny morning,"
path = trace_path(TRACES[0])
with LLM(MODEL_PATH, block_size=BLOCK_SIZE, num_gpu_blocks_override=32, trace=path) as llm:
    sampled = SamplingParams(n=WIDTH, temperature=0.9, seed=7, max_tokens=LENGTH, ignore_eos=True)
    searched = SamplingParams(
        n=WIDTH, use_beam_search=True, temperature=0, max_tokens=LENGTH, ignore_eos=True
    )
    outputs = [llm.generate(PROMPT, params, use_tqdm=False)[0] for params in (sampled, searched)]
for name, output in zip(("samples", "beams"), outputs, strict=True):
    print(f"{name}, after a prompt of {len(output.prompt_token_ids)} tokens")
    for completion in output.outputs:
        print(f"    …{completion.text!r}")
trace = read_trace(path)
replay = Replay(trace)


def steps_of(request: str) -> list[int]:
    """Steps in which a request holds blocks."""
    members = [replay.state_at(step).members for step in range(trace.num_steps)]
    return [step for step, now in enumerate(members) if now.get(request)]


# %% [markdown]
# ## How many blocks, with and without sharing?
#
# Without sharing, each table has all its blocks for itself.
#
# Predict: samples share the full blocks of the prompt and nothing else. What more can beams share?


# %%
def print_blocks(request: str) -> None:
    """A line for each step in which something changes."""
    before = None
    for step in steps_of(request):
        state = replay.state_at(step)
        tables = [state.tables[seq] for seq in state.members[request]]
        entries = sum(len(table) for table in tables)
        blocks = len({block for table in tables for block in table})
        if (entries, blocks) != before:
            print(f"step {step:2d}: {blocks:2d} blocks, {entries:2d} without sharing, ", end="")
            print(f"{1 - blocks / entries:.0%} saved")
        before = (entries, blocks)


print("samples")
print_blocks("0")
print("beams")
print_blocks("1")

# %% [markdown]
# ## Which beams branch, and which are pruned?
#
# Predict: four beams go on in every step. If one of them has three children, how many are pruned?

# %%
for step in range(trace.num_steps):
    for event in trace.step_events(step):
        if isinstance(event, BeamsAdvanced) and event.kept:
            parents = [parent for parent, *_ in event.kept]
            children = [parents.count(parent) for parent in dict.fromkeys(parents)]
            print(f"step {step:2d}: parents with children {children}, best score {event.kept[0][3]:.2f}")

# %% [markdown]
# ## What does it cost?
#
# Predict: how many forks, and how many copied blocks, in the samples and in the search?

# %%
for name, request in (("samples", "0"), ("beams", "1")):
    events = [event for step in steps_of(request) for event in trace.step_events(step)]
    forks = sum(isinstance(event, SequenceForked) for event in events)
    copies = sum(isinstance(event, BlockCopied) for event in events)
    print(f"{name}: {forks} forks, {copies} blocks copied")
state = replay.state_at(trace.num_steps - 1)
print(f"free blocks at the end: {len(state.free)} of {trace.header.num_blocks}")
print(f"\nThe whole search as a tree: minivllm dashboard {path}")
