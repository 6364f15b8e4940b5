"""The five measurements of `scaling.py`: seconds at each size, as medians.

Decoding is measured on a real model, with the engine around it, at contexts of up to 16,384 tokens. To
compute such prompts would take longer than everything else here, and nothing of it is of interest:

    step 0     whole prompts ──► not computed: logits are zeros            blocks are allocated as ever
    step 1 …   one token each ──► the real executor, over keys and values that are random numbers

How long attention takes depends on how much it reads and not on what that says; only numbers too small to be
normal would slow arithmetic down, and random ones are not. The model's own limit of positions does not
matter either: the rotary angles cover as many positions as are asked for, so the limit is the engine's alone,
and is set to what is needed. No checkpoint has to be written for it.

The control plane is measured without a model: a scheduler in a steady state in which one request
finishes and one is admitted in every step (`churn.py`), and whole runs of an engine that computes nothing.
Python's garbage collector is off meanwhile. It looks through everything that is alive now and then, and would
be half of the price again for each of 100,000 requests at once: that is Python's growth and not the engine's.

Read next: `scaling.py` for what is expected of them.
"""

from __future__ import annotations

import gc
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from statistics import median
from time import perf_counter
from typing import TYPE_CHECKING, Any

from minivllm.config import SchedulerConfig
from minivllm.executor.simulated_executor import SimulatedExecutor, SimulatedSampler, VirtualClock
from minivllm.lab.bench.churn import SMALLEST_POOL, QueueRig
from minivllm.lab.bench.timing import no_garbage_collection
from minivllm.lab.subjects.subject import Subject
from minivllm.lab.subjects.workload import FIRST_ORDINARY_TOKEN, BenchRequest, play
from minivllm.scheduling.plan import StepPlan
from minivllm.trace.work import BatchShape

if TYPE_CHECKING:
    from minivllm.engine.engine import Engine

BATCH_CONTEXT = 64
"""Tokens of each sequence while the batch grows."""
POOL_RUNNING = 16
POOL_PROMPT_TOKENS = 256
"""Sixteen requests of so many tokens fit into the smallest pool, and each step takes and frees 16 blocks."""
QUEUE_RUNNING = 64
RUN_PROMPT_TOKENS, RUN_OUTPUT_TOKENS, RUN_BATCH = 16, 8, 64
RUN_VOCABULARY = 1000


@dataclass(frozen=True)
class Sizes:
    """How large the work is at each point, and how often a point is measured."""

    batch: tuple[int, ...]
    context: tuple[int, ...]
    pool: tuple[int, ...]
    waiting: tuple[int, ...]
    requests: tuple[int, ...]
    num_steps: int = 8
    """Decode steps of one repetition."""
    rounds: int = 100
    """Scheduler steps of one repetition."""


FULL = Sizes(
    batch=(1, 2, 4, 8, 16, 32, 64, 128, 256),
    context=(128, 256, 512, 1024, 2048, 4096, 8192, 16_384),
    pool=(1_000, 3_000, 10_000, 30_000, 100_000, 300_000, 1_000_000),
    waiting=(0, 100, 300, 1_000, 3_000, 10_000, 30_000, 100_000),
    requests=(100, 300, 1_000, 3_000, 10_000, 30_000, 100_000),
)
QUICK = Sizes(
    batch=(1, 4, 16, 64),
    context=(128, 512, 2048, 4096),
    pool=(1_000, 10_000, 100_000),
    waiting=(0, 100, 1_000, 10_000),
    requests=(100, 300, 1_000, 3_000),
    num_steps=4,
    rounds=50,
)


def measure_batches(subject: Subject, sizes: Sizes, repeat: int, seed: int) -> dict[int, float]:
    """A decode step by its number of sequences."""
    shapes = {size: (size, BATCH_CONTEXT) for size in sizes.batch}
    return _measure_decoding(subject, shapes, sizes.num_steps, repeat, seed)


def measure_contexts(subject: Subject, sizes: Sizes, repeat: int, seed: int) -> dict[int, float]:
    """A decode step of one sequence by the tokens before it."""
    shapes = {size: (1, size) for size in sizes.context}
    return _measure_decoding(subject, shapes, sizes.num_steps, repeat, seed)


def measure_pools(sizes: Sizes, repeat: int, seed: int) -> dict[int, float]:
    """A scheduler step, with one request that arrives and one that finishes, by the blocks in the pool."""
    rigs = {size: QueueRig(POOL_RUNNING, 0, seed, max(SMALLEST_POOL, size)) for size in sizes.pool}
    turns = {size: partial(rig.turnover_round, POOL_PROMPT_TOKENS) for size, rig in rigs.items()}
    return _in_turns(turns, sizes.rounds * repeat)


def measure_queues(sizes: Sizes, repeat: int, seed: int) -> dict[int, float]:
    """The same by the number of requests that wait behind a full batch."""
    rigs = {size: QueueRig(QUEUE_RUNNING, size, seed) for size in sizes.waiting}
    return _in_turns({size: rig.turnover_round for size, rig in rigs.items()}, sizes.rounds * repeat)


def measure_runs(sizes: Sizes, repeat: int, seed: int) -> dict[int, float]:
    """Whole runs of an engine that computes nothing, by their requests, all there at the start."""
    run_requests(min(sizes.requests), seed)  # the first run pays for set-up
    return _in_turns({size: partial(run_requests, size, seed) for size in sizes.requests}, repeat)


def run_requests(count: int, seed: int) -> float:
    """Seconds in which the engine takes in, schedules and finishes so many requests."""
    from minivllm.engine.engine import Engine

    rng = random.Random(seed)
    requests = [
        BenchRequest(
            f"bench-{index}", _random_prompt(rng, RUN_PROMPT_TOKENS, RUN_VOCABULARY), RUN_OUTPUT_TOKENS
        )
        for index in range(count)
    ]
    clock = VirtualClock()
    engine = Engine(
        SchedulerConfig(num_blocks=4 * RUN_BATCH, max_num_seqs=RUN_BATCH),
        SimulatedExecutor(_ConstantCost(), clock),
        SimulatedSampler(),  # type: ignore[arg-type]  # no request wants logprobs or beams
        vocab_size=RUN_VOCABULARY,
        clock=clock,
        sleep=clock.advance,
    )
    gc.collect()  # what is left of the run before is not this one's
    return play(engine, requests).seconds


def decode_steps(subject: Subject, batch: int, context: int, num_steps: int, seed: int) -> list[float]:
    """Seconds of so many decode steps of `batch` sequences with `context` tokens each, and a few more."""
    from minivllm.sampling_params import RequestOutputKind, SamplingParams

    # One step before those that are measured, and one token left over: no measured step finishes a request.
    num_tokens = num_steps + 3
    limits = replace(
        subject.limits,
        max_num_seqs=batch,
        max_num_batched_tokens=batch * context,
        max_model_len=context + num_tokens,
    )
    engine = replace(subject, limits=limits, tokenizer=None).engine()
    params = SamplingParams(
        temperature=0.0, max_tokens=num_tokens, ignore_eos=True, output_kind=RequestOutputKind.FINAL_ONLY
    )
    rng = random.Random(seed)
    for index in range(batch):
        prompt = _random_prompt(rng, context, subject.executor.config.vocab_size)
        engine.add_request(f"bench-{index}", prompt, params)
    engine.executor = _NoPrefill(subject)
    engine.step()
    engine.executor = subject.executor
    engine.step()
    return [_step_seconds(engine) for _ in range(num_steps)]


def _measure_decoding(
    subject: Subject, shapes: Mapping[int, tuple[int, int]], num_steps: int, repeat: int, seed: int
) -> dict[int, float]:
    """Size → median of its steps, for all shapes (sequences, context) that fit into the cache."""
    blocks = {
        size: batch * -(-(context + num_steps + 3) // subject.limits.block_size)
        for size, (batch, context) in shapes.items()
    }
    room = subject.limits.num_blocks - int(subject.limits.watermark * subject.limits.num_blocks)
    fitting = [size for size, count in blocks.items() if count <= room]
    if len(fitting) < 2:
        raise ValueError(
            f"the KV cache of {subject.limits.num_blocks:,} blocks is too small to see how decoding scales: "
            f"the two smallest sizes need {sorted(blocks.values())[1]:,}"
        )
    # A fresh engine allocates blocks from the first one on.
    used = min(subject.limits.num_blocks, max(blocks[size] for size in fitting))
    subject.executor.storage.cells[:, :, :used].normal_()
    samples: dict[int, list[float]] = {size: [] for size in fitting}
    for _ in range(repeat):
        for size in fitting:
            samples[size] += decode_steps(subject, *shapes[size], num_steps, seed)
    return {size: median(values) for size, values in samples.items()}


def _in_turns(sides: Mapping[int, Callable[[], float]], rounds: int) -> dict[int, float]:
    """Size → median of so many samples; the sizes take turns, so that noise hits all of them."""
    with no_garbage_collection():
        samples = [{size: side() for size, side in sides.items()} for _ in range(rounds)]
    return {size: median(sample[size] for sample in samples) for size in sides}


def _step_seconds(engine: Engine) -> float:
    began = perf_counter()
    engine.step()
    return perf_counter() - began


def _random_prompt(rng: random.Random, num_tokens: int, vocab_size: int) -> tuple[int, ...]:
    return tuple(rng.choices(range(FIRST_ORDINARY_TOKEN, vocab_size), k=num_tokens))


class _NoPrefill:
    """An executor that computes no prompts: what the cache happens to hold are their keys and values."""

    def __init__(self, subject: Subject) -> None:
        self._vocab_size = subject.executor.config.vocab_size
        self.last_attention_seconds = 0.0

    def execute(self, plan: StepPlan) -> Any:
        import torch

        return torch.zeros(sum(item.num_logits for item in plan.scheduled), self._vocab_size)


class _ConstantCost:
    """Every step takes a hundredth of a (virtual) second."""

    def step_seconds(
        self, shape: BatchShape, *, num_copied_blocks: int = 0, num_swapped_blocks: int = 0
    ) -> float:
        return 0.01
