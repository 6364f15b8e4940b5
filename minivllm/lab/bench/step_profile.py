"""Where the time of a step goes, each part beside its floor: `minivllm bench --profile`.

A stopwatch is wound around the functions that make up a step. Parts are exclusive: while attention runs, the
clock of the decoder that called it stands still. What is left when all parts are added up is "the rest".

    part                 floor
    ──────────────────   ────────────────────────────────────────────────────────────────────────
    linear layers        weights / bandwidth, or FLOPs / rate, whichever is longer, step by step
    attention            the same of keys, values and scores
    sampling             logits / bandwidth
    all others           none: in principle they could be hidden behind the rest

A floor is the least time that this machine needs for a part. The gap between the two is what could be won
there at most, and so says where to work next. Read next: `limits.py`, `minivllm/trace/work.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

from minivllm.executor.simulated_executor import shape_of
from minivllm.lab.bench.report import Header, Section, make_header, percent
from minivllm.lab.bench.timing import timed
from minivllm.lab.subjects.settings import Settings
from minivllm.lab.subjects.subject import Subject, open_subject
from minivllm.lab.subjects.workload import play, warm_up
from minivllm.scheduling.plan import StepPlan
from minivllm.scratch import ScratchFolder
from minivllm.trace.recorder import Recorder
from minivllm.trace.work import work_of

LINEAR, ATTENTION, SAMPLING, REST = "linear layers", "attention", "sampling", "the rest"
PREPARE, BETWEEN = "prepare", "between the products"
STAGE_PARTS = {"products": LINEAR, "attention": ATTENTION, "between": BETWEEN}
"""What the stages of a compiled step are called here."""
PARTS = (
    "schedule",
    PREPARE,
    LINEAR,
    ATTENTION,
    BETWEEN,
    "steps in one call",
    SAMPLING,
    "detokenise",
    "update",
    "trace",
    REST,
)


@dataclass(frozen=True)
class StepProfile:
    """The result: medians over the repetitions, in seconds of a whole run."""

    header: Header
    num_steps: int
    seconds: float
    """Of all steps."""
    parts: dict[str, float]
    floors: dict[str, float]
    """Of the parts that have one."""
    bytes_per_second: float
    flops_per_second: float

    def sections(self) -> list[Section]:
        names = [name for name in PARTS if self.parts[name]]
        rows = [self._row(name, self.parts[name], self.floors.get(name)) for name in names]
        rows.append(self._row("whole step", self.seconds, sum(self.floors.values())))
        note = (
            f"floors: {self.bytes_per_second / 1e9:,.1f} GB/s, {self.flops_per_second / 1e9:,.0f} GFLOP/s, "
            "measured in this run; the last layer is counted in full, though it computes only wanted rows"
        )
        columns = ("part", "share", "ms per step", "floor", "times the floor")
        return [Section("Where the time of a step goes", columns, rows, note)]

    def _row(self, name: str, seconds: float, floor: float | None) -> list[str]:
        per_step = 1e3 / self.num_steps
        beside = ["–", "–"]
        if floor:
            beside = [f"{floor * per_step:.3f}", f"{seconds / floor:.2f}"]
        return [name, percent(seconds / self.seconds), f"{seconds * per_step:.3f}", *beside]


class Stopwatch:
    """Adds up the time of parts; while a part calls another one, only the other's clock runs.

    With `whole`, nothing counts but what happens within a call of that part.
    """

    def __init__(
        self,
        parts: Iterable[str] = PARTS,
        clock: Callable[[], float] = perf_counter,
        whole: str | None = None,
    ) -> None:
        self.seconds = dict.fromkeys(parts, 0.0)
        self._clock = clock
        self._whole = whole
        self._open: list[str] = []
        self._since = 0.0

    def wrap(self, part: str, call: Callable[..., Any]) -> Callable[..., Any]:
        """`call`, timed as `part`."""

        def timed_call(*given: Any, **named: Any) -> Any:
            if not self._open and self._whole not in (None, part):
                return call(*given, **named)
            self._switch(part)
            try:
                return call(*given, **named)
            finally:
                self._switch(None)

        return timed_call

    def move(self, source: str, target: str, seconds: float) -> None:
        """Count that time for `target` instead: a part may know its own stages."""
        self.seconds[source] -= seconds
        self.seconds[target] += seconds

    def _switch(self, part: str | None) -> None:
        """Enter `part`, or leave the latest one."""
        now = self._clock()
        if self._open:
            self.seconds[self._open[-1]] += now - self._since
        self._since = now
        if part is None:
            self._open.pop()
        else:
            self._open.append(part)

    @contextmanager
    def around(self, *places: tuple[Any, str, str]) -> Iterator[None]:
        """Within it, the attribute `name` of each `(owner, name, part)` is timed."""
        own = [(owner, name, name in vars(owner), getattr(owner, name)) for owner, name, _ in places]
        for (owner, name, part), (_, _, _, call) in zip(places, own, strict=True):
            setattr(owner, name, self.wrap(part, call))
        try:
            yield
        finally:
            for owner, name, was_own, call in own:
                if was_own:
                    setattr(owner, name, call)
                else:
                    delattr(owner, name)


def run(settings: Settings) -> StepProfile:
    """Load the model, measure the machine, and look into the steps of a run."""
    with open_subject(settings) as subject, ScratchFolder("bench") as scratch:
        return measure(subject, settings, scratch)


def measure(subject: Subject, settings: Settings, scratch: Path) -> StepProfile:
    """The runs; each writes its trace below `scratch`."""
    from minivllm.lab.bench.limits import measure_limits

    workload = subject.workload(settings)
    play(subject.engine(), warm_up(workload))
    executor = subject.executor
    limits = measure_limits(executor.decoder.num_bytes, executor.decoder.dtype)
    floors = _Floors(subject, limits.bytes_per_second, limits.flops_per_second)
    watches, samples, steps = [], [], 0
    for _ in range(settings.repeat):
        watch, floors.seconds = Stopwatch(whole=REST), dict.fromkeys(floors.seconds, 0.0)
        with (
            Recorder(scratch / "run.jsonl") as recorder,
            watch.around(*_places(subject)),
            floors.counting(),
            _looking_inside(executor.runner, watch),
        ):
            sample = timed(lambda recorder=recorder: play(subject.engine(recorder), workload))  # type: ignore[misc]
        steps = sample.result.num_steps
        watches.append(watch.seconds)
        samples.append(sample)
    return StepProfile(
        make_header("profile", settings, subject.facts(), [sample.other_cores for sample in samples]),
        steps,
        median(sum(seconds.values()) for seconds in watches),
        {name: median(seconds[name] for seconds in watches) for name in PARTS},
        dict(floors.seconds),
        limits.bytes_per_second,
        limits.flops_per_second,
    )


@contextmanager
def _looking_inside(runner: Any, watch: Stopwatch) -> Iterator[None]:
    """A compiled step says itself where its time went; what is left of the call was for preparing it."""
    from minivllm.executor.runners.compiled import CompiledRunner

    steps = next((part for part in _parts_of(runner) if isinstance(part, CompiledRunner)), None)
    if steps is None:
        yield
        return
    run = steps.run

    def counted_run(*given: Any) -> Any:
        logits = run(*given)
        for stage, seconds in steps.seconds.items():
            watch.move(PREPARE, STAGE_PARTS[stage], seconds)
        return logits

    steps.run = counted_run  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        steps.run = run  # type: ignore[method-assign]


class _Floors:
    """Adds up, plan by plan, the least time of each part on this machine."""

    def __init__(self, subject: Subject, bytes_per_second: float, flops_per_second: float) -> None:
        self._executor = subject.executor
        self._shape = subject.executor.model_shape
        self._bandwidth, self._rate = bytes_per_second, flops_per_second
        self.seconds = dict.fromkeys((LINEAR, ATTENTION, SAMPLING), 0.0)

    @contextmanager
    def counting(self) -> Iterator[None]:
        execute = self._executor.execute

        def counted(plan: StepPlan) -> Any:
            self._add(plan)
            return execute(plan)

        self._executor.execute = counted  # type: ignore[method-assign]
        try:
            yield
        finally:
            del self._executor.execute

    def _add(self, plan: StepPlan) -> None:
        shape = shape_of(plan)
        work = work_of(self._shape, shape)
        self.seconds[LINEAR] += max(work.weight_bytes / self._bandwidth, work.linear_flops / self._rate)
        self.seconds[ATTENTION] += max(work.kv_bytes / self._bandwidth, work.attention_flops / self._rate)
        self.seconds[SAMPLING] += 4 * shape.num_logit_rows * self._shape.vocab_size / self._bandwidth


def _places(subject: Subject) -> list[tuple[Any, str, str]]:
    """Which functions are which part of a step."""
    from minivllm.decoding.detokenizer import IncrementalDetokenizer
    from minivllm.engine import step_loop
    from minivllm.engine.core import EngineCore
    from minivllm.executor import torch_executor
    from minivllm.executor.runners.compiled import CompiledRunner
    from minivllm.executor.runners.fused import FusedRunner
    from minivllm.executor.runners.graphs import GraphRunner
    from minivllm.model.decoder import Decoder
    from minivllm.model.layers import StackedLinear

    executor = subject.executor
    places: list[tuple[Any, str, str]] = [
        (step_loop.StepLoop, "step", REST),
        (EngineCore, "plan_step", "schedule"),
        (torch_executor, "build_metadata", PREPARE),
        (executor.attention, "begin_step", PREPARE),
        (StackedLinear, "__call__", LINEAR),
        (Decoder, "compute_logits", LINEAR),
        (type(executor.attention), "__call__", ATTENTION),
        (Decoder, "forward", BETWEEN),
        (FusedRunner, "forward", BETWEEN),
        (step_loop, "sample_step", SAMPLING),
        (step_loop.StepLoop, "_update", "update"),
        (IncrementalDetokenizer, "append", "detokenise"),
        (Recorder, "emit", "trace"),
    ]
    if hasattr(executor.attention, "projected"):
        places.append((type(executor.attention), "projected", ATTENTION))
    for runner in _parts_of(executor.runner):
        if isinstance(runner, CompiledRunner):
            places.append((runner, "run", PREPARE))
        elif isinstance(runner, GraphRunner):
            places.append((runner, "run", "steps in one call"))
    return places


def _parts_of(runner: Any) -> tuple[Any, ...]:
    """The runners that it chooses from, or the runner itself."""
    parts: tuple[Any, ...] = getattr(runner, "runners", (runner,))
    return parts
