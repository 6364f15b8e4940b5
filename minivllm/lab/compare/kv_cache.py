"""What a KV cache saves: the same prompt, generated with it and without it.

Both runs go through the same engine, step by step in turns, so that a busy machine slows both alike. They
give the same tokens; what differs is the work of a step. With a cache a decode step computes one token,
however long the text has become; without one it computes the whole text again.

Read next: `minivllm/executor/recompute_executor.py`, the engine without a cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import cast

import torch

from minivllm.config import SchedulerConfig
from minivllm.decoding.sampler import Sampler
from minivllm.engine.engine import Engine
from minivllm.executor.executor import Executor
from minivllm.executor.recompute_executor import RecomputeExecutor
from minivllm.executor.torch_executor import TorchExecutor
from minivllm.lab.subjects.settings import check_threads
from minivllm.memory import blocks_needed
from minivllm.sampling_params import SamplingParams
from minivllm.validation import check_integer

BLOCK_SIZE = 16
NUM_ROWS = 6


@dataclass(frozen=True)
class Stretch:
    """Some consecutive decode steps: the median cost of one, with the cache and without."""

    first_context: int
    last_context: int
    """Tokens in the sequence when the step computes."""
    cached_seconds: float
    recomputed_seconds: float


@dataclass(frozen=True)
class CacheComparison:
    """The result."""

    prompt_tokens: int
    output_tokens: int
    same_tokens: bool
    prefill_seconds: float
    """The first step, which computes the whole prompt: the same work in both runs."""
    computed_with_cache: int
    computed_without: int
    """Tokens that went through the model."""
    cached_seconds: float
    recomputed_seconds: float
    """All decode steps together."""
    stretches: tuple[Stretch, ...]

    @property
    def speedup(self) -> float:
        return self.recomputed_seconds / self.cached_seconds


def compare_cache(
    model: str | Path, *, prompt_tokens: int = 64, output_tokens: int = 192, threads: int = 1, seed: int = 0
) -> CacheComparison:
    """Generate greedily after a random prompt of `prompt_tokens` tokens, with and without a KV cache.

    Raises:
        ValueError: a length or the number of threads is out of range, or the model cannot be loaded.
    """
    check_integer("prompt_tokens", prompt_tokens, at_least=1)
    check_integer("output_tokens", output_tokens, at_least=2)
    torch.set_num_threads(check_threads(threads))
    with_cache, without = (_make_executor(model, prompt_tokens + output_tokens) for _ in range(2))
    recompute = RecomputeExecutor(without)
    vocab_size = with_cache.config.vocab_size
    prompt = torch.randint(3, vocab_size, (prompt_tokens,), generator=torch.Generator().manual_seed(seed))
    both = (with_cache, cast(Executor, recompute))
    engines = [_make_engine(executor, with_cache) for executor in both]
    params = SamplingParams(temperature=0, max_tokens=output_tokens, ignore_eos=True)
    for engine in engines:
        engine.add_request("it", prompt.tolist(), params)
    seconds: list[tuple[float, float]] = []
    tokens: list[Sequence[int]] = [(), ()]
    while any(engine.has_unfinished_requests() for engine in engines):
        step = []
        for index, engine in enumerate(engines):
            began = perf_counter()
            (output,) = engine.step()
            step.append(perf_counter() - began)
            tokens[index] = output.outputs[0].token_ids
        seconds.append((step[0], step[1]))
    prefill, *decodes = seconds
    return CacheComparison(
        prompt_tokens=prompt_tokens,
        output_tokens=output_tokens,
        same_tokens=tokens[0] == tokens[1],
        prefill_seconds=prefill[0],
        computed_with_cache=prompt_tokens + output_tokens - 1,
        computed_without=recompute.num_computed_tokens,
        cached_seconds=sum(cached for cached, _ in decodes),
        recomputed_seconds=sum(recomputed for _, recomputed in decodes),
        stretches=_stretches(prompt_tokens + 1, decodes),
    )


def _make_executor(model: str | Path, num_tokens: int) -> TorchExecutor:
    num_blocks = blocks_needed(num_tokens, BLOCK_SIZE)
    return TorchExecutor.from_folder(model, num_blocks=num_blocks, block_size=BLOCK_SIZE, device="cpu")


def _make_engine(executor: Executor, model: TorchExecutor) -> Engine:
    longest = model.config.max_model_len
    config = SchedulerConfig(
        model.num_blocks, BLOCK_SIZE, max_num_batched_tokens=longest, max_model_len=longest
    )
    vocab_size = model.config.vocab_size
    return Engine(config, executor, Sampler(vocab_size), vocab_size=vocab_size)


def _stretches(first_context: int, decodes: list[tuple[float, float]]) -> tuple[Stretch, ...]:
    """The decode steps in a few groups of equal size."""
    size = -(-len(decodes) // NUM_ROWS)
    groups = [(begin, decodes[begin : begin + size]) for begin in range(0, len(decodes), size)]
    return tuple(
        Stretch(
            first_context + begin,
            first_context + begin + len(group) - 1,
            median(cached for cached, _ in group),
            median(recomputed for _, recomputed in group),
        )
        for begin, group in groups
    )
