"""The Perfetto export keeps to the Trace Event Format, and tells the same story as the timeline."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minivllm.trace.events import BlockCopied, RequestPreempted, SequenceForked, StepAbandoned
from minivllm.trace.perfetto import ENGINE, KV_CACHE, REQUESTS, to_chrome_trace, write_perfetto
from minivllm.trace.timeline import Phase, make_timeline
from tests.trace.interrupted_factory import interrupted_traces
from tests.viz import trace_factory
from tests.viz.strategies import sharing_traces, traces
from tests.viz.trace_factory import Workload

NEEDED = {
    "M": {"args"},
    "X": {"ts", "dur", "tid"},
    "C": {"ts", "args"},
    "i": {"ts", "s", "tid"},
    "s": {"ts", "id", "tid"},
    "f": {"ts", "id", "tid", "bp"},
}


@given(st.one_of(traces, interrupted_traces))
def test_every_record_has_what_its_kind_needs(trace):
    for record in to_chrome_trace(trace)["traceEvents"]:
        assert {"ph", "pid", "name"} <= record.keys()
        assert NEEDED[record["ph"]] <= record.keys()
        assert record["pid"] in (ENGINE, REQUESTS, KV_CACHE)
        assert record.get("ts", 0) >= 0 and record.get("dur", 1) > 0
        if record["ph"] == "C":
            assert all(isinstance(value, int) and value >= 0 for value in record["args"].values())


@given(traces)
def test_no_track_has_the_number_of_its_process(trace):
    for record in to_chrome_trace(trace)["traceEvents"]:
        assert record.get("tid") != record["pid"]


@given(st.one_of(traces, interrupted_traces))
def test_slices_of_a_track_never_cross_each_other(trace):
    tracks = {}
    for record in to_chrome_trace(trace)["traceEvents"]:
        if record["ph"] == "X":
            tracks.setdefault((record["pid"], record["tid"]), []).append(
                (record["ts"], record["ts"] + record["dur"])
            )
    slack = 0.01  # times are rounded to a nanosecond
    for slices in tracks.values():
        slices.sort(key=lambda pair: (pair[0], -pair[1]))
        open_until = []
        for start, end in slices:
            while open_until and open_until[-1] <= start + slack:
                open_until.pop()
            assert not open_until or end <= open_until[-1] + slack
            open_until.append(end)


@given(traces)
def test_every_step_and_every_span_is_a_slice(trace):
    timeline = make_timeline(trace)
    records = to_chrome_trace(trace)["traceEvents"]
    slices = [record for record in records if record["ph"] == "X"]
    steps = [record for record in slices if record["name"].startswith("step ")]
    assert len(steps) == trace.num_steps
    names = {
        r["tid"]: r["args"]["name"] for r in records if r["name"] == "thread_name" and r["pid"] == REQUESTS
    }
    for request, spans in timeline.spans.items():
        shown = [r for r in slices if r["pid"] == REQUESTS and names[r["tid"]] == request]
        assert not [r for r in shown if r["name"].startswith("sequence")], "forks have tracks of their own"
        assert [(r["name"], r["args"]["first_step"], r["args"]["last_step"]) for r in shown] == [
            (span.phase.value, span.first, span.last) for span in spans
        ]


def test_preemptions_are_instants_on_the_track_of_their_request():
    trace = trace_factory.make(Workload(num_requests=6, num_blocks=14, output=(40, 60), arrival_gap=0.5))
    timeline = make_timeline(trace)
    records = to_chrome_trace(trace)["traceEvents"]
    instants = [record for record in records if record["ph"] == "i"]
    assert len(instants) == sum(len(step.preempted) for step in timeline.records) > 0
    assert {record["pid"] for record in instants} == {REQUESTS}
    preempted = [r for r in records if r["ph"] == "X" and r["name"] == Phase.PREEMPTED]
    assert {record["tid"] for record in preempted} == {record["tid"] for record in instants}


def test_counters_of_the_pool_add_up_to_its_size():
    trace = trace_factory.make(Workload())
    counters = [
        r["args"] for r in to_chrome_trace(trace)["traceEvents"] if r["ph"] == "C" and r["name"] == "blocks"
    ]
    assert len(counters) == trace.num_steps
    assert all(counter["used"] + counter["free"] == trace.header.num_blocks for counter in counters)


@given(sharing_traces)
def test_counters_of_a_pool_with_a_cache_add_up_too(trace):
    counters = {}
    for record in to_chrome_trace(trace)["traceEvents"]:
        if record["ph"] == "C":
            counters.setdefault(record["name"], []).append(record["args"])
    assert all(sum(values.values()) == trace.header.num_blocks for values in counters["blocks"])
    assert all("cached" in values for values in counters["blocks"]) == bool(trace.header.prefix_cache)
    assert ("swap space" in counters) == bool(trace.header.num_host_blocks)
    for values in counters.get("swap space", ()):
        assert sum(values.values()) == trace.header.num_host_blocks


@given(sharing_traces)
def test_every_fork_is_an_arrow_between_slices(trace):
    records = to_chrome_trace(trace)["traceEvents"]
    forks = [event for event in trace.events if isinstance(event, SequenceForked)]
    for kind in "sf":
        assert sorted(r["id"] for r in records if r["ph"] == kind) == sorted(f.child for f in forks)
    slices = [r for r in records if r["ph"] == "X" and r["pid"] == REQUESTS]
    for arrow in records:
        if arrow["ph"] in "sf":
            around = [
                r
                for r in slices
                if r["tid"] == arrow["tid"] and r["ts"] - 0.01 <= arrow["ts"] <= r["ts"] + r["dur"] + 0.01
            ]
            assert around, "an arrow begins and ends on a slice"


@given(sharing_traces)
def test_copies_and_swaps_are_instants(trace):
    records = to_chrome_trace(trace)["traceEvents"]
    names = [record["name"] for record in records if record["ph"] == "i"]
    assert names.count("copy-on-write") == sum(isinstance(event, BlockCopied) for event in trace.events)
    swaps = [e for e in trace.events if isinstance(e, RequestPreempted) and e.mode == "swap"]
    assert names.count("swapped out") == len(swaps)
    assert names.count("failed") == sum(isinstance(event, StepAbandoned) for event in trace.events)


def test_the_file_is_json_with_the_header(tmp_path):
    trace = trace_factory.make(Workload(names="</script>{}"))
    path = tmp_path / "run.json"
    write_perfetto(trace, path)
    data = json.loads(path.read_text(encoding="utf-8"))
    assert data["otherData"]["num_blocks"] == trace.header.num_blocks
    with pytest.raises(ValueError, match="cannot write to"):
        write_perfetto(trace, tmp_path / "missing" / "run.json")
