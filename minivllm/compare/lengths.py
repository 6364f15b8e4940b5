"""How long prompts and answers are: two workloads like those of the vLLM paper.

    "alpaca"      instructions, short on both sides          mean 19 tokens in, 58 out
    "sharegpt"    conversations with a chat model            mean 161 tokens in, 338 out

The data sets are not part of this project. Lengths are drawn from log-normal distributions: most are short,
a few are long. The paper gives the means; how widely lengths scatter (sigma, the standard deviation of their
logarithm) is read off its histograms by eye, and is an assumption. After cutting what is too long, all are
stretched until the means of the sample are those above. Prompt and answer are drawn independently.

Source: Kwon et al. (SOSP 2023), section 6.1 and figure 11. Read next: `memory_play.py`.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from minivllm.validation import check_choice, check_integer

LONGEST_PROMPT = LONGEST_OUTPUT = 1024
"""Together the 2,048 tokens of the paper's models."""


class Lengths(NamedTuple):
    """One request: tokens that come in, and tokens that come out."""

    prompt: int
    output: int


@dataclass(frozen=True)
class DataSet:
    """What lengths are like."""

    name: str
    mean_prompt: float
    mean_output: float
    prompt_sigma: float
    output_sigma: float


DATA_SETS = {
    "sharegpt": DataSet("ShareGPT-like", 161, 338, 1.2, 0.9),
    "alpaca": DataSet("Alpaca-like", 19, 58, 0.5, 1.0),
}


def draw_lengths(data_set: str, count: int, seed: int) -> list[Lengths]:
    """`count` requests; a function of the arguments and of nothing else."""
    shape = DATA_SETS[check_choice("data_set", data_set, tuple(DATA_SETS))]
    check_integer("count", count, at_least=1)
    rng = random.Random(f"{data_set} {seed}")
    prompts = [math.exp(rng.gauss(0, shape.prompt_sigma)) for _ in range(count)]
    outputs = [math.exp(rng.gauss(0, shape.output_sigma)) for _ in range(count)]
    return [
        Lengths(*pair)
        for pair in zip(
            stretched(prompts, shape.mean_prompt, 1, LONGEST_PROMPT),
            stretched(outputs, shape.mean_output, 2, LONGEST_OUTPUT),
            strict=True,
        )
    ]


def stretched(values: Sequence[float], mean: float, least: int, most: int) -> list[int]:
    """Multiply all values by one factor, so that their mean is `mean` once they are cut to `least … most`."""

    def cut(factor: float) -> list[int]:
        return [min(most, max(least, round(value * factor))) for value in values]

    low, high = 0.0, most / min(values)
    for _ in range(60):  # the mean grows with the factor: halve the interval
        middle = (low + high) / 2
        if sum(cut(middle)) < mean * len(values):
            low = middle
        else:
            high = middle
    return cut(high)
