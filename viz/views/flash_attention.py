"""Page 10: attention tile by tile: the score matrix that is never written, the running softmax, the bytes.

Read next: `viz/figures/kernel_tiles.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import streamlit as st

from minivllm.trace.kernel_events import KernelTrace
from viz import empty, kernel_stage, links, loading
from viz.about import about
from viz.figures.kernel_matrix import kernel_matrix, piece_captions
from viz.figures.kernel_scores import kernel_scores
from viz.figures.kernel_softmax import LATE, is_told_late, kernel_softmax, rescaled
from viz.figures.kernel_tiles import Piece, pieces
from viz.figures.kernel_traffic import kernel_shared, kernel_traffic
from viz.kernel_side_by_side import SENTENCES, column, same_sizes, table
from viz.language import N_, _, sentences
from viz.loading import KernelRun
from viz.plain import plain
from viz.player import Jump
from viz.scene import Scene
from viz.second_trace import second_trace
from viz.views import microscope
from viz.views.compare import side_labels
from viz.views.microscope import choose_kernel

TITLE = N_("FlashAttention")
URL = "flash_attention"
TEASER = N_("Attention tile by tile, and the scores that are never written.")

MOST_PIECES = 2000

INTRODUCTION = N_(
    "One moment of the player is one **tile**: some queries and some keys, whose scores are computed, used "
    "and forgotten. The softmax of a row is continued from tile to tile: a larger **maximum** rescales the "
    "old **sum** and output (marked). So nothing of the N × N matrix ever goes to global memory."
)
TRY = N_(
    "In which order are the tiles computed, down or across? That is what tells FlashAttention 1 from 2: "
    "compare how often queries come from global memory, and how often the output goes back."
)
TRY_RESCALE = N_("Then find the first rescale, and see which row it is.")
INTRODUCTION_NAIVE = {
    "writes": N_(
        "This kernel is a part of **naive attention**: all N × N scores are in global memory. One moment of "
        "the player is what one thread block writes of them."
    ),
    "reads": N_(
        "This kernel is a part of **naive attention**: all N × N scores are in global memory. One moment of "
        "the player is what one thread block reads of them."
    ),
}
TRY_NAIVE = N_(
    "Watch the matrix fill up, also where no query may look; then choose the next kernel, which has to "
    "bring all of it back. The dashed bar is what the scores take: how many times does it go to and fro?"
)
NOT_ATTENTION = N_(
    "This kernel notes no tiles and has no array `scores`, so there is no score matrix to show. "
    "The page **Kernel microscope** shows every request that it makes."
)
BESIDE = N_(
    "Choose a second trace to put beside this one: naive attention, or FlashAttention 1 beside 2. Record "
    "both with the same sizes, for example:"
)
HOW = """minivllm microscope naive-attention --shape tokens=64 --trace naive.jsonl
minivllm microscope flash-attention-2 --shape tokens=64 --trace flash2.jsonl"""
OTHER_SIZES = N_(
    "The two were recorded with different sizes, so their bytes are not comparable: see `--shape`."
)


def page(run: KernelRun) -> None:
    number = choose_kernel(run)
    trace = run.traces[number]
    found = pieces(trace)
    if found:
        _play(run, number, trace, found)
    else:
        st.info(_(NOT_ATTENTION))
        empty.offer(URL)
        links.page_link(microscope.URL, _("Go to: {page}").format(page=_(microscope.TITLE)))
    _side_by_side(run)


def _play(run: KernelRun, number: int, trace: KernelTrace, found: Sequence[Piece]) -> None:
    is_tiled = found[0].verb == "computes"
    last = LATE if is_told_late(found) else TRY_RESCALE
    told = [INTRODUCTION, TRY, last] if is_tiled else [INTRODUCTION_NAIVE[found[0].verb], TRY_NAIVE]
    about(sentences(_(text) for text in told))
    shown = found[:MOST_PIECES]
    if len(found) > len(shown):
        st.info(
            _("The first {shown:,} of {found:,} steps are played; the table counts all of them.").format(
                shown=len(shown), found=len(found)
            )
        )
    name = f"{plain(trace.header.kernel)} · {plain(trace.header.title)}"
    st.caption(_("{sentence}.").format(sentence=name))
    kernel_stage.show(
        f"{run.fingerprint}-{number}",
        "flash-attention",
        partial(attention_scenes, trace, shown),
        attention_jumps(shown),
        [piece.begin for piece in shown],
    )


def attention_scenes(trace: KernelTrace, found: Sequence[Piece]) -> list[Scene]:
    """All pictures of the page."""
    told = piece_captions(found)
    shared = kernel_shared(trace, found, told)
    return [
        kernel_matrix(trace.header, found, told),
        *kernel_scores(found, told),
        *([kernel_softmax(found, told)] if any(piece.updates for piece in found) else []),
        *([shared] if shared else []),
        kernel_traffic(trace, found, told),
    ]


def attention_jumps(found: Sequence[Piece]) -> list[Jump]:
    """The places worth seeing when attention is computed."""
    counts = [sum(marks) for marks in rescaled(found)]
    jumps = []
    if any(piece.updates for piece in found) and not is_told_late(found):
        jumps = [
            Jump(_("first rescale"), next((step for step, count in enumerate(counts) if count), None)),
            Jump(_("most rescales"), max(range(len(found)), key=counts.__getitem__) if any(counts) else None),
        ]
    blocks = [step for step, piece in enumerate(found) if step and piece.block != found[step - 1].block]
    heads = [step for step, piece in enumerate(found) if piece.panel != found[0].panel]
    jumps.append(Jump(_("second thread block"), blocks[0] if blocks else None))
    if heads:
        jumps.append(Jump(_("second head"), heads[0]))
    return jumps


def _side_by_side(run: KernelRun) -> None:
    """Bytes of this file's kernels, or of this file and a second one."""
    st.header(_("Side by side"))
    other = second_trace(run, loading.open_kernel_run, _ask)
    if other is None:
        columns = [column(plain(f"{n}. {t.header.kernel}"), [t]) for n, t in enumerate(run.traces, 1)]
        if len(columns) > 1:
            columns.append(column(_("together"), run.traces))
    else:
        labels = side_labels(run.path, other.path)
        columns = [column(plain(labels[0]), run.traces), column(plain(labels[1]), other.traces)]
        if not same_sizes(run.traces, other.traces):
            st.warning(_(OTHER_SIZES))
    st.table(table(columns, with_ratio=other is not None), border="horizontal", hide_index=True)
    with st.expander(_("What these numbers say")):
        st.markdown("\n".join(f"- **{_(name)}**: {_(sentence)}" for name, sentence in SENTENCES.items()))


def _ask() -> None:
    st.markdown(_(BESIDE))
    st.code(HOW, language="shell")
