"""Traces of runs that interrupts break off at any event, and that go on from `StateRebuilt`.

The toy of `tests/viz/sharing_factory.py`, interrupted like an engine by Ctrl-C: an exception comes out of
some `emit`, the last events before it are lost, and all books are made anew from the requests alone.
"""

from random import Random

from hypothesis import strategies as st

from minivllm.trace.events import (
    VERSION,
    RebuiltRequest,
    RebuiltSequence,
    StateRebuilt,
    StepStarted,
    TraceEnded,
    TraceHeader,
)
from minivllm.trace.reader import make_trace
from minivllm.trace.replay import EngineSnapshot
from tests.viz.sharing_factory import MODEL, Sharing, _Toy
from tests.viz.sharing_memory import ToyMemory

MOST_LOST = 12


class Interrupt(BaseException):
    """As Ctrl-C: between any two lines."""


class InterruptedToy(_Toy):
    """A toy that is interrupted `num_interrupts` times, at random events of random steps."""

    def __init__(self, load: Sharing, num_interrupts: int):
        super().__init__(load)
        self.dice = Random(load.seed + 1)
        self.num_interrupts, self.countdown = num_interrupts, self.dice.randint(1, 60)
        self.can_interrupt = False
        self.arrived = {}  # name → (request, time of its arrival, its first sequence)
        self.rebuilt = []  # `(index of the StateRebuilt in events, snapshot after it)`

    def emit(self, *events):
        super().emit(*events)
        self.countdown -= 1
        if self.countdown <= 0 and self.num_interrupts and self.can_interrupt:
            self.num_interrupts -= 1
            self.countdown = self.dice.randint(1, 60)
            raise Interrupt

    def arrive(self, request):
        self.arrived[request.name] = (request, self.time, self.next_seq)
        self.interruptible(super().arrive, request)

    def one_step(self):
        self.interruptible(super().one_step)

    def interruptible(self, act, *args):
        self.can_interrupt = True
        try:
            act(*args)
        except Interrupt:
            self.rebuild()
        self.can_interrupt = False

    def end(self, request, sequence, reason):
        if request.seqs == [sequence]:
            self.arrived.pop(request.name)  # only a request that is still here starts again
        super().end(request, sequence, reason)

    def rebuild(self):
        lost = self.dice.randint(0, MOST_LOST)
        first = self.rebuilt[-1][0] + 1 if self.rebuilt else 0
        events = self.events[: max(len(self.events) - lost, first)]
        ToyMemory.__init__(self, self.load)
        self.events = events
        self.running.clear()
        self.waiting.clear()
        told = []
        for request, time, first_seq in self.arrived.values():
            del request.seqs[request.width :]
            for sequence in request.seqs:
                sequence.computed = 0
            self.waiting.append(request)
            is_search = request.kind == "beams"
            sequences = tuple(
                RebuiltSequence(s.seq, tuple(s.tokens), s.score if is_search and s.score else None)
                for s in request.seqs
            )
            told.append(
                RebuiltRequest(
                    request.name, time, first_seq, request.num_prompt, request.max_output, sequences
                )
            )
        self.events.append(StateRebuilt(self.time, self.step, tuple(told)))
        self.rebuilt.append((len(self.events) - 1, self.snapshot()))

    def snapshot(self):
        """What the toy knows, just after it has started again."""
        seqs = [s for request in self.waiting for s in request.seqs]
        beams = [s for request in self.waiting if request.kind == "beams" for s in request.seqs]
        return EngineSnapshot(
            num_steps=self.step,
            free_list=tuple(self.free),
            ref_counts=tuple(self.refs),
            tables={},
            waiting=tuple(request.name for request in self.waiting),
            running=(),
            token_ids={s.seq: tuple(s.tokens) for s in seqs},
            num_computed_tokens=dict.fromkeys((s.seq for s in seqs), 0),
            host_free_list=tuple(self.host_free),
            host_ref_counts=tuple(self.host_refs),
            beam_scores={s.seq: s.score for s in beams if s.score},
        )


def make(load: Sharing, num_interrupts: int):
    """A trace, and where it was rebuilt: `(index of the event, snapshot after it)`."""
    toy = InterruptedToy(load, num_interrupts)
    toy.run()
    assert isinstance(toy.events[-1], TraceEnded) and any(isinstance(e, StepStarted) for e in toy.events)
    header = TraceHeader(
        version=VERSION,
        created="2026-01-01T00:00:00+00:00",
        clock="virtual",
        num_blocks=load.num_blocks,
        block_size=load.block_size,
        max_num_seqs=64,
        max_num_batched_tokens=512,
        max_model_len=2048,
        model=MODEL,
        num_host_blocks=load.num_host_blocks,
        prefix_cache=load.prefix_cache,
    )
    return make_trace(header, toy.events), toy.rebuilt


loads = st.builds(
    Sharing,
    num_requests=st.sampled_from([6, 3, 1]),
    num_blocks=st.sampled_from([28, 40]),
    num_host_blocks=st.sampled_from([12, 0]),
    block_size=st.sampled_from([4, 2]),
    kinds=st.sampled_from([("plain", "samples", "beams"), ("samples",), ("beams",)]),
    width=st.integers(2, 3),
    output=st.sampled_from([(12, 20), (2, 20), (1, 4)]),
    prefix_cache=st.sampled_from(["radix", "hash", None]),
    fail_share=st.sampled_from([0.0, 0.1]),
    abort_share=st.sampled_from([0.0, 0.05]),
    arrival_gap=st.integers(0, 2),
    seed=st.integers(0, 10_000),
)
interrupted = st.builds(make, loads, st.integers(1, 4))
"""Traces with `StateRebuilt`, and the snapshot that replay must give after each."""
interrupted_traces = interrupted.map(lambda run: run[0])
