"""Traces that older versions of this program wrote open, and replay to what the old engine knew.

`old_traces/version_N.jsonl` was written by the program that wrote version N, and `version_N.snapshots.jsonl`
holds the snapshot of its engine after each step.
"""

from pathlib import Path

import msgspec
import pytest

from minivllm.trace.events import VERSION, BlocksEvicted, RequestPreempted, TraceEnded
from minivllm.trace.perfetto import to_chrome_trace
from minivllm.trace.reader import read_trace
from minivllm.trace.replay import EngineSnapshot, Replay
from minivllm.trace.summary import summarize
from minivllm.trace.upgrade import upgrade_event

FOLDER = Path(__file__).parent / "old_traces"
OLD_VERSIONS = range(1, VERSION)


def old_trace(version):
    return read_trace(FOLDER / f"version_{version}.jsonl")


@pytest.mark.parametrize("version", OLD_VERSIONS)
def test_an_old_trace_replays_to_the_snapshots_of_the_engine_that_wrote_it(version):
    trace = old_trace(version)
    assert trace.warnings == [] and isinstance(trace.events[-1], TraceEnded)
    lines = (FOLDER / f"version_{version}.snapshots.jsonl").read_bytes().splitlines()
    snapshots = [msgspec.json.decode(line, type=EngineSnapshot) for line in lines]
    assert len(snapshots) == trace.num_steps
    for step, state in Replay(trace).walk():
        assert state.snapshot() == snapshots[step]


@pytest.mark.parametrize("version", OLD_VERSIONS)
def test_an_old_trace_can_be_summarised_and_exported(version):
    trace = old_trace(version)
    assert trace.header.version == VERSION, "in memory, every trace is of the present version"
    assert summarize(trace).num_requests == 9
    assert to_chrome_trace(trace)["traceEvents"]


def test_old_names_became_new_ones():
    lines = (FOLDER / "version_2.jsonl").read_text().splitlines()
    preempted = [e for e in old_trace(2).events if isinstance(e, RequestPreempted)]
    old = [e for e in map(msgspec.json.decode, lines) if e["event"] == "RequestPreempted"]
    shortages = {"place": "batch_slots", "blocks": "blocks"}
    assert [e.preempted_for for e in preempted] == [e["in_favour_of"] for e in old]
    assert [e.shortage for e in preempted] == [shortages[e["lack"]] for e in old]
    assert {e.shortage for e in preempted} == {"batch_slots", "blocks"}
    reasons = [e.reason for e in old_trace(2).events if isinstance(e, BlocksEvicted)]
    assert set(reasons) == {"capacity", "abandoned"}


def test_only_what_changed_is_changed():
    assert upgrade_event({"event": "StepStarted", "lack": "place"}) == {
        "event": "StepStarted",
        "lack": "place",
    }
    kept = {"event": "BlocksEvicted", "blocks": [1], "reason": "reset"}
    assert upgrade_event(kept) == kept


@pytest.mark.parametrize("cut", [b'{"event":"BlocksEvi', b"[1,2]"])
def test_an_old_trace_may_have_been_cut_off_too(tmp_path, cut):
    whole = (FOLDER / "version_2.jsonl").read_bytes().splitlines(keepends=True)
    path = tmp_path / "cut.jsonl"
    path.write_bytes(b"".join(whole[:40]) + cut)
    trace = read_trace(path)
    assert len(trace.events) == 39
    assert any("left out" in warning for warning in trace.warnings)
