"""The numbers of a run, and what it doubts of itself."""

import json
import math
from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minivllm.lab.bench.serve.doubts import kept_up, with_doubts
from minivllm.lab.bench.serve.goodput import parse_goodput
from minivllm.lab.bench.serve.plot import draw
from minivllm.lab.bench.serve.record import Record, Run
from minivllm.lab.bench.serve.results import LATENCIES, details, measure, most_at_once

VLLM_FIELDS = {
    *("duration", "completed", "failed", "total_input_tokens", "total_output_tokens", "request_throughput"),
    *("request_goodput", "output_throughput", "total_token_throughput", "request_rate", "max_concurrency"),
    *("max_output_tokens_per_s", "max_concurrent_requests"),
    *(f"{what}_{name}_ms" for what in ("mean", "median", "std", "p99") for name in LATENCIES),
}
"""As `vllm bench serve --save-result` writes them."""


def record(sent=0.0, first=0.1, gaps=(0.01, 0.01), error="", wanted=None, due=None, counted=True):
    times = array("d", [sent + first])
    for gap in gaps:
        times.append(times[-1] + gap)
    tokens = len(times)
    one = Record(
        "r", sent if due is None else due, tokens if wanted is None else wanted, sent, times[-1], times
    )
    one.prompt_tokens, one.output_tokens, one.error, one.is_counted = 5, tokens, error, counted
    return one


records = st.builds(
    record,
    sent=st.floats(0, 10),
    first=st.floats(0.001, 5),
    gaps=st.lists(st.floats(0.0001, 1), max_size=5),
    error=st.sampled_from(["", "", "the connection failed"]),
)


@given(found=st.lists(records, min_size=1, max_size=12))
def test_failures_are_counted_and_are_in_no_number_of_the_others(found):
    good = [one for one in found if not one.error]
    both = measure(Run(found, 10.0), "open")
    alone = measure(Run(good, 10.0), "open")
    assert (both.completed, both.failed) == (len(good), len(found) - len(good))
    assert sum(both.errors.values()) == both.failed
    assert repr(both.latencies) == repr(alone.latencies)  # NaN is not equal to itself
    assert both.output_throughput == alone.output_throughput
    assert bool(both.failed) == any("failed" in doubt for doubt in with_doubts(both).doubts)


@given(found=st.lists(records, min_size=1, max_size=12))
def test_percentiles_are_in_order_and_a_result_is_json_under_vllms_names(found):
    result = with_doubts(measure(Run(found, 10.0), "closed", max_concurrency=4))
    for spread in result.latencies.values():
        if not math.isnan(spread.p50):
            assert spread.p50 <= spread.p90 * (1 + 1e-9) <= spread.p99 * (1 + 1e-9) + 1e-9
    fields = json.loads(json.dumps(result.fields(), allow_nan=False))
    assert fields.keys() >= VLLM_FIELDS
    assert len(details(Run(found, 10.0))["ttfts"]) == len(found)


def test_the_latencies_of_one_request_are_those_of_its_picture():
    one = record(sent=2.0, first=0.5, gaps=(0.1, 0.3))
    assert one.ttft == pytest.approx(0.5) and one.e2el == pytest.approx(0.9)
    assert one.tpot == pytest.approx(0.2) and one.gaps() == pytest.approx([0.1, 0.3])
    assert record(gaps=()).tpot is None


@given(
    found=st.lists(records, max_size=10),
    ttft=st.floats(1, 6000),
    tpot=st.floats(0.1, 1500),
    more=st.floats(0, 1000),
)
def test_goodput_is_at_most_the_throughput_and_grows_with_the_bounds(found, ttft, tpot, more):
    def good(**bounds):
        return measure(Run(found, 5.0), "open", goodput=bounds).request_goodput

    every = measure(Run(found, 5.0), "open").request_throughput
    assert good(ttft=ttft, tpot=tpot) <= good(ttft=ttft + more, tpot=tpot) <= every
    assert good(ttft=1e9) == every


def test_goodput_is_read_in_vllms_form():
    assert (
        parse_goodput(["ttft:100", "tpot:20"])
        == parse_goodput(["ttft:100 tpot:20"])
        == {"ttft": 100, "tpot": 20}
    )
    for words in (
        ["ttft"],
        ["ttft:x"],
        ["ttft:0"],
        ["ttft:-1"],
        ["itl:3"],
        ["ttft:1", "ttft:2"],
        ["ttft:inf"],
    ):
        with pytest.raises(ValueError, match="goodput"):
            parse_goodput(words)


@pytest.mark.parametrize(
    ("run", "mode", "words"),
    [
        (Run([record(due=-1.0)], 1.0), "open", "sent late"),
        (Run([record(due=-1.0)], 1.0), "capped", "not an open loop"),
        (Run([record()], 1.0, loop_lags=[0.5] * 10), "closed", "event loop woke up"),
        (Run([record()], 1.0, client_cpu_seconds=0.99), "closed", "cores"),
        (Run([record(wanted=9)], 1.0), "closed", "fewer tokens"),
        (Run([record(counted=False)], 1.0), "closed", "did not count"),
        (Run([record(error="gone"), record()], 1.0), "closed", "1 of 2 requests failed"),
    ],
)
def test_each_doubt_is_told(run, mode, words):
    assert any(words in doubt for doubt in with_doubts(measure(run, mode, max_concurrency=2)).doubts)


def test_bunches_are_told_and_a_good_run_has_no_doubts():
    bunched = record()
    bunched.output_tokens = 9
    assert "ITL is between chunks" in with_doubts(measure(Run([bunched], 1.0), "closed")).doubts[0]
    assert with_doubts(measure(Run([record()], 1.0), "open")).doubts == ()


@given(found=st.lists(records, max_size=10))
def test_most_at_once_is_what_counting_at_every_moment_gives(found):
    moments = [one.sent for one in found]
    counted = [sum(one.sent <= now < one.last for one in found) for now in moments]
    assert most_at_once(found) == max(counted, default=0)


def test_a_server_that_falls_behind_is_noticed():
    slow = measure(Run([record(sent=index / 10, first=9.0) for index in range(10)], 10.0), "open")
    assert not kept_up(slow)


def test_a_picture_has_a_point_for_each_rate_hollow_where_there_is_doubt():
    runs = [measure(Run([record(sent=i / r) for i in range(4)], 1.0), "open", request_rate=r) for r in (1, 2)]
    figure = draw(
        [runs[0], with_doubts(measure(Run([record(due=-1.0)], 1.0), "open", request_rate=3))], "$x$"
    )
    figure.draw_without_rendering()
    styles = {
        line.get_fillstyle() for axes in figure.axes for line in axes.get_lines() if line.get_marker() == "o"
    }
    assert styles == {"full", "none"}
