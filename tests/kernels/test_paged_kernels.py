"""Paged attention is attention, whatever the blocks; and what goes into the cache comes out of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from kernels_numba.cuda.copy_blocks import copy_blocks
from kernels_numba.cuda.instructions import e4m3_at, int8_at
from kernels_numba.cuda.kv_write import kv_write
from kernels_numba.cuda.kv_write_int8 import kv_write_int8
from kernels_numba.cuda.launch import Launch
from kernels_numba.cuda.paged_attention import (
    CACHE_DTYPES,
    HEAD_DIMS,
    PLAIN_DTYPES,
    SMALL_DTYPES,
    choose_splits,
    paged_attention,
)
from kernels_numba.meanings import meaning_of
from minivllm.executor.kv_format import to_int8
from tests.kernels.oracle import (
    SEEDS,
    allowed_error,
    as_cache,
    as_small_cache,
    assert_close,
    attention,
    normal,
    observe_all,
    written_arrays,
)

NAN = np.float32(np.nan)


@dataclass(repr=False)
class World:
    """Sequences in a cache of blocks, with NaN wherever no token is."""

    query: Any
    keys: Any
    values: Any
    tables: Any
    lengths: Any
    cache_dtype: str
    exact: list[tuple[Any, Any]]
    """Keys and values of each sequence, [L, KV, d], as they are after rounding."""
    unused: Any
    """Cells of the cache that belong to no token."""
    scales: tuple[Any, Any] = (1.0, 1.0)
    """Of keys and values in 8 bits."""

    @property
    def poison(self) -> dict[str, Any]:
        """What must not be looked at, by the names of the kernel's parameters."""
        needed = -(-self.lengths // self.keys.shape[2])
        behind = np.arange(self.tables.shape[1]) >= needed[:, None]
        poison = {"keys": self.unused, "values": self.unused, "tables": behind}
        if self.cache_dtype == "int8":
            poison |= {"key_scales": self.unused[..., 0], "value_scales": self.unused[..., 0]}
        return poison

    def launches(
        self, splits: int = 1, scale: float | None = None, **change: Any
    ) -> tuple[list[Launch], Any]:
        """The kernels, and where their output goes."""
        n, heads, dim = self.query.shape
        out = np.full_like(self.query, NAN)
        arrays = {
            "query": self.query,
            "keys": self.keys,
            "values": self.values,
            "tables": self.tables,
            "lengths": self.lengths,
            "out": out,
            "parts": np.full((n, heads, splits, dim), NAN),
            "log_sums": np.full((n, heads, splits), NAN),
            "key_scales": self.scales[0],
            "value_scales": self.scales[1],
        }
        return paged_attention(**(arrays | change), scale=scale, cache_dtype=self.cache_dtype), out

    def expected(self, scale: float | None) -> Any:
        return np.concatenate(
            [
                attention(self.query[i : i + 1], k, v, scale, causal=False)
                for i, (k, v) in enumerate(self.exact)
            ]
        )

    def error(self, scale: float | None, tiles: int) -> float:
        return max(
            allowed_error(self.query[i : i + 1], k, v, scale, tiles) for i, (k, v) in enumerate(self.exact)
        )


def make_world(
    seed: int,
    lengths: list[int],
    block_size: int = 4,
    heads: tuple[int, int] = (1, 1),
    dim: int = 32,
    cache_dtype: str = "float32",
) -> World:
    """Blocks in random order, tables longer than needed and full of nonsense behind the end."""
    rng = np.random.default_rng(seed)
    needed = [-(-length // block_size) for length in lengths]
    num_blocks = sum(needed) + 2
    free = rng.permutation(num_blocks).tolist()
    tables = rng.choice([-7, num_blocks, 2**31 - 1], size=(len(lengths), max(needed) + 1)).astype(np.int32)
    numbers = [np.full((num_blocks, heads[1], block_size, dim), NAN) for _ in range(2)]
    for sequence, length in enumerate(lengths):
        for index in range(needed[sequence]):
            block = tables[sequence, index] = free.pop()
            rows = min(block_size, length - index * block_size)
            for cache in numbers:
                cache[block, :, :rows] = normal(rng, heads[1], rows, dim)
    scales: tuple[Any, Any] = (1.0, 1.0)
    if cache_dtype in SMALL_DTYPES:
        small = [as_small_cache(cache, cache_dtype) for cache in numbers]
        (keys, _, exact_keys), (values, _, exact_values) = small
        scales = small[0][1], small[1][1]
    else:
        (keys, exact_keys), (values, exact_values) = (as_cache(cache, cache_dtype) for cache in numbers)
    exact = []
    for sequence, length in enumerate(lengths):
        blocks = tables[sequence, : needed[sequence]]
        exact.append(
            tuple(
                cache[blocks].transpose(0, 2, 1, 3).reshape(-1, heads[1], dim)[:length]
                for cache in (exact_keys, exact_values)
            )
        )
    unused = np.isnan(numbers[0]).reshape(*keys.shape, -1).all(-1)
    query = normal(rng, len(lengths), heads[0], dim)
    return World(query, keys, values, tables, np.array(lengths, np.int32), cache_dtype, exact, unused, scales)


WORLDS = st.builds(
    make_world,
    SEEDS,
    st.lists(st.integers(0, 9) | st.sampled_from([0, 1, 33]), min_size=1, max_size=2),
    st.sampled_from([1, 2, 3, 4, 5, 8, 16, 32]),
    st.sampled_from([(1, 1), (2, 1), (3, 1), (2, 2)]),
    st.sampled_from([32, 32, 64, 96]),
    st.sampled_from(PLAIN_DTYPES + CACHE_DTYPES),
)


@settings(max_examples=max(8, settings.default.max_examples // 10))
@given(world=WORLDS, splits=st.sampled_from([1, 1, 2, 4]), scale=st.sampled_from([None, 0.05, 0.5]))
@example(make_world(0, [0, 1, 20], 16, (8, 1), 64, "bfloat16"), 3, None)
@example(make_world(2, [6], 5, (5, 1)), 1, None)
@example(make_world(3, [9, 3], 3, (6, 2)), 2, None)
@example(make_world(4, [4], 32, (7, 1)), 1, None)
@example(make_world(1, [17], 1, (4, 2), 32, "float16"), 1, 0.5)
@example(make_world(5, [21, 3], 4, (4, 2), 64, "int8"), 2, None)
@example(make_world(6, [0, 18], 16, (4, 1), 64, "fp8"), 2, None)
def test_paged_attention_is_attention_over_the_tokens_of_every_sequence(world, splits, scale):
    before = [array.copy() for array in (world.query, world.keys, world.values, world.tables)]
    launches, out = world.launches(splits, scale)
    seen = observe_all(launches, **world.poison, out=True)
    after = (world.query, world.keys, world.values, world.tables)
    assert all(a.tobytes() == b.tobytes() for a, b in zip(before, after, strict=True))
    assert [written_arrays(run) for run in seen] == [{"out", "log_sums"}, {"out"}]
    error = world.error(scale, tiles=len(world.tables[0]) * world.keys.shape[2] + splits)
    assert_close(out, world.expected(scale), error)
    assert (out[world.lengths == 0] == 0).all()


@pytest.mark.parametrize("cache_dtype", CACHE_DTYPES)
@pytest.mark.parametrize("dim", HEAD_DIMS)
def test_heads_of_every_width_are_attention_in_every_type_of_cache(dim, cache_dtype):
    world = make_world(dim, [5], 4, (2, 1), dim, cache_dtype)
    launches, out = world.launches()
    observe_all(launches, **world.poison)
    assert_close(out, world.expected(None), world.error(None, tiles=9))


def test_with_one_split_the_output_is_the_same_whether_parts_are_apart_or_the_output_itself():
    world = make_world(0, [9, 2], heads=(2, 1))
    launches, apart = world.launches()
    assert len(launches) == 2
    observe_all(launches)
    together = np.full_like(apart, NAN)
    launches, _ = world.launches(out=together, parts=together[:, :, None])
    assert len(launches) == 1
    observe_all(launches)
    assert_close(together, apart.astype(float), 2e-6)
    assert_close(together, world.expected(None), world.error(None, tiles=12))


@settings(max_examples=6)
@given(world=WORLDS, splits=st.integers(1, 2), order=st.randoms(use_true_random=False))
def test_permuting_the_blocks_of_the_pool_changes_not_one_bit(world, splits, order):
    launches, out = world.launches(splits)
    observe_all(launches)
    moved = list(range(len(world.keys)))
    order.shuffle(moved)  # what was in block b is now in block moved[b]
    back = np.argsort(moved)
    tables = world.tables.copy()
    inside = (tables >= 0) & (tables < len(moved))
    tables[inside] = np.array(moved, np.int32)[tables[inside]]
    elsewhere = np.full_like(out, NAN)
    change = dict(keys=world.keys[back], values=world.values[back], tables=tables, out=elsewhere)
    if world.cache_dtype == "int8":
        change |= dict(key_scales=world.scales[0][back], value_scales=world.scales[1][back])
    launches, _ = world.launches(splits, **change)
    observe_all(launches)
    assert out.tobytes() == elsewhere.tobytes()


def test_every_load_of_the_cache_is_wide_and_asks_for_each_byte_once():
    world = make_world(5, [32], 8, (4, 1), 64)
    launches, _ = world.launches()
    (seen, _) = observe_all(launches)
    for row in seen.by_place():
        if row.array in ("keys", "values"):
            assert row.waste == 1 and row.num_bytes == 16 * row.num_lanes
    for line in seen.traffic():
        if line.array in ("keys", "values"):  # four query heads, and read once
            assert line.read_bytes == line.moved_bytes == line.compulsory_bytes == 32 * 64 * 4


@given(st.integers(0, 300), st.integers(1, 64), st.integers(0, 4000), st.integers(1, 200))
def test_splits_are_no_more_than_are_worth_merging_nor_than_the_device_has_room_for(
    n, heads, blocks, processors
):
    splits = choose_splits(n, heads, blocks, processors)
    assert 1 <= splits <= max(1, blocks // 16)
    assert splits == 1 or splits * n * heads <= 2 * processors or n == 0
    assert splits >= min(blocks // 16, 2 * processors // max(1, n * heads))


# ── into the cache, and within it ─────────────────────────────────────────────────────────────────────────


@settings(max_examples=20)
@given(
    seed=SEEDS,
    dtype=st.sampled_from(["float32", "float16", "uint16", "uint32"]),
    shape=st.tuples(st.integers(1, 3), st.integers(1, 2), st.sampled_from([1, 3, 4, 16])),
    dim=st.sampled_from([1, 8, 33]),
    num_tokens=st.integers(1, 6),
    as_tensor=st.booleans(),
)
def test_every_token_goes_to_its_slot_and_nowhere_else(seed, dtype, shape, dim, num_tokens, as_tensor):
    rng = np.random.default_rng(seed)
    keys, values = (rng.integers(0, 60000, (*shape, dim)).astype(dtype) for _ in range(2))
    key, value = (rng.integers(0, 60000, (num_tokens, shape[1], dim)).astype(dtype) for _ in range(2))
    slots = rng.permutation(shape[0] * shape[2] + num_tokens)[:num_tokens].astype(np.int32)
    slots[slots >= shape[0] * shape[2]] = -1
    expected = [cache.copy() for cache in (keys, values)]
    for token, slot in enumerate(slots):
        if slot >= 0:
            block, row = divmod(int(slot), shape[2])
            expected[0][block, :, row], expected[1][block, :, row] = key[token], value[token]
    arrays = [key, value, keys, values, slots]
    if as_tensor:
        arrays = [torch.from_numpy(array) for array in arrays]
    written = (keys != expected[0], values != expected[1])
    (seen,) = observe_all(kv_write(*arrays), keys=True, values=True)
    assert (keys == expected[0]).all() and (values == expected[1]).all()
    assert written_arrays(seen) <= {"keys", "values"}
    assert sum(w.sum() for w in written) <= (seen.columns["kind"] == 1).sum() == 2 * key[slots >= 0].size


@settings(max_examples=10)
@given(seed=SEEDS, length=st.integers(1, 9), block_size=st.integers(1, 5))
def test_what_is_written_is_what_is_attended_to(seed, length, block_size):
    rng = np.random.default_rng(seed)
    key, value, query = normal(rng, length, 1, 32), normal(rng, length, 1, 32), normal(rng, 1, 2, 32)
    num_blocks = -(-length // block_size) + 1
    table = rng.permutation(num_blocks).astype(np.int32)
    slots = np.array([table[i // block_size] * block_size + i % block_size for i in range(length)], np.int32)
    keys, values = (np.full((num_blocks, 1, block_size, 32), NAN) for _ in range(2))
    observe_all(kv_write(key, value, keys, values, slots), keys=True, values=True)
    out, log_sums = np.full_like(query, NAN), np.zeros((1, 2, 1), np.float32)
    lengths = np.array([length], np.int32)
    launches = paged_attention(query, keys, values, table[None], lengths, out, out[:, :, None], log_sums)
    unused = np.isnan(keys)
    observe_all(launches, keys=unused, values=unused)
    error = allowed_error(query, key, value, None, tiles=length + block_size)
    assert_close(out, attention(query, key, value, None, causal=False), error)


@settings(max_examples=20)
@given(
    seed=SEEDS,
    shape=st.tuples(st.integers(1, 3), st.integers(1, 2), st.sampled_from([1, 3, 16])),
    dim=st.sampled_from([1, 8, 33, 64]),
    num_tokens=st.integers(1, 4),
)
def test_whole_numbers_are_the_plain_ones_to_the_bit_and_go_to_their_slots(seed, shape, dim, num_tokens):
    rng = np.random.default_rng(seed)
    sizes = np.exp(4 * rng.normal(size=(2, num_tokens, shape[1], 1)))
    new = (rng.normal(size=(2, num_tokens, shape[1], dim)) * sizes).astype(np.float32)
    new[:, 0, 0] = np.round(new[:, 0, 0] / sizes[:, 0, 0] * 20) / 2  # some in the very middle of two codes
    new[:, 0, 0, 0] = 127
    slots = rng.permutation(shape[0] * shape[2] + num_tokens)[:num_tokens].astype(np.int32)
    slots[slots >= shape[0] * shape[2]] = -1
    codes, scales = np.full((2, *shape, dim), 99, np.int8), np.full((2, *shape), np.float32(99))
    expected_codes, expected_scales = codes.copy(), scales.copy()
    for part in range(2):
        own_codes, own_scales = (tensor.numpy() for tensor in to_int8(torch.from_numpy(new[part])))
        for token, slot in enumerate(slots):
            if slot >= 0:
                block, row = divmod(int(slot), shape[2])
                expected_codes[part, block, :, row] = own_codes[token]
                expected_scales[part, block, :, row] = own_scales[token]
    observe_all(
        kv_write_int8(*new, *codes, *scales, slots),
        keys=True,
        values=True,
        key_scales=True,
        value_scales=True,
    )
    assert (codes == expected_codes).all() and (scales == expected_scales).all()


def test_a_head_with_what_is_no_number_gets_no_number_for_a_scale():
    new = np.array([[[1.0, np.nan]]], np.float32)
    codes, scales = np.zeros((2, 1, 1, 1, 2), np.int8), np.zeros((2, 1, 1, 1), np.float32)
    with np.errstate(invalid="ignore"):
        observe_all(kv_write_int8(new, new, *codes, *scales, np.zeros(1, np.int32)))
    assert np.isnan(scales).all()


def test_every_byte_is_read_as_what_it_is_wherever_in_a_word():
    as_float, as_whole = meaning_of(e4m3_at), meaning_of(int8_at)
    for byte in range(256):
        one = torch.tensor([byte], dtype=torch.uint8)
        expected = one.view(torch.float8_e4m3fn).float().item(), one.view(torch.int8).item()
        for n in range(4):
            word = np.uint32(byte << 8 * n | 0x5A5A5A5A & ~(0xFF << 8 * n))
            read = as_float(None, word, n)
            assert read == expected[0] or (np.isnan(read) and np.isnan(expected[0]))
            assert as_whole(None, word, n) == expected[1]


@settings(max_examples=20)
@given(
    order=st.permutations(range(6)),
    count=st.integers(1, 3),
    cells=st.sampled_from([1, 31, 256, 300]),
    dtype=st.sampled_from(["float32", "uint16", "int8"]),
)
def test_blocks_are_copied_as_numpy_copies_them(order, count, cells, dtype):
    cache = np.random.default_rng(0).integers(0, 100, (6, cells)).astype(dtype)
    pairs = np.array([order[2 * i : 2 * i + 2] for i in range(count)], np.int32)
    expected = cache.copy()
    expected[pairs[:, 1]] = cache[pairs[:, 0]]
    untouched = np.ones(cache.shape, bool)
    untouched[pairs[:, 0]] = False
    (seen,) = observe_all(copy_blocks(cache, pairs), cache=untouched)
    assert (cache == expected).all()
    assert {(row.array, row.waste) for row in seen.by_place() if row.array == "cache" and cells == 256} <= {
        ("cache", 1)
    }


def test_several_pairs_may_have_one_source():
    cache = np.arange(8).reshape(4, 2)
    observe_all(copy_blocks(cache, np.array([[1, 0], [1, 3]], np.int32)))
    assert cache.tolist() == [[2, 3], [2, 3], [4, 5], [2, 3]]


# ── what is refused ───────────────────────────────────────────────────────────────────────────────────────


def f32(*shape: int) -> Any:
    return np.zeros(shape, np.float32)


def i32(*numbers: Any) -> Any:
    return np.array(numbers, np.int32)


def half_cache() -> Any:
    return np.zeros((3, 1, 4, 16), np.uint32)


def small_cache() -> dict[str, Any]:
    words = np.zeros((3, 1, 4, 8), np.uint32)
    return {"keys": words, "values": words, "key_scales": f32(3, 1, 4), "value_scales": f32(3, 1, 4)}


PAGED = [
    (
        "cache_dtype must be one of float32, float16, bfloat16, int8, fp8, got 'int4'",
        {"cache_dtype": "int4"},
    ),
    (
        "key_scales must be [blocks, kv_heads, block_size]",
        {"cache_dtype": "int8", **small_cache(), "key_scales": f32(3)},
    ),
    (
        "the shape of value_scales must be that of keys",
        {"cache_dtype": "int8", **small_cache(), "value_scales": f32(3, 1, 5)},
    ),
    ("query must be [sequences, heads, head_dim]", {"query": f32(2, 64)}),
    ("out must be of float32, got float64", {"out": np.zeros((1, 2, 32))}),
    ("the shape of out must be that of query", {"out": f32(1, 1, 32)}),
    ("head_dim must be one of 32, 64", {"query": f32(1, 2, 40), "out": f32(1, 2, 40)}),
    ("keys must be of uint32, got float32", {"cache_dtype": "float16"}),
    ("keys must be of float32, got uint32", {"keys": half_cache()}),
    ("the last dimension of keys must be that of head_dim (32), got 64", {"keys": f32(3, 1, 4, 64)}),
    ("values must be contiguous", {"values": f32(3, 1, 4, 64)[..., ::2]}),
    ("the shape of values must be that of keys", {"values": f32(4, 1, 4, 32)}),
    ("the heads of query (2) must be a multiple", {"keys": f32(3, 3, 4, 32), "values": f32(3, 3, 4, 32)}),
    ("tables must be of int32, got int64", {"tables": np.zeros((1, 2), np.int64)}),
    ("tables must be [sequences, max blocks]", {"tables": i32(0, 1)}),
    ("lengths must be of int32", {"lengths": np.array([3])}),
    ("the number of lengths must be that of sequences", {"lengths": i32(3, 3)}),
    ("the number of tables must be that of sequences", {"tables": i32([0, 1], [1, 2])}),
    ("the shape of parts must be that of query", {"parts": f32(1, 2, 1, 64)}),
    ("parts must have room for at least one split", {"parts": f32(1, 2, 0, 32), "log_sums": f32(1, 2, 0)}),
    ("the shape of log_sums must be that of parts", {"log_sums": f32(1, 2, 2)}),
    ("tables[0, 1] must be a block of the cache (0 to 2), got 3", {"tables": i32([0, 3])}),
    ("tables[0, 0] must be a block of the cache (0 to 2), got -1", {"tables": i32([-1, 0])}),
    ("lengths[0] must be from 0 to 8, what its table has room for, got 9", {"lengths": i32(9)}),
    ("lengths[0] must be from 0 to 8, what its table has room for, got -1", {"lengths": i32(-1)}),
]
WRITE = [
    ("key must be [tokens, kv_heads, head_dim]", {"key": f32(2, 8)}),
    ("key must be of float32 or float16", {"key": np.zeros((2, 1, 8)), "value": np.zeros((2, 1, 8))}),
    ("the shape of value must be that of key", {"value": f32(3, 1, 8)}),
    ("the type of value must be that of key", {"value": np.zeros((2, 1, 8), np.float16)}),
    ("keys must be of float32, got float16", {"keys": np.zeros((2, 1, 4, 8), np.float16)}),
    ("the shape of values must be that of keys", {"values": f32(3, 1, 4, 8)}),
    ("the heads of keys must be that of key", {"keys": f32(2, 1, 4, 9), "values": f32(2, 1, 4, 9)}),
    ("slots must be of int32", {"slots": np.array([0, 1])}),
    ("the number of slots must be that of tokens", {"slots": i32(0, 1, 2)}),
    ("slots[1] must be -1 or from 0 to 7, got 8", {"slots": i32(0, 8)}),
    ("slots[0] must be -1 or from 0 to 7, got -2", {"slots": i32(-2, 0)}),
    ("slots must be all different", {"slots": i32(3, 3)}),
    ("values must be contiguous", {"values": f32(2, 1, 8, 4).transpose(0, 1, 3, 2)}),
]
COPY = [
    ("cache must be [blocks, cells]", {"cache": f32(4, 2, 2)}),
    ("cache must be contiguous", {"cache": f32(4, 4)[:, ::2]}),
    ("pairs must be of int32", {"pairs": np.array([[0, 1]])}),
    ("pairs must be at least one (source, target)", {"pairs": np.zeros((0, 2), np.int32)}),
    ("pairs must be at least one (source, target)", {"pairs": i32([0, 1, 2])}),
    ("pairs[0] must be blocks of the cache (0 to 3), got [0, 4]", {"pairs": i32([0, 4])}),
    ("pairs[1] must be blocks of the cache (0 to 3), got [-1, 2]", {"pairs": i32([0, 1], [-1, 2])}),
    ("pairs must not write a block twice", {"pairs": i32([0, 2], [1, 2])}),
    ("pairs must not write a block twice, nor one that another reads", {"pairs": i32([0, 1], [1, 2])}),
]


@pytest.mark.parametrize(
    ("kernel", "words", "change"),
    [("paged", *case) for case in PAGED]
    + [("write", *case) for case in WRITE]
    + [("copy", *case) for case in COPY],
)
def test_what_a_kernel_cannot_do_is_refused_by_name_before_anything_is_written(kernel, words, change):
    function, arrays = {
        "paged": (
            paged_attention,
            {
                "query": f32(1, 2, 32),
                "keys": f32(3, 1, 4, 32),
                "values": f32(3, 1, 4, 32),
                "tables": i32([0, 1]),
                "lengths": i32(5),
                "out": f32(1, 2, 32),
                "parts": f32(1, 2, 1, 32),
                "log_sums": f32(1, 2, 1),
            },
        ),
        "write": (
            kv_write,
            {
                "key": f32(2, 1, 8) + 1,
                "value": f32(2, 1, 8) + 1,
                "keys": f32(2, 1, 4, 8),
                "values": f32(2, 1, 4, 8),
                "slots": i32(0, 5),
            },
        ),
        "copy": (copy_blocks, {"cache": f32(4, 2), "pairs": i32([0, 1])}),
    }[kernel]
    function(**arrays)  # otherwise all is well
    with pytest.raises(ValueError) as caught:
        function(**(arrays | change))
    assert words in str(caught.value)
    for name in ("out", "keys", "values", "cache"):
        assert name not in arrays or (arrays[name] == 0).all()
