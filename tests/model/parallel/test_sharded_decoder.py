"""Ranks together compute what one decoder does, and how many they are makes no bit of a difference."""

from array import array

import pytest
import torch

from minivllm.executor.attention.metadata import build_metadata
from minivllm.executor.attention.torch_backend import TorchAttention
from minivllm.executor.kv_storage import KVStorage
from minivllm.executor.runners.eager import EagerRunner
from minivllm.model.config import ModelConfig
from minivllm.model.load import load_decoder
from minivllm.model.parallel.layout import Grid, share_of
from minivllm.model.parallel.load import load_share
from minivllm.model.parallel.peers import Alone
from minivllm.scheduling.plan import ScheduledSequence, StepPlan
from tests.executor.distributed.thread_ranks import run_ranks
from tests.model.conftest import random_tokens

CPU = torch.device("cpu")
SIX = {"hidden_size": 48, "num_attention_heads": 6, "num_key_value_heads": 2}
ONE_KV_HEAD = {"num_attention_heads": 4, "num_key_value_heads": 1}
CASES = [
    ("llama", {**SIX, "attention_bias": True, "mlp_bias": True}, 2, [(2, 1), (1, 2), (2, 2)]),
    ("mistral", {**ONE_KV_HEAD, "vocab_size": 4099, "sliding_window": 5}, 4, [(2, 1), (4, 1), (2, 2)]),
    ("qwen2", {**SIX, "tie_word_embeddings": True, "vocab_size": 4099}, 6, [(3, 1), (6, 1)]),
    ("qwen3", {"num_hidden_layers": 5, "intermediate_size": 81}, 4, [(2, 1), (4, 1), (1, 2), (1, 3)]),
]


def run(decoder, plans):
    """Logits of all plans, and what they left in the cache."""
    storage = KVStorage(decoder.config, 8, 4, decoder.dtype, CPU)
    storage.cells.fill_(float("nan"))
    runner = EagerRunner(decoder, TorchAttention(decoder.config, storage))
    with torch.inference_mode():
        return [runner.run(build_metadata(plan, 4), plan.num_padding_tokens) for plan in plans]


def make_plans():
    """Two prompts, one of them in two chunks, then a decode of both, and one with padding."""
    first, second = random_tokens(11), random_tokens(5, seed=1)
    tables = [array("i", [3, 0, 6, 7]), array("i", [1, 5, 2])]

    def plan(step, *items, num_padding=0):
        scheduled = (
            ScheduledSequence(number, start, array("i", tokens), tables[number], len(tokens))
            for number, start, tokens in items
        )
        return StepPlan(step, tuple(scheduled), num_padding_tokens=num_padding)

    return [
        plan(0, (0, 0, first[:7]), (1, 0, second)),
        plan(1, (0, 7, first[7:])),
        plan(2, (0, 11, [5]), (1, 5, [9])),
        plan(3, (0, 12, [0]), (1, 6, [96]), num_padding=3),
    ]


@pytest.mark.parametrize(("family", "changes", "num_parts", "grids"), CASES, ids=[case[0] for case in CASES])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_two_and_four_ranks_give_the_same_bits(make_checkpoint, family, changes, num_parts, grids, dtype):
    folder, _ = make_checkpoint(family, **changes)
    config, plans = ModelConfig.from_folder(folder), make_plans()
    alone = load_share(folder, share_of(config, Grid(), 0, num_parts), dtype, CPU, Alone())
    expected = run(alone, plans)
    for tensor, pipeline in grids:
        grid = Grid(1, pipeline, tensor)

        def work(rank, peers, grid=grid):
            share = share_of(config, grid, rank, num_parts)
            return run(load_share(folder, share, dtype, CPU, peers), plans)

        logits = run_ranks(grid, work)[0]
        for ours, theirs in zip(logits, expected, strict=True):
            assert torch.equal(ours, theirs), grid


@pytest.mark.parametrize(("family", "changes", "num_parts", "grids"), CASES, ids=[case[0] for case in CASES])
def test_parts_together_are_the_whole_model(make_checkpoint, family, changes, num_parts, grids):
    folder, _ = make_checkpoint(family, **changes)
    config, plans = ModelConfig.from_folder(folder), make_plans()
    whole = load_decoder(folder, config, torch.float64, CPU)
    alone = load_share(folder, share_of(config, Grid(), 0, num_parts), torch.float64, CPU, Alone())
    for ours, theirs in zip(run(alone, plans), run(whole, plans), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-9, rtol=1e-9)


def test_ranks_share_out_the_weights_and_what_both_need_is_little(make_checkpoint):
    folder, _ = make_checkpoint(hidden_size=128, intermediate_size=512, vocab_size=1024)
    config = ModelConfig.from_folder(folder)
    whole = load_decoder(folder, config, torch.float32, CPU).num_bytes
    for tensor, pipeline in ((2, 1), (4, 1), (1, 2), (2, 2)):
        grid = Grid(1, pipeline, tensor)
        shares = [share_of(config, grid, rank, 4) for rank in range(grid.size)]
        own = [load_share(folder, share, torch.float32, CPU, Alone()).num_bytes for share in shares]
        assert max(own) <= 1.05 * whole / grid.size + 2 * 2**10, (tensor, pipeline)
        assert sum(own) >= whole
