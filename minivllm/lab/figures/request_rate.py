"""Latency against request rate: the figure that made paging famous, and the batch sizes behind it.

Every system serves OPT-13B on one A100 with 40 GB, at one rate after another. What differs is how much memory
a request takes, so how many fit into a batch; and for FasterTransformer, that a batch ends with its slowest.

Source: figures 12 and 13 of Kwon et al. (SOSP 2023). Read next: `shared_prefix.py`.
"""

from __future__ import annotations

from minivllm.lab.drawing import bars, label, panels
from minivllm.lab.figures import paper_numbers
from minivllm.lab.figures.lines import draw_sweep, finish_sweeps
from minivllm.lab.figures.result import Assumption, FigureResult, Row, card_assumptions
from minivllm.lab.figures.serving import READING_PACE, Load, Point, in_parallel, measure, sustained, sweep
from minivllm.lab.figures.systems import System, paper_systems
from minivllm.lab.papers import REQUESTS_AT_ONCE
from minivllm.lab.workloads.lengths import DATA_SETS
from minivllm.lab.workloads.parse import parse_mix

FIRST_RATES = {"sharegpt": 0.05, "alpaca": 0.1}
BATCH_RATES = {"sharegpt": 2.0, "alpaca": 30.0}
"""Requests a second in figure 13."""
OPT_13B_VOCABULARY = 50272
SHORT = {"vLLM": "vLLM", "Orca (oracle)": "oracle", "Orca (pow2)": "pow2", "Orca (max)": "max"}
ALLOCATOR_OF = {
    "vLLM": "paged",
    "Orca (oracle)": "oracle",
    "Orca (pow2)": "buddy",
    "Orca (max)": "contiguous",
}

Curves = dict[str, dict[str, list[Point]]]
"""Data set → system → its sweep."""


def make_load(data_set: str, seconds: float, seed: int) -> Load:
    """Requests as long as those of a data set."""
    mix = parse_mix(data_set, vocab_size=OPT_13B_VOCABULARY, seed=seed, max_model_len=2048)
    return Load(mix, seconds)


def _sweep(task: tuple[System, Load, float]) -> list[Point]:
    system, load, first_rate = task
    return sweep(system.setting, load, first_rate)


def _batch(task: tuple[System, Load, float]) -> Point:
    system, load, rate = task
    return measure(system.setting, load, rate)


def measure_curves(seconds: dict[str, float], seed: int) -> Curves:
    """All sweeps."""
    systems = paper_systems()
    tasks = [
        (system, make_load(data_set, seconds[data_set], seed), FIRST_RATES[data_set])
        for data_set in DATA_SETS
        for system in systems
    ]
    found = iter(in_parallel(_sweep, tasks))
    return {data_set: {system.name: next(found) for system in systems} for data_set in DATA_SETS}


def request_rate(*, scale: float = 1.0, seed: int = 0) -> FigureResult:
    """Figure 12: the rate that each system sustains."""
    seconds = {"sharegpt": 600.0 * scale, "alpaca": 200.0 * scale}
    curves = measure_curves(seconds, seed)
    figure, axes = panels(2)
    styles = {system.name: system for system in paper_systems()}
    rows: list[Row] = []
    for one, (data_set, systems) in zip(axes, curves.items(), strict=True):
        for name, points in systems.items():
            style = styles[name]
            draw_sweep(one, points, name, style.colour, style.marker)
        finish_sweeps(one, f"OPT-13B, {DATA_SETS[data_set].name}", READING_PACE, 3 * READING_PACE)
        rows += _rows(data_set, {name: sustained(points) for name, points in systems.items()})
    axes[0].legend(fontsize=8, frameon=False, loc="upper left")
    return FigureResult(
        "request-rate",
        "Latency against request rate, OPT-13B on one A100 40GB",
        "Kwon et al. (SOSP 2023), figure 12 a and d",
        figure,
        rows,
        _differences(rows),
        [
            Assumption(
                "sustained",
                f"{READING_PACE} s for each token",
                "the rate at which the mean reaches it; five tokens a second is a reader's pace",
            ),
            Assumption(
                "lengths",
                "log-normal, means 19/58 and 161/338",
                "the paper gives means; the scatter is read off its figure 11 "
                "(minivllm/lab/workloads/lengths.py)",
            ),
            Assumption(
                "duration",
                " and ".join(f"{value:g} s ({name})" for name, value in seconds.items()),
                "the paper's traces last an hour; Poisson arrivals, as there",
            ),
            Assumption(
                "kernels",
                "the same for all systems",
                "what is compared is memory and scheduling; FasterTransformer's own were faster",
            ),
            *card_assumptions("a100-40gb"),
        ],
    )


def _rows(data_set: str, rates: dict[str, float]) -> list[Row]:
    name = DATA_SETS[data_set].name
    ours = rates["vLLM"]
    on_sharegpt = data_set == "sharegpt"
    claims = {
        "Orca (oracle)": paper_numbers.OVER_ORCA_ORACLE if on_sharegpt else None,
        "Orca (pow2)": None,
        "Orca (max)": paper_numbers.OVER_ORCA_MAX if on_sharegpt else None,
        "FasterTransformer": paper_numbers.OVER_FASTER_TRANSFORMER if on_sharegpt else None,
    }
    rows = [Row(f"{name}: vLLM sustains, requests/s", ours, None)]
    rows += [
        Row(f"{name}: vLLM over {system}", ours / rates[system], claim, "×")
        for system, claim in claims.items()
    ]
    return rows


def _differences(rows: list[Row]) -> list[str]:
    """Said where ours is more than a quarter away from the paper's."""
    reasons = {
        "Orca (oracle)": "what a strip is rounded up to depends on how the lengths scatter",
        "Orca (max)": "seven strips of 2,048 tokens fit, here and there; what differs is the time of a step",
        "FasterTransformer": (
            "the paper's is the largest gap of all its models and data sets; and how long a static batch "
            "takes depends on its longest answer, so on the scatter of lengths, which is an assumption here"
        ),
    }
    said = []
    for row in rows:
        if row.differs:
            for system, reason in reasons.items():
                if system in row.what:
                    said.append(f"{row.what}: {row.ours:.3g}×, in the paper {row.paper}: {reason}.")
    return said


def batch_size(*, scale: float = 1.0, seed: int = 0) -> FigureResult:
    """Figure 13: requests in a batch, on average, where there are always enough of them."""
    seconds = {"sharegpt": 400.0 * scale, "alpaca": 100.0 * scale}
    systems = [system for system in paper_systems() if system.name in SHORT]
    tasks = [
        (system, make_load(data_set, seconds[data_set], seed), BATCH_RATES[data_set])
        for data_set in DATA_SETS
        for system in systems
    ]
    found = iter(in_parallel(_batch, tasks))
    figure, axes = panels(2)
    rows: list[Row] = []
    differences: list[str] = []
    for one, data_set in zip(axes, DATA_SETS, strict=True):
        points = [next(found) for _ in systems]
        theirs = [REQUESTS_AT_ONCE[data_set][ALLOCATOR_OF[system.name]] for system in systems]
        name, rate = DATA_SETS[data_set].name, BATCH_RATES[data_set]
        bars(
            one,
            [SHORT[system.name] for system in systems],
            [point.batch for point in points],
            [(value, value) for value in theirs],
        )
        label(one, f"{name}, {rate:g} requests a second", "", "requests in a batch, on average")
        for system, point, their in zip(systems, points, theirs, strict=True):
            row = Row(f"{name}: {system.name}", point.batch, their)
            rows.append(row)
            if row.differs:
                differences.append(
                    f"{row.what}: {row.ours:.1f}, in the paper {their:.4g}: {_why(point, their)}"
                )
    return FigureResult(
        "batch-size",
        "Requests in a batch, OPT-13B on one A100 40GB",
        "Kwon et al. (SOSP 2023), figure 13",
        figure,
        rows,
        differences,
        [
            Assumption(
                "duration",
                " and ".join(f"{value:g} s ({name})" for name, value in seconds.items()),
                "of arrivals; the batches that run empty afterwards are part of the average",
            ),
            *card_assumptions("a100-40gb"),
        ],
    )


def _why(point: Point, their_batch: float) -> str:
    """Below its sustained rate, a batch holds the requests that are there; above it, those that fit."""
    if point.latency < READING_PACE:
        return (
            "no request waits for memory at this rate, so by Little's law a request stays "
            f"{point.batch / point.rate:.1f} s here and {their_batch / point.rate:.1f} s there. Our steps "
            "are a roofline's; an engine of 2023 took longer."
        )
    return (
        "the memory is full at this rate. The first request in the queue waits for a strip long enough, "
        "and how often that empties the batch depends on the longest answers, whose scatter is an "
        "assumption here."
    )
