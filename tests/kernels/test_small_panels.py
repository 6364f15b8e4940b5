"""Products with small numbers in panels are those of their values: all shapes, types and threads."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels_numba.cpu import small_panels
from kernels_numba.cpu.panels import ROWS, WIDTH, padded
from kernels_numba.cpu.small_panels import multiply_small, pack_scales, pack_small, unpack_small
from minivllm.executor.runners.quantized_panels import QuantizedPanels, can_lie_in_panels, in_panels
from minivllm.model.packed import as_array
from minivllm.model.quantization.activations import ActivationRounding
from minivllm.model.quantization.integer_matrix import IntegerMatrix
from tests.model.quantization.test_packing import random_weights

CPU = torch.device("cpu")
SIZES = st.one_of(st.integers(1, 12), st.sampled_from([WIDTH - 1, WIDTH, WIDTH + 1, 3 * WIDTH + 7]))


def random_numbers(n, k, is_half, seed):
    low, high = (-8, 8) if is_half else (-128, 128)
    return np.random.default_rng(seed).integers(low, high, (n, k), dtype=np.int8)


@given(n=SIZES, half_k=st.integers(1, 40), is_half=st.booleans(), seed=st.integers(0, 9))
@settings(deadline=None)
def test_numbers_come_out_of_panels_as_they_went_in(n, half_k, is_half, seed):
    numbers = random_numbers(n, 2 * half_k, is_half, seed)
    codes = pack_small(numbers, is_half)
    assert codes.shape == (padded(n) // WIDTH, half_k if is_half else 2 * half_k, WIDTH)
    assert np.array_equal(unpack_small(codes, n), numbers)


@given(
    num_rows=st.integers(0, 3 * ROWS),
    n=SIZES,
    groups=st.integers(1, 4),
    half_size=st.sampled_from([1, 3, 16, 33]),
    is_half=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    threads=st.integers(1, 5),
    parallel_steps=st.sampled_from([1, 1 << 16]),
    seed=st.integers(0, 99),
)
@settings(deadline=None)
def test_products_are_those_of_the_values(
    num_rows, n, groups, half_size, is_half, dtype, threads, parallel_steps, seed
):
    size = 2 * half_size
    numbers = random_numbers(n, groups * size, is_half, seed)
    random = torch.Generator().manual_seed(seed)
    x = torch.randn(num_rows, groups * size, generator=random).to(dtype)
    scales = torch.rand(n, groups, generator=random) / 100
    values = torch.from_numpy(numbers).double() * scales.double().repeat_interleave(size, 1)
    out = torch.full((num_rows, padded(n)), torch.nan)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(small_panels, "PARALLEL_STEPS", parallel_steps)
        multiply_small.py_func(
            as_array(x), pack_small(numbers, is_half), pack_scales(scales.numpy()), out.numpy(), threads
        )
    torch.testing.assert_close(out[:, :n].double(), x.double() @ values.T, atol=1e-4, rtol=1e-4)
    assert not out[:, n:].any()


@given(
    bits=st.integers(1, 8),
    outputs=st.integers(1, 70),
    group_size=st.sampled_from([2, 8, 32, -1]),
    zeros=st.sampled_from(["middle", "any", "lowest", "highest"]),
    is_ordered=st.booleans(),
    rounding=st.sampled_from([None, ActivationRounding(True), ActivationRounding(False)]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    has_bias=st.booleans(),
    has_added=st.booleans(),
    seed=st.integers(0, 99),
)
@settings(deadline=None)
def test_a_matrix_in_panels_is_its_plain_twin(
    bits, outputs, group_size, zeros, is_ordered, rounding, dtype, has_bias, has_added, seed
):
    weights = random_weights(outputs, 64, bits, group_size, seed, zeros=zeros, is_ordered=is_ordered)
    plain = IntegerMatrix(weights, dtype, CPU, rounding)
    panels = in_panels(plain)
    assert can_lie_in_panels(plain) and isinstance(panels, QuantizedPanels)
    torch.testing.assert_close(panels.dense(), plain.dense(), rtol=1e-5, atol=1e-6)
    random = torch.Generator().manual_seed(seed)
    x = torch.randn(4, 64, generator=random).to(dtype)
    bias = torch.randn(outputs, generator=random).to(dtype) if has_bias else None
    added = torch.randn(4, outputs, generator=random).to(dtype) if has_added else None
    found = panels.product(x, bias, None if added is None else added.clone())
    expected = plain.product(x, bias, None if added is None else added.clone())
    assert found.dtype == expected.dtype == dtype
    scale = float(weights.dense().abs().max()) * 64
    tolerance = (1e-5 if dtype == torch.float32 else 2e-2) * max(1, scale)
    assert bool((found.float() - expected.float()).abs().max() <= tolerance)


def test_groups_that_bytes_cannot_hold_stay_as_they_are():
    odd = IntegerMatrix(random_weights(3, 6, 4, 3, 0, zeros="any", is_ordered=False), torch.float32, CPU)
    assert not can_lie_in_panels(odd) and in_panels(odd) is odd


@pytest.mark.parametrize("bits", [4, 8])
def test_a_row_is_multiplied_in_company_as_it_is_alone(bits):
    weights = random_weights(100, 64, bits, 32, 0, zeros="middle", is_ordered=False)
    panels = in_panels(IntegerMatrix(weights, torch.float32, CPU))
    x = torch.randn(13, 64, generator=torch.Generator().manual_seed(0))
    together = panels.product(x)
    for row in range(13):
        assert torch.equal(panels.product(x[row : row + 1])[0], together[row])
