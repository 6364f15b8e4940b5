"""A scheduler and a toy engine around it. Tokens are "computed" in no time, so thousands of steps cost a
fraction of a second."""

from dataclasses import dataclass, field

import pytest
from hypothesis import strategies as st

from minivllm.config import SchedulerConfig
from minivllm.memory import KVCacheManager, blocks_needed
from minivllm.scheduling.policy import SchedulingPolicy
from minivllm.scheduling.request import Request, RequestStatus, Sequence
from minivllm.scheduling.scheduler import Scheduler


@dataclass
class Run:
    """A scheduler and a toy engine around it: computes what is planned, appends one token at each end."""

    config: SchedulerConfig
    arrivals: list[tuple[int, int, int]]  # (step of arrival, prompt tokens, output tokens)
    policy: SchedulingPolicy | None = None
    may_idle: bool = False  # some policies wait for company
    plans: list = field(default_factory=list)

    def __post_init__(self):
        cache = KVCacheManager(self.config.num_blocks, self.config.block_size)
        self.scheduler = Scheduler(self.config, cache, policy=self.policy)
        self.requests = {}
        self.sequences = {}
        self.finished = []

    def arrive(self, number, prompt, output, step=0, priority=0):
        sequence = Sequence(number, range(prompt))
        request = Request(f"r{number}", [sequence], output, arrival_time=step, priority=priority)
        self.requests[number], self.sequences[number] = request, sequence
        self.scheduler.add(request)

    def step(self, step):
        for number, (when, prompt, output) in enumerate(self.arrivals):
            if when == step:
                self.arrive(number, prompt, output, step, priority=(number * 7) % 3)
        plan = self.scheduler.schedule(step, float(step))
        self.scheduler.check_invariants()
        idle = not plan.scheduled and len(self.finished) < len(self.requests)
        assert not idle or self.may_idle, "idle while there is work"
        for item in plan.scheduled:
            reaches_end = item.end == self.sequences[item.seq_id].num_tokens
            assert item.num_logits == reaches_end, (
                "logits are wanted where a token can be sampled, only there"
            )
        self.plans.append(plan)
        self.scheduler.complete(plan)
        for item in plan.scheduled:
            sequence = self.sequences[item.seq_id]
            if item.end == sequence.num_tokens:
                sequence.append_token(0)
                if sequence.num_output_tokens == self.requests[item.seq_id].max_tokens:
                    self.finish(self.requests[item.seq_id])
        for request in self.scheduler.released():
            self.leave(request)
        return plan

    def finish(self, request):
        if not self.scheduler.hold(request, RequestStatus.FINISHED_LENGTH_CAPPED):
            self.leave(request)

    def leave(self, request):
        self.finished.append(request.sequences[0].seq_id)
        self.scheduler.remove(request, RequestStatus.FINISHED_LENGTH_CAPPED)

    def to_the_end(self, most_steps=5_000):
        last_arrival = max((when for when, _, _ in self.arrivals), default=0)
        for step in range(most_steps):
            self.step(step)
            if step >= last_arrival and len(self.finished) == len(self.arrivals):
                return
        pytest.fail(f"not finished after {most_steps} steps: {len(self.finished)} of {len(self.arrivals)}")


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
