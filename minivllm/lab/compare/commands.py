"""`minivllm compare …`: comparisons from the command line, printed as tables.

Read next: `kv_cache.py`, the first of them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from minivllm.engine.engine_flags import with_engine_flags
from minivllm.lab.compare.output_files import check_files, write_files
from minivllm.lab.tables import print_table
from minivllm.terminal import Console

app = typer.Typer(no_args_is_help=True, add_completion=False, rich_markup_mode=None)


@app.callback()
def compare() -> None:
    """The same requests with and without one idea, side by side."""


@app.command("cache")
def cache(
    model: Annotated[
        str | None, typer.Option(help="Folder or hub id; the shipped model if left out.")
    ] = None,
    prompt_tokens: Annotated[int, typer.Option(help="Length of the (random) prompt.")] = 64,
    output_tokens: Annotated[int, typer.Option(help="Tokens to generate.")] = 192,
    threads: Annotated[int, typer.Option(help="Threads of torch.")] = 1,
    seed: Annotated[int, typer.Option()] = 0,
) -> None:
    """Generate with a KV cache and without: the same tokens, and what each costs."""
    from minivllm.lab.compare.kv_cache import compare_cache
    from minivllm.model.tiny import MODEL_PATH

    result = compare_cache(
        model or MODEL_PATH,
        prompt_tokens=prompt_tokens,
        output_tokens=output_tokens,
        threads=threads,
        seed=seed,
    )
    console = Console()
    table = Table(title="One decode step (median), by tokens in the sequence", title_justify="left")
    for column in ("tokens", "with KV cache", "without", "ratio"):
        table.add_column(column, justify="right")
    for row in result.stretches:
        table.add_row(
            f"{row.first_context} – {row.last_context}",
            f"{row.cached_seconds * 1e3:.2f} ms",
            f"{row.recomputed_seconds * 1e3:.2f} ms",
            f"{row.recomputed_seconds / row.cached_seconds:.1f}×",
        )
    print_table(table, console)
    for line in (
        f"Prefill, {result.prompt_tokens} prompt tokens in one step: {result.prefill_seconds * 1e3:.2f} ms "
        "in both.",
        f"Through the model went {result.computed_with_cache:,} tokens with the cache, "
        f"{result.computed_without:,} without.",
        f"All {result.output_tokens - 1} decode steps: {result.cached_seconds:.2f} s with, "
        f"{result.recomputed_seconds:.2f} s without: {result.speedup:.1f} times as fast.",
        "Both runs generated the same tokens."
        if result.same_tokens
        else "The tokens differ: near ties, decided differently by rounding.",
    ):
        console.print(line, highlight=False)


@app.command("memory")
@with_engine_flags({"block_size"})
def memory(
    requests: Annotated[
        int, typer.Option(help="Long requests in each run; of short ones, four times as many.")
    ] = 200,
    slots: Annotated[
        int | None, typer.Option(help="Tokens that the KV cache holds; as in the vLLM paper if left out.")
    ] = None,
    model: Annotated[bool, typer.Option(help="Also play beams of the shipped model.")] = True,
    seed: Annotated[int, typer.Option(help="Seed of lengths and beams.")] = 0,
    json: Annotated[Path | None, typer.Option("--json", help="Also write everything to this file.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw it in this file (.png, .svg, .pdf).")] = None,
    *,
    engine_settings: dict[str, Any],
) -> None:
    """Allocate the KV cache in six ways: what is wasted, what fits at once, what sharing saves."""
    from minivllm.lab.compare.memory import compare_memory
    from minivllm.lab.compare.memory_picture import save_picture
    from minivllm.lab.compare.memory_report import as_data, print_comparison
    from minivllm.lab.papers import NUM_SLOTS

    check_files(json=json, plot=plot)
    console = Console()
    with console.status("") as status:
        result = compare_memory(
            requests=requests,
            seed=seed,
            **engine_settings,
            num_slots=NUM_SLOTS if slots is None else slots,
            with_model=model,
            progress=lambda what, done: status.update(f"{done:4.0%}  {what}"),
        )
    print_comparison(result, console)
    write_files(
        console,
        json=json,
        data=lambda: as_data(result),
        plot=plot,
        draw=lambda file: save_picture(result, file),
    )


MODEL_HELP = (
    "nano, small, medium (random) or a folder; the shipped model if left out. "
    "With --hardware: a model's card."
)
HARDWARE_HELP = "Simulate this hardware (see `minivllm simulate`) instead of running."
POLICIES_HELP = "Policies, separated by commas; all of them if left out."
RATE_HELP = "Requests a second; a fifth more than fcfs can serve if left out."


@app.command("schedule")
@with_engine_flags(
    {"max_num_seqs", "max_num_batched_tokens"}, {"max_num_seqs": 16, "max_num_batched_tokens": 2048}
)
def schedule(
    policies: Annotated[str, typer.Option(help=POLICIES_HELP)] = "",
    model: Annotated[str | None, typer.Option(help=MODEL_HELP)] = None,
    hardware: Annotated[str | None, typer.Option(help=HARDWARE_HELP)] = None,
    workload: Annotated[str | None, typer.Option(help="As for `minivllm simulate`.")] = None,
    requests: Annotated[int | None, typer.Option(help="So many requests.")] = None,
    rate: Annotated[float | None, typer.Option(help=RATE_HELP)] = None,
    blocks: Annotated[int | None, typer.Option(help="KV-cache blocks; few of them show preemption.")] = None,
    threads: Annotated[
        int | None, typer.Option(help="Threads of torch; all usable cores if left out.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the workload.")] = 0,
    out: Annotated[Path, typer.Option(help="Folder for the traces.")] = Path("minivllm-out/schedule"),
    json: Annotated[Path | None, typer.Option("--json", help="Also write everything to this file.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw it in this file (.png, .svg, .pdf).")] = None,
    *,
    engine_settings: dict[str, Any],
) -> None:
    """Serve the same requests under each scheduling policy: what each gives, and what it costs."""
    from minivllm.lab.compare.schedule import DEFAULT_POLICIES, check_policies
    from minivllm.lab.compare.schedule_command import ScheduleSettings, run
    from minivllm.lab.compare.schedule_picture import save_picture
    from minivllm.lab.compare.schedule_report import as_data, differences, print_runs

    chosen = check_policies(policies) if policies else list(DEFAULT_POLICIES)
    check_files(json=json, plot=plot)
    settings = ScheduleSettings(
        model=model,
        hardware=hardware,
        workload=workload,
        requests=requests,
        rate=rate,
        num_blocks=blocks,
        threads=threads,
        seed=seed,
        **engine_settings,
    )
    console = Console()
    with console.status("") as status:
        title, runs = run(settings, chosen, out, lambda what: status.update(what))
    console.print(title, highlight=False)
    print_runs(runs, console)
    for sentence in differences(runs):
        console.print(f"· {sentence}", highlight=False)
    write_files(
        console,
        json=json,
        data=lambda: as_data(runs),
        plot=plot,
        draw=lambda file: save_picture(runs, title, file),
    )
    command = (f"minivllm dashboard {runs[0].trace}", "bold")
    console.print(Text.assemble("Two of them side by side: ", command, ", page Compare."))


@app.command("attention")
def attention(
    tokens: Annotated[
        int, typer.Option(help="Of the longest sequence, a multiple of 64; the time grows with its square.")
    ] = 128,
    json: Annotated[Path | None, typer.Option("--json", help="Also write everything to this file.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw it in this file (.png, .svg, .pdf).")] = None,
) -> None:
    """Count bytes and FLOPs of naive attention and FlashAttention under the microscope; fit exponents."""
    from minivllm.lab.compare.attention import compare_attention
    from minivllm.lab.compare.attention_picture import as_data, print_counts, save_picture

    check_files(json=json, plot=plot)
    console = Console()
    with console.status("") as status:
        results = compare_attention(tokens, progress=status.update)
    print_counts(results, console)
    write_files(
        console,
        json=json,
        data=lambda: as_data(results),
        plot=plot,
        draw=lambda file: save_picture(results, file),
    )


@app.command("precision")
@with_engine_flags({"attention_backend"})
def precision(
    model: Annotated[
        str | None,
        typer.Option(help="Folder or hub id that quality is judged on; the shipped one if left out."),
    ] = None,
    speed_model: Annotated[
        str, typer.Option(help="Whose speed is measured: nano, small, medium (random weights), or none.")
    ] = "medium",
    precisions: Annotated[str, typer.Option(help="Some of them, separated by commas; all if left out.")] = "",
    text: Annotated[
        Path | None, typer.Option(help="Judge quality on this file; on built-in held-out texts if left out.")
    ] = None,
    texts: Annotated[
        int | None, typer.Option(help="So many texts of it; 48 if left out, or all if there are fewer.")
    ] = None,
    samples: Annotated[
        int, typer.Option(help="Texts that AWQ, GPTQ and SmoothQuant are calibrated on.")
    ] = 128,
    clipping: Annotated[
        bool, typer.Option(help="Also compare AWQ's clippings, calibrated on little.")
    ] = True,
    threads: Annotated[
        int | None, typer.Option(help="Threads of torch; all usable cores if left out.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the choice of texts.")] = 0,
    trace: Annotated[
        Path | None, typer.Option(help="Write a trace for the dashboard's page Precision.")
    ] = None,
    json: Annotated[Path | None, typer.Option("--json", help="Also write everything to this file.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw it in this file (.png, .svg, .pdf).")] = None,
    *,
    engine_settings: dict[str, Any],
) -> None:
    """The same model in 16, 8 and 4 bits: bytes, tokens a second, and what is lost, by phase."""
    from minivllm.lab.compare.precision import PrecisionSettings
    from minivllm.lab.compare.precision_command import run
    from minivllm.model.tiny import MODEL_PATH

    check_files(json=json, trace=trace, plot=plot)
    settings = PrecisionSettings(
        model or MODEL_PATH,
        speed_model=speed_model,
        variants=precisions,
        text=text,
        num_texts=texts,
        num_samples=samples,
        backend=engine_settings["attention_backend"],
        threads=threads,
        seed=seed,
        with_clipping=clipping,
    )
    run(settings, Console(), trace=trace, json=json, plot=plot)
