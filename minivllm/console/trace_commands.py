"""`minivllm trace summary` and `minivllm trace export`: a trace in words, and a trace for other tools."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from minivllm.terminal import Console

trace_app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    help="Look into a trace file, or convert it.",
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
    out: Annotated[Path | None, typer.Option(help="File to write; beside the trace if left out.")] = None,
) -> None:
    """Convert a trace for other tools."""
    if not perfetto:
        raise ValueError("say which format to export to: --perfetto")
    from minivllm.trace.perfetto import write_perfetto
    from minivllm.trace.reader import read_trace

    target = out or file.with_suffix(".perfetto.json")
    write_perfetto(read_trace(file), target)
    Console().print(f"Wrote {target}. Open it at ui.perfetto.dev or in chrome://tracing.")
