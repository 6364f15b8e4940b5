"""Page 9: one kernel, request by request: which line, which lanes, which sectors and banks, at what price.

Read next: `viz/figures/kernel_lanes.py`.
"""

from __future__ import annotations

from collections.abc import Sequence

import streamlit as st

from minivllm.trace.kernel_events import FaultFound, KernelHeader, KernelTrace
from viz import kernel_stage, links
from viz.about import about
from viz.figures.common import PHONE
from viz.figures.kernel_blocks import has_blocks, kernel_blocks
from viz.figures.kernel_captions import COLUMN
from viz.figures.kernel_lanes import kernel_lanes
from viz.figures.kernel_source import kernel_source
from viz.figures.kernel_totals import kernel_totals
from viz.judge_words import as_judged
from viz.kernel_steps import Follow, Played, choices, faults, microscope_jumps, played
from viz.language import N_, _, sentences
from viz.loading import KernelRun
from viz.plain import plain
from viz.scene import Scene

TITLE = N_("Kernel microscope")
URL = "microscope"
TEASER = N_("One kernel, line by line: what the lanes of a warp ask memory for.")

INTRODUCTION = N_(
    "One moment of the player is one **request**: an instruction with which the 32 **lanes** of a warp go to "
    "memory together. The frame in the source marks the expression that made the request. Global memory "
    "moves whole **sectors** of 32 bytes, also the bytes that no lane asked for (hatched); shared memory has "
    "32 **banks**, and two different words of one bank take two turns."
)
TRY = N_(
    "Follow the lines from the lanes: do neighbours go to neighbours? Jump to the worst coalescing, and find "
    "in the framed expression the index that causes it. Then watch an inner loop: which of its requests go "
    "to shared memory, and from which array did those tiles come?"
)
ABOUT_BLOCKS = N_(
    "An array of blocks is reached through a **block table**: the picture of the blocks shows which lane "
    "goes to which physical block, and to which row of it."
)
LEGEND = N_("Lanes: blue reads, orange writes, pink changes atomically; the title says it, too.")
ORDER = N_(
    "The microscope runs warps one after another; a GPU may run them in any order between two barriers."
)
NO_FAULT = N_("No race, no read of memory that was never written, nothing out of bounds.")
WITHOUT = N_(
    "A **trace of a kernel** holds every request that its warps made to memory. This makes one, on any "
    "machine, with or without a GPU; open it here, and step through it."
)
HOW = """minivllm microscope flash-attention-2 --trace kernel.jsonl
minivllm dashboard kernel.jsonl"""


def page(run: KernelRun) -> None:
    introduction = st.container()
    with st.container(key="chosen", horizontal=True, vertical_alignment="center"):
        number = choose_kernel(run)
        trace = run.traces[number]
        follow = _follow(trace)
        found = faults(trace)
        is_right = not found and trace.is_whole  # faults are told at the end
        st.caption(sentences([_sizes(trace.header), *([_(NO_FAULT)] if is_right else [])]))
    parts = [_(INTRODUCTION), _(TRY)]
    if any(has_blocks(array) for array in trace.header.arrays):
        parts.append(_(ABOUT_BLOCKS))
    with introduction:
        about(" ".join(parts))
    _tell_faults(found)
    shown = played(trace, follow)
    if shown.left_out:
        st.info(
            _(
                "The first {shown:,} of {all:,} requests are played: follow one thread block or one "
                "warp to see the others."
            ).format(shown=len(shown.steps), all=len(shown.steps) + shown.left_out)
        )

    def scenes() -> list[Scene]:
        return microscope_scenes(trace, shown, follow)

    name = f"microscope-{follow.name}"
    jumps = microscope_jumps(trace, shown.accesses)
    kernel_stage.show(f"{run.fingerprint}-{number}", name, scenes, jumps, shown.steps)


def microscope_scenes(trace: KernelTrace, shown: Played, follow: Follow) -> list[Scene]:
    """All pictures of the page; the source for wide screens and for narrow ones."""
    header, accesses = trace.header, shown.accesses
    whose = "" if follow.block is None else follow.words
    lanes, totals = kernel_lanes(header, accesses), kernel_totals(header, accesses, whose)
    lanes[-1].notes.append(("words", _(LEGEND)))
    totals.notes.append(("words", _(ORDER)))
    # Two columns: the source stands on the left of what its line does.
    return [
        kernel_source(header, accesses, COLUMN, "wide"),
        kernel_source(header, accesses, PHONE, "narrow"),
        totals,
        *lanes,
        *kernel_blocks(header, accesses),
    ]


def choose_kernel(run: KernelRun) -> int:
    """Which kernel of the file; asked only if there are several."""
    kernels = {str(number): f"{number + 1}. {trace.header.kernel}" for number, trace in enumerate(run.traces)}
    return int(links.select("kernel", kernels, _("Kernel")))


def _follow(trace: KernelTrace) -> Follow:
    found = {item.name: item for item in choices(trace)}
    words = {name: item.words for name, item in found.items()}
    return found[links.select("follow", words, _("Follow"))]


def _tell_faults(found: Sequence[FaultFound]) -> None:
    """One box with the first of each kind, so that the picture stays in sight; behind it, all of them."""
    first: dict[str, str] = {}
    lines = []
    for fault in found:
        lines.append(f"**{plain(as_judged(fault.kind))}**: {plain(as_judged(fault.message))}")
        first.setdefault(fault.kind, lines[-1])
    if found:
        st.error("  \n".join(first.values()))
    if len(found) > len(first):
        with st.expander(_("All {count:,} faults").format(count=len(found))):
            st.markdown("\n".join(f"- {line}" for line in lines))


def _sizes(header: KernelHeader) -> str:
    """What was launched."""
    told = _(
        "{title} · {grid} thread blocks of {block} threads, {shared_bytes:,} bytes of shared memory each."
    )
    return told.format(
        title=plain(header.title),
        grid=" × ".join(map(str, header.grid)),
        block=" × ".join(map(str, header.block)),
        shared_bytes=header.shared_bytes,
    )
