"""What deciding costs: blocks, scheduling and aborts, however large the pool and however long the queue.

The control plane is plain Python, and that is only right if its costs depend on the work of a step and not
on the size of the world: taking a block from a million must cost what it costs from a thousand. For each
operation the costs at all sizes are put side by side; *flatness* is the dearest divided by the cheapest.
A scan of the free list would make it a thousand. It is not quite 1, because the free list of a large pool no
longer fits into the processor's caches; the row "only look up" touches no block and shows what noise is.

The other questions are what share of a step deciding is, beside a real model with a full batch; and what
structured output adds to a step (`structured_share.py`).

Read next: `churn.py` for how a steady state is made, then `minivllm/memory/block_pool.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from minivllm.lab.bench.churn import LOOK_UP, PoolRig, QueueRig
from minivllm.lab.bench.report import Header, Section, make_header, microseconds, milliseconds, percent
from minivllm.lab.bench.structured_share import StructureShare, measure_structures, structures_section
from minivllm.lab.bench.timing import no_garbage_collection, timed
from minivllm.lab.subjects.settings import Settings
from minivllm.lab.subjects.subject import Subject, open_subject
from minivllm.lab.subjects.workload import play, warm_up
from minivllm.trace.events import BatchPlanned, Event, StepFinished
from minivllm.trace.recorder import Recorder

POOL_SIZES = (1_000, 10_000, 100_000, 1_000_000)
QUEUE_SIZES = (100, 1_000, 10_000, 100_000)
NUM_RUNNING = 64
ROUNDS = 200


@dataclass(frozen=True)
class Series:
    """One operation at several sizes of the world: the median cost of a call at each."""

    operation: str
    sizes: tuple[int, ...]
    seconds: tuple[float, ...]

    @property
    def flatness(self) -> float:
        """Dearest divided by cheapest: 1 is perfectly independent of the size."""
        return max(self.seconds) / min(self.seconds)


@dataclass(frozen=True)
class StepShare:
    """The control plane's part in the steps of a real run, over those with the fullest batch."""

    num_sequences: int
    num_steps: int
    step_seconds: float
    schedule_seconds: float
    schedule_share: float
    control_plane_share: float
    """Scheduling, and afterwards taking in the tokens (the engine's "update")."""


@dataclass(frozen=True)
class ControlPlane:
    """The result."""

    header: Header
    pool: tuple[Series, ...]
    """Block operations by the size of the pool."""
    queue: tuple[Series, ...]
    """Scheduling and aborting by the number of waiting requests."""
    num_running: int
    schedule_seconds: float
    """One `schedule` with so many running, and none waiting."""
    step: StepShare
    structures: tuple[StructureShare, ...]
    """What structured output adds; empty for a model without a tokenizer."""

    def sections(self) -> list[Section]:
        return [
            _series_section("Blocks: cost of a call by size of the pool", self.pool, "blocks"),
            _series_section("Queue: cost of a call by number of waiting requests", self.queue, "waiting"),
            _step_section(self),
            *([structures_section(self.structures)] if self.structures else []),
        ]


def run(settings: Settings) -> ControlPlane:
    """Load the model, for the share of a step, and measure everything."""
    with open_subject(settings) as subject:
        return measure(subject, settings)


def measure(
    subject: Subject,
    settings: Settings,
    *,
    pool_sizes: Sequence[int] = POOL_SIZES,
    queue_sizes: Sequence[int] = QUEUE_SIZES,
    num_running: int = NUM_RUNNING,
    rounds: int = ROUNDS,
) -> ControlPlane:
    """Costs at all these sizes, which take turns round by round."""
    step = timed(lambda: measure_step_share(subject, settings))
    pool = timed(lambda: measure_pool(pool_sizes, rounds, settings.seed))
    queue = timed(lambda: measure_queue(queue_sizes, num_running, rounds, settings.seed))
    with no_garbage_collection():
        rig = QueueRig(num_running, 0, settings.seed)
        schedule_seconds = median(rig.schedule_round() for _ in range(rounds))
    structures = timed(lambda: measure_structures(subject, settings.repeat))
    others = [sample.other_cores for sample in (step, pool, queue, structures)]
    header = make_header("control-plane", settings, subject.facts(), others)
    return ControlPlane(
        header,
        pool.result,
        queue.result,
        num_running,
        schedule_seconds,
        step.result,
        structures.result,
    )


def measure_pool(sizes: Sequence[int], rounds: int, seed: int) -> tuple[Series, ...]:
    """Allocate, append and free in pools of these sizes."""
    rigs = {size: PoolRig(size, seed) for size in sizes}
    with no_garbage_collection():
        samples = [{size: rig.round() for size, rig in rigs.items()} for _ in range(rounds)]
    operations = ("allocate", "append", "free", LOOK_UP)
    return tuple(
        _series(name, {size: [sample[size][name] for sample in samples] for size in sizes})
        for name in operations
    )


def measure_queue(sizes: Sequence[int], num_running: int, rounds: int, seed: int) -> tuple[Series, ...]:
    """Schedule and abort with so many requests waiting behind a full batch."""
    rigs = {size: QueueRig(num_running, size, seed) for size in sizes}

    def all_sizes(operation: Callable[[QueueRig], float]) -> dict[int, list[float]]:
        samples = [{size: operation(rig) for size, rig in rigs.items()} for _ in range(rounds)]
        return {size: [sample[size] for sample in samples] for size in sizes}

    with no_garbage_collection():
        return (
            _series("schedule", all_sizes(QueueRig.schedule_round)),
            _series("abort", all_sizes(QueueRig.abort_round)),
        )


def measure_step_share(subject: Subject, settings: Settings) -> StepShare:
    """Play the workload, and look at those steps in which most sequences decoded side by side."""
    workload = subject.workload(settings)
    play(subject.engine(), warm_up(workload))
    recorders = [Recorder() for _ in range(settings.repeat)]
    for recorder in recorders:
        play(subject.engine(recorder), workload)
    steps = [step for recorder in recorders for step in _decode_steps(recorder.events)]
    most = max(count for count, _ in steps)
    fullest = [parts for count, parts in steps if count == most]
    wholes = [_whole(parts) for parts in fullest]
    deciding = [parts["schedule"] + parts["update"] for parts in fullest]
    return StepShare(
        num_sequences=most,
        num_steps=len(fullest),
        step_seconds=median(wholes),
        schedule_seconds=median(parts["schedule"] for parts in fullest),
        schedule_share=median(p["schedule"] / whole for p, whole in zip(fullest, wholes, strict=True)),
        control_plane_share=median(part / whole for part, whole in zip(deciding, wholes, strict=True)),
    )


def _decode_steps(events: Sequence[Event]) -> Iterator[tuple[int, dict[str, float]]]:
    """Number of sequences and split of the time, for each step that only decodes."""
    only_decodes, count = False, 0
    for event in events:
        if isinstance(event, BatchPlanned):
            count = len(event.items)
            only_decodes = all(tokens == 1 for _, _, tokens in event.items)
        elif isinstance(event, StepFinished) and only_decodes and count:
            yield count, event.seconds


def _whole(parts: Mapping[str, float]) -> float:
    """Time of a step; attention is a part of the model's and not counted twice."""
    return sum(seconds for name, seconds in parts.items() if name != "attention")


def _series(operation: str, samples: Mapping[int, Sequence[float]]) -> Series:
    return Series(operation, tuple(samples), tuple(median(values) for values in samples.values()))


def _series_section(title: str, series: Sequence[Series], unit: str) -> Section:
    sizes = series[0].sizes
    columns = ["", *(f"{size:,} {unit}" for size in sizes), "flatness"]
    rows = [[item.operation, *map(microseconds, item.seconds), f"{item.flatness:.2f}"] for item in series]
    return Section(title, columns, rows, "flatness: dearest divided by cheapest")


def _step_section(result: ControlPlane) -> Section:
    step = result.step
    model = result.header.subject["model"]
    schedule = f"{microseconds(step.schedule_seconds)} = {percent(step.schedule_share)}"
    rows = [
        [f"schedule alone, {result.num_running} running", microseconds(result.schedule_seconds)],
        [f"a step of {step.num_sequences} decodes on {model}", milliseconds(step.step_seconds)],
        ["schedule in such a step", schedule],
        ["schedule and update in such a step", percent(step.control_plane_share)],
    ]
    note = f"medians over {step.num_steps} steps that only decode"
    return Section("Share of a step", ["", ""], rows, note)
