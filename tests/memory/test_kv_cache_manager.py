"""The manager grants all or nothing, and every block it grants comes back exactly once."""

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from minivllm.memory import KVCacheManager, blocks_needed
from minivllm.trace.events import BlocksAllocated, BlocksFreed


class ManagerMachine(RuleBasedStateMachine):
    """The manager against a dictionary of lengths; its events are checked as they come."""

    @initialize(num_blocks=st.integers(1, 20), block_size=st.sampled_from([1, 3, 16]))
    def start(self, num_blocks, block_size):
        self.events = []
        self.manager = KVCacheManager(num_blocks, block_size, self.events.append)
        self.lengths: dict[int, int] = {}

    @rule(seq_id=st.integers(0, 4), more=st.integers(0, 60))
    def grow(self, seq_id, more):
        length = self.lengths.get(seq_id, 0) + more
        before = self.manager.pool.free_list()
        held = blocks_needed(self.lengths.get(seq_id, 0), self.manager.block_size)
        missing = blocks_needed(length, self.manager.block_size) - held
        self.events.clear()
        granted = self.manager.allocate_slots(seq_id, length)
        assert granted == (missing <= len(before)), "a request for slots is granted whenever it can be"
        if granted:
            self.lengths[seq_id] = length
            taken = [event for event in self.events if isinstance(event, BlocksAllocated)]
            assert [b for event in taken for b in event.blocks] == list(before[:missing])
        else:
            assert self.manager.pool.free_list() == before, "a refusal changes nothing"
            assert not self.events

    @rule(seq_id=st.integers(0, 4))
    def free(self, seq_id):
        self.events.clear()
        self.manager.free(seq_id)
        length = self.lengths.pop(seq_id, 0)
        freed = sum(len(event.blocks) for event in self.events if isinstance(event, BlocksFreed))
        assert freed == blocks_needed(length, self.manager.block_size)

    @invariant()
    def blocks_in_use_are_those_that_the_lengths_need(self):
        if not hasattr(self, "manager"):
            return
        self.manager.check_invariants()
        used = sum(blocks_needed(n, self.manager.block_size) for n in self.lengths.values())
        assert self.manager.pool.num_used_blocks == used
        assert self.manager.usage == used / self.manager.pool.num_blocks


TestKVCacheManager = ManagerMachine.TestCase
