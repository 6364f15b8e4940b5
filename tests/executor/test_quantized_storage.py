"""Keys and values in 8 bits: codes are near what was written, and scales go wherever their block goes."""

import logging

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from minivllm.executor.block_mover import BlockMover
from minivllm.executor.kv_format import (
    LEAST_SCALE,
    from_fp8,
    from_int8,
    scales_of_layers,
    to_fp8,
    to_int8,
)
from minivllm.executor.kv_storage import KEYS, VALUES, bytes_per_block, decide_num_blocks
from minivllm.executor.quantized_storage import make_storage, twin_of
from minivllm.memory.block_move import BlockMove
from minivllm.model.decoder import KVScales
from tests.executor.test_attention import CPU, kept, model, places, poison, put

DTYPES = st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16])
KINDS = ["int8_per_token_head", "fp8"]
E4M3 = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).double()
E4M3 = E4M3[E4M3.isfinite()].unique()


def randn(seed, *shape, dtype=torch.float32, spread=3.0):
    """Heads of very different sizes."""
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.exp(spread * torch.randn(*shape[:-1], 1, generator=generator))
    return (torch.randn(shape, generator=generator) * sizes).to(dtype)


@given(seed=st.integers(0, 9999), head_dim=st.sampled_from([1, 2, 16, 48]), dtype=DTYPES)
def test_a_code_is_at_most_half_a_step_away(seed, head_dim, dtype):
    rows = randn(seed, 5, 3, head_dim, dtype=dtype)
    codes, scales = to_int8(rows)
    assert codes.dtype == torch.int8 and scales.dtype == torch.float32 and scales.shape == (5, 3)
    from_int8(codes, scales, out := torch.empty(rows.shape, dtype=torch.float64))
    assert ((out - rows.double()).abs() <= scales[..., None].double() * 0.50003).all()
    largest = rows.abs().amax(-1).double()
    torch.testing.assert_close(scales.double(), largest / 127, rtol=2e-7, atol=LEAST_SCALE)


def test_what_lies_in_the_middle_goes_away_from_zero():
    rows = torch.tensor([[127.0, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 0.0]])
    codes, scales = to_int8(rows)
    assert scales.tolist() == [1.0]
    assert codes.tolist() == [[127, 1, 2, 3, -1, -2, -3, 0]]


def test_a_head_of_zeros_stays_zeros_and_a_number_that_is_none_stays_none():
    rows = torch.tensor([[0.0, 0.0], [1e-9, 0.0], [float("nan"), 1.0], [float("inf"), 1.0]])
    codes, scales = to_int8(rows)
    from_int8(codes, scales, out := torch.empty(4, 2))
    assert out[:2].eq(0).all() and scales[:2].eq(LEAST_SCALE).all()
    assert out[2:].isnan().any(-1).all(), "an engine must notice, and not answer with nonsense"


@given(seed=st.integers(0, 9999), cut=st.integers(0, 7))
def test_codes_of_a_token_depend_on_that_token_alone(seed, cut):
    rows = randn(seed, 7, 2, 16)
    codes, scales = to_int8(rows)
    for part in (slice(0, cut), slice(cut, 7)):
        assert torch.equal(to_int8(rows[part])[0], codes[part])
        assert torch.equal(to_int8(rows[part])[1], scales[part])


@given(seed=st.integers(0, 9999), scale=st.sampled_from([1.0, 0.01, 0.3]), dtype=DTYPES)
def test_a_byte_is_the_nearest_float_or_the_largest(seed, scale, dtype):
    rows = randn(seed, 40, 4, dtype=dtype, spread=4.0)
    from_fp8(to_fp8(rows, scale), scale, out := torch.empty(rows.shape))
    wanted = rows.float().double() / scale
    nearest = (wanted[..., None] - E4M3).abs().amin(-1)
    error = (out.double() / scale - wanted).abs()
    assert (error <= nearest * (1 + 1e-6) + 1e-9 + wanted.abs() * 1e-6).all()
    assert out.abs().max() <= 448 * scale * (1 + 1e-6)


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data(), dtype=DTYPES)
def test_what_a_block_holds_is_what_its_tokens_were_wherever_it_went(kind, data, dtype):
    """Writes, copies, swaps and rewrites in any order; what each slot stands for is kept in a dictionary."""
    config, num_blocks, num_host, size = model((2, 2), 4, [None, None]), 4, 3, 2
    scales = [KVScales(0.5, 0.25), KVScales(0.01, 4.0)]
    cache = make_storage(config, num_blocks, size, dtype, CPU, kind, scales)
    swap_space = twin_of(cache, config, num_host, CPU)
    poison(cache)
    poison(swap_space)
    mover = BlockMover(cache, swap_space)
    here, there = {}, {}  # (block, offset): a token's number
    kinds = st.sampled_from(["write", "write", "copy", "swap_out", "swap_in"])
    for number in range(data.draw(st.integers(1, 14))):
        what = data.draw(kinds)
        if what == "write":
            block, offset = data.draw(st.integers(0, num_blocks - 1)), data.draw(st.integers(0, size - 1))
            for layer in range(2):
                put(cache, layer, block, offset, *token(number, layer, dtype))
            here[block, offset] = number
            continue
        given, taken = (there if what == "swap_out" else here), (there if what == "swap_in" else here)
        limits = num_host if what == "swap_in" else num_blocks, num_host if what == "swap_out" else num_blocks
        source, target = (data.draw(st.integers(0, limit - 1)) for limit in limits)
        mover.carry_out([BlockMove(what, source, target)])
        moved = {o: taken.get((source, o)) for o in range(size)}
        for offset, held in moved.items():
            given.pop((target, offset), None)
            if held is not None:
                given[target, offset] = held
    for storage, books in ((cache, here), (swap_space, there)):
        for (block, offset), number in books.items():
            for layer in range(2):
                for part, rows in zip((KEYS, VALUES), token(number, layer, dtype), strict=True):
                    out = torch.empty(rows.shape, dtype=dtype)
                    storage.gather(layer, part, places(storage, block, offset), out)
                    assert torch.equal(out, kept(storage, layer, part, rows).to(dtype))


def token(number, layer, dtype):
    """Key and value [kv_heads, head_dim] of a token."""
    return randn(2 * number + layer, 2, 2, 4, dtype=dtype).unbind(0)


@pytest.mark.parametrize(("kind", "per_head"), [("auto", 64), ("int8_per_token_head", 36), ("fp8", 32)])
def test_bytes_are_counted_as_they_are_kept(kind, per_head):
    config = model((4, 2), 32, [None, None])
    storage = make_storage(config, 3, 16, torch.bfloat16, CPU, kind)
    assert storage.bytes_per_token == 2 * 2 * 2 * per_head  # layers · keys and values · heads
    assert storage.num_bytes == 3 * bytes_per_block(config, 16, torch.bfloat16, kind)
    blocks = decide_num_blocks(
        config, block_size=16, dtype=torch.bfloat16, device=CPU, max_num_seqs=1, max_model_len=1,
        weight_bytes=0, kv_cache_memory_bytes=storage.num_bytes, kv_cache_dtype=kind,
    )  # fmt: skip
    assert blocks == 3


def test_scales_that_a_checkpoint_does_not_have_are_one_and_said(caplog):
    known = (KVScales(0.5, 0.25), None)
    with caplog.at_level(logging.WARNING, "minivllm"):
        assert scales_of_layers("int8_per_token_head", known)[1] == KVScales(1.0, 1.0)
        assert not caplog.records
        assert scales_of_layers("fp8_e4m3", known) == (KVScales(0.5, 0.25), KVScales(1.0, 1.0))
    assert "1 of its 2 layers" in caplog.text and "int8_per_token_head" in caplog.text


def test_a_kind_that_there_is_not_is_refused_with_the_list():
    with pytest.raises(
        ValueError, match=r"kv_cache_dtype must be one of 'auto', 'int8_per_token_head'.*'int4'"
    ):
        make_storage(model((1, 1), 2, [None]), 1, 1, torch.float32, CPU, "int4")
