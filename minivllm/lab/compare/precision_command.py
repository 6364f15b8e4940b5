"""What `minivllm compare precision` does once its options are checked: compare, print, write.

Read next: `precision.py`.
"""

from __future__ import annotations

from pathlib import Path

from rich.text import Text

from minivllm.lab.compare.output_files import write_files
from minivllm.lab.compare.precision import PrecisionSettings, compare_precision
from minivllm.lab.compare.precision_picture import save_picture
from minivllm.lab.compare.precision_report import as_data, print_comparison
from minivllm.lab.compare.precision_trace import record
from minivllm.terminal import Console


def run(
    settings: PrecisionSettings, console: Console, *, trace: Path | None, json: Path | None, plot: Path | None
) -> None:
    """Compare, print the tables, and write what was asked for."""
    with console.status("") as status:
        result = compare_precision(settings, lambda what, done: status.update(f"{done:4.0%}  {what}"))
        if trace is not None:
            status.update("matrices, for the trace")
            record(trace, result, settings)
    print_comparison(result, console)
    write_files(
        console,
        json=json,
        data=lambda: as_data(result),
        plot=plot,
        draw=lambda file: save_picture(result, file),
    )
    if trace is not None:
        command = (f"minivllm dashboard {trace}", "bold")
        console.print(Text.assemble("A look into the matrices: ", command, ", page Precision."))
