"""Every block is free or in use, never both, never neither, whatever is done to the pool."""

import copy

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from minivllm.memory import BlockPool, OutOfBlocksError
from minivllm.memory.strips import NamedPool


class BlockPoolMachine(RuleBasedStateMachine):
    """The pool against the plainest model there is: a list of free blocks and a list of holdings."""

    def __init__(self):
        super().__init__()
        self.pool = BlockPool(12)
        self.free = list(range(12))
        self.held: list[list[int]] = []

    @rule(count=st.integers(0, 15))
    def take(self, count):
        if count > len(self.free):
            with pytest.raises(
                OutOfBlocksError, match=f"{count} blocks were asked for, {len(self.free)} of 12"
            ):
                self.pool.get_new_blocks(count)
            return
        blocks = self.pool.get_new_blocks(count)
        assert blocks == self.free[:count], "blocks are allocated in the order in which they were freed"
        del self.free[:count]
        self.held.append(blocks)

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def give_back(self, data):
        blocks = self.held.pop(data.draw(st.integers(0, len(self.held) - 1)))
        blocks = data.draw(st.permutations(blocks))
        self.pool.free_blocks(blocks)
        self.free += blocks

    @precondition(lambda self: self.free)
    @rule(data=st.data())
    def give_back_what_is_free(self, data):
        block = data.draw(st.sampled_from(self.free))
        with pytest.raises(ValueError, match=f"block {block} was freed twice"):
            self.pool.free_blocks([block])

    @invariant()
    def agrees_with_the_model(self):
        self.pool.check_invariants()
        assert self.pool.free_list() == tuple(self.free)
        assert self.pool.num_free_blocks + self.pool.num_used_blocks == self.pool.num_blocks


TestBlockPool = BlockPoolMachine.TestCase


class SharedPoolMachine(RuleBasedStateMachine):
    """References and caching: a block is free when no table maps it and it is not cached."""

    def __init__(self):
        super().__init__()
        self.pool = BlockPool(6)
        self.references = [0] * 6
        self.cached = [False] * 6

    @rule(block=st.integers(0, 5))
    def touch(self, block):
        if self.references[block] or self.cached[block]:
            self.pool.touch([block])
            self.references[block] += 1
        else:
            with pytest.raises(ValueError, match=f"block {block} is free: it cannot be shared"):
                self.pool.touch([block])

    @precondition(lambda self: self.pool.num_free_blocks)
    @rule()
    def take(self):
        (block,) = self.pool.get_new_blocks(1)
        assert not self.references[block] and not self.cached[block]
        self.references[block] = 1

    @rule(block=st.integers(0, 5))
    def drop(self, block):
        if self.references[block]:
            self.pool.free_blocks([block])
            self.references[block] -= 1
        else:
            with pytest.raises(ValueError, match=f"block {block} was freed twice"):
                self.pool.free_blocks([block])

    @rule(block=st.integers(0, 5))
    def cache(self, block):
        if self.references[block] and not self.cached[block]:
            self.pool.cache([block])
            self.cached[block] = True
        else:
            with pytest.raises(ValueError, match=f"block {block} cannot be cached"):
                self.pool.cache([block])

    @rule(block=st.integers(0, 5))
    def uncache(self, block):
        if self.cached[block]:
            self.pool.uncache([block])
            self.cached[block] = False
        else:
            with pytest.raises(ValueError, match=f"block {block} is not cached"):
                self.pool.uncache([block])

    @invariant()
    def agrees_with_the_model(self):
        self.pool.check_invariants()
        assert list(self.pool.ref_counts) == self.references
        pairs = list(zip(self.references, self.cached, strict=True))
        free = {block for block, (count, cached) in enumerate(pairs) if not count and not cached}
        assert set(self.pool.free_list()) == free
        assert self.pool.num_evictable_blocks == sum(cached and not count for count, cached in pairs)
        assert self.pool.num_used_blocks == sum(count > 0 for count, _ in pairs)


TestSharedPool = SharedPoolMachine.TestCase


@pytest.mark.parametrize("cached", [False, True])
def test_a_list_with_one_wrong_block_is_refused_as_a_whole(cached):
    pool = BlockPool(4)
    right, _ = pool.get_new_blocks(2)
    if cached:
        pool.cache([right])
    with pytest.raises(ValueError, match="block 3"):
        (pool.uncache if cached else pool.cache)([right, 3])
    assert pool.cached == bytes([cached, 0, 0, 0])
    pool.check_invariants()


pools = st.sampled_from([BlockPool, NamedPool])
wrong_lists = st.lists(st.integers(-2, 8), max_size=6)


@given(
    pool_class=pools, operation=st.sampled_from(["take", "touch", "free", "cache", "uncache"]), data=st.data()
)
def test_a_list_of_blocks_is_taken_as_a_whole_or_refused_as_a_whole(pool_class, operation, data):
    pool = pool_class(6)
    if pool_class is BlockPool:
        pool.get_new_blocks(4)
        pool.touch([1, 2])
        pool.cache([0, 2])
        pool.free_blocks([0])
        names = {"free": "free_blocks", "take": "touch"}
    else:
        pool.take([0, 1, 2, 3])
        pool.touch([1, 2])
        names = {"free": "release", "cache": "take", "uncache": "release"}
    before = vars(copy.deepcopy(pool))
    blocks = data.draw(wrong_lists)
    try:
        getattr(pool, names.get(operation, operation))(blocks)
    except (ValueError, IndexError):
        assert vars(pool) == before
    pool.check_invariants()


@pytest.mark.parametrize("num_blocks", [0, -1, True, 2.0, "8", None])
def test_a_pool_of_no_blocks_is_refused(num_blocks):
    with pytest.raises(ValueError, match="num_blocks must be an integer of at least 1"):
        BlockPool(num_blocks)


@pytest.mark.parametrize("damage", ["leak", "duplicate", "stray"])
def test_the_check_of_invariants_can_fail(damage):
    pool = BlockPool(4)
    pool.get_new_blocks(2)
    if damage == "leak":
        pool.ref_counts[0] = 0
    elif damage == "duplicate":
        pool.free_blocks([0])
        pool._ring[pool._head] = 3
    else:
        pool._ring[pool._head] = 9
    with pytest.raises(AssertionError):
        pool.check_invariants()
