"""Page 6: how fast a step could be at most, and what limits it.

Read next: `viz/figures/roofline.py`.
"""

from __future__ import annotations

import streamlit as st

from minivllm.trace.events import HardwareShape
from minivllm.trace.timeline import Phase
from viz import empty, figures, links, stage
from viz.about import about
from viz.devices import DEVICES
from viz.engine_words import as_named
from viz.figures.log_axis import engineering
from viz.figures.roofline import Roof, roofline_captions
from viz.figures.step_work import PhaseWork, timed_work
from viz.language import N_, _
from viz.loading import Run
from viz.plain import plain
from viz.player import Jump

TITLE = N_("Roofline")
URL = "roofline"
TEASER = N_("What limits a step: the arithmetic, or the reading of memory.")

INTRODUCTION = N_(
    "A step must **compute** (FLOP: one multiplication or addition) and must **read memory**: the weights "
    "once, and the keys and values of every sequence. How many FLOP it does for each byte is its "
    "**arithmetic intensity**. Where that is low, memory sets the pace: the slope. Where it is high, "
    "arithmetic does: the flat roof. They meet at the **ridge point**. A prompt brings many tokens to the "
    "weights that were read, so prefill lies to the right; decode brings one token per sequence, so it "
    "lies to the left, and moves to the right with every sequence in the batch."
)
TRY = N_(
    "Jump to the largest decode batch, then to the smallest: the same weights were read for both. In a "
    "step that does both, prefill and decode share one measured time, so each looks slower than it would "
    "be alone."
)
NO_MODEL = N_(
    "This trace does not say which shape its model has, so its FLOP and bytes cannot be counted. Record it "
    "with a model whose shape the header knows, as `minivllm demo` does."
)
NO_TIMES = N_("No step of this trace has a measured time of its model, so there is no FLOP/s to draw.")
NO_HARDWARE = N_(
    "This trace does not say **on what it ran**: its header has no peak FLOP/s and no memory bandwidth. "
    "Without them there are points, and no roof. You can hold the run against the published numbers of a "
    "device; that does not mean that it ran there."
)
NOT_ITS_OWN = N_(
    "The roof is that of a device which **you chose**, and not of the one on which this run took place."
)
NO_ROOF = N_("no roof")


def page(run: Run) -> None:
    header = run.timeline.trace.header
    told = (INTRODUCTION, TRY) if header.hardware else (NO_HARDWARE, INTRODUCTION, TRY)
    about("\n\n".join(_(text) for text in told))
    if header.model is None:
        st.info(_(NO_MODEL))
        empty.offer(URL)
        return
    work = timed_work(run.timeline)
    if not work:
        st.info(_(NO_TIMES))
        empty.offer(URL)
        return
    hardware = header.hardware or _chosen()
    if hardware is not None:
        st.markdown(_about(hardware))
        if header.hardware is None:
            st.caption(_(NOT_ITS_OWN))
    if header.clock != "wall":
        st.caption(_("Times are those of a simulated clock."))

    def scenes() -> list[figures.Scene]:
        timeline = run.timeline
        told = roofline_captions(timeline, work, hardware)
        return [figures.roofline(timeline, work, hardware), figures.decode_intensity(timeline, work, told)]

    stage.show(run, f"roofline-{hardware.name if hardware else 'no roof'}", scenes, _jumps(work))


def _chosen() -> HardwareShape | None:
    """The device against which the reader wants to hold a run that does not say where it ran."""
    devices = {device.name: device for device in DEVICES}
    words = {name: f"{_(name)}: {_numbers(device)}" for name, device in devices.items()}
    label = _("The trace does not say on what it ran. Draw the roof of")
    name = links.select("device", {"": ""} | words, label, width=640, otherwise=_(NO_ROOF))
    return devices.get(name)


def _numbers(hardware: HardwareShape) -> str:
    return _("{flops}FLOP/s, {bytes}B/s").format(
        flops=engineering(hardware.peak_flops), bytes=engineering(hardware.memory_bandwidth)
    )


def _about(hardware: HardwareShape) -> str:
    """The device in a sentence."""
    roof = Roof(hardware)
    told = _(
        "The roof: **{name}**, {numbers}. Its ridge point lies at **{ridge:,.3g} FLOP per byte**: a step "
        "that does less for each byte waits for memory."
    )
    if hardware.num_devices > 1:
        told = _(
            "The roof: **{count} × {name}**, each {numbers}. Its ridge point lies at **{ridge:,.3g} FLOP per "
            "byte**: a step that does less for each byte waits for memory."
        )
    return told.format(
        count=hardware.num_devices,
        name=plain(as_named(hardware.name)),
        numbers=_numbers(hardware),
        ridge=roof.ridge,
    )


def _jumps(work: list[PhaseWork]) -> list[Jump]:
    """The places worth seeing."""
    decode = [part for part in work if part.phase is Phase.DECODE]
    prefill = [part for part in work if part.phase is Phase.PREFILL]
    smallest = min(decode, key=lambda part: part.num_sequences, default=None)
    largest = max(decode, key=lambda part: part.num_sequences, default=None)
    longest = max(prefill, key=lambda part: part.num_tokens, default=None)
    places = [
        (_("largest prefill"), longest),
        (_("largest decode batch"), largest),
        (_("smallest decode batch"), smallest),
        (_("fastest step"), max(work, key=lambda part: part.achieved)),
    ]
    return [Jump(label, part.step if part else None) for label, part in places]
