# %% [markdown]
# # 02 From recurrence to the KV cache, step by step
#
# First a recurrent cell and attention, with random weights: how much of the first token is left after a
# distance? Then the real engine with the model that comes with minivllm, twice: with its KV cache, and with
# an executor that has none and computes the whole text again for every token. Before each result there is a
# question: answer it first.

# %%
from pathlib import Path
from statistics import median
from time import process_time
from typing import Any, cast

import numpy as np
import torch

from lessons.walkthroughs import trace_path
from minivllm import SamplingParams
from minivllm.config import SchedulerConfig
from minivllm.decoding.sampler import Sampler
from minivllm.engine.engine import Engine
from minivllm.executor.executor import Executor
from minivllm.executor.recompute_executor import RecomputeExecutor
from minivllm.executor.torch_executor import TorchExecutor
from minivllm.lab.simulation.cards import model_card
from minivllm.model.tiny import MODEL_PATH
from minivllm.model.tokenizer import Tokenizer
from minivllm.trace.curves import Curve, Curves, write_curves
from minivllm.trace.reader import read_trace
from minivllm.trace.recorder import Recorder
from minivllm.trace.timeline import Timeline, make_timeline

TRACES = ("02_cached.jsonl", "02_recomputed.jsonl", "02_short.jsonl", "02_forgetting.json")
PAGE = "compare"
PICTURES = {
    "forgetting.svg": ("curves", 3, -1),
    "triangle.svg": ("attention_triangle", 2, 5),
    "work.svg": ("cache_work", 0, 191),
}
torch.set_num_threads(1)

# %% [markdown]
# ## How much of the first token is left?
#
# A recurrent cell reads one token after the other, and all that it knows of the past is one state of 32
# numbers: h = tanh(W h + U x). So what it knows of the first token has gone through W once for each token
# since. Influence: by how much the output changes, at most, if the first token changes a little.
#
# Predict: W is random; in the first cell it makes a vector 0.9 times as long as it was (about), in the others
# 1.2, 2 and 2.5 times. Which of the four still knows something of the first token after 64 more?

# %%
WIDTH, TEXTS = 32, 15
DISTANCES = tuple(sorted({round(2 ** (power / 2)) for power in range(13)}))
dice = np.random.default_rng(2)
W, U, query, key, value = dice.standard_normal((5, WIDTH, WIDTH)) / WIDTH**0.5
texts = dice.standard_normal((TEXTS, DISTANCES[-1] + 1, WIDTH))


def of_recurrence(factor: float) -> list[float]:
    """Influence of the first token after each distance: the largest singular value of the Jacobian."""
    found = []
    for text in texts:
        state, jacobian = np.zeros(WIDTH), np.eye(WIDTH)
        norms = []
        for place, token in enumerate(text):
            state = np.tanh(factor * W @ state + U @ token)
            through = U if place == 0 else factor * W
            jacobian = (1 - state**2)[:, None] * (through @ jacobian)
            if place in DISTANCES:
                norms.append(np.linalg.norm(jacobian, 2))
        found.append(norms)
    return [float(median(column)) for column in zip(*found, strict=True)]


def of_attention() -> list[float]:
    """The same for one head of attention, whose newest token looks at all tokens at once."""
    found = []
    for text in texts:
        norms = []
        for distance in DISTANCES:
            seen = text[: distance + 1]
            asked = seen[-1] @ query
            scores = seen @ key @ asked / WIDTH**0.5
            weights = np.exp(scores - scores.max())
            weights /= weights.sum()
            out = weights @ seen @ value
            # A token changes the output by its value, and by the weight that its key gets.
            by_key = np.outer(seen[0] @ value - out, key @ asked / WIDTH**0.5)
            norms.append(np.linalg.norm(weights[0] * (value.T + by_key), 2))
        found.append(norms)
    return [float(median(column)) for column in zip(*found, strict=True)]


curves = [Curve("attention: one step, whatever the distance", tuple(of_attention()))]
for factor in (0.9, 1.2, 2.0, 2.5):
    curves.append(Curve(f"recurrent cell, W · {factor}", tuple(of_recurrence(factor))))
found = Curves(
    "How much of the first token is left",
    "tokens between the first one and the output",
    "influence",
    tuple(float(distance) for distance in DISTANCES),
    tuple(curves),
)
write_curves(trace_path(TRACES[3]), found)
print(f"{'tokens after the first':43s} " + "".join(f"{distance:10d}" for distance in DISTANCES[1::2]))
for curve in found.curves:
    print(f"{curve.name:43s} " + "".join(f"{number:10.2g}" for number in curve.values[1::2]))

# %% [markdown]
# ## And all at once?
#
# A state needs the one before it: n tokens are n steps, one after the other, on whatever machine. Attention
# needs no state: all rows of a prompt go through a matrix together.
#
# Predict: 512 rows of width 256 go through a matrix of 256 × 256, once together, and once so that each waits
# for the one before it. The multiplications are the same. How much longer does it take?

# %%
tokens, weights_of_cell = torch.randn(512, 256), torch.randn(256, 256) / 16


def fastest(call: Any) -> float:
    """Seconds of the fastest of some runs: what disturbs a run is not its cost."""
    times = []
    for _ in range(7):
        began = process_time()
        call()
        times.append(process_time() - began)
    return min(times)


def one_after_the_other() -> None:
    state = torch.zeros(256)
    for token in tokens:
        state = torch.tanh(weights_of_cell @ state + token)


def together() -> None:
    torch.tanh(tokens @ weights_of_cell)


slow, fast = fastest(one_after_the_other), fastest(together)
print(f"512 rows through one matrix: one after the other {1e3 * slow:.2f} ms, together {1e3 * fast:.2f} ms")

# %% [markdown]
# ## What does a decoder compute again?
#
# Now the real model. Six tokens of a prompt, eight of an answer; greedy, so that both runs must say the same.
#
# Predict: how many tokens go through the model, with the cache? And without it, if every step begins with the
# first token?

# %%
BLOCK_SIZE, ROOM = 16, 512
with_cache, without = (
    TorchExecutor.from_folder(MODEL_PATH, num_blocks=ROOM // BLOCK_SIZE, block_size=BLOCK_SIZE, device="cpu")
    for _ in range(2)
)
recompute = RecomputeExecutor(without)
tokenizer = Tokenizer.from_folder(MODEL_PATH)


def generate(executor: Any, prompt: list[int], length: int, path: Path | None = None) -> list[int]:
    """The answer to a prompt; what happens goes into a trace, with the processor's time, in which nothing is
    that this machine does for others."""
    config = SchedulerConfig(ROOM // BLOCK_SIZE, BLOCK_SIZE, max_num_batched_tokens=ROOM, max_model_len=ROOM)
    vocab_size = with_cache.config.vocab_size
    with Recorder(path) as recorder:
        recorder.use_clock(process_time)
        engine = Engine(
            config,
            cast(Executor, executor),
            Sampler(vocab_size),
            vocab_size=vocab_size,
            recorder=recorder,
            model_shape=with_cache.model_shape,
            clock=process_time,
        )
        params = SamplingParams(temperature=0, max_tokens=length, ignore_eos=True)
        engine.add_request("A", prompt, params)
        while engine.has_unfinished_requests():
            (output,) = engine.step()
    return list(output.outputs[0].token_ids)


def timeline_of(name: str) -> Timeline:
    return make_timeline(read_trace(trace_path(name)))


prompt = tokenizer.encode("Once upon a time, there was")[:6]
answer = generate(with_cache, prompt, 8, trace_path(TRACES[2]))
assert generate(recompute, prompt, 8) == answer
print(f"prompt {prompt}, answer {answer}: the same with the cache and without")
print("step   computes with the cache   without")
for record in timeline_of(TRACES[2]).records:
    (item,) = record.batch
    end = item.start + item.num_tokens
    print(f"{record.step:4d}   positions {item.start:2d} … {end - 1:2d}      positions  0 … {end - 1:2d}")
print(
    f"tokens through the model: {len(prompt) + 8 - 1} with the cache, {recompute.num_computed_tokens} without"
)

# %% [markdown]
# ## What does that cost?
#
# A longer text: a prompt of 64 tokens, an answer of 192.
#
# Predict: without the cache, each step computes all tokens that there are: 64 + 65 + … + 255. How many is
# that? And is the time of a step with the cache always the same?

# %%
prompt = [3 + 7 * place % 900 for place in range(64)]
for executor in (with_cache, recompute):
    generate(executor, prompt, 40)  # so that nothing is slow only because it is the first time
recompute.num_computed_tokens = 0
said = [
    generate(executor, prompt, 192, trace_path(name))
    for executor, name in zip((with_cache, recompute), TRACES, strict=False)
]
assert said[0] == said[1]
cached, recomputed = (timeline_of(name) for name in TRACES[:2])
print(f"the same {len(said[0])} tokens; through the model went", end=" ")
print(f"{64 + 192 - 1} with the cache, {recompute.num_computed_tokens:,} without")
assert recompute.num_computed_tokens == sum(range(64, 256))
print("tokens there     with the cache   without")
for first in range(1, 192, 32):
    spans = [timeline.records[first : first + 32] for timeline in (cached, recomputed)]
    times = [1e3 * median(record.seconds["model"] for record in span) for span in spans]
    print(f"{64 + first:4d} … {64 + first + len(spans[0]) - 1:4d} {times[0]:14.2f} ms {times[1]:8.2f} ms")
totals = [sum(record.seconds["model"] for record in timeline.records) for timeline in (cached, recomputed)]
print(f"all steps: {1e3 * totals[0]:.0f} ms and {1e3 * totals[1]:.0f} ms", end=", ")
print(f"{totals[1] / totals[0]:.1f} times as long")

# %% [markdown]
# ## What does the cache hold?
#
# Of each layer and KV head, a key and a value are kept. Predict: how many bytes do 4,096 tokens take in Llama
# 2 7B (32 layers, 32 KV heads of 128 numbers, 2 bytes each)? And in Llama 3 8B, which has 8 KV heads?


# %%
def kv_bytes(layers: int, kv_heads: int, head_dim: int, num_tokens: int, bytes_per_number: int) -> int:
    return 2 * layers * kv_heads * head_dim * num_tokens * bytes_per_number


config, storage = with_cache.config, with_cache.storage
shape = (config.num_layers, config.num_kv_heads, config.head_dim)
print(
    f"the model here: {shape[0]} layers, {shape[1]} KV heads of {shape[2]} for {config.num_heads} query heads"
)
print(f"  by the formula {kv_bytes(*shape, 1, 4):,} bytes a token, by its arrays {storage.bytes_per_token:,}")
assert storage.num_bytes == kv_bytes(*shape, ROOM, 4)
for name in ("llama-2-7b", "llama-3-8b"):
    card = model_card(name).shape()
    taken = kv_bytes(card.num_layers, card.num_kv_heads, card.head_dim, 4096, 2)
    print(f"{name}: {card.num_layers} layers, {card.num_kv_heads} KV heads of {card.head_dim};", end=" ")
    print(f"4,096 tokens take {taken / 2**30:.2f} GiB")
print(f"\nBoth runs on one clock, on the page Compare: minivllm dashboard {trace_path(TRACES[0])}")
