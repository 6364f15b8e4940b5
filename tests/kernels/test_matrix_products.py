"""Products with matrices of every kind are those of their values: shapes, types, roundings, threads."""

from math import gcd

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels_numba.cpu.integer_tile import MAX_INPUTS
from kernels_numba.cpu.matrix_packing import (
    fits,
    pack_dense,
    pack_groups,
    pack_integers,
    pack_numbers,
    unpack_numbers,
)
from kernels_numba.cpu.matrix_products import (
    INTEGERS,
    KIND,
    OFFSETS,
    STATIC,
    multiply_by,
    quantized_product,
)
from kernels_numba.cpu.panels import PARALLEL_STEPS, ROWS, WIDTH, pack, padded
from kernels_numba.cpu.quantized_tile import BYTES, NIBBLES
from minivllm.executor.runners.float8_panels import Float8Panels
from minivllm.executor.runners.quantized_panels import QuantizedPanels, can_lie_in_panels, in_panels
from minivllm.model.packed import as_array
from minivllm.model.quantization.activations import ActivationRounding
from minivllm.model.quantization.float8_matrix import Float8Matrix
from minivllm.model.quantization.float8_weights import Float8Weights
from minivllm.model.quantization.integer_matrix import IntegerMatrix
from tests.model.quantization.test_packing import random_weights

CPU = torch.device("cpu")
SIZES = st.one_of(st.integers(1, 12), st.sampled_from([WIDTH - 1, WIDTH, WIDTH + 1, 3 * WIDTH + 7]))
DTYPES = st.sampled_from([torch.float32, torch.bfloat16])
ROUNDINGS = [ActivationRounding(True), ActivationRounding(False), ActivationRounding(True, 0.02, 3)]


def random_numbers(n, k, kind, seed):
    low, high = (-8, 8) if kind == NIBBLES else (-128, 128)
    return np.random.default_rng(seed).integers(low, high, (n, k), dtype=np.int8)


def product(x, packed, n, *, fresh=True, threads=1, out=None):
    """Through the compiled function; it is called as a whole, as a step calls it."""
    left, out = as_array(x), torch.full((len(x), padded(n)), torch.nan) if out is None else out
    multiply_by(left, packed.row, out.numpy(), fresh, threads, quantized_product(left.dtype))
    return out


@given(
    n=SIZES, steps=st.integers(1, 9), kind=st.sampled_from([NIBBLES, BYTES, INTEGERS]), seed=st.integers(0, 9)
)
@settings(deadline=None)
def test_numbers_come_out_of_panels_as_they_went_in(n, steps, kind, seed):
    k = 8 * steps
    numbers = random_numbers(n, k, kind, seed)
    codes = pack_numbers(kind, numbers)
    assert codes.nbytes == padded(n) * k // (2 if kind == NIBBLES else 1)
    assert np.array_equal(unpack_numbers(kind, codes, n, k), numbers)


@given(
    num_rows=st.integers(0, 3 * ROWS),
    n=SIZES,
    groups=st.integers(1, 4),
    steps=st.sampled_from([1, 3, 16]),
    kind=st.sampled_from([NIBBLES, BYTES]),
    has_offsets=st.booleans(),
    is_ordered=st.booleans(),
    dtype=DTYPES,
    threads=st.sampled_from([1, 2]),
    fresh=st.booleans(),
    seed=st.integers(0, 99),
)
@settings(deadline=None)
def test_products_are_those_of_the_values(
    num_rows, n, groups, steps, kind, has_offsets, is_ordered, dtype, threads, fresh, seed
):
    k = groups * steps * 8
    numbers = random_numbers(n, k, kind, seed)
    random = torch.Generator().manual_seed(seed)
    x = torch.randn(num_rows, k, generator=random).to(dtype)
    scales, offsets = (torch.rand(n, groups, generator=random) / 100 for _ in range(2))
    order = torch.randperm(k, generator=random) if is_ordered else torch.arange(k)
    values = torch.from_numpy(numbers).double() * scales.double().repeat_interleave(k // groups, 1)
    if has_offsets:
        values -= offsets.double().repeat_interleave(k // groups, 1)
    packed = pack_groups(
        kind,
        pack_numbers(kind, numbers),
        k,
        scales.numpy(),
        offsets.numpy() if has_offsets else None,
        order.numpy() if is_ordered else None,
    )
    before = torch.randn(num_rows, padded(n), generator=random)
    out = product(x, packed, n, threads=threads, fresh=fresh, out=before.clone())
    expected = x.double()[:, order] @ values.T + (0 if fresh else before[:, :n].double())
    torch.testing.assert_close(out[:, :n].double(), expected, atol=1e-4, rtol=1e-4)
    assert torch.equal(out[:, n:], torch.zeros_like(out[:, n:]) if fresh else before[:, n:])


@given(
    num_rows=st.integers(1, 2 * ROWS + 3),
    n=SIZES,
    fours=st.integers(1, 40),
    rounding=st.sampled_from(ROUNDINGS),
    dtype=DTYPES,
    spread=st.sampled_from([0.0, 1e-3, 1.0, 1e4]),
    seed=st.integers(0, 99),
)
@settings(deadline=None)
def test_whole_numbers_are_multiplied_exactly(num_rows, n, fours, rounding, dtype, spread, seed):
    """Sums are those of the codes, to the last bit: on every processor, alone and in company."""
    k = 4 * fours
    x = (spread * torch.randn(num_rows, k, generator=torch.Generator().manual_seed(seed))).to(dtype)
    weights = random_weights(n, k, 8, -1, seed, zeros="middle", is_ordered=False)
    matrix = IntegerMatrix(weights, dtype, CPU, rounding)
    panels = in_panels(matrix)
    assert isinstance(panels, QuantizedPanels) and panels.packed.row[KIND] == INTEGERS
    packed = panels.packed
    numbers = weights.codes.to(torch.int64) - 128
    codes, scale = codes_of(rounding, x)
    sums = codes.to(torch.int64) @ numbers.T
    expected = sums.float() * weights.scales.T * scale
    out = product(x, packed, n)
    assert torch.equal(out[:, :n], expected)
    alone = torch.cat([product(x[row : row + 1], packed, n) for row in range(num_rows)])
    assert torch.equal(out, alone)


def codes_of(rounding, x):
    """What rows become, less their zero, and their scales: by the plain twin's own functions."""
    values = rounding(x)
    x = x.float()
    if rounding.scale is not None:
        scale = torch.full((len(x), 1), rounding.scale)
    elif rounding.is_symmetric:
        scale = x.abs().amax(-1, keepdim=True) / 127
    else:
        scale = (x.amax(-1, keepdim=True) - x.amin(-1, keepdim=True)) / 255
    scale = torch.where(scale == 0, 1.0, scale)
    return torch.round(values / scale), scale


@pytest.mark.parametrize("num_rows", [3, 40])
@pytest.mark.parametrize("kind", [NIBBLES, BYTES, INTEGERS])
def test_parts_of_a_product_are_the_whole_however_many_share_it(kind, num_rows):
    """Large enough to be divided by columns and, with more threads than panels, by rows."""
    n, k = 2 * WIDTH + 1, 8192 // num_rows * 8
    codes, scales = pack_numbers(kind, random_numbers(n, k, kind, 0)), np.full((n, 1), 0.01, np.float32)
    packed = pack_integers(codes, k, scales, 0) if kind == INTEGERS else pack_groups(kind, codes, k, scales)
    x = torch.randn(num_rows, k, generator=torch.Generator().manual_seed(0))
    alone = product(x, packed, n)
    assert num_rows * 3 * k >= PARALLEL_STEPS
    for threads in (2, 3, 8):
        assert torch.equal(product(x, packed, n, threads=threads), alone)


def test_sums_of_the_most_inputs_fit_into_32_bits():
    numbers = np.full((3, MAX_INPUTS), -128, np.int8)
    packed = pack_integers(
        pack_numbers(INTEGERS, numbers), MAX_INPUTS, np.ones((3, 1), np.float32), STATIC, 1.0
    )
    x = torch.full((2, MAX_INPUTS), 127.0)
    x[1] = -128
    expected = torch.tensor([[-128.0 * 127], [128.0 * 128]]).expand(2, 3) * MAX_INPUTS
    assert torch.equal(product(x, packed, 3)[:, :3], expected)
    assert fits(INTEGERS, MAX_INPUTS, 1) and not fits(INTEGERS, MAX_INPUTS + 4, 1)
    assert not fits(INTEGERS, 6, 1) and not fits(INTEGERS, 8, 2)
    assert fits(NIBBLES, 32, 4) and not fits(NIBBLES, 32, 8) and fits(BYTES, 32, 8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_dense_matrix_is_one_of_them(dtype):
    random = torch.Generator().manual_seed(0)
    weight, x = (torch.randn(size, 8, generator=random).to(dtype) for size in (70, 5))
    packed = pack_dense(pack(as_array(weight)), 70, 8)
    expected = x.double() @ weight.double().T
    torch.testing.assert_close(product(x, packed, 70)[:, :70].double(), expected, atol=1e-4, rtol=1e-4)


@given(
    bits=st.integers(1, 8),
    outputs=st.integers(1, 70),
    group_size=st.sampled_from([2, 8, 32, -1]),
    zeros=st.sampled_from(["middle", "any", "lowest", "highest"]),
    is_ordered=st.booleans(),
    rounding=st.sampled_from([None, *ROUNDINGS[:2]]),
    dtype=DTYPES,
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
    assert (OFFSETS in panels.packed.arrays) == (plain.zeros is not None)
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


ALL_NUMBERS = torch.tensor([bits for bits in range(256) if bits & 0x7F != 0x7F], dtype=torch.uint8)
"""Of e4m3: all but the two that are none."""


def random_floats(n, k, block, seed):
    random = torch.Generator().manual_seed(seed)
    bits = ALL_NUMBERS[torch.randint(len(ALL_NUMBERS), (n, k), generator=random)]
    scales = torch.rand(-(-n // block[0]), -(-k // block[1]), generator=random) / 1000
    return Float8Weights(bits.view(torch.float8_e4m3fn), scales, block)


@given(
    num_rows=st.integers(0, 3 * ROWS),
    n=SIZES,
    k=st.sampled_from([2, 6, 64, 96, 192]),
    block=st.sampled_from([(1, 10**6), (10**6, 10**6), (3, 128), (128, 64), (16, 48), (7, 3)]),
    dtype=DTYPES,
    threads=st.sampled_from([1, 2]),
    fresh=st.booleans(),
    seed=st.integers(0, 99),
)
@settings(deadline=None)
def test_floats_of_8_bits_are_multiplied_as_what_they_are(num_rows, n, k, block, dtype, threads, fresh, seed):
    """Scales of channels, of the whole, and of blocks that neither rows nor inputs are made of."""
    weights = random_floats(n, k, (min(block[0], n), min(block[1], k)), seed)
    matrix = Float8Matrix(weights, dtype, CPU)
    panels = in_panels(matrix)
    if k > block[1] and gcd(k, block[1]) % 2:
        assert panels is matrix and not can_lie_in_panels(matrix)
        return
    assert isinstance(panels, Float8Panels) and torch.equal(panels.dense(), matrix.dense())
    random = torch.Generator().manual_seed(seed)
    x = torch.randn(num_rows, k, generator=random).to(dtype)
    before = torch.randn(num_rows, padded(n), generator=random)
    out = product(x, panels.packed, n, threads=threads, fresh=fresh, out=before.clone())
    values = weights.dense().double()
    expected = x.double() @ values.T + (0 if fresh else before[:, :n].double())
    bound = x.double().abs() @ values.abs().T + 1
    assert bool(((out[:, :n].double() - expected).abs() <= 1e-5 * bound).all())
    assert torch.equal(out[:, n:], torch.zeros_like(out[:, n:]) if fresh else before[:, n:])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("num_rows", [1, ROWS + 1])
def test_every_number_of_e4m3_is_read_exactly(dtype, num_rows):
    """The smallest too, which have no exponent; alone, and where a panel is widened for many rows."""
    count = len(ALL_NUMBERS)
    values = ALL_NUMBERS.view(torch.float8_e4m3fn)
    weights = Float8Weights(values.repeat(3, 1), torch.ones(1, 1), (3, count))
    panels = in_panels(Float8Matrix(weights, dtype, CPU))
    x = torch.eye(count, dtype=dtype)
    found = torch.cat(
        [product(x[row : row + num_rows], panels.packed, 3) for row in range(0, count, num_rows)]
    )
    assert torch.equal(found[:, :3], values.float()[:, None].expand(-1, 3))


def test_what_is_no_number_stays_as_it_is():
    for bits in (0x7F, 0xFF):
        numbers = torch.full((4, 4), bits, dtype=torch.uint8).view(torch.float8_e4m3fn)
        matrix = Float8Matrix(Float8Weights(numbers, torch.ones(1, 1), (4, 4)), torch.float32, CPU)
        assert in_panels(matrix) is matrix


def test_groups_of_an_odd_size_stay_as_they_are():
    odd = IntegerMatrix(random_weights(3, 6, 4, 3, 0, zeros="any", is_ordered=False), torch.float32, CPU)
    assert not can_lie_in_panels(odd) and in_panels(odd) is odd


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bits", [4, 8, "e4m3"])
def test_a_row_is_multiplied_in_company_as_it_is_alone(bits, dtype):
    if bits == "e4m3":
        panels = in_panels(Float8Matrix(random_floats(100, 64, (32, 32), 0), dtype, CPU))
    else:
        weights = random_weights(100, 64, bits, 32, 0, zeros="any", is_ordered=False)
        panels = in_panels(IntegerMatrix(weights, dtype, CPU))
    x = torch.randn(13, 64, generator=torch.Generator().manual_seed(0)).to(dtype)
    together = product(x, panels.packed, 100)
    for row in range(13):
        assert torch.equal(product(x[row : row + 1], panels.packed, 100)[0], together[row])
