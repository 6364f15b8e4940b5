"""A few rows times quantised weights are the product of what the weights stand for, without a fault."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from kernels_numba.cuda import quantized_product as module
from kernels_numba.cuda.quantized_product import BITS, MAX_ROWS, outputs_per_warp, quantized_product
from tests.kernels.oracle import SEEDS, UNIT, normal, observe_all
from tests.kernels.test_planted_faults import Plant, plant

__all__ = ["plant"]

NAN = np.float32(np.nan)


def make_arrays(seed: int, rows: int, outputs: int, groups: int, words: int, bits: int) -> dict[str, Any]:
    """Arguments of the kernel for groups of so many words."""
    rng = np.random.default_rng(seed)
    inputs = groups * words * 32 // bits
    return {
        "x": normal(rng, rows, inputs),
        "words": rng.integers(0, 1 << 32, (outputs, groups * words), dtype=np.uint32),
        "scales": rng.random((outputs, groups), dtype=np.float32),
        "zeros": rng.integers(-1, 1 << bits, (outputs, groups)).astype(np.float32),
        "out": np.full((rows, outputs), NAN),
        "bits": bits,
        "group_size": words * 32 // bits,
    }


def weights_of(arrays: dict[str, Any]) -> Any:
    """What the words stand for, in float64."""
    bits = arrays["bits"]
    shifts = np.arange(0, 32, bits, dtype=np.uint32)
    codes = (arrays["words"][:, :, None] >> shifts) & np.uint32((1 << bits) - 1)
    codes = codes.reshape(len(codes), -1).astype(np.float64)
    scales, zeros = (
        arrays[name].astype(np.float64).repeat(arrays["group_size"], 1) for name in ("scales", "zeros")
    )
    return (codes - zeros) * scales


@settings(max_examples=8)
@given(
    seed=SEEDS,
    rows=st.sampled_from([1, 1, 2, 3]),
    outputs=st.integers(1, 18),
    groups=st.integers(1, 3),
    words=st.sampled_from([1, 2, 8]),
    bits=st.sampled_from(BITS),
)
@example(seed=0, rows=1, outputs=3, groups=1, words=33, bits=4)
@example(seed=1, rows=MAX_ROWS, outputs=9, groups=1, words=2, bits=8)
def test_the_product_is_that_of_what_the_codes_stand_for(seed, rows, outputs, groups, words, bits):
    arrays = make_arrays(seed, rows, outputs, groups, words, bits)
    (seen,) = observe_all(quantized_product(**arrays))
    weights = weights_of(arrays)
    most = np.abs(arrays["x"]).astype(np.float64) @ np.abs(weights).T
    allowed = (weights.shape[1] + 40) * UNIT * most
    assert (np.abs(arrays["out"] - arrays["x"].astype(np.float64) @ weights.T) <= allowed).all()
    (words_read,) = [row for row in seen.traffic() if row.array == "words"]
    assert words_read.read_bytes == arrays["words"].nbytes, "each word once"


@pytest.mark.parametrize("bits", BITS)
def test_words_are_read_in_whole_sectors_and_shared_memory_without_conflicts(bits):
    (seen,) = observe_all(quantized_product(**make_arrays(0, 2, 16, 4, 8, bits)))
    waste = {
        (row.array, row.kind): row.waste for row in seen.by_place() if row.array in ("words", "part", "x")
    }
    assert len(waste) == 4 and set(waste.values()) == {1.0}


def test_a_missing_barrier_is_a_race(plant: Plant):
    for right in (
        "            cuda.syncthreads()\n            word",
        "            cuda.syncthreads()  # all",
    ):
        wrong = right.replace("cuda.syncthreads()", "pass", 1)
        planted = plant(module, right, wrong)
        arrays = make_arrays(0, 1, 5, 3, 32, 4)
        faults = planted.quantized_product(**arrays).observe().faults
        assert {(fault.kind, fault.array) for fault in faults} & {("race", "part"), ("unwritten", "part")}


def test_sums_stay_in_registers():
    assert [outputs_per_warp(rows) for rows in (1, 4, 8, 16)] == [4, 4, 4, 2]


def f32(*shape: int) -> Any:
    return np.zeros(shape, np.float32)


@pytest.mark.parametrize(
    ("words", "change"),
    [
        ("bits must be 4 or 8, got 3", {"bits": 3}),
        ("x must be [rows, inputs], got the shape (64,)", {"x": f32(64)}),
        ("x must be of float32, got float64", {"x": np.zeros((2, 64))}),
        ("words must be of uint32, got int32", {"words": np.zeros((5, 8), np.int32)}),
        ("scales must be contiguous", {"scales": f32(5, 4)[:, ::2]}),
        ("the rows of x must be 1 to 16, got 17", {"x": f32(17, 64), "out": f32(17, 5)}),
        ("the rows of x must be 1 to 16, got 0", {"x": f32(0, 64), "out": f32(0, 5)}),
        ("group_size must divide the inputs (64) and be a multiple of 8", {"group_size": 12}),
        ("group_size must divide the inputs (64) and be a multiple of 8", {"group_size": 48}),
        ("group_size must divide the inputs (64) and be a multiple of 8", {"group_size": 0}),
        (
            "the words of a row must be that of inputs in words (8), got 7",
            {"words": np.zeros((5, 7), np.uint32)},
        ),
        (
            "the shape of scales must be that of outputs and groups ((5, 2)), got (5, 1)",
            {"scales": f32(5, 1)},
        ),
        ("the shape of zeros must be that of scales ((5, 2)), got (4, 2)", {"zeros": f32(4, 2)}),
        ("the shape of out must be that of rows and outputs ((2, 5)), got (2, 6)", {"out": f32(2, 6)}),
    ],
)
def test_what_the_kernel_cannot_do_is_refused_by_name(words, change):
    arrays = make_arrays(0, 2, 5, 2, 4, 4)
    quantized_product(**arrays)  # otherwise all is well
    with pytest.raises(ValueError) as caught:
        quantized_product(**(arrays | change))
    assert words in str(caught.value)
    assert np.isnan(arrays["out"]).all()
