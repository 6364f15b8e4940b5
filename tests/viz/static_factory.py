"""Traces of static batching for tests: batches begin and end together, and pay for it with padding.

The same workload as in `trace_factory`, so that the two runs can be put side by side.
"""

from dataclasses import replace

import msgspec

from minivllm.trace.events import (
    BatchPlanned,
    BlocksAllocated,
    HardwareShape,
    RequestScheduled,
    StepFinished,
    StepStarted,
    TokensSampled,
)
from minivllm.trace.reader import Trace, make_trace
from tests.viz import trace_factory
from tests.viz.trace_factory import Workload

CPU = HardwareShape("a CPU invented for a test", peak_flops=2e11, memory_bandwidth=2e10)


class _StaticEngine(trace_factory._ToyEngine):
    """Takes a batch, computes every row until the last is done, and lets them all go."""

    def __init__(self, load: Workload):
        super().__init__(load)
        self.done: list = []

    def one_step(self):
        self.events.append(StepStarted(self.step, self.time))
        self.time += 0.0002
        if not self.running:
            self.fill()
        working = [request for request in self.running if request not in self.done]
        items = [(request, len(request.tokens) - request.computed) for request in working]
        longest = max((count for _, count in items), default=0)
        padding = longest * len(self.running) - sum(count for _, count in items)
        planned = tuple((request.seq, request.computed, count) for request, count in items)
        self.events.append(BatchPlanned(planned, padding))
        self.compute_padded(items, padding)

    def fill(self):
        size, free = self.load.block_size, len(self.free)
        while self.waiting and len(self.running) < self.load.max_num_seqs:
            request = self.waiting[0]
            blocks = -(-(len(request.tokens) + request.max_output) // size)
            if blocks > free:
                break
            free -= blocks
            self.events.append(RequestScheduled(request.name))
            taken = [self.free.popleft() for _ in range(blocks)]
            request.blocks = taken
            self.events.append(BlocksAllocated(request.seq, tuple(taken)))
            self.running.append(self.waiting.popleft())

    def compute_padded(self, items, padding):
        sampled = []
        for request, count in items:
            request.computed += count
            token = self.random.randrange(1000)
            request.tokens.append(token)
            sampled.append((request.seq, token, trace_factory.WORDS[token % 13]))
            if len(request.tokens) - request.num_prompt >= request.max_output:
                self.done.append(request)
        model = 0.002 + 2e-5 * (sum(count for _, count in items) + padding)
        self.time = round(self.time + model, 6)
        if sampled:
            self.events.append(TokensSampled(tuple(sampled)))
        if len(self.done) == len(self.running):
            for request in list(self.running):
                self.finish(request, "length")
            self.done.clear()
        seconds = {"schedule": 0.0002, "model": model, "attention": model / 3, "sample": 0.0, "update": 0.0}
        self.events.append(StepFinished(self.step, self.time, seconds))
        self.step += 1


def make(load: Workload) -> Trace:
    """The workload under static batching. Requests are not aborted, and must fit into the pool one by one."""
    engine = _StaticEngine(replace(load, abort_share=0.0))
    engine.run()
    header = trace_factory.make(replace(load, num_requests=1)).header
    # Static batching knows no budget, but a header must name one that no step exceeds.
    plans = [event.items for event in engine.events if isinstance(event, BatchPlanned)]
    most = max((sum(count for _, _, count in items) for items in plans), default=0)
    header = msgspec.structs.replace(header, hardware=CPU, max_num_batched_tokens=max(most, load.budget))
    return make_trace(header, engine.events)
