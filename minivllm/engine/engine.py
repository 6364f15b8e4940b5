"""The engine: requests go in, tokens come out, one step at a time.

    add_request ──► checked, made, queued ──► step, step, … (`step_loop.py`) ──► outputs
    abort ────────► gone, at any moment

The engine is a step loop that callers put requests into. The model, the tokenizer, the clock and the callers
are its business, and no other's. Nothing that could never be served is queued (`admission.py`), and each
request comes and goes as a whole, wherever Ctrl-C strikes (`engine_books.py`).

A request whose logits are no numbers (NaN, infinity) ends alone, with the `finish_reason` "error"; the others
in its step go on.

Source: the `LLMEngine` of vLLM. Read next: `step_loop.py`, then `core.py`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from collections.abc import Sequence as SequenceOf
from contextlib import suppress
from time import perf_counter, sleep
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from minivllm.config import SchedulerConfig
from minivllm.decoding.detokenizer import token_texts
from minivllm.decoding.structured.compile import AnyStructure, StructureCompiler
from minivllm.engine.admission import RequestArguments, check_request
from minivllm.engine.engine_books import Call
from minivllm.engine.rank_telling import RankTelling
from minivllm.engine.request_state import RequestState, make_request_state
from minivllm.engine.sample_step import TokenSampler
from minivllm.engine.snapshot import make_header
from minivllm.engine.speculation import Speculation
from minivllm.engine.step_loop import StepLoop
from minivllm.executor.executor import ClosableExecutor, RankedExecutor
from minivllm.memory.make_cache_manager import Pages
from minivllm.outputs import RequestOutput
from minivllm.sampling_params import BeamSearchParams, SamplingParams
from minivllm.scheduling.policy import SchedulingPolicy
from minivllm.structured_outputs_config import OWN
from minivllm.trace.events import HardwareShape, ModelShape
from minivllm.trace.recorder import Recorder
from minivllm.trace.tee import Sink
from minivllm.validation import check_integer, check_text, check_token_ids, shown

if TYPE_CHECKING:
    from minivllm.executor.executor import Executor
    from minivllm.model.tokenizer import Tokenizer

logger = logging.getLogger("minivllm")

MOST_WORDS = 2000
"""Characters of a schema or grammar that the trace tells."""
DRAFTS_WAIT = "waits at every step: drafts are guessed from the token before them"
PLANS_AHEAD = "plans ahead; beam searches and forks wait for their tokens"
"""What `async_scheduling` comes to, in the trace's header."""


class Engine(StepLoop):
    """Continuous batching over a paged KV cache.

    Args:
        config: the limits of the run.
        executor: carries out plans; returns one row of logits for each wanted position.
        sampler: chooses tokens by rows of logits.
        vocab_size: token ids are 0 … vocab_size - 1.
        tokenizer: turns tokens into text; without one all texts are empty and stop strings are refused.
        eos_token_ids: tokens that end a sequence, unless its request ignores them; where another than the
            first ends it, the output's `stop_reason` names it.
        default_params: how to sample where a request does not say.
        seed: requests without a seed of their own get one derived from this and their order of arrival.
        recorder: where events go; None records nothing.
        sinks: what else takes every event, beside the recorder.
        model_shape: the model's numbers, for the trace's header.
        settings: any other settings worth showing in the trace's header.
        hardware: on what the executor computes, for the same header.
        clock: seconds; another clock makes a simulation of it.
        sleep: lets so many seconds pass on that clock, when a policy would rather wait for more requests.
        policy: in which order requests are scheduled; the one that `config` names, if None.
        pages: how the executor's storage gives memory back, for the allocator "virtual_memory".
        speculation: proposes drafts, so that a step may give several tokens of a sequence; None does not.
        async_scheduling: plan each step while the one before it is computed, wherever that can be.
        overlap_stages: where the executor has several stages, let each be busy with a plan of its own.
        structures_backend: what follows structured outputs (`structured_outputs_config.py`).

    Raises:
        ValueError: a number that cannot work, or no such configuration; named, with what is allowed.

    Attributes:
        requests: the state of each unfinished request, by its id.
        last_failed: the requests that were in the step that failed last.
    """

    def __init__(
        self,
        config: SchedulerConfig,
        executor: Executor,
        sampler: TokenSampler,
        *,
        vocab_size: int,
        tokenizer: Tokenizer | None = None,
        eos_token_ids: SequenceOf[int] = (),
        default_params: SamplingParams | None = None,
        seed: int = 0,
        recorder: Recorder | None = None,
        sinks: Iterable[Sink] = (),
        model_shape: ModelShape | None = None,
        settings: Mapping[str, Any] | None = None,
        hardware: HardwareShape | None = None,
        clock: Callable[[], float] = perf_counter,
        sleep: Callable[[float], None] = sleep,
        policy: SchedulingPolicy | None = None,
        pages: Pages | None = None,
        speculation: Speculation | None = None,
        async_scheduling: bool = False,
        overlap_stages: bool = True,
        structures_backend: str = OWN,
    ) -> None:
        if not isinstance(config, SchedulerConfig):
            raise ValueError(f"config must be a SchedulerConfig, got {shown(config)}")
        self.vocab_size = check_integer("vocab_size", vocab_size, at_least=1)
        self.eos_token_ids = tuple(check_token_ids("eos_token_ids", eos_token_ids))
        self.default_params = default_params or SamplingParams()
        self.seed = check_integer("seed", seed, at_least=0)
        self.recorder = recorder
        self.sampler, self.tokenizer, self.speculation, self._sleep = sampler, tokenizer, speculation, sleep
        self._structures = StructureCompiler(self._token_bytes, vocab_size, structures_backend)
        sinks = [*([recorder] if recorder else []), *sinks]
        # Drafts are guessed from the token before them: with speculation no step is planned ahead of it.
        is_async = async_scheduling and speculation is None
        if async_scheduling and not is_async:
            logger.warning("async_scheduling %s, so it gains nothing with speculative_config", DRAFTS_WAIT)
        super().__init__(
            config, executor, sinks, clock, policy, pages, is_async=is_async, overlap_stages=overlap_stages
        )
        if self._emit:
            kind = "wall" if clock is perf_counter else "virtual"
            # Addresses may be more than there is memory: the trace counts what has a number.
            num_blocks = len(self.cache.pool.ref_counts)
            told = dict(settings or {})
            if async_scheduling:
                told["async_scheduling"] = PLANS_AHEAD if is_async else DRAFTS_WAIT
            header = make_header(config, num_blocks, model_shape, told, clock=kind, hardware=hardware)
            if isinstance(executor, RankedExecutor):
                header = replace(header, ranks=executor.rank_shapes)
                self._ranks = RankTelling(executor, self.core, self._emit)
            self._emit(header)
            self.core.epoch = clock()

    # ── requests come and go ──────────────────────────────────────────────────────────────────────────

    def add_request(
        self,
        request_id: str,
        prompt_token_ids: SequenceOf[int],
        params: SamplingParams | BeamSearchParams | None = None,
        *,
        prompt: str | None = None,
        arrival_time: float | None = None,
        priority: int = 0,
        cache_salt: str | None = None,
        structure: AnyStructure | None = None,
    ) -> None:
        """Queue a request. It is computed by later calls of `step`. All or nothing, interrupts included.

        Args:
            request_id: the caller's name for it, unique among the requests whose last output it has not got.
            prompt_token_ids: at least one token.
            params: how to sample (or search) and when to stop; the engine's defaults if None.
            prompt: the prompt as text, for outputs and trace.
            arrival_time: on the engine's clock; now if None. Of requests that the policy ranks the same, the
                earlier goes first.
            priority: kept for policies that look at it; the smaller is the more important.
            cache_salt: cached prefixes are shared only among requests with the same salt.
            structure: what `compile_structure` makes of the params, if the caller has had it made already.

        Raises:
            ValueError: the request could never be served; it says why, in numbers. Nothing has changed.
        """
        self.enqueue(
            self.make_request(
                request_id,
                prompt_token_ids,
                params,
                prompt=prompt,
                arrival_time=arrival_time,
                priority=priority,
                cache_salt=cache_salt,
                structure=structure,
            )
        )

    def make_request(
        self,
        request_id: str,
        prompt_token_ids: SequenceOf[int],
        params: SamplingParams | BeamSearchParams | None = None,
        *,
        prompt: str | None = None,
        arrival_time: float | None = None,
        priority: int = 0,
        cache_salt: str | None = None,
        structure: AnyStructure | None = None,
    ) -> RequestState:
        """Check a request, and make it; nothing changes until `enqueue`. Arguments as for `add_request`.

        Raises:
            ValueError: it could never be served, and why. The refusal is recorded in the trace.
        """
        params = self.default_params if params is None else params
        try:
            if not isinstance(structure, AnyStructure | None):
                raise ValueError(
                    f"structure must be what compile_structure returns, or None, got {shown(structure)}"
                )
            arguments = RequestArguments.checked(
                request_id,
                prompt,
                prompt_token_ids,
                params,
                self._clock() if arrival_time is None else arrival_time,
                priority,
                cache_salt,
            )
            if self.is_in_use(request_id):
                raise ValueError(f"request_id {request_id!r} is in use by a request that is not finished")
            max_tokens = check_request(
                arguments,
                config=self.config,
                memory=self.cache,
                vocab_size=self.vocab_size,
                has_tokenizer=self.tokenizer is not None,
                has_drafts=self.speculation is not None,
            )
            return make_request_state(
                arguments,
                max_tokens=max_tokens,
                tokenizer=self.tokenizer,
                eos_token_ids=self.eos_token_ids,
                structure=structure or self.compile_structure(arguments.params),
                is_told=self._emit is not None,
            )
        except ValueError as error:
            self.note_refusal(request_id, error)
            raise

    def compile_structure(self, params: SamplingParams | BeamSearchParams) -> AnyStructure | None:
        """What structure an output must have, ready to be followed; None if it may have any.

        It touches nothing else of the engine: one thread beside the engine's may do it for all requests.

        Raises:
            StructureError: it cannot be followed, and why.
        """
        if isinstance(params, BeamSearchParams) or params.structured_outputs is None:
            return None
        endings = () if params.ignore_eos else self.eos_token_ids
        return self._structures.compile(params.structured_outputs, (*endings, *(params.stop_token_ids or ())))

    def _token_bytes(self) -> SequenceOf[bytes | None]:
        assert self.tokenizer is not None, "it was checked that there is one"
        return self.tokenizer.token_bytes()

    def enqueue(self, state: RequestState) -> None:
        """Let a request wait that `make_request` has made.

        Raises:
            ValueError: a request of its id is unfinished; nothing has changed.
            PolicyError: the policy failed to rank it; nothing has changed.
        """
        self._settle()
        if self.core.is_over(state.request.request_id):
            self._land()
        pieces: SequenceOf[str] = ()
        if self._tells_prompt_texts and self.tokenizer:
            pieces = token_texts(self.tokenizer, state.prompt_token_ids)
        asked = state.params.structured_outputs
        structure = asked.words[:MOST_WORDS] if self._tells_texts and asked else ""
        self._add(state, self.seed, pieces, structure)

    def abort(self, request_id: str) -> RequestOutput | None:
        """Remove a request at any moment; all its blocks come back. All or nothing, interrupts included.

        Returns:
            Its output so far, with reason "abort" (or its own, if it is parked); None if it is not here.

        Raises:
            ValueError: `request_id` is no text.
        """
        check_text("request_id", request_id)
        output = self._remove(request_id)
        if not self.requests:
            self._land()
        return output

    def begin_call(self, request_ids: Iterable[str]) -> Call:
        """Before these requests are queued: they belong to one caller, which passes the call to `step`."""
        self.end_call()
        self._call = frozenset(request_ids)
        return self._call

    def sleep_with(self, sleep: Callable[[float], None]) -> None:
        """From now on pass the time of a policy's pause with this; it may end early."""
        self._sleep = sleep

    def close(self) -> None:
        """End the trace, if one is recorded, and other processes, if the executor has any: then no step can
        be computed any more."""
        self.end_steps()
        try:
            if isinstance(self.executor, ClosableExecutor):
                self.executor.close()
            if self._ranks:
                self._ranks.tell()
        finally:
            if self.recorder:
                self.recorder.close()

    def end_steps(self) -> None:
        """Finish what is in flight; its outputs are lost. The executor may serve another engine then."""
        with suppress(Exception):  # whatever becomes of a step whose outputs are not waited for
            self._settle()
            self._land()
        self._flights.close()
