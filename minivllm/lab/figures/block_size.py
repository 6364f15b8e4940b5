"""How large should a block be? Small ones waste nothing and are slow to read; large ones hold empty slots.

Source: figure 18b of Kwon et al. (SOSP 2023). Read next: `preemption.py`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from minivllm.lab.drawing import label, panels
from minivllm.lab.figures.lines import BLOCK_SIZES, mark_block_sizes
from minivllm.lab.figures.paper_numbers import BEST_BLOCK_SIZES
from minivllm.lab.figures.request_rate import make_load
from minivllm.lab.figures.result import Assumption, FigureResult, Row, card_assumptions
from minivllm.lab.figures.serving import Load, in_parallel, measure
from minivllm.lab.figures.systems import one_a100
from minivllm.lab.simulation.cards import HardwareCard, hardware_card
from minivllm.lab.workloads.lengths import DATA_SETS

RATES = {"sharegpt": 2.2, "alpaca": 45.0}
"""Requests a second: just below what is sustained with blocks of 16, so that waste shows."""
GOOD = 1.1
"""A block size is good if its latency is within a tenth of the best."""

LOOK_UP_SECONDS = 250e-9
"""To follow a block table is a load from the L2 cache that everything after it waits for: some 250 ns."""
WARPS = 108 * 32
"""Resident warps of an A100 that share its bandwidth: 108 multiprocessors, half of the 64 each may hold."""
BYTES_PER_TOKEN_AND_HEAD = 2 * 128 * 2
"""Keys and values · head size · bytes."""


def card_for(block_size: int) -> HardwareCard:
    """An A100 whose attention kernel stops for a look-up at every block.

    While a warp waits, it could have read `bandwidth / WARPS · LOOK_UP_SECONDS` bytes. The card's efficiency
    is taken to be that of blocks of 16.
    """
    card = hardware_card("a100-40gb")
    lost = card.memory_bandwidth / WARPS * LOOK_UP_SECONDS

    def share(size: int) -> float:
        read = size * BYTES_PER_TOKEN_AND_HEAD
        return read / (read + lost)

    efficiency = card.attention_efficiency * share(block_size) / share(16)
    return replace(card, attention_efficiency=min(1.0, efficiency))


def _measure(task: tuple[int, Load, float]) -> float:
    block_size, load, rate = task
    setting = one_a100(model="opt-13b", block_size=block_size)
    return measure(setting, load, rate, card_for(block_size)).latency


def block_size(*, scale: float = 1.0, seed: int = 0) -> FigureResult:
    """Figure 18b: latency by block size."""
    seconds = {"sharegpt": 500.0 * scale, "alpaca": 100.0 * scale}
    tasks = [
        (size, make_load(data_set, seconds[data_set], seed), RATES[data_set])
        for data_set in DATA_SETS
        for size in BLOCK_SIZES
    ]
    found = iter(in_parallel(_measure, tasks))
    figure, axes = panels(2)
    rows, differences = [], []
    for one, data_set in zip(axes, DATA_SETS, strict=True):
        latencies = [next(found) for _ in BLOCK_SIZES]
        best = min(latencies)
        good = [size for size, latency in zip(BLOCK_SIZES, latencies, strict=True) if latency <= GOOD * best]
        low, high = BEST_BLOCK_SIZES[data_set]
        name = DATA_SETS[data_set].name
        _draw(one, data_set, latencies)
        rows.append(Row(f"{name}: smallest good block", min(good), float(low), " tokens"))
        rows.append(Row(f"{name}: largest good block", max(good), float(high), " tokens"))
        rows.append(Row(f"{name}: blocks of 1 against the best", latencies[0] / best, None, "×"))
        rows.append(Row(f"{name}: blocks of 256 against the best", latencies[-1] / best, None, "×"))
        differences += _differences(name, good, low, high)
    return FigureResult(
        "block-size",
        "The size of a block, OPT-13B on one A100 40GB",
        "Kwon et al. (SOSP 2023), figure 18b",
        figure,
        rows,
        differences,
        [
            Assumption(
                "look-up",
                f"{LOOK_UP_SECONDS * 1e9:g} ns for each block",
                "the latency of a dependent load from an A100's L2 cache; nothing is fitted to the figure",
            ),
            Assumption("warps", f"{WARPS:,}", "resident at once, half of what the device may hold"),
            Assumption(
                "rates",
                ", ".join(f"{rate:g}/s ({name})" for name, rate in RATES.items()),
                "the paper gives none; just below what is sustained here with blocks of 16",
            ),
            *card_assumptions("a100-40gb"),
        ],
    )


def _draw(axes: Any, data_set: str, latencies: list[float]) -> None:
    """Latency by block size of one data set, and the sizes that are good in the paper."""
    places = list(range(len(BLOCK_SIZES)))
    axes.plot(places, [1e3 * latency for latency in latencies], color="#D55E00", marker="o", linewidth=1.4)
    mark_block_sizes(axes, *BEST_BLOCK_SIZES[data_set], "good in the paper")
    axes.set_ylim(0, 1.1e3 * max(latencies))
    label(
        axes,
        f"{DATA_SETS[data_set].name}, {RATES[data_set]:g} requests a second",
        "tokens in a block",
        "milliseconds for each token, on average",
    )
    axes.legend(fontsize=8, frameon=False)


def _differences(name: str, good: list[int], low: int, high: int) -> list[str]:
    """Why block sizes are good here that are not so in the paper, and the other way round."""
    differences = []
    if min(good) < low:
        differences.append(
            f"{name}: blocks of {min(good)} are good here, in the paper from {low} on. Here a small "
            "block costs one more look-up and nothing else; the paper says that its kernel cannot use "
            "all of the device's parallelism within a small block, which a roofline does not see."
        )
    if max(good) > high:
        differences.append(
            f"{name}: blocks up to {max(good)} are good here, in the paper up to {high}: at this rate "
            "the slots that large blocks waste are not yet missed."
        )
    if max(good) < high:
        differences.append(
            f"{name}: blocks up to {max(good)} are good here, in the paper up to {high}: how much is "
            "lost in the last block of a request counts only while requests wait for memory, so this "
            "depends on the rate, which the paper does not give."
        )
    return differences
