"""What batch invariance costs, for each backend and type; and what it buys, in bits.

    one stream     a step that gives one sequence its next token
    batch          the same of many sequences at once
    one prompt     the step that reads a long one
    other bits     of requests that were in a batch: how many have a logit that is not, bit for bit, alone's

Each kind is loaded twice, with `batch_invariant` and without, and both sides go step by step in turns
(`play_side_by_side`), so what disturbs the machine hits both; a ratio is taken within a repetition, and the
median of these is told. `numba-cpu` is the same code on both sides, unless matrix units (AMX) multiply or
weights are floats of 8 bits: in its other rows a ratio tells how far this machine's numbers can be trusted.

Source: He et al., "Defeating Nondeterminism in LLM Inference" (2025). Read next:
`minivllm/executor/batch_invariance.py`.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from statistics import median
from typing import TYPE_CHECKING, Any, NamedTuple

from minivllm.executor.attention.choose import backend_factory
from minivllm.executor.kv_format import AUTO, FP8, INT8
from minivllm.lab.bench.quantized import decode_seconds, equal_requests
from minivllm.lab.bench.report import Header, Section, make_header, milliseconds
from minivllm.lab.bench.timing import timed
from minivllm.lab.subjects.settings import Settings
from minivllm.lab.subjects.subject import Subject, open_subject
from minivllm.lab.subjects.workload import (
    FIRST_ORDINARY_TOKEN,
    BenchRequest,
    Played,
    play,
    play_side_by_side,
)

if TYPE_CHECKING:
    from torch import Tensor

    from minivllm.executor.executor import Executor
    from minivllm.scheduling.plan import StepPlan


class Kind(NamedTuple):
    """One way to compute."""

    backend: str
    dtype: str
    weights: str | None = None
    """How they are rounded; None: not at all."""
    kv_cache: str = AUTO


KINDS = (
    Kind("numba-cpu", "float32"),
    Kind("numba-cpu", "bfloat16"),
    Kind("numba-cpu", "float32", "int8"),
    Kind("numba-cpu", "float32", "int4"),
    Kind("numba-cpu", "float32", "fp8"),
    Kind("numba-cpu", "float32", kv_cache=INT8),
    Kind("numba-cpu", "float32", kv_cache=FP8),
    Kind("torch", "float32"),
    Kind("torch", "bfloat16"),
    Kind("torch", "float32", "int8"),
    Kind("torch", "float32", kv_cache=INT8),
)
STREAM_TOKENS, BATCH_TOKENS = 48, 16
PROMPT_TOKENS = 1000
MOST_COMPARED = 8
"""Requests whose logits are compared: each is computed once more, alone."""


class Cost(NamedTuple):
    """Of one workload: seconds of a step without, and times as long with; medians."""

    seconds: float
    ratio: float


@dataclass(frozen=True)
class Price:
    """One kind. `other_bits`: without `batch_invariant`, and with it, of `num_compared` requests."""

    kind: Kind
    stream: Cost
    batch: Cost
    prompt: Cost
    other_bits: tuple[int, int]
    num_compared: int


@dataclass(frozen=True)
class Invariance:
    """The result."""

    header: Header
    batch: int
    prompt_tokens: int
    prices: tuple[Price, ...]

    def sections(self) -> list[Section]:
        rows = []
        for price in self.prices:
            backend, dtype, weights, kv_cache = price.kind
            cells = [backend, dtype, weights or "–", "–" if kv_cache == AUTO else kv_cache]
            for cost in (price.stream, price.batch, price.prompt):
                cells += [milliseconds(cost.seconds), f"{cost.ratio:.2f}×"]
            rows.append([*cells, *(f"{count} of {price.num_compared}" for count in price.other_bits)])
        columns = ["backend", "type", "weights", "KV cache", "one stream", "with", f"batch of {self.batch}",
                   "with", f"prompt of {self.prompt_tokens:,}", "with", "other bits", "with"]  # fmt: skip
        note = "a step without batch_invariant, times as long with it; requests with other bits than alone"
        return [Section("The price of batch invariance", columns, rows, note)]


def run(settings: Settings) -> Invariance:
    """Measure every kind; of one type only, if the settings name it."""
    kinds = [kind for kind in KINDS if settings.dtype in ("auto", kind.dtype)]
    if not kinds:
        raise ValueError(f"dtype must be auto, float32 or bfloat16, got {settings.dtype!r}")
    return measure(settings, kinds)


def measure(settings: Settings, kinds: Sequence[Kind]) -> Invariance:
    prices: list[Price] = []
    others: list[float] = []
    facts: dict[str, Any] = {}
    prompt_tokens = 0
    for kind in kinds:
        with ExitStack() as stack:
            sides = [stack.enter_context(_open(settings, kind, flag)) for flag in (False, True)]
            prompt_tokens = min(PROMPT_TOKENS, sides[0].limits.max_model_len - 1)
            price, busy = _price(sides, settings, kind, prompt_tokens)
            facts = facts or sides[0].facts()
        prices.append(price)
        others += busy
    header = make_header("invariance", settings, facts, others)
    return Invariance(header, settings.requests, prompt_tokens, tuple(prices))


def _open(settings: Settings, kind: Kind, batch_invariant: bool) -> Any:
    return open_subject(
        replace(settings, dtype=kind.dtype),
        kind.weights,
        backend=backend_factory(kind.backend),
        kv_cache_dtype=kind.kv_cache,
        batch_invariant=batch_invariant,
    )


def _price(
    sides: Sequence[Subject], settings: Settings, kind: Kind, prompt_tokens: int
) -> tuple[Price, list[float]]:
    """What one kind costs; and how busy other programs were."""
    vocab_size = sides[0].executor.config.vocab_size
    batch = equal_requests(vocab_size, settings.requests, BATCH_TOKENS, settings.seed)
    workloads = (
        equal_requests(vocab_size, 1, STREAM_TOKENS, settings.seed),
        batch,
        [long_prompt(vocab_size, prompt_tokens, settings.seed)],
    )
    costs, others = [], []
    for workload in workloads:
        _play(sides, workload)  # the first calls pay for set-up
        samples = [timed(partial(_play, sides, workload)) for _ in range(settings.repeat)]
        pairs = [tuple(map(decode_seconds, sample.result)) for sample in samples]
        ratio = median(with_it / without for without, with_it in pairs)
        costs.append(Cost(median(without for without, _ in pairs), ratio))
        others += [sample.other_cores for sample in samples]
    compared = batch[:MOST_COMPARED]
    without, with_it = (num_with_other_bits(side, compared) for side in sides)
    stream, one_batch, prompt = costs
    return Price(kind, stream, one_batch, prompt, (without, with_it), len(compared)), others


def _play(sides: Sequence[Subject], workload: Sequence[BenchRequest]) -> list[Played]:
    return play_side_by_side([side.engine() for side in sides], workload)


def long_prompt(vocab_size: int, num_tokens: int, seed: int) -> BenchRequest:
    """A request whose one step is to read so many tokens."""
    rng = random.Random(seed)
    tokens = tuple(rng.randrange(FIRST_ORDINARY_TOKEN, vocab_size) for _ in range(num_tokens))
    return BenchRequest("prompt", tokens, 1)


def num_with_other_bits(side: Subject, workload: Sequence[BenchRequest]) -> int:
    """Requests of which a row of logits is another one among the others than alone."""
    together = _rows(side, workload)
    return sum(
        any(not together[number, at].equal(row) for (_, at), row in _rows(side, [request]).items())
        for number, request in enumerate(workload)
    )


def _rows(side: Subject, workload: Sequence[BenchRequest]) -> dict[tuple[int, int], Tensor]:
    """Every row of logits, by the request's number and the position that it follows."""
    engine = side.engine()
    engine.executor = listening = _Listening(engine.executor)
    play(engine, workload)
    return listening.rows


class _Listening:
    """An executor whose logits are kept."""

    def __init__(self, executor: Executor) -> None:
        self._executor = executor
        self.last_attention_seconds = 0.0
        self.rows: dict[tuple[int, int], Tensor] = {}

    def execute(self, plan: StepPlan) -> Any:
        logits, at = self._executor.execute(plan), 0
        for item in plan.scheduled:
            for position in range(item.end - item.num_logits, item.end):
                self.rows[item.seq_id, position] = logits[at].clone()
                at += 1
        return logits
