"""The executor of several ranks, as the engine sees it: `execute(plan)`, and nothing else.

    engine's thread            rank 0's thread                          other processes
    execute(plan) ──► queue ──► broadcast the plan ────────────────────► rank 1, rank 2, …
         │                      its own share, sums with the others ◄──► their shares
         ◄───────── logits ───  logits gathered

Rank 0 computes in a thread of its own, since a step must not be left half-way: an interrupt (Ctrl-C) reaches
the engine, which forgets the step, while rank 0 and the others finish it together. The next plan comes after
that.

In a pipeline several plans may be under way (`launch`, `wait`): rank 0 computes its stage of one after the
other, and a second thread takes the logits as they come, so that neither waits for the other:

    rank 0's thread     stage 0 of A ──► stage 0 of B ──► stage 0 of A', …
    last stage                           stage 1 of A ──► stage 1 of B, …
    logits' thread                                   A ──►            B ──►

If a rank ends, fails, or hangs (`heartbeat.py`), all end: keys and values are lost with it. Every request in
the engine gets an error at once, and no process is left.

Read next: `launch.py`, `worker.py`, `rank_executor.py`.
"""

from __future__ import annotations

import time
from collections import deque
from concurrent.futures import Future, wait
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar

import msgspec
import torch
from msgspec.structs import replace
from torch import Tensor

from minivllm.executor.distributed.cache_limits import CacheLimits, share_of_machine
from minivllm.executor.distributed.groups import Control, GroupPeers, PeerLostError
from minivllm.executor.distributed.heartbeat import IDLE, Activity, Heart, Watch
from minivllm.executor.distributed.launch import END_SECONDS, Ranks
from minivllm.executor.distributed.messages import RankSettings, encode_plan
from minivllm.executor.distributed.rank_executor import RankExecutor, load_rank
from minivllm.executor.distributed.rank_shapes import rank_shape
from minivllm.executor.distributed.telling import TOLD_ALL, Listener
from minivllm.executor.distributed.worker import device_of
from minivllm.executor.executor import ExecutorDeadError, RankError
from minivllm.executor.kv_storage import bytes_per_block
from minivllm.executor.lane import Lane
from minivllm.model.config import ModelConfig
from minivllm.model.hub import resolve_model
from minivllm.model.parallel.layout import share_of
from minivllm.model.parallel.peers import Alone, Peers
from minivllm.model.parallel.sharded_decoder import ShardedDecoder
from minivllm.scheduling.plan import StepPlan
from minivllm.trace.events import ModelShape, RankShape, RanksTimed
from minivllm.trace.rank_spans import RankSpans
from minivllm.validation import error_words

LOOK_SECONDS = 0.1
"""Time between two looks at the other ranks, while a step takes longer."""
MOST_LOOKS = 100
"""At a rank whose connection is lost, until it is gone: as many as that, however long we were stopped."""
Result = TypeVar("Result")


class DistributedExecutor:
    """Carries out plans on several ranks, of which the first is in this process. See `Executor`.

    Attributes:
        config: the whole model's.
        num_blocks, num_host_blocks: of the KV cache and of the swap space, the same on every rank.
        last_attention_seconds: of rank 0 in the latest step.
        rank_shapes: who owns what, for the header of a trace.
    """

    def __init__(
        self,
        settings: RankSettings,
        ranks: Ranks,
        limits: CacheLimits,
        name: str = "",
    ) -> None:
        """Let all ranks load their shares.

        Raises:
            ValueError: files or limits that cannot work; no process is left.
            RankError: a rank has not come in time, or has failed; no process is left.
        """
        self.settings = settings
        self.config = ModelConfig.from_folder(resolve_model(settings.model))
        self.name = name
        self.block_size = settings.block_size
        self.device = torch.device(settings.device)
        self.last_attention_seconds = 0.0
        self._ranks = ranks
        self.rank_shapes: tuple[RankShape, ...] = ()
        self._listener: Listener | None = None
        self._lane = Lane("minivllm-rank-0")
        self._logits_lane = Lane("minivllm-logits")
        self.num_stages = settings.pipeline_parallel_size
        self._pending: Future[Tensor] | None = None
        self._launched: deque[Future[Tensor]] = deque()
        self._error = ""
        self._control: Control | None = None
        self._peers: GroupPeers | None = None
        self._rank: RankExecutor | None = None
        self._activity = Activity()
        self._watch: Watch | None = None
        self._heart: Heart | None = None
        self._settings_told: dict[str, Any] = {}
        self._step_bytes = (0, 0)
        try:
            self._start(limits)
        except BaseException:
            self._end()
            raise

    def _start(self, limits: CacheLimits) -> None:
        meeting = self._ranks.meeting
        meeting.say("settings", msgspec.json.encode(self.settings))
        meeting.note("here")
        meeting.wait_for_all("here", "come")
        self._watch = Watch(meeting, self._activity)
        if not self._ranks.are_ours:
            self._heart = Heart(meeting, self._activity).__enter__()
        decoder = self._wait(self._lane.submit(self._join))
        loaded = meeting.wait_for_all("loaded", "loaded its share of the model")
        weights = [
            (decoder.num_bytes, *decoder.step_bytes),
            *(msgspec.json.decode(told, type=tuple[int, int, int]) for told in loaded),
        ]
        if decoder.quantization:
            self._step_bytes = sum(layers for _, layers, _ in weights), sum(output for *_, output in weights)
        sizes = limits.sizes(self.config, self.settings, decoder.num_bytes, self._ranks.num_local)
        self.num_blocks, self.num_host_blocks = sizes.num_blocks, sizes.num_host_blocks
        rank = self._rank = self._wait(
            self._lane.submit(partial(RankExecutor, decoder, self.settings, sizes))
        )
        self._settings_told = self._tell(rank)
        if self.settings.record_spans and self._peers:
            rank.spans = self._peers.spans = RankSpans()
            self._listener = Listener(meeting, rank.spans)
        rank.activity = self._activity
        self._activity.begin(IDLE)
        meeting.say("sizes", msgspec.json.encode(sizes))  # what had to be compiled is there for the others
        caches = [rank.storage.num_bytes, *map(int, meeting.wait_for_all("ready", "made its cache"))]
        shares = (
            share_of(self.config, self.settings.grid, rank, self.settings.num_parts)
            for rank in range(len(caches))
        )
        self.rank_shapes = tuple(
            rank_shape(number, share, weights[number][0], caches[number], tied=decoder.tied)
            for number, share in enumerate(shares)
        )
        self._watch.expect(self.settings.timeout_seconds)

    def _join(self) -> ShardedDecoder:
        """In rank 0's thread: meet the others, and load."""
        settings, ranks = self.settings, self._ranks
        torch.set_num_threads(settings.num_threads)  # of this thread
        device = device_of(settings.device, 0)
        peers: Peers = Alone()
        if settings.grid.size > 1:
            self._control = Control(ranks.meeting.store, 0, settings.grid.size, ranks.address)
            where = device, ranks.address, settings.timeout_seconds
            peers = self._peers = GroupPeers(ranks.meeting.store, settings.grid, 0, *where)
            self._peers.activity = self._activity
        return load_rank(settings, 0, device, peers)

    @property
    def settings_told(self) -> dict[str, Any]:
        """How it computes, for the header of a trace."""
        return self._settings_told

    def _tell(self, rank: RankExecutor) -> dict[str, Any]:
        method = rank.decoder.quantization
        return {
            "device": str(self.device),
            "attention_backend": rank.attention.name,
            "tensor_parallel_size": self.settings.tensor_parallel_size,
            "pipeline_parallel_size": self.settings.pipeline_parallel_size,
            "reduction_parts": self.settings.num_parts,
            **({"quantization": method} if method else {}),
        }

    @property
    def model_shape(self) -> ModelShape:
        """What the header of a trace says about the model, and about weights and cache of all ranks."""
        shape, settings = self.config.shape(self.name, self.settings.dtype), self.settings
        everybody = share_of_machine(self.config, settings, settings.grid.size)
        kept = bytes_per_block(everybody, 1, getattr(torch, settings.dtype), settings.kv_cache_dtype)
        layers, output = self._step_bytes
        return replace(shape, kv_bytes_per_token=kept, layer_bytes=layers, output_bytes=output)

    def execute(self, plan: StepPlan) -> Tensor:
        """Logits `[sum of num_logits, vocab_size]` in plan order, float32 (float64 for a float64 model).

        Raises:
            ExecutorDeadError: a rank has ended or failed, now or before, or this executor was closed.
        """
        if self._error:
            raise ExecutorDeadError(self._error)
        try:
            if self._pending is not None:  # an interrupt has left it alone
                self._wait(self._pending)
            self._pending = self._lane.submit(partial(self._step, plan))
            return self._wait(self._pending)
        except Exception as error:
            self._error = self._reason(error)
            self._end()
            raise ExecutorDeadError(self._error) from error

    def launch(self, plan: StepPlan) -> None:
        """Carry out this plan behind those launched before, as soon as the first stage is free.

        Raises:
            ExecutorDeadError: as for `execute`.
        """
        if self._error:
            raise ExecutorDeadError(self._error)
        begun = self._lane.submit(partial(self._begin, plan))
        self._launched.append(self._logits_lane.submit(partial(self._logits_of, begun)))

    def wait(self) -> Tensor:
        """Logits of the oldest plan launched, as `execute` gives them.

        Raises:
            ExecutorDeadError: as for `execute`.
        """
        try:
            logits = self._wait(self._launched[0])
        except Exception as error:
            self._error = self._error or self._reason(error)
            self._end()
            raise ExecutorDeadError(self._error) from error
        self._launched.popleft()
        return logits

    def forget(self) -> None:
        """Drop the logits of every plan. When this returns, none is under way."""
        with suppress(ExecutorDeadError):  # the next plan says so
            while self._launched:
                self.wait()

    def _begin(self, plan: StepPlan) -> Tensor | None:
        """In rank 0's thread: its stage of a plan."""
        assert self._rank is not None
        if self._control is not None:
            self._control.broadcast(encode_plan(plan), most_unheard=2 * self.num_stages)
        hidden = self._rank.begin(plan)
        self.last_attention_seconds = self._rank.last_attention_seconds
        return hidden

    def _logits_of(self, begun: Future[Tensor | None]) -> Tensor:
        """In the logits' thread."""
        hidden, rank = begun.result(), self._rank
        assert rank is not None
        return rank.logits_of(hidden)

    def _step(self, plan: StepPlan) -> Tensor:
        """In rank 0's thread."""
        assert self._rank is not None
        if self._control is not None:
            self._control.broadcast(encode_plan(plan))
        logits = self._rank.execute(plan)
        self.last_attention_seconds = self._rank.last_attention_seconds
        return logits

    def close(self) -> None:
        """Let all ranks end. No process is left when it returns; later plans are refused."""
        if self._error:
            return
        self._error = "it was closed"
        if self._control is not None:
            told = self._lane.submit(partial(self._control.broadcast, b""))
            wait([told], END_SECONDS)
            self._hear_the_rest()
            self._ranks.wait()
        self._end()

    def rank_times(self, epoch: float) -> list[RanksTimed]:
        """When each rank carried out the plans of which all have told since the last call, in order.

        Times are in seconds since `epoch`, and what was before is left out. After `close` it is all the rest.
        """
        if self._listener is None:
            return []
        if not self._error:
            with suppress(RuntimeError):  # the store is gone: the next plan says so
                self._listener.listen()
        return self._listener.take(epoch)

    def _hear_the_rest(self) -> None:
        """What ranks tell when they end: of those that do so in time."""
        if self._listener is None:
            return
        meeting = self._ranks.meeting
        meeting.seconds, meeting.look = END_SECONDS, lambda: None  # they end once they have told
        with suppress(RankError):
            meeting.wait_for_all(TOLD_ALL, "told when it did what")
        self._listener.listen(is_last=True)

    def _wait(self, future: Future[Result]) -> Result:
        """What comes out of rank 0's thread. Raises `RankError` if another rank ends first, or one hangs."""
        while not wait([future], LOOK_SECONDS).done:
            self._ranks.look()
            if self._watch is not None:
                self._watch.look()
        return future.result()

    def _reason(self, error: Exception) -> str:
        """Why the ranks end, with the name of the one that was first, if that can be known."""
        is_lost = isinstance(error, PeerLostError) and self._ranks.are_ours
        for _ in range(MOST_LOOKS if is_lost else 1):
            if isinstance(error, RankError):
                break
            try:  # a lost connection is seen a moment before the process is gone
                self._ranks.look()
            except RankError as found:
                error = found
            else:
                time.sleep(LOOK_SECONDS)
        words = str(error) if isinstance(error, RankError) else error_words(error)
        return f"{words}; with it keys and values are lost, so that all ranks have ended: make a new engine"

    def _end(self) -> None:
        """Leave nothing: no process, no port, no weights and no cache."""
        if self._heart is not None:
            self._heart.__exit__()
        self._ranks.kill()
        self._lane.end()
        self._logits_lane.end()
        self._control = self._peers = self._rank = self._pending = self._watch = self._heart = None
        self._launched.clear()
