"""What is printed of runs, and what is written: tables for people, vLLM's fields for programs.

Read next: `plot.py`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from minivllm.files import write_file
from minivllm.lab.bench.serve.doubts import kept_up
from minivllm.lab.bench.serve.results import LATENCIES, ServeResult
from minivllm.lab.bench.serve.session import Outcome, Plan
from minivllm.lab.tables import print_table
from minivllm.terminal import Console

MODES = {
    "open": "open loop",
    "capped": "a rate with a cap, which is no open loop",
    "closed": "closed loop",
    "burst": "all requests at once",
}


def print_result(result: ServeResult, plan: Plan, console: Console) -> None:
    """One run: throughput, latencies, what was doubtful."""
    console.print()
    console.print(Text(headline(result, plan), style="bold"))
    table = Table(show_header=False)
    table.add_column("what")
    table.add_column("value", justify="right")
    for words, value in totals(result):
        table.add_row(words, value)
    print_table(table, console)
    table = Table(title="Milliseconds, of completed requests", title_justify="left")
    for name in ("", "mean", "p50", "p90", "p99"):
        table.add_column(name, justify="right" if name else "left")
    for name, words in LATENCIES.items():
        spread = result.latencies[name]
        table.add_row(words, *(number(value) for value in (spread.mean, spread.p50, spread.p90, spread.p99)))
    print_table(table, console)
    for sentence in notes(result):
        console.print(sentence, soft_wrap=True)
    print_doubts(result, console)


def print_rates(results: Sequence[ServeResult], console: Console) -> None:
    """A line for each rate."""
    table = Table(title="Latency against rate: p50 / p99 in milliseconds", title_justify="left")
    columns = ("rate", "sent", "answered", "tokens/s", "TTFT", "TPOT", "E2E", "failed", "doubts")
    for name in columns:
        table.add_column(name, justify="right")
    for result in results:
        cells = [
            number(value) for value in (result.request_rate, result.offered_rate, result.request_throughput)
        ]
        cells.append(f"{result.output_throughput:,.0f}")
        for name in ("ttft", "tpot", "e2el"):
            spread = result.latencies[name]
            cells.append(f"{number(spread.p50)} / {number(spread.p99)}")
        table.add_row(*cells, str(result.failed), str(len(result.doubts)) if result.doubts else "–")
    console.print()
    print_table(table, console)
    slow = [f"{result.request_rate:g}" for result in results if not kept_up(result)]
    if slow:
        console.print(
            f"The server did not keep up at {', '.join(slow)}: latencies grow with the length of the run.",
            soft_wrap=True,
        )


def print_doubts(result: ServeResult, console: Console) -> None:
    for sentence in result.doubts:
        console.print(Text.assemble(("doubtful: ", "bold red"), sentence), soft_wrap=True)


def headline(result: ServeResult, plan: Plan) -> str:
    """What kind of load it was."""
    words = MODES[result.mode]
    if result.mode in ("open", "capped"):
        how = (
            "" if result.request_rate is None else f"{result.request_rate:g} requests a second, {_gaps(plan)}"
        )
        words += f": {how}" if how else ": arrivals of the file"
    if result.mode in ("closed", "capped"):
        words += f", at most {result.max_concurrency} at once"
    return words[0].upper() + words[1:]


def _gaps(plan: Plan) -> str:
    if plan.arrivals == "constant":
        return "evenly spaced"
    return "Poisson" if plan.burstiness == 1 else f"burstiness {plan.burstiness:g} (1 is Poisson)"


def totals(result: ServeResult) -> list[tuple[str, str]]:
    """Counts and rates, in words."""
    rows = [
        ("completed, failed", f"{result.completed:,}, {result.failed:,}"),
        ("duration, first send to last answer", f"{result.duration:,.2f} s"),
        ("prompt tokens, output tokens", f"{result.total_input_tokens:,}, {result.total_output_tokens:,}"),
        ("requests/s", f"{result.request_throughput:,.2f}"),
        ("output tokens/s", f"{result.output_throughput:,.1f}"),
        ("all tokens/s", f"{result.total_token_throughput:,.1f}"),
    ]
    if result.offered_rate is not None and result.mode in ("open", "capped"):
        rows.insert(3, ("requests/s sent", f"{result.offered_rate:,.2f}"))
    if result.request_goodput is not None:
        bounds = ", ".join(f"{name} ≤ {bound:g} ms" for name, bound in result.goodput.items())
        rows.append((f"goodput, requests/s with {bounds}", f"{result.request_goodput:,.2f}"))
    return [*rows, ("most requests at once", f"{result.max_concurrent_requests:,}")]


def notes(result: ServeResult) -> list[str]:
    """How far the client itself can be believed."""
    client = result.client
    told = [
        f"Client: sends {number(client.late.p50)} ms after they were due (p99 {number(client.late.p99)}), "
        f"event loop up to {client.loop_lag_p99_ms:,.1f} ms late (p99), {client.cores:.2f} cores."
    ]
    if not kept_up(result):
        told.append("The server did not keep up: latencies grow with the length of the run.")
    return told


def number(value: float | None) -> str:
    if value is None or not math.isfinite(value):
        return "–"
    return f"{value:,.2f}" if abs(value) < 100 else f"{value:,.0f}"


def as_fields(outcome: Outcome, plan: Plan, model: str, *, detailed: bool) -> dict[str, Any]:
    """One run as JSON, under the names of `vllm bench serve --save-result`."""
    told: dict[str, Any] = {
        "date": datetime.now().strftime("%Y%m%d-%H%M%S"),
        "endpoint_type": plan.backend,
        "backend": plan.backend,
        "label": None,
        "model_id": model,
        "tokenizer_id": plan.tokenizer or model,
        "num_prompts": outcome.result.completed + outcome.result.failed,
        "workload": plan.workload,
        "seed": plan.seed,
        "burstiness": plan.burstiness,
        "arrivals": plan.arrivals,
        "num_warmups": max(1, plan.num_warmups),
        "warmups_are_measured": False,
    }
    told |= outcome.result.fields()
    return told | (outcome.details() if detailed else {})


def write_fields(
    outcomes: Sequence[Outcome], plan: Plan, model: str, path: Path, option: str, *, detailed: bool
) -> None:
    """One run as an object, several as a list of them. Raises `CannotWrite`."""
    told = [as_fields(outcome, plan, model, detailed=detailed) for outcome in outcomes]
    text = json.dumps(told[0] if len(told) == 1 else told, indent=2, ensure_ascii=False)
    write_file(path, text + "\n", option)
