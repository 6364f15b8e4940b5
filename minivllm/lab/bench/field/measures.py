"""What is measured: three kinds of work that ask different things of an engine.

    batch     all requests of the workload at once: scheduling, batching, the cache
    decode    one stream, a prompt of 64 and 128 new tokens: the cost of a step, and of reading the weights
    prefill   one prompt of 1,024 and one new token: matrix products

Rates count new tokens for the first two and prompt tokens for the third; a stream's short prompt is part
of its time. A model too short for these lengths gets shorter ones. Read next: `compare.py`.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from minivllm.lab.subjects.workload import FIRST_ORDINARY_TOKEN, BenchRequest

MEASURES = ("batch", "decode", "prefill")
LENGTHS = {"decode": (64, 128), "prefill": (1_024, 1)}
"""Prompt and output tokens of the measures with a single request."""


@dataclass(frozen=True)
class Measure:
    """Requests that are there at once, and the tokens that are counted."""

    name: str
    title: str
    requests: Sequence[BenchRequest]
    num_tokens: int


def make_measures(
    names: Sequence[str], workload: Sequence[BenchRequest], vocab_size: int, seed: int, max_model_len: int
) -> list[Measure]:
    """The measures of these names, for a model of this vocabulary and length."""
    measures = []
    for name in names:
        if name == "batch":
            new = sum(request.num_output_tokens for request in workload)
            title = f"batch: {len(workload)} requests at once, output tokens per second"
            measures.append(Measure(name, title, workload, new))
            continue
        prompt, output = fit(*LENGTHS[name], max_model_len)
        rng = random.Random(f"{seed} {name}")
        tokens = tuple(rng.randrange(FIRST_ORDINARY_TOKEN, vocab_size) for _ in range(prompt))
        request = BenchRequest(f"bench-{name}", tokens, output)
        if name == "decode":
            title = f"decode: one stream, prompt of {prompt:,}, {output:,} output tokens, of these per second"
        else:
            title = f"prefill: one prompt of {prompt:,}, prompt tokens per second"
        measures.append(Measure(name, title, [request], output if name == "decode" else prompt))
    return measures


def padding_factor(requests: Sequence[BenchRequest], batch_size: int) -> float:
    """Tokens that padded static batches compute for each one that is needed, prompts and outputs.

    A batch is as wide as its longest prompt, and goes on until its longest answer is done.
    """
    computed = needed = 0
    for start in range(0, len(requests), batch_size):
        batch = requests[start : start + batch_size]
        width = max(len(request.prompt_token_ids) for request in batch)
        steps = max(request.num_output_tokens for request in batch)
        computed += len(batch) * (width + steps)
        needed += sum(len(request.prompt_token_ids) + request.num_output_tokens for request in batch)
    return computed / needed


def fit(prompt: int, output: int, max_model_len: int) -> tuple[int, int]:
    """The same proportions within the model's length."""
    whole = prompt + output
    if whole <= max_model_len:
        return prompt, output
    shorter = max(1, output * max_model_len // whole)
    return max(1, max_model_len - shorter), shorter
