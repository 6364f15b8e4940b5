"""Every block is free or in use, never both, never neither, whatever is done to the pool."""

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from minivllm.memory import BlockPool, OutOfBlocksError


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
        assert blocks == self.free[:count], "blocks are handed out in the order in which they came free"
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
    """References and keeping: a block is free when nobody maps it and nobody keeps it."""

    def __init__(self):
        super().__init__()
        self.pool = BlockPool(6)
        self.references = [0] * 6
        self.kept = [False] * 6

    @rule(block=st.integers(0, 5))
    def touch(self, block):
        if self.references[block] or self.kept[block]:
            self.pool.touch([block])
            self.references[block] += 1
        else:
            with pytest.raises(ValueError, match=f"block {block} is free: it cannot be shared"):
                self.pool.touch([block])

    @precondition(lambda self: self.pool.num_free_blocks)
    @rule()
    def take(self):
        (block,) = self.pool.get_new_blocks(1)
        assert not self.references[block] and not self.kept[block]
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
    def keep(self, block):
        if self.references[block] and not self.kept[block]:
            self.pool.keep([block])
            self.kept[block] = True
        else:
            with pytest.raises(ValueError, match=f"block {block} cannot be kept"):
                self.pool.keep([block])

    @rule(block=st.integers(0, 5))
    def unkeep(self, block):
        if self.kept[block]:
            self.pool.unkeep([block])
            self.kept[block] = False
        else:
            with pytest.raises(ValueError, match=f"block {block} is not kept"):
                self.pool.unkeep([block])

    @invariant()
    def agrees_with_the_model(self):
        self.pool.check_invariants()
        assert list(self.pool.ref_counts) == self.references
        pairs = list(zip(self.references, self.kept, strict=True))
        free = {block for block, (count, kept) in enumerate(pairs) if not count and not kept}
        assert set(self.pool.free_list()) == free
        assert self.pool.num_idle_blocks == sum(kept and not count for count, kept in pairs)
        assert self.pool.num_used_blocks == sum(count > 0 for count, _ in pairs)


TestSharedPool = SharedPoolMachine.TestCase


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
