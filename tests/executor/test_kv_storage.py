"""The cache has the layout it promises, and as many blocks as the settings allow, or says why not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from minivllm.executor import kv_storage
from minivllm.executor.kv_storage import GIB, KVStorage, bytes_per_block, decide_num_blocks, num_blocks_for
from minivllm.model.config import ModelConfig

CPU = torch.device("cpu")
CONFIG = ModelConfig.from_dict(
    {
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": 1000,
        "hidden_size": 64,
        "intermediate_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    }
)
BLOCK_BYTES = 2 * 3 * 2 * 16 * 16 * 4  # keys and values · layers · KV heads · head_dim · tokens · float32


def decide(**changes: Any) -> int:
    defaults: dict[str, Any] = {"block_size": 16, "dtype": torch.float32, "device": CPU}
    limits = {"max_num_seqs": 10**6, "max_model_len": 1000, "weight_bytes": CONFIG.num_parameters * 4}
    return decide_num_blocks(CONFIG, **{**defaults, **limits, **changes})


@pytest.fixture
def ram(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with exactly 2 GiB left once the weights are loaded."""
    monkeypatch.setattr(kv_storage, "available_ram_bytes", lambda: 2 * GIB)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_layout_and_size_are_as_documented(dtype: torch.dtype) -> None:
    storage = KVStorage(CONFIG, 5, 7, dtype, CPU)
    assert len(storage.keys) == len(storage.values) == 3
    for cells in (*storage.keys, *storage.values):
        assert cells.shape == (5, 2, 7, 16) and cells.is_contiguous() and cells.dtype == dtype
    assert storage.num_bytes == 5 * bytes_per_block(CONFIG, 7, dtype)
    assert bytes_per_block(CONFIG, 16, torch.float32) == BLOCK_BYTES
    storage.keys[1].fill_(1)
    storage.values[1].fill_(2)
    assert storage.keys[1].eq(1).all()  # keys and values of a layer do not overlap


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="asks Linux for resident memory")
def test_memory_is_not_touched_before_it_is_used() -> None:
    def resident_kib() -> int:
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmRSS:")[1].split()[0])

    before = resident_kib()
    storage = KVStorage(CONFIG, 2 * GIB // BLOCK_BYTES, 16, torch.float32, CPU)
    assert storage.num_bytes > 1.9 * GIB
    assert resident_kib() - before < 100_000


def test_an_override_is_obeyed() -> None:
    assert decide(num_gpu_blocks_override=7, max_num_seqs=1, max_model_len=1) == 7


def test_a_budget_in_bytes_is_divided_by_the_block() -> None:
    assert decide(kv_cache_memory_bytes=10 * BLOCK_BYTES) == 10
    assert decide(kv_cache_memory_bytes=11 * BLOCK_BYTES - 1) == 10
    assert num_blocks_for(-5, CONFIG, 16, torch.float32) == 0


def test_utilisation_counts_the_weights_that_are_already_loaded(ram: None) -> None:
    weights = CONFIG.num_parameters * 4
    assert decide(gpu_memory_utilization=1.0) == 2 * GIB // BLOCK_BYTES
    half = int(0.5 * (2 * GIB + weights)) - weights
    assert decide(gpu_memory_utilization=0.5) == half // BLOCK_BYTES


def test_a_cpu_gives_at_most_four_gib(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kv_storage, "available_ram_bytes", lambda: 100 * GIB)
    assert decide() == 4 * GIB // BLOCK_BYTES


def test_no_more_blocks_are_taken_than_all_sequences_can_fill(ram: None) -> None:
    assert decide(max_num_seqs=3, max_model_len=33) == 9


def test_a_gpu_is_asked_what_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (6 * GIB, 10 * GIB))
    blocks = decide(device=torch.device("cuda"), gpu_memory_utilization=0.9, max_num_seqs=1)
    assert blocks == int(0.9 * 10 * GIB - 4 * GIB) // BLOCK_BYTES


def test_no_room_for_one_block_is_an_error_with_the_numbers(ram: None) -> None:
    with pytest.raises(ValueError, match=rf"{BLOCK_BYTES - 1:,} bytes.*16 tokens needs {BLOCK_BYTES:,}"):
        decide(kv_cache_memory_bytes=BLOCK_BYTES - 1)
    with pytest.raises(ValueError, match="gpu_memory_utilization"):
        decide(gpu_memory_utilization=1e-9)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("gpu_memory_utilization", 0),
        ("gpu_memory_utilization", 1.5),
        ("block_size", 0),
        ("max_num_seqs", 0),
        ("max_model_len", True),
        ("num_gpu_blocks_override", 0),
        ("kv_cache_memory_bytes", -1),
    ],
)
def test_impossible_settings_are_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=name):
        decide(**{name: value})
