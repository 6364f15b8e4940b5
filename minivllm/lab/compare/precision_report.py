"""The comparison of precisions as tables, sentences and data.

Read next: `precision_picture.py`.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from minivllm.lab.compare.precision import PrecisionComparison, PrecisionRow
from minivllm.lab.compare.precision_claims import judge_claims
from minivllm.lab.compare.precision_clipping import ROUNDING, SPOILED
from minivllm.lab.compare.precision_speed import BATCH
from minivllm.lab.compare.precision_variants import Variant
from minivllm.lab.tables import print_table
from minivllm.terminal import Console

LEGEND = (
    "weights: MiB in memory; layers: of these, the layers' matrices, which are what is rounded. cache: bytes "
    "of a token's keys and values. ppl: perplexity. KL: to float32, in thousandths of a nat a token, where "
    "texts are read (their first halves, prompts) and where they are written (decoding). kept: tokens that "
    "greedy decoding chooses as float32 does. INT4 decode rounds at load: symmetric, in groups of 128 where "
    "they divide the inputs, or in whole rows."
)


def print_comparison(result: PrecisionComparison, console: Console) -> None:
    """Quality, speed, AWQ's clipping, and the articles' claims."""
    print_table(quality_table(result), console)
    for row in result.rows:
        if row.skipped:
            console.print(f"· {row.variant.name} is left out: {row.skipped}.", highlight=False)
    console.print(LEGEND, style="dim", highlight=False)
    if any(row.speed for row in result.rows):
        print_table(speed_table(result), console)
    if result.clipping:
        print_table(clipping_table(result), console)
        console.print(f"· {clipping_sentence(result)}", highlight=False)
    print_table(claims_table(result), console)


def quality_table(result: PrecisionComparison) -> Table:
    """What each takes, and what it loses."""
    table = _table(f"{result.model} on {result.text}, {result.num_texts} texts, {result.num_tokens:,} tokens")
    for column in ("weights", "layers", "cache", "ppl", "KL read", "written", "kept"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in result.rows:
        quality = row.quality
        if quality is None:
            continue
        table.add_row(
            row.variant.name,
            f"{(row.weight_bytes or 0) / 2**20:,.1f}",
            f"{(row.matrix_bytes or 0) / 2**20:,.1f}",
            f"{row.cache_bytes_per_token:,}",
            f"{quality.perplexity:.4f}",
            f"{1e3 * quality.kl_prompts:.3f}",
            f"{1e3 * quality.kl_decoding:.3f}",
            f"{quality.kept:.2%}",
        )
    return table


def speed_table(result: PrecisionComparison) -> Table:
    """How fast each is; in brackets, times as fast as what is not rounded."""
    threads = f"{result.num_threads} thread{'s' if result.num_threads > 1 else ''}"
    table = _table(
        f"Speed: {result.speed_model} (random weights), {threads}, tokens a second (× {result.base_dtype})"
    )
    for column in ("weights", "prompt", "one stream", f"batch of {BATCH}"):
        table.add_column(column, justify="right", no_wrap=True)
    base = result.row(result.base_dtype)
    for row in result.rows:
        if (speed := row.speed) is None or base is None or base.speed is None:
            continue
        pairs = (
            (speed.prompt, base.speed.prompt),
            (speed.one_stream, base.speed.one_stream),
            (speed.batch, base.speed.batch),
        )
        name = row.variant.name + (" ¹" if row.variant.speed_of else "")
        figures = [f"{mine:,.0f} ({mine / other:.1f}×)" for mine, other in pairs]
        table.add_row(name, mebibytes(speed.weight_bytes), *figures)
    if any(row.variant.speed_of for row in result.rows):
        table.caption, table.caption_justify = (
            "¹ lies in memory as INT4 RTN does, and is measured there",
            "left",
        )
    return table


def clipping_table(result: PrecisionComparison) -> Table:
    """AWQ's ways beside rounding."""
    table = _table("AWQ calibrated on little (16 samples), beside rounding to the same grid")
    for column in ("KL", "kept"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in result.clipping:
        table.add_row(row.name, f"{1e3 * row.kl:.3f}", f"{row.kept:.2%}")
    return table


def clipping_sentence(result: PrecisionComparison) -> str:
    """What the clipping table shows."""
    by_name = {row.name: row.kl for row in result.clipping}
    rounding, spoiled = by_name[ROUNDING], by_name[SPOILED]
    clipped = {name: kl for name, kl in by_name.items() if "clipping" in name}
    losing = [name for name, kl in clipped.items() if kl > rounding]
    words = "loses to rounding" if losing else "never loses to rounding"
    named = f" ({', '.join(losing)})" if losing else ""
    return (
        f"Clipping {words} here{named}. The known tool's checkpoint lost for another reason: on a CPU its "
        f"search never takes its first try back; planted here, that costs {spoiled / rounding:.1f} times "
        "rounding's KL."
    )


def claims_table(result: PrecisionComparison) -> Table:
    """The articles' claims beside."""
    table = Table(title="What the articles say", title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("said", min_width=18)
    table.add_column("measured here", min_width=18)
    table.add_column("verdict", no_wrap=True)
    table.add_column("because", min_width=20)
    for claim in judge_claims(result):
        table.add_row(claim.said, claim.measured, claim.verdict, claim.reason)
    return table


def mebibytes(count: int | None) -> str:
    """12.3 MiB."""
    return "–" if count is None else f"{count / 2**20:,.1f} MiB"


def as_data(result: PrecisionComparison) -> dict[str, Any]:
    """For a file."""
    whole = {
        name: getattr(result, name)
        for name in ("model", "speed_model", "text", "num_texts", "num_tokens", "base_dtype")
    }
    return whole | {
        "num_threads": result.num_threads,
        "rows": [_row_data(row) for row in result.rows],
        "clipping": [asdict(row) for row in result.clipping],
        "claims": [asdict(claim) for claim in judge_claims(result)],
    }


def _row_data(row: PrecisionRow) -> dict[str, Any]:
    data = {name: value for name, value in vars(row).items() if name not in ("variant", "quality", "speed")}
    return {
        **_variant_data(row.variant),
        **data,
        "quality": asdict(row.quality) if row.quality else None,
        "speed": asdict(row.speed) if row.speed else None,
    }


def _variant_data(variant: Variant) -> dict[str, Any]:
    method = None
    if variant.method is not None:
        name, options = variant.method
        method = {"method": name, **{key: str(value) for key, value in options.items()}}
    return {"name": variant.name, "settings": dict(variant.settings), "made_by": method}


def _table(title: str) -> Table:
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("precision", no_wrap=True)
    return table
