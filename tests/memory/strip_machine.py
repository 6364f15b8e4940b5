"""A machine that plays requests on a memory without sharing, beside a model that shares nothing either.

Memory is a dictionary of cells. Every sequence also keeps a plain list of its tokens; after each step all of
its computed tokens must be found through its block table. The events are replayed beside it.
"""

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from minivllm.memory.cache_manager import Admission, Span
from minivllm.memory.waste import Progress, memory_shares
from minivllm.trace.blocks import BlockBooks
from minivllm.trace.events import BlockCopied, SequenceForked

MAX_MODEL_LEN = 24
MAX_NUM_SEQS = 6


class Played:
    """One request: its sequences' tokens, and how far each of them is."""

    def __init__(self, prompt, max_total_tokens, max_num_sequences):
        self.prompt = prompt
        self.max_total_tokens, self.max_num_sequences = max_total_tokens, max_num_sequences
        self.tokens: dict[int, list[int]] = {}
        self.computed: dict[int, int] = {}


class StripMachine(RuleBasedStateMachine):
    """Subclasses say which memory it is."""

    def make(self, num_blocks, block_size, emit):
        raise NotImplementedError

    @initialize(
        num_blocks=st.integers(24, 60),
        block_size=st.sampled_from([1, 3, 4]),
    )
    def start(self, num_blocks, block_size):
        self.books = None
        self.pending = []
        self.manager = self.make(num_blocks, block_size, self.pending.append)
        self.books = BlockBooks.of_sizes(self.manager.pool.num_blocks)
        self.total = self.manager.num_free_blocks
        self.cells: dict[tuple[int, int], int] = {}
        self.requests: list[Played] = []
        self.next_seq = self.next_token = 0

    def catch_up(self):
        for event in self.pending:
            self.books.apply(event)
        events, self.pending[:] = tuple(self.pending), []
        return events

    def new_seq(self):
        self.next_seq += 1
        return self.next_seq - 1

    def token(self):
        self.next_token += 1
        return self.next_token

    def admit(self, request, seq, count=0):
        """Admit a sequence and let it compute `count` tokens, if there is room for all it has."""
        free = self.manager.num_free_blocks
        admission = Admission(
            seq,
            request.tokens[seq],
            max_total_tokens=request.max_total_tokens,
            max_num_sequences=request.max_num_sequences,
        )
        assert not self.manager.get_computed_blocks(admission), "nothing is shared"
        span = Span(seq, 0, min(count, len(request.tokens[seq])))
        admitted = self.manager.allocate_slots([span], admission)
        if admitted:
            self.catch_up()
            self.fill(request, [span])
        else:
            assert self.manager.num_free_blocks == free, "a refusal changes nothing"
            assert not self.pending and seq not in self.manager.tables
            most = self.manager.max_blocks(
                len(request.prompt), request.max_total_tokens - 1, request.max_num_sequences
            )
            assert self.requests or most > self.total, "what fits alone is admitted when it is alone"
        return admitted

    @precondition(lambda self: sum(r.max_num_sequences for r in self.requests) < MAX_NUM_SEQS)
    @rule(
        prompt=st.integers(1, 12),
        output=st.integers(1, 12),
        max_num_sequences=st.integers(1, 3),
        first=st.integers(0, 12),
    )
    def arrive(self, prompt, output, max_num_sequences, first):
        places = MAX_NUM_SEQS - sum(request.max_num_sequences for request in self.requests)
        request = Played(
            [self.token() for _ in range(prompt)], prompt + output, min(max_num_sequences, places)
        )
        seq = self.new_seq()
        request.tokens[seq], request.computed[seq] = list(request.prompt), 0
        if self.admit(request, seq, first):
            self.requests.append(request)
        self.catch_up()

    def write(self, request, spans):
        """One step: moves first, then every span is written; False if there was no room."""
        if not self.manager.allocate_slots(spans):
            assert not self.pending, "a refusal changes nothing"
            assert not self.manager.take_moves()
            return False
        copied = [event for event in self.catch_up() if isinstance(event, BlockCopied)]
        moves = self.manager.take_moves()
        assert [(move.source, move.target) for move in moves] == [(e.source, e.target) for e in copied]
        for move in moves:
            assert move.kind == "copy"
            for offset in range(self.manager.block_size):
                if (move.source, offset) in self.cells:
                    self.cells[move.target, offset] = self.cells[move.source, offset]
        self.fill(request, spans)
        return True

    def fill(self, request, spans):
        """The data plane writes what was allocated."""
        for seq, start, end in spans:
            table = self.manager.tables[seq]
            for position in range(start, end):
                cell = divmod(table.slot(position), self.manager.block_size)
                self.cells[cell] = request.tokens[seq][position]
            request.computed[seq] = max(request.computed[seq], end)

    @precondition(lambda self: self.requests)
    @rule(which=st.integers(0, 9), chunk=st.integers(1, 9), only=st.integers(0, 9), together=st.booleans())
    def compute(self, which, chunk, only, together):
        """Some or all sequences of a request compute up to `chunk` of what they have."""
        request = self.requests[which % len(self.requests)]
        behind = [seq for seq in request.tokens if request.computed[seq] < len(request.tokens[seq])]
        if behind and not together:
            behind = [behind[only % len(behind)]]
        spans = []
        for seq in behind:
            start = request.computed[seq]
            spans.append(Span(seq, start, min(start + chunk, len(request.tokens[seq]))))
        if not self.write(request, spans):
            self.leave(request)

    @precondition(lambda self: self.requests)
    @rule(which=st.integers(0, 9), choices=st.lists(st.integers(0, 9), min_size=1, max_size=3))
    def grow(self, which, choices):
        """As `Scheduler.grow`: a parent's first child goes on in place, others fork, the childless go."""
        request = self.requests[which % len(self.requests)]
        ready = list(request.tokens)
        if any(request.computed[seq] < len(request.tokens[seq]) for seq in ready):
            return
        if any(len(request.tokens[seq]) >= request.max_total_tokens - 1 for seq in ready):
            return
        grown, parents = [], set()
        for choice in choices[: request.max_num_sequences]:
            parent = ready[choice % len(ready)]
            if parent in parents:
                child = self.new_seq()
                self.manager.fork(parent, child)
                self.pending.append(SequenceForked("r", parent, child))
                request.tokens[child] = list(request.tokens[parent])
                request.computed[child] = request.computed[parent]
                grown.append(child)
            else:
                grown.append(parent)
            parents.add(parent)
        for seq in grown:
            request.tokens[seq].append(self.token())
        for seq in ready:
            if seq not in parents:
                self.drop(request, seq)
        self.catch_up()

    def drop(self, request, seq):
        self.manager.free(seq)
        del request.tokens[seq], request.computed[seq]

    @precondition(lambda self: self.requests)
    @rule(which=st.integers(0, 9), index=st.integers(0, 9))
    def finish(self, which, index):
        """One sequence has ended, perhaps the last."""
        request = self.requests[which % len(self.requests)]
        self.drop(request, list(request.tokens)[index % len(request.tokens)])
        if not request.tokens:
            self.requests.remove(request)
        self.catch_up()

    def leave(self, request):
        for seq in list(request.tokens):
            self.manager.free(seq)
        self.requests.remove(request)
        self.catch_up()

    @precondition(lambda self: self.requests)
    @rule(which=st.integers(0, 9))
    def start_again(self, which):
        """Preempted by recompute: the first sequence catches up, then its siblings copy what they share."""
        request = self.requests[which % len(self.requests)]
        self.leave(request)
        request.computed = dict.fromkeys(request.tokens, 0)
        first, *siblings = request.tokens
        if not self.admit(request, first):
            self.catch_up()
            return
        self.requests.append(request)
        self.catch_up()
        tokens = request.tokens[first]
        if not self.write(request, [Span(first, 0, len(tokens))]):
            self.leave(request)
            return
        size = self.manager.block_size
        for seq in siblings:
            own = request.tokens[seq]
            same = next(
                (i for i, pair in enumerate(zip(tokens, own, strict=False)) if pair[0] != pair[1]), len(own)
            )
            shared = min(same, len(tokens), len(own) - 1) // size
            self.manager.share(first, seq, shared)
            request.computed[seq] = shared * size
        self.catch_up()

    @precondition(lambda self: self.requests)
    @rule()
    def all_requests_leave_at_once(self):
        for request in tuple(self.requests):
            self.leave(request)
        assert self.manager.num_free_blocks == self.total, "everything has come back"
        assert not self.manager.tables and self.manager.usage == 0

    @invariant()
    def what_was_written_can_be_read(self):
        if not hasattr(self, "manager"):
            return
        for request in self.requests:
            for seq, tokens in request.tokens.items():
                table = self.manager.tables[seq]
                for position in range(request.computed[seq]):
                    cell = divmod(table.slot(position), self.manager.block_size)
                    assert self.cells[cell] == tokens[position], f"sequence {seq}, position {position}"

    @invariant()
    def the_books_add_up(self):
        if not hasattr(self, "manager"):
            return
        self.manager.check_invariants()
        assert set(self.manager.tables) == {seq for request in self.requests for seq in request.tokens}

    @invariant()
    def the_trace_tells_the_same_story(self):
        if not hasattr(self, "manager"):
            return
        assert self.manager.pool.free_list() == tuple(self.books.device.free)
        assert self.manager.pool.ref_counts.tolist() == self.books.device.ref_counts
        tables = {seq: table.blocks.tolist() for seq, table in self.manager.tables.items() if len(table)}
        assert tables == self.books.tables

    @invariant()
    def every_slot_is_one_of_five_things(self):
        if not hasattr(self, "manager") or not self.total:
            return
        size = self.manager.block_size
        lengths = {
            seq: Progress(request.computed[seq], request.max_total_tokens - 1)
            for request in self.requests
            for seq in request.tokens
        }
        shares = memory_shares(
            self.total * size,
            self.manager.num_free_blocks * size,
            self.manager.tables,
            lengths,
            head_waits=False,
            promises=self.manager.promises(),
        )
        assert all(share >= 0 for share in shares), shares
        assert abs(sum(shares) - 1) < 1e-9
