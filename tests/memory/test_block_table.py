"""A block table sends every position to a slot of its own, inside the blocks it holds."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minivllm.memory import BlockTable, blocks_needed

block_sizes = st.sampled_from([1, 2, 7, 16])


@given(num_tokens=st.integers(0, 10_000), block_size=block_sizes)
def test_blocks_needed_is_the_fewest_that_hold_all_tokens(num_tokens, block_size):
    blocks = blocks_needed(num_tokens, block_size)
    assert blocks * block_size >= num_tokens
    assert (blocks - 1) * block_size < num_tokens or blocks == 0


@given(blocks=st.lists(st.integers(0, 99), unique=True, max_size=12), block_size=block_sizes)
def test_slots_are_distinct_and_lie_in_the_tables_blocks(blocks, block_size):
    table = BlockTable(block_size, blocks)
    slots = [table.slot(position) for position in range(table.capacity_tokens)]
    assert len(set(slots)) == len(slots) == len(blocks) * block_size
    assert [slot // block_size for slot in slots] == [block for block in blocks for _ in range(block_size)]
    assert [slot % block_size for slot in slots] == list(range(block_size)) * len(blocks)


@given(num_tokens=st.integers(1, 500), block_size=block_sizes)
def test_a_table_that_grows_on_demand_wastes_less_than_one_block(num_tokens, block_size):
    table = BlockTable(block_size)
    for length in range(1, num_tokens + 1):
        missing = table.missing_blocks(length)
        assert missing in (0, 1), "one more token never needs more than one more block"
        table.append(range(len(table), len(table) + missing))
        assert 0 <= table.capacity_tokens - length < block_size


@pytest.mark.parametrize("position", [-1, 8, 100])
def test_a_position_outside_the_table_is_an_error(position):
    with pytest.raises(IndexError, match=f"position {position} is outside a block table of 8 tokens"):
        BlockTable(4, [3, 5]).slot(position)
