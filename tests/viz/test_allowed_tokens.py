"""The picture of structured output shows what the trace tells: what was allowed, struck out, and chosen."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minivllm.sampling_params import SamplingParams
from minivllm.trace.reader import make_trace
from minivllm.trace.recorder import Recorder
from minivllm.trace.timeline import make_timeline
from tests.engine.test_structured import PATTERNS, make, structured
from viz import figures
from viz.figures.allowed_tokens import ALLOWED, STRUCK_OUT, seen


def run(pattern, seed, n=2):
    recorder = Recorder()
    engine = make(recorder=recorder)
    engine.add_request("free", [1, 2], SamplingParams(max_tokens=3, seed=seed))
    engine.add_request("bound", [1, seed % 4], structured(pattern, seed=seed, n=n, max_tokens=8))
    while engine.has_unfinished_requests():
        engine.step()
    return make_timeline(make_trace(recorder.events[0], recorder.events[1:]))


@settings(max_examples=max(8, settings().max_examples // 4))
@given(st.sampled_from(PATTERNS), st.integers(0, 99))
def test_every_choice_is_drawn_as_the_trace_tells_it(pattern, seed):
    timeline = run(pattern, seed)
    assert figures.structured_requests(timeline) == ["bound"]
    choices = figures.choices_of(timeline, "bound")
    scene = figures.allowed_tokens(timeline, "bound")
    assert scene.num_steps == timeline.num_steps
    first = min(seq for seq, state in timeline.sequences.items() if state.request == "bound")
    assert "".join(choice.text_before for choice in choices[:1]) == ""
    assert [choice.token_id for choice in choices] == [
        token for record in timeline.records for seq, token, _ in record.sampled if seq == choices[0].told.seq
    ]
    assert choices[0].told.seq >= first
    for choice in choices:
        shapes = scene.at(choice.step)
        told = [shape for shape in shapes if shape["kind"] == "text" and shape["text"]]
        words = [shape["text"] for shape in told]
        bars = [shape for shape in shapes if shape["kind"] == "rect" and shape["tip"].startswith("token ")]
        drawn = [bar for bar in bars if bar["fill"] != "none"]
        candidates = choice.told.candidates[:9]
        assert [bar["fill"] for bar in drawn] == [ALLOWED if ok else STRUCK_OUT for *_, ok in candidates]
        assert sum(bar["stroke"] == "ink" for bar in drawn) == 1, "one of them was chosen"
        (chosen,) = (text for token, text, *_ in candidates if token == choice.token_id)
        assert f"► {seen(chosen)}" in words
        lines = [shape for shape in shapes if shape["kind"] == "path" and shape["stroke"] == "cursor"]
        assert sum(bool(line["d"]) for line in lines) == sum(not ok for *_, ok in candidates)
        assert any(text.startswith(f"{choice.told.num_allowed:,} token") for text in words)
        assert f"regex {pattern}" in words, "and what it must be"


def test_captions_say_how_many_tokens_were_left():
    timeline = run("(yes|no)x*", 1, n=1)
    step = figures.choices_of(timeline, "bound")[0].step
    assert "Structured output leaves B 2 tokens to choose from." in figures.captions(timeline)[step]


def test_a_run_without_it_has_no_such_picture(tmp_path):
    from tests.viz import trace_factory
    from viz.pictures import draw

    path = trace_factory.write(
        trace_factory.make(trace_factory.Workload(num_requests=2)), tmp_path / "run.jsonl"
    )
    with pytest.raises(ValueError, match="no request of this run had structured output"):
        draw("allowed_tokens", [path], 0)
