"""The roofline: two lines that meet, and points where their numbers put them."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minivllm.trace.events import HardwareShape
from minivllm.trace.timeline import Phase, make_timeline
from tests.viz import trace_factory
from tests.viz.trace_factory import Workload
from viz import figures
from viz.devices import DEVICES
from viz.figures.log_axis import LogScale, engineering
from viz.figures.roofline import Roof, roofline_captions
from viz.figures.step_work import PhaseWork

positive = st.floats(1e3, 1e16)
devices = st.builds(HardwareShape, st.just("a device"), positive, positive, st.integers(1, 8))


@st.composite
def parts(draw, num_steps):
    """Work of some steps: of one phase, of both, or of none."""
    found = []
    for step in range(num_steps):
        for phase in (Phase.PREFILL, Phase.DECODE):
            if draw(st.booleans()):
                count = draw(st.integers(1, 300))
                flops, num_bytes = draw(st.floats(1e2, 1e15)), draw(st.floats(1e2, 1e12))
                seconds = draw(st.floats(1e-6, 10))
                found.append(PhaseWork(step, phase, count, count, flops, num_bytes, seconds))
    return found


def timeline_of(num_steps):
    load = Workload(num_requests=1, prompt=(5, 5), output=(num_steps, num_steps))
    return make_timeline(trace_factory.make(load))


@given(devices, positive)
def test_the_roof_is_the_smaller_of_two_lines_that_meet_at_the_ridge(hardware, intensity):
    roof = Roof(hardware)
    allowed = roof.attainable(intensity)
    assert allowed == min(
        hardware.peak_flops, hardware.memory_bandwidth * intensity
    ) * hardware.num_devices or (
        allowed
        == pytest.approx(
            min(hardware.peak_flops, hardware.memory_bandwidth * intensity) * hardware.num_devices
        )
    )
    assert roof.attainable(roof.ridge) == pytest.approx(roof.peak)
    assert roof.attainable(roof.ridge / 2) == pytest.approx(roof.peak / 2)
    assert roof.attainable(roof.ridge * 2) == pytest.approx(roof.peak)


@given(st.data(), st.integers(1, 6), st.one_of(st.none(), devices))
def test_nothing_of_a_roofline_lies_outside_and_every_step_is_told(data, num_steps, hardware):
    timeline = timeline_of(num_steps)
    work = data.draw(parts(timeline.num_steps))
    told = roofline_captions(timeline, work, hardware)
    scenes = [
        figures.roofline(timeline, work, hardware),
        figures.decode_intensity(timeline, work, told),
    ]
    for scene in scenes:
        assert scene.num_steps == timeline.num_steps and scene.captions == told
        for step in range(scene.num_steps):
            for shape in scene.at(step):
                if shape["kind"] == "text":
                    assert 0 <= shape["x"] <= scene.width and 0 <= shape["y"] <= scene.height
                elif shape["kind"] == "path":
                    numbers = [
                        tuple(map(float, pair)) for pair in re.findall(r"([-\d.e+]+),([-\d.e+]+)", shape["d"])
                    ]
                    assert all(-1 <= x <= scene.width + 1 and -1 <= y <= scene.height + 1 for x, y in numbers)
    for step, caption in enumerate(told):
        phases = {part.phase for part in work if part.step == step}
        assert {phase for phase in Phase if f"The {phase.value} part" in caption} == phases


def marks(scene, step):
    """The enlarged dots of the current step: phase → the middle of its dot."""
    found = {}
    for shape in scene.at(step):
        if shape["kind"] == "path" and shape["stroke"] == "cursor" and shape["fill"] != "none" and shape["d"]:
            points = [tuple(map(float, pair)) for pair in re.findall(r"([-\d.e+]+),([-\d.e+]+)", shape["d"])]
            xs, ys = zip(*points, strict=True)
            found[shape["fill"]] = ((min(xs) + max(xs)) / 2, (min(ys) + max(ys)) / 2)
    return found


def test_the_current_step_is_marked_where_its_numbers_put_it():
    hardware = HardwareShape("a device", 1e12, 1e10)
    timeline = timeline_of(3)
    work = [
        PhaseWork(0, Phase.PREFILL, 1, 64, 6.4e9, 1e8, 0.1),
        PhaseWork(1, Phase.DECODE, 1, 1, 1e8, 1e8, 0.05),
        PhaseWork(2, Phase.DECODE, 8, 8, 8e8, 1e8, 0.05),
    ]
    scene = figures.roofline(timeline, work, hardware)
    shown = [marks(scene, step) for step in range(3)]
    assert [set(found) for found in shown] == [{"prefill"}, {"decode"}, {"decode"}]
    # Both axes are logarithmic with the same powers for the two decodes: 8 times to the right, and up.
    (x1, y1), (x2, y2) = shown[1]["decode"], shown[2]["decode"]
    (x0, y0) = shown[0]["prefill"]
    across = (x2 - x1) / 3  # units for a factor of 2
    assert x0 - x1 == pytest.approx(6 * across, abs=0.1)
    up = (y1 - y2) / 3
    assert y1 - y0 == pytest.approx(5 * up, abs=0.1)
    assert up > 0 and across > 0
    small = next(s for s in scene.shapes if s.get("opacity") == 0.55 and s["fill"] == "decode")
    tips = [tuple(map(float, tip)) for tip in re.findall(r"M([\d.]+),([\d.]+)", str(small["d"]))]
    for (x, y), (tip_x, tip_y) in zip([(x1, y1), (x2, y2)], tips, strict=True):
        assert x == pytest.approx(tip_x, abs=0.1) and 0 < y - tip_y < 5, "each on its own dot"


def test_captions_say_what_limits_a_step_and_when_the_device_cannot_be_its_own():
    hardware = HardwareShape("a device", 1e12, 1e10)
    timeline = timeline_of(3)
    work = [
        PhaseWork(0, Phase.PREFILL, 2, 640, 6.4e11, 1e9, 2.0),
        PhaseWork(1, Phase.DECODE, 4, 4, 4e8, 1e8, 0.1),
        PhaseWork(2, Phase.DECODE, 4, 4, 4e8, 1e8, 1e-4),
    ]
    told = roofline_captions(timeline, work, hardware)
    assert told[0] == (
        "Step 0. The prefill part: 640 tokens of 2 sequences, 640 GFLOP and 1 GB, so 640 FLOP per byte; "
        "320 GFLOP/s, 32% of the 1 TFLOP/s that arithmetic allows."
    )
    assert "4 GFLOP/s, 10% of the 40 GFLOP/s that memory allows." in told[1]
    assert told[2].endswith("or this is not the device of this run.")
    assert all("allows" not in caption for caption in roofline_captions(timeline, work, None))


def test_the_ridge_point_is_named_with_its_value_and_only_if_the_hardware_is_known():
    timeline = timeline_of(2)
    work = [PhaseWork(0, Phase.PREFILL, 1, 5, 1e9, 1e8, 0.1)]

    def texts(hardware):
        return [str(shape.get("text", "")) for shape in figures.roofline(timeline, work, hardware).shapes]

    known = texts(HardwareShape("two", 3e12, 2e10, num_devices=2))
    assert "ridge point: 150 FLOP per byte" in known
    assert "peak 6 TFLOP/s" in known and "memory 40 GB/s" in known
    assert not any(re.match("ridge|peak|memory", text) for text in texts(None))


def test_of_the_devices_to_choose_from_each_says_what_it_is():
    assert len({device.name for device in DEVICES}) == len(DEVICES)
    cpus = [device for device in DEVICES if device.peak_flops < 1e13]
    assert cpus and all("CPU" in device.name for device in cpus)
    for device in DEVICES:
        assert 1 < Roof(device).ridge < 1000


# ── logarithmic axes ──────────────────────────────────────────────────────────────────────────────────────


@given(st.lists(st.floats(1e-9, 1e18), min_size=1, max_size=20), st.floats(1e-9, 1e18))
def test_a_logarithmic_scale_keeps_order_and_has_room_for_all_values(values, other):
    scale = LogScale.around(values, 10, 110)
    for value in values:
        assert 10 < scale.place(value) < 110
    assert 10 <= scale.place(other) <= 110
    ordered = sorted(values)
    places = [scale.place(value) for value in ordered]
    assert places == sorted(places)
    assert 2 <= len(scale.ticks()) <= 9
    assert all(scale.low * 0.999 <= tick <= scale.high * 1.001 for tick in scale.ticks())


def test_numbers_have_three_digits_and_a_prefix():
    cases = {
        312e12: "312 T",
        1.554e12: "1.55 T",
        999.6e9: "1 T",
        20.0: "20 ",
        0.5: "0.5 ",
        989e12: "989 T",
        1e3: "1 k",
    }
    assert {value: engineering(value) for value in cases} == cases
