"""Small worlds for the simulator's tests: workloads of a few requests, costs that a test can add up."""

from array import array
from dataclasses import dataclass

from hypothesis import strategies as st

from minivllm.config import SchedulerConfig
from minivllm.lab.workloads import WorkloadRequest
from minivllm.memory import blocks_needed
from tests.engine.fakes import POLICIES

TICK = 1 / 1024
"""Times are multiples of it, so that sums of them are exact."""


class TickCost:
    """A cost that depends on everything that it may depend on."""

    def step_seconds(self, shape, *, num_copied_blocks=0, num_swapped_blocks=0):
        moved = num_copied_blocks + num_swapped_blocks
        return TICK * (3 + shape.num_tokens + shape.num_padding_tokens + shape.num_sequences + moved)


@dataclass
class Listed:
    """A workload of exactly these requests; `calls` says which request follows which."""

    requests: list
    calls: dict | None = None

    def arrivals(self):
        yield from sorted(self.requests, key=lambda request: request.arrival_seconds)

    def after(self, request, finished_seconds, output_token_ids):
        assert len(output_token_ids) == request.num_output_tokens
        return (self.calls or {}).get(request.request_id)


def make_request(number, prompt, output, arrival=0.0, **more):
    tokens = array("i", [(number * 31 + place) % 90 for place in range(prompt)])
    return WorkloadRequest(str(number), arrival, tokens, output, output, **more)


@st.composite
def workloads(draw, most=8):
    shapes = st.tuples(st.integers(1, 30), st.integers(1, 15), st.integers(0, 400), st.integers(-2, 2))
    drawn = draw(st.lists(shapes, min_size=1, max_size=most))
    return Listed(
        [
            make_request(number, prompt, output, ticks * TICK, priority=priority)
            for number, (prompt, output, ticks, priority) in enumerate(drawn)
        ]
    )


@st.composite
def configs(draw, workload):
    """Limits under which every request can be served, some only just."""
    block_size = draw(st.sampled_from([1, 4, 16]))
    largest = max(
        blocks_needed(len(request.prompt_token_ids) + request.num_output_tokens - 1, block_size)
        for request in workload.requests
    )
    host = draw(st.sampled_from([0, 40]))
    return SchedulerConfig(
        num_blocks=largest + draw(st.integers(0, 12)),
        block_size=block_size,
        max_num_seqs=draw(st.integers(1, 5)),
        max_num_batched_tokens=draw(st.integers(1, 64)),
        max_model_len=64,
        watermark=draw(st.sampled_from([0.0, 0.2])),
        scheduling_policy=draw(st.sampled_from(POLICIES)),
        prefix_cache=draw(st.sampled_from([None, "hash", "radix"])),
        num_host_blocks=host,
        preemption_mode=draw(st.sampled_from(["recompute", "swap"])) if host else "recompute",
    )
