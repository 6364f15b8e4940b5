"""The buddy allocator rounds to powers of two, aligns to them, and forgets no block."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minivllm.memory.buddy import Buddy, next_power_of_two
from minivllm.memory.strips import Strip

calls = st.lists(st.one_of(st.integers(1, 20), st.integers(-9, -1)), max_size=60)


def chunks_of(num_blocks):
    """The powers of two that the memory consists of: (first, length)."""
    first = 0
    for bit in reversed(range(num_blocks.bit_length())):
        if num_blocks >> bit & 1:
            yield first, 1 << bit
            first += 1 << bit


def free_place(used, num_blocks, length):
    """Is any aligned run of `length` blocks free, seen cell by cell?"""
    return any(
        not any(used[first : first + length])
        for start, chunk in chunks_of(num_blocks)
        for first in range(start, start + chunk - length + 1, length)
    )


@given(num_blocks=st.integers(1, 45), calls=calls)
def test_it_refuses_only_when_no_aligned_run_is_free(num_blocks, calls):
    """A positive call takes so many blocks, a negative one gives a strip back."""
    memory, used, held = Buddy(num_blocks), [False] * num_blocks, []
    for call in calls:
        if call > 0:
            length = next_power_of_two(call)
            possible = free_place(used, num_blocks, length)
            strip = memory.take(call)
            assert (strip is not None) == possible
            if strip:
                assert strip.num_blocks == length and strip.first % length == 0
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
    for strip in held:
        memory.give_back(strip)
    assert memory.gaps() == tuple(sorted(Strip(*chunk) for chunk in chunks_of(num_blocks)))


@pytest.mark.parametrize(("count", "power"), [(0, 1), (1, 1), (2, 2), (3, 4), (4, 4), (5, 8), (1025, 2048)])
def test_the_next_power_of_two(count, power):
    assert next_power_of_two(count) == power


def test_a_strip_is_cut_into_buddies_and_joined_again():
    memory = Buddy(16)
    small = memory.take(3)
    assert small == Strip(0, 4) and memory.gaps() == (Strip(4, 4), Strip(8, 8))
    assert memory.take(8) == Strip(8, 8) and memory.take(5) is None
    memory.give_back(small)
    assert memory.gaps() == (Strip(0, 8),)


def test_what_was_not_taken_cannot_be_given_back():
    memory = Buddy(8)
    strip = memory.take(2)
    for wrong in (Strip(0, 4), Strip(1, 1), Strip(4, 2)):
        with pytest.raises(ValueError, match="no strip of"):
            memory.give_back(wrong)
    memory.give_back(strip)
    with pytest.raises(ValueError, match="no strip of 2 blocks was taken at block 0"):
        memory.give_back(strip)
    assert memory.take(9) is None and memory.num_free_blocks == 8
