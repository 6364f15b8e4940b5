"""Both prefix caches against a dictionary of all known prefixes, asked by brute force."""

import gc

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from minivllm.memory.cache_manager import Admission, Span
from minivllm.memory.hash_prefix_cache import HashPrefixCache
from minivllm.memory.kv_cache_manager import KVCacheManager
from minivllm.memory.make_cache_manager import make_prefix_cache
from minivllm.memory.radix_tree import RadixTree
from tests.memory.sharing_machine import recency

SALTS = (None, "x", "y")


class CacheMachine(RuleBasedStateMachine):
    """Tables come with their tokens and go; `known` has each cached block by its salt and whole past."""

    def make(self, block_size):
        raise NotImplementedError

    @initialize(block_size=st.integers(1, 3))
    def start(self, block_size):
        self.size, self.cache = block_size, self.make(block_size)
        self.known = {}
        self.tables = []  # (salt, tokens, blocks): those that map a path
        self.next_block = 0
        self.past = [[]]

    def blocks_of(self, salt, tokens):
        """By brute force: the blocks of the longest prefix of which every part is known."""
        blocks = []
        for end in range(self.size, len(tokens) + 1, self.size):
            block = self.known.get((salt, tuple(tokens[:end])))
            if block is None:
                break
            blocks.append(block)
        return blocks

    def num_tables(self):
        counts = [0] * max(self.next_block, 1)
        for _, _, blocks in self.tables:
            for block in blocks:
                counts[block] += 1
        return counts

    def forget(self, blocks):
        counts = self.num_tables()
        for block in blocks:
            assert counts[block] == 0, "what is in use is never forgotten"
            (key,) = [key for key, known in self.known.items() if known == block]
            longer = [k for k in self.known if k[0] == key[0] and k[1][: len(key[1])] == key[1] and k != key]
            assert not longer, "the end of a path goes before its beginning"
            del self.known[key]

    @rule(data=st.data(), salt=st.sampled_from(SALTS), tail=st.lists(st.integers(0, 1), max_size=9))
    def come(self, data, salt, tail):
        """A table finds what is cached, maps it, and caches the rest in one piece or two."""
        start = data.draw(st.sampled_from(self.past[-8:]))
        tokens = [*start[: data.draw(st.integers(0, len(start)))], *tail]
        tokens = tokens[: len(tokens) // self.size * self.size]
        found = self.cache.match(None, tokens, salt)
        assert found == self.blocks_of(salt, tokens)
        self.cache.acquire(found)
        blocks = list(found)
        rest = len(tokens) // self.size - len(found)
        for count in (rest // 2, rest - rest // 2):
            if count:
                new = list(range(self.next_block, self.next_block + count))
                first = len(blocks) * self.size
                piece = tokens[first : first + count * self.size]
                after = blocks[-1] if blocks else None
                assert self.cache.match(after, piece, salt) == []
                assert self.cache.insert(after, piece, new, salt) == count
                blocks += new
                self.next_block += count
        for index, block in enumerate(blocks):
            self.known[salt, tuple(tokens[: (index + 1) * self.size])] = block
        self.past.append(tokens)
        if blocks:
            self.tables.append((salt, tokens, blocks))

    @precondition(lambda self: self.tables)
    @rule(data=st.data())
    def fork(self, data):
        table = data.draw(st.sampled_from(self.tables))
        self.cache.acquire(table[2])
        self.tables.append(table)

    @precondition(lambda self: self.tables)
    @rule(data=st.data())
    def go(self, data):
        _, _, blocks = self.tables.pop(data.draw(st.integers(0, len(self.tables) - 1)))
        self.cache.release(blocks)

    @precondition(lambda self: self.tables)
    @rule(data=st.data())
    def a_rival_is_turned_away(self, data):
        """Another block with tokens that are known in this place stays unknown."""
        salt, tokens, _ = data.draw(st.sampled_from(self.tables))
        assert self.cache.insert(None, tokens[: self.size], [self.next_block], salt) == 0
        assert self.next_block not in self.cache

    @rule(data=st.data())
    def evict(self, data):
        evictable = self.cache.num_evictable_blocks
        count = data.draw(st.integers(0, evictable + 1))
        if count > evictable:
            with pytest.raises(
                ValueError, match=f"{count} blocks are to be evicted, but only {evictable} are evictable"
            ):
                self.cache.evict(count)
        else:
            evicted = self.cache.evict(count)
            assert len(evicted) == count
            self.forget(evicted)

    @rule()
    def reset(self):
        self.forget(self.cache.reset())
        assert self.cache.num_evictable_blocks == 0

    @rule(data=st.data(), salt=st.sampled_from(SALTS))
    def look(self, data, salt):
        """A look-up finds what brute force finds, and changes nothing, recency included."""
        tokens = data.draw(st.sampled_from(self.past[-8:]))
        tokens = [*tokens[: data.draw(st.integers(0, len(tokens)))], *data.draw(st.lists(st.integers(0, 1)))]
        before = self.structure(), recency(self.cache)
        found = self.cache.match(None, tokens, salt)
        assert found == self.blocks_of(salt, tokens)
        for index in range(1, len(found)):  # going on behind a block is the same as coming from the beginning
            rest = tokens[index * self.size :]
            assert self.cache.match(found[index - 1], rest, salt) == found[index:]
        assert (self.structure(), recency(self.cache)) == before

    def structure(self):
        if isinstance(self.cache, RadixTree):
            return sorted((list(node.blocks), node.lock, len(node.children)) for node in self.cache.nodes())
        return {block: self.cache.parent_of(block) for block in self.known.values()}

    @invariant()
    def agrees_with_the_model(self):
        if not hasattr(self, "cache"):
            return
        counts = self.num_tables()
        self.cache.check_invariants(counts)
        assert len(self.cache) == len(self.known)
        assert self.cache.num_evictable_blocks == sum(counts[block] == 0 for block in self.known.values())
        for (salt, tokens), block in self.known.items():
            assert block in self.cache
            assert self.cache.parent_of(block) == self.known.get((salt, tokens[: -self.size]))


class HashMachine(CacheMachine):
    def make(self, block_size):
        return HashPrefixCache(block_size)


class CollidingHashMachine(CacheMachine):
    """Every key is one of two: nothing may depend on keys being different."""

    def make(self, block_size):
        return HashPrefixCache(block_size, hash_block=lambda before, tokens: tokens[0] % 2)


class RadixMachine(CacheMachine):
    def make(self, block_size):
        return RadixTree(block_size)


TestHash = HashMachine.TestCase
TestCollidingHash = CollidingHashMachine.TestCase
TestRadix = RadixMachine.TestCase


@pytest.mark.parametrize("form", ["hash", "radix"])
@given(order=st.permutations(range(6)), lengths=st.lists(st.integers(1, 4), min_size=6, max_size=6))
def test_the_least_recently_used_goes_first_and_from_its_end(form, order, lengths):
    cache = make_prefix_cache(form, 2)
    paths, block = [], 0
    for number, length in enumerate(lengths):
        blocks = list(range(block, block + length))
        block += length
        cache.insert(None, [number] * 2 * length, blocks)
        cache.release(blocks)
        paths.append(blocks)
    for number in order:  # to map a path is to use it
        found = cache.match(None, [number] * 2 * lengths[number])
        assert found == paths[number]
        cache.acquire(found)
        cache.release(found)
    for number in range(6):  # to look it up is not
        cache.match(None, [number] * 2 * lengths[number])
    expected = [block for number in order for block in reversed(paths[number])]
    assert cache.evict(len(expected)) == expected


@pytest.mark.parametrize("form", ["hash", "radix"])
def test_the_rest_of_a_path_that_was_mapped_in_part_was_not_used(form):
    """Blocks 0 … 3 are one path, 4 is another, used later; then a table maps 0 and 1 only."""
    cache = make_prefix_cache(form, 1)
    cache.insert(None, [1, 2, 3, 4], [0, 1, 2, 3])
    cache.release([0, 1, 2, 3])
    cache.insert(None, [9], [4])
    cache.release([4])
    found = cache.match(None, [1, 2, 8])
    cache.acquire(found)
    cache.release(found)
    assert cache.evict(5) == [3, 2, 4, 1, 0]


@pytest.mark.parametrize("form", ["hash", "radix"])
def test_a_block_that_holds_something_else_now_is_not_found_under_its_old_name(form):
    cache = make_prefix_cache(form, 2)
    cache.insert(None, [1, 1, 2, 2], [0, 1])
    cache.release([0, 1])
    assert cache.evict(2) == [1, 0]
    cache.insert(None, [3, 3], [0])
    assert cache.match(None, [1, 1, 2, 2]) == []
    assert cache.match(None, [3, 3, 2, 2]) == [0]


def test_a_sequence_that_grows_alone_is_one_node():
    tree = RadixTree(1)
    for token in range(50):
        tree.insert(token - 1 if token else None, [token], [token])
    assert len(list(tree.nodes())) == 1
    tree.acquire(list(range(20)))  # another table maps the first twenty blocks
    assert [len(node.blocks) for node in tree.nodes()] == [20, 30]
    assert [node.lock for node in tree.nodes()] == [2, 1]


def test_no_prefix_cache_is_none():
    assert make_prefix_cache(None, 4) is None


def num_objects(owner):
    """Objects that are reachable from `owner`, numbers and code aside."""
    seen, waiting = {}, [owner]
    while waiting:
        item = waiting.pop()
        if id(item) not in seen and not isinstance(item, int | type) and not callable(item):
            seen[id(item)] = item
            waiting += gc.get_referents(item)
    return len(seen)


def serve(manager, number, tokens, salt, *, fails=False):
    """A sequence comes, is computed in one step, and goes."""
    admission = Admission(number, tokens, len(tokens), salt=salt)
    computed = manager.get_computed_blocks(admission)
    start = len(computed) * manager.block_size
    assert manager.allocate_slots([Span(number, start, len(tokens))], admission, computed)
    manager.cache_full_blocks(number, tokens, len(tokens))
    if fails:
        manager.free(number)
        manager.abandon()
    else:
        manager.commit()
        manager.free(number)


tenants = st.lists(
    st.tuples(st.sampled_from([None, *"abcdefgh"]), st.lists(st.integers(0, 1), min_size=1, max_size=9))
)


@pytest.mark.parametrize("form", ["hash", "radix"])
@given(work=tenants)
def test_what_is_forgotten_leaves_nothing_behind(form, work):
    manager = KVCacheManager(5, 2, prefix_cache=make_prefix_cache(form, 2))
    fresh = num_objects(manager)
    for number, (salt, tokens) in enumerate(work):
        serve(manager, number, tokens, salt)
        manager.check_invariants()
    manager.reset_prefix_cache()
    assert num_objects(manager) == fresh


@pytest.mark.parametrize("form", ["hash", "radix"])
@pytest.mark.parametrize("fails", [False, True])
def test_three_hundred_tenants_leave_no_more_than_the_pool_holds(form, fails):
    manager = KVCacheManager(4, 2, prefix_cache=make_prefix_cache(form, 2))
    sizes = []
    for number in range(300):
        serve(manager, number, [1, 2, 3], f"tenant {number}", fails=fails)
        sizes.append(num_objects(manager))
    assert max(sizes) == max(sizes[:150])
