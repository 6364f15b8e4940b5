"""Moves in batches do what moves one by one do, whatever their order and whichever depend on each other."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from minivllm.executor.block_mover import BlockMover, independent_batches
from minivllm.executor.kv_storage import KVStorage
from minivllm.memory.block_move import BlockMove
from tests.executor.test_attention import model

NUM_BLOCKS, NUM_HOST_BLOCKS = 5, 4
SIZES = {"copy": (NUM_BLOCKS, NUM_BLOCKS), "swap_out": (NUM_BLOCKS, NUM_HOST_BLOCKS)}
SIZES["swap_in"] = (NUM_HOST_BLOCKS, NUM_BLOCKS)


@st.composite
def moves(draw):
    kind = draw(st.sampled_from(["copy", "copy", "swap_out", "swap_in"]))
    sources, targets = SIZES[kind]
    return BlockMove(kind, draw(st.integers(0, sources - 1)), draw(st.integers(0, targets - 1)))


def storages(host=True):
    config = model((2, 2), 4, [None, None])
    device = KVStorage(config, NUM_BLOCKS, 3, torch.float64, torch.device("cpu"))
    swap_space = KVStorage(config, NUM_HOST_BLOCKS, 3, torch.float64, torch.device("cpu"))
    generator = torch.Generator().manual_seed(1)
    for storage in (device, swap_space):
        storage.cells.normal_(generator=generator)
    return device, swap_space if host else None


@given(orders=st.lists(moves(), max_size=12))
def test_batches_do_what_single_moves_do(orders):
    device, host = storages()
    expected = {"device": device.cells.clone(), "host": host.cells.clone()}
    for move in orders:
        source = expected["host" if move.kind == "swap_in" else "device"]
        target = expected["host" if move.kind == "swap_out" else "device"]
        target[:, :, move.target] = source[:, :, move.source].clone()
    BlockMover(device, host).carry_out(orders)
    assert torch.equal(device.cells, expected["device"])
    assert torch.equal(host.cells, expected["host"])


@given(orders=st.lists(moves(), max_size=12))
def test_batches_are_the_moves_in_their_order(orders):
    batches = list(independent_batches(orders))
    assert [move for batch in batches for move in batch] == orders
    for batch in batches:
        assert len({move.kind for move in batch}) == 1
        assert len({move.target for move in batch}) == len(batch)


def test_moves_that_do_not_meet_go_together():
    orders = [BlockMove("copy", 0, 1), BlockMove("copy", 0, 2), BlockMove("copy", 3, 4)]
    assert list(independent_batches(orders)) == [orders]


def test_a_swap_without_a_swap_space_is_refused():
    device, host = storages(host=False)
    with pytest.raises(ValueError, match="the plan has a swap_out, but this executor has no swap space"):
        BlockMover(device, host).carry_out([BlockMove("swap_out", 0, 0)])
