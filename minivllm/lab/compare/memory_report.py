"""The comparison of memories as tables to read, and as data for programs.

Read next: `memory_picture.py`, the same as a picture.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from minivllm.lab import papers
from minivllm.lab.compare.differences import differences
from minivllm.lab.compare.memory import (
    COPIES,
    COPIES_WIDTH,
    SMALLER,
    WIDTHS,
    MemoryComparison,
    Run,
    copy_bytes,
    kv_bytes_per_token,
    slots_beside,
    slots_of,
)
from minivllm.lab.tables import print_table
from minivllm.lab.workloads.lengths import DATA_SETS
from minivllm.terminal import Console

if TYPE_CHECKING:
    from minivllm.lab.compare.resident import Residency

WHAT_IS_RESERVED = {
    "contiguous": "max_model_len",
    "buddy": "prompt + 2^k",
    "oracle": "true length",
    "virtual_memory": "addresses",
    "paged": "nothing",
    "token": "nothing; blocks of 1",
}
LEGEND = (
    "effective: slots that hold a token. reserved: to be filled later by the same request. internal: held "
    "and never used. external: free, and the request at the head of the queue does not fit. at once: "
    "requests that run, on average. paper: effective · at once."
)


def print_comparison(result: MemoryComparison, console: Console) -> None:
    """A table for each question, and where they differ from the papers'."""
    settings = result.settings
    console.print(
        f"A KV cache of {settings.num_slots:,} tokens in blocks of {settings.block_size}, sequences of at "
        f"most {settings.max_model_len:,} tokens. The vLLM paper's OPT-13B on an A100 with 40 GB has "
        f"{papers.NUM_SLOTS:,}. The scheduler is real; only the shipped model's row has a model.",
        highlight=False,
    )
    for data_set in DATA_SETS:
        print_table(single_table(result, data_set), console)
    console.print(LEGEND, style="dim", highlight=False)
    print_table(copies_table(result), console)
    print_table(sharing_table(result), console)
    if result.smaller:
        print_table(smaller_table(result), console)
        print_table(second_copy_table(result), console)
    if result.residency is not None:
        console.print(residency_line(result.residency), highlight=False)
    lines = differences(result)
    console.print("Where this differs from the paper:" if lines else "All within 3 points of the paper.")
    for line in lines:
        console.print(f"  · {line}", highlight=False)


def as_data(result: MemoryComparison) -> dict[str, Any]:
    """Everything, the papers' figures included, ready for JSON."""

    def flat(run: Run) -> dict[str, Any]:
        played = asdict(run.played) | {"shares": run.played.shares._asdict()}
        return asdict(run) | {"played": played}

    groups = ("single", "placed_otherwise", "copies", "sharing", "model", "smaller", "second_copy")
    return {
        "settings": asdict(result.settings),
        **{group: [flat(run) for run in getattr(result, group)] for group in groups},
        "paper": {
            "effective": papers.EFFECTIVE,
            "reserved": papers.RESERVED,
            "internal": papers.INTERNAL,
            "external": papers.EXTERNAL,
            "requests_at_once": papers.REQUESTS_AT_ONCE,
            "saved": {f"{data} {kind}": shares for (data, kind), shares in papers.SAVED.items()},
        },
        "residency": asdict(result.residency) if result.residency else None,
        "differences": differences(result),
    }


def residency_line(residency: Residency) -> str:
    """Virtual memory in one sentence."""
    address, committed, resident, left = (
        f"{each / (1 << 20):,.1f} MiB" for each in (residency.address_bytes, *_in_memory(residency))
    )
    return (
        f"Virtual memory, measured with the shipped model: {address} of addresses. In the fullest step "
        f"{committed} are committed by the books and {resident} are resident, as the machine says; after "
        f"the last request {left}."
    )


def _in_memory(residency: Residency) -> tuple[int, int, int]:
    return residency.committed_bytes, residency.resident_bytes, residency.left_bytes


def single_table(result: MemoryComparison, data_set: str) -> Table:
    """Shares of the memory and requests at once, one row for each allocator."""
    shape = DATA_SETS[data_set]
    table = _narrow_table(
        f"{shape.name}: mean {shape.mean_prompt:.0f} tokens in, {shape.mean_output:.0f} out"
    )
    table.add_column("allocator (reserves)")
    for column in ("effective", "reserved", "internal", "external", "at once", "paper"):
        table.add_column(column, justify="right", no_wrap=True)
    for run in result.single:
        if run.data_set != data_set:
            continue
        shares = run.played.shares
        effective = papers.EFFECTIVE.get(run.allocator) if data_set == "sharegpt" else None
        at_once = papers.REQUESTS_AT_ONCE[data_set].get(run.allocator)
        paper = [f"{effective:.1%}"] if effective else []
        paper += [f"{at_once:.1f}"] if at_once else []
        table.add_row(
            f"{run.allocator} ({WHAT_IS_RESERVED[run.allocator]})",
            *(f"{share:.1%}" for share in shares[:4]),
            f"{run.played.requests_at_once:.1f}",
            " · ".join(paper) or "–",
        )
    return table


def copies_table(result: MemoryComparison) -> Table:
    """What forks cost where nothing can be shared."""
    name = DATA_SETS["alpaca"].name
    table = _narrow_table(f"Blocks copied per 1,000 tokens: {COPIES_WIDTH} sequences per request, {name}")
    table.add_column("allocator")
    for kind in ("parallel samples", "beams"):
        table.add_column(kind, justify="right")
        table.add_column("requests at once", justify="right")
    for name in dict.fromkeys(run.allocator for run in result.copies):
        cells = []
        for kind in ("parallel", "beam"):
            played = result.find("copies", allocator=name, kind=kind).played
            cells += [
                f"{1000 * played.num_copies / played.num_tokens:,.0f}",
                f"{played.requests_at_once:.1f}",
            ]
        table.add_row(name, *cells)
    return table


def sharing_table(result: MemoryComparison) -> Table:
    """Blocks saved by sharing, beside the paper's range."""
    table = _narrow_table("Blocks saved by sharing (paged)")
    table.add_column("")
    for width in WIDTHS:
        table.add_column(f"{width} sequences", justify="right")
    table.add_column("paper", justify="right", no_wrap=True)
    for (data_set, kind), theirs in papers.SAVED.items():
        name = "parallel samples" if kind == "parallel" else "beams"
        runs = [result.find("sharing", data_set=data_set, kind=kind, width=width) for width in WIDTHS]
        table.add_row(
            f"{DATA_SETS[data_set].name}, {name}",
            *(f"{run.played.saved:.1%}" for run in runs),
            _by_width(theirs),
        )
    if result.model:
        name = f"{DATA_SETS['alpaca'].name}, beams of the shipped model"
        saved = (f"{run.played.saved:.1%}" for run in result.model)
        table.add_row(name, *saved, _by_width(papers.SAVED["alpaca", "beam"]))
    return table


def smaller_table(result: MemoryComparison) -> Table:
    """What fits into the same bytes if keys and values are kept in 8 bits."""
    table = _narrow_table("The same bytes with a smaller KV cache (paged): requests at once")
    table.add_column("kv_cache_dtype")
    table.add_column("bytes/token", justify="right")
    table.add_column("tokens", justify="right")
    for data_set in DATA_SETS:
        table.add_column(DATA_SETS[data_set].name, justify="right")
    plain = {data: result.find("single", data_set=data, allocator="paged") for data in DATA_SETS}
    for kind in ("auto", *SMALLER):
        cells = []
        for data_set, before in plain.items():
            now = before
            if kind != "auto":
                now = result.find("smaller", data_set=data_set, kv_cache_dtype=kind)
            at_once, first = now.played.requests_at_once, before.played.requests_at_once
            cells.append(f"{at_once:.1f}" + (f" ({at_once / first:.2f}×)" if now is not before else ""))
        name = "auto (16 bits)" if kind == "auto" else kind
        slots = slots_of(result.settings, kind)
        table.add_row(name, f"{kv_bytes_per_token(kind):,}", f"{slots:,}", *cells)
    return table


def second_copy_table(result: MemoryComparison) -> Table:
    """What a second copy of the weights, for generated tokens, leaves to the cache."""
    table = _narrow_table("Beside a second copy of the weights (paged): requests at once")
    table.add_column("decode_weight_dtype")
    table.add_column("copy", justify="right")
    table.add_column("tokens", justify="right")
    for data_set in DATA_SETS:
        table.add_column(DATA_SETS[data_set].name, justify="right")
    before = [result.find("single", data_set=data, allocator="paged") for data in DATA_SETS]
    plain = [run.played.requests_at_once for run in before]
    cells = [f"{at_once:.1f}" for at_once in plain]
    table.add_row("none", "–", f"{result.settings.num_slots:,}", *cells)
    for name in COPIES:
        slots = slots_beside(result.settings, name)
        runs = [run for run in result.second_copy if run.decode_weight_dtype == name]
        cells = ["no room"] * len(plain)
        if runs:
            at_once_now = [run.played.requests_at_once for run in runs]
            cells = [f"{now:.1f} ({now / first:.2f}×)" for now, first in zip(at_once_now, plain, strict=True)]
        table.add_row(name, f"{copy_bytes(name) / 1e9:.1f} GB", f"{slots:,}", *cells)
    return table


def _narrow_table(title: str) -> Table:
    """Only one line, below the heads of the columns: so that all of them fit into 80 characters."""
    return Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))


def _by_width(shares: Mapping[int, float]) -> str:
    """The paper's figures in the order of the columns; it does not have all of them."""
    return " · ".join(f"{shares[width]:.1%}" if width in shares else "…" for width in WIDTHS)
