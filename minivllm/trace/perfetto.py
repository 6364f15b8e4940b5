"""Perfetto export: a trace goes in, a Chrome Trace Event file comes out (ui.perfetto.dev, chrome://tracing).

Those tools are what performance engineers use to look at timelines; here a run of ours becomes one:

    process 1  engine      one slice per step, its parts inside; batch tokens and queues as counters
    process 2  requests    one track per request: waiting, prefill, decode, preempted …
    process 3  KV cache    blocks used and free, slots filled and wasted, as counters

All times are microseconds since the trace's header. A track's `tid` never equals its `pid`: the viewer would
take the track for the process's main thread and hide its name. Flow arrows (`s`, `f`) are kept for forks.

Source: the Trace Event Format document of the Chromium project. Read next: `viz/figures/scheduler_gantt.py`,
which draws the same spans.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from minivllm.trace.reader import Trace
from minivllm.trace.timeline import Phase, StepRecord, Timeline, make_timeline

ENGINE, REQUESTS, KV_CACHE = 1, 2, 3
STEPS_TRACK = 10
FIRST_REQUEST_TRACK = 100

Record = dict[str, Any]


def to_chrome_trace(trace: Trace) -> dict[str, Any]:
    """The whole run as one JSON object. Raises `TraceError` if the events contradict each other."""
    timeline = make_timeline(trace)
    tracks = {request: FIRST_REQUEST_TRACK + index for index, request in enumerate(timeline.spans)}
    records = _names(tracks)
    for step in timeline.records:
        records += _step(step, trace)
        records += _instants(step, tracks)
    for request, track in tracks.items():
        records += _request(timeline, request, track)
    header = msgspec.to_builtins(trace.header)
    return {"traceEvents": records, "displayTimeUnit": "ms", "otherData": header}


def write_perfetto(trace: Trace, path: str | Path) -> None:
    """Write the export to a file. Raises `ValueError` if the file cannot be written."""
    try:
        Path(path).write_bytes(msgspec.json.encode(to_chrome_trace(trace)))
    except OSError as error:
        raise ValueError(f"{path} cannot be written: {error.strerror}") from error


def _microseconds(seconds: float) -> float:
    return round(seconds * 1e6, 3)


def _names(tracks: dict[str, int]) -> list[Record]:
    processes = ((ENGINE, "engine"), (REQUESTS, "requests"), (KV_CACHE, "KV cache"))
    records = [_metadata(pid, 0, "process_name", name=name) for pid, name in processes]
    records += [_metadata(pid, 0, "process_sort_index", sort_index=pid) for pid, _ in processes]
    records.append(_metadata(ENGINE, STEPS_TRACK, "thread_name", name="steps"))
    for request, track in tracks.items():
        records.append(_metadata(REQUESTS, track, "thread_name", name=request))
        records.append(_metadata(REQUESTS, track, "thread_sort_index", sort_index=track))
    return records


def _metadata(pid: int, tid: int, name: str, /, **args: Any) -> Record:
    return {"ph": "M", "pid": pid, "tid": tid, "name": name, "args": args}


def _slice(pid: int, tid: int, name: str, start: float, end: float, **args: Any) -> Record:
    # The viewer drops slices without a length, and a virtual clock may give a step none.
    duration = max(_microseconds(end - start), 0.001)
    return {
        "ph": "X",
        "pid": pid,
        "tid": tid,
        "name": name,
        "cat": "step" if pid == ENGINE else "request",
        "ts": _microseconds(start),
        "dur": duration,
        "args": args,
    }


def _counter(pid: int, name: str, time: float, **values: int) -> Record:
    return {"ph": "C", "pid": pid, "name": name, "ts": _microseconds(time), "args": values}


def _step(record: StepRecord, trace: Trace) -> list[Record]:
    """One slice for the step, its parts inside it, and the counters as the step left them."""
    header = trace.header
    prefill, decode = record.num_tokens(Phase.PREFILL), record.num_tokens(Phase.DECODE)
    args: dict[str, Any] = {
        "prefill_tokens": prefill,
        "decode_tokens": decode,
        "batch": [[item.request, item.phase.value, item.num_tokens] for item in record.batch],
    }
    if "attention" in record.seconds:
        # A number and no slice: attention runs once per layer, not in one stretch.
        args["attention_microseconds"] = _microseconds(record.seconds["attention"])
    records = [_slice(ENGINE, STEPS_TRACK, f"step {record.step}", record.start, record.end, **args)]
    start = record.start
    for part, seconds in record.seconds.items():
        if part != "attention" and start + seconds <= record.end:
            records.append(_slice(ENGINE, STEPS_TRACK, part, start, start + seconds))
            start += seconds
    used, slots = record.num_used_blocks, record.num_used_blocks * header.block_size
    wasted = slots - record.num_filled_slots
    return [
        *records,
        _counter(ENGINE, "batch tokens", record.start, prefill=prefill, decode=decode),
        _counter(ENGINE, "queues", record.end, waiting=record.num_waiting, running=record.num_running),
        _counter(KV_CACHE, "blocks", record.end, used=used, free=header.num_blocks - used),
        _counter(KV_CACHE, "slots", record.end, filled=record.num_filled_slots, wasted=wasted),
    ]


def _instants(record: StepRecord, tracks: dict[str, int]) -> list[Record]:
    instants: list[Record] = []
    for request, lost in record.preempted:
        where: Record = {"s": "t", "pid": REQUESTS, "tid": tracks[request]}
        args: Record = {"request": request, "tokens_given_up": lost, "step": record.step}
        instants.append(where | {"ph": "i", "name": "preempted", "args": args})
    for request, reason in record.refused:
        where = {"s": "p", "pid": ENGINE, "tid": STEPS_TRACK}
        instants.append(
            where | {"ph": "i", "name": "refused", "args": {"request": request, "reason": reason}}
        )
    for instant in instants:
        instant["ts"] = _microseconds(record.start)
    return instants


def _request(timeline: Timeline, request: str, track: int) -> list[Record]:
    """One slice for each span; the first one begins when the request arrived, between two steps."""
    arrivals = [s.queued_time for s in timeline.sequences.values() if s.request == request]
    slices = []
    for index, span in enumerate(timeline.spans[request]):
        start = timeline.records[span.first].start
        if index == 0 and span.phase is Phase.WAITING and arrivals:
            start = min(start, arrivals[0])
        end = timeline.records[span.last].end
        steps = {"first_step": span.first, "last_step": span.last}
        slices.append(_slice(REQUESTS, track, span.phase.value, start, end, **steps))
    return slices
