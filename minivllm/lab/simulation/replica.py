"""One replica: the real engine core in front of hardware that only a cost model knows.

    add(request) ─► core ─► plan ─► cost model: so many seconds ─► … ─► every sequence gets a token

It drives the engine's core without a model, without text, and without outputs. What is left is what the cost
of serving depends on: which request is scheduled when, and in which blocks. That it decides as the engine
does, step by step, is a property (`tests/lab/simulation/test_same_decisions.py`).

A step has a beginning and an end, between which other replicas have theirs and requests arrive: so it comes
in two halves, `begin` (plan, and say when it will be over) and `finish` (it is over).

Read next: `cluster.py`, which keeps many of them in step with time.
"""

from __future__ import annotations

from minivllm.config import SchedulerConfig
from minivllm.engine.admission import limit_output
from minivllm.engine.core import EngineCore
from minivllm.engine.snapshot import make_header
from minivllm.executor.simulated_executor import SAMPLED_TOKEN, SimulatedExecutor, StepCost, VirtualClock
from minivllm.lab.simulation.metrics import Metrics
from minivllm.lab.simulation.speculative import Guesses
from minivllm.lab.workloads.workload import WorkloadRequest
from minivllm.scheduling.plan import NextToken, Sampled, StepPlan
from minivllm.scheduling.policy import Pause, SchedulingPolicy
from minivllm.scheduling.request import Finish, Request, Sequence
from minivllm.trace.events import HardwareShape, ModelShape, RequestRefused, StepFinished
from minivllm.trace.recorder import Recorder

LENGTH = Finish("length")


class Served:
    """A request on its way through a replica."""

    __slots__ = ("first_token", "last_token", "queued", "request", "sequence", "start", "wanted")

    def __init__(self, queued: WorkloadRequest, request: Request, sequence: Sequence, wanted: int) -> None:
        self.queued = queued
        self.request = request
        self.sequence = sequence
        self.wanted = wanted
        """Tokens, prompt and answer, at which it is done."""
        self.start = -1.0
        self.first_token = -1.0
        self.last_token = -1.0


class Replica:
    """Serves requests in virtual time.

    Args:
        config: limits of the scheduler.
        cost_model: how long a step takes.
        metrics: where it counts; replicas may share it.
        recorder: where events go; None records nothing.
        policy: in which order requests are scheduled; the one that `config` names, if None.
        guesses: drafts, so that a step may give several tokens of a sequence; None guesses nothing.
        model_shape, hardware: for the trace's header.
    """

    def __init__(
        self,
        config: SchedulerConfig,
        cost_model: StepCost,
        metrics: Metrics | None = None,
        *,
        recorder: Recorder | None = None,
        clock: VirtualClock | None = None,
        policy: SchedulingPolicy | None = None,
        guesses: Guesses | None = None,
        model_shape: ModelShape | None = None,
        hardware: HardwareShape | None = None,
    ) -> None:
        self.config = config
        self.metrics = metrics if metrics is not None else Metrics()
        self.clock = clock if clock is not None else VirtualClock()
        self.guesses = guesses
        self.executor = SimulatedExecutor(cost_model, self.clock)
        self._recorder = recorder
        self._emit = recorder.emit if recorder else None
        self.core = EngineCore(config, self._emit, policy=policy)
        self.served: dict[int, Served] = {}
        """Unfinished requests by their sequences."""
        self.outstanding_tokens = 0
        """Tokens that its requests may still come to compute, for routers that look at the load."""
        self.plan: StepPlan | None = None
        """The step that is being computed."""
        self._began = self._last_end = 0.0
        if recorder:
            header = make_header(
                config, config.num_blocks, model_shape, {}, clock="virtual", hardware=hardware
            )
            recorder.start(header)
            self.core.epoch = self.clock.now

    @property
    def num_unfinished(self) -> int:
        return len(self.served)

    def add(self, queued: WorkloadRequest) -> bool:
        """Queue a request, now; False if it could never be served."""
        metrics, prompt = self.metrics, queued.prompt_token_ids
        metrics.num_arrived += 1
        if metrics.first_arrival is None:
            metrics.first_arrival = queued.arrival_seconds
        try:
            if len(prompt) >= self.config.max_model_len:
                raise ValueError(f"{len(prompt)} prompt tokens, max_model_len is {self.config.max_model_len}")
            limit = limit_output(len(prompt), queued.max_tokens, self.config, self.core.cache)
        except ValueError as error:
            metrics.num_refused += 1
            metrics.first_refusal = metrics.first_refusal or str(error)
            if self._emit:
                now = self.core.time_of(self.clock.now)
                self._emit(RequestRefused(queued.request_id, now, str(error)))
            return False
        sequence = Sequence(-1, prompt, request_id=queued.request_id)
        request = Request(
            queued.request_id,
            [sequence],
            max_tokens=limit,
            arrival_time=queued.arrival_seconds,
            priority=queued.priority,
        )
        self.core.add(request, self.clock.now)
        wanted = len(prompt) + min(queued.num_output_tokens, limit)
        self.served[sequence.seq_id] = Served(queued, request, sequence, wanted)
        self.outstanding_tokens += wanted
        return True

    # ── a step ────────────────────────────────────────────────────────────────────────────────────────

    def begin(self) -> float | None:
        """Plan the next step at the clock's time. Returns when it will be over, or when to ask again; None
        if there is nothing to do."""
        if not self.served:
            return None
        now = self.clock.now
        if self.guesses:
            self.guesses.propose(self.core, self.served)
        plan = self.core.plan_step(now)
        if isinstance(plan, Pause):
            return plan.until
        assert plan is not None, "there are unfinished requests"
        self._began, self.plan = now, plan
        guessing = self.guesses.seconds(plan, self.executor.cost_model) if self.guesses else 0.0
        return now + guessing + self.executor.seconds(plan)

    def finish(self) -> list[WorkloadRequest]:
        """The step that was begun is over at the clock's time. Returns the requests that are served."""
        plan, self.plan = self.plan, None
        if plan is None:
            return []  # it was only a pause
        now = self.clock.now
        self._count(plan, now - self._began)
        changes = self.core.finish_step(plan, Sampled(self._sample(plan, now)), now)
        self._last_end = now
        done = [self.served[request.sequences[0].seq_id] for request in changes.released]
        for served in done:
            self._leave(served, now)
        if self._emit:
            seconds = {"model": round(now - self._began, 7)}
            self._emit(StepFinished(plan.step, self.core.time_of(now), seconds))
        return [served.queued for served in done]

    def _sample(self, plan: StepPlan, now: float) -> list[NextToken]:
        """A token for each sequence that has been computed to its end, and one for each right draft."""
        tokens: list[NextToken] = []
        make_token = NextToken._make  # half the price of naming the fields, a million times
        in_a_row = 0  # those that got a token in the step before, too: the same latency for all of them
        before, gap = self._last_end, now - self._last_end
        for item in plan.scheduled:
            served = self.served[item.seq_id]
            if served.start < 0:
                served.start = self._began
                self.metrics.queue_time.add(self._began - served.queued.arrival_seconds)
            if not item.num_logits:
                continue
            missing = served.wanted - len(served.sequence.token_ids)
            if item.num_draft_tokens and self.guesses:
                accepted = self.guesses.num_accepted(item)
                self.metrics.draft_tokens += item.num_draft_tokens
                self.metrics.accepted_tokens += accepted
                self.metrics.inter_token.add(0.0, accepted)  # they come with the one before
                missing -= accepted
                tokens += [make_token((item.seq_id, SAMPLED_TOKEN, "", False, None, None))] * accepted
            finish = LENGTH if missing == 1 else None
            tokens.append(make_token((item.seq_id, SAMPLED_TOKEN, "", False, finish, None)))
            if served.last_token == before:
                in_a_row += 1
            elif served.last_token < 0:
                served.first_token = now
                self.metrics.ttft.add(now - served.queued.arrival_seconds)
            else:
                self.metrics.inter_token.add(now - served.last_token)
            served.last_token = now
        if in_a_row:
            self.metrics.inter_token.add(gap, in_a_row)
        return tokens

    def _leave(self, served: Served, now: float) -> None:
        metrics, request = self.metrics, served.request
        del self.served[served.sequence.seq_id]
        self.outstanding_tokens -= served.wanted
        num_output = served.sequence.num_output_tokens
        latency = now - served.queued.arrival_seconds
        metrics.num_finished += 1
        metrics.num_preemptions += request.num_preemptions
        metrics.prompt_tokens += served.sequence.num_prompt_tokens
        metrics.cached_tokens += request.num_cached_tokens or 0
        metrics.output_tokens += num_output
        metrics.end_to_end.add(latency)
        metrics.normalized.add(latency / num_output)
        metrics.last_finish = max(metrics.last_finish, now)

    def _count(self, plan: StepPlan, seconds: float) -> None:
        metrics = self.metrics
        metrics.num_steps += 1
        metrics.computed_tokens += plan.total_num_scheduled_tokens
        metrics.padding_tokens += plan.num_padding_tokens
        for move in plan.moves:
            metrics.num_copied_blocks += move.kind == "copy"
            metrics.num_swapped_blocks += move.kind != "copy"
        metrics.busy_seconds += seconds
        metrics.running_seconds += seconds * len(self.core.state.running)
        metrics.scheduled_seconds += seconds * len(plan.scheduled)
        metrics.waiting_seconds += seconds * len(self.core.state.waiting)
        metrics.kv_seconds += seconds * self.core.cache.usage

    def check_invariants(self) -> None:
        """Raise `AssertionError` unless the books agree."""
        self.core.check_invariants()
        assert set(self.served) == set(self.core.state.sequences)
        assert self.outstanding_tokens == sum(served.wanted for served in self.served.values())
