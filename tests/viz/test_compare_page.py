"""The pages that compare and measure, in Streamlit's own test harness and in a browser."""

import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minivllm.trace.percentiles import percentiles
from minivllm.trace.reader import read_trace
from minivllm.trace.timeline import make_timeline
from tests import patience
from tests.viz import static_factory, trace_factory
from tests.viz.conftest import SIZE, watched_window
from tests.viz.narrow import fits
from tests.viz.test_browser import go_to
from tests.viz.test_pages import payloads, run_app, run_page, sharing_file, trace_file, words
from tests.viz.trace_factory import Workload
from viz import loading
from viz.charts import latencies as latency_charts
from viz.charts import over_time
from viz.figures.moments import merge, steps_of_first
from viz.metric_panels import NOTHING
from viz.plain import plain
from viz.views import compare, metrics

__all__ = ["sharing_file", "trace_file"]

LOAD = Workload(
    num_requests=10, num_blocks=64, arrival_gap=1.0, output=(5, 30), prompt=(8, 60), max_num_seqs=4
)


@pytest.fixture
def folder(tmp_path):
    """The same requests, batched in two ways, and a file that is no trace."""
    return write_both(tmp_path)


def write_both(path):
    trace_factory.write(static_factory.make(LOAD), path / "static.jsonl")
    trace_factory.write(trace_factory.make(LOAD), path / "continuous.jsonl")
    (path / "notes.jsonl").write_text('{"some": "notes"}\n')
    return path


def compare_app(first, second=None):
    def script(first, second):
        from pathlib import Path

        from viz import loading
        from viz.views import compare

        compare.page(loading.open_run(Path(first)))

    from streamlit.testing.v1 import AppTest

    app = AppTest.from_function(script, args=(str(first), None), default_timeout=patience.SECONDS)
    if second is not None:
        app.query_params["with"] = str(second)
    return app.run()


# ── the page ──────────────────────────────────────────────────────────────────────────────────────────────


def test_without_a_second_trace_the_page_asks_for_one_and_lists_its_neighbours(folder):
    app = compare_app(folder / "static.jsonl")
    assert not app.exception and not payloads(app)
    assert app.info[0].value == compare.WITHOUT
    assert app.selectbox[0].options == ["continuous.jsonl"], "what is no trace is not offered"


def test_a_neighbour_can_be_chosen_and_the_link_carries_it(folder):
    app = compare_app(folder / "static.jsonl")
    app.selectbox[0].set_value(app.selectbox[0].options[0]).run()
    assert not app.exception
    [data] = payloads(app)
    assert str(folder / "continuous.jsonl") in app.query_params["with"]
    first, second = (make_timeline(read_trace(folder / f"{name}.jsonl")) for name in ("static", "continuous"))
    moments = merge(first, second)
    assert len(data["captions"]) == len(moments)
    assert data["steps"] == steps_of_first(moments, first)


def test_a_link_opens_both_runs_and_their_numbers(folder):
    app = compare_app(folder / "static.jsonl", folder / "continuous.jsonl")
    assert not app.exception
    [data] = payloads(app)
    assert len(data["scenes"]) == 4, "two pictures, for wide screens and for narrow ones"
    table = app.table[0].value
    labels = plain("static.jsonl"), plain("continuous.jsonl")
    assert list(table.columns) == ["Number", *labels, "second : first"]
    names = list(table["Number"])
    assert {
        "Throughput",
        "TTFT p50",
        "Inter-token latency p99",
        "Padding",
        "Preemptions",
        "Total time",
    } <= set(names)
    assert not app.warning


def test_jumps_of_a_comparison_lead_where_they_say(folder):
    app = compare_app(folder / "continuous.jsonl", folder / "static.jsonl")
    jumps = {jump["label"]: jump["step"] for jump in payloads(app)[0]["jumps"]}
    captions = payloads(app)[0]["captions"]
    assert "of padding" in captions[jumps["first padding"]]
    assert "parked" in captions[jumps["first parked request"]]
    assert not any("parked" in caption for caption in captions[: jumps["first parked request"]])
    assert jumps["end of the faster run"] < jumps["end of the slower run"] == len(captions) - 1
    assert "continuous.jsonl: done" in captions[jumps["end of the faster run"] + 1]


def test_runs_of_other_requests_are_told_apart_from_runs_of_the_same():
    same = [make_timeline(static_factory.make(LOAD)), make_timeline(static_factory.make(LOAD))]
    assert compare.differences(*same) == []
    fewer = make_timeline(static_factory.make(replace(LOAD, num_requests=LOAD.num_requests - 2)))
    assert any("2 requests are only in the first" in words for words in compare.differences(same[0], fewer))
    other = make_timeline(static_factory.make(replace(LOAD, seed=LOAD.seed + 1)))
    assert any("prompt" in words for words in compare.differences(same[0], other))


def test_runs_that_share_nothing_are_compared_with_a_warning(folder, sharing_file):
    strangers = trace_factory.write(
        trace_factory.make(Workload(num_requests=3, names="other-{}")), folder / "strangers.jsonl"
    )
    app = compare_app(folder / "static.jsonl", strangers)
    assert not app.exception and payloads(app)
    assert compare.STRANGERS in [warning.value for warning in app.warning]


def test_any_two_runs_can_be_compared(folder, sharing_file):
    cut = trace_factory.write(
        trace_factory.make(Workload(num_requests=1, cut_short=True)), folder / "cut.jsonl"
    )
    for first, second in ((cut, sharing_file), (sharing_file, cut), (cut, cut)):
        app = compare_app(first, second)
        assert not app.exception and payloads(app)
        assert any("cut off" in warning.value for warning in app.warning) or second == sharing_file


@pytest.mark.parametrize("content", [b"", b"\x00\xffgarbage", None])
def test_a_second_trace_that_cannot_be_read_is_told_in_a_sentence(folder, content):
    path = folder / "bad.jsonl"
    if content is not None:
        path.write_bytes(content)
    app = compare_app(folder / "static.jsonl", path)
    assert not app.exception and not payloads(app)
    assert plain("bad.jsonl") in app.error[0].value
    assert app.text_input, "another one can be chosen at once"


@pytest.mark.parametrize(
    ("first", "second", "labels"),
    [
        ("a/static.jsonl", "a/continuous.jsonl", ("static.jsonl", "continuous.jsonl")),
        ("a/trace.jsonl", "b/trace.jsonl", ("a/trace.jsonl", "b/trace.jsonl")),
        ("a/x/trace.jsonl", "b/x/trace.jsonl", ("a/x/trace.jsonl", "b/x/trace.jsonl")),
        ("trace.jsonl", "b/trace.jsonl", ("trace.jsonl", "b/trace.jsonl")),
        ("a/t.jsonl", "a/t.jsonl", ("t.jsonl (first)", "t.jsonl (second)")),
    ],
)
def test_two_files_are_never_called_the_same(first, second, labels):
    assert compare.side_labels(Path(first), Path(second)) == labels


def test_opening_another_first_trace_keeps_the_second(folder):
    app = run_app(folder / "static.jsonl")
    app.query_params["with"] = str(folder / "continuous.jsonl")
    assert not app.exception


# ── metrics ───────────────────────────────────────────────────────────────────────────────────────────────


def charts_of(app):
    """The charts that the player was given, and what stands below each."""
    (data,) = payloads(app)
    charts = [scene for scene in data["scenes"] if scene["notes"]]
    return {scene["title"]: [words for _kind, words in scene["notes"]] for scene in charts}, data


def test_every_chart_has_a_title_numbers_and_a_sentence(folder):
    app = run_page(metrics, folder / "static.jsonl")
    assert not app.exception
    found, data = charts_of(app)
    assert len(found) == 16 and all(len(notes[0]) > 40 for notes in found.values())
    assert [scene["section"] for scene in data["scenes"] if scene["section"]] == [
        "What users feel",
        "What the owner counts",
        "Finished requests",
    ]
    assert metrics.VIRTUAL in words(app)


def test_numbers_of_the_metrics_page_are_those_of_the_summary(folder):
    found, _data = charts_of(run_page(metrics, folder / "static.jsonl"))
    summary = loading.open_run(folder / "static.jsonl").summary
    told = " ".join(words for notes in found.values() for words in notes)
    assert latency_charts.in_words(summary.ttft) in told
    assert latency_charts.in_words(summary.inter_token) in told
    assert f"Peak {summary.peak_used_blocks:,} of" in told
    assert "padding" in told


def test_the_metrics_of_any_run_can_be_looked_at(sharing_file, trace_file, tmp_path):
    cut = trace_factory.write(
        trace_factory.make(Workload(num_requests=1, cut_short=True, prompt=(500, 500))),
        tmp_path / "cut.jsonl",
    )
    short = tmp_path / "short.jsonl"
    short.write_bytes(b"\n".join(cut.read_bytes().split(b"\n")[:4]) + b"\n")
    for path in (sharing_file, trace_file, cut, short):
        app = run_page(metrics, path)
        assert not app.exception
    found, _data = charts_of(app)
    cut_off = [notes[0] for notes in found.values() if notes[0].startswith(NOTHING)]
    assert len(cut_off) > 3, "a run that was cut off before its first token"


@given(st.lists(st.floats(0, 1e4), min_size=1, max_size=30), st.integers(1, 100))
def test_a_cumulative_curve_rises_to_all_cases_and_never_lies(values, times):
    ordered = sorted(values * times)
    curve = latency_charts.cumulative(ordered)
    assert curve == sorted(curve) and len(curve) <= latency_charts.MOST_POINTS + 7
    assert curve[0] == (ordered[0], 0.0) and curve[-1] == (ordered[-1], 1.0)
    found = percentiles(ordered)
    for share, value in ((0.5, found.p50), (0.9, found.p90), (0.99, found.p99)):
        (x0, y0), (x1, y1) = next(pair for pair in pairwise(curve) if share <= pair[1][1] + 1e-9)
        on_the_curve = x0 + (x1 - x0) * (share - y0) / (y1 - y0)
        assert value == pytest.approx(on_the_curve, rel=1e-6, abs=1e-9)


def test_throughput_in_bins_counts_every_token_once():
    timeline = make_timeline(trace_factory.make(Workload(prompt=(100, 200))))
    assert sum(len(r.batch) for r in timeline.records) > sum(len(r.sampled) for r in timeline.records)
    end = timeline.records[-1].end
    rates = over_time.binned(timeline.records, 0.0, end, 40)
    assert sum(rates) * end / 40 == pytest.approx(sum(len(r.sampled) for r in timeline.records))


def test_parts_of_a_step_add_up_to_its_whole():
    parts = over_time.time_by_part({"schedule": 1.0, "model": 5.0, "attention": 2.0, "sample": 0.5})
    assert sum(parts.values()) == pytest.approx(6.5) and parts["model"] == 3.0


# ── the comparison in a browser ───────────────────────────────────────────────────────────────────────────

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
expect = playwright.expect


def open_compare(page, server, folder, step=None):
    traces = f"trace={quote(str(folder / 'static.jsonl'))}&with={quote(str(folder / 'continuous.jsonl'))}"
    page.goto(f"{server}/compare?{traces}" + (f"&step={step}" if step is not None else ""))
    found = page.locator(".player")
    expect(found.locator(".count")).to_contain_text("moment")
    return found


def at_moment(player, moment):
    expect(player.locator(".count")).to_have_text(re.compile(rf"^moment {moment} of "))


def moments_of(folder):
    first, second = (make_timeline(read_trace(folder / f"{name}.jsonl")) for name in ("static", "continuous"))
    moments = merge(first, second)
    return moments, steps_of_first(moments, first)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """As `folder`, for a browser, to which a path is an address."""
    return write_both(tmp_path_factory.mktemp("compared"))


@pytest.fixture(scope="module")
def kept_open(browser, server, runs):
    """A window that several tests look at."""
    with watched_window(browser) as window:
        open_compare(window, server, runs)
        yield window


@pytest.fixture
def player(kept_open):
    """It compares, and stands at the first moment."""
    kept_open.set_viewport_size(SIZE)
    go_to(kept_open, "Compare")
    found = kept_open.locator(".player")
    expect(found.locator(".count")).to_contain_text("moment")
    kept_open.keyboard.press("Home")
    at_moment(found, 0)
    return found


def test_stepping_moves_both_pictures_to_the_next_moment_and_tells_the_first_runs_step(player, runs):
    page = player.page
    _, steps = moments_of(runs)
    for _ in range(9):
        page.keyboard.press("ArrowRight")
    at_moment(player, 9)
    assert steps[9] < 9, "the other run has steps of its own"
    page.wait_for_url(re.compile(rf"step={steps[9]}\b"))
    expect(player.locator(".caption")).to_contain_text("static.jsonl: Step")
    shown = player.locator(".picture.wide svg")
    assert [shown.nth(number).get_attribute("data-step") for number in (0, 1)] == ["9", "9"]


def test_other_pages_stand_at_the_first_runs_step_and_the_way_back_leads_to_the_same_moment(player, runs):
    page = player.page
    moments, steps = moments_of(runs)
    moment = next(i for i in range(20, len(moments)) if steps[i] == steps[i + 1] == steps[i - 1])
    for _ in range(moment):
        page.keyboard.press("ArrowRight")
    at_moment(player, moment)
    page.wait_for_url(re.compile(rf"step={steps[moment]}\b"))
    go_to(page, "Scheduler")
    expect(player.locator(".count")).to_have_text(re.compile(rf"^step {steps[moment]} of "))
    page.get_by_role("link", name="Compare", exact=True).click()
    at_moment(player, moment)
    go_to(page, "Scheduler")
    expect(player.locator(".count")).to_contain_text("step")
    page.keyboard.press("ArrowRight")
    page.wait_for_url(re.compile(rf"step={steps[moment] + 1}\b"))
    page.get_by_role("link", name="Compare", exact=True).click()
    ends = max(i for i, step in enumerate(steps) if step == steps[moment] + 1)
    at_moment(player, ends)


def test_a_link_with_a_step_leads_to_the_moment_at_which_it_ends(page, server, runs):
    moments, steps = moments_of(runs)
    player = open_compare(page, server, runs, 12)
    moment = max(i for i, step in enumerate(steps) if step == 12)
    at_moment(player, moment)
    assert moments[moment].steps[0] == 12


def test_a_click_goes_to_the_moment_under_the_pointer(player, runs):
    moments, _ = moments_of(runs)
    svg = player.locator(".picture.wide svg").nth(1)
    svg.scroll_into_view_if_needed()
    box = svg.bounding_box()
    end = moments[-1].time
    wanted = 25
    time = (moments[wanted - 1].time + moments[wanted].time) / 2
    x = (56 + (1076 - 56) * time / end) / 1080
    player.page.mouse.click(box["x"] + x * box["width"], box["y"] + box["height"] / 2)
    at_moment(player, wanted)


def test_the_pages_that_measure_do_not_scroll_sideways(player):
    page = player.page
    for name in ("Compare", "Metrics", "Roofline"):
        go_to(page, name)
        expect(page.locator("img[alt], .player svg").locator("visible=true").first).to_be_visible()
        for width in (380, 1000, 1200):
            page.set_viewport_size({"width": width, "height": 800})
            fits(page, width)
