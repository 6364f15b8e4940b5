"""The roofline page, run by Streamlit's own test harness: it never invents the hardware of a run."""

import msgspec
import pytest

from minivllm.trace.reader import make_trace
from minivllm.trace.timeline import Phase
from tests.viz import sharing_factory, static_factory, trace_factory
from tests.viz.sharing_factory import Sharing
from tests.viz.test_pages import payloads, run_page, words
from tests.viz.trace_factory import Workload
from viz import loading
from viz.devices import DEVICES
from viz.figures.step_work import timed_work
from viz.views import roofline

LOAD = Workload(num_requests=8, arrival_gap=1.0)


def write(path, trace, **changes):
    header = msgspec.structs.replace(trace.header, **changes)
    return trace_factory.write(make_trace(header, trace.events), path)


@pytest.fixture
def known(tmp_path):
    """A run whose header says where it took place."""
    return write(tmp_path / "known.jsonl", static_factory.make(LOAD), hardware=static_factory.CPU)


def texts(app):
    return [str(shape.get("text", "")) for scene in payloads(app)[0]["scenes"] for shape in scene["shapes"]]


def test_the_roof_is_that_of_the_header(known):
    app = run_page(roofline, known)
    assert not app.exception and not app.info
    assert not [box.label for box in app.selectbox if "Draw the roof of" in box.label]
    assert "a CPU invented for a test" in words(app)
    assert "ridge point: 10 FLOP per byte" in texts(app)
    assert roofline.NOT_ITS_OWN not in words(app)


def test_without_hardware_there_is_no_roof_until_the_reader_chooses_a_device(tmp_path):
    app = run_page(roofline, write(tmp_path / "run.jsonl", trace_factory.make(LOAD)))
    assert not app.exception and roofline.NO_HARDWARE in words(app)
    assert not any("ridge point" in text for text in texts(app))
    app.selectbox[0].set_value(DEVICES[2].name).run()
    assert any("ridge point" in text for text in texts(app))
    assert roofline.NOT_ITS_OWN in words(app) and "A100" in words(app)


def test_a_run_without_the_shape_of_its_model_says_what_is_missing(tmp_path):
    app = run_page(roofline, write(tmp_path / "run.jsonl", trace_factory.make(LOAD), model=None))
    assert not app.exception and not payloads(app)
    assert app.info[0].value == roofline.NO_MODEL


def test_a_run_without_measured_times_says_what_is_missing(tmp_path):
    cut = trace_factory.write(
        trace_factory.make(Workload(num_requests=1, cut_short=True)), tmp_path / "cut.jsonl"
    )
    lines = cut.read_bytes().split(b"\n")
    end = next(index for index, line in enumerate(lines) if b'"StepFinished"' in line)
    cut.write_bytes(b"\n".join(lines[:end]) + b"\n")
    app = run_page(roofline, cut)
    assert not app.exception and not payloads(app)
    assert app.info[0].value == roofline.NO_TIMES


def test_a_model_whose_numbers_contradict_each_other_draws_nothing(tmp_path):
    model = msgspec.structs.replace(trace_factory.MODEL, num_parameters=0)
    app = run_page(roofline, write(tmp_path / "run.jsonl", trace_factory.make(LOAD), model=model))
    assert not app.exception and not payloads(app)


def test_beams_samples_and_swaps_have_work_too(tmp_path):
    load = Sharing(num_requests=12, num_blocks=36, arrival_gap=1, output=(12, 20), fail_share=0.03, seed=0)
    path = trace_factory.write(sharing_factory.make(load), tmp_path / "sharing.jsonl")
    app = run_page(roofline, path)
    assert not app.exception and payloads(app)


def test_work_is_counted_for_every_timed_step_and_grows_with_the_batch(known):
    timeline = loading.open_run(known).timeline
    work = timed_work(timeline)
    for record in timeline.records:
        phases = {item.phase for item in record.batch}
        assert {part.phase for part in work if part.step == record.step} == phases
    decode = sorted(
        (part for part in work if part.phase is Phase.DECODE), key=lambda part: part.num_sequences
    )
    assert decode[0].num_sequences < decode[-1].num_sequences
    assert decode[0].intensity < decode[-1].intensity
    assert all(part.seconds == timeline.records[part.step].seconds["model"] for part in work)


def test_jumps_of_the_roofline_lead_where_they_say(known):
    work = timed_work(loading.open_run(known).timeline)
    jumps = {jump["label"]: jump["step"] for jump in payloads(run_page(roofline, known))[0]["jumps"]}
    decode = {part.step: part.num_sequences for part in work if part.phase is Phase.DECODE}
    assert decode[jumps["largest decode batch"]] == max(decode.values())
    assert decode[jumps["smallest decode batch"]] == min(decode.values())
    fastest = max(work, key=lambda part: part.achieved)
    assert jumps["fastest step"] == fastest.step
