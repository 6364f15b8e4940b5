"""Paged attention equals attention: against a naive float64 reference, with NaN in every unwritten cell."""

from __future__ import annotations

import random
from array import array
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from minivllm.executor.attention import torch_backend
from minivllm.executor.attention.choose import BackendFactory
from minivllm.executor.attention.metadata import AttentionMetadata, build_metadata
from minivllm.executor.attention.torch_backend import TorchAttention
from minivllm.executor.kv_format import from_fp8, from_int8, to_fp8, to_int8
from minivllm.executor.kv_storage import KEYS, VALUES, KVStorage
from minivllm.executor.quantized_storage import (
    Fp8KVStorage,
    Int8KVStorage,
    QuantizedKVStorage,
    make_storage,
)
from minivllm.model.config import ModelConfig
from minivllm.model.decoder import KVScales
from minivllm.scheduling.plan import ScheduledSequence, StepPlan

CPU = torch.device("cpu")
LAYER_SCALES = [KVScales(0.01, 0.02), KVScales(0.03, 0.005)]
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 5e-3, torch.bfloat16: 5e-2}


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def model(heads: tuple[int, int], head_dim: int, windows: list[int | None]) -> ModelConfig:
    """A config whose layers have these windows (all the same, or None)."""
    window = next((w for w in windows if w is not None), None)
    return ModelConfig.from_dict(
        {
            "architectures": ["Qwen2ForCausalLM"],
            "vocab_size": 2,
            "hidden_size": 8,
            "intermediate_size": 8,
            "num_hidden_layers": len(windows),
            "num_attention_heads": heads[0],
            "num_key_value_heads": heads[1],
            "head_dim": head_dim,
            "use_sliding_window": window is not None,
            "sliding_window": window,
            "layer_types": ["full_attention" if w is None else "sliding_attention" for w in windows],
        }
    )


def make_plan(lengths: list[tuple[int, int]], block_size: int, seed: int) -> tuple[StepPlan, int]:
    """A plan of (start, new tokens) pairs over randomly placed blocks, some tables longer than needed."""
    rng = random.Random(seed)
    needed = [-(-(start + new) // block_size) + rng.choice((0, 0, 2)) for start, new in lengths]
    blocks = list(range(sum(needed) + 3))
    rng.shuffle(blocks)
    scheduled = []
    for seq_id, ((start, new), count) in enumerate(zip(lengths, needed, strict=True)):
        table = array("i", [blocks.pop() for _ in range(count)])
        scheduled.append(ScheduledSequence(seq_id, start, array("i", range(new)), table, 1))
    return StepPlan(0, tuple(scheduled)), sum(needed) + 3


def naive(query: Tensor, keys: Tensor, values: Tensor, start: int, window: int | None) -> Tensor:
    """[T, H, d] against a whole sequence [L, KV, d], one query and head at a time, in float64."""
    out = torch.empty_like(query, dtype=torch.float64)
    group = query.shape[1] // keys.shape[1]
    for t in range(query.shape[0]):
        end = start + t + 1
        begin = 0 if window is None else max(0, end - window)
        for h in range(query.shape[1]):
            k, v = keys[begin:end, h // group].double(), values[begin:end, h // group].double()
            weights = torch.softmax(k @ query[t, h].double() / query.shape[2] ** 0.5, 0)
            out[t, h] = weights @ v
    return out


def cell(storage: KVStorage, item: ScheduledSequence, position: int) -> tuple[int, int]:
    return item.block_table[position // storage.block_size], position % storage.block_size


def check(
    config: ModelConfig,
    lengths: list[tuple[int, int]],
    block_size: int,
    dtype: torch.dtype,
    seed: int,
    make_backend: BackendFactory = TorchAttention,
    kv_cache_dtype: str = "auto",
) -> None:
    """Write the past cell by cell and the present through the backend; attend; compare.

    A cache in 8 bits is compared with attention to what its codes stand for.
    """
    plan, num_blocks = make_plan(lengths, block_size, seed)
    storage = make_storage(config, num_blocks, block_size, dtype, CPU, kv_cache_dtype, LAYER_SCALES)
    poison(storage)
    generator = torch.Generator().manual_seed(seed)

    def randn(tokens: int, heads: int) -> Tensor:
        return torch.randn(tokens, heads, config.head_dim, generator=generator).to(dtype)

    backend = make_backend(config, storage)
    backend.begin_step(build_metadata(plan, block_size))
    for layer, window in enumerate(config.layer_windows):
        keys = [randn(item.end, config.num_kv_heads) for item in plan.scheduled]
        values = [randn(item.end, config.num_kv_heads) for item in plan.scheduled]
        queries = [randn(item.num_tokens, config.num_heads) for item in plan.scheduled]
        for item, k, v in zip(plan.scheduled, keys, values, strict=True):
            for position in range(item.start):
                put(storage, layer, *cell(storage, item, position), k[position], v[position])
        new_keys = torch.cat([k[item.start :] for item, k in zip(plan.scheduled, keys, strict=True)])
        new_values = torch.cat([v[item.start :] for item, v in zip(plan.scheduled, values, strict=True)])
        got = backend(layer, torch.cat(queries), new_keys, new_values)
        expected = torch.cat(
            [
                naive(q, kept(storage, layer, KEYS, k), kept(storage, layer, VALUES, v), item.start, window)
                for item, q, k, v in zip(plan.scheduled, queries, keys, values, strict=True)
            ]
        )
        tolerance = TOLERANCE[dtype] if kv_cache_dtype == "auto" else max(TOLERANCE[dtype], 1e-6)
        assert (got.double() - expected).abs().max() <= tolerance


def poison(storage: KVStorage) -> None:
    """What no token was written to: NaN, or codes and scales that stand for it."""
    for part in storage.by_block:
        part.fill_(float("nan") if part.is_floating_point() else 0x7F)  # of e4m3, 0x7F is NaN


def places(storage: KVStorage, block: int, offset: int) -> Tensor:
    """The rows of a token's heads, of cells seen as [.., head_dim]."""
    kv_heads = storage.cells.shape[3]
    return (block * kv_heads + torch.arange(kv_heads)) * storage.block_size + offset


def put(storage: KVStorage, layer: int, block: int, offset: int, key: Tensor, value: Tensor) -> None:
    if isinstance(storage, QuantizedKVStorage):
        storage.write(layer, KEYS, places(storage, block, offset), key)
        storage.write(layer, VALUES, places(storage, block, offset), value)
        return
    storage.keys[layer][block, :, offset] = key
    storage.values[layer][block, :, offset] = value


def kept(storage: KVStorage, layer: int, part: int, rows: Tensor) -> Tensor:
    """What a cache of this kind makes of `rows`."""
    if isinstance(storage, Int8KVStorage):
        from_int8(*to_int8(rows), out := torch.empty(rows.shape))
        return out
    if isinstance(storage, Fp8KVStorage):
        scale = storage.layer_scales[layer][part]
        from_fp8(to_fp8(rows, scale), scale, out := torch.empty(rows.shape))
        return out
    return rows


pairs = st.one_of(
    st.tuples(st.integers(0, 60), st.just(1)),
    st.tuples(st.just(0), st.integers(1, 40)),
    st.tuples(st.integers(0, 40), st.integers(1, 12)),
)


@given(
    lengths=st.lists(pairs, min_size=1, max_size=6),
    heads=st.sampled_from([(1, 1), (4, 2), (6, 2), (3, 1), (4, 4)]),
    head_dim=st.sampled_from([2, 16, 48]),
    windows=st.one_of(
        st.just([None]),
        st.integers(1, 70).map(lambda window: [window]),
        st.integers(1, 20).map(lambda window: [window, None]),
    ),
    block_size=st.sampled_from([1, 2, 7, 16]),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16]),
    kv_cache_dtype=st.sampled_from(["auto", "int8_per_token_head", "fp8"]),
    seed=st.integers(0, 1000),
)
@settings(max_examples=max(300, settings().max_examples), deadline=None)
def test_paged_attention_is_attention(
    lengths: list[tuple[int, int]],
    heads: tuple[int, int],
    head_dim: int,
    windows: list[int | None],
    block_size: int,
    dtype: torch.dtype,
    kv_cache_dtype: str,
    seed: int,
) -> None:
    config = model(heads, head_dim, windows)
    check(config, lengths, block_size, dtype, seed, kv_cache_dtype=kv_cache_dtype)


def test_many_decodes_agree_however_they_are_grouped(monkeypatch: pytest.MonkeyPatch) -> None:
    lengths = [(n, 1) for n in (0, 1, 5, 16, 16, 17, 40, 41, 90, 3)]
    config = model((6, 2), 8, [None, 12])
    for limit, group_bytes in ((1.0, 1 << 30), (1.1, 1 << 12), (100.0, 1 << 30), (1.0, 1)):
        monkeypatch.setattr(torch_backend, "PADDING_LIMIT", limit)
        monkeypatch.setattr(torch_backend, "GROUP_BYTES", group_bytes)
        check(config, lengths, 4, torch.float64, seed=1)


def test_a_window_reads_only_the_blocks_it_covers() -> None:
    config = model((2, 1), 4, [8])
    plan, num_blocks = make_plan([(999, 1), (990, 10)], 16, seed=0)
    backend = TorchAttention(config, KVStorage(config, num_blocks, 16, torch.float32, CPU))
    backend.begin_step(build_metadata(plan, 16))
    assert [len(work.cache_rows) for work in backend._work[8]] == [2, 1]


# ---- tokens become rows, positions become slots -------------------------------------------------------


def metadata_by_hand(plan: StepPlan, block_size: int) -> dict[str, list[int]]:
    """The definition, one token at a time."""
    rows: dict[str, list[int]] = {"token_ids": [], "positions": [], "slot_mapping": [], "logit_rows": []}
    for item in plan.scheduled:
        for index, token_id in enumerate(item.token_ids):
            position = item.start + index
            if index >= item.num_tokens - item.num_logits:
                rows["logit_rows"].append(len(rows["positions"]))
            rows["token_ids"].append(token_id)
            rows["positions"].append(position)
            slot = item.block_table[position // block_size] * block_size + position % block_size
            rows["slot_mapping"].append(slot)
    return rows


@given(
    st.lists(st.tuples(pairs, st.integers(0, 50)), max_size=6),
    st.sampled_from([1, 3, 16]),
    st.integers(0, 99),
)
def test_metadata_is_the_definition_without_the_loop(
    wanted: list[tuple[tuple[int, int], int]], block_size: int, seed: int
) -> None:
    plan, _ = make_plan([pair for pair, _ in wanted], block_size, seed)
    scheduled = tuple(
        ScheduledSequence(s.seq_id, s.start, s.token_ids, s.block_table, min(count, s.num_tokens))
        for s, (_, count) in zip(plan.scheduled, wanted, strict=True)
    )
    plan = StepPlan(0, scheduled)
    metadata: AttentionMetadata = build_metadata(plan, block_size)
    for name, expected in metadata_by_hand(plan, block_size).items():
        assert getattr(metadata, name).tolist() == expected, name
    assert metadata.context_lens.tolist() == [item.end for item in scheduled]
    assert np.diff(metadata.query_starts).tolist() == [item.num_tokens for item in scheduled]
    for row, item in zip(metadata.block_tables.tolist(), scheduled, strict=True):
        assert row[: len(item.block_table)] == list(item.block_table)
    assert (metadata.num_tokens, metadata.num_sequences) == (plan.total_num_scheduled_tokens, len(scheduled))


@pytest.mark.parametrize(
    ("start", "tokens", "blocks", "logits"), [(30, 3, 2, 1), (0, 0, 1, 0), (0, 2, 1, 3), (0, 2, 1, -1)]
)
def test_a_plan_that_breaks_its_promises_is_refused_by_sequence(
    start: int, tokens: int, blocks: int, logits: int
) -> None:
    good = ScheduledSequence(1, 0, array("i", [5]), array("i", [9]), 1)
    bad = ScheduledSequence(77, start, array("i", range(tokens)), array("i", range(blocks)), logits)
    with pytest.raises(ValueError, match="sequence 77 in step 5"):
        build_metadata(StepPlan(5, (good, bad)), 16)
