"""Products with matrices in panels are those of the matrices: all shapes, types and divisions of work."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels_numba.cpu import panels
from kernels_numba.cpu.panels import ROWS, WIDTH, multiply, pack, padded, unpack
from minivllm.model.packed import as_array

DTYPES = st.sampled_from([torch.float32, torch.bfloat16])
SIZES = st.one_of(
    st.integers(1, 12), st.sampled_from([WIDTH - 1, WIDTH, WIDTH + 1, 3 * WIDTH, 5 * WIDTH + 7])
)
STEPS = st.one_of(st.integers(1, 12), st.sampled_from([64, 100, 512, 513, 1025, 1030]))
NUM_ROWS = st.one_of(st.integers(0, 3 * ROWS), st.sampled_from([119, 120, 121, 127, 250]))


def random(shape, dtype, seed):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@given(SIZES, STEPS, DTYPES, st.booleans(), st.integers(0, 9))
@settings(deadline=None)
def test_a_matrix_comes_out_of_panels_as_it_went_in(n, k, dtype, may_pair, seed):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(panels, "HAS_PAIRS", panels.HAS_PAIRS and may_pair)
        weight = as_array(random((n, k), dtype, seed))
        assert np.array_equal(unpack(pack(weight), n), weight)


@given(
    num_rows=NUM_ROWS,
    n=SIZES,
    k=STEPS,
    dtype=DTYPES,
    may_pair=st.booleans(),
    fresh=st.booleans(),
    threads=st.integers(1, 5),
    parallel_steps=st.sampled_from([1, 1 << 16]),
    seed=st.integers(0, 99),
)
@settings(deadline=None)
def test_products_are_those_of_torch(num_rows, n, k, dtype, may_pair, fresh, threads, parallel_steps, seed):
    x, weight = random((num_rows, k), dtype, seed), random((n, k), dtype, seed + 1)
    before = random((num_rows, padded(n)), torch.float32, seed + 2)
    expected = x.double() @ weight.double().T + (0 if fresh else before[:, :n].double())
    if fresh:
        before.fill_(torch.nan)  # what is there must not matter
    out = before.clone()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(panels, "HAS_PAIRS", panels.HAS_PAIRS and may_pair)
        patch.setattr(panels, "PARALLEL_STEPS", parallel_steps)
        # Its compiled form has a threshold of its own; this one asks for the one above.
        multiply.py_func(as_array(x), pack(as_array(weight)), out.numpy(), fresh, threads)
    torch.testing.assert_close(out[:, :n].double(), expected, atol=1e-4, rtol=1e-4)
    behind = out[:, n:]
    assert torch.equal(behind, torch.zeros_like(behind) if fresh else before[:, n:])


@pytest.mark.skipif(not panels.HAS_PAIRS, reason="this processor does not multiply pairs of bfloat16")
def test_an_odd_number_of_steps_is_not_paired():
    assert pack(np.zeros((3, 7), np.uint16)).dtype == np.uint16
    assert pack(np.zeros((3, 8), np.uint16)).dtype == np.uint32
    assert pack(np.zeros((3, 8), np.float32)).dtype == np.float32
