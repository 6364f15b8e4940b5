"""Logits equal `transformers`', whatever the family, the chunking, the company and the place in memory."""

from __future__ import annotations

import random
from array import array
from pathlib import Path
from typing import Any

import pytest
import torch

from minivllm.executor.torch_executor import TorchExecutor
from minivllm.scheduling.plan import ScheduledSequence, StepPlan
from tests.model.conftest import FAMILIES, MakeCheckpoint, Runner, expected_logits, random_tokens

TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-9, torch.float16: 0.03, torch.bfloat16: 0.25}

ROPES: dict[str, dict[str, Any]] = {
    "default": {"rope_type": "default", "rope_theta": 500.0},
    "linear": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0},
    "llama3": {
        "rope_type": "llama3",
        "rope_theta": 1e4,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
    "yarn": {
        "rope_type": "yarn",
        "rope_theta": 1e4,
        "factor": 4.0,
        "original_max_position_embeddings": 64,
    },
    "yarn, mscale": {
        "rope_type": "yarn",
        "rope_theta": 1e4,
        "factor": 4.0,
        "original_max_position_embeddings": 64,
        "mscale": 0.7,
        "mscale_all_dim": 1.3,
        "beta_fast": 16.0,
        "beta_slow": 2.0,
        "truncate": False,
    },
    "dynamic, up to the trained length": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0},
    "longrope, up to the trained length": {
        "rope_type": "longrope",
        "rope_theta": 1e4,
        "original_max_position_embeddings": 150,  # as many tokens as the test's text has
        "short_factor": [1.0, 1.1, 1.3, 1.7, 2.0, 2.5, 3.0, 4.0],
        "long_factor": [2.0] * 8,
    },
    "yarn, attention_factor": {
        "rope_type": "yarn",
        "rope_theta": 1e4,
        "factor": 4.0,
        "original_max_position_embeddings": 64,
        "attention_factor": 1.25,
    },
}

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama, tied": ("llama", {"tie_word_embeddings": True}),
    "llama, biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama, 6/2 heads of 48": (
        "llama",
        {"hidden_size": 96, "num_attention_heads": 6, "head_dim": 48},
    ),
    "llama, one KV head": ("llama", {"num_key_value_heads": 1}),
    "llama, gelu": ("llama", {"hidden_act": "gelu"}),
    "llama, tanh gelu": ("llama", {"hidden_act": "gelu_pytorch_tanh"}),
    "mistral, no window": ("mistral", {"sliding_window": None}),
    "mistral, window 9": ("mistral", {"sliding_window": 9}),
    "mistral, window 1": ("mistral", {"sliding_window": 1}),
    "qwen2": ("qwen2", {}),
    "qwen2, tied": ("qwen2", {"tie_word_embeddings": True}),
    "qwen2, upper layers slide": (
        "qwen2",
        {"use_sliding_window": True, "sliding_window": 10, "max_window_layers": 1},
    ),
    "qwen2, mixed layers": (
        "qwen2",
        {
            "use_sliding_window": True,
            "sliding_window": 10,
            "num_hidden_layers": 3,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        },
    ),
    "qwen3": ("qwen3", {}),
    "qwen3, wide heads, tied, biases": (
        "qwen3",
        {"head_dim": 32, "tie_word_embeddings": True, "attention_bias": True},
    ),
}


def load(folder: Path, block_size: int = 16, **settings: Any) -> TorchExecutor:
    num_blocks = -(-400 // block_size)
    return TorchExecutor.from_folder(folder, num_blocks=num_blocks, block_size=block_size, **settings)


def largest_difference(runner: Runner, model: Any, sequences: dict[int, list[int]]) -> float:
    return max(
        (runner.result(seq_id) - expected_logits(model, tokens)).abs().max().item()
        for seq_id, tokens in sequences.items()
    )


def run_in_random_pieces(runner: Runner, sequences: dict[int, list[int]], seed: int) -> None:
    """Steps of random company: some sequences prefill, some decode, some wait, until all are done."""
    rng = random.Random(seed)
    while unfinished := [s for s in sequences if runner.computed.get(s, 0) < len(sequences[s])]:
        pieces = {}
        for seq_id in rng.sample(unfinished, rng.randint(1, len(unfinished))):
            done = runner.computed.get(seq_id, 0)
            pieces[seq_id] = sequences[seq_id][done : done + rng.choice((1, 1, 1, 2, 5, 20))]
        runner.step(pieces)


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_agrees_however_its_tokens_are_cut_up(
    variant: str, make_checkpoint: MakeCheckpoint
) -> None:
    family, changes = VARIANTS[variant]
    for dtype in (torch.float32, torch.float64):
        folder, model = make_checkpoint(family, dtype=dtype, **changes)
        executor = load(folder, block_size=7)
        sequences = {0: random_tokens(45, 1), 1: random_tokens(7, 2), 2: random_tokens(1, 3)}

        whole = Runner(executor, seed=1)
        whole.step(sequences)
        assert largest_difference(whole, model, sequences) <= TOLERANCE[dtype]

        pieces = Runner(executor, seed=2)
        run_in_random_pieces(pieces, sequences, seed=3)
        assert largest_difference(pieces, model, sequences) <= TOLERANCE[dtype]


@pytest.mark.parametrize("rope", ROPES)
def test_every_kind_of_rotary_scaling_agrees(rope: str, make_checkpoint: MakeCheckpoint) -> None:
    for family in FAMILIES:
        folder, model = make_checkpoint(family, dtype=torch.float64, rope_parameters=dict(ROPES[rope]))
        runner = Runner(load(folder))
        sequences = {0: random_tokens(150)}
        runner.step(sequences)
        assert largest_difference(runner, model, sequences) <= TOLERANCE[torch.float64]


@pytest.mark.parametrize("block_size", [1, 7, 16])
@pytest.mark.parametrize("family", FAMILIES)
def test_token_by_token_through_scattered_blocks_agrees(
    family: str, block_size: int, make_checkpoint: MakeCheckpoint
) -> None:
    folder, model = make_checkpoint(family)
    runner = Runner(load(folder, block_size), seed=block_size)
    sequences = {seq_id: random_tokens(length, seq_id) for seq_id, length in enumerate((35, 17, 16, 3))}
    for position in range(35):
        runner.step({s: [tokens[position]] for s, tokens in sequences.items() if position < len(tokens)})
    assert largest_difference(runner, model, sequences) <= TOLERANCE[torch.float32]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", FAMILIES)
def test_sixteen_bit_logits_are_as_near_the_truth_as_those_of_transformers(
    family: str, dtype: torch.dtype, make_checkpoint: MakeCheckpoint
) -> None:
    folder, model = make_checkpoint(family, dtype=dtype)
    executor = load(folder)
    assert executor.decoder.dtype == dtype  # "auto" keeps what the checkpoint was saved in
    runner, tokens = Runner(executor), random_tokens(100, 1)
    run_in_random_pieces(runner, {0: tokens, 1: random_tokens(12, 2)}, seed=4)
    assert runner.result(0).dtype == torch.float32

    theirs = expected_logits(model, tokens)
    truth = expected_logits(model.double(), tokens)  # the same rounded weights, exact arithmetic

    def error(logits: torch.Tensor) -> float:
        return (logits - truth).square().mean().sqrt().item()

    assert error(runner.result(0)) <= 1.5 * error(theirs)
    assert (runner.result(0) - theirs).abs().max() <= TOLERANCE[dtype]


def test_a_block_that_a_former_owner_left_full_of_nan_is_reused_safely(
    make_checkpoint: MakeCheckpoint,
) -> None:
    folder, model = make_checkpoint("mistral", sliding_window=9)
    executor = load(folder)
    tokens = random_tokens(60)
    for seed in (1, 2):  # the second runner poisons, then reuses, what the first wrote
        runner = Runner(executor, seed)
        run_in_random_pieces(runner, {0: tokens}, seed)
        assert largest_difference(runner, model, {0: tokens}) <= TOLERANCE[torch.float32]


def test_only_the_wanted_logits_come_back_in_plan_order(make_checkpoint: MakeCheckpoint) -> None:
    folder, model = make_checkpoint()
    executor = load(folder)
    runner = Runner(executor)
    sequences = {0: random_tokens(9, 1), 1: random_tokens(5, 2), 2: random_tokens(3, 3)}
    runner.step(sequences)  # so that the cache is filled; now compute the very same tokens again
    plan = _plan_again(runner, sequences, {0: 2, 1: 0, 2: 1})
    expected = torch.cat(
        [expected_logits(model, sequences[0])[-2:], expected_logits(model, sequences[2])[-1:]]
    )
    assert (executor.execute(plan) - expected).abs().max() <= TOLERANCE[torch.float32]


def test_a_plan_without_work_gives_no_logits(make_checkpoint: MakeCheckpoint) -> None:
    executor = load(make_checkpoint()[0])
    assert executor.execute(StepPlan(0, ())).shape == (0, executor.config.vocab_size)


def test_attention_time_is_part_of_the_step(make_checkpoint: MakeCheckpoint) -> None:
    executor = load(make_checkpoint()[0])
    assert executor.last_attention_seconds == 0
    Runner(executor).step({0: random_tokens(20)})
    assert executor.last_attention_seconds > 0


def _plan_again(runner: Runner, sequences: dict[int, list[int]], wanted: dict[int, int]) -> StepPlan:
    return StepPlan(
        9,
        tuple(
            ScheduledSequence(seq_id, 0, array("i", tokens), runner.tables[seq_id], wanted[seq_id])
            for seq_id, tokens in sequences.items()
        ),
    )
