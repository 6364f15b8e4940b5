"""The engine: requests go in, tokens come out, one step at a time.

    step():   schedule ──► StepPlan ──► execute ──► logits ──► sample ──► update
                 │                                                          │
              events                                          outputs, events, freed blocks

Each part is somebody else's work: the scheduler decides, the executor computes, the sampler chooses, a
`Generation` turns tokens into text and knows when to stop. The engine only carries data from one to the
next and keeps the books, which is why the same loop drives the real model, a fake one in the tests, and a
simulated data centre.

A step that fails (out of memory, say) leaves every sequence as it was, so it can be tried again, and
every request can still be aborted.

Source: the `LLMEngine` of vLLM, `step` and `add_request`. Read next: `minivllm/scheduling/scheduler.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from collections.abc import Sequence as SequenceOf
from dataclasses import asdict, dataclass
from time import perf_counter
from typing import TYPE_CHECKING, Any, Protocol

from minivllm.admission import check_prompt, limit_output
from minivllm.config import SchedulerConfig
from minivllm.decoding.detokenizer import token_texts
from minivllm.decoding.generation import Generation
from minivllm.memory import KVCacheManager
from minivllm.outputs import RequestMetrics, RequestOutput
from minivllm.request import Request, RequestStatus, Sequence
from minivllm.sampling_params import RequestOutputKind, SamplingParams
from minivllm.scheduling.plan import StepPlan
from minivllm.scheduling.scheduler import Scheduler
from minivllm.trace.events import (
    VERSION,
    ModelShape,
    RequestQueued,
    RequestRefused,
    SequenceFinished,
    StepFinished,
    StepStarted,
    TokensSampled,
    TraceHeader,
)
from minivllm.trace.recorder import Recorder, timestamp
from minivllm.trace.replay import EngineSnapshot

if TYPE_CHECKING:
    from minivllm.decoding.sampler import SampledToken
    from minivllm.decoding.sampling_state import SamplingState
    from minivllm.executor.executor import Executor
    from minivllm.model.tokenizer import Tokenizer
    from minivllm.outputs import Logprob


class TokenChooser(Protocol):
    """What the engine needs of a sampler: one token for each row of logits."""

    def sample(self, logits: Any, states: SequenceOf[SamplingState]) -> list[SampledToken]: ...

    def prompt_logprobs(
        self, logits: Any, next_token_ids: SequenceOf[int], num_logprobs: int
    ) -> list[dict[int, Logprob]]: ...


@dataclass
class _LiveRequest:
    """A request on its way through the engine: what is scheduled, what it has said, when things happened."""

    request: Request
    generation: Generation
    metrics: RequestMetrics


class Engine:
    """Continuous batching over a paged KV cache.

    Args:
        config: the limits of the run.
        executor: carries out plans; returns one row of logits for each wanted position.
        sampler: chooses one token for each row.
        vocab_size: token ids are 0 … vocab_size - 1.
        tokenizer: turns tokens into text; without one all texts are empty and stop strings are refused.
        eos_token_ids: tokens that end a sequence, unless its request ignores them.
        seed: requests without a seed of their own get one derived from this and their order of arrival.
        recorder: where events go; None records nothing.
        model_shape: the model's numbers, for the trace's header.
        settings: any other settings worth showing in the trace's header.
        clock: seconds; another clock makes a simulation of it.
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
        model_shape: ModelShape | None = None,
        settings: Mapping[str, Any] | None = None,
        clock: Callable[[], float] = perf_counter,
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
        self._clock = clock
        self._emit = recorder.emit if recorder else None
        self.cache = KVCacheManager(config.num_blocks, config.block_size, self._emit)
        self.scheduler = Scheduler(config, self.cache, self._emit)
        self._live: dict[str, _LiveRequest] = {}
        self._by_sequence: dict[int, _LiveRequest] = {}
        self._sequences: dict[int, Sequence] = {}
        self._next_seq_id = 0
        if recorder:
            recorder.start(self._header(model_shape, dict(settings or {})))

    # ── requests come and go ──────────────────────────────────────────────────────────────────────────

    def add_request(
        self,
        request_id: str,
        prompt_token_ids: SequenceOf[int],
        params: SamplingParams | None = None,
        *,
        prompt: str | None = None,
        arrival_time: float | None = None,
        priority: int = 0,
    ) -> None:
        """Queue a request. It is computed by later calls of `step`.

        Args:
            request_id: the caller's name for it, unique among the requests that are not finished.
            prompt_token_ids: at least one token.
            params: how to sample and when to stop; vLLM's defaults if None.
            prompt: the prompt as text, for outputs and trace.
            arrival_time: on the engine's clock; now if None.
            priority: kept for policies that look at it.

        Raises:
            ValueError: the request could never be served; it says why, in numbers. Nothing has changed.
        """
        params = params or SamplingParams()
        max_tokens = self.validate(request_id, prompt_token_ids, params)
        arrival_time = self._clock() if arrival_time is None else arrival_time
        sequence = Sequence(
            self._next_seq_id, prompt_token_ids, wants_prompt_logits=params.prompt_logprobs is not None
        )
        generation = Generation(
            params,
            prompt,
            list(prompt_token_ids),
            max_tokens=max_tokens,
            tokenizer=self.tokenizer,
            eos_token_ids=self.eos_token_ids,
            # A seed of its own, so that no outcome depends on who else is in the batch.
            fallback_seed=(self.seed << 32) ^ self._next_seq_id,
        )
        self._next_seq_id += 1
        request = Request(
            request_id, [sequence], max_tokens=max_tokens, arrival_time=arrival_time, priority=priority
        )
        live = _LiveRequest(request, generation, RequestMetrics(arrival_time=arrival_time))
        self._live[request_id] = self._by_sequence[sequence.seq_id] = live
        self._sequences[sequence.seq_id] = sequence
        self.scheduler.add(request)
        if self._emit:
            self._emit(
                RequestQueued(
                    request_id,
                    sequence.seq_id,
                    self._now(),
                    tuple(sequence.token_ids),
                    max_tokens,
                    prompt,
                    token_texts(self.tokenizer, sequence.token_ids) if self.tokenizer else (),
                    priority,
                )
            )

    def validate(self, request_id: str, prompt_token_ids: SequenceOf[int], params: SamplingParams) -> int:
        """Could this request be served by an empty engine? Returns its final limit of output tokens.

        Raises:
            ValueError: it never could, and why. The refusal is recorded in the trace.
        """
        try:
            if not isinstance(request_id, str) or not request_id:
                raise ValueError(f"request_id must be a non-empty string, got {request_id!r}")
            if request_id in self._live:
                raise ValueError(f"request_id {request_id!r} is in use by a request that is not finished")
            check_prompt(prompt_token_ids, self.vocab_size, self.config.max_model_len)
            params.verify(self.vocab_size, has_tokenizer=self.tokenizer is not None)
            return limit_output(len(prompt_token_ids), params.max_tokens, self.config)
        except ValueError as error:
            if self._emit:
                self._emit(RequestRefused(str(request_id), self._now(), str(error)))
            raise

    def abort(self, request_id: str) -> RequestOutput | None:
        """Forget a request at any moment; all its blocks come back.

        Returns:
            Its output so far, finished with reason "abort"; None if no such request is in the engine.
        """
        live = self._live.get(request_id)
        if live is None:
            return None
        live.generation.abort()
        self._finish(live)
        return self._output(live)

    def has_unfinished_requests(self) -> bool:
        return bool(self._live)

    @property
    def num_unfinished_requests(self) -> int:
        return len(self._live)

    # ── the loop body ─────────────────────────────────────────────────────────────────────────────────

    def step(self) -> list[RequestOutput]:
        """Compute one step of everything that is scheduled.

        Returns:
            One output for each request that got a token (or, with `output_kind=FINAL_ONLY`, that
            finished); empty if there is nothing to do.
        """
        if not self._live:
            return []
        began = self._clock()
        if self._emit:
            self._emit(StepStarted(self.num_steps, self._now()))
        plan = self.scheduler.schedule(self.num_steps)
        scheduled = self._clock()
        logits = self.executor.execute(plan)
        executed = self._clock()
        sampled = self._sample(plan, logits)
        chosen = self._clock()
        outputs = self._update(plan, sampled)
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

    def _sample(self, plan: StepPlan, logits: Any) -> list[tuple[_LiveRequest, SampledToken]]:
        """Choose the next token of every sequence whose last token has just been computed."""
        chosen_for: list[_LiveRequest] = []
        rows: list[int] = []
        row = 0
        for item in plan.scheduled:
            sequence = self._sequences[item.seq_id]
            live = self._by_sequence[item.seq_id]
            if sequence.wants_prompt_logits and item.start < sequence.num_prompt_tokens:
                self._note_prompt_logprobs(live, sequence, item.start, logits[row : row + item.num_logits])
            row += item.num_logits
            if item.end == sequence.num_tokens:
                chosen_for.append(live)
                rows.append(row - 1)
        if not rows:
            return []
        if len(rows) < row:
            logits = logits[rows]
        states = [live.generation.sampling for live in chosen_for]
        return list(zip(chosen_for, self.sampler.sample(logits, states), strict=True))

    def _note_prompt_logprobs(self, live: _LiveRequest, sequence: Sequence, start: int, logits: Any) -> None:
        """Row i was computed after token `start + i`, so it tells how likely token `start + i + 1` was."""
        known = live.generation.num_prompt_logprobs  # positions noted before a preemption are not noted twice
        end = min(start + len(logits) + 1, sequence.num_prompt_tokens)
        first = max(start + 1, known)
        num_logprobs = live.generation.params.prompt_logprobs
        if first < end and num_logprobs is not None:
            rows = logits[first - start - 1 : end - start - 1]
            entries = self.sampler.prompt_logprobs(rows, sequence.token_ids[first:end].tolist(), num_logprobs)
            live.generation.append_prompt_logprobs(entries)

    def _update(
        self, plan: StepPlan, sampled: list[tuple[_LiveRequest, SampledToken]]
    ) -> list[RequestOutput]:
        """Append the new tokens, let the finished leave, tell the callers."""
        self.scheduler.complete(plan, self._sequences)
        now = self._clock()
        for item in plan.scheduled:
            metrics = self._by_sequence[item.seq_id].metrics
            if metrics.first_scheduled_time is None:
                metrics.first_scheduled_time = now
        pieces: list[tuple[int, int, str]] = []
        for live, token in sampled:
            sequence = live.request.sequence
            sequence.append_token(token.token_id)
            text = live.generation.append(token)
            pieces.append((sequence.seq_id, token.token_id, text))
            if live.metrics.first_token_time is None:
                live.metrics.first_token_time = now
            live.metrics.last_token_time = now
        if self._emit and pieces:
            self._emit(TokensSampled(tuple(pieces)))
        outputs = []
        for live, _ in sampled:
            if live.generation.finish_reason is not None:
                self._finish(live)
            elif live.generation.params.output_kind is RequestOutputKind.FINAL_ONLY:
                continue
            outputs.append(self._output(live))
        return outputs

    # ── bookkeeping ───────────────────────────────────────────────────────────────────────────────────

    def _finish(self, live: _LiveRequest) -> None:
        """The request leaves the engine: queue, block table and books."""
        reason = live.generation.finish_reason
        assert reason is not None, "only a finished generation leaves the engine"
        live.metrics.finished_time = self._clock()
        live.metrics.num_preemptions = live.request.num_preemptions
        self.scheduler.remove(live.request, RequestStatus(reason))
        for sequence in live.request.sequences:
            del self._sequences[sequence.seq_id], self._by_sequence[sequence.seq_id]
            if self._emit:
                self._emit(
                    SequenceFinished(sequence.seq_id, reason, self._now(), live.generation.stop_reason)
                )
        del self._live[live.request.request_id]

    def _output(self, live: _LiveRequest) -> RequestOutput:
        generation = live.generation
        return RequestOutput(
            request_id=live.request.request_id,
            prompt=generation.prompt,
            prompt_token_ids=generation.prompt_token_ids,
            prompt_logprobs=generation.prompt_logprobs,
            outputs=[generation.completion()],
            finished=generation.finish_reason is not None,
            metrics=live.metrics,
            num_cached_tokens=0,
        )

    def _now(self) -> float:
        """Seconds since the trace began, for events."""
        return self.recorder.now() if self.recorder else 0.0

    def _header(self, model_shape: ModelShape | None, settings: dict[str, Any]) -> TraceHeader:
        others = asdict(self.config)
        names = ("num_blocks", "block_size", "max_num_seqs", "max_num_batched_tokens", "max_model_len")
        limits = {name: others.pop(name) for name in names}
        clock = "wall" if self._clock is perf_counter else "virtual"
        return TraceHeader(
            version=VERSION,
            created=timestamp(),
            clock=clock,
            model=model_shape,
            config=others | settings,
            **limits,
        )

    def snapshot(self) -> EngineSnapshot:
        """The control plane's state, in the form in which a replay of the trace gives it."""
        sequences = self._sequences
        return EngineSnapshot(
            num_steps=self.num_steps,
            free_list=self.cache.pool.free_list(),
            ref_counts=tuple(self.cache.pool.ref_counts),
            tables={seq: tuple(table.blocks) for seq, table in self.cache.tables.items()},
            waiting=tuple(request.request_id for request in self.scheduler.waiting),
            running=tuple(request.request_id for request in self.scheduler.running),
            token_ids={seq: tuple(sequence.token_ids) for seq, sequence in sequences.items()},
            num_computed_tokens={seq: item.num_computed_tokens for seq, item in sequences.items()},
        )

    def check_invariants(self) -> None:
        """Raise `AssertionError` unless every request is in exactly one queue and the memory adds up."""
        self.scheduler.check_invariants()
        queued = {r.request_id for q in (self.scheduler.waiting, self.scheduler.running) for r in q}
        assert queued == set(self._live), "the books and the queues name different requests"
        assert set(self._sequences) == set(self._by_sequence)
        for live in self._live.values():
            output = live.generation.output_token_ids
            assert live.request.sequence.token_ids.tolist() == live.generation.prompt_token_ids + output
