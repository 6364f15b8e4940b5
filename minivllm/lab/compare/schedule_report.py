"""The comparison of policies as tables and as data.

Read next: `schedule_picture.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from minivllm.lab.compare.schedule import PolicyRun
from minivllm.lab.tables import print_table
from minivllm.terminal import Console
from minivllm.trace.summary import format_seconds

LEGEND = (
    "tok/s: output tokens a second, until the last answer. in batch: requests admitted, and those parked "
    "until their whole batch is finished. computed: those of them that a step works on. padding: of all "
    "tokens computed, those thrown away. preempted: how often a request was taken out of the batch for lack "
    "of memory or for a better one. fairness: Jain's index of the latencies per output token, 1 if all are "
    "treated alike."
)


def print_runs(runs: Sequence[PolicyRun], console: Console) -> None:
    """Two tables, each within 80 characters."""
    print_table(latency_table(runs), console)
    print_table(batch_table(runs), console)
    console.print(LEGEND, style="dim", highlight=False)


def latency_table(runs: Sequence[PolicyRun]) -> Table:
    """Throughput, and the latencies of single requests."""
    table = _table("Latencies: p50 · p90 · p99 (end to end: p50 · p99)")
    table.add_column("policy", overflow="fold", min_width=14)
    for column in ("tok/s", "first token", "between tokens", "end to end"):
        table.add_column(column, justify="right", no_wrap=True)
    for run in runs:
        table.add_row(
            run.policy,
            f"{run.output_tokens_per_second:,.0f}",
            _in_words(run.ttft.p50, run.ttft.p90, run.ttft.p99),
            _in_words(run.inter_token.p50, run.inter_token.p90, run.inter_token.p99),
            _in_words(run.end_to_end.p50, run.end_to_end.p99),
        )
    return table


def batch_table(runs: Sequence[PolicyRun]) -> Table:
    """What the batch was made of."""
    table = _table("The batch")
    table.add_column("policy", overflow="fold", min_width=25)
    for column in ("in batch", "computed", "padding", "preempted", "fairness"):
        table.add_column(column, justify="right")
    for run in runs:
        table.add_row(
            run.policy,
            f"{run.mean_batch:.1f}",
            f"{run.mean_computed:.1f}",
            f"{run.padding_share:.0%}",
            f"{run.num_preemptions}",
            f"{run.fairness:.2f}",
        )
    return table


def differences(runs: Sequence[PolicyRun]) -> list[str]:
    """What the tables show, in sentences; only what was measured."""
    by_name = {run.policy.partition("(")[0]: run for run in runs}
    sentences = []
    if all(run.same_tokens is not None for run in runs):
        differ = [f"{run.num_requests - (run.same_tokens or 0)} under {run.policy}" for run in runs]
        differ = [text for text in differ if not text.startswith("0 ")]
        sentences.append(
            f"All {runs[0].num_requests} requests get the same tokens under every policy."
            if not differ
            else f"Requests that differ from {runs[0].policy} (near ties, decided by rounding): "
            + ", ".join(differ)
            + "."
        )
    if (static := by_name.get("static")) and (fcfs := by_name.get("fcfs")):
        ratio = fcfs.output_tokens_per_second / static.output_tokens_per_second
        sentences.append(
            f"Continuous (fcfs) against static batching: {ratio:.2f}× the throughput, first tokens after "
            f"{format_seconds(fcfs.ttft.p50)} instead of {format_seconds(static.ttft.p50)} (p50)."
        )
    if (tail := by_name.get("tail")) and (fcfs := by_name.get("fcfs")):
        change = (tail.end_to_end.p50 or 0.0) / (fcfs.end_to_end.p50 or 1.0) - 1
        sentences.append(
            f"Preempting sequences with few tokens left (tail) changed the median end-to-end latency "
            f"by {change:+.0%}, and throughput by "
            f"{tail.output_tokens_per_second / fcfs.output_tokens_per_second - 1:+.0%}."
        )
    soonest = _best(runs, lambda run: run.ttft.p50 or 0.0)
    smoothest = _best(runs, lambda run: run.inter_token.p99 or 0.0)
    sentences.append(
        f"Soonest first token (p50): {soonest}. Smoothest answers (p99 between tokens): {smoothest}."
    )
    return sentences


def _best(runs: Sequence[PolicyRun], value: Callable[[PolicyRun], float]) -> str:
    """The policies with the smallest value, and those within 2 % of it: less is noise."""
    least = min(value(run) for run in runs)
    return ", ".join(run.policy for run in runs if value(run) <= 1.02 * least)


def as_data(runs: Sequence[PolicyRun]) -> list[dict[str, Any]]:
    """For a file."""
    return [asdict(run) | {"trace": str(run.trace)} for run in runs]


def _table(title: str) -> Table:
    return Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))


def _in_words(*values: float | None) -> str:
    """Percentiles in the unit of the largest, which is said once."""
    known = [value for value in values if value is not None]
    if not known:
        return "–"
    factor, unit = (1.0, "s") if max(known) >= 1 else (1e3, "ms")
    return f"{'·'.join(f'{value * factor:.3g}' for value in known)} {unit}"
