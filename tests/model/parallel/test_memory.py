"""What a rank keeps, in exact bytes: its share, and what it has besides because several need it."""

import pytest
import torch
from hypothesis import given, settings

from minivllm.executor.kv_storage import bytes_per_block
from minivllm.lab.subjects.shapes import SHAPES
from minivllm.model.config import ModelConfig
from minivllm.model.decoder import Decoder
from minivllm.model.parallel.layout import Grid, choose_parts, share_of, split_model
from minivllm.model.parallel.peers import Alone
from minivllm.model.parallel.sharded_decoder import ShardedDecoder
from tests.model.parallel.test_layout import splits

META = torch.device("meta")
FLOAT = 4
BLOCK_SIZE = 16


def weights(config, grid, num_parts, tied):
    """Bytes of each rank's weights, as the ranks count them; nothing is read."""
    shares = [share_of(config, grid, rank, num_parts) for rank in range(grid.size)]
    return [ShardedDecoder(share, torch.float32, META, Alone(), tied=tied).num_bytes for share in shares]


def caches(config, grid, num_parts):
    """Bytes of each rank's share of a block."""
    shares = [share_of(config, grid, rank, num_parts) for rank in range(grid.size)]
    return [bytes_per_block(share.cache_config, BLOCK_SIZE, torch.float32) for share in shares]


def extra_kv_heads(config, num_parts):
    """KV heads that all parts together have more than the model."""
    return sum(len(part.kv_heads) for part in split_model(config, num_parts)) - config.num_kv_heads


def replicated(config, grid, num_parts, tied):
    """Bytes that all ranks have together and one decoder has not."""
    hidden, layers = config.hidden_size, config.num_layers
    norms = 2 * hidden * layers * (grid.tensor - 1) + hidden * (grid.size - 1)
    padded = -(-config.vocab_size // num_parts) * num_parts
    num_tables = 2 if not tied or grid.pipeline > 1 else 1
    tables = num_tables * padded - (1 if tied else 2) * config.vocab_size
    kv_rows = 2 * extra_kv_heads(config, num_parts) * config.head_dim * layers
    return FLOAT * (norms + tables * hidden + kv_rows * hidden)


@given(splits())
@settings(max_examples=25)
def test_ranks_have_one_decoder_and_what_they_need_twice_and_not_a_byte_more(split):
    config, grid, num_parts = split
    for tied in (False, True):
        whole = Decoder(config, torch.float32, META, tied=tied).num_bytes
        own = weights(config, grid, num_parts, tied)
        assert sum(own) == whole + replicated(config, grid, num_parts, tied)
    kept = caches(config, grid, num_parts)
    each = bytes_per_block(config, BLOCK_SIZE, torch.float32) // config.num_kv_heads
    # Parts of one rank that look at the same KV heads keep them once.
    slots = [share_of(config, grid, rank, num_parts).kv_slots for rank in range(grid.tensor)]
    assert sum(kept) == each * sum(len(heads) for of_rank in slots for heads in of_rank)


@pytest.mark.parametrize("name", ["small", "medium"])
@pytest.mark.parametrize("grid", [Grid(1, 1, 2), Grid(1, 1, 4), Grid(1, 2, 1), Grid(1, 4, 1), Grid(1, 2, 2)])
def test_weights_and_cache_of_a_rank_are_its_share_within_5_percent(name, grid):
    config = ModelConfig.from_dict(SHAPES[name].config())
    num_parts = choose_parts(config, grid)
    norms = FLOAT * config.hidden_size * (1 + 2 * config.num_layers // grid.pipeline)
    table = FLOAT * config.vocab_size * config.hidden_size
    whole = Decoder(config, torch.float32, META, tied=False).num_bytes
    layers = (whole - 2 * table) / grid.size
    for rank, own in enumerate(weights(config, grid, num_parts, tied=False)):
        share = share_of(config, grid, rank, num_parts)
        # The first stage has the embedding and the last one the head: a pipeline divides no table.
        tables = (share.is_first + share.is_last) * table / grid.tensor
        assert abs(own - norms - layers - tables) <= 0.05 * (layers + tables)
    assert set(caches(config, grid, num_parts)) == {
        bytes_per_block(config, BLOCK_SIZE, torch.float32) // grid.size
    }
