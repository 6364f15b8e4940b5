"""A request is preempted for lack of memory: compute its cache again, or move it to the host and back?

Recomputing costs one prefill, whatever the size of a block. Swapping moves the same bytes either way, but a
small block is a small transfer, and each transfer has a cost of its own.

Source: figure 19 of Kwon et al. (SOSP 2023). Read next: `static_gap.py`.
"""

from __future__ import annotations

from dataclasses import replace

from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from minivllm.lab.drawing import label, panels
from minivllm.lab.figures.lines import BLOCK_SIZES, mark_block_sizes
from minivllm.lab.figures.paper_numbers import COMPARABLE_PREEMPTION
from minivllm.lab.figures.request_rate import make_load
from minivllm.lab.figures.result import Assumption, FigureResult, Row, card_assumptions
from minivllm.lab.figures.serving import Load, in_parallel, serve
from minivllm.lab.figures.systems import one_a100
from minivllm.lab.simulation.cost_model import CostModel
from minivllm.trace.work import batch_shape

SEQUENCE_TOKENS = 256
"""Length of the sequence whose preemption is timed."""
RATE = 2.4
"""Requests a second: about what is sustained, so that memory is short."""
SWAP_SPACE_GIB = 40.0
COMPARABLE = 0.25
"""Two latencies are comparable if they differ by no more than a quarter."""

BySize = dict[str, list[float]]
""""swap" or "recompute" → seconds at each of `BLOCK_SIZES`."""


def seconds_to_recompute(cost: CostModel) -> float:
    """One prefill of the sequence, without what any step costs."""
    time = cost.step_time(batch_shape([(0, SEQUENCE_TOKENS)]))
    return time.total - time.overhead


def seconds_to_swap(cost: CostModel) -> float:
    """Out and in again."""
    blocks = -(-SEQUENCE_TOKENS // cost.block_size)
    return cost.step_time(batch_shape([]), num_swapped_blocks=2 * blocks).moves


def _latency(task: tuple[int, str, Load]) -> tuple[float, int]:
    size, mode, load = task
    setting = one_a100(model="opt-13b", block_size=size, preemption_mode=mode, swap_space=SWAP_SPACE_GIB)
    metrics = serve(setting, load.at(RATE))
    return metrics.normalized.mean or 0.0, metrics.num_preemptions


def preemption(*, scale: float = 1.0, seed: int = 0) -> FigureResult:
    """Figure 19: what each way costs, alone and end to end."""
    load = make_load("sharegpt", 400.0 * scale, seed)
    cost = one_a100(model="opt-13b").cost_model()
    costs = [replace(cost, block_size=size) for size in BLOCK_SIZES]
    alone = {
        "swap": [seconds_to_swap(one) for one in costs],
        "recompute": [seconds_to_recompute(one) for one in costs],
    }
    tasks = [(size, mode, load) for mode in alone for size in BLOCK_SIZES]
    found = iter(in_parallel(_latency, tasks))
    runs = {mode: [next(found) for _ in BLOCK_SIZES] for mode in alone}
    together = {mode: [latency for latency, _ in those] for mode, those in runs.items()}
    preemptions = [count for _, count in runs["recompute"]]
    rows, differences = _compared(alone, together, cost)
    return FigureResult(
        "preemption",
        "Recomputing or swapping, OPT-13B on one A100 40GB",
        "Kwon et al. (SOSP 2023), figure 19",
        _draw(alone, together),
        rows,
        differences,
        [
            Assumption(
                "rate",
                f"{RATE:g} requests/s",
                "the paper does not say; this one preempts "
                f"{min(preemptions):,} to {max(preemptions):,} times",
            ),
            Assumption("swap space", f"{SWAP_SPACE_GIB:g} GiB", "enough that nothing falls back"),
            *card_assumptions("a100-40gb"),
        ],
    )


def _compared(alone: BySize, together: BySize, cost: CostModel) -> tuple[list[Row], list[str]]:
    """Swapping over recomputing at some block sizes, and from which on the two are comparable."""
    rows = []
    comparable = []
    for index, size in enumerate(BLOCK_SIZES):
        ratio = together["swap"][index] / together["recompute"][index]
        if abs(ratio - 1) <= COMPARABLE:
            comparable.append(size)
        if size in (1, 16, 64, 256):
            rows.append(
                Row(
                    f"blocks of {size}: one swap over one recomputation",
                    alone["swap"][index] / alone["recompute"][index],
                    None,
                    "×",
                )
            )
            rows.append(Row(f"blocks of {size}: end to end, swapping over recomputing", ratio, None, "×"))
    low, _ = COMPARABLE_PREEMPTION
    if comparable:
        rows.append(Row("smallest block with comparable latencies", min(comparable), float(low), " tokens"))
    differences = []
    if comparable and min(comparable) < low:
        differences.append(
            f"The two are comparable from blocks of {min(comparable)} on, in the paper from {low}: how "
            f"much a small transfer costs, {1e6 * cost.hardware.transfer_overhead_seconds:g} µs here, is "
            "an assumption; one that costs more moves the point to larger blocks."
        )
    return rows, differences


def _draw(alone: BySize, together: BySize) -> Figure:
    """One preemption by itself on the left, the latency of a service that preempts on the right."""
    figure, axes = panels(2)
    places = list(range(len(BLOCK_SIZES)))
    for mode, colour, marker in (("swap", "#0072B2", "s"), ("recompute", "#D55E00", "o")):
        axes[0].plot(places, [1e3 * value for value in alone[mode]], color=colour, marker=marker, label=mode)
        latencies = [1e3 * latency for latency in together[mode]]
        axes[1].plot(places, latencies, color=colour, marker=marker, label=mode)
    for one in axes:
        mark_block_sizes(one, *COMPARABLE_PREEMPTION, "comparable in the paper")
        one.legend(fontsize=8, frameon=False)
    axes[0].set_yscale("log")
    axes[0].set_yticks([20, 50, 100], ["20", "50", "100"])
    axes[0].yaxis.set_minor_formatter(NullFormatter())
    axes[1].set_ylim(0)
    label(axes[0], f"one preemption of {SEQUENCE_TOKENS} tokens", "tokens in a block", "milliseconds")
    label(
        axes[1],
        f"ShareGPT-like, {RATE:g} requests a second",
        "tokens in a block",
        "milliseconds for each token, on average",
    )
    return figure
