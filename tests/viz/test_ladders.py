"""The two ladders show the tables of one request, and the memory behind both."""

from itertools import chain

import pytest

from minivllm.trace.replay import Replay
from minivllm.trace.timeline import make_timeline
from tests.viz import trace_factory
from tests.viz.trace_factory import Workload
from viz import figures
from viz.figures.common import NARROW

RUN = Workload(num_requests=5, num_blocks=40, output=(5, 30), seed=5)


@pytest.fixture(scope="module")
def run():
    return trace_factory.make(RUN)


def texts(scene, step):
    return [str(shape.get("text") or shape.get("label") or "") for shape in scene.at(step)]


def test_each_rung_has_the_entry_of_the_table_and_each_place_its_owner(run):
    timeline = make_timeline(run)
    request = next(iter(timeline.spans))
    scene = figures.ladders(timeline, timeline, request)
    replay = Replay(run)
    for step in range(run.num_steps):
        state = replay.state_at(step)
        (seq,) = state.members.get(request, [None])
        table = list(state.tables.get(seq, ()))
        shown = texts(scene, step)
        entries = [text for text in shown if text.startswith("→ ")]
        assert entries == [f"→ {block}" for block in table] * 2
        held = len(set(chain.from_iterable(state.tables.values())))
        tips = [str(shape.get("tip", "")) for shape in scene.at(step)]
        taken = sum(": " in tip and not tip.endswith(": free") for tip in tips)
        assert taken == 2 * held
    assert scene.width == NARROW and scene.num_steps == run.num_steps


def test_a_page_table_names_its_ranges_and_shows_addresses_without_memory(run):
    timeline, other = make_timeline(run), make_timeline(run)
    other.trace.header.config["ranges"] = ["keys", "values"]
    try:
        request = next(iter(timeline.spans))
        scene = figures.ladders(timeline, other, request)
        shown = texts(scene, 2)
        assert any(text.startswith("keys 0–") for text in shown)
        assert any("looked up by the machine" in text for text in shown)
        dashed = [shape for shape in scene.at(scene.num_steps - 1) if shape.get("dash") == "3 2"]
        assert any(shape["stroke"] == "outline" for shape in dashed)
    finally:
        del other.trace.header.config["ranges"]
