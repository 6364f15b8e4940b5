"""`minivllm microscope`: what a kernel does to memory, line by line. Read next: `subjects.py`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from minivllm.lab.tables import print_table
from minivllm.terminal import Console

NAMES = (
    "naive-attention, flash-attention-1, flash-attention-2, flash-attention-tensor-core, paged-attention, "
    "quantized-product, kv-write, copy-blocks"
)

SOURCE_WIDTH = 14
"""Columns for a piece of source: what is longer goes on below."""
WASTEFUL = 1.5
"""Times the ideal; what costs more is set in bold."""


def microscope(
    kernel: Annotated[str, typer.Argument(help=f"One of {NAMES}; or one of your own, as file.py:function.")],
    shape: Annotated[str, typer.Option(help="Sizes that differ from the usual: tokens=48,head_dim=64.")] = "",
    grid: Annotated[str, typer.Option(help="Of a kernel of your own: blocks.")] = "1",
    block: Annotated[str, typer.Option(help="Of a kernel of your own: threads in each.")] = "32",
    arguments: Annotated[
        str, typer.Option(help="Of a kernel of your own: a=float32:32x32,n=32 (arrays are random).")
    ] = "",
    seed: Annotated[int, typer.Option(help="Of the arrays.")] = 0,
    trace: Annotated[Path | None, typer.Option(help="Record everything in this file.")] = None,
) -> None:
    """Run a kernel thread by thread: what it does to memory. The exit code is 1 if it has a fault."""
    from kernels_numba.microscope import KernelFault
    from minivllm.lab.microscope.own_kernel import own_subject
    from minivllm.lab.microscope.pairs import parse_pairs
    from minivllm.lab.microscope.record import kernel_trace
    from minivllm.lab.microscope.subjects import make_subject
    from minivllm.trace.kernel_events import write_kernel_traces
    from minivllm.validation import check_integer, check_output_file

    check_integer("seed", seed, at_least=0)
    check_output_file("trace", trace)
    if ":" in kernel:
        subject = own_subject(kernel, grid, block, arguments, seed)
    else:
        subject = make_subject(kernel, parse_pairs("shape", shape), seed)
    console = Console()
    console.print(subject.title)
    traces = []
    faulty = False
    for number, launch in enumerate(subject.launches):
        names = launch_names(launch)
        poison = {name: cells for name, cells in subject.poison.items() if name in names}
        try:
            with console.status("running thread by thread"):
                seen = launch.observe(poison=poison)
        except KernelFault as fault:
            console.print(Text.assemble("\n", (type(fault).__name__, "bold"), f": {fault}"))
            raise typer.Exit(1) from None
        print_observation(seen, console)
        faulty |= bool(seen.faults)
        if trace is not None:
            traces.append(kernel_trace(seen, subject.title, number))
    if trace is not None:
        write_kernel_traces(trace, traces)
        console.point_to(trace)
    if faulty:
        raise typer.Exit(1)


def launch_names(launch: Any) -> tuple[str, ...]:
    """Parameters of its kernel."""
    import inspect

    return tuple(inspect.signature(getattr(launch.kernel, "py_func", launch.kernel)).parameters)


def print_observation(seen: Any, console: Console) -> None:
    """Tables: by line, by array; and faults."""
    sizes = (
        f"  {' × '.join(map(str, seen.grid))} blocks of {' × '.join(map(str, seen.block))} threads, "
        f"{seen.shared_bytes:,} bytes of shared memory each"
    )
    console.print(Text.assemble("\n", (seen.kernel, "bold"), sizes))
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("line", justify="right", no_wrap=True)
    table.add_column("source", overflow="fold", max_width=SOURCE_WIDTH)
    table.add_column("access", no_wrap=True)
    for name in ("times", "cost (ideal)", "bytes"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in seen.by_place():
        own = Path(row.place.file).name == seen.file
        source = seen.source[row.place.line - 1] if own else Path(row.place.file).name
        unit = "turns" if row.is_shared else "sectors"
        table.add_row(
            str(row.place.line),
            source[row.place.column : row.place.end_column],
            f"{row.kind} {row.array}",
            f"{row.num_requests:,}",
            f"{row.units_per_request:.3g} {unit} ({row.ideal_units / row.num_requests:.3g})",
            f"{row.num_bytes:,}",
            style="bold" if row.waste > WASTEFUL else None,
        )
    print_table(table, console)
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("array")
    for name in ("bytes read", "bytes written", "moved, in sectors", "unavoidable"):
        table.add_column(name, justify="right")
    for row in seen.traffic():
        moved = ("–", "–") if row.is_shared else (f"{row.moved_bytes:,}", f"{row.compulsory_bytes:,}")
        name = row.array + (" (shared)" if row.is_shared else "")
        table.add_row(name, f"{row.read_bytes:,}", f"{row.written_bytes:,}", *moved)
    print_table(table, console)
    for fault in seen.faults:
        console.print(Text.assemble((fault.kind, "bold"), f": {fault.message}"))
    if not seen.faults:
        console.print("No race, no read of unwritten memory, nothing out of bounds.")
