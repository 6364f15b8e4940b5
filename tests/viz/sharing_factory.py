"""Valid traces in which blocks are shared: forks, copies, beams, prefix caches, swapping, failed steps.

Like `trace_factory.py` a toy that shares no code with the engine. It computes a whole prompt in one step,
and knows a cached block by all the tokens up to its end.
"""

from collections import deque
from dataclasses import dataclass, field
from random import Random

from minivllm.trace.events import (
    VERSION,
    BatchPlanned,
    BeamsAdvanced,
    BlockMerged,
    BlocksSwappedIn,
    BlocksSwappedOut,
    RequestPreempted,
    RequestQueued,
    RequestScheduled,
    SequenceFinished,
    SequenceForked,
    StepAbandoned,
    StepFinished,
    StepStarted,
    TokensSampled,
    TraceEnded,
    TraceHeader,
)
from minivllm.trace.reader import Trace, make_trace
from tests.viz.sharing_memory import ToyMemory
from tests.viz.trace_factory import MODEL, WORDS


@dataclass(frozen=True)
class Sharing:
    """A run to invent."""

    num_requests: int = 8
    num_blocks: int = 40
    num_host_blocks: int = 24
    block_size: int = 4
    kinds: tuple[str, ...] = ("plain", "samples", "beams")
    width: int = 3
    output: tuple[int, int] = (2, 20)
    prefix_cache: str | None = "radix"
    swap: bool = True
    salts: tuple[str | None, ...] = (None,)
    num_prefixes: int = 2
    fail_share: float = 0.0
    abort_share: float = 0.0
    arrival_gap: int = 2
    seed: int = 0
    names: str = "req-{}"


@dataclass(eq=False)
class _Sequence:
    seq: int
    tokens: list[int]
    most: int
    computed: int = 0
    score: float = 0.0


@dataclass(eq=False)
class _Request:
    name: str
    kind: str
    width: int
    salt: str | None
    num_prompt: int
    max_output: int
    seqs: list[_Sequence] = field(default_factory=list)
    has_forked: bool = False


def text_of(token):
    return WORDS[token % len(WORDS)]


class _Toy(ToyMemory):
    def __init__(self, load: Sharing):
        super().__init__(load)
        self.random = Random(load.seed)
        self.waiting, self.running = deque(), []
        self.time, self.step, self.next_seq = 0.0, 0, 0

    # ── the queue ──

    def preempt(self, request, mode):
        distinct = {block for s in request.seqs for block in self.tables.get(s.seq, ())}
        if len(distinct) > len(self.host_free) or not self.load.swap:
            mode = "recompute"
        lost = sum(sequence.computed for sequence in request.seqs) if mode == "recompute" else 0
        twins = {}
        for sequence in request.seqs:
            if mode == "recompute":
                self.release(sequence)
                sequence.computed = 0
            elif table := self.tables.pop(sequence.seq, None):
                for block in table:
                    if block not in twins:
                        twins[block] = self.host_free.popleft()
                    self.host_refs[twins[block]] += 1
                self.host_tables[sequence.seq] = [twins[block] for block in table]
                blocks = tuple(reversed(table))
                for block in blocks:
                    self.drop(block)
                hosts = tuple(twins[block] for block in blocks)
                self.emit(BlocksSwappedOut(sequence.seq, blocks, hosts))
        self.running.remove(request)
        self.waiting.appendleft(request)
        self.emit(RequestPreempted(request.name, mode, lost))

    def swap_in(self, request):
        twins = {}
        for sequence in request.seqs:
            hosts = self.host_tables.pop(sequence.seq)
            for host in hosts:
                if host not in twins:
                    (twins[host],) = self.new(1)
                else:
                    self.take(twins[host])
                self.host_refs[host] -= 1
                if not self.host_refs[host]:
                    self.host_free.append(host)
            self.tables[sequence.seq] = [twins[host] for host in hosts]
            self.emit(BlocksSwappedIn(sequence.seq, tuple(hosts), tuple(self.tables[sequence.seq])))

    def end(self, request, sequence, reason):
        self.release(sequence)
        request.seqs.remove(sequence)
        self.emit(SequenceFinished(sequence.seq, reason, self.time))
        if not request.seqs:
            (self.running if request in self.running else self.waiting).remove(request)

    # ── a step ──

    def run(self):
        coming = deque(self.requests())
        while (coming or self.waiting or self.running) and self.step < 3000:
            while coming and coming[0][0] <= self.step:
                self.arrive(coming.popleft()[1])
            unfinished = [*self.waiting, *self.running]
            if unfinished and self.random.random() < self.load.abort_share:
                request = self.random.choice(unfinished)
                for sequence in list(request.seqs):
                    self.end(request, sequence, "abort")
            self.one_step()
        self.emit(TraceEnded(self.time))

    def requests(self):
        load, random, size = self.load, self.random, self.load.block_size
        prefixes = [[random.randrange(50) for _ in range(3 * size + 1)] for _ in range(load.num_prefixes)]
        for number in range(load.num_requests):
            prompt = random.choice(prefixes)[: random.randint(1, 3 * size + 1)]
            prompt = prompt + [random.randrange(3) for _ in range(random.randint(0, size))]
            kind = random.choice(load.kinds)
            width = load.width if kind != "plain" else 1
            most = load.num_blocks // (width + 1) * size - len(prompt) - 2 * size
            output = max(1, min(random.randint(*load.output), most))
            salt = random.choice(load.salts)
            request = _Request(load.names.format(number), kind, width, salt, len(prompt), output)
            request.seqs.append(_Sequence(-1, prompt, output))
            yield number * load.arrival_gap, request

    def arrive(self, request):
        sequence = request.seqs[0]
        sequence.seq, self.next_seq = self.next_seq, self.next_seq + 1
        self.waiting.append(request)
        pieces = tuple(text_of(token) for token in sequence.tokens)
        queued = RequestQueued(
            request.name,
            sequence.seq,
            self.time,
            tuple(sequence.tokens),
            request.max_output,
            "".join(pieces),
            pieces if self.load.seed % 2 else (),
            num_outputs=request.width,
            is_beam_search=request.kind == "beams",
            salt=request.salt,
        )
        self.emit(queued)

    def one_step(self):
        self.emit(StepStarted(self.step, self.time))
        self.fresh, self.duplicates, items, short = [], [], [], False
        for request in list(self.running):
            if request not in self.running:
                break
            while self.missing(request) > self.room() and self.running[-1] is not request:
                short = True
                self.preempt(self.running[-1], "swap")
            if self.missing(request) <= self.room():
                items += [self.write(request, sequence) for sequence in request.seqs]
        while not short and self.waiting and self.missing(self.waiting[0]) <= self.room():
            request = self.waiting.popleft()
            if request.seqs[0].seq in self.host_tables:
                self.swap_in(request)
                new = [self.write(request, sequence) for sequence in request.seqs]
            else:
                new = self.begin(request)
            items += new
            self.running.append(request)
            self.emit(RequestScheduled(request.name))
        self.emit(BatchPlanned(tuple(items)))
        if items and self.random.random() < self.load.fail_share:
            self.fail({seq for seq, _, _ in items})
        else:
            self.compute({seq for seq, _, _ in items})

    def fail(self, seqs):
        for request in reversed(list(self.running)):
            if any(sequence.seq in seqs for sequence in request.seqs):
                self.preempt(request, "recompute")
        self.forget([block for block in self.fresh if block in self.keys], "abandoned")
        self.emit(StepAbandoned(self.step, self.time, "MemoryError: <b>no</b>"))

    def compute(self, seqs):
        for request, sequence, index in self.duplicates:
            self.merge(request, sequence, index)
        sampled, done = [], []
        for request in list(self.running):
            if request.seqs and request.seqs[0].seq in seqs:
                for sequence in request.seqs:
                    sequence.computed = len(sequence.tokens)
                (self.search if request.kind == "beams" else self.sample)(request, sampled, done)
        if sampled:
            self.emit(TokensSampled(tuple(sampled)))
        self.time = round(self.time + 0.002, 6)
        for request, sequence in done:
            self.end(request, sequence, "length")
        self.emit(StepFinished(self.step, self.time, {"model": 0.002}))
        self.step += 1

    def merge(self, request, sequence, index):
        table = self.tables[sequence.seq]
        for place in range(index, len(sequence.tokens) // self.load.block_size):
            twin = self.known.get(self.key(request, sequence, place))
            if twin is None or twin == table[place] or table[place] in self.keys:
                return
            own, table[place] = table[place], twin
            self.take(twin)
            self.drop(own)
            self.emit(BlockMerged(sequence.seq, place, own, twin))

    def fork(self, request, parent):
        child = _Sequence(self.next_seq, list(parent.tokens), parent.most, parent.computed, parent.score)
        self.next_seq += 1
        self.tables[child.seq] = list(self.tables[parent.seq])
        for block in self.tables[child.seq]:
            self.take(block)
        request.seqs.append(child)
        self.emit(SequenceForked(request.name, parent.seq, child.seq))
        return child

    def sample(self, request, sampled, done):
        if not request.has_forked:
            request.has_forked = True
            for _ in range(request.width - 1):
                child = self.fork(request, request.seqs[0])
                child.most = self.random.randint(1, request.max_output)
        for sequence in request.seqs:
            token = self.random.randrange(3)
            sequence.tokens.append(token)
            sampled.append((sequence.seq, token, text_of(token)))
            if len(sequence.tokens) - request.num_prompt >= sequence.most:
                done.append((request, sequence))

    def search(self, request, sampled, done):
        random = self.random
        beams = list(request.seqs)
        candidates = [
            (beam, token, round(beam.score - random.random() * 2, 4)) for beam in beams for token in range(6)
        ]
        candidates.sort(key=lambda candidate: -candidate[2])
        length = len(beams[0].tokens) - request.num_prompt + 1
        is_last = length >= request.max_output
        kept, rejected = candidates[: request.width], candidates[request.width :][:8]
        finished = []
        if is_last:
            finished, kept = [(b.seq, t, s / length, text_of(t)) for b, t, s in kept], []
            done += [(request, beam) for beam in beams]
        elif random.random() < 0.2 and rejected:
            beam, token, score = rejected.pop(0)
            finished = [(beam.seq, token, score / length, text_of(token))]
        grown, seen, told = [], set(), []
        for beam, token, score in kept:
            child = self.fork(request, beam) if beam.seq in seen else beam
            seen.add(beam.seq)
            grown.append((child, token, score))
            told.append((beam.seq, child.seq, token, score, text_of(token)))
        for child, token, score in grown:
            child.tokens.append(token)
            child.score = score
            sampled.append((child.seq, token, text_of(token)))
        if kept:
            for beam in beams:
                if beam.seq not in seen:
                    self.end(request, beam, "pruned")
            request.seqs[:] = [child for child, _, _ in grown]
        said = tuple((beam.seq, token, score, text_of(token)) for beam, token, score in rejected)
        self.emit(BeamsAdvanced(request.name, tuple(told), tuple(finished), said))


def make(load: Sharing = Sharing()) -> Trace:
    """Run a workload and return its trace."""
    toy = _Toy(load)
    toy.run()
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
        workload="invented for a test",
    )
    return make_trace(header, toy.events)
