"""Codes in words, and weights in the tensors of every format: what was packed is unpacked again."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from minivllm.model.quantization import awq, float8_weights, gptq, int_quantized, pack_quantized
from minivllm.model.quantization.bit_packing import num_words, pack_bits, unpack_bits
from minivllm.model.quantization.integer_weights import IntegerWeights, contiguous_groups


def random_weights(
    num_outputs: int, num_inputs: int, bits: int, group_size: int, seed: int, *, zeros: str, is_ordered: bool
) -> IntegerWeights:
    """`zeros` "middle", "any", "lowest" (groups all positive) or "highest" (all negative).

    Scales are numbers that float16 has. `is_ordered`: groups of inputs that are no neighbours.
    """
    random = torch.Generator().manual_seed(seed)
    group_of = contiguous_groups(num_inputs, group_size)
    num_groups = int(group_of.max()) + 1
    if is_ordered:
        group_of = group_of[torch.randperm(num_inputs, generator=random)]
    levels, shape = 1 << bits, (num_outputs, num_groups)
    drawn = {
        "middle": torch.full(shape, levels // 2),
        "any": torch.randint(0, levels, shape, generator=random),
        "lowest": torch.zeros(shape, dtype=torch.int64),
        "highest": torch.full(shape, levels - 1),
    }[zeros]
    return IntegerWeights(
        codes=torch.randint(0, levels, (num_outputs, num_inputs), generator=random).to(torch.uint8),
        scales=(torch.rand(shape, generator=random) + 0.01).half().float(),
        zeros=drawn.to(torch.int16),
        group_of=group_of,
        bits=bits,
    )


def assert_same(found: IntegerWeights, expected: IntegerWeights) -> None:
    for name in ("codes", "scales", "zeros", "group_of"):
        left, right = getattr(found, name), getattr(expected, name)
        assert left.dtype == right.dtype and torch.equal(left, right), name
    assert found.bits == expected.bits
    assert torch.equal(found.dense(), expected.dense())


def bits_of(words: Tensor) -> list[list[int]]:
    """Each row's bits, from the lowest of the first word on: by numpy, not by shifts of ours."""
    as_bytes = words.numpy().astype("<i4").view(np.uint8).reshape(len(words), -1)
    return [list(map(int, row)) for row in np.unpackbits(as_bytes, axis=1, bitorder="little")]


@given(bits=st.integers(1, 8), rows=st.integers(1, 4), count=st.integers(1, 100), seed=st.integers(0, 2**31))
def test_a_row_is_one_stream_of_bits_and_comes_back(bits: int, rows: int, count: int, seed: int) -> None:
    random = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 1 << bits, (rows, count), generator=random).to(torch.uint8)
    words = pack_bits(codes, bits)
    assert words.dtype == torch.int32 and words.shape == (rows, num_words(count, bits))
    for row, stream in zip(codes.tolist(), bits_of(words), strict=True):
        expected = [code >> bit & 1 for code in row for bit in range(bits)]
        assert stream[: len(expected)] == expected and not any(stream[len(expected) :])
    assert torch.equal(unpack_bits(words, bits, count), codes)
    fewer = max(1, count // 2)
    assert torch.equal(unpack_bits(words, bits, fewer), codes[:, :fewer])


ZEROS = st.sampled_from(("middle", "any", "lowest", "highest"))
GROUPS = st.sampled_from((8, 16, 32, 64, -1))


@given(
    bits=st.sampled_from(gptq.BITS),
    outputs=st.integers(1, 3),
    inputs=st.sampled_from((1, 2, 4)),
    group_size=GROUPS,
    zeros=ZEROS,
    is_ordered=st.booleans(),
    version=st.sampled_from(gptq.VERSIONS),
    seed=st.integers(0, 2**31),
)
def test_gptq_tensors_hold_what_was_packed(
    bits: int,
    outputs: int,
    inputs: int,
    group_size: int,
    zeros: str,
    is_ordered: bool,
    version: str,
    seed: int,
) -> None:
    weights = random_weights(
        32 * outputs, 64 * inputs, bits, group_size, seed, zeros=zeros, is_ordered=is_ordered
    )
    tensors = gptq.pack(weights, version=version)
    shapes = gptq.shapes(32 * outputs, 64 * inputs, bits, weights.scales.shape[1])
    assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == shapes
    is_symmetric = zeros == "middle"
    assert_same(gptq.unpack(tensors, bits, version=version, is_symmetric=is_symmetric), weights)
    if not is_ordered:
        del tensors["g_idx"]
        assert_same(gptq.unpack(tensors, bits, version=version, is_symmetric=is_symmetric), weights)


@given(
    outputs=st.integers(1, 5),
    inputs=st.integers(1, 3),
    group_size=GROUPS,
    zeros=ZEROS,
    seed=st.integers(0, 2**31),
)
def test_awq_tensors_hold_what_was_packed(
    outputs: int, inputs: int, group_size: int, zeros: str, seed: int
) -> None:
    weights = random_weights(8 * outputs, 64 * inputs, 4, group_size, seed, zeros=zeros, is_ordered=False)
    tensors = awq.pack(weights)
    shapes = awq.shapes(8 * outputs, 64 * inputs, weights.scales.shape[1])
    assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == shapes
    assert_same(awq.unpack(tensors), weights)


@given(
    bits=st.integers(1, 8),
    outputs=st.integers(1, 40),
    groups=st.integers(1, 4),
    group_size=st.sampled_from((5, 16, 32, -1)),
    zeros=ZEROS,
    is_ordered=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_packed_tensors_hold_what_was_packed_padding_or_not(
    bits: int, outputs: int, groups: int, group_size: int, zeros: str, is_ordered: bool, seed: int
) -> None:
    inputs = groups * (7 if group_size == -1 else group_size)
    weights = random_weights(outputs, inputs, bits, group_size, seed, zeros=zeros, is_ordered=is_ordered)
    tensors = pack_quantized.pack(weights)
    shapes = pack_quantized.shapes(outputs, inputs, bits, weights.scales.shape[1])
    assert all(tuple(tensor.shape) == shapes[name] for name, tensor in tensors.items())
    assert ("weight_zero_point" in tensors) == (not weights.is_symmetric)
    assert_same(pack_quantized.unpack(tensors, bits), weights)


# ---- what the words of each format are, written out by hand ------------------------------------------


def signed(word: int) -> int:
    return word - (1 << 32) if word >> 31 else word


def small(codes: list[list[int]], zeros: list[list[int]], bits: int = 4) -> IntegerWeights:
    shape = len(zeros), len(zeros[0])
    group_of = contiguous_groups(len(codes[0]), len(codes[0]) // shape[1])
    return IntegerWeights(
        torch.tensor(codes, dtype=torch.uint8), torch.ones(shape), torch.tensor(zeros, dtype=torch.int16),
        group_of, bits,
    )  # fmt: skip


def test_a_word_of_awq_holds_the_outputs_in_its_order() -> None:
    weights = small([[output] for output in range(8)], [[8 + output % 8] for output in range(8)])
    tensors = awq.pack(weights)
    assert tensors["qweight"].tolist() == [[0x75316420]]
    assert tensors["qzeros"].tolist() == [[signed(0xFDB9ECA8)]]


def test_a_word_of_gptq_holds_inputs_and_its_zeros_are_one_less_in_v1() -> None:
    weights = small([[*range(8)]] * 8, [[8]] * 8)
    first, second = gptq.pack(weights), gptq.pack(weights, version=gptq.V2)
    assert first["qweight"].tolist() == second["qweight"].tolist() == [[0x76543210] * 8]
    assert first["qzeros"].tolist() == [[0x77777777]]
    assert second["qzeros"].tolist() == [[signed(0x88888888)]]


def test_a_zero_of_0_borrows_in_v1_as_it_does_in_the_files_of_others() -> None:
    weights = small([[*range(8)]] * 8, [[0], [5], [1], [1], [1], [1], [1], [0]])
    words = gptq.pack(weights)["qzeros"]
    assert words.tolist() == [[signed((0x01111150 - 0x11111111) % 2**32)]]
    assert gptq.unpack(gptq.pack(weights), 4).zeros.tolist() == weights.zeros.tolist()


@pytest.mark.parametrize("bits", gptq.BITS)
@pytest.mark.parametrize("label", gptq.VERSIONS)
@pytest.mark.parametrize("truth", gptq.VERSIONS)
def test_symmetric_zeros_are_believed_and_not_their_label(bits: int, label: str, truth: str) -> None:
    weights = random_weights(32, 64, bits, 32, 0, zeros="middle", is_ordered=False)
    tensors = gptq.pack(weights, version=truth)
    assert_same(gptq.unpack(tensors, bits, version=label, is_symmetric=True), weights)
    misread = gptq.unpack(tensors, bits, version=label, is_symmetric=False)
    assert torch.equal(misread.zeros, weights.zeros) == (label == truth)


def test_the_3_bit_zeros_of_gptqmodel_are_read_as_it_means_them() -> None:
    weights = random_weights(64, 64, 3, 32, 0, zeros="middle", is_ordered=False)
    tensors = gptq.pack(weights, version=gptq.V2)
    # The constants of its `utils/model.py`, which it takes off and adds again.
    constants = (0b00100100100100100100100100100100, 0b10010010010010010010010010010010,
                 0b01001001001001001001001001001001)  # fmt: skip
    tensors["qzeros"] = tensors["qzeros"] - torch.tensor(
        [signed(c) for c in constants * 2], dtype=torch.int32
    )
    assert_same(gptq.unpack(tensors, 3, is_symmetric=True), weights)


def test_what_a_format_has_no_place_for_is_refused_with_the_numbers() -> None:
    wide = random_weights(32, 64, 8, 32, 0, zeros="any", is_ordered=False)
    ordered = random_weights(32, 64, 4, 32, 0, zeros="any", is_ordered=True)
    beyond = small([[1] * 8] * 8, [[16]] * 8)
    for call, words in (
        (lambda: awq.pack(wide), "4 bits, got 8"),
        (lambda: awq.pack(ordered), "neighbouring inputs"),
        (lambda: awq.pack(beyond), "0 to 15"),
        (lambda: gptq.pack(beyond), "0 to 15"),
        (lambda: pack_quantized.pack(beyond), "0 to 15"),
        (lambda: gptq.pack(small([[1] * 8] * 7, [[8]] * 7)), "7 outputs do not fill"),
        (lambda: gptq.pack(small([[1] * 6] * 8, [[8]] * 8)), "6 inputs do not fill"),
        (lambda: gptq.pack(small([[1] * 32] * 32, [[8]] * 32, bits=5)), "2, 3, 4 or 8 bits, got 5"),
        (lambda: awq.pack(small([[1] * 8] * 7, [[8]] * 7)), "8 outputs into a word; 7"),
    ):
        with pytest.raises(ValueError, match=words):
            call()


@given(outputs=st.integers(1, 20), inputs=st.integers(1, 40), zeros=ZEROS, seed=st.integers(0, 2**31))
def test_whole_bytes_hold_what_was_packed(outputs: int, inputs: int, zeros: str, seed: int) -> None:
    weights = random_weights(outputs, inputs, 8, -1, seed, zeros=zeros, is_ordered=False)
    tensors = int_quantized.pack(weights)
    assert_same(int_quantized.unpack(tensors), weights)
    signed_codes = tensors["weight"].float() - (
        tensors["weight_zero_point"].float() if "weight_zero_point" in tensors else 0
    )
    assert torch.equal(signed_codes * tensors["weight_scale"], weights.dense())


@given(
    outputs=st.integers(1, 20),
    inputs=st.integers(1, 20),
    block=st.sampled_from(((1, 1000), (1000, 1000), (4, 4), (3, 8))),
    name=st.sampled_from((float8_weights.SCALE, float8_weights.SCALE_INV)),
    seed=st.integers(0, 2**31),
)
def test_8_bit_floats_hold_what_was_packed_and_are_near_what_was_rounded(
    outputs: int, inputs: int, block: tuple[int, int], name: str, seed: int
) -> None:
    weight = torch.randn(outputs, inputs, generator=torch.Generator().manual_seed(seed))
    weights = float8_weights.round_to_float8(weight, block)
    tensors = float8_weights.pack(weights, scale_name=name)
    assert tensors["weight"].dtype == torch.float8_e4m3fn
    found = float8_weights.unpack(tensors, weights.block if block[1] < 1000 else None)
    assert torch.equal(found.dense(), weights.dense())
    # 3 bits of mantissa: half of 1/8 of a number, or of the smallest step of its block.
    steps = weights.dense() - weight
    assert bool((steps.abs() <= weight.abs() / 16 + weight.abs().max() / 448 * 2**-9).all())
