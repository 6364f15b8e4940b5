"""An engine core and a toy around it. Tokens are "computed" in no time, so thousands of steps cost a fraction
of a second."""

from dataclasses import dataclass, field

import pytest
from hypothesis import strategies as st

from minivllm.config import SchedulerConfig
from minivllm.engine.core import EngineCore
from minivllm.memory import blocks_needed
from minivllm.scheduling.plan import NextToken, Sampled, StepPlan
from minivllm.scheduling.policy import SchedulingPolicy
from minivllm.scheduling.request import Finish, Request, Sequence

LENGTH = Finish("length")


@dataclass
class Run:
    """A core and a toy driver: computes what is planned, appends one token at each end."""

    config: SchedulerConfig
    arrivals: list[tuple[int, int, int]]  # (step of arrival, prompt tokens, output tokens)
    policy: SchedulingPolicy | None = None
    may_idle: bool = False  # some policies wait for more requests
    plans: list = field(default_factory=list)
    emit: object = None

    def __post_init__(self):
        self.core = EngineCore(self.config, self.emit, policy=self.policy)
        self.requests = {}
        self.sequences = {}
        self.finished = []

    @property
    def scheduler(self):
        return self.core.scheduler

    @property
    def running(self):
        return list(self.core.state.running.values())

    def arrive(self, number, prompt, output, step=0, priority=0):
        sequence = Sequence(number, range(prompt), request_id=f"r{number}")
        request = Request(f"r{number}", [sequence], output, arrival_time=step, priority=priority)
        self.requests[number], self.sequences[number] = request, sequence
        self.core.add(request)

    def step(self, step):
        for number, (when, prompt, output) in enumerate(self.arrivals):
            if when == step:
                self.arrive(number, prompt, output, step, priority=(number * 7) % 3)
        plan = self.core.plan_step(float(step))
        self.core.check_invariants()
        if not isinstance(plan, StepPlan):  # nothing to do, or a pause
            assert self.may_idle or len(self.finished) == len(self.requests), "idle while there is work"
            self.plans.append(StepPlan(step, (), ()))
            return self.plans[-1]
        assert plan.scheduled or self.may_idle, "idle while there is work"
        tokens = []
        for item in plan.scheduled:
            sequence = self.sequences[item.seq_id]
            reaches_end = item.end == sequence.num_tokens
            assert item.num_logits == reaches_end, (
                "logits are wanted where a token can be sampled, only there"
            )
            if reaches_end:
                is_last = sequence.num_output_tokens + 1 == self.requests[item.seq_id].max_tokens
                tokens.append(NextToken(item.seq_id, 0, finish=LENGTH if is_last else None))
        self.plans.append(StepPlan(step, plan.scheduled, plan.moves, plan.num_padding_tokens))
        changes = self.core.finish_step(plan, Sampled(tokens))
        self.finished += [request.sequences[0].seq_id for request in changes.released]
        return self.plans[-1]

    def to_the_end(self, max_steps=5_000):
        last_arrival = max((when for when, _, _ in self.arrivals), default=0)
        for step in range(max_steps):
            self.step(step)
            if step >= last_arrival and len(self.finished) == len(self.arrivals):
                return
        pytest.fail(f"not finished after {max_steps} steps: {len(self.finished)} of {len(self.arrivals)}")


@st.composite
def runs(draw, short_pool=True):
    block_size = draw(st.sampled_from([1, 4, 16]))
    arrivals = draw(
        st.lists(
            st.tuples(st.integers(0, 12), st.integers(1, 60), st.integers(1, 30)), min_size=1, max_size=10
        )
    )
    largest = max(blocks_needed(prompt + output - 1, block_size) for _, prompt, output in arrivals)
    spare = draw(st.integers(0, 10)) if short_pool else 10 * largest
    chunked = draw(st.booleans())
    return Run(
        SchedulerConfig(
            num_blocks=largest + spare,
            block_size=block_size,
            max_num_seqs=draw(st.integers(1, 6)),
            max_num_batched_tokens=draw(st.integers(1, 40)) if chunked else 128,
            max_model_len=128,
            enable_chunked_prefill=chunked,
            long_prefill_token_threshold=draw(st.sampled_from([0, 3, 16])),
            watermark=draw(st.sampled_from([0.0, 0.01, 0.3])),
        ),
        arrivals,
    )
