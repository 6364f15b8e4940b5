"""Scaling: how cost grows as work grows, and whether it grows as it should.

A number at one size says little of another. A curve on logarithmic axes does: where cost is a power of the
size it is straight, and its slope is the exponent. For each of five curves an exponent is predicted
(`scaling_laws.py`), and one is fitted to the upper half of the sizes, where fixed costs no longer hide it:

    batch       a decode step by its sequences              1    arithmetic, once it outweighs the weights
    context     a decode step by the tokens before it       1    reading keys and values
    pool        a scheduler step by the blocks there are    0    a free list is not searched
    waiting     a scheduler step by the requests waiting    0    neither is the queue
    requests    a whole run by its requests                 1    each pays for itself only

Less than predicted is no mistake, since what is shared (weights, the host's time for a step) makes curves
flatter. A slope that is steeper by more than 0.15 is a warning: something is searched or copied that should
not be, or a cache has become too small on the way.

Source of the method: McGeoch, "A Guide to Experimental Algorithmics" (2012).
Read next: `scaling_curves.py`, which measures them; `scaling_figure.py` draws them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from typing import Any

from minivllm.lab.bench.report import Header, Section, make_header
from minivllm.lab.bench.scaling_curves import (
    FULL,
    QUICK,
    Sizes,
    measure_batches,
    measure_contexts,
    measure_pools,
    measure_queues,
    measure_runs,
)
from minivllm.lab.bench.scaling_laws import CURVES, Expected, fit_power_law, in_words
from minivllm.lab.bench.timing import timed
from minivllm.lab.subjects.settings import Settings
from minivllm.lab.subjects.subject import Subject, open_subject
from minivllm.trace.summary import format_seconds

TOLERANCE = 0.15
"""So much steeper than predicted is a warning."""
NEED_A_MODEL = ("batch", "context")


@dataclass(frozen=True)
class Curve:
    """One curve: the median cost at each size, and how it grows."""

    name: str
    sizes: tuple[int, ...]
    seconds: tuple[float, ...]
    exponent: float
    """Fitted over the upper half of the sizes."""
    factor: float
    expected_exponent: float
    why: str
    warning: str
    """Empty, or that it is too steep."""

    @property
    def expected(self) -> Expected:
        return CURVES[self.name]

    def shown(self, size: float, seconds: float) -> float:
        """A cost as table and picture show it: seconds, or units a second."""
        return self.expected.units(int(size)) / seconds if self.expected.is_rate else seconds

    def section(self) -> Section:
        expected = self.expected
        rows = []
        for size, seconds in zip(self.sizes, self.seconds, strict=True):
            value = f"{self.shown(size, seconds):,.0f}" if expected.is_rate else format_seconds(seconds)
            rows.append([f"{size:,}", value, format_seconds(seconds / expected.units(size))])
        note = (
            f"cost grows with the power {in_words(self.exponent)} over the upper half; expected at most "
            f"{expected.exponent:g}: {expected.why}"
        )
        if self.warning:
            note += f"\nwarning: {self.warning}"
        return Section(expected.title, [expected.work, expected.cost, f"per {expected.unit}"], rows, note)


@dataclass(frozen=True)
class Scaling:
    """The result."""

    header: Header
    curves: tuple[Curve, ...]

    def sections(self) -> list[Section]:
        return [curve.section() for curve in self.curves]


@dataclass(frozen=True)
class ScalingSettings(Settings):
    """The settings of all measurements, and these.

    Attributes:
        only: the curves that are measured.
        quick: smaller sizes, fewer of them, and fewer repetitions of each.
    """

    only: tuple[str, ...] = tuple(CURVES)
    quick: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in self.only:
            if name not in CURVES:
                raise ValueError(f"only must name curves among {', '.join(CURVES)}; got {name!r}")
        if not self.only:
            raise ValueError(f"only must name at least one curve among {', '.join(CURVES)}")


def parse_only(text: str) -> tuple[str, ...]:
    """The names of a comma-separated list, each once."""
    return tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))


def run(settings: Settings) -> Scaling:
    """Measure; a model is loaded only for the curves that need one."""
    if not isinstance(settings, ScalingSettings):
        settings = ScalingSettings(**asdict(settings))
    sizes = QUICK if settings.quick else FULL
    with ExitStack() as stack:
        subject = None
        if set(settings.only) & set(NEED_A_MODEL):
            subject = stack.enter_context(open_subject(settings))
        return measure(subject, settings, sizes)


def measure(subject: Subject | None, settings: ScalingSettings, sizes: Sizes) -> Scaling:
    """The curves that the settings name, one after the other; within each, the sizes take turns."""
    repeat, seed = settings.repeat, settings.seed
    measurements: dict[str, Callable[[], dict[int, float]]] = {
        "batch": lambda: measure_batches(_needed(subject), sizes, repeat, seed),
        "context": lambda: measure_contexts(_needed(subject), sizes, repeat, seed),
        "pool": lambda: measure_pools(sizes, repeat, seed),
        "waiting": lambda: measure_queues(sizes, repeat, seed),
        "requests": lambda: measure_runs(sizes, repeat, seed),
    }
    curves, others, warnings = [], [], []
    for name, measurement in measurements.items():
        if name not in settings.only:
            continue
        sample = timed(measurement)
        others.append(sample.other_cores)
        curves.append(make_curve(name, sample.result))
        left_out = [f"{size:,}" for size in getattr(sizes, name) if size not in sample.result]
        if left_out:
            warnings.append(f"{name}: no room in the KV cache for {', '.join(left_out)}")
    facts: dict[str, Any] = subject.facts() if subject else {}
    at_once = replace(settings, requests=max(sizes.batch))
    header = make_header("scaling", at_once, facts, others)
    return Scaling(replace(header, warnings=(*header.warnings, *warnings)), tuple(curves))


def make_curve(name: str, costs: Mapping[int, float]) -> Curve:
    """A measured curve beside what is expected of it; `costs` are seconds by size."""
    expected, fit = CURVES[name], fit_power_law(costs)
    warning = ""
    if fit.exponent > expected.exponent + TOLERANCE:
        warning = (
            f"{name}: cost grows with the power {in_words(fit.exponent)} of the {expected.work}, which is "
            f"more than the expected {expected.exponent:g} by {fit.exponent - expected.exponent:.2f}"
        )
    sizes, seconds = tuple(costs), tuple(costs.values())
    return Curve(name, sizes, seconds, *fit, expected.exponent, expected.why, warning)


def _needed(subject: Subject | None) -> Subject:
    assert subject is not None, "a curve of a model is measured without one"
    return subject
