"""Compiled code writes the bits that the plain twin writes, and reads each byte as what it stands for."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numba import njit

from kernels_numba.cpu.coded_cells import from_e4m3, numbers, to_e4m3, write_codes
from minivllm.executor.kv_format import to_fp8, to_int8
from minivllm.model.packed import as_array


@njit
def all_bytes():
    out = np.empty(256, np.float32)
    for byte in range(256):
        out[byte] = from_e4m3(np.uint8(byte))
    return out


def test_every_byte_is_read_as_the_float_that_it_is():
    expected = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float().numpy()
    got, is_number = all_bytes(), np.isfinite(expected)
    assert (got[is_number].view(np.int32) == expected[is_number].view(np.int32)).all()
    assert np.isnan(got[~is_number]).all()


@settings(max_examples=max(60, settings().max_examples), deadline=None)
@given(
    tokens=st.integers(0, 20),
    kv_heads=st.integers(1, 3),
    d=st.sampled_from([1, 2, 7, 16, 48, 64]),
    size=st.sampled_from([1, 3, 16]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    halves=st.booleans(),
    seed=st.integers(0, 9999),
)
def test_codes_and_scales_are_the_plain_ones_to_the_bit(tokens, kv_heads, d, size, dtype, halves, seed):
    """Heads of any size, down to zeros; with `halves`, numbers in the very middle of two codes, too."""
    generator = torch.Generator().manual_seed(seed)
    new = torch.randn(2, tokens, kv_heads, d, generator=generator)
    if halves:
        new = torch.round(2 * 40 * new).clamp(-254, 254) / 2
        new[..., :1] = 127
    else:
        new *= torch.exp(6 * torch.randn(2, tokens, kv_heads, 1, generator=generator))
    new = new.to(dtype)
    num_blocks = tokens // size + 2
    slots = np.random.default_rng(seed).permutation(num_blocks * size)[:tokens]
    shape = (2, num_blocks, kv_heads, size)
    codes, scales = np.full((*shape, d), 99, np.int8), np.full(shape, np.nan, np.float32)
    pairs = [(codes[part], scales[part]) for part in range(2)]
    write_codes(as_array(new[0]), as_array(new[1]), slots, *pairs, 1)
    for part in range(2):
        expected_codes, expected_scales = (tensor.numpy() for tensor in to_int8(new[part]))
        assert (numbers(pairs[part])[slots // size, :, slots % size] == expected_codes).all()
        assert (pairs[part][1][slots // size, :, slots % size] == expected_scales).all()
    assert np.isnan(scales).sum() == scales.size - 2 * tokens * kv_heads, "nothing else was written"


@njit
def bytes_of(numbers):
    out = np.empty(len(numbers), np.uint8)
    for i in range(len(numbers)):
        out[i] = to_e4m3(numbers[i])
    return out


def test_floats_are_written_as_the_nearest_of_8_bits():
    """All that are exact, what lies in the middle of two, a little beside it, too large, and no numbers."""
    exact = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    known = exact[exact.isfinite()].sort().values
    middles = (known[1:] + known[:-1]) / 2
    near = torch.cat([middles.nextafter(torch.full((), end)) for end in (-torch.inf, torch.inf)])
    random = torch.randn(5000, generator=torch.Generator().manual_seed(0))
    rest = torch.tensor([449.0, 464, 1e9, torch.inf, torch.nan, -torch.nan, 1e-40, -0.0, 2.0**-10])
    numbers = torch.cat([exact, middles, near, random, 100 * random, random / 1000, rest, -rest])
    assert np.array_equal(bytes_of(numbers.numpy()), to_fp8(numbers, 1.0).numpy())


@given(st.sampled_from([torch.float32, torch.bfloat16]), st.floats(0.01, 10), st.integers(0, 99))
@settings(deadline=None, max_examples=20)
def test_the_bytes_of_a_layer_are_the_plain_ones(dtype, scale, seed):
    new = (50 * torch.randn(2, 5, 2, 8, generator=torch.Generator().manual_seed(seed))).to(dtype)
    codes, scales = np.full((2, 3, 2, 4, 8), 99, np.uint8), np.array([scale, 2 * scale], np.float32)
    slots = np.array([7, 0, 3, 11, 8])
    write_codes(as_array(new[0]), as_array(new[1]), slots, *zip(codes, scales, strict=True), 1)
    for part in range(2):
        expected = to_fp8(new[part], float(scales[part])).numpy()
        assert (codes[part][slots // 4, :, slots % 4] == expected).all()
    assert (codes == 99).sum() >= codes.size - 2 * new[0].numel(), "nothing else was written"


def test_threads_divide_the_tokens_among_them():
    new = torch.randn(2, 300, 4, 64)
    codes, scales = np.zeros((2, 19, 4, 16, 64), np.int8), np.zeros((2, 19, 4, 16), np.float32)
    slots = np.random.default_rng(0).permutation(19 * 16)[:300]
    write_codes(*new.numpy(), slots, *zip(codes, scales, strict=True), 3)
    expected = to_int8(new)[0].numpy()
    assert (codes[:, slots // 16, :, slots % 16].swapaxes(0, 1) == expected).all()


def test_what_is_no_number_leaves_a_trace():
    codes, scales = np.zeros((1, 1, 1, 2), np.int8), np.zeros((1, 1, 1), np.float32)
    other = codes.copy(), scales.copy()
    for bad in (np.nan, np.inf, -np.inf):
        new = np.array([[[bad, 1.0]]], np.float32)
        write_codes(new, new, np.zeros(1, np.int64), (codes, scales), other, 1)
        assert not np.isfinite(scales[0, 0, 0])
        assert not to_int8(torch.from_numpy(new))[1].isfinite().any(), "as the plain twin does"


def test_an_array_of_numbers_is_itself():
    cells = np.zeros((1, 1, 1, 2), np.float32)
    assert numbers(cells) is cells
