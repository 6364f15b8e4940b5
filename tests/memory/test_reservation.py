"""What is reserved is there when it is needed, copies are complete, and everything is freed."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from minivllm.memory.allocators import BASELINES, make_baseline
from minivllm.memory.cache_manager import Admission, Span
from minivllm.memory.waste import Progress, memory_shares
from minivllm.trace.events import BlocksAllocated
from tests.memory.strip_machine import MAX_MODEL_LEN, MAX_NUM_SEQS, StripMachine


def make(allocator, num_blocks, block_size, emit=None, max_model_len=MAX_MODEL_LEN):
    return make_baseline(
        allocator,
        num_blocks=num_blocks,
        block_size=block_size,
        max_model_len=max_model_len,
        max_num_seqs=MAX_NUM_SEQS,
        emit=emit,
    )


def admit(manager, admission):
    """Admit a sequence, and compute none of its tokens yet."""
    return manager.allocate_slots([Span(admission.seq_id, 0, 0)], admission)


class ReservationMachine(StripMachine):
    def write(self, request, spans):
        written = super().write(request, spans)
        assert written, "nothing fails inside a reservation"
        return written


class ContiguousMachine(ReservationMachine):
    def make(self, num_blocks, block_size, emit):
        return make("contiguous", num_blocks, block_size, emit)


class OracleMachine(ReservationMachine):
    def make(self, num_blocks, block_size, emit):
        return make("oracle", num_blocks, block_size, emit)


class BuddyMachine(ReservationMachine):
    def make(self, num_blocks, block_size, emit):
        return make("buddy", max(32, num_blocks), block_size, emit)


TestContiguous = ContiguousMachine.TestCase
TestOracle = OracleMachine.TestCase
TestBuddy = BuddyMachine.TestCase


@pytest.mark.parametrize("allocator", ["contiguous", "oracle", "buddy"])
def test_of_the_guests_of_a_strip_the_one_that_reads_furthest_takes_it_over(allocator):
    """Another would write over what this one reads."""
    manager = make(allocator, 96, 1)
    assert admit(manager, Admission(0, [1, 2, 3, 4], 9, max_num_sequences=3))
    assert manager.allocate_slots([Span(0, 0, 4)])
    for guest, num_blocks in ((1, 1), (2, 3)):
        manager.share(0, guest, num_blocks)
    read = manager.tables[2].blocks.tolist()
    manager.free(0)
    mapped = {block for table in manager.tables.values() for block in table.blocks}
    held = len(mapped) + sum(promise.num_blocks for promise in manager.promises())
    assert held + manager.num_free_blocks == 96
    assert manager.allocate_slots([Span(1, 1, 4), Span(2, 3, 5)])
    assert manager.tables[2].blocks.tolist()[:3] == read, "it needs no copy"
    assert not set(manager.tables[1].blocks) & set(manager.tables[2].blocks)
    manager.check_invariants()


@pytest.mark.parametrize(
    ("allocator", "strip"),
    # 5 tokens, up to 16 whose keys are kept, blocks of 2: 24, 16, and 5 + 2^4 = 21 → 11 blocks → 2^4
    [("contiguous", range(12)), ("oracle", range(8)), ("buddy", range(16))],
)
def test_how_much_is_reserved(allocator, strip):
    events = []
    manager = make(allocator, 40, 2, events.append)
    assert admit(manager, Admission(0, [1] * 5, 17))
    assert events == [BlocksAllocated(0, tuple(strip))]
    assert manager.tables[0].blocks.tolist() == list(strip)
    assert manager.num_free_blocks == 40 - len(strip) == round(40 * (1 - manager.usage))
    assert manager.max_blocks(5, 16, 1) >= len(strip)
    assert manager.allocate_slots([Span(0, 0, 5)]) and len(events) == 1, "only a mark moves"


@example(
    allocator="buddy", prompt=8, output=9, done=1, max_num_sequences=1
)  # 8 + 8, and later 9 + 8: 17 blocks
@given(
    allocator=st.sampled_from(["contiguous", "oracle", "buddy"]),
    prompt=st.integers(1, 20),
    output=st.integers(1, 20),
    done=st.integers(0, 20),
    max_num_sequences=st.integers(1, 3),
)
def test_a_request_never_reserves_more_than_max_blocks(allocator, prompt, output, done, max_num_sequences):
    """Whenever it has to start again: `max_blocks` is what decides whether it would wait for ever."""
    output, done = min(output, MAX_MODEL_LEN - prompt + 1), min(done, output - 1, MAX_MODEL_LEN - prompt)
    manager = make(allocator, 128, 1)
    assert admit(manager, Admission(0, [1] * (prompt + done), prompt + output, max_num_sequences))
    reserved = 128 - manager.num_free_blocks
    assert reserved <= manager.max_blocks(prompt, prompt + output - 1, max_num_sequences)


def test_strips_for_all_forks_are_reserved_at_once_or_not_at_all():
    manager = make("oracle", 20, 1)
    assert not admit(manager, Admission(0, [1] * 3, 8, 3))
    assert manager.num_free_blocks == 20 and not manager.tables
    assert admit(manager, Admission(0, [1] * 3, 7, 3))
    assert manager.num_free_blocks == 2 and len(manager.tables[0]) == 6
    assert sum(promise.num_blocks for promise in manager.promises()) == 12


def test_a_pruned_beams_strip_is_used_by_the_next_fork_and_only_what_is_written_is_copied():
    manager = make("oracle", 20, 2)
    manager.allocate_slots([Span(0, 0, 3)], Admission(0, [1] * 3, 11, 2))
    for child in range(1, 4):
        manager.fork(child - 1, child)
        assert not manager.take_moves(), "nothing is copied before a sequence writes"
        assert manager.allocate_slots([Span(child - 1, 3, 4), Span(child, 3, 4)])
        moves = manager.take_moves()
        assert len(moves) == 2 and {move.kind for move in moves} == {"copy"}
        manager.free(child - 1)
    assert manager.num_free_blocks == 10


def test_a_child_whose_parent_was_freed_needs_no_copy():
    manager = make("contiguous", 40, 4)
    manager.allocate_slots([Span(0, 0, 3)], Admission(0, [1] * 3, 9, 2))
    manager.fork(0, 1)
    manager.free(0)
    assert manager.allocate_slots([Span(1, 3, 4)]) and manager.take_moves() == ()


def test_a_gap_that_is_too_small_is_external_waste():
    """Two strips of 12 in 30 blocks: 6 are free and of no use; 10 of each 24 tokens are there."""
    manager = make("contiguous", 30, 2)
    lengths = {}
    for seq in (0, 1):
        manager.allocate_slots([Span(seq, 0, 10)], Admission(seq, [1] * 10, 17))
        lengths[seq] = Progress(10, 16)
    assert not admit(manager, Admission(2, [1], 2))
    shares = memory_shares(60, 12, manager.tables, lengths, head_waits=True)
    assert shares == pytest.approx((20 / 60, 12 / 60, 16 / 60, 12 / 60, 0))


@given(tables=st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), max_size=5), waits=st.booleans())
def test_waste_is_counted_the_same_with_and_without_looking_at_each_block(tables, waits):
    manager = make("contiguous", 40, 4)
    lengths = {}
    for seq, (filled, more) in enumerate(tables):
        filled = min(filled, MAX_MODEL_LEN)
        admit(manager, Admission(seq, [1], 24))
        lengths[seq] = Progress(filled, min(filled + more, MAX_MODEL_LEN))
    free = manager.num_free_blocks * 4
    one, other = (
        memory_shares(160, free, manager.tables, lengths, head_waits=waits, are_shared=are_shared)
        for are_shared in (True, False)
    )
    assert one == other and sum(one) == pytest.approx(1)
    assert one.effective == sum(length.filled for length in lengths.values()) / 160


def test_waste_refuses_books_that_do_not_add_up():
    manager = make("oracle", 20, 2)
    admit(manager, Admission(0, [1], 5))
    with pytest.raises(ValueError, match="4 slots are held and 40 are free: together that is not 40"):
        memory_shares(40, 40, manager.tables, {0: Progress(1, 4)}, head_waits=False)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"allocator": "slab"},
            "allocator must be one of 'contiguous', 'oracle', 'oracle_buddy', 'buddy', 'virtual_memory'",
        ),
        ({"allocator": "contiguous", "num_blocks": 5}, "num_blocks must be at least 6, because every"),
        ({"num_blocks": 0}, "num_blocks must be an integer of at least 1"),
        ({"block_size": True}, "block_size must be an integer of at least 1"),
        ({"max_model_len": 0}, "max_model_len must be an integer of at least 1"),
        ({"allocator": "virtual_memory", "max_num_seqs": 0}, "max_num_seqs must be an integer"),
        ({"allocator": "virtual_memory", "blocks_per_commit": 0}, "blocks_per_commit must be an integer"),
    ],
)
def test_bad_numbers_are_refused_by_name(arguments, message):
    defaults = dict(allocator="oracle", num_blocks=9, block_size=4, max_model_len=24, max_num_seqs=2)
    with pytest.raises(ValueError, match=message):
        make_baseline(**{**defaults, **arguments})


@pytest.mark.parametrize("allocator", BASELINES)
def test_swapping_is_declined_with_a_reason(allocator):
    manager = make(allocator, 40, 4)
    admit(manager, Admission(0, [1], 5))
    swapped = manager.swap_out([0])
    assert not swapped.is_done and "no swap space" in swapped.reason
    assert 0 in manager.tables and not manager.is_swapped(0)
