"""A rank's steps in pieces of 16 rows: nothing of a plan is lost, and what would spoil it is found out."""

from array import array

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from minivllm.executor.distributed.fixed_rows import ROWS, check_rows, in_pieces
from minivllm.model.config import ModelConfig
from minivllm.model.layers import DenseMatrix
from minivllm.model.parallel.layout import Grid, choose_parts, share_of
from minivllm.model.parallel.load import load_share
from minivllm.model.parallel.peers import Alone
from minivllm.model.tiny import MODEL_PATH
from minivllm.scheduling.plan import ScheduledSequence, StepPlan

items = st.lists(st.tuples(st.integers(0, 40), st.integers(1, 40), st.integers(0, 40)), max_size=5)


@given(items)
def test_pieces_have_all_tokens_in_order_each_with_its_position_and_its_logits(given_items):
    plan = StepPlan(
        3,
        tuple(
            ScheduledSequence(
                seq, start, array("i", range(start, start + count)), array("i"), min(wanted, count)
            )
            for seq, (start, count, wanted) in enumerate(given_items)
        ),
    )
    pieces = [*in_pieces(plan)]
    assert all(p.total_num_scheduled_tokens + p.num_padding_tokens == ROWS for p in pieces)
    assert not any(p.num_padding_tokens for p in pieces[:-1])

    def rows(plans):
        return [
            (item.seq_id, item.start + place, token, place >= item.num_tokens - item.num_logits)
            for plan in plans
            for item in plan.scheduled
            for place, token in enumerate(item.token_ids)
        ]

    assert rows(pieces) == rows([plan])


def test_every_stage_is_tried_and_only_what_it_computes():
    config = ModelConfig.from_folder(MODEL_PATH)
    grid = Grid(1, 2, 1)
    for rank in range(2):
        share = share_of(config, grid, rank, choose_parts(config, grid, None))
        decoder = load_share(MODEL_PATH, share, torch.float32, torch.device("cpu"), Alone())
        if not share.is_last:
            decoder.norm.weight.fill_(torch.nan)  # nothing was loaded into it
        check_rows(decoder)


def test_a_library_whose_sums_depend_on_the_place_of_a_row_is_found_out(monkeypatch):
    config = ModelConfig.from_folder(MODEL_PATH)
    share = share_of(config, Grid(), 0, choose_parts(config, Grid(), 2))
    decoder = load_share(MODEL_PATH, share, torch.float32, torch.device("cpu"), Alone())
    check_rows(decoder)
    product = DenseMatrix.product

    def uneven(self, x, bias=None, added=None):
        found = product(self, x, bias, added)
        found[len(x) // 2 :] *= 1 + 2e-7
        return found

    monkeypatch.setattr(DenseMatrix, "product", uneven)
    with pytest.raises(ValueError, match="batch_invariant must be False with several ranks"):
        check_rows(decoder)
