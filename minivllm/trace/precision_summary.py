"""A comparison of precisions in lines: for `minivllm trace summary`.

Read next: `precision_events.py`.
"""

from __future__ import annotations

from minivllm.text import printable
from minivllm.trace.precision_events import PrecisionTrace


def precision_summary_lines(trace: PrecisionTrace) -> list[str]:
    """The model, each precision in a line, and each matrix with its best and worst grid."""
    header = trace.header
    lines = [f"Precisions of {printable(header.model)} on {printable(header.text)}"]
    for row in trace.variants:
        name = printable(row.name)
        if row.skipped or row.kl_decoding is None or row.kept is None:
            lines.append(f"  {name}: left out, {printable(row.skipped)}" if row.skipped else f"  {name}")
            continue
        size = "" if row.weight_bytes is None else f"{row.weight_bytes:,} bytes of weights, "
        lines.append(f"  {name}: {size}KL {row.kl_decoding:.2g} in decoding, {row.kept:.2%} of tokens kept")
    for found in trace.matrices:
        errors = [grid.output_error for grid in found.grids]
        if errors:
            name = printable(found.matrix.name)
            lines.append(
                f"  {name}: {len(errors)} grids, products off by {min(errors):.2%} to {max(errors):.2%}"
            )
    if not trace.is_whole:
        lines.append("The trace was cut off.")
    return lines
