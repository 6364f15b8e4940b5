"""Naive attention and FlashAttention 1 and 2 are attention: near float64, free of faults, nothing besides."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels_numba.cuda.flash_attention_1 import HEAD_DIMS as HEAD_DIMS_1
from kernels_numba.cuda.flash_attention_1 import flash_attention_1
from kernels_numba.cuda.flash_attention_2 import flash_attention_2
from kernels_numba.cuda.naive_attention import naive_attention
from kernels_numba.cuda.tiles import (
    HEAD_DIMS,
    MAX_SUMS,
    STATIC_SHARED_BYTES,
    Tiles,
    choose_tiles,
    shared_bytes,
)
from kernels_numba.microscope import Observation
from tests.kernels.oracle import (
    SCALES,
    SEEDS,
    UNIT,
    allowed_error,
    assert_close,
    attention,
    normal,
    observe_all,
    row_scores,
    score_error,
    visible_keys,
    written_arrays,
)

NAN = np.float32(np.nan)
SMALL_HEADS = st.sampled_from([(1, 1), (2, 1), (2, 2)])
FEW_TILES = st.sampled_from([Tiles(1, 1), Tiles(2, 1), Tiles(1, 2)])


def inputs(seed: int, len_q: int, len_k: int, heads: tuple[int, int], dim: int) -> list[Any]:
    """Query, key and value; scores are large enough for the softmax to matter."""
    rng = np.random.default_rng(seed)
    return [
        normal(rng, len_q, heads[0], dim),
        normal(rng, len_k, heads[1], dim),
        normal(rng, len_k, heads[1], dim),
    ]


def starts(*numbers: int) -> Any:
    return np.array(numbers, np.int32)


# ── naive ─────────────────────────────────────────────────────────────────────────────────────────────────


@settings(max_examples=max(10, settings.default.max_examples // 10))
@given(
    seed=SEEDS,
    len_q=st.integers(1, 5),
    more=st.integers(-2, 14),
    heads=st.sampled_from([(1, 1), (2, 1), (3, 3)]),
    dim=st.integers(1, 9),
    scale=SCALES,
    causal=st.booleans(),
)
def test_naive_attention_is_attention(seed, len_q, more, heads, dim, scale, causal):
    len_k = max(len_q if causal else 1, len_q + more)
    query, key, value = inputs(seed, len_q, len_k, heads, dim)
    out, scores = np.full_like(query, NAN), np.full((heads[0], len_q, len_k), NAN)
    given_arrays = [array.copy() for array in (query, key, value)]
    launches = naive_attention(query, key, value, out, scores, scale=scale, causal=causal)
    seen = observe_all(launches, out=True)
    assert [written_arrays(run) for run in seen] == [{"scores"}, {"scores"}, {"out"}]
    assert all((a == b).all() for a, b in zip(given_arrays, (query, key, value), strict=True))
    error = allowed_error(query, key, value, scale)
    assert_close(out, attention(query, key, value, scale, causal), error)
    assert_close(scores.sum(2), np.ones(scores.shape[:2]), 2 * len_k * UNIT)
    for i, visible in enumerate(visible_keys(len_q, len_k, causal)):
        assert (scores[:, i, visible:] == 0).all()


# ── FlashAttention ────────────────────────────────────────────────────────────────────────────────────────


def run_1(query: Any, key: Any, value: Any, **options: Any) -> tuple[Any, Any, Any, Observation]:
    """Output, maxima, sums."""
    out = np.full_like(query, NAN)
    maxima = np.full((query.shape[1], len(query)), NAN, np.float32)
    sums = np.full_like(maxima, NAN)
    launch = flash_attention_1(query, key, value, out, maxima, sums, **options)
    # Where nothing has been written yet, nothing may be read.
    (seen,) = observe_all(launch, out=True, maxima=True, sums=True)
    return out, maxima, sums, seen


@settings(max_examples=8)
@given(
    seed=SEEDS,
    len_q=st.integers(1, 3),
    len_k=st.sampled_from([3, 5, 31, 32, 33, 40, 65]),
    heads=SMALL_HEADS,
    scale=SCALES,
    causal=st.booleans(),
    tiles=FEW_TILES | st.just(Tiles(1, 2, keys=64)),
)
def test_flash_attention_1_is_attention(seed, len_q, len_k, heads, scale, causal, tiles):
    query, key, value = arrays = inputs(seed, len_q, len_k, heads, 32)
    given_arrays = [array.copy() for array in arrays]
    out, maxima, sums, seen = run_1(*arrays, scale=scale, causal=causal, tiles=tiles)
    assert written_arrays(seen) == {"out", "maxima", "sums"}
    assert all((a == b).all() for a, b in zip(given_arrays, arrays, strict=True))
    error = allowed_error(query, key, value, scale, tiles=-(-len_k // 32))
    assert_close(out, attention(query, key, value, scale, causal), error)
    check_notes(seen, query, key, scale, causal, tiles.keys)
    last = {values[:2]: values[2:4] for _, _, _, name, values in seen.notes if name == "softmax"}
    assert {place: (maxima[place], sums[place]) for place in last} == last


@settings(max_examples=12)
@given(
    seed=SEEDS,
    lengths=st.lists(
        st.tuples(st.integers(0, 3), st.sampled_from([0, 1, 2, 5, 32, 34])), min_size=1, max_size=3
    ),
    before=st.integers(0, 2),
    heads=SMALL_HEADS,
    scale=SCALES,
    causal=st.booleans(),
    tiles=FEW_TILES,
)
def test_flash_attention_2_is_attention_of_every_sequence_by_itself(
    seed, lengths, before, heads, scale, causal, tiles
):
    starts_q = np.cumsum([before, *(q for q, _ in lengths)], dtype=np.int32)
    starts_k = np.cumsum([before, *(k for _, k in lengths)], dtype=np.int32)
    query, key, value = inputs(seed, starts_q[-1] + 2, starts_k[-1] + 2, heads, 32)
    poison = {}
    for name, array, edges in (
        ("query", query, starts_q),
        ("key", key, starts_k),
        ("value", value, starts_k),
    ):
        unused = np.ones(array.shape, bool)
        unused[edges[0] : edges[-1]] = False  # what belongs to no sequence must not be read
        array[unused] = np.nan
        poison[name] = unused
    out = np.full_like(query, NAN)
    launch = flash_attention_2(
        query,
        key,
        value,
        out,
        starts_q,
        starts_k,
        longest_query=max(1, *(q for q, _ in lengths)),
        scale=scale,
        causal=causal,
        tiles=tiles,
    )
    (seen,) = observe_all(launch, out=True, **poison)
    assert written_arrays(seen) <= {"out"}
    assert np.isnan(out[: starts_q[0]]).all() and np.isnan(out[starts_q[-1] :]).all()
    for i in range(len(lengths)):
        q, k = slice(*starts_q[i : i + 2]), slice(*starts_k[i : i + 2])
        error = allowed_error(query[q], key[k], value[k], scale, tiles=2)
        assert_close(out[q], attention(query[q], key[k], value[k], scale, causal), error)


@settings(max_examples=6)
@given(
    seed=SEEDS,
    len_q=st.integers(1, 4),
    more=st.sampled_from([0, 2, 33]),
    causal=st.booleans(),
    tiles=FEW_TILES,
)
def test_flash_attention_2_says_the_true_maximum_and_sum_of_every_row(seed, len_q, more, causal, tiles):
    query, key, value = inputs(seed, len_q, len_q + more, (2, 1), 32)
    ends = starts(0, len_q), starts(0, len(key))
    out = np.full_like(query, NAN)
    launch = flash_attention_2(query, key, value, out, *ends, longest_query=len_q, causal=causal, tiles=tiles)
    check_notes(launch.observe().check(), query, key, None, causal)


def check_notes(
    seen: Observation, query: Any, key: Any, scale: float | None, causal: bool, tile: int = 32
) -> None:
    """After each tile: the largest score so far, the sum of weights, and by what the old ones were scaled."""
    error = score_error(query, key, scale)
    by_row: dict[tuple[int, int], list[tuple[float, ...]]] = {}
    covered = np.zeros((query.shape[1], len(query), len(key)), int)
    noted = np.full(covered.shape, np.nan)
    for note in seen.notes:
        if note.name == "tile":
            head, *edges = map(int, note.values)
            covered[head, edges[0] : edges[1], edges[2] : edges[3]] += 1
        elif note.name == "score":
            head, i, j = map(int, note.values[:3])
            noted[head, i, j] = note.values[3]
        else:
            by_row.setdefault((int(note.values[0]), int(note.values[1])), []).append(note.values[2:])
    assert set(by_row) == {(h, i) for h in range(query.shape[1]) for i in range(len(query))}
    assert covered.max() == 1
    for i, visible in enumerate(visible_keys(len(query), len(key), causal)):
        for head in range(query.shape[1]):
            assert covered[head, i, :visible].all()
            scores = row_scores(query, key, scale, i, head)[:visible]
            if not np.isnan(noted).all():  # not every kernel notes its scores
                assert np.abs(noted[head, i, :visible] - scores).max() <= error
                assert np.isnan(noted[head, i, visible:]).all()
            old = -1e30
            for n, (maximum, total, rescale) in enumerate(by_row[head, i]):
                so_far = scores[: tile * (n + 1)]
                assert abs(maximum - so_far.max()) <= error
                assert total == pytest.approx(np.exp(so_far - so_far.max()).sum(), rel=4 * error + 80 * UNIT)
                assert rescale == pytest.approx(np.exp(old - so_far.max()), rel=4 * error + 8 * UNIT)
                old = so_far.max()
            assert tile * len(by_row[head, i]) >= visible


@pytest.mark.parametrize("dim", HEAD_DIMS)
def test_heads_of_every_width_are_attention(dim):
    query, key, value = inputs(dim, 1, 3, (1, 1), dim)
    expected, error = attention(query, key, value, None, True), allowed_error(query, key, value, None)
    out = np.full_like(query, NAN)
    launch = flash_attention_2(
        query, key, value, out, starts(0, 1), starts(0, 3), longest_query=1, tiles=Tiles(1, 1)
    )
    launch.observe(poison={"out": True}, keep=False).check()
    assert_close(out, expected, error)
    if dim in HEAD_DIMS_1:
        out, stats = np.full_like(query, NAN), np.zeros((2, 1, 1), np.float32)
        launch = flash_attention_1(query, key, value, out, *stats, tiles=Tiles(1, 1))
        launch.observe(poison={"out": True}, keep=False).check()
        assert_close(out, expected, error)


def test_tiles_change_what_is_moved_and_not_one_bit_of_the_output():
    query, key, value = inputs(3, 3, 5, (1, 1), 32)
    outputs, read = [], []
    for tiles in (Tiles(rows, warps) for rows in (8, 4, 2, 1) for warps in (4, 2, 1)):
        out = np.full_like(query, NAN)
        launch = flash_attention_2(
            query, key, value, out, starts(0, 3), starts(0, 5), longest_query=3, tiles=tiles
        )
        light = tiles.num_queries > 4
        seen = launch.observe(keep=not light).check()
        outputs.append(out)
        if not light:
            read.append((tiles.num_queries, {row.array: row.read_bytes for row in seen.traffic()}["key"]))
    assert all((out == outputs[0]).all() for out in outputs)
    assert dict(read) == {4: 5 * 128, 2: 2 * 5 * 128, 1: 3 * 5 * 128}  # once for each tile of queries


def test_the_tiles_that_are_chosen_are_right_too_and_padding_never_conflicts():
    query, key, value = inputs(4, 2, 4, (1, 1), 32)
    out = np.full_like(query, NAN)
    launch = flash_attention_2(query, key, value, out, starts(0, 2), starts(0, 4), longest_query=2)
    (seen,) = observe_all(launch)
    assert_close(out, attention(query, key, value, None, True), allowed_error(query, key, value, None))
    for row in seen.by_place():
        assert row.units_per_request == 1 if row.is_shared else row.waste == 1
    assert seen.shared_bytes == shared_bytes(choose_tiles(32, 2, 1), 32)


@given(
    dim=st.sampled_from(HEAD_DIMS),
    queries=st.integers(1, 5000),
    heads=st.integers(1, 64),
    processors=st.integers(1, 200),
    memory=st.integers(1, STATIC_SHARED_BYTES),
)
def test_chosen_tiles_fit_and_leave_no_processor_idle_if_that_can_be(dim, queries, heads, processors, memory):
    if memory < shared_bytes(Tiles(1, 1), dim):
        with pytest.raises(ValueError, match=f"shared_memory must be at least .* for head_dim {dim}"):
            choose_tiles(dim, queries, heads, processors, memory)
        return
    tiles = choose_tiles(dim, queries, heads, processors, memory)
    assert shared_bytes(tiles, dim) <= memory
    assert tiles.rows * dim // 32 <= MAX_SUMS
    enough = -(-queries // tiles.num_queries) * heads >= processors
    assert enough or tiles == Tiles(1, 1)
    twice = Tiles(2 * tiles.rows, tiles.warps)
    if twice.rows <= 8 and twice.rows * dim // 32 <= MAX_SUMS and shared_bytes(twice, dim) <= memory:
        assert -(-queries // twice.num_queries) * heads < processors


# ── what is refused ───────────────────────────────────────────────────────────────────────────────────────

Q, K = np.zeros((2, 2, 32), np.float32), np.zeros((3, 1, 32), np.float32)
ROOM = {"naive": {"scores": np.zeros((2, 2, 3), np.float32)}}
ROOM["1"] = {"maxima": np.zeros((2, 2), np.float32), "sums": np.zeros((2, 2), np.float32)}
ROOM["2"] = {"starts_q": starts(0, 2), "starts_k": starts(0, 3)}
KERNELS = {"naive": naive_attention, "1": flash_attention_1, "2": flash_attention_2}
WIDE_Q, WIDE_K = np.zeros((2, 2, 48), np.float32), np.zeros((3, 1, 48), np.float32)
THREE = np.zeros((3, 3, 32), np.float32)
REFUSED = [
    ("naive 1 2", "query must be [tokens, heads, head_dim]", {"query": Q[0]}),
    ("naive 1 2", "key must be of float32, got float64", {"key": K.astype(float)}),
    ("naive 1 2", "value must be contiguous", {"value": np.zeros((3, 1, 64), np.float32)[:, :, ::2]}),
    ("naive 1 2", "out must be of float32, got float16", {"out": Q.astype(np.float16)}),
    ("naive 1 2", "the shape of out must be that of query", {"out": Q[:1]}),
    ("naive 1 2", "the shape of value must be that of key", {"value": K[:2]}),
    ("naive 1 2", "head_dim of key must be that of query", {"key": WIDE_K, "value": WIDE_K}),
    (
        "naive 1 2",
        "the heads of query (2) must be a multiple",
        {"key": THREE, "value": THREE},
    ),
    (
        "naive 1",
        "key must have at least as many tokens as query (2) if causal",
        {"key": K[:1], "value": K[:1]},
    ),
    ("naive", "the shape of scores must be", {"scores": np.zeros((2, 2, 2), np.float32)}),
    (
        "1 2",
        "head_dim must be one of 32, 64",
        {"query": WIDE_Q, "out": WIDE_Q, "key": WIDE_K, "value": WIDE_K},
    ),
    ("1", "maxima must be of float32", {"maxima": np.zeros((2, 2))}),
    ("1", "the shape of sums must be", {"sums": np.zeros((2, 3), np.float32)}),
    ("2", "starts_q must be of int32, got int64", {"starts_q": np.array([0, 2])}),
    ("2", "starts_q[1] must be from 0 to 2, the tokens of query, got 3", {"starts_q": starts(0, 3)}),
    ("2", "starts_k[2] must be from 2 to 3", {"starts_q": starts(0, 1, 2), "starts_k": starts(0, 2, 1)}),
    ("2", "starts_k[0] must be from 0", {"starts_k": starts(-1, 3)}),
    ("2", "the length of starts_k must be that of starts_q", {"starts_k": starts(0, 1, 3)}),
    ("2", "starts_q must have a beginning and an end", {"starts_q": starts(0), "starts_k": starts(0)}),
    ("2", "longest_query must be at least 2, got 1", {"longest_query": 1}),
    ("2", "longest_query must be at least 1, got 0", {"starts_q": starts(0, 0), "longest_query": 0}),
]


@pytest.mark.parametrize(("kernels", "words", "change"), REFUSED)
def test_what_a_kernel_cannot_compute_is_refused_by_name(kernels, words, change):
    for name in kernels.split():
        arrays = {"query": Q, "key": K, "value": K, "out": Q.copy(), **ROOM[name]}
        if name == "2":
            arrays["longest_query"] = 2
        KERNELS[name](**arrays)  # otherwise all is well
        with pytest.raises(ValueError) as caught:
            KERNELS[name](**(arrays | change))
        assert words in str(caught.value)


def test_wide_heads_are_refused_by_the_first_version_only():
    arrays = [np.zeros((1, 1, 160), np.float32)] * 4
    with pytest.raises(ValueError, match="head_dim must be one of 32, 64, 96, 128, got 160"):
        flash_attention_1(*arrays, *np.zeros((2, 1, 1), np.float32))
    flash_attention_2(*arrays, starts(0, 1), starts(0, 1), longest_query=1)
