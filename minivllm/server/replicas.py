"""Several copies of a model behind one server: which of them gets a request, and what becomes of it.

                                     ┌─ router: which one? ─┐
    generate ── Add ─────────────────┤                      ├──► replica 0: a process, an engine, a KV cache
             ◄─ stream ◄─ one hop ───┴──────────────────────┴──► replica 1: the same
                                                                 …

`Replicas` is to the routes of the server what `AsyncLLM` is. It tokenizes prompts, since routers look at
tokens; all else of a request is its replica's. The routers are the simulator's, unchanged
(`minivllm/scheduling/router.py`).

A replica that dies, or hangs and is ended, takes its requests along. One that nothing was told of yet is sent
to another replica, once: a request that kills two engines is not tried on a third. All others end with an
error.

Source: vLLM's `DPLBAsyncMPClient`. Read next: `replica_client.py`.
"""

from __future__ import annotations

import asyncio
import logging
from array import array
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping
from concurrent.futures import Future, wait
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from typing import Any

from minivllm.engine.create_engine import (
    calibrated_model,
    default_sampling_params,
    load_generation_config,
    load_tokenizer,
)
from minivllm.engine.engine_args import EngineArgs
from minivllm.engine.prompts import Prompt, tokenize_prompt
from minivllm.model.tokenizer import Tokenizer
from minivllm.outputs import RequestOutput
from minivllm.sampling_params import BeamSearchParams, RequestOutputKind, SamplingParams, in_sampling_params
from minivllm.scheduling.router import ROUND_ROBIN, Router, make_router
from minivllm.server.engine_report import EngineReport
from minivllm.server.engine_thread import EngineDeadError
from minivllm.server.replica_client import Home, ReplicaClient
from minivllm.server.replica_messages import (
    Abort,
    Add,
    Answer,
    Failed,
    Leave,
    Outputs,
    encode_params,
    error_of,
    frame,
)
from minivllm.server.replica_process import ProcessHome
from minivllm.server.replica_settings import start_of
from minivllm.server.stream import Stream, Take

logger = logging.getLogger(__name__)

ANSWER_SECONDS = 5.0
"""That a replica may take to tell its metrics; one that hangs is left out."""


@dataclass(eq=False)
class Pending:
    """A request that is not finished.

    Attributes:
        prompt_token_ids: what a router sees of it.
        wanted: tokens that it may come to compute.
        life: of the replica that has it.
        was_told: the caller may have got some of it.
        was_sent_again: a replica has died with it.
    """

    add: Add
    stream: Stream
    prompt_token_ids: array[int]
    wanted: int
    replica: ReplicaClient | None = None
    life: int = 0
    was_told: bool = False
    was_sent_again: bool = False


class Replicas:
    """Engines in programs of their own, and a stream for each caller.

    All but `shutdown` and `reports` belongs to one event loop: the first in which `generate` is called.

    Args:
        args: the settings of each; `data_parallel_size` of them are started.
        router: "round-robin", "least-loaded" or "prefix-aware".
        backend: where they run: "mp", processes of ours, or "ray", actors in a cluster.

    Raises:
        ValueError: a setting that cannot work, or what kept a replica from starting, in its own words.
    """

    def __init__(self, args: EngineArgs, router: str = ROUND_ROBIN, backend: str = "mp") -> None:
        self._router: Router = make_router(router)
        self.tokenizer: Tokenizer | None = load_tokenizer(args)
        self.default_params: SamplingParams = default_sampling_params(args, load_generation_config(args))
        calibrated_model(args)  # once, and not by each of them
        self._loop: asyncio.AbstractEventLoop | None = None
        self._pending: dict[str, Pending] = {}
        self._by_number: dict[int, Pending] = {}
        self._numbers = count()
        self._is_stopped = False
        size = args.data_parallel_size
        frame(start_of(args, 0, 0))  # what cannot be told to another process is said before any is started
        self._home = home_of(backend, size)
        self.replicas = [
            ReplicaClient(index, _start_of(args, index), self._home, self, args.distributed_timeout_seconds)
            for index in range(size)
        ]
        try:
            self.max_model_len = min(replica.ready.result().max_model_len for replica in self.replicas)
        except BaseException:
            self.shutdown()
            raise

    async def generate(
        self,
        prompt: Prompt,
        sampling_params: SamplingParams | BeamSearchParams,
        request_id: str,
        *,
        priority: int = 0,
        take: Take | None = None,
    ) -> AsyncGenerator[RequestOutput]:
        """Continue one prompt, on one of the replicas: as `AsyncLLM.generate`."""
        self._note_loop()
        if request_id in self._pending:
            raise ValueError(f"request_id {request_id!r} is in use by a request that is not finished")
        text, token_ids, salt = tokenize_prompt(prompt, "prompt", self.tokenizer)
        params = encode_params(sampling_params)
        add = Add(next(self._numbers), request_id, text, list(token_ids), salt, priority, params)
        kind = getattr(sampling_params, "output_kind", RequestOutputKind.FINAL_ONLY)
        pending = Pending(
            add, Stream(kind, take), _as_array(token_ids), self._wanted(token_ids, sampling_params)
        )
        self._route(pending)
        self._pending[request_id] = self._by_number[add.number] = pending
        try:
            while True:
                output = await pending.stream.next()
                yield output
                if output.finished:
                    return
        finally:
            del self._pending[request_id], self._by_number[add.number]
            replica = self._part(pending)
            if replica and replica.life == pending.life and not pending.stream.is_finished:
                replica.send(Leave(add.number))

    async def abort(self, request_id: str | Iterable[str]) -> None:
        """End requests now. Their callers get what there is, with reason "abort"."""
        for name in [request_id] if isinstance(request_id, str) else list(request_id):
            pending = self._pending.get(name)
            if pending and pending.replica and pending.replica.life == pending.life:
                pending.replica.send(Abort(pending.add.number))

    async def reset_prefix_cache(self) -> bool:
        """Forget the cached prefixes of all. Returns whether all caches are empty now.

        Raises:
            EngineDeadError: no replica serves.
        """
        await self.check_health()
        asked = [asyncio.wrap_future(replica.ask("reset")) for replica in self.replicas if replica.is_ready]
        answers = await asyncio.gather(*asked, return_exceptions=True)
        # The cache of one that has died meanwhile is as empty as can be.
        return all(answer.is_done for answer in answers if isinstance(answer, Answer))

    async def check_health(self) -> None:
        """Raise `EngineDeadError` if no replica serves."""
        if not self.is_running:
            raise EngineDeadError("no engine serves: each of them is being started again")

    @property
    def is_running(self) -> bool:
        """Does at least one of them serve?"""
        return not self._is_stopped and any(replica.is_ready for replica in self.replicas)

    @property
    def num_unfinished_requests(self) -> int:
        """Requests that callers wait for."""
        return len(self._pending)

    @property
    def num_waiting_requests(self) -> int:
        """Those of them that are in no batch."""
        return max(0, len(self._pending) - sum(replica.num_running for replica in self.replicas))

    def reports(self) -> Mapping[int, EngineReport]:
        """What each has counted and does now; one that does not answer is left out. For any thread."""
        asked = {replica.index: replica.ask("report") for replica in self.replicas if replica.is_ready}
        wait(asked.values(), ANSWER_SECONDS)
        answers = {index: answer.result() for index, answer in asked.items() if _has_answered(answer)}
        return {index: answer.report for index, answer in answers.items() if answer.report is not None}

    def end_requests(self, reason: str) -> None:
        """Waiting callers get an `EngineDeadError` with this reason; their requests are aborted.

        The engines serve on.
        """
        for pending in list(self._pending.values()):
            pending.stream.fail(EngineDeadError(reason))
            if pending.replica and pending.replica.life == pending.life:
                pending.replica.send(Leave(pending.add.number))

    def shutdown(self) -> None:
        """End all programs, each after its step. Callers that still wait get an `EngineDeadError`."""
        self._is_stopped = True
        for replica in self.replicas:
            replica.begin_to_stop()
        for replica in self.replicas:
            replica.join()
        self._home.close()

    # ── which replica gets a request ────────────────────────────────────────────────────────────────────

    def _route(self, pending: Pending) -> None:
        """Send it to one that serves.

        Raises:
            EngineDeadError: none does.
            ValueError: it cannot be told to another process.
        """
        # A router that does not look at the load may name one that is away; then it is asked again.
        for _ in range(2 * len(self.replicas)):
            if not self.is_running:
                break
            replica = self.replicas[self._router.choose(pending, self.replicas)]
            if (life := replica.send(pending.add)) is not None:
                pending.replica, pending.life = replica, life
                replica.load += pending.wanted
                return
        raise EngineDeadError("no engine serves: each of them is being started again")

    def _part(self, pending: Pending) -> ReplicaClient | None:
        """The replica that had it, which has it no more."""
        replica, pending.replica = pending.replica, None
        if replica:
            replica.load -= pending.wanted
        return replica

    def _wanted(self, token_ids: list[int], params: SamplingParams | BeamSearchParams) -> int:
        sampling = in_sampling_params(params)
        most = max(0, self.max_model_len - len(token_ids))
        return len(token_ids) + sampling.width * min(most, sampling.max_tokens or most)

    # ── from the replicas' threads to the event loop ──────────────────────────────────────────────────

    def _note_loop(self) -> None:
        loop = asyncio.get_running_loop()
        if self._loop is None:
            self._loop = loop
        elif self._loop is not loop:
            raise RuntimeError("replicas belong to one event loop: make others for another loop")

    def on_outputs(self, outputs: Outputs) -> None:
        """One hop for all outputs of a step."""
        if outputs.items:
            self._hop(self._deliver, outputs)

    def on_failure(self, failed: Failed) -> None:
        self._hop(self._fail, failed)

    def on_death(self, index: int, life: int, error: EngineDeadError) -> None:
        self._hop(self._bury, index, life, error)

    def _hop(self, function: Callable[..., None], *args: Any) -> None:
        with suppress(RuntimeError):  # the loop is closed, and so is every stream
            if self._loop:
                self._loop.call_soon_threadsafe(function, *args)

    def _deliver(self, outputs: Outputs) -> None:
        for number, output in outputs.items:
            if pending := self._by_number.get(number):
                pending.was_told = True
                output.prompt, output.prompt_token_ids = pending.add.prompt, pending.add.token_ids
                pending.stream.put(output)

    def _fail(self, failed: Failed) -> None:
        if pending := self._by_number.get(failed.number):
            pending.stream.fail(error_of(failed))

    def _bury(self, index: int, life: int, error: EngineDeadError) -> None:
        dead = self.replicas[index]
        for pending in list(self._pending.values()):
            if pending.replica is not dead or pending.life != life or pending.stream.is_finished:
                continue
            if pending.was_told or pending.was_sent_again or self._is_stopped:
                pending.stream.fail(error)
                continue
            self._part(pending)
            pending.was_sent_again = True
            try:
                self._route(pending)
            except EngineDeadError:
                pending.stream.fail(error)


def home_of(backend: str, size: int) -> Home:
    if backend == "mp":
        return ProcessHome(size)
    from minivllm.server.replica_actor import ActorHome

    return ActorHome(size)


def _start_of(args: EngineArgs, index: int) -> Callable[[int], Any]:
    return lambda life: start_of(args, index, life)


def _as_array(token_ids: list[int]) -> array[int]:
    """For the router. What is no token id is refused by the engine, in its own words."""
    try:
        return array("q", token_ids)
    except (TypeError, OverflowError):
        return array("q")


def _has_answered(answer: Future[Answer]) -> bool:
    return answer.done() and answer.exception() is None
