"""The KV-cache manager against the plainest memory there is: every sequence owns a copy of all it ever wrote.

The machine does what a scheduler does, in its order. While a step is open, sequences are admitted, grow, are
swapped out and in; then the step is executed: blocks are moved, all tokens are written, and only then it is
over. Cells are lists of tokens, poisoned where nothing was written. So if a block is copied too late, lost,
shared by mistake, or found under a stale name, a sequence reads what is not its own.
"""

from types import SimpleNamespace

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from minivllm.trace.blocks import BlockBooks
from minivllm.trace.events import BlockCopied, BlocksCached, BlocksEvicted

POISON = -1
SALTS = (None, None, "x")


class Sequence:
    """What the plain memory knows of a sequence: its request, its tokens, and how many were computed."""

    def __init__(self, group, tokens, salt):
        self.group, self.tokens, self.salt, self.computed = group, list(tokens), salt, 0


class SharingMachine(RuleBasedStateMachine):
    """Subclasses say which `memory` is meant: the real modules, or mutated ones."""

    memory: SimpleNamespace

    @initialize(
        num_blocks=st.integers(3, 20),
        num_host_blocks=st.integers(0, 10),
        block_size=st.integers(1, 4),
        cache=st.sampled_from([None, "hash", "radix"]),
    )
    def start(self, num_blocks, num_host_blocks, block_size, cache):
        self.size, self.num_blocks, self.num_host_blocks = block_size, num_blocks, num_host_blocks
        self.books = BlockBooks.of_sizes(num_blocks, num_host_blocks)
        self.known = {}  # block → (salt, all tokens up to its end), as the events tell
        self.num_copies = 0
        self.manager = self.memory.KVCacheManager(
            num_blocks,
            block_size,
            self.note,
            prefix_cache=self.memory.make_prefix_cache(cache, block_size),
            num_host_blocks=num_host_blocks,
        )
        self.device = [[POISON] * block_size for _ in range(num_blocks)]
        self.host = [[POISON] * block_size for _ in range(num_host_blocks)]
        self.sequences = {}
        self.history = []  # tokens of every sequence that was ever admitted
        self.planned = {}  # seq → (start, end, copy of its table) of the open step
        self.open = False
        self.touched = set()  # requests that the open step computes or moves
        self.next_id = 0

    # ── what the events say ───────────────────────────────────────────────────────────────────────────

    def note(self, event):
        if isinstance(event, BlocksEvicted):
            mapped = {block for table in self.manager.tables.values() for block in table.blocks}
            assert not mapped & set(event.blocks), "a block in use was evicted"
            for block in event.blocks:
                del self.known[block]
        if isinstance(event, BlocksCached):
            for index, block in enumerate(event.blocks, event.first):
                tokens = self.sequences[event.seq].tokens[: (index + 1) * self.size]
                self.known[block] = (event.salt, tuple(tokens))
        self.num_copies += isinstance(event, BlockCopied)
        self.books.apply(event)

    def state(self):
        """Everything that a refusal must leave as it was."""
        manager = self.manager
        tables = {seq: list(table.blocks) for seq, table in manager.tables.items()}
        used = recency(manager.prefix_caching.cache) if manager.prefix_caching else None
        return manager.pool.free_list(), list(manager.pool.ref_counts), tables, len(manager._moves), used

    # ── while a step is open ──────────────────────────────────────────────────────────────────────────

    @rule(data=st.data())
    def admit(self, data):
        old = data.draw(st.sampled_from([*self.history[-6:], None]))
        salt = data.draw(st.sampled_from(SALTS))
        tokens = data.draw(st.lists(st.integers(0, 1), min_size=1, max_size=3 * self.size))
        if old is not None:  # most prompts begin like something that was there before
            tokens = [*old[: data.draw(st.integers(0, len(old)))], *tokens]
        seq, self.next_id = self.next_id, self.next_id + 1
        self.sequences[seq] = Sequence(seq, tokens, salt)
        self.history.append(self.sequences[seq].tokens)
        reserved = data.draw(st.integers(0, 2))
        admission = self.memory.Admission(seq, tokens, len(tokens), reserved_blocks=reserved, salt=salt)
        before = self.state()
        computed = self.manager.get_computed_blocks(admission)
        assert self.state() == before, "a question changes nothing"
        found = len(computed) * self.size
        limit = (len(tokens) - 1) // self.size * self.size
        assert found == self.longest_known(tokens[:limit], salt), (
            "the longest known prefix, less the last token"
        )
        self.sequences[seq].computed = found
        end = data.draw(st.integers(found + 1, len(tokens)))
        taken = {block for table in self.manager.tables.values() for block in table.blocks} | set(computed)
        needed = -(-len(tokens) // self.size) - len(computed) + reserved
        granted = self.write([(seq, end)], admission, computed)
        assert granted == (needed <= self.num_blocks - len(taken)), "admitted if there is room for all tokens"
        if not granted:
            assert self.state() == before, "a refusal changes nothing"
            del self.sequences[seq]

    @precondition(lambda self: self.sequences)
    @rule(data=st.data())
    def grow(self, data):
        """A request's sequences compute what they have, or a new token each."""
        group = data.draw(st.sampled_from(sorted({s.group for s in self.sequences.values()})))
        members = [seq for seq in self.on_device(group) if seq not in self.planned]
        spans = []
        for seq in members:
            sequence = self.sequences[seq]
            if sequence.computed == len(sequence.tokens):
                sequence.tokens.append(data.draw(st.integers(0, 1)))
            spans.append((seq, data.draw(st.integers(sequence.computed + 1, len(sequence.tokens)))))
        if spans:
            before, copies = self.state(), self.num_copies
            expected = self.copies_due(spans)
            if self.write(spans):
                assert self.num_copies - copies == expected, "one copy for each extra writer, and no more"
            else:
                assert self.state() == before, "a refusal changes nothing"

    @precondition(lambda self: self.sequences and self.num_host_blocks)
    @rule(data=st.data())
    def swap_out(self, data):
        group = data.draw(st.sampled_from(sorted({s.group for s in self.sequences.values()})))
        members = self.on_device(group)
        if not members or group in self.touched:
            return
        self.open = True
        before = self.state()
        if not self.manager.swap_out(members).is_done:
            assert self.state() == before, "a refusal changes nothing"
        else:
            self.touched.add(group)
            assert all(self.manager.is_swapped(seq) for seq in members)

    @precondition(lambda self: self.sequences and self.num_host_blocks)
    @rule(data=st.data())
    def swap_in(self, data):
        group = data.draw(st.sampled_from(sorted({s.group for s in self.sequences.values()})))
        members = [
            seq for seq, s in self.sequences.items() if s.group == group and self.manager.is_swapped(seq)
        ]
        if not members or group in self.touched:
            return
        self.open = True
        before = self.state()
        spans = [
            self.memory.Span(seq, self.sequences[seq].computed, len(self.sequences[seq].tokens))
            for seq in members
        ]
        if not self.manager.swap_in(spans, reserved_blocks=data.draw(st.integers(0, 2))):
            assert self.state() == before, "a refusal changes nothing"
            return
        self.touched.add(group)
        for seq in members:
            self.manager.cache_full_blocks(seq, self.sequences[seq].tokens, self.sequences[seq].computed)

    @precondition(lambda self: self.open)
    @rule()
    def execute(self):
        """Move, write, and only then is the step over."""
        self.move(self.manager.take_moves())
        written = set()
        for seq, (start, end, blocks) in self.planned.items():
            for position in range(start, end):
                cell = (blocks[position // self.size], position % self.size)
                assert cell not in written, "two sequences write to one cell"
                written.add(cell)
                self.device[cell[0]][cell[1]] = self.sequences[seq].tokens[position]
        self.manager.commit()
        for seq, (_, end, _) in self.planned.items():
            self.sequences[seq].computed = end
        self.close()

    @precondition(lambda self: self.open)
    @rule(wrote=st.booleans())
    def fail(self, wrote):
        """The step breaks down; what was written is unknown. All sequences that were in it start again."""
        moves = self.manager.take_moves()
        if wrote:
            for move in moves:
                (self.host if move.kind == "swap_out" else self.device)[move.target] = [POISON] * self.size
            for start, end, blocks in self.planned.values():
                for position in range(start, end):
                    self.device[blocks[position // self.size]][position % self.size] = POISON
        for seq in [seq for seq, s in self.sequences.items() if s.group in self.touched]:
            self.manager.free(seq)
            del self.sequences[seq]
        self.manager.abandon()
        self.close()

    # ── between steps ─────────────────────────────────────────────────────────────────────────────────

    @precondition(lambda self: not self.open and self.manager.tables)
    @rule(data=st.data())
    def fork(self, data):
        parent = data.draw(st.sampled_from(sorted(self.manager.tables)))
        child, self.next_id = self.next_id, self.next_id + 1
        old = self.sequences[parent]
        self.manager.fork(parent, child)
        self.books._map(child, self.books.tables.get(parent, []))  # the scheduler's event, SequenceForked
        self.sequences[child] = Sequence(old.group, old.tokens, old.salt)
        self.sequences[child].computed = old.computed

    @precondition(lambda self: self.sequences)
    @rule(data=st.data())
    def free(self, data):
        seq = data.draw(st.sampled_from(sorted(self.sequences)))
        if self.sequences[seq].group not in self.touched:
            self.manager.free(seq)
            del self.sequences[seq]

    @precondition(lambda self: not self.open)
    @rule()
    def reset(self):
        self.manager.reset_prefix_cache()
        assert self.manager.pool.num_evictable_blocks == 0

    @rule()
    def a_double_free_is_refused(self):
        for block in self.manager.pool.free_list()[:1]:
            before = self.state()
            try:
                self.manager.pool.free_blocks((block,))
            except ValueError:
                assert self.state() == before
            else:
                raise AssertionError("a free block was freed again")

    # ── what must hold ────────────────────────────────────────────────────────────────────────────────

    @invariant()
    def references_are_tables(self):
        if not hasattr(self, "manager"):
            return
        manager, counted = self.manager, [0] * self.num_blocks
        for table in manager.tables.values():
            for block in table.blocks:
                counted[block] += 1
        assert counted == list(manager.pool.ref_counts), "references are the tables that map a block"
        manager.check_invariants()
        pool = manager.pool
        assert pool.num_free_blocks + pool.num_evictable_blocks + pool.num_used_blocks == self.num_blocks
        tables = {seq: list(table.blocks) for seq, table in manager.tables.items() if len(table)}
        assert {seq: t for seq, t in self.books.tables.items() if t} == tables, "the events tell the tables"
        assert list(self.books.device.free) == list(pool.free_list()), "the events tell the free list"
        assert set(self.books.cached) == set(self.known), "the events tell what is known"
        if manager.swap_space:
            host = {seq: list(table.blocks) for seq, table in manager.swap_space.tables.items()}
            assert self.books.host_tables == host
            assert list(self.books.host.free) == list(manager.swap_space.pool.free_list())

    @invariant()
    def every_sequence_reads_what_it_wrote(self):
        if not hasattr(self, "manager") or self.open:
            return
        for seq, sequence in self.sequences.items():
            if seq in self.manager.tables:
                cells, table = self.device, self.manager.tables[seq]
            else:
                cells, table = self.host, self.manager.swap_space.tables[seq]
            read = [token for block in table.blocks for token in cells[block]][: sequence.computed]
            assert read == sequence.tokens[: sequence.computed], f"sequence {seq} reads what is not its own"

    def teardown(self):
        """When all sequences are freed and the cache is emptied, both pools are as they were."""
        if not hasattr(self, "manager"):
            return
        if self.open:
            self.execute()
        for seq in tuple(self.sequences):
            self.manager.free(seq)
        self.manager.reset_prefix_cache()
        assert self.manager.pool.num_free_blocks == self.num_blocks, "a reference has leaked"
        if self.manager.swap_space:
            assert self.manager.swap_space.pool.num_free_blocks == self.num_host_blocks

    # ── helpers ───────────────────────────────────────────────────────────────────────────────────────

    def on_device(self, group):
        return [s for s, item in self.sequences.items() if item.group == group and s in self.manager.tables]

    def write(self, spans, admission=None, computed=()):
        """Allocate and plan, as the scheduler does; whether it was granted."""
        wanted = [self.memory.Span(seq, self.sequences[seq].computed, end) for seq, end in spans]
        if not self.manager.allocate_slots(wanted, admission, computed):
            return False
        self.open = True
        for seq, start, end in wanted:
            blocks = list(self.manager.tables[seq].blocks)
            assert len(blocks) == -(-end // self.size), "as many blocks as the tokens need"
            self.planned[seq] = (start, end, blocks)
            self.touched.add(self.sequences[seq].group)
            self.manager.cache_full_blocks(seq, self.sequences[seq].tokens, end)
        return True

    def copies_due(self, spans):
        """Of a block with r readers that w are about to write to, min(w, r - 1) must be copied."""
        writers = {}
        for seq, end in spans:
            blocks = self.manager.tables[seq].blocks
            for block in blocks[self.sequences[seq].computed // self.size : -(-end // self.size)]:
                writers[block] = writers.get(block, 0) + 1
        return sum(min(count, self.manager.pool.ref_counts[block] - 1) for block, count in writers.items())

    def longest_known(self, tokens, salt):
        """By brute force: try every prefix in whole blocks, the shortest first."""
        known = set(self.known.values())
        length = 0
        while length + self.size <= len(tokens) and (salt, tuple(tokens[: length + self.size])) in known:
            length += self.size
        return length

    def move(self, moves):
        for move in moves:
            source = self.host if move.kind == "swap_in" else self.device
            target = self.host if move.kind == "swap_out" else self.device
            target[move.target] = list(source[move.source])

    def close(self):
        self.planned.clear()
        self.touched.clear()
        self.open = False


def recency(cache):
    """All that decides which cached block is evicted next."""
    if cache.name == "hash":
        return list(cache._evictable)
    return sorted((list(node.blocks), node.lock, node.last_used, node.in_heap) for node in cache.nodes())
