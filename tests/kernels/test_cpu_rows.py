"""What is fused into one pass gives what the plain layers give: all shapes, types and divisions of rows."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numba import njit
from torch.nn import functional

from kernels_numba.cpu import rows
from kernels_numba.cpu.arithmetic import narrow
from minivllm.model.layers import RMSNorm, rotate
from minivllm.model.packed import as_array

CPU = torch.device("cpu")
DTYPES = st.sampled_from([torch.float32, torch.bfloat16])
TOLERANCE = {torch.float32: {"atol": 1e-5, "rtol": 1e-5}, torch.bfloat16: {"atol": 1e-2, "rtol": 2e-2}}
THREADS = st.sampled_from([1, 2])
EPS = np.float32(1e-5)


@njit
def NARROWED(values, out):
    for i in range(len(values)):
        out[i] = narrow(values[i], out)


TIES = st.integers(0, 2**16 - 1).map(lambda upper: np.uint32(upper << 16 | 0x8000).view(np.float32).item())


@given(st.lists(st.floats(width=32) | TIES, min_size=1, max_size=40).map(lambda v: [x for x in v if x == x]))
def test_a_float32_is_rounded_to_a_bfloat16_as_torch_rounds_it(values):
    wide = torch.tensor(values, dtype=torch.float32)
    out = torch.empty(len(values), dtype=torch.bfloat16)
    NARROWED(wide.numpy(), as_array(out))
    assert torch.equal(out, wide.bfloat16())


def test_what_is_no_number_stays_none():
    out = torch.zeros(1, dtype=torch.bfloat16)
    NARROWED(np.array([np.nan], np.float32), as_array(out))
    assert out.isnan().all()


def random(shape, dtype, seed):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.fixture(autouse=True)
def small_work_on_all_threads_too(monkeypatch):
    """Otherwise only the serial forms would be seen here; compiled callers have the real threshold."""
    monkeypatch.setattr(rows, "PARALLEL_CELLS", 500)


@given(st.integers(0, 50), st.sampled_from([1, 7, 16, 64, 130]), DTYPES, THREADS, st.integers(0, 99))
@settings(deadline=None)
def test_norm_is_the_norm_of_the_layers(num_rows, size, dtype, threads, seed):
    x, layer = random((num_rows, size), dtype, seed), RMSNorm(size, float(EPS), dtype, CPU)
    layer.weight.copy_(random((size,), dtype, seed + 1))
    out = torch.full_like(x, torch.nan)
    rows.norm.py_func(as_array(x), as_array(layer.weight), EPS, as_array(out), threads)
    torch.testing.assert_close(out, layer(x), **TOLERANCE[dtype])


@given(st.integers(0, 50), st.sampled_from([1, 7, 16, 64, 130]), DTYPES, THREADS, st.floats(0, 200))
@settings(deadline=None)
def test_gate_is_silu_of_one_half_times_the_other(num_rows, size, dtype, threads, scale):
    gate_up = (scale * random((num_rows, 2 * size), torch.float32, 3)).to(dtype)
    out = torch.full((num_rows, size), torch.nan, dtype=dtype)
    rows.gate.py_func(as_array(gate_up), as_array(out), threads)
    gate, up = gate_up.float().chunk(2, dim=-1)
    torch.testing.assert_close(out, (functional.silu(gate) * up).to(dtype), **TOLERANCE[dtype])


@given(
    num_rows=st.integers(0, 30),
    heads=st.sampled_from([(1, 1), (4, 2), (6, 3), (8, 1)]),
    head_dim=st.sampled_from([2, 8, 48, 64]),
    block_size=st.sampled_from([1, 4, 16]),
    has_norms=st.booleans(),
    dtype=DTYPES,
    threads=THREADS,
    seed=st.integers(0, 99),
)
@settings(deadline=None)
def test_rotate_norms_rotates_and_writes_each_token_into_its_cell_and_nowhere_else(
    num_rows, heads, head_dim, block_size, has_norms, dtype, threads, seed
):
    (num_heads, kv_heads), num_blocks = heads, 40
    qkv = random((num_rows, num_heads + 2 * kv_heads, head_dim), dtype, seed)
    angles = random((50, head_dim // 2), torch.float32, seed + 1)
    pairs = torch.stack((angles.cos(), angles.sin()), dim=1).to(dtype).float()
    positions = np.random.default_rng(seed + 9).integers(0, 50, num_rows)
    cos, sin = pairs[torch.from_numpy(positions)].unbind(dim=1)
    norms = [RMSNorm(head_dim, float(EPS), dtype, CPU) for _ in range(2)]
    for number, layer in enumerate(norms):
        layer.weight.copy_(random((head_dim,), dtype, seed + 2 + number))
    slots = np.random.default_rng(seed).permutation(num_blocks * block_size)[:num_rows]
    keys, values = (
        torch.full((num_blocks, kv_heads, block_size, head_dim), 9.0, dtype=dtype) for _ in range(2)
    )
    queries = torch.full((num_rows, num_heads, head_dim), torch.nan, dtype=dtype)
    weights = [as_array(layer.weight if has_norms else layer.weight[:0]) for layer in norms]
    rows.rotate.py_func(
        as_array(qkv.flatten(1)), pairs.numpy(), positions, *weights, EPS, slots,
        as_array(keys), as_array(values), as_array(queries), threads,
    )  # fmt: skip

    query, key, value = qkv.split((num_heads, kv_heads, kv_heads), dim=1)
    if has_norms:
        query, key = norms[0](query), norms[1](key)
    cos_both = torch.cat((cos, cos), dim=-1)[:, None].to(dtype)
    sin_both = torch.cat((-sin, sin), dim=-1)[:, None].to(dtype)
    torch.testing.assert_close(queries, rotate(query, cos_both, sin_both), **TOLERANCE[dtype])
    expected_keys, expected_values = torch.full_like(keys, 9.0), torch.full_like(values, 9.0)
    blocks, cells = torch.from_numpy(slots // block_size), torch.from_numpy(slots % block_size)
    expected_keys[blocks, :, cells] = rotate(key, cos_both, sin_both)
    expected_values[blocks, :, cells] = value
    torch.testing.assert_close(keys, expected_keys, **TOLERANCE[dtype])
    assert torch.equal(values, expected_values)
