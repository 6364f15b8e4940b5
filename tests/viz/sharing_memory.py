"""The memory of the toy in `sharing_factory.py`: reference counts, copies, a cache that is a dictionary."""

from collections import deque

from minivllm.trace.events import (
    BlockCopied,
    BlocksAllocated,
    BlocksCached,
    BlocksEvicted,
    BlocksFreed,
    BlocksShared,
    HostBlocksFreed,
)


class ToyMemory:
    """Two pools and all tables; a cached block is known by all the tokens up to its end."""

    def __init__(self, load):
        self.load, self.events = load, []
        self.free, self.refs = deque(range(load.num_blocks)), [0] * load.num_blocks
        self.host_free, self.host_refs = deque(range(load.num_host_blocks)), [0] * load.num_host_blocks
        self.tables, self.host_tables = {}, {}
        self.known, self.keys, self.idle = {}, {}, {}  # key → block, block → key, idle blocks by age
        self.fresh, self.duplicates = [], []

    def emit(self, *events):
        self.events += events

    # ── blocks ──

    def take(self, block):
        self.idle.pop(block, None)
        self.refs[block] += 1

    def drop(self, block):
        self.refs[block] -= 1
        if not self.refs[block]:
            if block in self.keys:
                self.idle[block] = None
            else:
                self.free.append(block)

    def forget(self, blocks, reason):
        for block in blocks:
            del self.known[self.keys.pop(block)]
            self.idle.pop(block, None)
            self.free.append(block)
        if blocks:
            self.emit(BlocksEvicted(tuple(blocks), reason))

    def new(self, count):
        short = count - len(self.free)
        if short > 0:
            self.forget(list(self.idle)[:short], "capacity")
        blocks = [self.free.popleft() for _ in range(count)]
        for block in blocks:
            self.refs[block] = 1
        return blocks

    def room(self):
        return len(self.free) + len(self.idle)

    def key(self, request, sequence, index):
        return (request.salt, tuple(sequence.tokens[: (index + 1) * self.load.block_size]))

    # ── what a request needs, and getting it ──

    def missing(self, request):
        size, needed = self.load.block_size, 0
        for sequence in request.seqs:
            table = self.tables.get(sequence.seq, ())
            needed += -(-len(sequence.tokens) // size) - len(table) + 1  # one for a copy
        return needed

    def write(self, request, sequence):
        """Blocks for all tokens of a sequence, its own where it writes; returns its share of the batch."""
        size, table = self.load.block_size, self.tables.setdefault(sequence.seq, [])
        start, end = sequence.computed, len(sequence.tokens)
        for index in range(start // size, len(table)):
            if self.refs[table[index]] > 1:
                source, (target,) = table[index], self.new(1)
                self.drop(source)
                table[index] = target
                self.emit(BlockCopied(sequence.seq, index, source, target))
        fresh = self.new(-(-end // size) - len(table))
        if fresh:
            table += fresh
            self.emit(BlocksAllocated(sequence.seq, tuple(fresh)))
        if self.load.prefix_cache:
            self.remember(request, sequence, end)
        return (sequence.seq, start, end - start)

    def remember(self, request, sequence, end):
        table, fresh, first = self.tables[sequence.seq], [], None
        for index in range(end // self.load.block_size):
            key = self.key(request, sequence, index)
            if table[index] in self.keys:
                continue
            if key in self.known:
                self.duplicates.append((request, sequence, index))
                break
            first = index if first is None else first
            self.known[key], self.keys[table[index]] = table[index], key
            fresh.append(table[index])
        if fresh:
            self.fresh += fresh
            self.emit(BlocksCached(sequence.seq, first, tuple(fresh), request.salt))

    def share(self, sequence, blocks, source):
        if blocks:
            for block in blocks:
                self.take(block)
            self.tables[sequence.seq] = list(blocks)
            sequence.computed = len(blocks) * self.load.block_size
            self.emit(BlocksShared(sequence.seq, tuple(blocks), source))

    def begin(self, request):
        """Tables of a request that has none; the first sequence asks the cache, the others the first."""
        first, size = request.seqs[0], self.load.block_size
        hits = []
        for index in range((len(first.tokens) - 1) // size):
            block = self.known.get(self.key(request, first, index))
            if block is None or not self.load.prefix_cache:
                break
            hits.append(block)
        self.share(first, hits, "cache")
        items = [self.write(request, first)]
        for sibling in request.seqs[1:]:
            common = 0
            while common < (len(sibling.tokens) - 1) // size and (
                self.key(request, sibling, common) == self.key(request, first, common)
            ):
                common += 1
            self.share(sibling, self.tables[first.seq][:common], "sibling")
            items.append(self.write(request, sibling))
        return items

    def release(self, sequence):
        if table := self.host_tables.pop(sequence.seq, None):
            for block in table:
                self.host_refs[block] -= 1
                if not self.host_refs[block]:
                    self.host_free.append(block)
            self.emit(HostBlocksFreed(sequence.seq, tuple(table)))
        if table := self.tables.pop(sequence.seq, None):
            for block in reversed(table):
                self.drop(block)
            self.emit(BlocksFreed(sequence.seq, tuple(reversed(table))))
