"""What HTTP costs: the same requests through the engine alone, and through our server by its real clients.

    offline     this process:   engine ── step, step, …
    served      a child:        engine thread ─► event loop ─► sockets      this process: the client

Both sides have the same weights, threads, limits and requests, all there at the start, greedy, of exact
lengths; they take turns, so that a busy minute hits both. A side that waits uses no processor.

Two kinds of numbers come out. *Wall* times say what a user sees, and depend on how many cores are free for
the server's two threads and the client. *CPU* times say what it costs, on a busy machine, too: per output
token, the server's process and the engine alone. Their difference is the price of serving: events, queues,
JSON, sockets.

Before the rounds, one pass asks for token ids and compares them with the engine's own: a server that is
fast and wrong would be of no use.

Read next: `minivllm/server/stream.py`, where most of that price is saved.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from time import perf_counter, process_time

from minivllm.config import SchedulerConfig
from minivllm.lab.bench.report import make_header
from minivllm.lab.bench.serve.client import Client, import_aiohttp
from minivllm.lab.bench.serve.comparison import AgainstOffline, Comparison, Side, summary
from minivllm.lab.bench.serve.load import run_load
from minivllm.lab.bench.serve.own_server import OwnServer, own_server
from minivllm.lab.bench.serve.record import Run
from minivllm.lab.bench.serve.requests import Listed, Writer
from minivllm.lab.bench.timing import interleaved
from minivllm.lab.subjects.settings import Settings
from minivllm.lab.subjects.subject import Subject, open_subject
from minivllm.lab.subjects.workload import BenchRequest, warm_up
from minivllm.lab.workloads.workload import WorkloadRequest
from minivllm.sampling_params import RequestOutputKind, SamplingParams

OWN_TOKENS = 64
"""Prompt tokens, and output tokens, of each request where there are more streams than `requests`."""


@dataclass(frozen=True)
class OfflineSettings(Settings):
    """Settings of the comparison.

    Attributes:
        streams: how many requests at once, a comparison for each.
        flags: more of them for the server.
    """

    streams: tuple[int, ...] = (64,)
    flags: tuple[str, ...] = ()


def compare(settings: OfflineSettings) -> AgainstOffline:
    """All comparisons, each with the same server and the same weights."""
    import_aiohttp()
    most = max(settings.streams)
    with open_subject(settings) as subject:
        limits = replace(subject.limits, max_num_seqs=max(most, subject.limits.max_num_seqs))
        subject = replace(subject, limits=limits)
        flags = [*server_flags(settings, limits), *settings.flags]
        with own_server(subject.folder, settings.num_threads, flags) as server:
            facts, samples, found = subject.facts(), [], []
            for streams in settings.streams:
                work = make_requests(subject, streams, settings)
                one, busy = _compare_one(subject, server, work, settings.repeat)
                found.append(one)
                samples += busy
    return AgainstOffline(make_header("against-offline", settings, facts, samples), tuple(found))


def make_requests(subject: Subject, streams: int, settings: Settings) -> list[BenchRequest]:
    """So many requests: up to 64 those of the usual workload, beyond that short ones of equal lengths."""
    if streams <= settings.requests:
        return subject.workload(settings)[:streams]
    vocab_size = subject.executor.config.vocab_size
    room = min(OWN_TOKENS, subject.limits.max_model_len // 2)
    from minivllm.lab.workloads.draws import ordinary_tokens

    return [
        BenchRequest(
            f"bench-{index}", tuple(ordinary_tokens(f"{settings.seed}:{index}", room, vocab_size)), room
        )
        for index in range(streams)
    ]


def server_flags(settings: Settings, limits: SchedulerConfig) -> list[str]:
    """Of a server of our own, with the limits of the engine beside it."""
    flags = ["--served-model-name", "measured", "--max-num-seqs", str(limits.max_num_seqs)]
    return [*flags, "--num-gpu-blocks-override", str(limits.num_blocks), "--dtype", settings.dtype]


def _compare_one(
    subject: Subject, server: OwnServer, work: Sequence[BenchRequest], repeat: int
) -> tuple[Comparison, list[float]]:
    async def asked(wants_ids: bool) -> Run:
        async with Client(server.url, "/v1/completions") as client:
            writer = Writer("openai", "measured", wants_ids=wants_ids)
            return await run_load(client, Listed(as_workload(work)), writer, has_times=False)

    def served() -> Side:
        cpu = server.cpu_seconds()
        run = checked(asyncio.run(asked(wants_ids=False)))
        return _side(run, server.cpu_seconds() - cpu)

    def offline() -> Side:
        return play_alone(subject, work)[0]

    asyncio.run(asked(wants_ids=False))  # warm-up of both: threads, pools, compiled code
    play_alone(subject, warm_up(work))
    alone = play_alone(subject, work)[1]
    run = checked(asyncio.run(asked(wants_ids=True)))
    ids = {record.request_id: record.token_ids for record in run.records}
    identical = sum(ids[name] == tokens for name, tokens in alone.items())
    samples = interleaved(repeat, {"offline": offline, "served": served})
    sides = {name: [sample.result for sample in found] for name, found in samples.items()}
    busy = [sample.other_cores for sample in samples["offline"]]
    return summary(work, sides["offline"], sides["served"], identical, server.resident_bytes()), busy


def play_alone(subject: Subject, work: Sequence[BenchRequest]) -> tuple[Side, dict[str, list[int]]]:
    """The requests through the engine in this process, told token by token; and their tokens."""
    engine = subject.engine()
    first: dict[str, float] = {}
    last: dict[str, float] = {}
    ids: dict[str, list[int]] = {request.request_id: [] for request in work}
    cpu, began = process_time(), perf_counter()
    for request in work:
        params = SamplingParams(
            temperature=0.0,
            max_tokens=request.num_output_tokens,
            ignore_eos=True,
            output_kind=RequestOutputKind.DELTA,
        )
        engine.add_request(request.request_id, request.prompt_token_ids, params)
    while engine.has_unfinished_requests():
        outputs = engine.step()
        now = perf_counter() - began
        for output in outputs:
            first.setdefault(output.request_id, now)
            last[output.request_id] = now
            ids[output.request_id] += output.outputs[0].token_ids
    seconds, cpu = perf_counter() - began, process_time() - cpu
    tpots = [
        (last[request.request_id] - first[request.request_id]) / (request.num_output_tokens - 1)
        for request in work
        if request.num_output_tokens > 1
    ]
    return Side(seconds, cpu, list(first.values()), tpots), ids


def _side(run: Run, cpu_seconds: float) -> Side:
    records = run.records
    tokens = sum(record.output_tokens for record in records)
    return Side(
        run.seconds,
        cpu_seconds,
        [record.ttft for record in records],
        [tpot for record in records if (tpot := record.tpot) is not None],
        run.client_cpu_seconds,
        tokens / sum(len(record.chunk_times) for record in records),
    )


def checked(run: Run) -> Run:
    """A run in which every request came back with all its tokens. Raises `ValueError`."""
    for record in run.records:
        if record.error or record.output_tokens != record.wanted_tokens:
            why = record.error or f"it has {record.output_tokens} of {record.wanted_tokens} tokens"
            raise ValueError(f"request {record.request_id} was not served whole: {why}")
    return run


def as_workload(work: Sequence[BenchRequest]) -> tuple[WorkloadRequest, ...]:
    """The same requests, all there at the start."""
    from array import array

    return tuple(
        WorkloadRequest(
            one.request_id,
            0.0,
            array("i", one.prompt_token_ids),
            one.num_output_tokens,
            one.num_output_tokens,
        )
        for one in work
    )
