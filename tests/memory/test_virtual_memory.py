"""Addresses are reserved, memory is taken page by page against a budget, and is given back."""

from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant

from minivllm.memory.cache_manager import Admission, Span
from minivllm.memory.virtual_memory import VirtualMemoryManager, blocks_per_slot
from tests.memory.strip_machine import MAX_MODEL_LEN, MAX_NUM_SEQS, StripMachine


def make(num_blocks, block_size, emit=None, blocks_per_commit=1, decommit=None):
    return VirtualMemoryManager(
        num_blocks,
        block_size,
        emit,
        max_model_len=MAX_MODEL_LEN,
        max_num_seqs=MAX_NUM_SEQS,
        blocks_per_commit=blocks_per_commit,
        decommit=decommit,
    )


class VirtualMemoryMachine(StripMachine):
    """Beside the accounts of the manager, the set of blocks that are in memory, as decommit calls tell it."""

    @initialize(
        num_blocks=st.integers(8, 60),
        block_size=st.sampled_from([1, 3, 4]),
        unit=st.sampled_from([1, 2, 3]),
    )
    def start(self, num_blocks, block_size, unit):
        self.unit, self.resident = unit, set()
        super().start(num_blocks, block_size)

    def make(self, num_blocks, block_size, emit):
        return make(num_blocks, block_size, emit, self.unit, self.decommit)

    def decommit(self, first, count):
        assert first % self.unit == 0 and count % self.unit == 0, "half a page was given back"
        gone = set(range(first, first + count))
        held = {block for table in self.manager.tables.values() for block in table.blocks}
        assert not gone & held, "memory that a table maps was given back"
        self.resident -= gone

    @invariant()
    def what_is_in_memory_is_what_the_books_say(self):
        if not hasattr(self, "manager"):
            return
        for table in self.manager.tables.values():
            self.resident.update(table.blocks)  # an address is in memory once it is written
        committed = self.total - self.manager.num_free_blocks
        assert committed == len(self.resident) <= self.total
        assert committed / self.manager.num_blocks == self.manager.usage


TestVirtualMemory = VirtualMemoryMachine.TestCase


def test_a_slot_grows_page_by_page_and_all_or_nothing():
    events = []
    manager = make(6, 4, events.append, blocks_per_commit=2)
    first = Admission(0, [1] * 3, 20)
    assert manager.allocate_slots([Span(0, 0, 0)], first) and manager.num_free_blocks == 6
    assert manager.allocate_slots([Span(0, 0, 3)]) and manager.num_free_blocks == 4
    assert manager.allocate_slots([Span(0, 3, 9)]) and manager.tables[0].blocks.tolist() == [0, 1, 2, 3]
    nine_tokens = Admission(1, [1] * 9, 20)
    assert not manager.allocate_slots([Span(1, 0, 1)], nine_tokens), (
        "nine tokens are four blocks, two are free"
    )
    eight = Admission(1, [1] * 8, 20)
    assert not manager.allocate_slots([Span(1, 0, 1)], eight._replace(reserved_blocks=1))
    assert manager.allocate_slots([Span(1, 0, 0)], eight)
    events.clear()
    assert not manager.allocate_slots([Span(1, 0, 8), Span(0, 9, 17)])
    assert not events and manager.num_free_blocks == 2
    assert manager.allocate_slots([Span(1, 0, 8)]) and manager.tables[1].blocks.tolist() == [6, 7]
    manager.check_invariants()


def test_a_fork_needs_memory_for_all_it_copies():
    manager = make(5, 4)
    manager.allocate_slots([Span(0, 0, 10)], Admission(0, [1] * 10, 20, 2))
    manager.fork(0, 1)
    assert not manager.allocate_slots([Span(0, 10, 11), Span(1, 10, 11)])
    assert not manager.take_moves() and manager.num_free_blocks == 2
    assert manager.max_blocks(10, 11, 2) == 6


def test_a_sequence_that_takes_a_slot_over_has_all_the_memory_behind_it():
    """A sibling that shares two blocks of five takes the slot over; its memory is paid for already."""
    given_back = []
    manager = make(8, 4, decommit=lambda *blocks: given_back.append(blocks))
    manager.allocate_slots([Span(0, 0, 20)], Admission(0, [1] * 20, 22, 2))
    manager.share(0, 1, 2)
    manager.free(0)
    assert manager.num_free_blocks == 3 and sum(p.num_blocks for p in manager.promises()) == 3
    assert manager.allocate_slots([Span(1, 8, 13)]) and manager.num_free_blocks == 3
    manager.check_invariants()
    manager.free(1)
    assert given_back == [(0, 5)] and manager.num_free_blocks == 8


def test_the_longest_sequence_fits_into_a_slot_of_whole_pages():
    assert blocks_per_slot(24, 4) == 6
    assert blocks_per_slot(25, 4) == 7
    assert blocks_per_slot(25, 4, 4) == 8
