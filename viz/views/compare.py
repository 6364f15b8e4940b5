"""Page 8: two runs on one clock, for example the same requests batched in two ways.

Read next: `viz/figures/comparison.py`.
"""

from __future__ import annotations

from pathlib import Path

import streamlit as st

from minivllm.trace.timeline import Phase, Timeline
from viz import empty, figures, loading, stage
from viz.about import about
from viz.engine_words import in_words_of_the_reader
from viz.figures.common import PHONE, WIDE
from viz.figures.moments import Moment, merge, steps_of_first
from viz.language import N_, _, counted
from viz.loading import Run
from viz.plain import plain
from viz.player import Jump
from viz.second_trace import second_trace
from viz.side_by_side import side_by_side

TITLE = N_("Compare")
URL = "compare"
TEASER = N_("The same requests under two policies, on one clock.")

INTRODUCTION = N_(
    "Two runs of the same requests take different steps, but they share a **clock**. The open trace is on "
    "top; x is time, on the same scale in both, and the red line is the same **moment** in both. One step "
    "of the player goes to the next moment at which a step of *either* run ends. A request has the same row, "
    "letter and colour in both."
)
TRY_PARKED = N_(
    "Hatched is **waste**: a request that is **parked** keeps its slot in the batch and computes nothing, "
    "because its batch ends with the slowest; **padding** (hatched in the bars) is computed and thrown away. "
    "Jump to the first parked request: which request uses that slot in the other run?"
)
TRY_OTHER = N_(
    "Jump to the end of the faster run: what does the other still compute, and which requests wait?"
)
WITHOUT = N_(
    "Choose a second trace to put beside this one: the same requests under another policy, or a smaller pool."
)
STRANGERS = N_(
    "The two runs have no request in common (requests are matched by their ids), so only the clock is shared."
)
OTHERS = N_(
    "**These runs did not serve the same requests**, so their numbers say nothing about the two policies: "
    "{what}."
)
CLOCKS = N_("One clock is simulated and the other is real: their seconds are not the same seconds.")


def page(run: Run) -> None:
    told = st.container()  # what to look for is known once there are two
    other = second_trace(run, loading.open_run, _ask)
    with told:
        about(_(INTRODUCTION) if other is None else f"{_(INTRODUCTION)}\n\n{_(what_to_try(run, other))}")
    if other is not None:
        both(run, other)


def _ask() -> None:
    st.info(_(WITHOUT))
    empty.offer(URL)


def both(run: Run, other: Run) -> None:
    """Two runs side by side. The page has already shown the first one's warnings."""
    for warning in other.timeline.trace.warnings:
        st.warning(f"{plain(other.path.name)}: {plain(in_words_of_the_reader(warning))}")
    first, second = run.timeline, other.timeline
    if not set(first.spans) & set(second.spans):
        st.warning(_(STRANGERS))
    elif different := differences(first, second):
        st.warning(_(OTHERS).format(what=_("; ").join(different)))
    if first.trace.header.clock != second.trace.header.clock:
        st.warning(_(CLOCKS))
    labels = side_labels(run.path, other.path)
    moments = merge(first, second)

    def scenes() -> list[figures.Scene]:
        sides = [figures.Side(labels[0], first), figures.Side(labels[1], second)]
        return [
            scene
            for width, screen in ((WIDE, "wide"), (PHONE, "narrow"))
            for scene in figures.comparison(sides[0], sides[1], width, screen)
        ]

    stage.show(
        run,
        f"compare-{other.fingerprint}",
        scenes,
        _jumps(run, other, moments),
        steps_of_first(moments, first),
    )
    rows = side_by_side(run.timeline, run.summary, other.timeline, other.summary)
    st.table(
        {
            _("Number"): [row.name for row in rows],
            plain(labels[0]): [row.first for row in rows],
            plain(labels[1]): [row.second for row in rows],
            _("second : first"): [row.ratio for row in rows],
        },
        border="horizontal",
        hide_index=True,
    )
    with st.expander(_("What these numbers say")):
        st.markdown("\n".join(f"- **{row.name}**: {row.sentence}" for row in rows))


def what_to_try(run: Run, other: Run) -> str:
    """What there is to see in these two, in English."""
    all_spans = [spans for side in (run, other) for spans in side.timeline.spans.values()]
    is_any_parked = any(span.phase is Phase.PARKED for spans in all_spans for span in spans)
    return TRY_PARKED if is_any_parked else TRY_OTHER


def differences(first: Timeline, second: Timeline) -> list[str]:
    """In what the requests of two runs differ, in words; empty if both served the same ones."""
    asked = [_asked(first), _asked(second)]
    alone = [len(own.keys() - other.keys()) for own, other in (asked, asked[::-1])]
    both = asked[0].keys() & asked[1].keys()
    prompts = sum(asked[0][name][0] != asked[1][name][0] for name in both)
    limits = sum(asked[0][name][0] == asked[1][name][0] and asked[0][name] != asked[1][name] for name in both)
    told = [
        counted("{count} request is only in the first", "{count} requests are only in the first", alone[0]),
        counted("{count} request is only in the second", "{count} requests are only in the second", alone[1]),
        counted("{count} request has another prompt", "{count} requests have other prompts", prompts),
        counted(
            "{count} request may become longer in one of them",
            "{count} requests may become longer in one of them",
            limits,
        ),
    ]
    return [words for words, count in zip(told, (*alone, prompts, limits), strict=True) if count]


def _asked(timeline: Timeline) -> dict[str, tuple[tuple[int, ...], int]]:
    """Request → its prompt, and how long its output may be."""
    found: dict[str, tuple[tuple[int, ...], int]] = {}
    for sequence in timeline.sequences.values():
        prompt = tuple(sequence.token_ids[: sequence.num_prompt_tokens])
        found.setdefault(sequence.request, (prompt, sequence.max_tokens))
    return found


def side_labels(first: Path, second: Path) -> tuple[str, str]:
    """What the two are called: their files' names, with as many folders as it takes to tell them apart."""
    if first == second:
        return _("{name} (first)").format(name=first.name), _("{name} (second)").format(name=second.name)
    for count in range(1, max(len(first.parts), len(second.parts)) + 1):
        names = ["/".join(path.parts[-count:]) for path in (first, second)]
        if names[0] != names[1]:
            break
    return names[0], names[1]


def _jumps(run: Run, other: Run, moments: list[Moment]) -> list[Jump]:
    """The places worth seeing when two runs are compared."""
    sides = (run.timeline, other.timeline)

    def first(side: int, step: int | None) -> int | None:
        """The first moment at which a run is in a step."""
        if step is None:
            return None
        return next(index for index, moment in enumerate(moments) if moment.steps[side] >= step)

    def first_parked(side: int) -> int | None:
        parked = [s.first for spans in sides[side].spans.values() for s in spans if s.phase is Phase.PARKED]
        return first(side, min(parked, default=None))

    def first_padded(side: int) -> int | None:
        return first(side, next((r.step for r in sides[side].records if r.num_padding_tokens), None))

    def earliest(places: list[int | None]) -> int | None:
        return min((place for place in places if place is not None), default=None)

    ends = [max(i for i, m in enumerate(moments) if m.steps[side] < sides[side].num_steps) for side in (0, 1)]
    return [
        Jump(_("first padding"), earliest([first_padded(0), first_padded(1)])),
        Jump(_("first parked request"), earliest([first_parked(0), first_parked(1)])),
        Jump(_("end of the faster run"), min(ends)),
        Jump(_("end of the slower run"), max(ends)),
    ]
