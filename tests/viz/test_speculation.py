"""The picture of speculation shows what the trace tells: which drafts were accepted, and which were not."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minivllm.lab.simulation.speculative import Speculative
from minivllm.sampling_params import SamplingParams
from minivllm.trace.reader import make_trace
from minivllm.trace.recorder import Recorder
from minivllm.trace.summary import summarize
from minivllm.trace.timeline import make_timeline
from tests.engine.fakes import make_engine
from tests.engine.guesses import guessing
from tests.lab.simulation.test_speculative import ROOMY, serve
from tests.lab.simulation.worlds import Listed, make_request
from viz import figures
from viz.figures.speculation import ACCEPTED, MOST_CELLS, MOST_ROWS, STRUCK_OUT


def run(seed, accuracy=0.6, num_requests=3):
    recorder = Recorder()
    engine = make_engine(recorder=recorder, speculation=guessing(seed, num_tokens=4, accuracy=accuracy))
    for number in range(num_requests):
        engine.add_request(f"r{number}", [1, 2, number], SamplingParams(temperature=0, max_tokens=9))
    while engine.has_unfinished_requests():
        engine.step()
    return make_trace(recorder.events[0], recorder.events[1:])


@settings(max_examples=max(6, settings().max_examples // 5))
@given(st.integers(0, 99), st.integers(1, 8))
def test_every_draft_is_drawn_as_the_trace_tells_it(seed, num_requests):
    timeline = make_timeline(run(seed, num_requests=num_requests))
    scene = figures.speculation(timeline)
    assert scene.num_steps == timeline.num_steps
    for record in timeline.records:
        shapes = scene.at(record.step)
        boxes = [s for s in shapes if s["kind"] == "rect" and s.get("tip", "").startswith("token ")]
        shown = [item for item in record.drafts if item.token_ids][:MOST_ROWS]
        assert [box["fill"] for box in boxes] == [
            ACCEPTED if place < item.num_accepted else STRUCK_OUT
            for item in shown
            for place in range(min(MOST_CELLS, len(item.token_ids)))
        ]
        lines = [s for s in shapes if s["kind"] == "path" and s["stroke"] == "cursor" and s["d"]]
        assert len(lines) == sum(len(item.token_ids) - item.num_accepted for item in shown)


def test_its_numbers_are_those_of_the_summary():
    trace = run(7)
    facts, summary = figures.speculation_facts(make_timeline(trace)), summarize(trace)
    assert (sum(facts.drafted), sum(facts.accepted)) == (
        summary.num_draft_tokens,
        summary.num_accepted_tokens,
    )
    assert facts.num_drafts == summary.num_drafts > 0
    assert facts.acceptance_rate <= facts.chance <= 1
    assert any(name == "speculation" for name, _ in summary.facts())
    assert "drafts" in " ".join(figures.captions(make_timeline(trace)))


@pytest.mark.parametrize(("accuracy", "tokens"), [(0.0, 1.0), (1.0, None)])
def test_if_no_draft_is_right_or_all_are_the_formula_is_the_truth(accuracy, tokens):
    facts = figures.speculation_facts(make_timeline(run(3, accuracy)))
    assert facts.chance == accuracy
    assert facts.expected_tokens_per_step == pytest.approx(tokens or facts.tokens_per_step)
    assert facts.expected_speedup(0) == pytest.approx(facts.expected_tokens_per_step)


@pytest.mark.parametrize("acceptance", [0.0, 0.6])
def test_what_drafts_cost_and_bring_is_measured_beside_steps_without_them(acceptance):
    """In virtual time: a step takes 5 ticks, a draft's row 1 and its guess a quarter of a step."""
    recorder = Recorder()
    serve(ROOMY, Listed([make_request(0, 4, 61)]), Speculative(acceptance, 3, 0.25), recorder)
    timeline = make_timeline(make_trace(recorder.events[0], recorder.events[1:]))
    gain, facts = figures.measured_gain(timeline), figures.speculation_facts(timeline)
    assert gain.draft_cost == pytest.approx(0.45, rel=0.01)
    assert gain.speedup == pytest.approx(facts.tokens_per_step / (1 + 0.45 * 3), rel=0.05)
    assert "A draft cost 0.45 of a step" in str(figures.speculation(timeline).at(0))
