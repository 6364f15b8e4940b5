"""When requests are sent, and by what: two loops that measure different things.

    open        a request goes out when its time has come, however many are still being answered.
                A server that is too slow gets an ever longer queue, and its latencies show it.
    closed      at most `limit` are being answered; the next goes out when one has come back.
                A server that is too slow gets less to do, and its latencies hide it.

A rate *and* a limit are neither: requests whose time has come wait here in the client. vLLM's benchmark calls
that a rate all the same; here it is named `capped`, and the wait is told.

One task sends, one task reads each answer, and one looks a hundred times a second whether the event loop
wakes up in time. Python's garbage collector is off meanwhile.

Source of the distinction: Schroeder, Wierman, Harchol-Balter, "Open Versus Closed: A Cautionary Tale" (NSDI
2006). Read next: `record.py`, `doubts.py`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from heapq import heappop, heappush
from itertools import count
from time import perf_counter, process_time

from minivllm.lab.bench.serve.client import Client
from minivllm.lab.bench.serve.record import Record, Run
from minivllm.lab.bench.serve.requests import Writer
from minivllm.lab.bench.timing import no_garbage_collection
from minivllm.lab.workloads.workload import Workload, WorkloadRequest
from minivllm.validation import check_integer

LOOK_SECONDS = 0.01

Progress = Callable[[Record], None]


def mode_of(has_rate: bool, limit: int | None) -> str:
    """What the run is: "open", "capped", "closed" or "burst" (all at once)."""
    if has_rate:
        return "open" if limit is None else "capped"
    return "burst" if limit is None else "closed"


async def run_load(
    client: Client,
    workload: Workload,
    writer: Writer,
    *,
    limit: int | None = None,
    has_times: bool = True,
    on_answer: Progress | None = None,
) -> Run:
    """Send everything, and wait for all answers.

    Args:
        limit: most requests that are being answered at once.
        has_times: the workload says when requests are due; without, one is due when it finds a free place.
        on_answer: called for each record that is complete.
    """
    if limit is not None:
        check_integer("max_concurrency", limit, at_least=1)
    load = _Load(client, workload, writer, limit, has_times, on_answer)
    with no_garbage_collection():
        cpu = process_time()
        await load.run()
        return Run(load.records, load.seconds(), process_time() - cpu, load.lags)


class _Load:
    """One run."""

    def __init__(
        self,
        client: Client,
        workload: Workload,
        writer: Writer,
        limit: int | None,
        has_times: bool,
        on_answer: Progress | None,
    ) -> None:
        self.records: list[Record] = []
        self.lags: list[float] = []
        self._client = client
        self._workload = workload
        self._writer = writer
        self._places = None if limit is None else asyncio.Semaphore(limit)
        self._has_times = has_times
        self._on_answer = on_answer
        self._order = count()
        self._due: list[tuple[float, int, WorkloadRequest, bytes]] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._news = asyncio.Event()  # a follow-up was added, or an answer has come
        self._epoch = 0.0

    async def run(self) -> None:
        for request in self._workload.arrivals():  # every body is made before the first one goes out
            self._add(request)
        self._epoch = perf_counter()
        watching = asyncio.create_task(self._watch_loop())
        try:
            while self._due or self._tasks:
                if not self._due:
                    await self._wait_for_news(None)
                elif await self._is_time():
                    await self._send_next()
        finally:
            for task in (watching, *self._tasks):
                task.cancel()
            await asyncio.gather(watching, *self._tasks, return_exceptions=True)

    def seconds(self) -> float:
        """From the first request sent to the last answer."""
        if not self.records:
            return 0.0
        return max(record.last for record in self.records) - min(record.sent for record in self.records)

    def _add(self, request: WorkloadRequest) -> None:
        place = (request.arrival_seconds, next(self._order), request, self._writer.body(request))
        heappush(self._due, place)

    def _now(self) -> float:
        return perf_counter() - self._epoch

    async def _is_time(self) -> bool:
        """Wait until the next request is due; False if another may have come before it."""
        wait = self._due[0][0] - self._now()
        if wait <= 0:
            return True
        await self._wait_for_news(wait)
        return False

    async def _wait_for_news(self, seconds: float | None) -> None:
        self._news.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._news.wait()

    async def _send_next(self) -> None:
        due, _, request, body = heappop(self._due)
        if self._places is not None:
            await self._places.acquire()
            if not self._has_times:
                due = self._now()
        record = Record(request.request_id, due, request.num_output_tokens)
        self.records.append(record)
        task = asyncio.create_task(self._ask(request, record, body))
        self._tasks.add(task)

    async def _ask(self, request: WorkloadRequest, record: Record, body: bytes) -> None:
        try:
            await self._client.ask(body, record, self._epoch)
            if record.is_complete:
                follow_up = self._workload.after(request, self._now(), record.token_ids)
                if follow_up is not None:
                    self._add(follow_up)
            if self._on_answer:
                self._on_answer(record)
        finally:
            task = asyncio.current_task()
            if task is not None:
                self._tasks.discard(task)
            if self._places is not None:
                self._places.release()
            self._news.set()

    async def _watch_loop(self) -> None:
        while True:
            wanted = perf_counter() + LOOK_SECONDS
            await asyncio.sleep(LOOK_SECONDS)
            self.lags.append(max(0.0, perf_counter() - wanted))
