"""Rotary positions: frequencies as `transformers` computes them, and the property they exist for."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaModel
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from minivllm.model.config import ModelConfig, RopeConfig
from minivllm.model.layers import rotate
from minivllm.model.rotary import RotaryEmbedding, attention_factor, inverse_frequencies

head_dims = st.sampled_from([2, 16, 48, 64, 128])
thetas = st.sampled_from([50.0, 1e4, 5e5, 1e6])
factors = st.sampled_from([1.0, 2.0, 3.5, 8.0, 40.0])
lengths = st.sampled_from([16, 64, 4096, 8192])


def theirs(rope: RopeConfig, head_dim: int, **given_values: object) -> tuple[torch.Tensor, float]:
    parameters = {
        "rope_type": rope.rope_type,
        "rope_theta": rope.theta,
        "factor": rope.factor,
        **given_values,
    }
    config = LlamaConfig(
        hidden_size=head_dim * 2, num_attention_heads=2, head_dim=head_dim, rope_parameters=parameters
    )
    return ROPE_INIT_FUNCTIONS[rope.rope_type](config)


@given(head_dims, thetas, factors)
def test_linear_frequencies_are_those_of_transformers(head_dim: int, theta: float, factor: float) -> None:
    rope = RopeConfig("linear", theta, factor)
    assert torch.equal(inverse_frequencies(rope, head_dim), theirs(rope, head_dim)[0])


@given(head_dims, thetas, factors, lengths, st.sampled_from([(1.0, 4.0), (0.5, 2.0), (1.0, 32.0)]))
def test_llama3_frequencies_are_those_of_transformers(
    head_dim: int, theta: float, factor: float, original: int, bounds: tuple[float, float]
) -> None:
    rope = RopeConfig("llama3", theta, factor, original, *bounds)
    expected, _ = theirs(
        rope,
        head_dim,
        low_freq_factor=bounds[0],
        high_freq_factor=bounds[1],
        original_max_position_embeddings=original,
    )
    assert torch.equal(inverse_frequencies(rope, head_dim), expected)


@given(
    head_dims,
    thetas,
    factors,
    lengths,
    st.sampled_from([(32.0, 1.0), (8.0, 2.0)]),
    st.sampled_from([None, 0.9]),
    st.sampled_from([(None, None), (0.7, 1.3), (1.0, None)]),
    st.booleans(),
)
@settings(max_examples=max(200, settings().max_examples))
def test_yarn_frequencies_and_factor_are_those_of_transformers(
    head_dim: int,
    theta: float,
    factor: float,
    original: int,
    betas: tuple[float, float],
    given_factor: float | None,
    mscales: tuple[float | None, float | None],
    truncate: bool,
) -> None:
    rope = RopeConfig(
        "yarn",
        theta,
        factor,
        original,
        beta_fast=betas[0],
        beta_slow=betas[1],
        attention_factor=given_factor,
        mscale=mscales[0],
        mscale_all_dim=mscales[1],
        truncate=truncate,
    )
    expected, expected_factor = theirs(
        rope,
        head_dim,
        original_max_position_embeddings=original,
        beta_fast=betas[0],
        beta_slow=betas[1],
        attention_factor=given_factor,
        mscale=mscales[0],
        mscale_all_dim=mscales[1],
        truncate=truncate,
    )
    assert torch.equal(inverse_frequencies(rope, head_dim), expected)
    assert attention_factor(rope) == pytest.approx(expected_factor, rel=1e-12)


@given(head_dims, thetas, factors, lengths, st.sampled_from([None, 0.9]), st.data())
def test_longrope_frequencies_and_factor_are_those_of_transformers(
    head_dim: int, theta: float, factor: float, original: int, given_factor: float | None, data: st.DataObject
) -> None:
    pairs = st.lists(st.floats(0.5, 64), min_size=head_dim // 2, max_size=head_dim // 2)
    rope = RopeConfig(
        "longrope",
        theta,
        factor,
        original,
        attention_factor=given_factor,
        short_factor=tuple(data.draw(pairs)),
    )
    expected, expected_factor = theirs(
        rope,
        head_dim,
        original_max_position_embeddings=original,
        attention_factor=given_factor,
        short_factor=list(rope.short_factor),
        long_factor=[2.0] * (head_dim // 2),
    )
    assert torch.equal(inverse_frequencies(rope, head_dim), expected)
    assert attention_factor(rope) == pytest.approx(expected_factor, rel=1e-12)


@given(head_dims.filter(lambda head_dim: head_dim > 2), thetas, factors)
def test_dynamic_frequencies_are_those_of_transformers_up_to_the_trained_length(
    head_dim: int, theta: float, factor: float
) -> None:
    """Beyond it they would depend on the longest text of a step: no engine goes there (`rope_config.py`)."""
    rope = RopeConfig("dynamic", theta, factor)
    ours = inverse_frequencies(rope, head_dim)
    assert torch.allclose(ours, theirs(rope, head_dim)[0], rtol=1e-6, atol=0)


def rotary(head_dim: int) -> RotaryEmbedding:
    config = ModelConfig.from_dict(
        {
            "architectures": ["LlamaForCausalLM"],
            "vocab_size": 2,
            "hidden_size": head_dim,
            "intermediate_size": 2,
            "num_hidden_layers": 1,
            "num_attention_heads": 1,
        }
    )
    return RotaryEmbedding(config, torch.device("cpu"))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_far_positions_are_as_exact_in_sixteen_bits_as_transformers_has_them(dtype: torch.dtype) -> None:
    config = LlamaConfig(
        hidden_size=32, intermediate_size=8, num_hidden_layers=0, num_attention_heads=2, vocab_size=2
    )
    positions = torch.tensor([0, 1, 257, 4099, 100_003])  # 257 is the first whole number bfloat16 lacks
    cos, sin = LlamaModel(config).rotary_emb(torch.zeros(1, dtype=dtype), positions[None])
    our_cos, our_sin = rotary(16).angles(positions, dtype)
    assert torch.equal(our_cos[:, 0], cos[0])
    assert torch.equal(our_sin[:, 0, 8:], sin[0, :, 8:]) and torch.equal(our_sin[:, 0, :8], -sin[0, :, :8])


@given(st.integers(0, 400), st.integers(0, 400), st.integers(0, 400), head_dims)
def test_scores_depend_on_distance_only(query: int, key: int, shift: int, head_dim: int) -> None:
    torch.manual_seed(0)
    q, k = torch.randn(2, 1, 1, head_dim, dtype=torch.float64)
    embedding = rotary(head_dim)

    def score(at_query: int, at_key: int) -> float:
        cos, sin = embedding.angles(torch.tensor([at_query, at_key]), torch.float64)
        return float((rotate(q, cos[:1], sin[:1]) * rotate(k, cos[1:], sin[1:])).sum())

    scale = float(q.norm() * k.norm())
    assert abs(score(query, key) - score(query + shift, key + shift)) <= 2e-4 * scale


@given(st.integers(0, 100_000), head_dims)
def test_rotation_keeps_lengths_and_position_zero_rotates_nothing(position: int, head_dim: int) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, head_dim, dtype=torch.float64)
    rotated = rotate(x, *rotary(head_dim).angles(torch.tensor([position, 0]), torch.float64))
    assert torch.allclose(rotated.norm(dim=-1), x.norm(dim=-1), rtol=1e-6)
    assert torch.equal(rotated[1], x[1])
