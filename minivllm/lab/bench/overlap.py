"""What plans in flight are worth: asynchronous scheduling on one rank, and the stages of a pipeline.

    async      off   plan · compute · sample · tell │ plan · compute · …
               on    compute ──────── sample compute ──────── sample
                     plan · tell            plan · tell

    pipeline   off   stage 0  AAAA····AAAA····       one plan at a time: the stages take turns
                     stage 1  ····AAAA····AAAA
               on    stage 0  AABBAABBAABB           a plan for each stage
                     stage 1  ··AABBAABBAA

Both sides must give the same tokens. A stage is idle while it computes nothing: it waits for another one, or
there is no plan. Beside that stands (p - 1) / (m + p - 1), what p stages idle if m micro-batches go through
them once; a stream of micro-batches without gaps would come to nothing.

Source: Huang et al., "GPipe" (NeurIPS 2019), section 2.3. Read next: `minivllm/scheduling/micro_batches.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import TYPE_CHECKING, Any

from minivllm.lab.bench.report import Header, Section, make_header, percent
from minivllm.lab.bench.timing import interleaved
from minivllm.lab.subjects.settings import Settings
from minivllm.lab.subjects.subject import Subject, open_subject
from minivllm.lab.subjects.workload import BenchRequest, Played, play, warm_up
from minivllm.trace.events import RanksTimed
from minivllm.trace.rank_times import Doing, expected_bubble, rank_shares, times_of

if TYPE_CHECKING:
    from minivllm.engine.engine import Engine
    from minivllm.executor.distributed.distributed_executor import DistributedExecutor

NUM_STAGES = 2


@dataclass(frozen=True)
class Side:
    """One way to run the requests: medians over the repetitions."""

    name: str
    seconds: float
    output_tokens_per_second: float
    num_steps: int
    idle: tuple[float, ...] = ()
    """Of each stage: the part of the time in which it computed nothing."""
    expected_idle: float = 0.0
    """(p - 1) / (m + p - 1)."""


@dataclass(frozen=True)
class Overlap:
    """The result: each pair is without overlap, and with it."""

    header: Header
    asynchronous: tuple[Side, Side]
    asynchronous_speedup: float
    """Median of the ratios of neighbouring runs."""
    pipeline: tuple[Side, Side]
    same_tokens: bool

    @property
    def pipeline_speedup(self) -> float:
        return self.pipeline[0].seconds / self.pipeline[1].seconds

    def sections(self) -> list[Section]:
        columns = ["", "seconds", "tok/s", "steps"]
        same = "same tokens" if self.same_tokens else "NOT THE SAME TOKENS"
        rows = [_row(side) for side in self.asynchronous]
        note = f"{self.asynchronous_speedup:.2f}×, median of neighbouring runs; {same}"
        idle = [f"stage {stage} idle" for stage in range(NUM_STAGES)]
        piped = [
            [*_row(side), *map(percent, side.idle), percent(side.expected_idle)] for side in self.pipeline
        ]
        return [
            Section("Asynchronous scheduling", columns, rows, note),
            Section(
                f"A pipeline of {NUM_STAGES} stages, each a process",
                [*columns, *idle, "(p-1)/(m+p-1)"],
                piped,
                f"{self.pipeline_speedup:.2f}×; {same}",
            ),
        ]


def _row(side: Side) -> list[str]:
    return [
        side.name,
        f"{side.seconds:.2f}",
        f"{side.output_tokens_per_second:,.0f}",
        f"{side.num_steps:,}",
    ]


def run(settings: Settings) -> Overlap:
    """Load the model and measure both."""
    with open_subject(settings) as subject:
        workload = subject.workload(settings)
        for ahead in (False, True):
            _play_async(subject, warm_up(workload), ahead)
        sides = {
            "off": partial(_play_async, subject, workload, False),
            "async_scheduling": partial(_play_async, subject, workload, True),
        }
        samples = interleaved(settings.repeat, sides)
        runs = {name: [sample.result for sample in samples[name]] for name in sides}
        off, on = (_side(name, played) for name, played in runs.items())
        ratios = [a.seconds / b.seconds for a, b in zip(*runs.values(), strict=True)]
        stages = [_play_stages(subject, workload, overlap) for overlap in (False, True)]
        told = [*(_tokens(played[0]) for played in runs.values()), *(tokens for _, tokens in stages)]
        others = [sample.other_cores for of_side in samples.values() for sample in of_side]
        return Overlap(
            make_header("overlap", settings, subject.facts(), others),
            (off, on),
            median(ratios),
            (stages[0][0], stages[1][0]),
            # A rank computes in parts, so its last bits are not those of one rank alone.
            told[0] == told[1] and told[2] == told[3],
        )


def _play_async(subject: Subject, workload: Sequence[BenchRequest], ahead: bool) -> Played:
    engine = _engine(subject, subject.executor, async_scheduling=ahead)
    try:
        return play(engine, workload)
    finally:
        engine.close()


def _engine(subject: Subject, executor: Any, **how: Any) -> Engine:
    from minivllm.decoding.sampler import Sampler
    from minivllm.engine.engine import Engine

    vocab_size = executor.config.vocab_size
    return Engine(
        subject.limits,
        executor,
        Sampler(vocab_size),
        vocab_size=vocab_size,
        tokenizer=subject.tokenizer,
        eos_token_ids=executor.config.eos_token_ids,
        **how,
    )


def _side(name: str, runs: Sequence[Played], **more: Any) -> Side:
    seconds = median(played.seconds for played in runs)
    return Side(name, seconds, runs[0].num_output_tokens / seconds, len(runs[0].all_step_seconds), **more)


def _tokens(played: Played) -> list[tuple[int, ...]]:
    return [tuple(output.outputs[0].token_ids) for output in played.outputs]


def _play_stages(
    subject: Subject, workload: Sequence[BenchRequest], overlap: bool
) -> tuple[Side, list[tuple[int, ...]]]:
    """The requests on a pipeline of new processes."""
    from minivllm.executor.distributed.cache_limits import CacheLimits
    from minivllm.executor.distributed.create import create_distributed_executor

    limits = CacheLimits(num_gpu_blocks_override=subject.limits.num_blocks)
    executor: DistributedExecutor = create_distributed_executor(
        subject.folder,
        dtype=subject.executor.model_shape.dtype,
        block_size=subject.limits.block_size,
        pipeline_parallel_size=NUM_STAGES,
        limits=limits,
        record_spans=True,
    )
    try:
        play(_engine(subject, executor, overlap_stages=overlap), warm_up(workload))
        engine = _engine(subject, executor, overlap_stages=overlap)
        played = play(engine, workload)
    finally:
        executor.close()
    num_plans = NUM_STAGES if overlap else 1
    name = f"{num_plans} plans in flight" if overlap else "one plan at a time"
    idle = idle_shares(executor.rank_times(0.0)[-engine.num_steps :])
    expected = expected_bubble(NUM_STAGES, num_plans)
    return _side(name, [played], idle=idle, expected_idle=expected), _tokens(played)


def idle_shares(times: Sequence[RanksTimed]) -> tuple[float, ...]:
    """Of each rank, the part of the time of these steps in which it computed nothing."""
    return tuple(1 - rank.share(Doing.COMPUTE) for rank in rank_shares(map(times_of, times)))
