"""The comparison of attention kernels as a table and as a picture.

Read next: `kernels_numba/cuda/flash_attention_2.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.table import Table

from minivllm.lab.compare.attention import KERNELS, Counted, fit, naive_formula
from minivllm.lab.drawing import MUTED, check_picture, label, write_picture
from minivllm.lab.tables import print_table
from minivllm.terminal import Console

COLOURS = {"naive": "#7A7F87", "flash-attention-1": "#0072B2", "flash-attention-2": "#D55E00"}
BOUND = "N² d² / M"


def print_counts(results: Sequence[Counted], console: Console) -> None:
    """Every case, and the exponents: N tokens, heads d wide, M bytes of shared memory that stay."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("kernel", no_wrap=True)
    for name in ("N", "d", "M", "KiB asked", "at least", "FLOP/N²d", "exp/N²"):
        table.add_column(name, justify="right", no_wrap=True)
    for result in results:
        case = result.case
        area = case.tokens**2
        table.add_row(
            case.kernel,
            f"{case.tokens}",
            f"{case.head_dim}",
            f"{result.tile_bytes:,}" if result.tile_bytes else "–",
            f"{result.asked_bytes / 1024:,.0f}",
            f"{result.least_bytes / 1024:,.0f}",
            f"{result.flops / (area * case.head_dim):.2f}",
            f"{result.exponentials / area:.2f}",
        )
    print_table(table, console)
    for sentence in sentences(results):
        console.print(f"· {sentence}", highlight=False)


def sentences(results: Sequence[Counted]) -> list[str]:
    """What the numbers say."""
    naive = [result for result in results if result.case.kernel == "naive"]
    exact = all(r.least_bytes == naive_formula(r.case.tokens, r.case.head_dim) for r in naive)
    said = [
        "naive: every array once for each of its three kernels comes to 16 (N d + N²) bytes"
        + (", exactly, at every size." if exact else "; here it does not.")
    ]
    for kernel in KERNELS[1:]:
        found = fit(results, kernel)
        said.append(
            f"{kernel}: bytes ∝ N^{found.tokens:.2f} · d^{found.head_dim:.2f} · M^{found.tile_bytes:.2f} "
            f"(the paper: {BOUND})."
        )
    said.append("All compute 4 N² d FLOPs and a little: FlashAttention saves traffic, not arithmetic.")
    return said


def as_data(results: Sequence[Counted]) -> dict[str, Any]:
    """For a file."""
    return {
        "cases": [
            result._asdict()
            | {"case": result.case._asdict() | {"tiles": result.case.tiles and result.case.tiles._asdict()}}
            for result in results
        ],
        "exponents": {kernel: fit(results, kernel)._asdict() for kernel in KERNELS[1:]},
    }


def save_picture(results: Sequence[Counted], path: Path) -> None:
    """Measured against the bound, and FLOPs.

    Raises:
        ValueError: it is no format for pictures, or the file cannot be written.
    """
    from matplotlib.figure import Figure

    check_picture(path)
    figure = Figure(figsize=(11, 4), layout="constrained", facecolor="white")
    left, right = figure.subplots(1, 2)
    for kernel in KERNELS[1:]:
        mine = [result for result in results if result.case.kernel == kernel]
        bound = [16 * r.case.tokens**2 * r.case.head_dim**2 / r.tile_bytes for r in mine]
        found = fit(results, kernel)
        name = f"{kernel}: N^{found.tokens:.2f} d^{found.head_dim:.2f} M^{found.tile_bytes:.2f}"
        left.plot(bound, [r.asked_bytes for r in mine], "o", color=COLOURS[kernel], label=name)
    ends = np.array([min(left.get_xlim()), max(left.get_xlim())])
    left.plot(ends, ends, color=MUTED, linewidth=0.8, linestyle=":", label=f"as many as 16 {BOUND}")
    for axis in ("x", "y"):
        getattr(left, f"set_{axis}scale")("log")
    label(left, "global memory, by the paper's bound", f"16 {BOUND}, bytes", "bytes that threads request")
    by_length: dict[str, list[Counted]] = {kernel: [] for kernel in KERNELS}
    for result in results:
        if result.case.head_dim == 32:
            by_length[result.case.kernel].append(result)
    for kernel, mine in by_length.items():
        flops = [r.flops / (r.case.tokens**2 * r.case.head_dim) for r in mine]
        right.plot([r.case.tokens for r in mine], flops, "o", color=COLOURS[kernel], label=kernel)
    right.axhline(4, color=MUTED, linewidth=0.8, linestyle=":")
    right.set_ylim(0, 6)
    label(right, "arithmetic", "tokens", "FLOPs / N² d")
    for axes in (left, right):
        axes.legend(fontsize=8, frameon=False)
        axes.tick_params(labelsize=8, colors=MUTED)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    write_picture(figure, path)
