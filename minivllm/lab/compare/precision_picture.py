"""The comparison of precisions as one picture: memory, speed, loss, on the same lines.

Read next: `precision_trace.py`, for what the dashboard shows.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from minivllm.lab.compare.precision import PrecisionComparison, PrecisionRow
from minivllm.lab.compare.precision_speed import BATCH
from minivllm.lab.compare.precision_variants import REFERENCE
from minivllm.lab.drawing import GRID, INK, MUTED, PAPER, check_picture, label, plain, write_picture

MATRICES, REST, PROMPTS, DECODING = "#0072B2", "#C9CDD3", "#56B4E9", "#D55E00"
FLOOR = 1e-7
"""KL below this is drawn as this: a logarithm needs something."""
CLAIMED = (3, 5)


def save_picture(result: PrecisionComparison, path: Path) -> None:
    """Write the picture; the file's ending says the format.

    Raises:
        ValueError: it is no format for pictures, or the file cannot be written.
    """
    check_picture(path)
    rows = [row for row in result.rows if not row.skipped]
    has_speed = all(row.speed for row in rows)
    count = 3 if has_speed else 2
    figure = Figure(figsize=(4.6 * count, 1.8 + 0.36 * len(rows)), layout="constrained", facecolor="white")
    axes = figure.subplots(1, count, sharey=True)
    lines = list(range(len(rows)))[::-1]
    _draw_bytes(axes[0], lines, rows)
    axes[0].set_yticks(lines, [row.variant.name for row in rows], fontsize=9)
    _draw_loss(axes[1], lines, rows)
    if has_speed:
        _draw_speed(axes[2], lines, rows, result.base_dtype)
    for one in axes:
        one.grid(axis="x", color=GRID, linewidth=0.6)
        one.set_axisbelow(True)
        one.tick_params(labelsize=8, colors=MUTED, length=0)
        one.legend(fontsize=8, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=3)
        for side in ("top", "right"):
            one.spines[side].set_visible(False)
    axes[0].tick_params(axis="y", labelsize=9, colors=INK)
    words = f"{result.model} on {result.text}" + (f"; speed: {result.speed_model}" if has_speed else "")
    figure.suptitle(plain(words), x=0.01, ha="left", fontsize=10.5, color=INK)
    write_picture(figure, path)


def _draw_bytes(axes: Any, lines: list[int], rows: list[PrecisionRow]) -> None:
    """Of the model whose speed is measured, if it is: the larger one."""
    own = [
        (row.speed.matrix_bytes, row.speed.weight_bytes)
        if row.speed
        else (row.matrix_bytes, row.weight_bytes)
        for row in rows
    ]
    matrices = [(some or 0) / 2**20 for some, _ in own]
    rest = [((whole or 0) - (some or 0)) / 2**20 for some, whole in own]
    axes.barh(lines, matrices, color=MATRICES, height=0.62, label="layers' matrices")
    axes.barh(lines, rest, left=matrices, color=REST, height=0.62, label="all else")
    label(axes, "weights in memory", "MiB")


def _draw_loss(axes: Any, lines: list[int], rows: list[PrecisionRow]) -> None:
    for place, row in zip(lines, rows, strict=True):
        quality = row.quality
        if quality is None or row.variant.name == REFERENCE:
            continue
        first = place == lines[1]
        for value, colour, marker, name in (
            (quality.kl_prompts, PROMPTS, "o", "prompts"),
            (quality.kl_decoding, DECODING, "D", "decoding"),
        ):
            axes.plot(max(value, FLOOR), place, marker, color=colour, label=name if first else None)
        axes.annotate(
            f"{quality.kept:.2%} kept", (1, place), xycoords=("axes fraction", "data"), ha="right",
            va="center", fontsize=7.5, color=MUTED,
        )  # fmt: skip
    axes.set_xscale("log")
    axes.set_xlim(FLOOR / 2, 0.1)
    label(axes, "KL to float32, held-out text", "nats a token")


def _draw_speed(axes: Any, lines: list[int], rows: list[PrecisionRow], base_dtype: str) -> None:
    by_name = {row.variant.name: row.speed for row in rows}
    base = by_name.get(base_dtype) or by_name[REFERENCE]
    assert base is not None
    axes.axvspan(*CLAIMED, color=PAPER, alpha=0.18, linewidth=0, label="claimed of INT4")
    for number, (place, row) in enumerate(zip(lines, rows, strict=True)):
        speed = row.speed
        assert speed is not None
        for ratio, colour, marker, name in (
            (speed.prompt / base.prompt, PROMPTS, "o", "prompt"),
            (speed.one_stream / base.one_stream, DECODING, "D", "one stream"),
            (speed.batch / base.batch, MATRICES, "s", f"batch of {BATCH}"),
        ):
            axes.plot(ratio, place, marker, color=colour, label=None if number else name)
    axes.axvline(1, color=MUTED, linewidth=0.8)
    axes.set_xlim(left=0)
    label(axes, f"times as fast as {base_dtype if base_dtype in by_name else REFERENCE}", "×")
