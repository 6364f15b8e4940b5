"""Our server beside those of other engines: the same model, the same requests, the same client.

    for each number of streams:   ours, theirs, ours, theirs, …      all requests at once, greedy
                                  (all servers run; those that wait use no processor)

A request asks for an exact number of tokens. Who does not know `ignore_eos` may end sooner: what came is
counted, and the table says how much of what was asked for that is.

A server that cannot be started is a line with the reason. Read next: `peer_servers.py`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any

import psutil

from minivllm.lab.bench.field.job import write_model
from minivllm.lab.bench.field.roster import find_pythons
from minivllm.lab.bench.report import Header, Section, make_header
from minivllm.lab.bench.serve.against_offline import as_workload, make_requests, server_flags
from minivllm.lab.bench.serve.client import Client, import_aiohttp
from minivllm.lab.bench.serve.load import run_load
from minivllm.lab.bench.serve.own_server import OwnServer, own_server
from minivllm.lab.bench.serve.peer_servers import (
    PEER_SERVERS,
    PeerServerError,
    Place,
    as_characters,
    free_port,
    peer_server,
)
from minivllm.lab.bench.serve.record import Run
from minivllm.lab.bench.serve.requests import Listed, Writer
from minivllm.lab.bench.timing import interleaved, percentile
from minivllm.lab.subjects.settings import Settings
from minivllm.lab.subjects.subject import Subject, open_subject
from minivllm.lab.subjects.workload import BenchRequest
from minivllm.scratch import ScratchFolder
from minivllm.validation import check_choice, check_number

OURS = "minivllm"


@dataclass(frozen=True)
class BesideSettings(Settings):
    """Settings of the comparison.

    Attributes:
        streams: how many requests at once, a comparison for each.
        peers: which servers.
        pythons: name of a server → the Python of its environment.
        timeout: seconds that a server may take to start, and for one answer.
        flags: more of them for our own server.
    """

    streams: tuple[int, ...] = (1, 8, 64)
    peers: tuple[str, ...] = tuple(PEER_SERVERS)
    pythons: Mapping[str, str] = field(default_factory=dict)
    timeout: float = 900.0
    flags: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("timeout", self.timeout, more_than=0)
        for name in (*self.peers, *self.pythons):
            check_choice("peer", name, tuple(PEER_SERVERS))


@dataclass(frozen=True)
class ServerRow:
    """One server with one number of streams: medians over the rounds."""

    server: str
    streams: int
    tokens_per_second: float
    ttft_ms: float
    tpot_ms: float
    cpu_us: float
    """CPU time of the server's processes, for each output token."""
    mib: float
    """RAM of its processes afterwards."""
    whole: float
    """Of the tokens that were asked for, the share that came."""


@dataclass(frozen=True)
class Beside:
    """The result; `skipped`: server → why it is missing."""

    header: Header
    versions: dict[str, str]
    rows: tuple[ServerRow, ...]
    skipped: dict[str, str]

    def sections(self) -> list[Section]:
        rows = [
            (
                row.server,
                f"{row.streams:,}",
                f"{row.tokens_per_second:,.0f}",
                f"{row.ttft_ms:,.1f} ms",
                f"{row.tpot_ms:,.2f} ms",
                f"{row.cpu_us:,.0f} µs",
                f"{row.mib:,.0f} MiB",
                f"{row.whole:.0%}",
            )
            for row in self.rows
        ]
        who = [f"{name} {version}: {PEER_SERVERS[name].how}" for name, version in self.versions.items()]
        missing = [f"{name} is left out: {reason}" for name, reason in self.skipped.items()]
        columns = ("server", "streams", "tok/s", "TTFT", "TPOT", "CPU/token", "RAM", "of tokens")
        note = ". ".join(["TTFT and TPOT: medians of requests", *who, *missing]) + "."
        return [Section("Servers beside each other", columns, rows, note)]


def compare_servers(settings: BesideSettings) -> Beside:
    """Start all servers with the same model, and let them take turns."""
    import_aiohttp()
    pythons = find_pythons(settings.pythons, settings.peers)
    most = max(settings.streams)
    with ExitStack() as stack:
        subject = stack.enter_context(open_subject(settings))
        scratch = stack.enter_context(ScratchFolder("servers"))
        limits = replace(subject.limits, max_num_seqs=max(most, subject.limits.max_num_seqs))
        subject = replace(subject, limits=limits)
        flags = [*server_flags(settings, limits), *settings.flags]
        servers = {OURS: stack.enter_context(own_server(subject.folder, settings.num_threads, flags))}
        versions, skipped = _start_peers(stack, servers, pythons, subject, scratch, settings)
        rows, samples = [], []
        for streams in settings.streams:
            work = make_requests(subject, streams, settings)
            found, busy = _compare_one(servers, work, settings)
            rows += found
            samples += busy
        facts = subject.facts()
    return Beside(make_header("servers", settings, facts, samples), versions, tuple(rows), skipped)


def _start_peers(
    stack: ExitStack,
    servers: dict[str, OwnServer],
    pythons: Mapping[str, Path | None],
    subject: Subject,
    scratch: Path,
    settings: BesideSettings,
) -> tuple[dict[str, str], dict[str, str]]:
    """Those that start join the `servers`; their versions, and why the others are left out."""
    versions, skipped = {}, {}
    model = write_model(subject, scratch / "model")
    dtype, most = subject.executor.model_shape.dtype, subject.limits.max_num_seqs
    for name, python in pythons.items():
        server = PEER_SERVERS[name]
        if python is None:
            skipped[name] = f"give --python {name}=… where it is ({server.install})"
            continue
        place = Place(model, scratch / name, free_port(), settings.num_threads, dtype, most)
        try:
            started = peer_server(server, python, place, settings.timeout)
            servers[name], versions[name] = stack.enter_context(started)
        except PeerServerError as error:
            skipped[name] = str(error)
    return versions, skipped


@dataclass(frozen=True)
class _Pass:
    run: Run
    cpu_seconds: float


def _compare_one(
    servers: Mapping[str, OwnServer], work: Sequence[BenchRequest], settings: BesideSettings
) -> tuple[list[ServerRow], list[float]]:
    def asked(name: str) -> Run:
        return asyncio.run(_ask(name, servers[name].url, work, settings.timeout))

    def one_pass(name: str) -> _Pass:
        family = _family(servers[name].pid)
        before = _cpu_seconds(family)
        run = asked(name)
        return _Pass(run, _cpu_seconds(family) - before)

    for name in servers:  # warm-up: threads, pools, compiled code
        asked(name)
    sides: dict[str, Any] = {name: lambda name=name: one_pass(name) for name in servers}
    samples = interleaved(settings.repeat, sides)
    rows = [
        _row(name, work, [sample.result for sample in found], _resident_bytes(_family(servers[name].pid)))
        for name, found in samples.items()
    ]
    return rows, [sample.other_cores for sample in samples[OURS]]


async def _ask(name: str, url: str, work: Sequence[BenchRequest], timeout: float) -> Run:
    peer = PEER_SERVERS.get(name)
    takes_text = peer is not None and peer.takes_text
    writer = Writer(
        "openai", "measured", as_characters if takes_text else None, more=peer.more if peer else {}
    )
    async with Client(url, "/v1/completions", timeout=timeout, wants_text=takes_text) as client:
        run = await run_load(client, Listed(as_workload(work)), writer, has_times=False)
    for record in run.records:
        if record.error:
            raise ValueError(f"{name}: request {record.request_id} failed: {record.error}")
        if takes_text:
            record.output_tokens = len(record.text)
    return run


def _row(name: str, work: Sequence[BenchRequest], passes: Sequence[_Pass], memory: int) -> ServerRow:
    wanted = sum(request.num_output_tokens for request in work)

    def tokens(one: _Pass) -> int:
        return max(1, sum(record.output_tokens for record in one.run.records))

    def middle(values: list[float]) -> float:
        return percentile(values, 50) * 1e3 if values else 0.0

    def tpots(one: _Pass) -> list[float]:
        return [tpot for record in one.run.records if (tpot := record.tpot) is not None]

    return ServerRow(
        name,
        len(work),
        tokens_per_second=median(tokens(one) / one.run.seconds for one in passes),
        ttft_ms=median(middle([record.ttft for record in one.run.records]) for one in passes),
        tpot_ms=median(middle(tpots(one)) for one in passes),
        cpu_us=median(one.cpu_seconds / tokens(one) * 1e6 for one in passes),
        mib=memory / 2**20,
        whole=median(tokens(one) / wanted for one in passes),
    )


def _family(pid: int) -> list[psutil.Process]:
    leader = psutil.Process(pid)
    return [leader, *leader.children(recursive=True)]


def _cpu_seconds(family: Sequence[psutil.Process]) -> float:
    return float(sum(times.user + times.system for one in family for times in [one.cpu_times()]))


def _resident_bytes(family: Sequence[psutil.Process]) -> int:
    return sum(one.memory_info().rss for one in family)
