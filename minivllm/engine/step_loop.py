"""The loop: one step at a time, from a plan to the outputs of its requests.

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
of each request turn tokens into text and know when to stop (`request_state.py`). The loop carries data from
one to the next. A step that fails (out of memory, say) or is interrupted loses no token and no request: those
that were in it compute their caches anew, and every request can still be aborted.

Source: the `step` of vLLM's `LLMEngine`. Read next: `core.py`; `engine_books.py` for interrupts.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

from minivllm.decoding.parallel_sampling import SampleSlot
from minivllm.engine.engine_books import NOTHING, Call, EngineBooks, Outbox
from minivllm.engine.flight import Flight
from minivllm.engine.rank_telling import RankTelling
from minivllm.engine.request_state import RequestState
from minivllm.engine.sample_step import StepSample, TokenSampler, advance_search, sample_step, tokens_of
from minivllm.engine.speculation import Speculation
from minivllm.outputs import RequestOutput
from minivllm.scheduling.plan import NextToken, Sampled, StepPlan, fill_pending
from minivllm.scheduling.policy import PolicyError
from minivllm.trace.events import StepFinished
from minivllm.validation import shown

if TYPE_CHECKING:
    from minivllm.model.tokenizer import Tokenizer

logger = logging.getLogger("minivllm")

MAX_SLEEP_SECONDS = 0.01  # a driver can add requests while a policy waits for them


class StepLoop(EngineBooks):
    """Computes steps of the requests in its books. What it works with is said in `engine.py`."""

    sampler: TokenSampler
    tokenizer: Tokenizer | None
    speculation: Speculation | None
    _sleep: Callable[[float], None]
    _ranks: RankTelling | None = None

    def end_call(self) -> None:
        """Abort what is left of the call that was begun last; nothing else changes."""
        if self._call is None:
            return
        self._settle()
        for request_id in self._call & self.requests.keys():
            self._remove(request_id)
        if not self.requests:
            self._land()
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

        Raises:
            ValueError: `call` is none; nothing has changed.
        """
        if call is not self._call:
            if call is not None and not isinstance(call, frozenset):
                raise ValueError(f"call must be what begin_call returned, or None, got {shown(call)}")
            self.end_call()
            self._call = call
        if self._is_busy:
            self._settle()
        self._outbox = NOTHING  # the caller has come back, so it has got what was in it
        self._is_busy = True
        flights = self._flights
        if not flights.queue:
            began = self._clock()
            if self.speculation:
                self.speculation.propose(self.core, self.requests)
            try:
                plan = self.core.plan_step(began, flights.num_plans)
            except PolicyError:
                self._is_busy = False
                raise
            if not isinstance(plan, StepPlan):
                if plan is not None:
                    self._sleep(min(plan.until - began, MAX_SLEEP_SECONDS))
                return self._send(Outbox(self._late, [], []))
            flights.queue.append(Flight(plan, began, self._clock()))
            self._launch(flights.queue[0])
        if flights.max_in_flight > 1:
            self._plan_ahead()
        outbox = Outbox([*self._late], [], [])
        self._finish_oldest(outbox)
        if flights.queue and len(outbox.left) == len(self.requests):
            self._go_on(self._finish_surplus)
        elif flights.queue and flights.num_plans > 1:  # before the caller takes its time: a stage may be idle
            self._go_on(self._plan_ahead)
        return self._send(outbox)

    def _plan_ahead(self) -> None:
        """Make the plans that may be made while others are in flight."""
        flights = self._flights
        while len(flights.queue) < flights.max_in_flight:
            began = self._clock()
            if self.speculation:
                self.speculation.propose(self.core, self.requests)
            plan = self.core.plan_ahead(began, flights.num_plans)
            if plan is None:
                return
            flights.queue.append(Flight(plan, began, self._clock()))
            if not self.core.runs_ahead:
                self._launch(flights.queue[-1])

    def _launch(self, flight: Flight) -> None:
        try:
            if self.speculation:
                flight.drafting = self._clock()
                flight.plan, flight.laws = self.speculation.complete(
                    flight.plan, self.core.state.sequences, self.requests
                )
            flight.launched = self._clock()
            if self._flights.runs is not None:
                self._flights.runs.launch(flight.plan)
        except BaseException as error:
            self._give_up(error)
            raise

    def _finish_oldest(self, outbox: Outbox) -> None:
        """Wait for the oldest plan in flight, sample, let the next one begin, and tell what came out."""
        flights = self._flights
        flight = flights.queue[0]
        try:
            runs = flights.runs
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
        if self.speculation and flights.max_in_flight == 1:  # else a step's time is not its own
            drafting = flight.launched - flight.drafting
            self.speculation.note(flight.plan, sample.slots, sampled - flight.launched, drafting)
        following = flights.queue[1] if len(flights.queue) > 1 else None
        if following is not None and self.core.runs_ahead:
            fill_pending(following.plan, tokens_of(sample))
            self._launch(following)
        flights.queue.popleft()
        self._update(flight.plan, sample, sampled, outbox)
        if self._emit:
            updated = self._clock()
            seconds = flight.seconds(executed=executed, attention=attention, sampled=sampled, updated=updated)
            ended = updated if following is None else sampled
            self._emit(StepFinished(flight.plan.step, self.core.time_of(ended), seconds))
            if self._ranks:
                self._ranks.tell()
        if following is not None:
            self.core.begin_next(max(following.launched, sampled))

    def _give_up(self, error: BaseException) -> None:
        """Nothing in flight will be finished: its requests compute their caches anew."""
        oldest, queue = self._flights.queue[0].plan, self._flights.queue
        self.last_failed = frozenset(name for flight in queue for name in flight.plan.request_ids)
        self._flights.forget()
        self.core.abandon(oldest, error, self._clock())
        self._is_busy = False

    def _finish_surplus(self) -> None:
        """All requests are over, and a plan still has their sequences: its tokens are dropped."""
        while self._flights.queue:
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
        if not self._flights.queue:
            return
        self._is_busy = True
        outbox = Outbox([*self._late], [], [])
        try:
            while self._flights.queue:
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
