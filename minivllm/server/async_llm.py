"""`AsyncLLM`: the engine for many callers at once, in an event loop.

    llm = AsyncLLM.from_engine_args(EngineArgs("path/to/hf-folder"))
    async for output in llm.generate("Once upon a time", SamplingParams(max_tokens=40), "my-request"):
        print(output.outputs[0].text)
    llm.shutdown()

    generate ── call ──► engine thread ── outputs of a step ──► one hop into the event loop ──► a stream each

Requests of all callers are batched continuously, as everywhere. A caller that leaves (its task is cancelled,
the loop over `generate` is left) is aborted, and its blocks come back. One that is slow holds up no other
(`stream.py`). What shape an output must have is worked out in one more thread, before the engine hears of the
request.

Names are those of vLLM's `AsyncLLM`. Read next: `engine_thread.py`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar

from minivllm.decoding.structured.compile import AnyStructure
from minivllm.engine.create_engine import create_engine
from minivllm.engine.engine import Engine
from minivllm.engine.engine_args import EngineArgs
from minivllm.engine.prompts import Prompt, tokenize_prompt
from minivllm.model.tokenizer import Tokenizer
from minivllm.outputs import RequestOutput
from minivllm.sampling_params import BeamSearchParams, RequestOutputKind, SamplingParams
from minivllm.server.engine_thread import EngineDeadError, EngineThread
from minivllm.server.stream import Stream, Take
from minivllm.structured_outputs import StructuredOutputsParams
from minivllm.trace.tee import Sink
from minivllm.validation import check_text, shown

logger = logging.getLogger(__name__)

Result = TypeVar("Result")


class AsyncLLM:
    """An engine in a thread of its own, and a stream for each of its callers.

    All methods but `shutdown` belong to one event loop: the first in which `generate` is called.

    Args:
        engine: belongs to this object from now on.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._loop: asyncio.AbstractEventLoop | None = None
        self._streams: dict[str, Stream] = {}
        self._leaving: dict[str, asyncio.Future[Any]] = {}
        # One thread: a structure takes up to a second of Python, and several at once would all be late.
        self._compiling = ThreadPoolExecutor(1, thread_name_prefix="minivllm-structures")
        self._thread = EngineThread(engine, self)

    @classmethod
    def from_engine_args(cls, args: EngineArgs, sinks: Iterable[Sink] = ()) -> AsyncLLM:
        """Load a model and start. Raises `ValueError` as `LLM` does."""
        return cls(create_engine(args, sinks))

    async def generate(
        self,
        prompt: Prompt,
        sampling_params: SamplingParams | BeamSearchParams,
        request_id: str,
        *,
        priority: int = 0,
        take: Take | None = None,
    ) -> AsyncGenerator[RequestOutput]:
        """Continue one prompt.

        Args:
            prompt: a text, token ids, or a dictionary with one of them (`minivllm/engine/prompts.py`).
            sampling_params: its `output_kind` says what each output has: everything so far, what is new, or
                (once, at the end) everything.
            request_id: the caller's name for it, unique among the requests that are not finished.
            priority: smaller numbers go first, under the policy "priority".
            take: a short way for outputs: what it takes is not yielded (`stream.py`).

        Yields:
            What has come since the last output; the last one is `finished`.

        Raises:
            ValueError: the request could never be served, and why.
            EngineDeadError: the engine has ended.
            Exception: what failed in the step that the request was in.
        """
        check_text("request_id", request_id, may_be_empty=False)
        while request_id in self._leaving:  # what is on its way to the one before is not for this one
            await asyncio.wait([self._leaving[request_id]])
        if request_id in self._streams:
            raise ValueError(f"request_id {request_id!r} is in use by a request that is not finished")
        text, token_ids, salt = tokenize_prompt(prompt, "prompt", self._engine.tokenizer)
        stream = self._streams[request_id] = Stream(_output_kind(sampling_params), take)
        try:
            structure = await self._structure_of(request_id, sampling_params)
            stream.check()  # it may have been told to end meanwhile
            await self._call(
                lambda engine: engine.add_request(
                    request_id,
                    token_ids,
                    sampling_params,
                    prompt=text,
                    priority=priority,
                    cache_salt=salt,
                    structure=structure,
                )
            )
            if stream.is_unwanted:
                await self.abort(request_id)
            while True:
                output = await stream.next()
                yield output
                if output.finished:
                    return
        finally:
            del self._streams[request_id]
            if not stream.is_finished:
                self._leave(request_id)

    async def abort(self, request_id: str | Iterable[str]) -> None:
        """End requests now. Their callers get what there is, with reason "abort".

        Raises:
            ValueError: it is neither a name nor several.
        """
        if not isinstance(request_id, Iterable):
            raise ValueError(f"request_id must be a string or a list of them, got {shown(request_id)}")
        names = [request_id] if isinstance(request_id, str) else list(request_id)
        for name in [check_text("request_id", name) for name in names]:
            output = await self._call(partial(Engine.abort, request_id=name))
            if output is not None:
                self._deliver([output])
            elif stream := self._streams.get(name):  # its structure is being made: the engine has not got it
                stream.is_unwanted = True

    async def reset_prefix_cache(self) -> bool:
        """Forget all cached prefixes. Returns whether the cache is empty now: what is in use stays."""
        return await self._call(lambda engine: engine.reset_prefix_cache())

    async def check_health(self) -> None:
        """Raise `EngineDeadError` if the engine has ended."""
        if self._thread.end:
            raise self._thread.end

    @property
    def tokenizer(self) -> Tokenizer | None:
        """None if the model has none."""
        return self._engine.tokenizer

    @property
    def default_params(self) -> SamplingParams:
        """What the model asks for itself: see the setting `generation_config`."""
        return self._engine.default_params

    @property
    def max_model_len(self) -> int:
        """Most tokens of one sequence, prompt and output together."""
        return self._engine.config.max_model_len

    async def get_tokenizer(self) -> Tokenizer:
        """The tokenizer in use; `ValueError` if the model has none."""
        if self._engine.tokenizer is None:
            raise ValueError("this model has no tokenizer: give prompts as token ids (`prompt_token_ids`)")
        return self._engine.tokenizer

    @property
    def is_running(self) -> bool:
        return self._thread.end is None

    @property
    def errored(self) -> bool:
        return self._thread.end is not None

    @property
    def dead_error(self) -> EngineDeadError | None:
        """Why the engine has ended; None while it serves."""
        return self._thread.end

    @property
    def num_unfinished_requests(self) -> int:
        """Requests that callers wait for."""
        return len(self._streams)

    @property
    def num_waiting_requests(self) -> int:
        """Those of them that are not in the batch."""
        return max(0, len(self._streams) - len(self._engine.core.state.running))

    def end_requests(self, reason: str) -> None:
        """All requests are aborted: their callers get an `EngineDeadError` with this reason."""
        names = tuple(self._streams)
        self._fail(None, EngineDeadError(reason))
        with suppress(EngineDeadError):
            self._thread.call(lambda engine: [engine.abort(name) for name in names])

    def shutdown(self) -> None:
        """End after the step that is being computed. A caller that still waits gets an `EngineDeadError`."""
        self._thread.stop()
        self._compiling.shutdown(wait=False)
        self._engine.close()

    # ── from the event loop to the thread, and back ───────────────────────────────────────────────────

    async def _call(self, work: Callable[[Engine], Result]) -> Result:
        loop = asyncio.get_running_loop()
        if self._loop is None:
            self._loop = loop
        elif self._loop is not loop:
            raise RuntimeError("an AsyncLLM belongs to one event loop: make another one for another loop")
        return await asyncio.wrap_future(self._thread.call(work))

    async def _structure_of(
        self, request_id: str, params: SamplingParams | BeamSearchParams
    ) -> AnyStructure | None:
        """Its structure, made beside the engine's thread, so that others are served meanwhile."""
        asked = params.structured_outputs if isinstance(params, SamplingParams) else None
        if not isinstance(asked, StructuredOutputsParams) or self.tokenizer is None:
            return None  # or the engine refuses it
        await self.check_health()
        try:
            return await asyncio.get_running_loop().run_in_executor(self._compiling, self._compile, params)
        except ValueError as error:
            await self._call(partial(Engine.note_refusal, request_id=request_id, error=error))
            raise

    def _compile(self, params: SamplingParams | BeamSearchParams) -> AnyStructure | None:
        """In its thread. What waited there when the engine ended needs no structure."""
        if self._thread.end:
            raise self._thread.end
        return self._engine.compile_structure(params)

    def _leave(self, request_id: str) -> None:
        """Abort a request whose caller has gone. Its name is free when that is done."""
        with suppress(EngineDeadError, RuntimeError):  # the engine, or the event loop, has ended
            aborting = self._thread.call(lambda engine: engine.abort(request_id))
            left = self._leaving[request_id] = asyncio.wrap_future(aborting, loop=self._loop)
            left.add_done_callback(lambda _: self._leaving.pop(request_id, None))

    def on_outputs(self, outputs: list[RequestOutput]) -> None:
        """In the engine's thread: one hop for all outputs of a step."""
        self.hop(self._deliver, outputs)

    def on_failure(self, request_ids: Sequence[str], error: Exception) -> None:
        self.hop(self._fail, request_ids, error)

    def on_end(self, error: EngineDeadError) -> None:
        self.hop(self._fail, None, error)

    def hop(self, function: Callable[..., None], *args: Any) -> None:
        """From the engine's thread: have this done in the event loop, soon. Without a loop it is not done."""
        try:
            if self._loop:
                self._loop.call_soon_threadsafe(function, *args)
        except RuntimeError:  # the loop is closed, and so is every stream
            logger.debug("outputs for an event loop that is closed")

    def _deliver(self, outputs: list[RequestOutput]) -> None:
        for output in outputs:
            if stream := self._streams.get(output.request_id):
                stream.put(output)

    def _fail(self, request_ids: Sequence[str] | None, error: Exception) -> None:
        """None: all there are."""
        for name in self._streams if request_ids is None else request_ids:
            if stream := self._streams.get(name):
                stream.fail(error)


def _output_kind(params: SamplingParams | BeamSearchParams) -> RequestOutputKind:
    return params.output_kind if isinstance(params, SamplingParams) else RequestOutputKind.FINAL_ONLY
