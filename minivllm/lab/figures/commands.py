"""`minivllm figures`: redraw the papers' figures.

Read next: `serving.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.table import Table

from minivllm.lab.tables import print_table
from minivllm.terminal import Console
from minivllm.validation import check_choice, check_integer

if TYPE_CHECKING:
    from minivllm.lab.figures.result import FigureResult

NAMES = (
    "request-rate",
    "batch-size",
    "memory-use",
    "block-size",
    "preemption",
    "shared-prefix",
    "anyscale",
    "orca",
)

QUICK = 0.2
"""Of the length of a full run."""


def figures(
    out: Annotated[Path, typer.Option(help="Folder for page, pictures and data.")] = Path(
        "minivllm-out/figures"
    ),
    only: Annotated[
        list[str] | None, typer.Option(help=f"One of {', '.join(NAMES)}; may be given several times.")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Short runs: for a first look.")] = False,
    seed: Annotated[int, typer.Option(help="Of all workloads.")] = 0,
) -> None:
    """Redraw the papers' figures by simulation, beside the papers' numbers, with every assumption."""
    from minivllm.lab.figures.page import write_page

    check_integer("seed", seed, at_least=0)
    chosen = [check_choice("only", name, NAMES) for name in only or NAMES]
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"out: {out} cannot be made: {error.strerror}") from error
    console = Console()
    results = []
    makers = figure_makers()
    for name in chosen:
        with console.status(f"{name}: simulating"):
            result = makers[name](scale=QUICK if quick else 1.0, seed=seed)
        results.append(result)
        print_result(result, console)
    options = "".join(f" --only {name}" for name in only or ()) + (" --quick" if quick else "")
    page = write_page(out, results, seed=seed, command=f"minivllm figures{options} --seed {seed}")
    console.print(f"The page is {page}; pictures and data are beside it.", highlight=False)


def figure_makers() -> dict[str, Callable[..., FigureResult]]:
    """What makes each figure."""
    from minivllm.lab.figures.block_size import block_size
    from minivllm.lab.figures.memory_use import memory_use
    from minivllm.lab.figures.preemption import preemption
    from minivllm.lab.figures.request_rate import batch_size, request_rate
    from minivllm.lab.figures.shared_prefix import shared_prefix
    from minivllm.lab.figures.static_gap import anyscale, orca

    makers = (request_rate, batch_size, memory_use, block_size, preemption, shared_prefix, anyscale, orca)
    return dict(zip(NAMES, makers, strict=True))


def print_result(result: FigureResult, console: Console) -> None:
    """A table, and what differs."""
    table = Table(title=result.title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("")
    for column in ("here", "paper", "here / paper"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in result.rows:
        table.add_row(*row.in_words())
    print_table(table, console)
    for sentence in result.differences:
        console.print(f"· {sentence}", highlight=False)
    console.print()
