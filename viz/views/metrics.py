"""Page 7: how fast the run was for its users, and how well it used its memory and its batches.

Read next: `viz/measures.py`.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Callable
from html import escape
from typing import NamedTuple

import streamlit as st

from minivllm.trace.summary import Percentiles, format_seconds
from viz.charts import latencies as latency_charts
from viz.charts import over_time
from viz.charts.style import Chart
from viz.loading import Run
from viz.measures import batch_use, latencies
from viz.palette import DARK, LIGHT

TITLE = "Metrics"
URL = "metrics"
TEASER = "The numbers by which a serving engine is judged, each with its distribution."

INTRODUCTION = (
    "A serving engine is judged twice. **Its users** feel latencies: how long until the first token "
    "(**TTFT**), how long between two (**inter-token latency**), how long for everything (**end to end**). "
    "**Its owner** counts tokens per second, and how much of the memory and of each batch is used. Look "
    "for where the two disagree: a fuller batch gives more tokens per second, and each of them a little "
    "later."
)
TRY = (
    "Try this: find the time at which the most requests wait, and read off the other charts what was short "
    "at that moment: blocks in the pool, or slots in the batch?"
)
VIRTUAL = "Times are those of a **simulated** clock: no second of it has passed anywhere."
NOTHING = "Nothing of this kind was measured in this run."


class Panel(NamedTuple):
    """One chart, its title, what it says, and its numbers."""

    title: str
    sentence: str
    numbers: str
    draw: Callable[[int], Chart] | None
    """None if there is nothing to draw."""


def page(run: Run) -> None:
    st.markdown(INTRODUCTION)
    if run.timeline.trace.header.clock != "wall":
        st.markdown(VIRTUAL)
    st.subheader("What users feel")
    _show(run, "latencies", _latency_panels(run))
    st.subheader("What the owner counts")
    st.markdown(TRY)
    _show(run, "over time", _time_panels(run))


def _latency_panels(run: Run) -> list[Panel]:
    found, summary = latencies(run.timeline), run.summary
    kinds: list[tuple[str, str, list[float], Percentiles, str]] = [
        (
            "Time to first token (TTFT)",
            "From a request's arrival to the end of the step that sampled its first token: the queue and "
            "the prefill.",
            found.ttft,
            summary.ttft,
            "prefill",
        ),
        (
            "Inter-token latency",
            "From one token of a request to its next. A long prefill, or a preemption, of others shows here.",
            found.inter_token,
            summary.inter_token,
            "decode",
        ),
        (
            "End-to-end latency",
            "From a request's arrival until its last token. Aborted and unfinished requests are left out.",
            found.end_to_end,
            summary.end_to_end,
            "filled",
        ),
        (
            "Queue time",
            "From a request's arrival to the start of the first step that computes some of its tokens.",
            found.queue_time,
            summary.queue_time,
            "preempted",
        ),
    ]

    def panel(title: str, sentence: str, values: list[float], marks: Percentiles, fill: str) -> Panel:
        draw = (lambda theme: latency_charts.distribution(values, theme, fill)) if values else None
        return Panel(title, sentence, latency_charts.in_words(marks), draw)

    return [panel(*kind) for kind in kinds]


def _time_panels(run: Run) -> list[Panel]:
    timeline, summary = run.timeline, run.summary
    header, records, use = timeline.trace.header, timeline.records, batch_use(timeline)
    speed = summary.output_tokens_per_second
    parts = over_time.time_by_part(summary.step_seconds)
    whole = sum(parts.values())
    computed = use.prefill_tokens + use.decode_tokens + use.padding_tokens
    padding = f", padding {use.padding_share:.1%}" if use.padding_tokens else ""
    return [
        Panel(
            "Throughput",
            "Output tokens of all requests together, in a second, counted when the caller gets them.",
            f"Mean {speed:,.1f} tokens/s in {format_seconds(summary.duration_seconds)}."
            if speed
            else NOTHING,
            (lambda theme: over_time.throughput(timeline, theme)) if speed else None,
        ),
        Panel(
            "Requests running and waiting",
            "Running requests use blocks; waiting ones use none, and keep their position in the queue.",
            f"At most {max(r.num_running for r in records):,} running and "
            f"{max(r.num_waiting for r in records):,} waiting.",
            lambda theme: over_time.queues(timeline, theme),
        ),
        Panel(
            "Use of the pool",
            "Physical blocks that some request uses, of all that there are. When the pool is full, requests "
            "are preempted or wait.",
            f"Peak {summary.peak_used_blocks:,} of {header.num_blocks:,} blocks "
            f"({summary.peak_used_blocks / header.num_blocks:.0%}), mean {summary.mean_used_blocks:,.1f} "
            "blocks.",
            lambda theme: over_time.pool(timeline, theme),
        ),
        Panel(
            "Batch occupancy",
            "Sequences of which a step computes at least one token; the weights are read once for all of "
            "them.",
            f"Mean {use.mean_sequences:,.1f} of at most {header.max_num_seqs:,} sequences, averaged over "
            "steps.",
            lambda theme: over_time.batch(timeline, theme),
        ),
        Panel(
            "Where the time of a step goes",
            "Seconds of all steps together. The time between two steps is not counted.",
            f"All steps together took {format_seconds(whole)}." if whole > 0 else NOTHING,
            (lambda theme: over_time.step_time(summary.step_seconds, theme)) if whole > 0 else None,
        ),
        Panel(
            "Tokens that went through the model",
            "Prefill: prompts, and what is computed again. Decode: one token for each sequence and step. "
            "Padding: computed only to make a static batch rectangular.",
            f"{computed:,} tokens{padding}." if computed else NOTHING,
            (lambda theme: over_time.tokens(use, theme)) if computed else None,
        ),
    ]


def _show(run: Run, name: str, panels: list[Panel]) -> None:
    """Two charts side by side where there is room, below each other where there is not."""
    theme = DARK if st.context.theme.type == "dark" else LIGHT
    pictures = _pictures(run.fingerprint, name, theme, [panel.draw for panel in panels])
    for row in range(0, len(panels), 2):
        for column, panel, picture in zip(
            st.columns(2, gap="large"), panels[row : row + 2], pictures[row : row + 2], strict=False
        ):
            with column:
                st.markdown(f"**{panel.title}**")
                if picture:
                    words = escape(f"{panel.title}. {panel.numbers}", quote=True)
                    st.html(f'<img style="width:100%;max-width:44rem" alt="{words}" src="{picture}">')
                st.caption(f"{panel.numbers} {panel.sentence}")


@st.cache_resource(max_entries=16, show_spinner="Drawing …")
def _pictures(
    fingerprint: str, name: str, theme: int, _draws: list[Callable[[int], Chart] | None]
) -> list[str | None]:
    """The charts as addresses that hold the whole picture."""
    return [
        f"data:image/svg+xml;base64,{b64encode(draw(theme).svg().encode()).decode()}" if draw else None
        for draw in _draws
    ]
