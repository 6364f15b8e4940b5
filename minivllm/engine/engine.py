"""The engine: requests go in, tokens come out, one step at a time.

    step():   plan_step ──► StepPlan ──► execute ──► logits ──► sample_step ──► finish_step
                 │                                                                  │
              events                                            outputs, events, freed blocks

With asynchronous scheduling a step is planned while the one before it is computed, and what came out of it is
told while the next one is. Only sampling overlaps with nothing, because the next step needs its tokens:

    executor    compute 0 ─────────┐ compute 1 ─────────┐ compute 2 ─────
    engine      plan 1             │ tell 0, plan 2     │ tell 1, plan 3
                         sample 0, fill in 1     sample 1, fill in 2

A stop is noticed when its step is told, so one token more may be computed of the sequence, and is dropped.
In a pipeline of ranks there is a plan for each stage, launched at once, since each has other sequences.

The core decides and keeps the books (`core.py`), the executor computes, the sampler chooses, and the outputs
of each request turn tokens into text and know when to stop (`request_state.py`). The engine carries data from
one to the next; the model, the tokenizer, the clock and the callers are its business, and no other's.

A step that fails (out of memory, say) or is interrupted loses no token and no request: those that were in it
compute their caches anew, and every request can still be aborted. A request whose logits are no numbers (NaN,
infinity) ends alone, with the `finish_reason` "error"; the others in its step go on.

One thread at a time drives an engine. A caller that waits for some requests only, as `LLM.generate` does,
begins a *call* and names it in each `step`; the outputs of all other requests are kept for a plain `step`.

Source: the `LLMEngine` of vLLM, `step` and `add_request`. Read next: `core.py`.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from collections.abc import Sequence as SequenceOf
from contextlib import suppress
from time import perf_counter, sleep
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from minivllm.config import SchedulerConfig
from minivllm.decoding.detokenizer import token_texts
from minivllm.decoding.parallel_sampling import SampleSlot
from minivllm.decoding.structured.compile import AnyStructure, StructureCompiler
from minivllm.engine.admission import RequestArguments, check_request
from minivllm.engine.core import EngineCore
from minivllm.engine.flight import Flight
from minivllm.engine.request_state import RequestState, make_request_state
from minivllm.engine.sample_step import StepSample, TokenSampler, advance_search, sample_step, tokens_of
from minivllm.engine.snapshot import make_header, take_snapshot
from minivllm.engine.speculation import Speculation
from minivllm.executor.executor import ClosableExecutor, PipelinedExecutor
from minivllm.executor.in_flight import Background, PlansInFlight
from minivllm.memory.cache_manager import CacheManager
from minivllm.memory.make_cache_manager import Pages, make_cache_manager
from minivllm.outputs import RequestOutput
from minivllm.sampling_params import BeamSearchParams, SamplingParams, in_sampling_params
from minivllm.scheduling.plan import NextToken, Sampled, StepPlan, fill_pending
from minivllm.scheduling.policy import PolicyError, SchedulingPolicy
from minivllm.structured_outputs_config import OWN
from minivllm.trace.events import HardwareShape, ModelShape, RequestRefused, StepFinished
from minivllm.trace.held_events import HeldEvents
from minivllm.trace.recorder import Recorder
from minivllm.trace.replay import EngineSnapshot
from minivllm.trace.tee import Sink, make_emit
from minivllm.validation import check_integer, check_text, check_token_ids, shown

if TYPE_CHECKING:
    from minivllm.executor.executor import Executor
    from minivllm.model.tokenizer import Tokenizer

logger = logging.getLogger("minivllm")

MOST_WORDS = 2000
"""Characters of a schema or grammar that the trace tells."""
NO_DRAFTS = "no draft can be accepted before all beams have been compared"
MAX_SLEEP_SECONDS = 0.01  # a driver can add requests while a policy waits for them


class Outbox(NamedTuple):
    """What a step tells the callers."""

    outputs: list[RequestOutput]
    states: list[RequestState]
    """Those of its requests that go on: what was told of them must be noted (`mark_sent`)."""
    left: list[str]
    """Those that do not: they are forgotten once their outputs cannot be lost any more."""


NOTHING = Outbox([], [], [])

Call: TypeAlias = frozenset[str]
"""The ids of the requests that one caller waits for."""


class Engine:
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
        self.config = config
        self.executor = executor
        self.sampler = sampler
        self.vocab_size = check_integer("vocab_size", vocab_size, at_least=1)
        self.tokenizer = tokenizer
        self.eos_token_ids = tuple(check_token_ids("eos_token_ids", eos_token_ids))
        self.default_params = default_params or SamplingParams()
        self.seed = check_integer("seed", seed, at_least=0)
        self.recorder, self.speculation = recorder, speculation
        self.requests: dict[str, RequestState] = {}
        self._clock, self._sleep = clock, sleep
        self._choose_runs(executor, async_scheduling and speculation is None, overlap_stages)
        sinks = [*([recorder] if recorder else []), *sinks]
        emit = make_emit(sinks)
        self._emit = emit = HeldEvents(emit) if emit and self._max_in_flight > 1 else emit
        self._tells_texts = any(getattr(s, "wants_texts", True) for s in sinks)
        self._is_busy = False  # left True by an interrupt: something may be half-done
        self._outbox = NOTHING
        self._late: list[RequestOutput] = []  # for the next step to tell
        self._call: Call | None = None
        self._structures = StructureCompiler(self._token_bytes, vocab_size, structures_backend)
        self.last_failed: frozenset[str] = frozenset()
        self.core = EngineCore(
            config, emit, policy=policy, make_cache=lambda: make_cache_manager(config, emit, pages)
        )
        self.core.runs_ahead = self._max_in_flight > self._num_plans
        if emit:
            kind = "wall" if clock is perf_counter else "virtual"
            # Addresses may be more than there is memory: the trace counts what has a number.
            num_blocks = len(self.cache.pool.ref_counts)
            told = settings or {}
            emit(make_header(config, num_blocks, model_shape, told, clock=kind, hardware=hardware))
            self.core.epoch = clock()

    def _choose_runs(self, executor: Executor, is_async: bool, overlap_stages: bool) -> None:
        """How plans are carried out, and how many may be in flight. Drafts are guessed from the token before
        them, so with speculation no step is planned ahead of it."""
        self._runs: PlansInFlight | None = None  # a plan is carried out when its logits are wanted
        self._flights: deque[Flight] = deque()
        self._max_in_flight = self._num_plans = 1  # the second: so many plans share the work
        if isinstance(executor, PipelinedExecutor) and executor.num_stages > 1 and overlap_stages:
            self._runs, self._max_in_flight = executor, executor.num_stages
            self._num_plans = executor.num_stages
        elif is_async:
            self._max_in_flight = 2
            if self._clock is perf_counter:  # on any other clock, nothing can overlap
                self._runs = Background(self._execute, executor)

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
            if self.speculation and in_sampling_params(arguments.params).use_beam_search:
                raise ValueError(
                    f"use_beam_search must be False where speculative_config is set: {NO_DRAFTS}; got True"
                )
            max_tokens = check_request(
                arguments,
                config=self.config,
                memory=self.cache,
                vocab_size=self.vocab_size,
                has_tokenizer=self.tokenizer is not None,
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

    def note_refusal(self, request_id: str, error: ValueError) -> None:
        """Record in the trace that a request could not be made."""
        if self._emit:
            now = self.core.time_of(self._clock())
            name = request_id if isinstance(request_id, str) else shown(request_id)
            self._emit(RequestRefused(name.encode(errors="replace").decode(), now, str(error)))

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
        if self._tells_texts and self.tokenizer:
            pieces = token_texts(self.tokenizer, state.prompt_token_ids)
        self._is_busy = True
        try:
            asked = state.params.structured_outputs
            structure = asked.words[:MOST_WORDS] if self._tells_texts and asked else ""
            self.core.add(
                state.request, self._clock(), prompt=state.prompt, pieces=pieces, structure=structure
            )
        except ValueError:
            self._is_busy = False
            raise
        if state.sampling:
            # A seed of its own, so that no outcome depends on the other requests of the batch.
            state.sampling.set_fallback_seed((self.seed << 32) ^ state.request.sequences[0].seq_id)
        self.requests[state.request.request_id] = state
        self._is_busy = False

    def abort(self, request_id: str) -> RequestOutput | None:
        """Remove a request at any moment; all its blocks come back. All or nothing, interrupts included.

        Returns:
            Its output so far, with reason "abort" (or its own, if it is parked); None if it is not here.

        Raises:
            ValueError: `request_id` is no text.
        """
        check_text("request_id", request_id)
        self._settle()
        self._late = [output for output in self._late if output.request_id != request_id]
        state = self.requests.get(request_id)
        if state is None:
            return None
        self._is_busy = True
        state.outputs.abort()
        state.metrics.finished_time = now = self._clock()
        output = state.output()
        self.core.abort(request_id, now)
        del self.requests[request_id]
        self._is_busy = False
        if not self.requests:
            self._land()
        return output

    def reset_prefix_cache(self) -> bool:
        """Forget all cached prefixes that no request uses. Returns whether nothing is left in the cache."""
        self._settle()
        self._is_busy = True
        is_empty = self.core.reset_prefix_cache()
        self._is_busy = False
        return is_empty

    def is_in_use(self, request_id: str) -> bool:
        """Is there a request of this id that is unfinished, or whose last output was not told yet?"""
        return request_id in self.requests or any(late.request_id == request_id for late in self._late)

    def sleep_with(self, sleep: Callable[[float], None]) -> None:
        """From now on pass the time of a policy's pause with this; it may end early."""
        self._sleep = sleep

    def has_unfinished_requests(self) -> bool:
        self._settle()
        return bool(self.requests or self._late)

    @property
    def num_unfinished_requests(self) -> int:
        return len(self.requests)

    def close(self) -> None:
        """End the trace, if one is recorded, and other processes, if the executor has any: then no step can
        be computed any more."""
        self.end_steps()
        if self.recorder:
            self.recorder.close()
        if isinstance(self.executor, ClosableExecutor):
            self.executor.close()

    def end_steps(self) -> None:
        """Finish what is in flight; its outputs are lost. The executor may serve another engine then."""
        with suppress(Exception):  # whatever becomes of a step whose outputs are not waited for
            self._settle()
            self._land()
        if isinstance(self._runs, Background):
            self._runs.close()

    @property
    def num_steps(self) -> int:
        """Steps that were finished."""
        return self.core.num_steps

    @property
    def cache(self) -> CacheManager:
        """The memory's books."""
        return self.core.cache

    # ── the loop ──────────────────────────────────────────────────────────────────────────────────────

    def begin_call(self, request_ids: Iterable[str]) -> Call:
        """Before these requests are queued: they belong to one caller, which passes the call to `step`."""
        self.end_call()
        self._call = frozenset(request_ids)
        return self._call

    def end_call(self) -> None:
        """Abort what is left of the call that was begun last; nothing else changes."""
        if self._call is None:
            return
        self._settle()
        for request_id in self._call & self.requests.keys():
            self.abort(request_id)
        self._late = [output for output in self._late if output.request_id not in self._call]
        self._call = None

    def step(self, call: Call | None = None) -> list[RequestOutput]:
        """Compute one step of everything that is scheduled.

        Args:
            call: tell only the outputs of its requests (`begin_call`). A step that does not name the call
                that was begun last ends it: an interrupt has taken its caller away.

        Returns:
            One output for each request that got a token (or, with `output_kind=FINAL_ONLY` and for beam
            searches, that finished); empty if there is nothing to do. Outputs that do not belong to `call`
            are returned by the next plain step.
        """
        if call is not self._call:
            self.end_call()
            self._call = call
        if self._is_busy:
            self._settle()
        self._outbox = NOTHING  # the caller has come back, so it has got what was in it
        self._is_busy = True
        if not self._flights:
            began = self._clock()
            if self.speculation:
                self.speculation.propose(self.core, self.requests)
            try:
                plan = self.core.plan_step(began, self._num_plans)
            except PolicyError:
                self._is_busy = False
                raise
            if not isinstance(plan, StepPlan):
                if plan is not None:
                    self._sleep(min(plan.until - began, MAX_SLEEP_SECONDS))
                return self._send(Outbox(self._late, [], []))
            self._flights.append(Flight(plan, began, self._clock()))
            self._launch(self._flights[0])
        if self._max_in_flight > 1:
            self._plan_ahead()
        outbox = Outbox([*self._late], [], [])
        self._finish_oldest(outbox)
        if self._flights and len(outbox.left) == len(self.requests):
            self._go_on(self._finish_surplus)
        elif self._flights and self._num_plans > 1:  # before the caller takes its time: a stage may be idle
            self._go_on(self._plan_ahead)
        return self._send(outbox)

    def _execute(self, plan: StepPlan) -> Any:
        return self.executor.execute(plan)

    def _plan_ahead(self) -> None:
        """Make the plans that may be made while others are in flight."""
        while len(self._flights) < self._max_in_flight:
            began = self._clock()
            if self.speculation:
                self.speculation.propose(self.core, self.requests)
            plan = self.core.plan_ahead(began, self._num_plans)
            if plan is None:
                return
            self._flights.append(Flight(plan, began, self._clock()))
            if not self.core.runs_ahead:
                self._launch(self._flights[-1])

    def _launch(self, flight: Flight) -> None:
        try:
            if self.speculation:
                flight.drafting = self._clock()
                flight.plan, flight.laws = self.speculation.complete(
                    flight.plan, self.core.state.sequences, self.requests
                )
            flight.launched = self._clock()
            if self._runs is not None:
                self._runs.launch(flight.plan)
        except BaseException as error:
            self._give_up(error)
            raise

    def _finish_oldest(self, outbox: Outbox) -> None:
        """Wait for the oldest plan in flight, sample, let the next one begin, and tell what came out."""
        flight = self._flights[0]
        try:
            runs = self._runs
            logits = self.executor.execute(flight.plan) if runs is None else runs.wait()
            executed, attention = self._clock(), self.executor.last_attention_seconds
            sample = sample_step(
                flight.plan,
                logits,
                self.sampler,
                self.core.state.sequences,
                self.requests,
                flight.laws,
            )
        except BaseException as error:
            self._give_up(error)
            raise
        sampled = self._clock()
        if self.speculation and self._max_in_flight == 1:  # else a step's time is not its own
            drafting = flight.launched - flight.drafting
            self.speculation.note(flight.plan, sample.slots, sampled - flight.launched, drafting)
        following = self._flights[1] if len(self._flights) > 1 else None
        if following is not None and self.core.runs_ahead:
            fill_pending(following.plan, tokens_of(sample))
            self._launch(following)
        self._flights.popleft()
        self._update(flight.plan, sample, sampled, outbox)
        if self._emit:
            updated = self._clock()
            seconds = {
                "schedule": flight.planned - flight.began,
                "model": executed - flight.launched,
                "attention": attention,
                "sample": sampled - executed,
                "update": updated - sampled,
            }
            rounded = {name: round(value, 7) for name, value in seconds.items()}
            ended = updated if following is None else sampled
            self._emit(StepFinished(flight.plan.step, self.core.time_of(ended), rounded))
        if following is not None:
            self.core.begin_next(max(following.launched, sampled))

    def _give_up(self, error: BaseException) -> None:
        """Nothing in flight will be finished: its requests compute their caches anew."""
        if self._runs is not None:
            self._runs.forget()
        oldest = self._flights[0].plan
        self.last_failed = frozenset(name for flight in self._flights for name in flight.plan.request_ids)
        self.core.abandon(oldest, error, self._clock())
        self._flights.clear()
        self._is_busy = False

    def _finish_surplus(self) -> None:
        """All requests are over, and a plan still has their sequences: its tokens are dropped."""
        while self._flights:
            self._finish_oldest(Outbox([], [], []))

    def _go_on(self, work: Callable[[], None]) -> None:
        """Do this when a step has outputs to send. Should it fail, they are sent all the same."""
        try:
            work()
        except Exception as error:  # no request is lost by it; if the executor is dead, the next step says so
            logger.warning("a step failed that was to come: %s", error)
        finally:
            self._is_busy = True  # until the outputs are sent

    def _land(self) -> None:
        """Finish what is in flight, and begin nothing: its outputs are for the next step to tell."""
        if not self._flights:
            return
        self._is_busy = True
        outbox = Outbox([*self._late], [], [])
        try:
            while self._flights:
                self._finish_oldest(outbox)
        except Exception as error:
            logger.warning("a step failed: %s", error)
        finally:
            self._is_busy = True  # until the outputs are sent
        self._send(outbox, is_late=True)

    def _update(self, plan: StepPlan, sample: StepSample, now: float, outbox: Outbox) -> None:
        """Let outputs understand their tokens, let the core append them, and answer the callers."""
        sequences, requests = self.core.state.sequences, self.requests
        for item in plan.scheduled:
            sequence = sequences[item.seq_id]
            if sequence.finish is not None:
                continue
            metrics = requests[sequence.request_id].metrics
            if metrics.first_scheduled_time is None:
                metrics.first_scheduled_time = now
        tokens: list[NextToken] = []
        slots: list[SampleSlot] = []
        for slot, token, state in zip(sample.slots, sample.tokens, sample.states, strict=True):
            parent, output, is_fork = slot
            if output.finish is not None:
                continue  # it ended with a draft that was accepted before
            slots.append(slot)
            text = output.append(token)
            structure = state.structure
            allowed = output.told_of(structure.told) if structure and structure.told else None
            tokens.append(NextToken(parent.seq_id, token.token_id, text, is_fork, output.finish, allowed))
        beams = [advance_search(search) for search in sample.searches] if sample.searches else ()
        for request_id, finish in sample.failed:
            requests[request_id].outputs.fail(str(finish.stop))
        drafted = (
            self.speculation.texts(plan, self.tokenizer) if self.speculation and self._tells_texts else {}
        )
        changes = self.core.finish_step(plan, Sampled(tokens, beams, sample.failed, drafted), now)
        grown: dict[str, RequestState] = {}
        for (_, output, _), sequence in zip(slots, changes.grown, strict=True):
            request = grown[sequence.request_id] = requests[sequence.request_id]
            if output.num_tokens == 1 and request.sampling:
                request.sampling.attach(output, sequence)
        for search in sample.searches:
            grown[search.state.request.request_id] = search.state
        released = dict.fromkeys([request.request_id for request in changes.released])
        for request_id, request in grown.items():
            request.metrics.last_token_time = now
            if request.metrics.first_token_time is None:
                request.metrics.first_token_time = now
            if request_id in released:
                del released[request_id]
                self._take_finished(request_id, outbox, now)
            elif not request.is_silent and request.request.finish is None:
                outbox.outputs.append(request.output())
                outbox.states.append(request)
        for request_id in released:  # they were parked, or have failed
            self._take_finished(request_id, outbox, now)

    def _take_finished(self, request_id: str, outbox: Outbox, now: float) -> None:
        state = self.requests[request_id]
        state.metrics.finished_time = now
        outbox.outputs.append(state.output())
        outbox.left.append(request_id)

    def _send(self, outbox: Outbox, *, is_late: bool = False) -> list[RequestOutput]:
        """Give outputs to the caller; they are kept until it comes back, in case that it never gets them.

        With `is_late` the next step gives them.
        """
        self._outbox = outbox
        for state in outbox.states:
            state.outputs.mark_sent()
        for request_id in outbox.left:
            del self.requests[request_id]
        if is_late:
            return vars(self).update(_is_busy=False, _late=outbox.outputs, _outbox=NOTHING) or []
        told = outbox.outputs
        late: list[RequestOutput] = []
        if self._call is not None:
            told = []
            for output in outbox.outputs:
                (told if output.request_id in self._call else late).append(output)
        # One line, so that nothing can come in between.
        return vars(self).update(_is_busy=False, _late=late) or told

    # ── after an interrupt ────────────────────────────────────────────────────────────────────────────

    def _settle(self) -> None:
        """Put things in order that an interrupt has left half-done: the core's books, then the outputs.

        A request that the core no longer has was finished or aborted; one that only the core has was about
        to be added. The outputs of all others are made again from their tokens.
        """
        if not self._is_busy:
            self._outbox = NOTHING  # the caller has come back, so it has got what was in it
            return
        if self._runs is not None:
            self._runs.forget()
        self._flights.clear()
        now, core = self._clock(), self.core
        core.settle(now, is_suspect=True)
        for state in self._outbox.states:
            state.outputs.mark_sent()
        for request_id in self._outbox.left:
            self.requests.pop(request_id, None)
        vars(self).update(_late=self._outbox.outputs or self._late, _outbox=NOTHING)
        for request_id, state in tuple(self.requests.items()):
            if request_id in core.requests:
                state.rewind()
                if not state.outputs.is_finished:
                    continue
                core.abort(request_id, now)
            self._leave_late(request_id, state, now)
        for request_id in tuple(core.requests):
            if request_id not in self.requests:
                core.abort(request_id, now)
        self._is_busy = False

    def _leave_late(self, request_id: str, state: RequestState, now: float) -> None:
        """A request had finished when the interrupt came: the next step tells its caller, if it has one."""
        if state.outputs.is_finished and not state.outputs.was_aborted:
            state.metrics.finished_time = now
            self._late = [*self._late, state.output()]
        del self.requests[request_id]

    def snapshot(self) -> EngineSnapshot:
        """The control plane's state, in the form in which a replay of the trace gives it."""
        self._settle()
        return take_snapshot(self.core, self._beam_scores())

    def _beam_scores(self) -> dict[int, float]:
        """Score of each running beam, once its search has begun."""
        scores: dict[int, float] = {}
        for state in self.requests.values():
            request = state.request
            if state.search and request.finish is None and request.sequences[0].num_output_tokens:
                rounded = [round(score, 6) for score in state.search.search.scores]
                scores |= zip((beam.seq_id for beam in request.sequences), rounded, strict=True)
        return scores

    def check_invariants(self) -> None:
        """Raise `AssertionError` unless every request is in exactly one queue and the memory adds up."""
        self._settle()
        self.core.check_invariants()
        names = {name for name in self.core.requests if not self.core.is_over(name)}
        assert names == set(self.requests), "engine and core name different requests"
        for state in self.requests.values():
            if state.request.finish is None:
                state.check_invariants()
