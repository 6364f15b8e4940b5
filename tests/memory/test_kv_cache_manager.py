"""What the manager answers, in single cases; all of them together are in `test_sharing.py`."""

import pytest

from minivllm.memory import KVCacheManager
from minivllm.memory.block_move import BlockMove
from minivllm.memory.cache_manager import Admission, Span, SwapOut
from minivllm.memory.make_cache_manager import make_prefix_cache
from minivllm.trace.events import (
    BlockCopied,
    BlocksAllocated,
    BlocksEvicted,
    BlocksFreed,
    BlocksShared,
    BlocksSwappedIn,
    BlocksSwappedOut,
    HostBlocksFreed,
)


def make(num_blocks=10, block_size=4, **more):
    events = []
    return KVCacheManager(num_blocks, block_size, events.append, **more), events


def admit(manager, admission):
    """As the scheduler does, with all tokens in the first span: how many were computed already, or None."""
    computed = manager.get_computed_blocks(admission)
    num_computed = len(computed) * manager.block_size
    span = Span(admission.seq_id, num_computed, len(admission.token_ids))
    return num_computed if manager.allocate_slots([span], admission, computed) else None


def start(manager, seq_id, num_tokens):
    """A sequence with so many computed tokens."""
    assert admit(manager, Admission(seq_id, range(num_tokens), num_tokens)) == 0


def test_blocks_are_taken_only_as_they_are_needed_and_come_back_from_the_end():
    manager, events = make()
    start(manager, 0, 5)
    assert manager.allocate_slots([Span(0, 5, 8)]) and len(events) == 1, "there was room in the second block"
    assert manager.allocate_slots([Span(0, 8, 9)])
    assert manager.usage == 0.3
    manager.free(0)
    assert events == [BlocksAllocated(0, (0, 1)), BlocksAllocated(0, (2,)), BlocksFreed(0, (2, 1, 0))]
    manager.free(0)
    assert len(events) == 3, "nothing held is nothing to give back"


def test_all_or_nothing_for_all_spans_together():
    manager, events = make(num_blocks=4)
    start(manager, 0, 4)
    start(manager, 1, 4)
    before = manager.pool.free_list(), len(events)
    assert not manager.allocate_slots([Span(0, 4, 8), Span(1, 4, 12)]), "three blocks, and there are two"
    assert (manager.pool.free_list(), len(events)) == before
    assert manager.allocate_slots([Span(0, 4, 8), Span(1, 4, 8)])


def test_an_admission_needs_room_for_all_its_tokens_and_for_others():
    manager, _ = make(num_blocks=4)
    first = [Span(0, 0, 1)]
    assert not manager.allocate_slots(first, Admission(0, range(12), 20, reserved_blocks=2))
    assert not manager.allocate_slots(first, Admission(0, range(12), 20, extra_blocks=2))
    assert not manager.tables
    assert manager.allocate_slots(first, Admission(0, range(12), 9_999, reserved_blocks=1)), (
        "nothing is reserved"
    )
    assert list(manager.tables[0].blocks) == [0], "and only the first span is allocated"


def test_each_writer_but_the_last_gets_a_copy_of_a_shared_block():
    manager, events = make()
    start(manager, 0, 6)
    manager.fork(0, 1)
    manager.fork(0, 2)
    assert list(manager.pool.ref_counts[:2]) == [3, 3]
    assert manager.allocate_slots([Span(seq, 6, 7) for seq in (0, 1, 2)])
    assert manager.take_moves() == (BlockMove("copy", 1, 2), BlockMove("copy", 1, 3))
    assert [list(manager.tables[seq].blocks) for seq in (0, 1, 2)] == [[0, 2], [0, 3], [0, 1]]
    assert [event for event in events if isinstance(event, BlockCopied)] == [
        BlockCopied(0, 1, 1, 2),
        BlockCopied(1, 1, 1, 3),
    ]
    assert manager.take_moves() == (), "moves are told once"


def test_a_full_block_stays_shared():
    manager, _ = make()
    start(manager, 0, 8)
    manager.fork(0, 1)
    assert manager.allocate_slots([Span(0, 8, 9), Span(1, 8, 9)])
    assert manager.take_moves() == ()
    assert list(manager.pool.ref_counts[:4]) == [2, 2, 1, 1]


def test_copies_need_room_too():
    manager, _ = make(num_blocks=2)
    start(manager, 0, 6)
    manager.fork(0, 1)
    assert not manager.allocate_slots([Span(0, 6, 7), Span(1, 6, 7)])
    manager.free(1)
    assert manager.allocate_slots([Span(0, 6, 7)])


def test_without_sharing_a_fork_copies_everything():
    manager, _ = make(copy_on_fork=True)
    start(manager, 0, 10)
    manager.fork(0, 1)
    assert manager.max_blocks(10, 12, 2) == 6
    assert manager.allocate_slots([Span(0, 10, 11), Span(1, 10, 11)])
    assert len(manager.take_moves()) == 3
    assert not set(manager.tables[0].blocks) & set(manager.tables[1].blocks)


def test_a_request_is_swapped_as_a_whole_and_its_shared_blocks_travel_once():
    manager, events = make(num_host_blocks=4)
    start(manager, 0, 8)
    manager.fork(0, 1)
    assert manager.allocate_slots([Span(0, 8, 9), Span(1, 8, 9)])
    manager.take_moves()
    events.clear()
    assert manager.swap_out([0, 1]).is_done
    assert manager.take_moves() == tuple(BlockMove("swap_out", block, block) for block in range(4))
    assert list(manager.swap_space.pool.ref_counts) == [2, 2, 1, 1]
    assert events == [
        BlocksSwappedOut(0, (2, 1, 0), (2, 1, 0)),
        BlocksSwappedOut(1, (3, 1, 0), (3, 1, 0)),
    ]
    assert not manager.tables and manager.num_free_blocks == 10 and manager.is_swapped(1)
    assert not manager.swap_in([Span(0, 9, 10), Span(1, 9, 10)], reserved_blocks=7)
    assert manager.swap_in([Span(0, 9, 10), Span(1, 9, 10)], reserved_blocks=6)
    assert [event for event in events if isinstance(event, BlocksSwappedIn)] == [
        BlocksSwappedIn(0, (0, 1, 2), (4, 5, 6)),
        BlocksSwappedIn(1, (0, 1, 3), (4, 5, 7)),
    ]
    assert [move.kind for move in manager.take_moves()] == ["swap_in"] * 4
    manager.check_invariants()


def test_too_little_swap_space_is_a_reason_in_words_and_changes_nothing():
    manager, events = make(num_host_blocks=1)
    start(manager, 0, 8)
    swapped = manager.swap_out([0])
    assert not swapped.is_done
    assert swapped.reason == "2 blocks do not fit into the 1 that are free in the swap space"
    assert 0 in manager.tables and manager.take_moves() == () and len(events) == 1
    assert make()[0].swap_out([]) == SwapOut(False, "there is no swap space")


def test_a_sibling_that_holds_nothing_yet_has_nothing_to_swap():
    manager, events = make(num_host_blocks=4)
    start(manager, 0, 3)
    manager.share(0, 1, 0)
    assert manager.swap_out([0, 1]).is_done
    assert not manager.is_swapped(1) and not manager.tables
    assert [event.seq for event in events if isinstance(event, BlocksSwappedOut)] == [0]
    manager.free(1)
    manager.free(0)
    assert isinstance(events[-1], HostBlocksFreed)
    assert manager.swap_space.pool.num_free_blocks == 4


def test_a_sibling_shares_whole_blocks_of_the_first():
    manager, events = make()
    start(manager, 0, 9)
    manager.share(0, 1, 2)
    assert events[-1] == BlocksShared(1, (0, 1), "sibling")
    assert list(manager.pool.ref_counts[:3]) == [2, 2, 1]
    manager.check_invariants()


def cached_pair(form):
    """A pool of 6 blocks in which two prompts of 2 blocks are cached; the first was used less recently."""
    manager, events = make(num_blocks=6, prefix_cache=make_prefix_cache(form, 4))
    for seq_id, tokens in enumerate((range(8), range(100, 108))):
        assert admit(manager, Admission(seq_id, tokens, 8)) == 0
        manager.cache_full_blocks(seq_id, tokens, 8)
        manager.commit()
    manager.free(0)
    manager.free(1)
    assert (manager.pool.num_free_blocks, manager.pool.num_evictable_blocks) == (2, 4)
    return manager, events


@pytest.mark.parametrize("form", ["hash", "radix"])
def test_asking_and_being_refused_change_nothing_recency_included(form):
    """The first prompt is asked for, and refused, again and again; it is evicted first all the same."""
    manager, events = cached_pair(form)
    again = Admission(2, [*range(8), 1], max_total_tokens=10, reserved_blocks=4)
    before = manager.pool.free_list(), list(manager.pool.ref_counts), len(events)
    for _ in range(3):
        computed = manager.get_computed_blocks(again)
        assert list(computed) == [0, 1]
        assert not manager.allocate_slots([Span(2, 8, 9)], again, computed)
    assert (manager.pool.free_list(), list(manager.pool.ref_counts), len(events)) == before
    assert not manager.tables and manager.take_moves() == ()
    assert admit(manager, Admission(3, range(200, 216), 17)) == 0
    assert [event.blocks for event in events if isinstance(event, BlocksEvicted)] == [(1, 0)]
    manager.check_invariants()


@pytest.mark.parametrize("form", ["hash", "radix"])
def test_computed_blocks_of_an_admitted_request_were_used_just_now(form):
    manager, events = cached_pair(form)
    again = Admission(2, [*range(8), 1], max_total_tokens=10, reserved_blocks=3)
    assert admit(manager, again) == 8
    assert events[-2:] == [BlocksShared(2, (0, 1), "cache"), BlocksAllocated(2, (4,))]
    manager.free(2)
    assert admit(manager, Admission(3, range(200, 216), 17)) == 0
    assert [event.blocks for event in events if isinstance(event, BlocksEvicted)] == [(3, 2)]
    manager.check_invariants()


@pytest.mark.parametrize("form", ["hash", "radix"])
def test_computed_blocks_that_were_evicted_meanwhile_are_a_mistake_and_change_nothing(form):
    manager, _ = cached_pair(form)
    again = Admission(2, [*range(8), 1], max_total_tokens=10)
    computed = manager.get_computed_blocks(again)
    manager.reset_prefix_cache()
    with pytest.raises(AssertionError, match="a computed block has been evicted"):
        manager.allocate_slots([Span(2, 8, 9)], again, computed)
    assert not manager.tables and manager.pool.num_free_blocks == 6
    manager.check_invariants()


def test_what_uses_no_cache_or_has_another_salt_finds_nothing():
    manager, _ = cached_pair("hash")
    tokens = [*range(8), 1]
    assert manager.get_computed_blocks(Admission(2, tokens, 10)) == [0, 1]
    assert not manager.get_computed_blocks(Admission(2, tokens, 10, use_cache=False))
    assert not manager.get_computed_blocks(Admission(2, tokens, 10, salt="x"))


@pytest.mark.parametrize(
    ("spans", "message"),
    [
        ([Span(0, 0, 1)], "sequence 0 is admitted twice"),
        ([Span(2, 0, 1)], "an admission is about one sequence"),
        ([Span(1, 0, 1), Span(0, 6, 7)], "an admission is about one sequence"),
        ([Span(1, 4, 5)], "cannot be 4 … 5: it has 6 tokens, 0 of them computed"),
        ([Span(1, 0, 7)], "cannot be 0 … 7"),
    ],
)
def test_an_admission_that_does_not_fit_its_span_is_a_mistake_and_changes_nothing(spans, message):
    manager, events = make()
    start(manager, 0, 6)
    before = manager.pool.free_list(), len(events), set(manager.tables)
    admission = Admission(0 if message.endswith("twice") else 1, range(6), 10)
    with pytest.raises(AssertionError, match=message):
        manager.allocate_slots(spans, admission)
    assert (manager.pool.free_list(), len(events), set(manager.tables)) == before


def test_sharing_and_copying_at_the_same_time_is_refused():
    with pytest.raises(ValueError, match="copy_on_fork must be False where prefix_cache shares blocks"):
        make(prefix_cache=make_prefix_cache("hash", 4), copy_on_fork=True)


@pytest.mark.parametrize("block_size", [0, -1, 1.5, True])
def test_a_block_size_that_cannot_be_is_refused(block_size):
    with pytest.raises(ValueError, match="block_size must be an integer of at least 1"):
        KVCacheManager(4, block_size)
