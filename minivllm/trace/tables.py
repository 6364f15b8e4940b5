"""Tables: a trace goes in, four tables come out, for those who would rather ask than look.

    events    one row an event, as the file has it         requests   one row a request: times and tokens
    steps     one row a step: batch, queues, pool          blocks     one row for each change of a block

Times are seconds since the trace's header, on the clock that it names. `COLUMNS` says what each column is; so
do the Parquet files (as metadata of their fields) and `minivllm trace query --tables`.

Read next: `query.py`, which asks them in SQL.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from minivllm.files import write_file
from minivllm.trace.events import AnyEvent, BlockCopied, BlockMerged
from minivllm.trace.reader import Trace
from minivllm.trace.replay import SequenceState
from minivllm.trace.timeline import Phase, StepRecord, Timeline, make_timeline

if TYPE_CHECKING:
    import pyarrow

Row = dict[str, Any]


class Column(NamedTuple):
    """One column: its type in Arrow's words, and what it means."""

    kind: str
    meaning: str


INT, REAL, TEXT = "int64", "float64", "string"
COLUMNS: dict[str, dict[str, Column]] = {
    "events": {
        "number": Column(INT, "its place in the trace, from 0"),
        "step": Column(INT, "the step that it belongs to, from 0; arrivals belong to the step after them"),
        "event": Column(TEXT, "its type: RequestQueued, BlocksAllocated, … (minivllm/trace/events.py)"),
        "request": Column(TEXT, "the request's id, if it is about one"),
        "seq": Column(INT, "the sequence's number, if it is about one"),
        "time": Column(REAL, "when, if it says so, in seconds"),
        "data": Column(TEXT, "all of it, as JSON: data->>'$.reason'"),
    },
    "steps": {
        "step": Column(INT, "from 0"),
        "start": Column(REAL, "when the scheduler began to plan it, in seconds"),
        "seconds": Column(REAL, "how long it took"),
        "num_sequences": Column(INT, "sequences in its batch"),
        "prefill_tokens": Column(INT, "tokens computed that were not the newest of their sequence"),
        "decode_tokens": Column(INT, "newest tokens computed, and drafts behind them"),
        "padding_tokens": Column(INT, "computed and thrown away by a static batch"),
        "waiting": Column(INT, "requests in the waiting queue, after it"),
        "running": Column(INT, "requests in the batch, after it"),
        "arrived": Column(INT, "requests that arrived before or in it"),
        "admitted": Column(INT, "requests that the scheduler admitted"),
        "preempted": Column(INT, "requests that the scheduler preempted"),
        "finished": Column(INT, "requests that ended"),
        "used_blocks": Column(INT, "blocks that a block table maps, after it"),
        "evictable_blocks": Column(INT, "blocks that only the prefix cache remembers, after it"),
        "saved_blocks": Column(INT, "blocks that would be needed on top if nothing were shared"),
        "host_blocks": Column(INT, "blocks of the swap space in use, after it"),
        "filled_slots": Column(INT, "slots of used blocks that hold a token, after it"),
    },
    "requests": {
        "request": Column(TEXT, "its id; with its arrival it is unique"),
        "arrival": Column(REAL, "when it arrived, in seconds"),
        "scheduled": Column(REAL, "start of the step in which it was first admitted"),
        "first_token": Column(REAL, "when its first token was there"),
        "finished": Column(REAL, "when its last sequence ended"),
        "ttft": Column(REAL, "time to first token: first_token - arrival"),
        "latency": Column(REAL, "finished - arrival"),
        "num_sequences": Column(INT, "outputs or beams that it ever had"),
        "prompt_tokens": Column(INT, "of its prompt"),
        "output_tokens": Column(INT, "of all its sequences together, those that a fork copied included"),
        "cached_tokens": Column(INT, "prompt tokens of its first sequence that were not computed"),
        "preemptions": Column(INT, "how often it was preempted"),
        "finish_reason": Column(TEXT, "of its first sequence: stop, length, abort, error, pruned"),
        "prompt": Column(TEXT, "its text, where the trace has it"),
        "output": Column(TEXT, "text of its first sequence, where the trace has it"),
    },
    "blocks": {
        "step": Column(INT, "in which the block changed"),
        "number": Column(INT, "of the event, as in `events`"),
        "block": Column(INT, "the physical block"),
        "change": Column(
            TEXT,
            "allocated, shared, copied (into it), left (by a copy or a merge), cached, evicted, freed, "
            "truncated, swapped out, swapped in",
        ),
        "seq": Column(INT, "the sequence whose table it is about"),
        "request": Column(TEXT, "the request of that sequence"),
        "other": Column(INT, "of a copy or a merge, the block on the other side"),
    },
}

CHANGES = {
    "BlocksAllocated": "allocated",
    "BlocksShared": "shared",
    "BlocksCached": "cached",
    "BlocksEvicted": "evicted",
    "BlocksFreed": "freed",
    "BlocksTruncated": "truncated",
    "BlocksSwappedOut": "swapped out",
    "BlocksSwappedIn": "swapped in",
}


def tables(trace: Trace) -> dict[str, pyarrow.Table]:
    """The four tables, by name.

    Raises:
        TraceError: the events contradict each other.
        ValueError: pyarrow is not installed.
    """
    timeline = make_timeline(trace)
    return {
        "events": _table("events", _events(timeline)),
        "steps": _table("steps", (_step(record) for record in timeline.records)),
        "requests": _table("requests", _requests(timeline)),
        "blocks": _table("blocks", _blocks(timeline)),
    }


def write_parquet(trace: Trace, folder: Path) -> list[Path]:
    """One Parquet file a table, in a folder that is made if it is not there.

    Raises:
        CannotWrite: a file cannot be written.
        ValueError: pyarrow is not installed, or the folder cannot be one.
    """
    made = tables(trace)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"out: {str(folder)!r} cannot be a folder: {error.strerror}") from error
    arrow, paths = _arrow(), []
    import pyarrow.parquet

    for name, table in made.items():
        written = arrow.BufferOutputStream()
        pyarrow.parquet.write_table(table, written, compression="zstd")
        paths.append(folder / f"{name}.parquet")
        write_file(paths[-1], written.getvalue().to_pybytes(), "out")
    return paths


def _arrow() -> Any:
    try:
        import pyarrow
    except ImportError as error:
        raise ValueError(
            'tables need pyarrow, which is not installed: pip install "minivllm[query]"'
        ) from error
    return pyarrow


def _table(name: str, rows: Iterator[Row]) -> pyarrow.Table:
    arrow = _arrow()
    fields = [
        arrow.field(column, getattr(arrow, kind)(), metadata={"meaning": meaning})
        for column, (kind, meaning) in COLUMNS[name].items()
    ]
    columns: dict[str, list[Any]] = {column: [] for column in COLUMNS[name]}
    for row in rows:
        for column, values in columns.items():
            values.append(row.get(column))
    return arrow.table(columns, schema=arrow.schema(fields))


def _in_steps(trace: Trace) -> Iterator[tuple[int, int, AnyEvent]]:
    """`(step, number, event)` of every event."""
    for step in range(trace.num_steps):
        for number in range(trace.starts[step], trace.starts[step + 1]):
            yield step, number, trace.events[number]
    for number in range(trace.starts[-1], len(trace.events)):  # the end mark
        yield max(trace.num_steps - 1, 0), number, trace.events[number]


def _request_of(event: AnyEvent, timeline: Timeline) -> str | None:
    if isinstance(request := getattr(event, "request", None), str):
        return request
    sequence = timeline.sequences.get(getattr(event, "seq", -1))
    return sequence.request if sequence else None


def _events(timeline: Timeline) -> Iterator[Row]:
    for step, number, event in _in_steps(timeline.trace):
        yield {
            "number": number,
            "step": step,
            "event": type(event).__name__,
            "request": _request_of(event, timeline),
            "seq": getattr(event, "seq", None),
            "time": getattr(event, "time", None),
            "data": msgspec.json.encode(event).decode(),
        }


def _step(record: StepRecord) -> Row:
    return {
        "step": record.step,
        "start": record.start,
        "seconds": record.end - record.start,
        "num_sequences": len(record.batch),
        "prefill_tokens": record.num_tokens(Phase.PREFILL),
        "decode_tokens": record.num_tokens(Phase.DECODE),
        "padding_tokens": record.num_padding_tokens,
        "waiting": record.num_waiting,
        "running": record.num_running,
        "arrived": len(record.queued),
        "admitted": len(record.scheduled),
        "preempted": len(record.preempted),
        "finished": len(record.ended),
        "used_blocks": record.num_used_blocks,
        "evictable_blocks": record.num_evictable_blocks,
        "saved_blocks": record.num_saved_blocks,
        "host_blocks": record.num_host_blocks,
        "filled_slots": record.num_filled_slots,
    }


def _requests(timeline: Timeline) -> Iterator[Row]:
    # A request's id may come again once the first is finished; with its arrival it is unique.
    found: dict[tuple[str, float], list[SequenceState]] = {}
    for sequence in timeline.sequences.values():
        found.setdefault((sequence.request, sequence.queued_time), []).append(sequence)
    starts: dict[str, list[float]] = {}
    for record in timeline.records:
        for request in record.scheduled:
            starts.setdefault(request, []).append(record.start)
    for (request, arrival), sequences in found.items():
        first = sequences[0]
        told = [item.first_token_time for item in sequences if item.first_token_time is not None]
        ends = [item.finished_time for item in sequences]
        first_token = min(told, default=None)
        finished = max((end for end in ends if end is not None), default=None) if None not in ends else None
        yield {
            "request": request,
            "arrival": arrival,
            "scheduled": next((start for start in starts.get(request, ()) if start >= arrival), None),
            "first_token": first_token,
            "finished": finished,
            "ttft": None if first_token is None else first_token - arrival,
            "latency": None if finished is None else finished - arrival,
            "num_sequences": len(sequences),
            "prompt_tokens": first.num_prompt_tokens,
            "output_tokens": sum(item.num_output_tokens for item in sequences),
            "cached_tokens": first.num_cached_tokens,
            "preemptions": max(item.num_preemptions for item in sequences),
            "finish_reason": first.finish_reason,
            "prompt": first.prompt,
            "output": first.text or None,
        }


def _blocks(timeline: Timeline) -> Iterator[Row]:
    for step, number, event in _in_steps(timeline.trace):
        shared = {"step": step, "number": number, "seq": getattr(event, "seq", None)}
        shared["request"] = _request_of(event, timeline)
        match event:
            case BlockCopied():
                yield shared | {"block": event.source, "change": "left", "other": event.target}
                yield shared | {"block": event.target, "change": "copied", "other": event.source}
            case BlockMerged():
                yield shared | {"block": event.block, "change": "left", "other": event.twin}
                yield shared | {"block": event.twin, "change": "shared", "other": event.block}
            case _ if change := CHANGES.get(type(event).__name__):
                blocks: tuple[int, ...] = getattr(event, "blocks", ())
                yield from (shared | {"block": block, "change": change} for block in blocks)
