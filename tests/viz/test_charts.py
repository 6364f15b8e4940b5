"""Charts: what is drawn is what was measured, and every point leads to its step."""

import re
from functools import cache
from itertools import pairwise
from random import Random

from hypothesis import given
from hypothesis import strategies as st

from minivllm.trace.summary import summarize
from minivllm.trace.timeline import make_timeline
from tests.viz import trace_factory
from tests.viz.strategies import traces
from tests.viz.trace_factory import Workload
from viz.charts import style
from viz.charts.latencies import distribution
from viz.charts.over_time import OverTime
from viz.charts.style import Steps, spread, stairs
from viz.figures.captions import captions
from viz.measures import KINDS, latencies
from viz.metric_charts import metric_charts

numbers = st.builds(
    lambda count, seed: [float(value) for value in Random(seed).choices(range(1000), k=count)],
    st.sampled_from([1, 2, style.MOST_DRAWN, style.MOST_DRAWN + 1, 1500]),
    st.integers(0, 1000),
)


@given(traces)
def test_every_point_of_every_chart_says_something_and_leads_to_a_step(trace):
    timeline = make_timeline(trace)
    charts = metric_charts(timeline)
    assert {chart.num_steps for chart in charts} == {timeline.num_steps}
    for chart in charts:
        steps = [point.step for point in chart.points]
        assert all(0 <= step < timeline.num_steps for step in steps)
        assert all(point.words for point in chart.points)
        assert all(0 <= point.x <= chart.width and 0 <= point.y <= chart.height for point in chart.points)
        if chart.axis:
            assert steps == sorted(steps) and len(chart.axis.ends) == timeline.num_steps


@given(traces)
def test_every_duration_knows_the_step_that_ended_it(trace):
    timeline = make_timeline(trace)
    found = latencies(timeline)
    for kind in KINDS:
        assert len(getattr(found, kind)) == len(found.steps[kind])
    summary = summarize(trace)
    assert summary.ttft.count == len(found.ttft)
    for step in (*found.steps["ttft"], *found.steps["inter_token"]):
        assert timeline.records[step].sampled


@given(numbers)
def test_stairs_lose_no_peak_and_end_where_the_run_ends(values):
    count = len(values)
    corners = stairs(Steps(range(count), range(1, count + 1)), values)
    assert max(y for _x, y in corners) == max(values) and min(y for _x, y in corners) == min(values)
    assert corners[0][0] == 0 and corners[-1] == (count, values[-1])
    places = [x for x, _y in corners]
    assert places == sorted(places) and len(corners) <= 8 * style.MOST_DRAWN + 2
    for (x0, y0), (x1, y1) in pairwise(corners):
        assert x0 == x1 or y0 == y1, "a line with steps goes across or up, never askew"


@given(st.integers(0, 5000), st.integers(2, 200))
def test_of_many_some_are_spread_evenly_the_first_and_the_last_among_them(count, most):
    found = spread(count, most)
    assert len(found) == min(count, most) and found == sorted(set(found))
    assert not count or (found[0], found[-1]) == (0, count - 1)


@cache
def a_run():
    return make_timeline(trace_factory.make(Workload(num_requests=8, num_blocks=40, arrival_gap=1.0)))


def test_a_step_of_the_player_is_a_line_over_the_time_of_the_run():
    timeline = a_run()
    scene = OverTime(timeline, captions(timeline)).queues("Queues")
    line = next(index for index, shape in enumerate(scene.shapes) if shape.get("fill") == "cursor")
    places = [scene.at(step)[line]["x"] for step in range(scene.num_steps)]
    assert places == sorted(places) and places[0] < places[-1]
    words = scene.points[-1].words
    assert re.search(r"^step \d+, .*: running: \d", words), words


def test_a_point_of_a_distribution_names_its_case():
    scene = distribution([0.4, 0.1, 0.2], [7, 3, 5], "Latency", "decode", ["", *[""] * 7])
    assert [point.step for point in scene.points] == [3, 5, 7]
    assert scene.points[-1].words.startswith("400 ms: 100% of the cases took no longer")
