"""Taking time on a machine that others use too.

One busy neighbour can make a step of 0.1 ms take 100. Nothing can be done about that from here, but three
things can be done about the figures: alternate the sides of a comparison, so that it hits both; quote
medians; and note with every sample how many cores other programs were using, so that a reader can tell.

    round 0   A B          round 1   B A          round 2   A B        never  A A A  B B B

Source: the practice of `timeit`. Read next: `throughput.py`.
"""

from __future__ import annotations

import gc
import os
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median
from time import perf_counter
from typing import Generic, TypeVar

from minivllm.uncollected import without_collections

T = TypeVar("T")


@dataclass(frozen=True)
class Sample(Generic[T]):
    """One timed call: what it returned, how long it took, and how busy the rest of the machine was."""

    result: T
    seconds: float
    other_cores: float
    """Cores that other programs on this machine used meanwhile: 0 is a quiet machine."""


@contextmanager
def no_garbage_collection() -> Iterator[None]:
    """As `timeit` does: a collection in the middle would be charged to the call that happens to run.

    It takes milliseconds, and what a run keeps is no garbage anyway.
    """
    gc.collect()
    with without_collections():
        yield


def timed(call: Callable[[], T]) -> Sample[T]:
    """Call it, and look at the clock and at other programs."""
    busy, own, began = _busy_seconds(), _own_seconds(), perf_counter()
    result = call()
    seconds = perf_counter() - began
    others = (_busy_seconds() - busy) - (_own_seconds() - own)
    return Sample(result, seconds, round(max(0.0, others / max(seconds, 1e-9)), 2))


def interleaved(repeat: int, sides: Mapping[str, Callable[[], T]]) -> dict[str, list[Sample[T]]]:
    """`repeat` samples of each side, one of each in every round; every other round goes backwards."""
    samples: dict[str, list[Sample[T]]] = {name: [] for name in sides}
    for round_number in range(repeat):
        order = list(sides)[:: 1 if round_number % 2 == 0 else -1]
        for name in order:
            samples[name].append(timed(sides[name]))
    return samples


def median_seconds(samples: Sequence[Sample[T]]) -> float:
    return median(sample.seconds for sample in samples)


def percentile(values: Sequence[float], percent: float) -> float:
    """The value that `percent` % of the values do not exceed, interpolated between neighbours; 0 of none."""
    if not values:
        return 0.0
    ordered = sorted(values)
    place = (len(ordered) - 1) * percent / 100
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


@dataclass(frozen=True)
class Machine:
    """On what the numbers were measured."""

    cpu: str
    cores: int
    """Cores of the machine, hyperthreads included."""
    usable_cores: int
    """Cores that this process may use."""
    ram_gib: float
    system: str
    python: str
    torch: str
    threads: int
    """Threads that torch used."""


def describe_machine(threads: int, usable_cores: int) -> Machine:
    import psutil
    import torch

    from minivllm.executor.processor import cpu_name

    return Machine(
        cpu=cpu_name(),
        cores=os.cpu_count() or 1,
        usable_cores=usable_cores,
        ram_gib=round(psutil.virtual_memory().total / 2**30, 1),
        system=f"{platform.system()} {platform.machine()}",
        python=platform.python_version(),
        torch=torch.__version__,
        threads=threads,
    )


def peak_resident_bytes() -> int:
    """Most RAM that this process has held at once since it started."""
    try:
        import resource
    except ImportError:  # Windows has no such module, but keeps the number elsewhere
        import psutil

        return int(getattr(psutil.Process().memory_info(), "peak_wset", 0))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak if platform.system() == "Darwin" else peak * 1024)  # the unit differs, the name does not


def _busy_seconds() -> float:
    """CPU seconds that all cores together have worked since the machine started."""
    import psutil  # imported late: `minivllm doctor` must run where it is missing

    times = psutil.cpu_times()._asdict()
    return float(sum(times.get(name, 0.0) for name in ("user", "system", "irq", "softirq", "steal")))


def _own_seconds() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system
