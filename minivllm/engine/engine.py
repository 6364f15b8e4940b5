"""The engine: requests go in, tokens come out, one step at a time.

    step():   schedule ──► StepPlan ──► execute ──► logits ──► sample ──► update
                 │                                                          │
              events                                          outputs, events, freed blocks

Each part is somebody else's work: the scheduler decides, the executor computes, the sampler chooses, the
decoding of each request (`live_request.py`) turns tokens into text and knows when to stop. The engine only
carries data from one to the next and keeps the books, so the same loop drives any model, real or not.

A step that fails (out of memory, say) loses no token and no request: whoever was in it computes its cache
anew, and every request can still be aborted.

Source: the `LLMEngine` of vLLM, `step` and `add_request`. Read next: `minivllm/scheduling/scheduler.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from collections.abc import Sequence as SequenceOf
from time import perf_counter, sleep
from typing import TYPE_CHECKING, Any

from minivllm.config import SchedulerConfig
from minivllm.decoding.detokenizer import token_texts
from minivllm.engine.admission import check_prompt, check_salt, check_width, limit_output
from minivllm.engine.request_state import LiveRequest, make_decoding
from minivllm.engine.sample_step import Choices, Search, TokenChooser, choose
from minivllm.engine.snapshot import make_header, take_snapshot
from minivllm.memory.make_cache_manager import Pages, make_cache_manager
from minivllm.outputs import RequestMetrics, RequestOutput
from minivllm.sampling_params import BeamSearchParams, SamplingParams
from minivllm.scheduling.plan import StepPlan
from minivllm.scheduling.policy import SchedulingPolicy
from minivllm.scheduling.request import Request, RequestStatus, Sequence
from minivllm.scheduling.scheduler import Scheduler
from minivllm.trace.events import (
    ModelShape,
    RequestQueued,
    RequestRefused,
    SequenceFinished,
    StepAbandoned,
    StepFinished,
    StepStarted,
    TokensSampled,
)
from minivllm.trace.recorder import Recorder
from minivllm.trace.replay import EngineSnapshot
from minivllm.trace.tee import Sink, make_emit

if TYPE_CHECKING:
    from minivllm.executor.executor import Executor
    from minivllm.model.tokenizer import Tokenizer

LONGEST_NAP_SECONDS = 0.01  # whoever drives the engine can add requests while a policy waits for them


class Engine:
    """Continuous batching over a paged KV cache.

    Args:
        config: the limits of the run.
        executor: carries out plans; returns one row of logits for each wanted position.
        sampler: chooses tokens by rows of logits.
        vocab_size: token ids are 0 … vocab_size - 1.
        tokenizer: turns tokens into text; without one all texts are empty and stop strings are refused.
        eos_token_ids: tokens that end a sequence, unless its request ignores them.
        seed: requests without a seed of their own get one derived from this and their order of arrival.
        recorder: where events go; None records nothing.
        sinks: what else takes every event, beside the recorder.
        model_shape: the model's numbers, for the trace's header.
        settings: any other settings worth showing in the trace's header.
        clock: seconds; another clock makes a simulation of it.
        sleep: lets so many seconds pass on that clock, when a policy would rather wait for company.
        policy: who goes first; the one that `config` names, if None.
        pages: how the executor's storage gives memory back, for the allocator "virtual_memory".
    """

    def __init__(
        self,
        config: SchedulerConfig,
        executor: Executor,
        sampler: TokenChooser,
        *,
        vocab_size: int,
        tokenizer: Tokenizer | None = None,
        eos_token_ids: SequenceOf[int] = (),
        seed: int = 0,
        recorder: Recorder | None = None,
        sinks: Iterable[Sink] = (),
        model_shape: ModelShape | None = None,
        settings: Mapping[str, Any] | None = None,
        clock: Callable[[], float] = perf_counter,
        sleep: Callable[[float], None] = sleep,
        policy: SchedulingPolicy | None = None,
        pages: Pages | None = None,
    ) -> None:
        self.config = config
        self.executor = executor
        self.sampler = sampler
        self.vocab_size = vocab_size
        self.tokenizer = tokenizer
        self.eos_token_ids = tuple(eos_token_ids)
        self.seed = seed
        self.recorder = recorder
        self.num_steps = 0
        self.live: dict[str, LiveRequest] = {}
        """Unfinished requests by their ids."""
        self._clock = clock
        self._sleep = sleep
        self._emit = make_emit([*([recorder] if recorder else []), *sinks])
        self.cache = make_cache_manager(config, self._emit, pages)
        self.scheduler = Scheduler(config, self.cache, self._emit, policy)
        if self._emit:
            kind = "wall" if clock is perf_counter else "virtual"
            # Addresses may be more than there is memory: the trace counts what has a number.
            num_blocks = len(self.cache.pool.ref_counts)
            self._emit(make_header(config, num_blocks, model_shape, settings or {}, clock=kind))

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
    ) -> None:
        """Queue a request. It is computed by later calls of `step`.

        Args:
            request_id: the caller's name for it, unique among the requests that are not finished.
            prompt_token_ids: at least one token.
            params: how to sample (or search) and when to stop; vLLM's defaults if None.
            prompt: the prompt as text, for outputs and trace.
            arrival_time: on the engine's clock; now if None.
            priority: kept for policies that look at it.
            cache_salt: cached prefixes are shared only among requests with the same salt.

        Raises:
            ValueError: the request could never be served; it says why, in numbers. Nothing has changed.
        """
        beam_temperature = params.temperature if isinstance(params, BeamSearchParams) else 0.0
        wanted = _in_sampling_params(params)
        max_tokens = self.validate(request_id, prompt_token_ids, wanted, cache_salt=cache_salt)
        arrival_time = self._clock() if arrival_time is None else arrival_time
        sequence = Sequence(
            self.scheduler.new_seq_id(),
            prompt_token_ids,
            request_id=request_id,
            wants_prompt_logits=wanted.prompt_logprobs is not None,
        )
        request = Request(
            request_id,
            [sequence],
            max_tokens=max_tokens,
            arrival_time=arrival_time,
            priority=priority,
            width=wanted.width,
            in_lockstep=wanted.use_beam_search,
            salt=cache_salt,
        )
        tokens = sequence.token_ids.tolist()
        decoding = make_decoding(
            wanted,
            prompt,
            tokens,
            max_tokens=max_tokens,
            tokenizer=self.tokenizer,
            eos_token_ids=self.eos_token_ids,
            # A seed of its own, so that no outcome depends on who else is in the batch.
            fallback_seed=(self.seed << 32) ^ sequence.seq_id,
            beam_temperature=beam_temperature,
        )
        metrics = RequestMetrics(arrival_time=arrival_time)
        self.scheduler.add(request)
        self.live[request_id] = LiveRequest(request, prompt, tokens, wanted, decoding, metrics)
        if self.recorder and self._emit:
            self._emit(
                RequestQueued(
                    request_id,
                    sequence.seq_id,
                    self.recorder.at(arrival_time),
                    tuple(tokens),
                    max_tokens,
                    prompt,
                    token_texts(self.tokenizer, tokens) if self.tokenizer else (),
                    priority,
                    num_outputs=wanted.width,
                    is_beam_search=wanted.use_beam_search,
                    salt=cache_salt,
                )
            )

    def validate(
        self,
        request_id: str,
        prompt_token_ids: SequenceOf[int],
        params: SamplingParams | BeamSearchParams,
        *,
        cache_salt: str | None = None,
    ) -> int:
        """Could this request be served by an empty engine? Returns its final limit of output tokens.

        Raises:
            ValueError: it never could, and why. The refusal is recorded in the trace.
        """
        params = _in_sampling_params(params)
        try:
            if not isinstance(request_id, str) or not request_id:
                raise ValueError(f"request_id must be a non-empty string, got {request_id!r}")
            if request_id in self.live:
                raise ValueError(f"request_id {request_id!r} is in use by a request that is not finished")
            check_prompt(prompt_token_ids, self.vocab_size, self.config.max_model_len)
            check_salt(cache_salt)
            params.verify(self.vocab_size, has_tokenizer=self.tokenizer is not None)
            check_width(params.width, in_lockstep=params.use_beam_search, config=self.config)
            return limit_output(
                len(prompt_token_ids), params.max_tokens, self.config, self.cache, params.width
            )
        except ValueError as error:
            if self._emit:
                self._emit(RequestRefused(str(request_id), self._now(), str(error)))
            raise

    def abort(self, request_id: str) -> RequestOutput | None:
        """Forget a request at any moment; all its blocks come back.

        Returns:
            Its output so far, with reason "abort" (or its own, if its batch held it); None if it is not here.
        """
        live = self.live.get(request_id)
        if live is None:
            return None
        live.decoding.abort()
        self._let_go(live, may_hold=False)
        return live.output()

    def reset_prefix_cache(self) -> bool:
        """Forget all cached prefixes that nobody uses. Returns whether nothing is left in the cache."""
        self.cache.reset_prefix_cache()
        return not self.live

    def has_unfinished_requests(self) -> bool:
        return bool(self.live)

    @property
    def num_unfinished_requests(self) -> int:
        return len(self.live)

    # ── the loop body ─────────────────────────────────────────────────────────────────────────────────

    def step(self) -> list[RequestOutput]:
        """Compute one step of everything that is scheduled.

        Returns:
            One output for each request that got a token (or, with `output_kind=FINAL_ONLY` and for beam
            searches, that finished); empty if there is nothing to do.
        """
        if not self.live:
            return []
        began = self._clock()
        if pause := self.scheduler.consult(began):
            self._sleep(min(pause.until - began, LONGEST_NAP_SECONDS))
            return []
        if self._emit:
            self._emit(StepStarted(self.num_steps, self._now()))
        plan = None
        try:
            plan = self.scheduler.schedule(self.num_steps, began)
            scheduled = self._clock()
            logits = self.executor.execute(plan)
            executed = self._clock()
            choices = choose(plan, logits, self.sampler, self.scheduler.sequences, self.live)
        except BaseException as error:
            if plan is not None:
                self.scheduler.abandon(plan)
            if self._emit:
                self._emit(StepAbandoned(self.num_steps, self._now(), f"{type(error).__name__}: {error}"))
            raise
        chosen = self._clock()
        outputs = self._update(plan, choices)
        updated = self._clock()
        if self._emit:
            seconds = {
                "schedule": scheduled - began,
                "model": executed - scheduled,
                "attention": self.executor.last_attention_seconds,
                "sample": chosen - executed,
                "update": updated - chosen,
            }
            rounded = {name: round(value, 7) for name, value in seconds.items()}
            self._emit(StepFinished(self.num_steps, self._now(), rounded))
        self.num_steps += 1
        return outputs

    def _update(self, plan: StepPlan, choices: Choices) -> list[RequestOutput]:
        """Append the new tokens, fork and prune, let the finished leave, tell the callers."""
        self.scheduler.complete(plan)
        now = self._clock()
        for item in plan.scheduled:
            metrics = self.live[self.scheduler.sequences[item.seq_id].request_id].metrics
            if metrics.first_scheduled_time is None:
                metrics.first_scheduled_time = now
        pieces: list[tuple[int, int, str]] = []
        grown: dict[str, LiveRequest] = {}
        for draw, token in zip(choices.draws, choices.tokens, strict=True):
            live = grown[draw.parent.request_id] = self.live[draw.parent.request_id]
            sequence = self.scheduler.fork(live.request, draw.parent) if draw.forks else draw.parent
            sequence.append_token(token.token_id)
            text = live.sampling.append(draw.generation, sequence, token)
            pieces.append((sequence.seq_id, token.token_id, text))
        for search in choices.searches:
            grown[search.live.request.request_id] = search.live
            pieces += self._advance_beams(search)
        if self._emit and pieces:
            self._emit(TokensSampled(tuple(pieces)))
        outputs = []
        for live in grown.values():
            live.metrics.last_token_time = now
            if live.metrics.first_token_time is None:
                live.metrics.first_token_time = now
            self._let_go(live)
            if live.request.status.is_finished and live.request.request_id in self.live:
                continue  # it is held until its batch is done, and so is its output
            if live.decoding.is_finished or not live.is_silent:
                outputs.append(live.output())
        for request in self.scheduler.released():
            live = self.live[request.request_id]
            self._leave(live)
            outputs.append(live.output())
        return outputs

    def _advance_beams(self, search: Search) -> list[tuple[int, int, str]]:
        """One step of a beam search: fork the good beams, drop the bad ones."""
        live, beams, candidates = search
        step, children = live.beams.advance(beams, candidates)
        # At the end nobody goes on. The last beams stay until the request leaves, with its reason.
        parents = [sequence.seq_id for sequence in beams]
        grown, pruned = self.scheduler.grow(live.request, children) if children else ([], [])
        for sequence in pruned:
            self._tell_end(sequence, "pruned")
        if self._emit:
            self._emit(live.beams.describe(live.request.request_id, parents, step, grown))
        return [
            (sequence.seq_id, token, live.beams.text_of(token))
            for sequence, (_, token) in zip(grown, children, strict=True)
        ]

    # ── bookkeeping ───────────────────────────────────────────────────────────────────────────────────

    def _let_go(self, live: LiveRequest, *, may_hold: bool = True) -> None:
        """Sequences that have ended leave, and their request with the last of them."""
        request = live.request
        for sequence in tuple(request.sequences):
            ending = live.decoding.ending_of(sequence.seq_id)
            if ending is None:
                continue
            if len(request.sequences) > 1:
                self.scheduler.drop(request, sequence)
                self._tell_end(sequence, *ending)
            elif not (may_hold and self.scheduler.hold(request, RequestStatus(live.decoding.finish_reason))):
                self._leave(live)

    def _leave(self, live: LiveRequest) -> None:
        """A request goes, with its last sequence."""
        request = live.request
        (sequence,) = request.sequences
        live.metrics.finished_time = self._clock()
        live.metrics.num_preemptions = request.num_preemptions
        self.scheduler.remove(request, RequestStatus(live.decoding.finish_reason))
        del self.live[request.request_id]
        self._tell_end(sequence, *(live.decoding.ending_of(sequence.seq_id) or ("abort",)))

    def _tell_end(self, sequence: Sequence, reason: str, stop: int | str | None = None) -> None:
        if self._emit:
            self._emit(SequenceFinished(sequence.seq_id, reason, self._now(), stop))

    def _now(self) -> float:
        """Seconds since the trace began, for events."""
        return self.recorder.now() if self.recorder else 0.0

    def snapshot(self) -> EngineSnapshot:
        """The control plane's state, in the form in which a replay of the trace gives it."""
        return take_snapshot(self)

    def check_invariants(self) -> None:
        """Raise `AssertionError` unless every request is in exactly one queue and the memory adds up."""
        self.scheduler.check_invariants()
        waiting = self.scheduler.waiting.in_order_of_arrival()
        queued = {request.request_id for request in (*waiting, *self.scheduler.running)}
        assert queued == set(self.live), "the books and the queues name different requests"
        for live in self.live.values():
            if not live.request.status.is_finished:
                live.check_invariants()


def _in_sampling_params(params: SamplingParams | BeamSearchParams | None) -> SamplingParams:
    return params.to_sampling_params() if isinstance(params, BeamSearchParams) else params or SamplingParams()
