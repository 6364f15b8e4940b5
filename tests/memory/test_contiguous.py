"""First fit takes the lowest gap that is long enough, and gives back exactly what it took."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minivllm.memory.contiguous import FirstFit
from minivllm.memory.strips import Strip

calls = st.lists(st.one_of(st.integers(1, 12), st.integers(-9, -1)), max_size=60)


def lowest_gap(used, length):
    """By looking at every address."""
    for first in range(len(used) - length + 1):
        if not any(used[first : first + length]):
            return first
    return None


@given(num_blocks=st.integers(1, 40), calls=calls)
def test_it_is_the_lowest_gap_of_a_memory_that_is_looked_at_cell_by_cell(num_blocks, calls):
    """A positive call takes so many blocks, a negative one gives a strip back."""
    memory, used, held = FirstFit(num_blocks), [False] * num_blocks, []
    for call in calls:
        if call > 0:
            expected = lowest_gap(used, call)
            strip = memory.take(call)
            assert (strip and strip.first) == expected
            if strip:
                held.append(strip)
        elif held:
            strip = held.pop(call % len(held))
            memory.give_back(strip)
        else:
            continue
        if strip:
            for block in strip.blocks:
                assert used[block] == (call < 0)
                used[block] = call > 0
        memory.check_invariants()
        assert memory.num_free_blocks == used.count(False)
        assert {block for gap in memory.gaps() for block in gap.blocks} == {
            block for block, is_used in enumerate(used) if not is_used
        }


def test_free_blocks_in_pieces_are_not_enough():
    memory = FirstFit(12)
    strips = [memory.take(3) for _ in range(4)]
    memory.give_back(strips[0])
    memory.give_back(strips[2])
    assert memory.num_free_blocks == 6 and memory.take(4) is None
    memory.give_back(strips[1])
    assert memory.take(9) == Strip(0, 9)


def test_what_is_free_cannot_be_given_back():
    memory = FirstFit(12)
    strip = memory.take(4)
    memory.give_back(strip)
    for wrong in (strip, Strip(2, 1), Strip(11, 3)):
        with pytest.raises(ValueError, match="free already"):
            memory.give_back(wrong)
    memory.take(4)
    with pytest.raises(ValueError, match="blocks 3 to 5 are free already, at least in part"):
        memory.give_back(Strip(3, 3))
    assert memory.num_free_blocks == 8


def test_a_memory_without_blocks_is_refused():
    with pytest.raises(ValueError, match="num_blocks must be an integer of at least 1, got 0"):
        FirstFit(0)
