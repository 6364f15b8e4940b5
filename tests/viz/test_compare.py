"""Two runs on one clock: no step is left out, both show the same moment, and waste is drawn as waste."""

import re
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minivllm.trace.summary import percentiles, summarize
from minivllm.trace.timeline import Phase, make_timeline
from tests.viz import static_factory, trace_factory
from tests.viz.strategies import cut_traces, traces
from tests.viz.trace_factory import Workload
from viz import figures
from viz.figures.common import PHONE, WIDE
from viz.figures.comparison import MOST_ROWS, Side, shared_names
from viz.figures.moments import merge, steps_of_first
from viz.figures.scheduler_gantt import COMPUTING, LOOKS
from viz.figures.time_axis import TimeScale, round_step
from viz.measures import batch_use, latencies, parked_by_step
from viz.scene import hatch_path
from viz.side_by_side import side_by_side

timelines = st.one_of(traces, cut_traces).map(make_timeline)
LOAD = Workload(
    num_requests=14, num_blocks=64, arrival_gap=1.0, output=(5, 40), prompt=(8, 60), max_num_seqs=5, seed=3
)


@pytest.fixture(scope="module")
def static():
    return make_timeline(static_factory.make(LOAD))


@pytest.fixture(scope="module")
def continuous():
    return make_timeline(trace_factory.make(LOAD))


# ── moments ───────────────────────────────────────────────────────────────────────────────────────────────


@given(timelines, timelines)
def test_moments_are_in_order_and_visit_every_step_of_both_runs(first, second):
    moments = merge(first, second)
    assert all(one.time <= other.time for one, other in pairwise(moments))
    for side, run in enumerate((first, second)):
        visited = [moment.steps[side] for moment in moments]
        assert visited == sorted(visited)
        assert set(range(run.num_steps)) <= set(visited) <= set(range(run.num_steps + 1))


@given(timelines, timelines)
def test_at_every_moment_each_run_is_in_the_step_that_the_clock_says(first, second):
    for moment in merge(first, second):
        for step, run in zip(moment.steps, (first, second), strict=True):
            assert step == run.num_steps or run.records[step].end >= moment.time
            assert step == 0 or run.records[step - 1].end <= moment.time
        assert any(
            step < run.num_steps and run.records[step].end == moment.time
            for step, run in zip(moment.steps, (first, second), strict=True)
        ), "a moment is the end of a step"


@given(timelines, timelines)
def test_the_shared_step_is_one_of_the_first_run(first, second):
    steps = steps_of_first(merge(first, second), first)
    assert steps == sorted(steps) and set(steps) == set(range(first.num_steps))


def test_a_merge_step_by_step():
    def run(*seconds):
        timeline = make_timeline(trace_factory.make(Workload(num_requests=1, output=(3, 3), prompt=(5, 5))))
        start = 0.0
        for record, length in zip(timeline.records, seconds, strict=True):
            record.start, record.end = start, start + length
            start += length
        return timeline

    moments = merge(run(2.0, 2.0, 2.0), run(3.0, 1.0, 4.0))
    assert [tuple(moment) for moment in moments] == [
        (2.0, (0, 0)),
        (3.0, (1, 0)),
        (4.0, (1, 1)),
        (6.0, (2, 2)),
        (8.0, (3, 2)),
    ]


# ── the picture ───────────────────────────────────────────────────────────────────────────────────────────


@settings(max_examples=25)
@given(timelines, timelines, st.sampled_from([WIDE, PHONE]))
def test_both_pictures_have_the_moments_as_steps_and_nothing_lies_outside(first, second, width):
    moments = merge(first, second)
    scenes = figures.comparison(Side("one", first), Side("other", second), width)
    for scene in scenes:
        assert scene.num_steps == len(moments) and scene.captions == scenes[0].captions
        assert len(scene.axis.ends) == len(moments)
        for step in (0, scene.num_steps - 1):
            for shape in scene.at(step):
                if shape["kind"] == "rect":
                    assert -2 <= shape["x"] <= shape["x"] + shape["width"] <= scene.width + 2
                    assert 0 <= shape["y"] <= shape["y"] + shape["height"] <= scene.height + 2
                elif shape["kind"] == "text":
                    assert 0 <= shape["x"] <= scene.width and 0 <= shape["y"] <= scene.height


@given(timelines, timelines, st.data())
def test_the_future_of_both_runs_is_dimmed_from_the_same_moment_on(first, second, data):
    scenes = figures.comparison(Side("one", first), Side("other", second))
    step = data.draw(st.integers(0, scenes[0].num_steps - 1))
    veils = [next(shape for shape in scene.at(step) if shape.get("opacity", 1) < 1) for scene in scenes]
    assert veils[0]["x"] == veils[1]["x"] == scenes[0].axis.ends[step]
    assert veils[0]["x"] + veils[0]["width"] == pytest.approx(scenes[0].width, abs=0.02)


def rows_of(scene):
    """Tag → the y and the colour of its chip."""
    return {
        s["label"]: (s["y"], s["fill"]) for s in scene.shapes if str(s.get("tip", "")).startswith("Request ")
    }


def test_a_request_has_the_same_row_letter_and_colour_in_both_whatever_their_order(static, continuous):
    fewer = make_timeline(trace_factory.make(Workload(num_requests=4, seed=9)))
    for one, other in ((static, continuous), (fewer, static), (static, fewer)):
        top, bottom = figures.comparison(Side("one", one), Side("other", other))
        chips, others = rows_of(top), rows_of(bottom)
        assert [fill for _, fill in chips.values()] == [fill for _, fill in others.values()]
        assert list(chips) == list(others) == [name.tag for name in shared_names(one, other).values()]
    absent = [shape["text"] for shape in bottom.shapes if shape.get("text") == "not in this run"]
    assert len(absent) == len(static.spans) - len(fewer.spans)


def test_spans_lie_where_the_clock_says(static, continuous):
    scenes = figures.comparison(Side("one", static), Side("other", continuous))
    end = max(static.records[-1].end, continuous.records[-1].end)
    for scene, run in zip(scenes, (static, continuous), strict=True):
        scale = TimeScale(0.0, end, 56.0, WIDE - 4)
        for request, spans in run.spans.items():
            name = shared_names(static, continuous)[request]
            drawn = [s for s in scene.shapes if str(s.get("tip", "")).startswith(f"{name.full}: ")]
            assert len(drawn) == len(spans)
            for shape, span in zip(drawn, spans, strict=True):
                computes = span.phase in COMPUTING
                assert shape["fill"] == (name.colour if computes else LOOKS[span.phase][0])
                if span.phase is not Phase.WAITING:
                    assert shape["x"] == pytest.approx(scale.x(run.records[span.first].start), abs=0.02)


def test_waiting_is_drawn_from_the_arrival_not_from_the_next_step():
    trace = static_factory.make(LOAD)
    timeline = make_timeline(trace)
    late = next(s for s in timeline.sequences.values() if s.queued_time > 0)
    step = next(r for r in timeline.records if late.request in r.queued)
    step.start += 0.001
    top, _ = figures.comparison(Side("one", timeline), Side("other", timeline))
    name = shared_names(timeline, timeline)[late.request]
    first = next(s for s in top.shapes if str(s.get("tip", "")).startswith(f"{name.full}: waits"))
    scale = TimeScale(0.0, timeline.records[-1].end, 56.0, WIDE - 4)
    assert first["x"] == pytest.approx(scale.x(late.queued_time), abs=0.02)


def test_many_requests_are_cut_with_a_sentence():
    load = Workload(num_requests=90, prompt=(1, 9), output=(1, 4), arrival_gap=0.2)
    timeline = make_timeline(trace_factory.make(load))
    scene = figures.comparison(Side("one", timeline), Side("other", timeline))[0]
    words = f"The first {MOST_ROWS} of 90 requests are drawn; 30 are not."
    assert words in [shape.get("text") for shape in scene.shapes]


def test_captions_tell_what_both_were_doing(static, continuous):
    scene = figures.comparison(Side("one", static), Side("other", continuous))[0]
    own = figures.captions(static)
    for moment, caption in zip(merge(static, continuous), scene.captions, strict=True):
        when, one, other = caption.split("\n")
        assert when.startswith("At ")
        assert one.startswith("one: ") and other.startswith("other: ")
        step = moment.steps[0]
        if step < static.num_steps and moment.time >= static.records[step].start:
            assert one == f"one: {own[step]}"
    assert scene.captions[-1].count("done") == 1


# ── waste ─────────────────────────────────────────────────────────────────────────────────────────────────


def lines(d):
    return [tuple(map(float, re.findall(r"[-\d.e]+", line))) for line in re.findall(r"M[^M]+", d)]


@given(
    st.floats(0, 500),
    st.floats(0, 500),
    st.floats(0.1, 200),
    st.floats(0.1, 40),
    st.sampled_from([3.0, 5.0, 8.0]),
)
def test_hatching_stays_within_its_rectangle_and_leaves_no_gap(x, y, width, height, gap):
    found = lines(hatch_path([(x, y, width, height)], gap))
    assert len(found) >= (width + height) / gap - 1
    for x1, y1, x2, y2 in found:
        assert x - 0.01 <= x1 <= x2 <= x + width + 0.01
        assert y - 0.01 <= y2 <= y1 <= y + height + 0.01
        assert x1 + y1 == pytest.approx(x2 + y2, abs=0.01)


def test_parked_requests_and_padding_are_hatched_and_named(static, continuous):
    for draw in (figures.scheduler_gantt, figures.batch_composition):
        texts = {str(shape.get("text", "")) for shape in draw(static).shapes}
        assert any("parked" in text or text == "padding" for text in texts)
        without = {str(shape.get("text", "")) for shape in draw(continuous).shapes}
        assert not any("parked:" in text or text == "padding" for text in without)
    for scene in (figures.scheduler_gantt(static), figures.batch_composition(static)):
        hatched = [s for s in scene.shapes if s["kind"] == "path" and s.get("stroke_width") == 0.9]
        assert len(hatched) >= 2, "in the legend and in the picture"


def test_bars_of_padding_stand_on_the_others_and_have_their_height(static):
    scene = figures.batch_composition(static)
    record = max(static.records, key=lambda r: r.num_padding_tokens)
    fills = {
        s["fill"]: s["d"] for s in scene.shapes if s["kind"] == "path" and s.get("fill", "none") != "none"
    }
    boxes = {
        fill: [(numbers[0], numbers[1], numbers[5]) for numbers in lines(d)] for fill, d in fills.items() if d
    }
    x = min(s for s, _, _ in boxes["prefill"])
    assert record.num_padding_tokens and x
    padded = [r for r in static.records if r.num_padding_tokens]
    assert len(boxes["wasted"]) == len(padded)
    tallest = boxes["wasted"][padded.index(record)]
    below = next(box for box in boxes["prefill"] if box[0] == tallest[0])
    assert tallest[2] == pytest.approx(below[1], abs=0.02), "padding begins where prefill ends"
    share = (tallest[2] - tallest[1]) / (below[2] - below[1])
    assert share == pytest.approx(record.num_padding_tokens / record.num_tokens(Phase.PREFILL), rel=0.02)


def test_captions_tell_padding_and_which_requests_are_parked(static):
    told = figures.captions(static)
    parked = parked_by_step(static)
    for record, caption in zip(static.records, told, strict=True):
        assert ("of padding more" in caption) == bool(record.num_padding_tokens)
        assert ("parked" in caption) == bool(parked[record.step])
    assert f"{static.records[0].num_padding_tokens} tokens of padding" in told[0]


@given(timelines)
def test_parked_requests_are_those_that_run_and_compute_nothing(timeline):
    parked = parked_by_step(timeline)
    for record, count in zip(timeline.records, parked, strict=True):
        expected = sum(
            span.phase is Phase.PARKED and span.first <= record.step <= span.last
            for spans in timeline.spans.values()
            for span in spans
        )
        assert count == expected


# ── numbers ───────────────────────────────────────────────────────────────────────────────────────────────


@given(st.one_of(traces, cut_traces))
def test_latencies_have_the_percentiles_of_the_summary(trace):
    found, summary = latencies(make_timeline(trace)), summarize(trace)
    for name in ("ttft", "inter_token", "end_to_end", "queue_time"):
        assert percentiles(getattr(found, name)) == getattr(summary, name), name


@given(timelines)
def test_tokens_of_a_run_add_up(timeline):
    use = batch_use(timeline)
    computed = sum(item.num_tokens for record in timeline.records for item in record.batch)
    assert use.prefill_tokens + use.decode_tokens == computed
    assert use.padding_tokens == sum(record.num_padding_tokens for record in timeline.records)
    assert 0 <= use.padding_share <= 1 and 0 <= use.parked_share <= 1


def test_static_batching_pays_where_it_should(static, continuous):
    one, other = batch_use(static), batch_use(continuous)
    assert one.padding_share > 0 == other.padding_share
    assert one.parked_share > other.parked_share
    assert one.mean_sequences < other.mean_sequences


def test_the_table_puts_the_same_numbers_side_by_side(static, continuous):
    summaries = summarize(static.trace), summarize(continuous.trace)
    rows = {row.name: row for row in side_by_side(static, summaries[0], continuous, summaries[1])}
    speeds = [summary.output_tokens_per_second for summary in summaries]
    assert rows["Throughput"].first == f"{speeds[0]:,.1f} tokens/s"
    assert rows["Throughput"].second == f"{speeds[1]:,.1f} tokens/s"
    assert rows["Throughput"].ratio == f"{speeds[1] / speeds[0]:.2f} ×"
    assert rows["Padding"].second == "0.0%" and rows["Padding"].ratio == "–"
    assert all(row.sentence.endswith(".") for row in rows.values())


@given(timelines, timelines)
def test_the_table_never_fails(first, second):
    for row in side_by_side(first, summarize(first.trace), second, summarize(second.trace)):
        assert row.first and row.second and row.ratio


# ── the time axis ─────────────────────────────────────────────────────────────────────────────────────────


@given(st.floats(1e-9, 1e9))
def test_ticks_are_round_and_never_too_narrow(least):
    step = round_step(least)
    assert least * 0.999 <= step <= 10.001 * least
    assert re.match(r"[125]", f"{step:.6e}")


def test_times_have_as_many_decimals_as_tell_moments_apart():
    assert TimeScale(0, 0.44, 0, 100).words(0.0619) == "61.9 ms"
    assert TimeScale(0, 12.0, 0, 100).words(3.14159) == "3.14 s"
    assert TimeScale(0, 5000.0, 0, 100).words(1234.5) == "1,234 s"
