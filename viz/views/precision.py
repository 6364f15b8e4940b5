"""Page "Precision": weights before and after rounding, grid by grid, and what each precision costs.

Read next: `viz/figures/precision.py`.
"""

from __future__ import annotations

from collections.abc import Callable

import streamlit as st

from minivllm.text import printable
from minivllm.trace.precision_events import MatrixOnGrids, VariantMeasured
from viz import kernel_stage, links
from viz.about import about
from viz.engine_words import as_named
from viz.figures.precision import precision_scenes
from viz.language import N_, _, sentences
from viz.loading import PrecisionRun
from viz.plain import plain
from viz.player import Jump
from viz.refusal_words import refused_in_words

TITLE = N_("Precision")
URL = "precision"
TEASER = N_("Weights in 8, 4 and 2 bits: where the error sits, and what it costs.")

INTRODUCTION = N_(
    "A quantised weight is a **code**: a step on the **grid** of its group, (code − zero) · scale. One "
    "moment of the player is one grid, finest first: the slider goes over **bits and group sizes**. Fewer "
    "bits make steps wider; smaller groups fit their steps to fewer weights, and pay with more scales."
)
TRY = N_(
    "Go from 4 bits to 2 and watch small weights fall to nothing. Then compare groups of 32 with a whole row "
    "at the same bits. And look at the **salient channels**: their inputs are so large that their errors "
    "count for more than their number, which is what AWQ scales them up for."
)
TABLE = N_("The whole model in each precision")
LEGEND = N_(
    "KL to float32, in thousandths of a nat a token, where texts are read (prompts) and written (decoding); "
    "*kept*: tokens that greedy decoding chooses as float32 does."
)
WITHOUT = N_(
    "A **comparison of precisions** quantises a model in a dozen ways, measures each, and records how some "
    "of its matrices look on every grid. To get one:"
)
HOW = "minivllm compare precision --trace precision.jsonl"


def page(run: PrecisionRun) -> None:
    trace = run.trace
    shown = [found for found in trace.matrices if found.grids]
    if shown:
        about(f"{_(INTRODUCTION)} {_(TRY)}")
        number = _choose(shown)
        found = shown[number]
        matrix = found.matrix
        st.caption(
            _(
                "{name} of {model}, {outputs:,} × {inputs:,}: a corner of it, rounded to the nearest on "
                "asymmetric grids; errors are those of the whole matrix, products with its inputs on "
                "{text}."
            ).format(
                name=plain(as_named(matrix.name)),
                model=plain(trace.header.model),
                outputs=matrix.num_outputs,
                inputs=matrix.num_inputs,
                text=plain(as_named(trace.header.text)),
            )
        )
        kernel_stage.show(
            f"{run.fingerprint}-{number}",
            "precision",
            lambda: precision_scenes(found),
            precision_jumps(found),
            list(range(len(found.grids))),
        )
    if trace.variants:
        _table(run)


def precision_jumps(found: MatrixOnGrids) -> list[Jump]:
    """The first grid of each number of bits, and what checkpoints of 4 bits mostly have."""
    steps = {(grid.bits, grid.group_size): step for step, grid in enumerate(found.grids)}
    bits = sorted({grid.bits for grid in found.grids}, reverse=True)
    first = {count: min(step for (b, _), step in steps.items() if b == count) for count in bits}
    usual = steps.get((4, 128))
    return [Jump(_("{count} bits").format(count=count), first[count]) for count in bits] + (
        [] if usual is None else [Jump(_("4 bits, groups of 128"), usual)]
    )


def _choose(shown: list[MatrixOnGrids]) -> int:
    names = {str(number): printable(as_named(found.matrix.name)) for number, found in enumerate(shown)}
    return int(links.select("matrix", names, _("Matrix")))


COLUMNS: dict[str, Callable[[VariantMeasured], str]] = {
    N_("Precision"): lambda row: plain(row.name),
    N_("Weights, MiB"): lambda row: _number(row.weight_bytes, 2**-20, 1),
    N_("Cache, bytes a token"): lambda row: _number(row.cache_bytes_per_token, 1, 0),
    N_("Perplexity"): lambda row: _number(row.perplexity, 1, 3),
    N_("KL, prompts"): lambda row: _number(row.kl_prompts, 1e3, 3),
    N_("KL, decoding"): lambda row: _number(row.kl_decoding, 1e3, 3),
    N_("Kept"): lambda row: "–" if row.kept is None else f"{row.kept:.2%}",
}
SPEEDS: dict[str, Callable[[VariantMeasured], str]] = {
    N_("Prompt, tok/s"): lambda row: _number(row.prompt_tokens_per_second, 1, 0),
    N_("One stream, tok/s"): lambda row: _number(row.one_stream_tokens_per_second, 1, 0),
    N_("Batch, tok/s"): lambda row: _number(row.batch_tokens_per_second, 1, 0),
}


def _table(run: PrecisionRun) -> None:
    header, variants = run.trace.header, run.trace.variants
    st.header(_(TABLE))
    columns = COLUMNS | (SPEEDS if header.speed_model else {})
    rows = [row for row in variants if not row.skipped]
    st.table(
        {_(name): [show(row) for row in rows] for name, show in columns.items()},
        border="horizontal",
        hide_index=True,
    )
    for row in variants:
        if row.skipped:
            st.caption(
                _("{name} was left out: {reason}.").format(
                    name=plain(row.name), reason=plain(refused_in_words(row.skipped))
                )
            )
    told = [
        _("{model} on {text}.").format(model=plain(header.model), text=plain(as_named(header.text))),
        _(LEGEND),
    ]
    if header.speed_model:
        told.append(_("Speeds are those of the model *{name}*.").format(name=plain(header.speed_model)))
    st.caption(sentences(told))


def _number(value: float | None, factor: float, digits: int) -> str:
    return "–" if value is None else f"{value * factor:,.{digits}f}".replace("-", "−")
