"""Valid traces for tests, without an engine: a toy allocator and a toy scheduler that emit the events.

It shares no code with the engine on purpose. It also does what a well-behaved run rarely does: requests are
aborted between steps and refused, a batch member is held, and the trace may stop in the middle of a step.
"""

from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import msgspec

from minivllm.trace.events import (
    VERSION,
    BatchPlanned,
    BlocksAllocated,
    BlocksFreed,
    ModelShape,
    RequestPreempted,
    RequestQueued,
    RequestRefused,
    RequestScheduled,
    SequenceFinished,
    StepFinished,
    StepStarted,
    TokensSampled,
    TraceEnded,
    TraceHeader,
)
from minivllm.trace.reader import Trace, make_trace

WORDS = (
    " the",
    " block",
    " table",
    " maps",
    " each",
    " page",
    " of",
    " a",
    " long",
    " story",
    ",",
    " once",
    ".",
)
MODEL = ModelShape("toy", 4, 8, 2, 16, 1000, 1_200_000, "float32", 2 * 4 * 2 * 16 * 4)


@dataclass(frozen=True)
class Workload:
    """A run to invent."""

    num_requests: int = 8
    num_blocks: int = 64
    block_size: int = 16
    max_num_seqs: int = 6
    budget: int = 64
    prompt: tuple[int, int] = (8, 90)
    output: tuple[int, int] = (5, 60)
    arrival_gap: float = 3.0
    seed: int = 0
    abort_share: float = 0.0
    num_refused: int = 0
    cut_short: bool = False
    names: str = "req-{}"


@dataclass(eq=False)
class _Request:
    name: str
    seq: int
    tokens: list[int]
    max_output: int
    arrival: int
    num_prompt: int
    computed: int = 0
    blocks: list[int] = field(default_factory=list)


class _ToyEngine:
    def __init__(self, load: Workload):
        self.load, self.random = load, Random(load.seed)
        self.events: list = []
        self.free = deque(range(load.num_blocks))
        self.waiting: deque[_Request] = deque()
        self.running: list[_Request] = []
        self.time, self.step = 0.0, 0

    def requests(self):
        capacity = self.load.num_blocks * self.load.block_size
        arrival = 0.0
        for seq in range(self.load.num_requests):
            prompt = min(self.random.randint(*self.load.prompt), max(1, capacity // 2))
            output = max(1, min(self.random.randint(*self.load.output), capacity - prompt))
            tokens = [self.random.randrange(1000) for _ in range(prompt)]
            yield _Request(self.load.names.format(seq), seq, tokens, output, int(arrival), prompt)
            arrival += self.random.expovariate(1 / self.load.arrival_gap) if self.load.arrival_gap else 0.0

    def run(self, most_steps=20_000):
        coming = deque(self.requests())
        for number in range(self.load.num_refused):
            reason = "the request can never fit: <b>9,000</b> tokens, the pool has fewer"
            self.events.append(RequestRefused(f"big-{number}", self.time, reason))
        while (coming or self.waiting or self.running) and self.step < most_steps:
            while coming and coming[0].arrival <= self.step:
                self.arrive(coming.popleft())
            self.maybe_abort()
            self.one_step()
        if self.load.cut_short:
            self.events.append(StepStarted(self.step, self.time))
        else:
            self.events.append(TraceEnded(self.time))

    def arrive(self, request):
        self.waiting.append(request)
        text = "".join(WORDS[token % len(WORDS)] for token in request.tokens).strip()
        event = RequestQueued(
            request.name, request.seq, self.time, tuple(request.tokens), request.max_output, text
        )
        self.events.append(event)

    def maybe_abort(self):
        unfinished = [*self.waiting, *self.running]
        if unfinished and self.random.random() < self.load.abort_share:
            self.finish(self.random.choice(unfinished), "abort")

    def one_step(self):
        self.events.append(StepStarted(self.step, self.time))
        self.time += 0.0002
        items, budget, short = [], self.load.budget, False
        for request in list(self.running):
            if request in self.running and budget:
                count = min(len(request.tokens) - request.computed, budget)
                while not self.grow(request, request.computed + count):
                    short = True
                    if self.running[-1] is request:
                        break
                    self.preempt(self.running[-1])
                else:
                    items.append((request, count))
                    budget -= count
        while not short and self.waiting and budget and len(self.running) < self.load.max_num_seqs:
            request = self.waiting[0]
            if -(-len(request.tokens) // self.load.block_size) > len(self.free):
                break
            count = min(len(request.tokens), budget)
            self.events.append(RequestScheduled(request.name))
            self.grow(request, count)
            self.running.append(self.waiting.popleft())
            items.append((request, count))
            budget -= count
        self.events.append(BatchPlanned(tuple((r.seq, r.computed, count) for r, count in items)))
        self.compute(items)

    def compute(self, items):
        sampled = []
        for request, count in items:
            request.computed += count
            if request.computed == len(request.tokens):
                token = self.random.randrange(1000)
                request.tokens.append(token)
                sampled.append((request.seq, token, WORDS[token % len(WORDS)]))
        model = 0.002 + 2e-5 * sum(count for _, count in items)
        self.time = round(self.time + model, 6)
        if sampled:
            self.events.append(TokensSampled(tuple(sampled)))
        for request, _ in items:
            if len(request.tokens) - request.num_prompt >= request.max_output:
                self.finish(request, "length")
        seconds = {"schedule": 0.0002, "model": model, "attention": model / 3, "sample": 0.0, "update": 0.0}
        self.events.append(StepFinished(self.step, self.time, seconds))
        self.step += 1

    def grow(self, request, num_tokens):
        missing = -(-num_tokens // self.load.block_size) - len(request.blocks)
        if missing > len(self.free):
            return False
        if missing > 0:
            taken = [self.free.popleft() for _ in range(missing)]
            request.blocks += taken
            self.events.append(BlocksAllocated(request.seq, tuple(taken)))
        return True

    def give_back(self, request):
        if request.blocks:
            returned = tuple(reversed(request.blocks))
            self.free.extend(returned)
            self.events.append(BlocksFreed(request.seq, returned))
            request.blocks = []

    def preempt(self, request):
        self.give_back(request)
        self.events.append(RequestPreempted(request.name, "recompute", request.computed))
        request.computed = 0
        self.running.remove(request)
        self.waiting.appendleft(request)

    def finish(self, request, reason):
        self.give_back(request)
        (self.running if request in self.running else self.waiting).remove(request)
        self.events.append(SequenceFinished(request.seq, reason, self.time))


def make(load: Workload = Workload()) -> Trace:
    """Run a workload and return its trace."""
    engine = _ToyEngine(load)
    engine.run()
    header = TraceHeader(
        version=VERSION,
        created="2026-01-01T00:00:00+00:00",
        clock="virtual",
        num_blocks=load.num_blocks,
        block_size=load.block_size,
        max_num_seqs=load.max_num_seqs,
        max_num_batched_tokens=load.budget,
        max_model_len=2048,
        model=MODEL,
        workload="invented for a test",
    )
    return make_trace(header, engine.events)


def write(trace: Trace, path: Path) -> Path:
    """The trace as a file."""
    lines = [msgspec.json.encode(record) for record in (trace.header, *trace.events)]
    path.write_bytes(b"\n".join(lines) + b"\n")
    return path


def long_trace(num_events: int = 20_000) -> Trace:
    """A run of at least so many events, with a full pool and preemptions: for measuring the player."""
    num_requests = 320
    while True:
        trace = make(
            Workload(
                num_requests=num_requests,
                num_blocks=256,
                max_num_seqs=12,
                budget=256,
                prompt=(60, 640),
                output=(40, 140),
                arrival_gap=9.0,
                seed=5,
            )
        )
        if len(trace.events) >= num_events:
            return trace
        num_requests += 40


def wide_trace() -> Trace:
    """A run of more than 31,000 events in a pool of 987 blocks: for measuring the dashboard."""
    return make(
        Workload(
            num_requests=400,
            num_blocks=987,
            max_num_seqs=40,
            budget=256,
            prompt=(60, 640),
            output=(80, 580),
            arrival_gap=10.0,
            seed=5,
        )
    )
