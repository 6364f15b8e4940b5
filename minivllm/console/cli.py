"""The command line: `minivllm demo | generate | dashboard | lesson | trace | compare | bench | doctor`.

Commands only parse and print; what they do lives in the module that each one names. A mistake of the user's
is one sentence on stderr and exit code 2, never a stack trace (set MINIVLLM_DEBUG=1 to see it all the same).
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from minivllm import __version__

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="A small, true, readable vLLM that shows every step it takes. Start with `minivllm demo`.",
)
trace_app = typer.Typer(no_args_is_help=True, help="Look into a trace file, or convert it.")
app.add_typer(trace_app, name="trace")
console = Console()

TraceFile = Annotated[Path, typer.Argument(help="A trace written by `minivllm demo` or by `LLM(trace=…)`.")]
Port = Annotated[int, typer.Option(min=1, max=65535, help="Port of the dashboard, on this machine only.")]


@app.callback(invoke_without_command=True)
def version(
    show: Annotated[bool, typer.Option("--version", help="Print the version and leave.")] = False,
) -> None:
    if show:
        console.print(f"minivllm {__version__}")
        raise typer.Exit


@app.command()
def demo(
    story: Annotated[
        str, typer.Argument(help="'paging', or 'sharing': prefix cache, forks, beams, swapping.")
    ] = "paging",
    headless: Annotated[bool, typer.Option("--headless", help="Stop once the trace is written.")] = False,
    out: Annotated[Path, typer.Option(help="Folder for the trace.")] = Path("minivllm-out"),
    port: Port = 8501,
) -> None:
    """Run some prompts through the shipped model in a small KV cache, then show every step of it."""
    from minivllm.console.demo import run_demo

    trace = run_demo(out, console, story)
    if headless:
        console.print(f"To look at it: [bold]minivllm dashboard {trace}[/bold]", highlight=False)
    else:
        dashboard(trace, port=port)


@app.command()
def dashboard(
    trace: Annotated[
        Path | None, typer.Argument(help="The trace to open; choose one on the page if left out.")
    ] = None,
    port: Port = 8501,
    browser: Annotated[bool, typer.Option(help="Open a browser window.")] = True,
) -> None:
    """Show a trace in the browser, step by step, forward and back."""
    if trace is not None:
        from minivllm.trace.kernel_events import is_kernel_trace, read_kernel_traces
        from minivllm.trace.reader import read_trace
        from minivllm.trace.story_events import is_story, read_story

        is_other = (is_kernel_trace(trace) and read_kernel_traces(trace)) or (
            is_story(trace) and read_story(trace)
        )
        for warning in () if is_other else read_trace(trace).warnings:
            console.print(f"[yellow]{warning}[/yellow]")
    # Started as a program of its own: the engine never imports the dashboard (house rule 3).
    command = [sys.executable, "-m", "viz.serve", *([str(trace)] if trace else []), "--port", str(port)]
    raise typer.Exit(subprocess.call(command if browser else [*command, "--no-browser"]))


@app.command()
def generate(
    prompts: Annotated[list[str], typer.Argument(help="Texts to continue.")],
    model: Annotated[
        str | None, typer.Option(help="Hugging Face folder or hub id; the shipped model if left out.")
    ] = None,
    max_tokens: Annotated[int, typer.Option(help="Most tokens to generate for each prompt.")] = 64,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.0,
    top_p: Annotated[float, typer.Option()] = 1.0,
    top_k: Annotated[int, typer.Option(help="0 considers all tokens.")] = 0,
    chat: Annotated[
        bool, typer.Option("--chat", help="Each prompt is a user's message to a chat model.")
    ] = False,
    tokenizer: Annotated[str | None, typer.Option()] = None,
    dtype: Annotated[str, typer.Option()] = "auto",
    seed: Annotated[int, typer.Option()] = 0,
    block_size: Annotated[int, typer.Option(help="Tokens per KV-cache block.")] = 16,
    gpu_memory_utilization: Annotated[float, typer.Option()] = 0.92,
    num_gpu_blocks_override: Annotated[int | None, typer.Option(help="KV-cache blocks.")] = None,
    max_model_len: Annotated[int | None, typer.Option()] = None,
    max_num_seqs: Annotated[int, typer.Option()] = 128,
    max_num_batched_tokens: Annotated[int | None, typer.Option()] = None,
    enable_chunked_prefill: Annotated[bool, typer.Option()] = True,
    long_prefill_token_threshold: Annotated[int, typer.Option()] = 0,
    watermark: Annotated[
        float, typer.Option(help="Share of blocks kept free when a request is admitted.")
    ] = 0.01,
    scheduling_policy: Annotated[
        str, typer.Option(help="Who goes first: 'fcfs', 'priority', 'chunked', …, or 'module:Class'.")
    ] = "fcfs",
    n: Annotated[int, typer.Option("--n", help="Outputs for each prompt; they share its blocks.")] = 1,
    use_beam_search: Annotated[
        bool, typer.Option("--use-beam-search", help="Search for the n likeliest outputs.")
    ] = False,
    prefix_cache: Annotated[
        str | None, typer.Option(help="Find known prefixes again: 'hash' or 'radix'.")
    ] = None,
    enable_prefix_caching: Annotated[
        bool | None, typer.Option(help="vLLM's flag for the same; means 'hash'.")
    ] = None,
    swap_space: Annotated[
        float, typer.Option(help="GiB of host memory for the blocks of preempted requests.")
    ] = 0.0,
    preemption_mode: Annotated[str | None, typer.Option(help="'recompute' or 'swap'.")] = None,
    allocator: Annotated[
        str, typer.Option(help="'paged', or for comparison one of the ways of before.")
    ] = "paged",
    attention_backend: Annotated[
        str, typer.Option(help="'auto', 'torch', 'numba-cpu', 'numba-cuda' (GPU), 'microscope' (slow).")
    ] = "auto",
    trace: Annotated[Path | None, typer.Option(help="Record every event in this file.")] = None,
) -> None:
    """Continue prompts with any Llama, Mistral, Qwen2 or Qwen3 checkpoint. Flags carry vLLM's names."""
    from minivllm import LLM, SamplingParams

    sampling = SamplingParams(
        n=n,
        use_beam_search=use_beam_search,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        max_tokens=max_tokens,
    )
    engine_settings: dict[str, Any] = {
        "tokenizer": tokenizer,
        "dtype": dtype,
        "seed": seed,
        "block_size": block_size,
        "gpu_memory_utilization": gpu_memory_utilization,
        "num_gpu_blocks_override": num_gpu_blocks_override,
        "max_model_len": max_model_len,
        "max_num_seqs": max_num_seqs,
        "max_num_batched_tokens": max_num_batched_tokens,
        "enable_chunked_prefill": enable_chunked_prefill,
        "long_prefill_token_threshold": long_prefill_token_threshold,
        "watermark": watermark,
        "scheduling_policy": scheduling_policy,
        "prefix_cache": prefix_cache,
        "enable_prefix_caching": enable_prefix_caching,
        "swap_space": swap_space,
        "preemption_mode": preemption_mode,
        "allocator": allocator,
        "attention_backend": attention_backend,
        "trace": trace,
    }
    with LLM(model or shipped_model(), **engine_settings) as llm:
        if chat:
            outputs = llm.chat([[{"role": "user", "content": prompt}] for prompt in prompts], sampling)
        else:
            outputs = llm.generate(prompts, sampling)
    for prompt, output in zip(prompts, outputs, strict=True):
        console.rule(prompt.replace("\n", " ")[:60], align="left")
        for completion in output.outputs:
            if len(output.outputs) > 1:
                score = "" if completion.score is None else f"   score {completion.score:.4f}"
                console.print(f"\\[{completion.index}]{score}", style="dim", highlight=False)
            console.print(completion.text, markup=False, highlight=False)
    if trace:
        console.print(f"To look at it: [bold]minivllm dashboard {trace}[/bold]", highlight=False)


@trace_app.command("summary")
def trace_summary(file: TraceFile) -> None:
    """Print what a run did: throughput, latencies, blocks, waste, preemptions."""
    from minivllm.trace.kernel_events import is_kernel_trace, read_kernel_traces
    from minivllm.trace.kernel_summary import kernel_summary_lines
    from minivllm.trace.reader import read_trace
    from minivllm.trace.story_events import is_story, read_story
    from minivllm.trace.story_summary import story_summary_lines
    from minivllm.trace.summary import summarize

    if is_story(file):
        console.print("\n".join(story_summary_lines(read_story(file))), markup=False, highlight=False)
        return
    if is_kernel_trace(file):
        for kernel in read_kernel_traces(file):
            console.print("\n".join(kernel_summary_lines(kernel)), markup=False, highlight=False)
        return
    trace = read_trace(file)
    for warning in trace.warnings:
        console.print(f"[yellow]{warning}[/yellow]")
    for line in summarize(trace).lines():
        console.print(line, markup=False, highlight=False)


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
    console.print(f"Wrote {target}. Open it at ui.perfetto.dev or in chrome://tracing.", highlight=False)


@app.command(
    add_help_option=False, context_settings={"allow_extra_args": True, "ignore_unknown_options": True}
)
def lesson(context: typer.Context) -> None:
    """Learn it by building it: list, start, check, hint, see, diff, reset."""
    # A program of its own, like the dashboard: the engine never imports the lessons.
    raise typer.Exit(subprocess.call([sys.executable, "-m", "lessons", *context.args]))


@app.command()
def doctor() -> None:
    """Say what this machine can do, and what to install."""
    from minivllm.console.doctor import report

    raise typer.Exit(report(console))


def shipped_model() -> Path:
    """The model that comes with minivllm."""
    from minivllm.model.tiny import MODEL_PATH

    return MODEL_PATH


def main() -> None:
    """Entry point of the `minivllm` command."""
    from minivllm.lab.bench.calibrate_command import calibrate
    from minivllm.lab.bench.commands import app as bench_app
    from minivllm.lab.compare.commands import app as compare_app
    from minivllm.lab.figures.commands import figures
    from minivllm.lab.microscope.commands import microscope
    from minivllm.lab.simulation.command import simulate

    app.add_typer(bench_app, name="bench")
    app.add_typer(compare_app, name="compare")
    app.command()(simulate)
    app.command()(calibrate)
    app.command()(figures)
    app.command()(microscope)
    try:
        app()
    except ValueError as error:
        if os.environ.get("MINIVLLM_DEBUG"):
            raise
        Console(stderr=True).print(f"[bold red]error:[/bold red] {error}", highlight=False, soft_wrap=True)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
