"""How long prompts and answers are: distributions, and two that are like those of the vLLM paper.

    Fixed(128)                           |
    Uniform(16, 256)             ▄▄▄▄▄▄▄▄▄▄▄▄▄▄▄▄▄▄
    LogNormal(161, 1.2, …)       ▂█▇▅▄▃▂▂▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▂     what is too long is cut to the longest

    "alpaca"      instructions, short on both sides          mean 19 tokens in, 58 out
    "sharegpt"    conversations with a chat model            mean 161 tokens in, 338 out

The data sets are not part of this project. Lengths are drawn from log-normal distributions: most are short,
a few are long. The paper gives the means; how widely lengths scatter (sigma, the standard deviation of their
logarithm) is read off its histograms by eye, and is an assumption. Prompt and answer are drawn independently.

A distribution is the inverse of its cumulative one: a number from 0 to 1 goes in, the length at that share of
all requests comes out. So lengths can be drawn one at a time, for ever. Rounding and cutting change the mean
of a log-normal distribution, so its median is chosen such that the mean *afterwards* is the one asked for;
that holds for all requests, and only nearly for a few. `draw_lengths` makes a small sample whose own means
are exact, by stretching it: that is what comparisons use.

Source: Kwon et al. (SOSP 2023), section 6.1 and figure 11. Read next: `prompts.py`.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from statistics import NormalDist
from typing import NamedTuple, Protocol

from minivllm.validation import check_choice, check_integer, check_number

_normal = NormalDist()


class LengthDistribution(Protocol):
    """Numbers of tokens, at least one."""

    @property
    def mean(self) -> float:
        """Expected tokens."""
        ...

    def at(self, share: float) -> int:
        """The length that this share of all (above 0, below 1) do not exceed."""
        ...


@dataclass(frozen=True)
class Fixed:
    """All are equally long."""

    length: int

    def __post_init__(self) -> None:
        check_integer("length", self.length, at_least=1)

    @property
    def mean(self) -> float:
        return self.length

    def at(self, share: float) -> int:
        return self.length


@dataclass(frozen=True)
class Uniform:
    """Each length from `least` to `most` is as likely as the others."""

    least: int
    most: int

    def __post_init__(self) -> None:
        check_integer("least", self.least, at_least=1)
        check_integer("most", self.most, at_least=self.least)

    @property
    def mean(self) -> float:
        return (self.least + self.most) / 2

    def at(self, share: float) -> int:
        return self.least + int(share * (self.most - self.least + 1))


@dataclass(frozen=True)
class LogNormal:
    """Cut to `least … most`, and with this mean once it is cut."""

    mean: float
    sigma: float
    least: int
    most: int
    mu: float = field(init=False, repr=False, compare=False)
    """Mean of the logarithm, before rounding and cutting."""

    def __post_init__(self) -> None:
        check_integer("least", self.least, at_least=1)
        check_integer("most", self.most, at_least=self.least + 1)
        check_number("sigma", self.sigma, at_least=LEAST_SIGMA, at_most=MOST_SIGMA)
        check_number("mean", self.mean, more_than=self.least)
        if self.mean >= self.most:
            raise ValueError(f"mean must be below most ({self.most}), got {self.mean}")
        object.__setattr__(self, "mu", _solve_mu(self.mean, self.sigma, self.least, self.most))

    def at(self, share: float) -> int:
        length = round(math.exp(min(self.mu + self.sigma * _normal.inv_cdf(share), LARGEST_EXPONENT)))
        return min(self.most, max(self.least, length))


LEAST_SIGMA, MOST_SIGMA = 0.01, 10
LARGEST_EXPONENT = 700
"""Of e, in a float."""


@lru_cache(maxsize=64)
def _solve_mu(mean: float, sigma: float, least: int, most: int) -> float:
    """The mean grows with mu: halve the interval. Takes milliseconds up to thousands of tokens, once."""
    # A length of whole tokens is `least`, one more if it is longer than that, one more if … up to `most`.
    steps = [math.log(length + 0.5) / (sigma * math.sqrt(2)) for length in range(least, most)]
    low, high = steps[0] - 6, steps[-1] + 6  # in units of sigma · √2; no length lies beyond 6 of them
    for _ in range(60):
        middle = (low + high) / 2
        if sum(math.erfc(step - middle) for step in steps) / 2 < mean - least:
            low = middle
        else:
            high = middle
    return high * sigma * math.sqrt(2)


LONGEST_PROMPT = LONGEST_OUTPUT = 1024
"""Together the 2,048 tokens of the paper's models."""
SHORTEST_PROMPT, SHORTEST_OUTPUT = 1, 2


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


def like(data_set: str) -> tuple[LogNormal, LogNormal]:
    """Prompts and answers of that data set, one at a time."""
    shape = DATA_SETS[check_choice("data_set", data_set, tuple(DATA_SETS))]
    return (
        LogNormal(shape.mean_prompt, shape.prompt_sigma, SHORTEST_PROMPT, LONGEST_PROMPT),
        LogNormal(shape.mean_output, shape.output_sigma, SHORTEST_OUTPUT, LONGEST_OUTPUT),
    )


def draw_lengths(data_set: str, count: int, seed: int) -> list[Lengths]:
    """`count` requests whose means are exactly those; a function of the arguments and of nothing else."""
    shape = DATA_SETS[check_choice("data_set", data_set, tuple(DATA_SETS))]
    check_integer("count", count, at_least=1)
    rng = random.Random(f"{data_set} {seed}")
    prompts = [math.exp(rng.gauss(0, shape.prompt_sigma)) for _ in range(count)]
    outputs = [math.exp(rng.gauss(0, shape.output_sigma)) for _ in range(count)]
    return [
        Lengths(*pair)
        for pair in zip(
            stretched(prompts, shape.mean_prompt, SHORTEST_PROMPT, LONGEST_PROMPT),
            stretched(outputs, shape.mean_output, SHORTEST_OUTPUT, LONGEST_OUTPUT),
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
