"""What a KV cache saves, in pictures: the triangle, the work of two runs, and curves that were measured."""

import re
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minivllm.trace.curves import Curve, Curves, read_curves, write_curves
from minivllm.trace.reader import TraceError
from minivllm.trace.timeline import make_timeline
from tests.viz import trace_factory
from tests.viz.trace_factory import Workload
from viz import figures
from viz.figures.attention_triangle import spans_of
from viz.pictures import draw

SOME = Curves("a title", "distance", "influence", (1.0, 2.0), (Curve("one", (0.5, 1e-9)),))


def timeline_of(seed, num_requests=3):
    return make_timeline(trace_factory.make(Workload(num_requests=num_requests, seed=seed)))


def numbers(text):
    return [int(number.replace(",", "")) for number in re.findall(r"\d[\d,]*", text)]


def texts_of(scene, step):
    return [str(shape["text"]) for shape in scene.at(step) if shape["kind"] == "text"]


@given(st.integers(0, 30))
def test_the_triangle_counts_the_rows_of_each_step(seed):
    timeline = timeline_of(seed)
    request = next(iter(timeline.spans))
    scene = figures.attention_triangle(timeline, request)
    cached = whole = 0
    for step in range(timeline.num_steps):
        start, end = spans_of(timeline, request).get(step, (0, 0))
        cached, whole = cached + end - start, whole + end
        (so_far,) = [text for text in texts_of(scene, step) if text.startswith("rows computed")]
        assert numbers(so_far) == [cached, whole]
        now = [numbers(text)[0] for text in texts_of(scene, step) if text.startswith("this step")]
        assert now == ([end - start, end] if end else [])


@given(st.integers(0, 30))
def test_work_without_a_cache_is_all_tokens_that_a_step_sees(seed):
    timeline = timeline_of(seed)
    scene = figures.cache_work(timeline, timeline)
    totals = [0, 0]
    for record in timeline.records:
        new = sum(item.num_tokens for item in record.batch)
        seen = sum(item.start + item.num_tokens for item in record.batch)
        totals = [totals[0] + new, totals[1] + seen]
        assert numbers(scene.captions[record.step]) == [record.step, new, seen, *totals]


def test_runs_of_different_lengths_can_be_compared():
    shorter, longer = sorted((timeline_of(1, 2), timeline_of(2, 6)), key=lambda run: run.num_steps)
    assert shorter.num_steps < longer.num_steps
    for first, second in ((shorter, longer), (longer, shorter)):
        assert figures.cache_work(first, second).num_steps == first.num_steps


def test_curves_come_back_as_they_were_written_and_are_drawn(tmp_path):
    path = tmp_path / "curves.json"
    write_curves(path, SOME)
    assert read_curves(path) == SOME
    said = "".join(ElementTree.fromstring(draw("curves", [path], 1)).itertext())
    assert "one" in said and "at 2: 1e-09" in said


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nonsense", "holds no curves"),
        ('{"event": "TraceHeader"}', "holds no curves"),
        ('{"event":"Curves","title":"","across":"","up":"","x":[],"curves":[]}', "there must be an x"),
        (
            '{"event":"Curves","title":"","across":"","up":"","x":[1],"curves":[{"name":"","values":[]}]}',
            "a value for each x",
        ),
        (
            '{"event":"Curves","title":"","across":"","up":"","x":[1],"curves":[{"name":"","values":[0]}]}',
            "must be positive",
        ),
    ],
)
def test_what_are_no_curves_is_refused_in_a_sentence(tmp_path, text, message):
    path = tmp_path / "curves.json"
    path.write_text(text)
    with pytest.raises(TraceError, match=message):
        read_curves(path)
