"""The simulator's parallel terms beside what ranks really take on this machine.

    one rank                   fitted: what a step costs                          ┐
    2 ranks, tensor parallel   fitted: latency and bandwidth of an exchange       ├──► a card of this machine
                                                                                  ┘
    the card  ──► steps and runs of one rank, of two tensor-parallel ones, of a pipeline of two
                  predicted │ measured │ predicted / measured

What is predicted was fitted to other steps, and to none of the pipeline. All ranks have the same number of
threads, and one alone computes in the same parts as two (`minivllm/model/parallel/layout.py`), so that only
what is parallel differs. A rank that comes late to an exchange makes the others wait: no cost model knows of
that, so it is stated beside. And beside the two ranks runs one with the threads of both.

Source: the terms are those of `minivllm/lab/simulation/cost_model.py`. Read next: `overlap.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import product
from statistics import median
from time import perf_counter
from typing import NamedTuple

import numpy as np

from minivllm.lab.bench.report import Header, Section, make_header, percent
from minivllm.lab.simulation.cards import HardwareCard, ModelCard, model_card
from minivllm.lab.simulation.cluster import Cluster
from minivllm.lab.simulation.cost_model import CostModel, StepTime
from minivllm.lab.simulation.fit import KEPT, STRIDES, Sample, fit_card, samples_of
from minivllm.lab.simulation.replica import Replica
from minivllm.lab.subjects.real_time import play
from minivllm.lab.subjects.settings import Settings, usable_cores
from minivllm.lab.subjects.subject import Subject, open_subject
from minivllm.lab.workloads.parse import parse_workload
from minivllm.lab.workloads.workload import Workload
from minivllm.trace.rank_times import TALKING, Doing, expected_bubble, rank_shares, rank_steps
from minivllm.trace.reader import make_trace
from minivllm.trace.recorder import Recorder
from minivllm.trace.timeline import make_timeline
from minivllm.trace.work import BYTES_PER_ELEMENT

NUM_RANKS = 2
MOST_BATCHED_TOKENS = 512
FITTED = (
    ("uniform:8-120,8-24", 1),
    ("uniform:8-200,8-40", 4),
    ("uniform:100-400,8-30", 8),
    ("uniform:8-200,8-40", 16),
)
JUDGED = (("uniform:16-250,8-40", 12), ("uniform:8-100,10-40", 3))
"""Workloads, and how many requests of each are served at a time."""
EXCHANGES = "exchanges of a step"


class Layout(NamedTuple):
    """How ranks share the model."""

    name: str
    tensor: int = 1
    pipeline: int = 1


ONE = Layout("1 rank")
TENSOR = Layout(f"{NUM_RANKS} ranks", tensor=NUM_RANKS)
PIPELINE = Layout(f"{NUM_RANKS} stages", pipeline=NUM_RANKS)
WIDE = Layout("1 rank, all threads")


@dataclass(frozen=True)
class Row:
    """One number, as the simulator has it and as it was."""

    layout: str
    what: str
    count: int
    """Steps, or runs, of which these are the medians."""
    predicted: float
    measured: float
    ratio: float
    """Predicted / measured: the median over all of them."""


@dataclass(frozen=True)
class Parallel:
    """The result."""

    header: Header
    card: HardwareCard
    rows: tuple[Row, ...]
    """Seconds."""
    two_ranks: tuple[float, ...]
    one_with_all_threads: tuple[float, ...]
    """Of each judged workload: seconds of the tensor-parallel ranks, and of one with the threads of all."""
    exchanged: float
    waited: float
    """Shares of the tensor-parallel ranks' steps: in exchanges, and in waiting for each other."""
    idle: tuple[float, ...]
    """Of each stage of the pipeline: the share of the time in which it computed nothing."""
    expected_idle: float
    """(p - 1) / (m + p - 1)."""

    def sections(self) -> list[Section]:
        card = self.card
        rows = [
            [
                f"{row.layout}: {row.what}",
                f"{row.count:,}",
                _time(row.predicted),
                _time(row.measured),
                f"{row.ratio:.2f}",
            ]
            for row in self.rows
        ]
        link = (
            f"an exchange: {card.link_latency_seconds * 1e6:,.0f} µs and "
            f"{card.link_bandwidth / 1e6:,.0f} MB/s"
        )
        against = [
            [spec, _time(two), _time(one), f"{one / two:.2f}×"]
            for (spec, _users), two, one in zip(
                JUDGED, self.two_ranks, self.one_with_all_threads, strict=True
            )
        ]
        stages = [
            [f"stage {stage}", percent(self.expected_idle), percent(idle)]
            for stage, idle in enumerate(self.idle)
        ]
        return [
            Section(
                "Simulated, and measured on steps that nothing was fitted to",
                ["", "of", "predicted", "measured", "ratio"],
                rows,
                link,
            ),
            Section(
                "Two ranks against one that has the threads of both",
                ["", TENSOR.name, WIDE.name, "speed"],
                against,
                f"of the two ranks' steps {percent(self.exchanged)} are exchanges, and "
                f"{percent(self.waited)} waiting for each other",
            ),
            Section(
                "The bubble: time without computing",
                ["", "(p-1)/(m+p-1)", "measured"],
                stages,
                "the formula is of m micro-batches that go through once; a stream of them has less",
            ),
        ]


def _time(seconds: float) -> str:
    return f"{seconds:,.2f} s" if seconds >= 1 else f"{seconds * 1e3:,.2f} ms"


class Timed(NamedTuple):
    """A step as it was."""

    sample: Sample
    exchange: float
    """Seconds of a rank in exchanges, waiting not counted: the mean over ranks."""
    wait: float


class Measured(NamedTuple):
    """A layout at work."""

    fitted: list[Timed]
    judged: list[Timed]
    runs: list[tuple[float, ...]]
    """Of each judged workload: the seconds that it took, in all repetitions."""
    idle: tuple[float, ...]
    """Of each rank, in the judged workloads."""


def run(settings: Settings) -> Parallel:
    """Measure the three layouts, fit a card to two of them, and predict all."""
    threads = settings.threads or max(1, usable_cores() // NUM_RANKS)
    settings = replace(settings, threads=threads)
    import torch

    with open_subject(settings) as subject:
        model = model_card(str(subject.folder))
        one, tensor = (measure(subject, how, settings) for how in (ONE, TENSOR))
        pipeline = measure(subject, PIPELINE, settings, fitted=())
        torch.set_num_threads(NUM_RANKS * threads)
        wide = measure(subject, WIDE, settings, fitted=())
        torch.set_num_threads(threads)
        card = fit_card(
            [timed.sample for timed in one.fitted],
            model,
            title=f"this CPU, {threads} threads a rank, {subject.name}",
            memory_bytes=float(2 * model.weight_bytes),
        )
        card = with_link(card, model, tensor.fitted)
        predict = _Predictions(card, model, subject, settings)
        rows = [
            *predict.steps(ONE, one),
            *predict.steps(TENSOR, tensor),
            *predict.runs(ONE, one),
            *predict.runs(TENSOR, tensor),
            *predict.runs(PIPELINE, pipeline),
        ]
        whole = sum(timed.sample.seconds for timed in tensor.judged)
        return Parallel(
            make_header("parallel", settings, subject.facts()),
            card,
            tuple(rows),
            tuple(map(median, tensor.runs)),
            tuple(map(median, wide.runs)),
            sum(timed.exchange for timed in tensor.judged) / whole,
            sum(timed.wait for timed in tensor.judged) / whole,
            pipeline.idle,
            expected_bubble(NUM_RANKS, NUM_RANKS),
        )


def measure(
    subject: Subject, layout: Layout, settings: Settings, fitted: Sequence[tuple[str, int]] | None = None
) -> Measured:
    """Serve all workloads on new ranks; each step is timed by the engine, and by the ranks.

    Args:
        fitted: those to fit to, before those to be judged by; all, if None.
    """
    from minivllm.decoding.sampler import Sampler
    from minivllm.engine.engine import Engine
    from minivllm.executor.distributed.cache_limits import CacheLimits
    from minivllm.executor.distributed.create import create_distributed_executor

    recorder, runs = Recorder(), [[0.0] * 0 for _ in JUDGED]
    executor = create_distributed_executor(
        subject.folder,
        dtype=subject.executor.model_shape.dtype,
        block_size=subject.limits.block_size,
        tensor_parallel_size=layout.tensor,
        pipeline_parallel_size=layout.pipeline,
        limits=CacheLimits(num_gpu_blocks_override=subject.limits.num_blocks),
        record_spans=True,
    )
    try:
        vocab_size = executor.config.vocab_size
        limits = replace(subject.limits, max_num_batched_tokens=MOST_BATCHED_TOKENS)
        engine = Engine(limits, executor, Sampler(vocab_size), vocab_size=vocab_size, recorder=recorder)
        play(engine, _workload(subject, settings, "fixed:50,10", 4, -1))  # the first steps are slower
        begin = engine.num_steps
        for number, (spec, users) in enumerate(FITTED if fitted is None else fitted):
            play(engine, _workload(subject, settings, spec, users, number))
        middle = engine.num_steps
        for _repetition in range(settings.repeat):
            for number, (spec, users) in enumerate(JUDGED):
                workload, began = _workload(subject, settings, spec, users, 100 + number), perf_counter()
                play(engine, workload)
                runs[number].append(perf_counter() - began)
        engine.close()
    finally:
        executor.close()
    header, *events = recorder.events
    timeline = make_timeline(make_trace(header, events))  # type: ignore[arg-type]
    times = rank_steps(timeline.trace)

    def timed(first: int, end: int) -> list[Timed]:
        found = []
        for record in timeline.records[first:end]:
            ranks = times.get(record.step, ())
            exchange, wait = (
                sum(one.seconds(*doing) for one in ranks) / max(1, len(ranks))
                for doing in (TALKING, (Doing.WAIT,))
            )
            samples = samples_of(replace(timeline, records=[record]))
            found += [Timed(sample, exchange, wait) for sample in samples]
        return found

    shares = rank_shares(own for step, own in times.items() if step >= middle)
    idle = tuple(1 - share.share(Doing.COMPUTE) for share in shares)
    return Measured(timed(begin, middle), timed(middle, timeline.num_steps), [*map(tuple, runs)], idle)


def _workload(subject: Subject, settings: Settings, spec: str, users: int, number: int) -> Workload:
    return parse_workload(
        spec,
        vocab_size=subject.executor.config.vocab_size,
        num_requests=max(users, settings.requests // len(FITTED)),
        num_users=users,
        seed=settings.seed + number + 1,
        max_model_len=subject.limits.max_model_len,
    )


def with_link(card: HardwareCard, model: ModelCard, steps: Sequence[Timed]) -> HardwareCard:
    """The card with the latency and the bandwidth that explain the exchanges of these steps best.

    Bandwidth is that of a ring, since the cost model has one: ranks here send all parts to each other, which
    is more bytes, and the fit takes that for a slower link.
    """
    measured = [
        (timed.sample.shape.num_tokens + timed.sample.shape.num_padding_tokens, timed.exchange)
        for timed in steps
        if timed.exchange > 0
    ]
    if not measured:
        return card
    fixed, each = _line(*np.array(measured, dtype=np.float64).T)
    exchanges = 2 * model.num_layers
    ring = 2 * (NUM_RANKS - 1) / NUM_RANKS * model.hidden_size * BYTES_PER_ELEMENT[model.dtype]
    return replace(card, link_latency_seconds=fixed / exchanges, link_bandwidth=ring * exchanges / each)


def _line(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """`y ≈ fixed + each · x`, by the search of `fit.py`: those that fit worst are taken for interrupted."""

    def error(prices: np.ndarray) -> float:
        fixed, each = np.exp(prices)
        errors = np.sort(np.abs(np.log((fixed + each * x) / y)))
        return float(errors[: max(1, int(KEPT * len(errors)))].mean())

    prices = np.log([np.median(y) / 2, np.median(y / x) / 2])
    best = error(prices)
    for stride in STRIDES:
        improved = True
        while improved:
            improved = False
            for index, change in product(range(2), (stride, -stride)):
                other = prices.copy()
                other[index] += change
                if (found := error(other)) < best - 1e-9:
                    prices, best, improved = other, found, True
    fixed, each = np.exp(prices)
    return float(fixed), float(each)


class _Predictions:
    """What the simulator says of the same steps and workloads."""

    def __init__(self, card: HardwareCard, model: ModelCard, subject: Subject, settings: Settings) -> None:
        self.card, self.model = card, model
        self.subject, self.settings = subject, settings

    def steps(self, layout: Layout, measured: Measured) -> list[Row]:
        """Steps of one plan at a time."""
        cost = self._cost(layout)
        kinds = {
            "decodes": [step for step in measured.judged if _only_decodes(step)],
            "steps with prompts": [step for step in measured.judged if not _only_decodes(step)],
        }
        rows = [
            self._row(layout, what, steps, cost, lambda time: time.total, lambda step: step.sample.seconds)
            for what, steps in kinds.items()
            if steps
        ]
        exchanging = [step for step in measured.judged if step.exchange > 0]
        if exchanging:
            what = EXCHANGES
            rows.append(
                self._row(
                    layout, what, exchanging, cost, lambda time: time.exchange, lambda step: step.exchange
                )
            )
        return rows

    def runs(self, layout: Layout, measured: Measured) -> list[Row]:
        """Whole workloads, in virtual time."""
        rows = []
        for number, ((spec, users), seconds) in enumerate(zip(JUDGED, measured.runs, strict=True)):
            limits = replace(self.subject.limits, max_num_batched_tokens=MOST_BATCHED_TOKENS)
            replica = Replica(limits, self._cost(layout))
            Cluster([replica]).run(_workload(self.subject, self.settings, spec, users, 100 + number))
            predicted, real = replica.clock.now, median(seconds)
            what = f"{spec}, {users} at a time"
            rows.append(Row(layout.name, what, len(seconds), predicted, real, predicted / real))
        return rows

    def _cost(self, layout: Layout) -> CostModel:
        return CostModel(
            self.card,
            self.model,
            tensor_parallel_size=layout.tensor,
            pipeline_parallel_size=layout.pipeline,
            block_size=self.subject.limits.block_size,
        )

    def _row(
        self,
        layout: Layout,
        what: str,
        steps: Iterable[Timed],
        cost: CostModel,
        of_time: Callable[[StepTime], float],
        of_step: Callable[[Timed], float],
    ) -> Row:
        pairs = [(of_time(cost.step_time(step.sample.shape)), of_step(step)) for step in steps]
        predicted, real = (median(values) for values in zip(*pairs, strict=True))
        ratio = median(mine / theirs for mine, theirs in pairs)
        return Row(layout.name, what, len(pairs), predicted, real, ratio)


def _only_decodes(step: Timed) -> bool:
    shape = step.sample.shape
    return shape.num_tokens == shape.num_sequences
