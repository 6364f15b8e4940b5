"""`minivllm compare …`: comparisons from the command line, printed as tables."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

app = typer.Typer(no_args_is_help=True, help="The same requests with and without one idea, side by side.")


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
    from minivllm.compare.kv_cache import compare_cache
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
    console.print(table)
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
