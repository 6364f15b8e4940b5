"""Perfetto export: a trace goes in, a Chrome Trace Event file comes out (ui.perfetto.dev, chrome://tracing).

These tools are what performance engineers use to look at timelines; here a run of ours becomes one:

    process 1  engine      one slice per step, its parts inside; batch tokens and queues as counters
    process 2  requests    one track per request: waiting, prefill, decode, preempted …; if it forks, one more
                           for each sequence that lives beside the first, with an arrow from its parent
    process 3  KV cache    blocks used, cached and free, slots filled and wasted, as counters
    process 4  rank 0      if several ranks compute: a process for each, with a slice for each step and in it
               …           one for each time that it sent, received or waited; the rest is computing

All times are microseconds since the trace's header. A track's `tid` never equals its `pid`: the viewer would
take the track for the process's main thread and hide its name. Flow arrows (`s`, `f`) are for forks alone.

Source: the Trace Event Format document of the Chromium project. Read next: `viz/figures/scheduler_gantt.py`,
which draws the same spans.
"""

from __future__ import annotations

from heapq import heappop, heappush
from pathlib import Path
from typing import Any

import msgspec

from minivllm.files import write_file
from minivllm.trace.rank_times import Doing, rank_steps
from minivllm.trace.reader import Trace
from minivllm.trace.timeline import Phase, StepRecord, Timeline, make_timeline

ENGINE, REQUESTS, KV_CACHE, FIRST_RANK = 1, 2, 3, 4
STEPS_TRACK = 10
FIRST_REQUEST_TRACK = 100
RANK_TRACK = 10_000
"""No rank's process has this number."""

Record = dict[str, Any]


def to_chrome_trace(trace: Trace) -> dict[str, Any]:
    """The whole run as one JSON object. Raises `TraceError` if the events contradict each other."""
    timeline = make_timeline(trace)
    arrivals: dict[str, float] = {}
    for sequence in timeline.sequences.values():
        arrivals.setdefault(sequence.request, sequence.queued_time)
    lanes = _lanes(timeline)
    tracks = _tracks(timeline, lanes)
    records = _names(tracks)
    for step in timeline.records:
        records += _step(step, trace)
        records += _instants(step, timeline, tracks)
        records += _forks(step, timeline, lanes, tracks)
    for request in timeline.spans:
        records += _request(timeline, request, tracks[request, 0], arrivals.get(request))
    records += _ranks(trace)
    header = msgspec.to_builtins(trace.header)
    return {"traceEvents": records, "displayTimeUnit": "ms", "otherData": header}


def write_perfetto(trace: Trace, path: str | Path) -> None:
    """Write the export to a file, whole or not at all. Raises `CannotWrite` if that cannot be."""
    write_file(path, msgspec.json.encode(to_chrome_trace(trace)), "out")


def _microseconds(seconds: float) -> float:
    return round(seconds * 1e6, 3)


def _lanes(timeline: Timeline) -> dict[int, int]:
    """Sequence → its lane among those of its request: 0 for the first, a free one for each fork.

    A long search forks and prunes hundreds of times, and never has more than a few sequences at once.
    """
    lanes: dict[int, int] = {}
    free: dict[str, list[int]] = {}
    used: dict[str, int] = {}
    for record in timeline.records:
        for fork in record.forked:
            spare = free.setdefault(fork.request, [])
            if spare:
                lanes[fork.child] = heappop(spare)
            else:
                lanes[fork.child] = used[fork.request] = used.get(fork.request, 0) + 1
        for sequence in record.finished:
            if lane := lanes.get(sequence.seq):
                heappush(free[sequence.request], lane)
    return lanes


def _tracks(timeline: Timeline, lanes: dict[int, int]) -> dict[tuple[str, int], int]:
    """`(request, lane)` → the number of its track, a request's lanes one after the other."""
    most = dict.fromkeys(timeline.spans, 0)
    for seq, lane in lanes.items():
        request = timeline.sequences[seq].request
        most[request] = max(most[request], lane)
    places = ((request, lane) for request, last in most.items() for lane in range(last + 1))
    return {place: FIRST_REQUEST_TRACK + index for index, place in enumerate(places)}


def _names(tracks: dict[tuple[str, int], int]) -> list[Record]:
    processes = ((ENGINE, "engine"), (REQUESTS, "requests"), (KV_CACHE, "KV cache"))
    records = [_metadata(pid, 0, "process_name", name=name) for pid, name in processes]
    records += [_metadata(pid, 0, "process_sort_index", sort_index=pid) for pid, _ in processes]
    records.append(_metadata(ENGINE, STEPS_TRACK, "thread_name", name="steps"))
    for (request, lane), track in tracks.items():
        name = f"{request} · fork {lane}" if lane else request
        records.append(_metadata(REQUESTS, track, "thread_name", name=name))
        records.append(_metadata(REQUESTS, track, "thread_sort_index", sort_index=track))
    return records


def _metadata(pid: int, tid: int, name: str, /, **args: Any) -> Record:
    return {"ph": "M", "pid": pid, "tid": tid, "name": name, "args": args}


def _ranks(trace: Trace) -> list[Record]:
    """A process for each rank, one slice for each step, and within it what is no computing."""
    steps = rank_steps(trace)
    places = {one.rank: f" · stage {one.stage}, tensor {one.tensor}" for one in trace.header.ranks}
    records = []
    for rank in sorted({one.rank for step in steps.values() for one in step}):
        pid = FIRST_RANK + rank
        name = f"rank {rank}{places.get(rank, '')}"
        records.append(_metadata(pid, 0, "process_name", name=name))
        records.append(_metadata(pid, 0, "process_sort_index", sort_index=pid))
    for number, step in steps.items():
        for one in step:
            own = FIRST_RANK + one.rank, RANK_TRACK
            records.append(_slice(*own, f"step {number}", one.start, one.end, step=number))
            records += [
                _slice(*own, str(part.doing), part.start, part.end, step=number)
                for part in one.stretches
                if part.doing is not Doing.COMPUTE
            ]
    return records


def _slice(pid: int, tid: int, name: str, start: float, end: float, **args: Any) -> Record:
    # The viewer drops slices without a length, and a virtual clock may give a step none.
    duration = max(_microseconds(end - start), 0.001)
    return {
        "ph": "X",
        "pid": pid,
        "tid": tid,
        "name": name,
        "cat": "request" if pid == REQUESTS else "step" if pid == ENGINE else "rank",
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
    if record.is_ahead:
        args["planned_ahead_microseconds"] = _microseconds(record.seconds.get("schedule", 0.0))
    records = [_slice(ENGINE, STEPS_TRACK, f"step {record.step}", record.start, record.end, **args)]
    start = record.start
    for part, seconds in record.seconds.items():
        if part == "attention" or (part == "schedule" and record.is_ahead):
            continue
        if start + seconds <= record.end:
            records.append(_slice(ENGINE, STEPS_TRACK, part, start, start + seconds))
            start += seconds
    used, slots = record.num_used_blocks, record.num_used_blocks * header.block_size
    wasted = slots - record.num_filled_slots
    blocks = {"used": used, "free": header.num_blocks - used - record.num_evictable_blocks}
    if header.prefix_cache:
        blocks["cached"] = record.num_evictable_blocks
    if header.num_host_blocks:
        in_use = record.num_host_blocks
        swap_space = {"used": in_use, "free": header.num_host_blocks - in_use}
        records.append(_counter(KV_CACHE, "swap space", record.end, **swap_space))
    return [
        *records,
        _counter(ENGINE, "batch tokens", record.start, prefill=prefill, decode=decode),
        _counter(ENGINE, "queues", record.end, waiting=record.num_waiting, running=record.num_running),
        _counter(KV_CACHE, "blocks", record.end, **blocks),
        _counter(KV_CACHE, "slots", record.end, filled=record.num_filled_slots, wasted=wasted),
    ]


def _instants(record: StepRecord, timeline: Timeline, tracks: dict[tuple[str, int], int]) -> list[Record]:
    """What happens at one moment: on the track of its request, or of the engine."""
    instants: list[Record] = []

    def happens(name: str, of: str | None, **args: Any) -> None:
        track = STEPS_TRACK if of is None else tracks[of, 0]
        process, scope = (ENGINE, "p") if of is None else (REQUESTS, "t")
        instants.append(
            {
                "ph": "i",
                "s": scope,
                "pid": process,
                "tid": track,
                "name": name,
                "ts": _microseconds(record.start),
                "args": {"step": record.step, **args},
            }
        )

    for event in record.preempted:
        if event.mode == "swap":
            happens("swapped out", event.request)
        else:
            happens("preempted", event.request, tokens_given_up=event.num_computed_tokens)
    returning = {timeline.sequences[event.seq].request for event in record.swapped_in}
    for request in sorted(returning):
        happens("swapped in", request)
    for copy in record.copied:
        where = {"seq": copy.seq, "source": copy.source, "target": copy.target}
        happens("copy-on-write", timeline.sequences[copy.seq].request, **where)
    for share in record.shared:
        request = timeline.sequences[share.seq].request
        happens(f"shares ({share.source})", request, seq=share.seq, blocks=len(share.blocks))
    for eviction in record.evicted:
        happens("evicted", None, blocks=len(eviction.blocks), reason=eviction.reason)
    if record.snapshot:
        happens("the trace begins", None, steps_before=record.snapshot.num_steps)
    for rebuilt in record.rebuilt:
        happens("state rebuilt", None, requests=len(rebuilt.requests))
    for attempt in record.abandoned:
        happens("failed", None, error=attempt.error)
    for request, reason in record.refused:
        happens("refused", None, request=request, reason=reason)
    return instants


def _forks(
    record: StepRecord, timeline: Timeline, lanes: dict[int, int], tracks: dict[tuple[str, int], int]
) -> list[Record]:
    """A slice for each new sequence, from its fork to its end, and an arrow that leads to it."""
    records: list[Record] = []
    born = record.end
    for fork in record.forked:
        child = timeline.sequences[fork.child]
        dies = child.finished_time if child.finished_time is not None else timeline.records[-1].end
        track = tracks[fork.request, lanes[fork.child]]
        records.append(
            _slice(REQUESTS, track, f"sequence {fork.child}", born, max(born, dies), parent=fork.parent)
        )
        arrow: Record = {"cat": "fork", "name": "fork", "id": fork.child, "pid": REQUESTS}
        leaves = max(_microseconds(record.start), _microseconds(born) - 0.001)  # within the parent's slice
        records.append(
            {**arrow, "ph": "s", "tid": tracks[fork.request, lanes.get(fork.parent, 0)], "ts": leaves}
        )
        records.append({**arrow, "ph": "f", "bp": "e", "tid": track, "ts": _microseconds(born)})
    return records


def _request(timeline: Timeline, request: str, track: int, arrival: float | None) -> list[Record]:
    """One slice for each span; the first one begins when the request arrived, between two steps."""
    slices = []
    for index, span in enumerate(timeline.spans[request]):
        start = timeline.records[span.first].start
        if index == 0 and span.phase is Phase.WAITING and arrival is not None:
            start = min(start, arrival)
        end = timeline.records[span.last].end
        steps = {"first_step": span.first, "last_step": span.last}
        slices.append(_slice(REQUESTS, track, span.phase.value, start, end, **steps))
    return slices
