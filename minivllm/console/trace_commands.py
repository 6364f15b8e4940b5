"""`minivllm trace summary`, `export` and `query`: a trace in words, for other tools, and asked in SQL."""

from __future__ import annotations

import sys
from csv import writer as csv_writer
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from minivllm.lab.tables import print_table
from minivllm.terminal import Console
from minivllm.text import printable

MOST_ROWS = 10**9

trace_app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    help="Look into a trace file, ask it in SQL, or convert it.",
)

TraceFile = Annotated[Path, typer.Argument(help="A trace written by `minivllm demo` or by `LLM(trace=…)`.")]


@trace_app.command("summary")
def trace_summary(file: TraceFile) -> None:
    """Print what a run did: throughput, latencies, blocks, waste, preemptions."""
    from minivllm.trace.kernel_events import is_kernel_trace, read_kernel_traces
    from minivllm.trace.kernel_summary import kernel_summary_lines
    from minivllm.trace.precision_events import is_precision, read_precision
    from minivllm.trace.precision_summary import precision_summary_lines
    from minivllm.trace.reader import read_trace
    from minivllm.trace.story_events import is_story, read_story
    from minivllm.trace.story_summary import story_summary_lines
    from minivllm.trace.summary import summarize

    console = Console()
    if is_story(file):
        console.print("\n".join(story_summary_lines(read_story(file))))
        return
    if is_precision(file):
        console.print("\n".join(precision_summary_lines(read_precision(file))))
        return
    if is_kernel_trace(file):
        for kernel in read_kernel_traces(file):
            console.print("\n".join(kernel_summary_lines(kernel)))
        return
    trace = read_trace(file)
    for warning in trace.warnings:
        console.print(Text(warning, "yellow"))
    for line in summarize(trace).lines():
        console.print(line)


@trace_app.command("export")
def trace_export(
    file: TraceFile,
    perfetto: Annotated[
        bool, typer.Option("--perfetto", help="As Chrome trace JSON, for ui.perfetto.dev.")
    ] = False,
    parquet: Annotated[
        bool, typer.Option("--parquet", help="As tables (events, steps, requests, blocks), one file each.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option(help="File or, of tables, folder to write; beside the trace if left out.")
    ] = None,
) -> None:
    """Convert a trace for other tools."""
    if perfetto == parquet:
        raise ValueError("say which format to export to: --perfetto or --parquet")
    from minivllm.trace.perfetto import write_perfetto
    from minivllm.trace.reader import read_trace
    from minivllm.trace.tables import write_parquet

    if parquet:
        paths = write_parquet(read_trace(file), out or file.with_suffix(".tables"))
        Console().print("\n".join(f"Wrote {path}" for path in paths))
        return
    target = out or file.with_suffix(".perfetto.json")
    if target.resolve() == file.resolve():
        raise ValueError(f"out must be another file than the trace, got {str(out)!r}")
    write_perfetto(read_trace(file), target)
    Console().print(f"Wrote {target}. Open it at ui.perfetto.dev or in chrome://tracing.")


@trace_app.command("query")
def trace_query(
    statement: Annotated[str, typer.Argument(help='SQL, such as "SELECT * FROM steps LIMIT 5".')] = "",
    file: Annotated[Path | None, typer.Argument(help="The trace that is asked.")] = None,
    tables: Annotated[bool, typer.Option("--tables", help="Print the tables and their columns.")] = False,
    rows: Annotated[int, typer.Option(help="Print so many rows at most.", min=1)] = 100,
    csv: Annotated[bool, typer.Option("--csv", help="Print all rows as CSV.")] = False,
) -> None:
    """Ask a trace in SQL (DuckDB): tables events, steps, requests, blocks."""
    from minivllm.trace.query import ask
    from minivllm.trace.reader import read_trace

    if tables:
        _print_columns()
        return
    if not statement or file is None:
        raise ValueError('a statement and a trace are needed: minivllm trace query "SELECT …" run.jsonl')
    answer = ask(read_trace(file), statement, MOST_ROWS if csv else rows)
    if csv:
        csv_writer(sys.stdout).writerows(
            [answer.columns, *([_words(it) for it in row] for row in answer.rows)]
        )
        return
    table = Table(*answer.columns)
    for row in answer.rows:
        table.add_row(*(f"{it:.6g}" if isinstance(it, float) else _words(it) for it in row))
    console = Console()
    print_table(table, console)
    if not answer.is_whole:
        console.print(f"There are more rows: --rows {rows * 10} prints more of them, --csv all.")


def _words(value: object) -> str:
    """A cell's text; a trace may hold any, and a terminal obeys some."""
    return "" if value is None else printable(str(value))


def _print_columns() -> None:
    from minivllm.trace.tables import COLUMNS

    console = Console()
    for table, columns in COLUMNS.items():
        console.print(Text(table, "bold"))
        for name, (kind, meaning) in columns.items():
            console.print(Text(f"  {name:17} {kind:8} {meaning}"))
