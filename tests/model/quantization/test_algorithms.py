"""The algorithms on small matrices: what holds of every rounding, and what each one promises beyond that."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from minivllm.model.quantization.algorithms.awq import search_scales
from minivllm.model.quantization.algorithms.clipping import SHRINKS, own_blocks, search_clipping
from minivllm.model.quantization.algorithms.fp8 import round_rows_to_float8, round_tokens_to_float8
from minivllm.model.quantization.algorithms.gptq import GptqOptions, gptq, inverse_factor, squared_error
from minivllm.model.quantization.algorithms.rounding import Grid, check_finite, check_groups, round_to_nearest
from minivllm.model.quantization.algorithms.smoothquant import round_tokens_to_int8, smoothing_scales

ROUNDING = 1e-5


@st.composite
def grids(draw, bits=(2, 3, 4, 8), dtypes=(torch.float16, torch.bfloat16, torch.float32)):
    return Grid(
        draw(st.sampled_from(bits)),
        draw(st.sampled_from((4, 8, -1))),
        draw(st.booleans()),
        draw(st.sampled_from(("restricted", "full"))),
        draw(st.sampled_from(dtypes)),
    )


@st.composite
def weights(draw, least_rows=1):
    """A matrix whose groups may be of one sign, all zero, or of very different sizes."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    shape = draw(st.integers(least_rows, 12)), draw(st.sampled_from((8, 16, 24)))
    weight = torch.randn(shape, generator=generator) * 10 ** draw(st.floats(-4, 2))
    match draw(st.sampled_from(("any", "positive", "negative", "zero", "sparse", "outlier"))):
        case "positive":
            weight = weight.abs() + weight.abs().max()
        case "negative":
            weight = -weight.abs() - weight.abs().max()
        case "zero":
            weight[:, : shape[1] // 2] = 0
        case "sparse":
            weight *= torch.rand(shape, generator=generator) < 0.3
        case "outlier":
            weight[0, 0] *= 50
    return weight


@st.composite
def problems(draw):
    """A matrix, and correlated inputs [tokens, in]; at times with a dead channel, or with few tokens."""
    weight = draw(weights(least_rows=4))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    num_inputs, tokens = weight.shape[1], draw(st.sampled_from((1, 3, 64)))
    mixing = torch.randn(num_inputs, num_inputs, generator=generator)
    inputs = torch.randn(tokens, num_inputs, generator=generator) @ mixing + draw(st.floats(-2, 2))
    inputs = inputs * torch.rand(num_inputs, generator=generator).exp() ** draw(st.integers(0, 4))
    if draw(st.booleans()):
        inputs[:, draw(st.integers(0, num_inputs - 1))] = 0
    return weight, inputs


options = st.builds(GptqOptions, act_order=st.booleans(), static_groups=st.booleans())


def steps_of(quantized):
    return quantized.scales[:, quantized.group_of]


@given(weights(), grids())
def test_every_weight_is_within_half_a_step(weight, grid):
    """Also where a group is of one sign: no range is lost."""
    quantized = round_to_nearest(weight, grid)
    # A stored scale is rounded itself, so the outermost codes may end a little short of the largest weights:
    # by its rounding, once for each code between the two ends.
    slack = steps_of(quantized) * grid.last_code * torch.finfo(grid.scale_dtype).eps + 1e-30
    smallest = torch.finfo(grid.scale_dtype).smallest_normal
    error = (quantized.dense() - weight).abs()
    assert (error <= steps_of(quantized) * (0.5 + ROUNDING) + slack).all(), (
        error / steps_of(quantized)
    ).max()
    assert quantized.codes.max() <= grid.last_code and quantized.scales.min() >= smallest
    assert ((quantized.zeros >= 0) & (quantized.zeros <= grid.last_code)).all()
    assert quantized.is_symmetric or not grid.symmetric


@given(weights(), grids())
def test_scales_survive_being_stored(weight, grid):
    scales = round_to_nearest(weight, grid).scales
    assert torch.equal(scales, scales.to(grid.scale_dtype).float())


@given(weights(), st.sampled_from((2, 3, 4, 8)))
def test_what_is_on_the_grid_stays_where_it_is(weight, bits):
    grid = Grid(bits, 8, True, scale_dtype=torch.float32)
    once = round_to_nearest(weight, grid).dense()
    assert torch.allclose(once, round_to_nearest(once, grid).dense(), atol=0, rtol=1e-5)


def test_a_group_of_one_sign_keeps_its_range():
    """A zero that is merely clamped to 0 … 15 would cut these weights to 15 steps of (max − min) / 15."""
    weight = torch.linspace(10, 11, 32)[None]
    for sign in (1, -1):
        quantized = round_to_nearest(sign * weight, Grid(4, 32))
        assert (quantized.dense() - sign * weight).abs().max() <= 11 / 15 / 2 + 0.01


@given(weights(), grids(bits=(4,)))
def test_gptq_without_correlations_is_rounding(weight, grid):
    plain = round_to_nearest(weight, grid)
    ours = gptq(weight, torch.eye(weight.shape[1]), grid, GptqOptions(act_order=False))
    assert torch.equal(ours.codes, plain.codes) and torch.equal(ours.scales, plain.scales)
    assert torch.equal(ours.zeros, plain.zeros) and torch.equal(ours.group_of, plain.group_of)


@given(problems(), grids(bits=(2, 3, 4)), st.booleans())
def test_gptq_never_loses_to_rounding_on_what_it_was_calibrated_with(problem, grid, static):
    weight, inputs = problem
    choice = GptqOptions(act_order=static, static_groups=static)
    moments = inputs.T @ inputs
    ours = squared_error(weight - gptq(weight, moments, grid, choice).dense(), moments).double()
    plain = squared_error(weight - round_to_nearest(weight, grid).dense(), moments).double()
    scale = squared_error(weight, moments).double()
    assert (ours <= plain + scale * 1e-5).all()


def test_gptq_gains_much_on_correlated_inputs_and_act_order_more_on_average():
    grid, gains = Grid(4, 16, True), {False: [], True: []}
    for seed in range(12):
        generator = torch.Generator().manual_seed(seed)
        weight = torch.randn(32, 64, generator=generator)
        sizes = torch.exp(1.5 * torch.randn(64, generator=generator))
        inputs = torch.randn(256, 16, generator=generator) @ torch.randn(16, 64, generator=generator) * sizes
        moments = (inputs + 0.1 * sizes * torch.randn(256, 64, generator=generator)).T.cov()
        plain = float(squared_error(weight - round_to_nearest(weight, grid).dense(), moments).sum())
        for act_order, found in gains.items():
            choice = GptqOptions(act_order=act_order, static_groups=act_order)
            error = squared_error(weight - gptq(weight, moments, grid, choice).dense(), moments).sum()
            found.append(float(error) / plain)
    assert sum(gains[False]) / 12 < 0.5
    assert sum(gains[True]) < sum(gains[False])


@given(problems(), grids(), options)
def test_gptq_gives_codes_of_the_grid_whatever_the_inputs(problem, grid, choice):
    """Dead channels, one token, moments without an inverse."""
    weight, inputs = problem
    quantized = gptq(weight, inputs.T @ inputs, grid, choice)
    assert torch.isfinite(quantized.dense()).all() and quantized.codes.max() <= grid.last_code
    length = grid.group_length(weight.shape[1])
    assert torch.equal(quantized.group_of.bincount(), torch.full((weight.shape[1] // length,), length))
    dead = (inputs == 0).all(dim=0)
    assert (quantized.dense()[:, dead] == 0).all()
    if choice.static_groups or not choice.act_order:
        assert torch.equal(quantized.group_of, torch.arange(weight.shape[1]) // length)


@given(problems())
def test_the_factor_is_one_of_the_inverse(problem):
    _, inputs = problem
    moments = inputs.T @ inputs + torch.eye(inputs.shape[1]) * inputs.square().sum() / 10
    damped = moments.double() + 0.01 * moments.double().diagonal().mean() * torch.eye(len(moments)).double()
    upper = inverse_factor(moments, 0.01).double()
    assert torch.allclose(upper, upper.triu())
    assert torch.allclose(upper.T @ upper @ damped, torch.eye(len(moments)).double(), atol=1e-3)


def test_moments_that_are_not_finite_are_refused():
    with pytest.raises(ValueError, match="no inverse"):
        inverse_factor(torch.full((4, 4), torch.nan), 0.01)


def awq_loss(weight, inputs):
    moments = inputs.T @ inputs
    return lambda other: float(squared_error(weight - other, moments).sum())


@given(problems(), grids(bits=(4,), dtypes=(torch.float32,)), st.booleans())
def test_awq_never_loses_to_rounding_and_begins_with_it(problem, grid, tie):
    weight, inputs = problem
    loss = awq_loss(weight, inputs)
    tied = (lambda s: s.mean().expand_as(s)) if tie else None
    found = search_scales(weight, inputs.abs().mean(dim=0), grid, loss, tie=tied)
    plain = loss(round_to_nearest(weight, grid).dense())
    assert found.losses[0] == pytest.approx(plain, rel=1e-4, abs=1e-12)
    assert min(found.losses) <= found.losses[0] and len(found.losses) == 20
    assert 0 <= found.alpha < 1 and (found.scales > 0).all() and torch.isfinite(found.scales).all()


@given(problems())
def test_awq_with_alpha_0_is_rounding(problem):
    weight, inputs = problem
    grid = Grid(4, 8)
    found = search_scales(weight, inputs.abs().mean(dim=0), grid, lambda _: 0.0, steps=1)
    assert found.alpha == 0 and torch.equal(found.scales, torch.ones(weight.shape[1]))


@given(problems())
def test_a_search_leaves_the_weights_as_they_were(problem):
    """AutoAWQ on a CPU scales the weights by its first try and never takes that back."""
    weight, inputs = problem
    before, moments = weight.clone(), inputs.T @ inputs
    grid = Grid(4, 8, scale_dtype=torch.float32)
    search_scales(weight, inputs.abs().mean(dim=0), grid, awq_loss(weight, inputs), duo_scaling=True)
    search_clipping(weight, moments, grid)
    gptq(weight, moments, grid, GptqOptions(act_order=True))
    assert torch.equal(weight, before)


def test_awq_finds_the_channels_that_matter():
    generator = torch.Generator().manual_seed(0)
    weight, sizes = torch.randn(64, 64, generator=generator), torch.ones(64)
    sizes[[3, 17]] = 40.0
    inputs = torch.randn(512, 64, generator=generator) * sizes
    found = search_scales(weight, inputs.abs().mean(dim=0), Grid(4, 32), awq_loss(weight, inputs))
    assert found.losses[0] > 2 * min(found.losses)
    assert set(found.scales.topk(2).indices.tolist()) == {3, 17}


@given(problems(), grids(bits=(3, 4)))
def test_clipping_shrinks_ranges_and_never_loses_for_a_group_alone(problem, grid):
    weight, inputs = problem
    moments = inputs.T @ inputs
    lowest, highest = search_clipping(weight, moments, grid)
    whole = search_limits(weight, grid)
    for ours, theirs in ((lowest, whole[0]), (highest, whole[1])):
        shrink = torch.where(theirs == 0, 1.0, ours / theirs)
        assert all(min(abs(float(s) - t) for t in SHRINKS) < 1e-4 for s in shrink.flatten())
    blocks = torch.block_diag(*own_blocks(moments, grid))
    clipped, plain = round_to_nearest(weight, grid, (lowest, highest)), round_to_nearest(weight, grid)
    errors = [squared_error(weight - quantized.dense(), blocks) for quantized in (clipped, plain)]
    assert (errors[0] <= errors[1] * (1 + 1e-4) + squared_error(weight, blocks) * 1e-5).all()


def search_limits(weight, grid):
    grouped = weight.view(len(weight), -1, grid.group_length(weight.shape[1]))
    return grouped.amin(dim=-1), grouped.amax(dim=-1)


@given(problems(), st.floats(0, 1))
def test_smoothing_meets_in_the_middle(problem, alpha):
    weight, inputs = problem
    largest = inputs.abs().amax(dim=0)
    scales = smoothing_scales(largest, weight, alpha)
    assert (scales > 0).all() and torch.isfinite(scales).all()
    assert (scales[largest == 0] == 1).all()
    product = (inputs / scales) @ (weight * scales).T
    assert torch.allclose(
        product, inputs @ weight.T, rtol=1e-3, atol=1e-3 * float(product.abs().max()) + 1e-9
    )
    if alpha == 0.5:
        alive = (largest > 1e-3) & (weight.abs().amax(dim=0) > 1e-3)
        ranges = (largest / scales)[alive], (weight.abs().amax(dim=0) * scales)[alive]
        assert torch.allclose(*ranges, rtol=1e-3)


@given(weights())
def test_float8_rounds_by_at_most_a_sixteenth(weight):
    quantized = round_rows_to_float8(weight)
    error = (quantized.dense() - weight).abs()
    # Below 2^-6 of e4m3 numbers are evenly spaced, 2^-9 apart.
    assert (error <= weight.abs() / 16 * 1.001 + quantized.scales * 2.0**-10 * 1.001).all()


@given(weights())
def test_tokens_rounded_to_8_bits_are_rounded_each_by_itself(x):
    for round_tokens in (round_tokens_to_int8, round_tokens_to_float8):
        whole = round_tokens(x)
        assert torch.equal(whole, torch.cat([round_tokens(row[None]) for row in x]))
        assert ((whole - x).abs() <= x.abs().amax(dim=-1, keepdim=True) / 28 + 1e-9).all()


def test_what_cannot_be_quantised_is_refused_by_name():
    with pytest.raises(ValueError, match=r"layers\.0\.x has 2 of 4 weights that are NaN or infinite"):
        check_finite("layers.0.x", torch.tensor([1.0, torch.nan, torch.inf, 0.0]))
    with pytest.raises(ValueError, match="group_size 128 does not divide the 192 inputs of q_proj"):
        check_groups("q_proj", 192, 128)
    with pytest.raises(ValueError, match=r"does not fit torch\.float16"):
        round_to_nearest(torch.full((1, 8), 1e7), Grid(4, 8))
