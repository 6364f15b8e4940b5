"""What being watched costs: the same requests while nobody, one and ten read `/engine/events`.

    without    a server without --live       ┐
    0, 1, 10   a server with it, and so      ├  in turns, round by round; a server that waits uses no
               many watchers that read all   ┘  processor

Compared is with a server that cannot be watched at all, round by round. *Throughput* says what a user sees;
it needs cores for the client and for those who watch, too, or it says more about the lack of them. *Processor
time* says who pays, on a busy machine, too: the engine's threads, and the thread of the event loop, which
replays, encodes and sends.

Each watcher must have read every step to its end: a comparison in which one was cut off is refused.

Read next: `minivllm/server/live.py`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from statistics import median

from minivllm.lab.bench.report import Header, Section, make_header
from minivllm.lab.bench.serve.against_offline import as_workload, checked, make_requests, server_flags
from minivllm.lab.bench.serve.client import Client, import_aiohttp
from minivllm.lab.bench.serve.load import run_load
from minivllm.lab.bench.serve.own_server import OwnServer, ThreadSeconds, own_server
from minivllm.lab.bench.serve.record import Run
from minivllm.lab.bench.serve.requests import Listed, Writer
from minivllm.lab.bench.serve.watchers import watchers
from minivllm.lab.bench.timing import interleaved
from minivllm.lab.subjects.settings import Settings
from minivllm.lab.subjects.subject import open_subject
from minivllm.lab.subjects.workload import BenchRequest

WITHOUT = -1
"""Instead of a number of watchers: a server that cannot be watched."""


@dataclass(frozen=True)
class WatchedSettings(Settings):
    """Settings of the comparison.

    Attributes:
        streams: how many requests at once, a comparison for each.
        watchers: how many watch, a side for each.
        flags: more of them for both servers.
    """

    streams: tuple[int, ...] = (64,)
    watchers: tuple[int, ...] = (0, 1, 10)
    flags: tuple[str, ...] = ()


@dataclass(frozen=True)
class WatchedRow:
    """One number of streams and of watchers: medians over the rounds."""

    streams: int
    watchers: int | None
    """None: the server without --live."""
    served_tokens_per_second: float
    ratio: float
    """Throughput beside the server without --live: the median of the rounds' own ratios."""
    served_cpu_us: float
    engine_cpu_us: float
    loop_cpu_us: float
    """CPU microseconds per output token: the server's process, its engine's threads, and its event loop's."""
    engine_added: float
    """What is added to the processor time of the engine's threads: the median of the rounds' own ratios."""
    messages: float
    """That each watcher has read: one a step, and one at the beginning."""


@dataclass(frozen=True)
class Watched:
    """The result."""

    header: Header
    rows: tuple[WatchedRow, ...]

    def sections(self) -> list[Section]:
        rows = [
            (
                f"{row.streams:,}",
                "not live" if row.watchers is None else f"{row.watchers:,}",
                f"{row.served_tokens_per_second:,.0f}",
                f"{row.ratio:.3f}",
                f"{row.engine_cpu_us:,.1f} µs",
                f"{row.engine_added:+.1%}",
                f"{row.loop_cpu_us:,.1f} µs",
                f"{row.messages:,.0f}",
            )
            for row in self.rows
        ]
        columns = ("streams", "watchers", "tok/s", "ratio", "engine CPU", "added", "loop CPU", "messages")
        note = (
            "not live: a server without --live; ratio, added: beside it, medians of the rounds' own. CPU per "
            "output token, of the engine's threads and of the event loop's. Those who watch and the client "
            "are processes of their own, and need cores, too."
        )
        return [Section("Served while it is watched", columns, rows, note)]


@dataclass(frozen=True)
class _Pass:
    run: Run
    cpu: ThreadSeconds
    messages: float

    @property
    def tokens(self) -> int:
        return sum(record.output_tokens for record in self.run.records)


def compare_watched(settings: WatchedSettings) -> Watched:
    """Two servers with the same weights and requests: one that can be watched, one that cannot."""
    import_aiohttp()
    most = max(settings.streams)
    with ExitStack() as stack:
        subject = stack.enter_context(open_subject(settings))
        limits = replace(subject.limits, max_num_seqs=max(most, subject.limits.max_num_seqs))
        flags = [*server_flags(settings, limits), *settings.flags]
        start: Callable[..., OwnServer] = lambda *more: stack.enter_context(  # noqa: E731
            own_server(subject.folder, settings.num_threads, [*flags, *more])
        )
        plain, live = start(), start("--live")
        rows, busy = [], []
        for streams in settings.streams:
            work = make_requests(subject, streams, settings)
            found, others = compare_one(plain, live, work, settings)
            rows += found
            busy += others
        facts = subject.facts()
    return Watched(make_header("watched", settings, facts, busy), tuple(rows))


def compare_one(
    plain: OwnServer, live: OwnServer, work: Sequence[BenchRequest], settings: WatchedSettings
) -> tuple[list[WatchedRow], list[float]]:
    """A row for the server that cannot be watched, and one for each number of watchers."""
    servers = {WITHOUT: plain} | dict.fromkeys(settings.watchers, live)
    for server in (plain, live):  # warm-up: threads, pools, compiled code
        asyncio.run(_ask(server, work))
    sides = {str(count): partial(_one_pass, server, work, count) for count, server in servers.items()}
    samples = interleaved(settings.repeat, sides)
    passes = {count: [sample.result for sample in samples[str(count)]] for count in servers}
    rows = [_row(count, len(work), found, passes[WITHOUT]) for count, found in passes.items()]
    return rows, [sample.other_cores for sample in samples[str(WITHOUT)]]


def _one_pass(server: OwnServer, work: Sequence[BenchRequest], count: int) -> _Pass:
    with ExitStack() as stack:
        reading = stack.enter_context(watchers(server.url, count)) if count > 0 else None
        before = server.thread_seconds()
        run = asyncio.run(_ask(server, work))
        cpu = server.thread_seconds() - before
        read = reading.stop() if reading else []
    return _Pass(run, cpu, median(read) if read else 0.0)


async def _ask(server: OwnServer, work: Sequence[BenchRequest]) -> Run:
    async with Client(server.url, "/v1/completions") as client:
        writer = Writer("openai", "measured")
        return checked(await run_load(client, Listed(as_workload(work)), writer, has_times=False))


def _row(count: int, streams: int, passes: Sequence[_Pass], plain: Sequence[_Pass]) -> WatchedRow:
    pairs = list(zip(passes, plain, strict=True))

    def each_token(what: Callable[[_Pass], float]) -> float:
        return median(what(one) / one.tokens * 1e6 for one in passes)

    return WatchedRow(
        streams,
        None if count == WITHOUT else count,
        served_tokens_per_second=median(one.tokens / one.run.seconds for one in passes),
        ratio=median(beside.run.seconds / one.run.seconds for one, beside in pairs),
        served_cpu_us=each_token(lambda one: one.cpu.engine + one.cpu.loop),
        engine_cpu_us=each_token(lambda one: one.cpu.engine),
        loop_cpu_us=each_token(lambda one: one.cpu.loop),
        engine_added=median(one.cpu.engine / max(beside.cpu.engine, 1e-9) for one, beside in pairs) - 1,
        messages=median(one.messages for one in passes),
    )
