"""`minivllm calibrate`: make a hardware card of this machine.

Read next: `calibrate.py`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from minivllm.lab.tables import print_table
from minivllm.terminal import Console


def calibrate(
    out: Annotated[Path, typer.Option(help="The card to write.")] = Path("cpu-card.json"),
    model: Annotated[
        str | None,
        typer.Option(help="nano, small, medium (random) or a folder; the shipped model if left out."),
    ] = None,
    threads: Annotated[int | None, typer.Option(help="Of torch; all usable cores if left out.")] = None,
    seed: Annotated[int, typer.Option(help="Of the workloads.")] = 0,
) -> None:
    """Measure this machine with a real model, and write a card with which the simulator stands in for it."""
    import torch

    from minivllm.lab.bench.calibrate import calibrate as measure
    from minivllm.lab.subjects.settings import Settings

    settings = Settings(model=model, threads=threads, seed=seed)
    if out.suffix != ".json" or not out.absolute().parent.is_dir():
        raise ValueError(f"out must be a .json file in a folder that exists, got {str(out)!r}")
    console = Console()
    before = torch.get_num_threads()
    torch.set_num_threads(settings.num_threads)
    try:
        with console.status("") as status:
            result = measure(settings, status.update)
    finally:
        torch.set_num_threads(before)
    result.write(out)
    card = result.card
    table = Table(show_header=False, box=None, pad_edge=False)
    bandwidth = card.memory_bandwidth
    for name, value in (
        ("matrix products", f"{card.peak_flops * card.compute_efficiency / 1e9:,.1f} GFLOP/s"),
        ("reading weights", f"{bandwidth * card.bandwidth_efficiency / 1e9:,.1f} GB/s"),
        ("reading keys and values", f"{bandwidth * card.attention_efficiency / 1e9:,.2f} GB/s"),
        ("each step", f"{card.step_overhead_seconds * 1e6:,.0f} µs"),
        ("each sequence in a step", f"{card.sequence_overhead_seconds * 1e6:,.1f} µs"),
    ):
        table.add_row(name, value)
    console.print(Text.assemble((card.title, "bold"), f", from {result.num_fitted:,} steps"))
    print_table(table, console, highlight=False)
    console.print("Simulated against real, on steps that it was not made from:", highlight=False)
    errors = Table(show_header=False, box=None, pad_edge=False)
    for kind, (count, middle, high) in result.errors.items():
        errors.add_row(kind, f"{count:,} steps", f"off by {middle:.0%} (median), {high:.0%} (p90)")
    print_table(errors, console, highlight=False)
    name = model or "tiny"
    command = (f"minivllm simulate --hardware {out} --model {name}", "bold")
    console.print(Text.assemble(f"The card is {out}. Use it: ", command))
