"""Page 6: how fast a step could be at most, and what limits it.

Read next: `viz/figures/roofline.py`.
"""

from __future__ import annotations

import streamlit as st

from minivllm.trace.events import HardwareShape
from minivllm.trace.timeline import Phase
from viz import figures, stage
from viz.devices import DEVICES
from viz.figures.log_axis import engineering
from viz.figures.roofline import Roof, roofline_captions
from viz.figures.step_work import PhaseWork, timed_work
from viz.language import N_
from viz.loading import Run
from viz.plain import plain
from viz.player import Jump

TITLE = N_("Roofline")
URL = "roofline"
TEASER = N_("What limits a step: the arithmetic, or the reading of memory.")

INTRODUCTION = (
    "A step must **compute** (FLOP: one multiplication or addition) and must **read memory**: the weights "
    "once, and the keys and values of every sequence. How many FLOP it does for each byte is its "
    "**arithmetic intensity**. Where that is low, memory sets the pace: the slope. Where it is high, "
    "arithmetic does: the flat roof. They meet at the **ridge point**. A prompt brings many tokens to the "
    "weights that were read, so prefill lies to the right; decode brings one token per sequence, so it "
    "lies to the left, and moves to the right with every sequence in the batch."
)
TRY = (
    "Jump to the largest decode batch, then to the smallest: the same weights were read for both. In a "
    "step that does both, prefill and decode share one measured time, so each looks slower than it would "
    "be alone."
)
NO_MODEL = (
    "This trace does not say which shape its model has, so its FLOP and bytes cannot be counted. Record it "
    "with a model whose shape the header knows, as `minivllm demo` does."
)
NO_TIMES = "No step of this trace has a measured time of its model, so there is no FLOP/s to draw."
NO_HARDWARE = (
    "This trace does not say **on what it ran**: its header has no peak FLOP/s and no memory bandwidth. "
    "Without them there are points, and no roof. You can hold the run against the published numbers of a "
    "device; that does not mean that it ran there."
)
NOT_ITS_OWN = (
    "The roof is that of a device which **you chose**, and not of the one on which this run took place."
)
NO_ROOF = "no roof"


def page(run: Run) -> None:
    st.markdown(INTRODUCTION)
    header = run.timeline.trace.header
    if header.model is None:
        st.info(NO_MODEL)
        return
    work = timed_work(run.timeline)
    if not work:
        st.info(NO_TIMES)
        return
    hardware = header.hardware or _chosen()
    if hardware is not None:
        st.markdown(_about(hardware))
        if header.hardware is None:
            st.caption(NOT_ITS_OWN)
    st.markdown(TRY)
    if header.clock != "wall":
        st.caption("Times are those of a simulated clock.")

    def scenes() -> list[figures.Scene]:
        timeline = run.timeline
        told = roofline_captions(timeline, work, hardware)
        return [figures.roofline(timeline, work, hardware), figures.decode_intensity(timeline, work, told)]

    stage.show(run, f"roofline-{hardware.name if hardware else NO_ROOF}", scenes, _jumps(work))


def _chosen() -> HardwareShape | None:
    """The device against which the reader wants to hold a run that does not say where it ran."""
    st.info(NO_HARDWARE)
    names = {device.name: device for device in DEVICES}
    kept = st.session_state.get("device")
    # Its own key would be forgotten when the page changes; ours is kept.
    name = st.selectbox(
        "Draw the roof of",
        list(names),
        list(names).index(kept) if kept in names else None,
        format_func=lambda item: f"{item}: {_numbers(names[item])}",
        placeholder=NO_ROOF,
        width=640,
    )
    st.session_state.device = name
    return names[name] if name else None


def _numbers(hardware: HardwareShape) -> str:
    return f"{engineering(hardware.peak_flops)}FLOP/s, {engineering(hardware.memory_bandwidth)}B/s"


def _about(hardware: HardwareShape) -> str:
    """The device in a sentence."""
    roof = Roof(hardware)
    count = f"{hardware.num_devices} × " if hardware.num_devices > 1 else ""
    each = ", each" if hardware.num_devices > 1 else ""
    return (
        f"The roof: **{count}{plain(hardware.name)}**{each} {_numbers(hardware)}. Its ridge point lies at "
        f"**{roof.ridge:,.3g} FLOP per byte**: a step that does less for each byte waits for memory."
    )


def _jumps(work: list[PhaseWork]) -> list[Jump]:
    """The places worth seeing."""
    decode = [part for part in work if part.phase is Phase.DECODE]
    prefill = [part for part in work if part.phase is Phase.PREFILL]
    smallest = min(decode, key=lambda part: part.num_sequences, default=None)
    largest = max(decode, key=lambda part: part.num_sequences, default=None)
    longest = max(prefill, key=lambda part: part.num_tokens, default=None)
    places = [
        ("largest prefill", longest),
        ("largest decode batch", largest),
        ("smallest decode batch", smallest),
        ("fastest step", max(work, key=lambda part: part.achieved)),
    ]
    return [Jump(label, part.step if part else None) for label, part in places]
