"""What a KV cache in 8 bits is worth to decoding: attention alone, each kind of cache, in turns.

Decoding reads keys and values. A cache of a quarter or half of the bytes is read that much sooner, as long as
reading is the limit; widening its numbers takes instructions, and where several query heads share what is
read, arithmetic becomes the limit first. Both are seen here: time beside that of a cache in float32, and
the rate at which the cache's own bytes were read.

    one layer, every sequence one new token, blocks anywhere      the kernels of "numba-cpu"

Read next: `kernels_numba/cpu/coded_cells.py`.
"""

from __future__ import annotations

import random
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from time import perf_counter
from typing import Any

import torch

from minivllm.executor.attention.metadata import build_metadata
from minivllm.executor.attention.numba_cpu_backend import NumbaCpuAttention
from minivllm.executor.kv_format import FP8, INT8
from minivllm.executor.quantized_storage import make_storage
from minivllm.lab.bench.report import Header, Section, make_header
from minivllm.lab.bench.timing import timed
from minivllm.lab.subjects.settings import Settings
from minivllm.model.config import ModelConfig
from minivllm.scheduling.plan import ScheduledSequence, StepPlan

BLOCK_SIZE = 16
KINDS = (
    ("float32", "auto"),
    ("bfloat16", "auto"),
    ("float32", INT8),
    ("bfloat16", INT8),
    ("float32", FP8),
)
"""The model's type, and `kv_cache_dtype`. Times stand beside that of the first."""
ROUNDS = 10


@dataclass(frozen=True)
class Shape:
    """Sequences that decode."""

    heads: int
    kv_heads: int
    head_dim: int
    num_sequences: int
    context: int

    def __str__(self) -> str:
        return (
            f"{self.heads}/{self.kv_heads} heads of {self.head_dim}, "
            f"{self.num_sequences} × {self.context:,} tokens"
        )


SHAPES = (Shape(8, 4, 64, 16, 1024), Shape(16, 16, 64, 16, 1024), Shape(32, 8, 128, 8, 1024))


@dataclass(frozen=True)
class Reading:
    """One kind of cache with one shape: medians over the rounds."""

    shape: str
    dtype: str
    kv_cache_dtype: str
    num_bytes: int
    seconds: float
    times_faster: float
    """Than the first kind."""


@dataclass(frozen=True)
class KVCacheReading:
    """The result."""

    header: Header
    readings: tuple[Reading, ...]

    def sections(self) -> list[Section]:
        columns = ["shape", "model", "kv_cache_dtype", "MiB", "ms", "× float32", "GB/s"]
        rows = [
            [
                reading.shape,
                reading.dtype,
                reading.kv_cache_dtype,
                f"{reading.num_bytes / (1 << 20):,.1f}",
                f"{reading.seconds * 1e3:.2f}",
                f"{reading.times_faster:.2f}",
                f"{reading.num_bytes / reading.seconds / 1e9:.1f}",
            ]
            for reading in self.readings
        ]
        return [Section("Attention of a decode step, one layer", columns, rows, "numba-cpu; in turns")]


def run(settings: Settings) -> KVCacheReading:
    """Measure every shape, on as many threads as the settings say. No model is loaded."""
    before = torch.get_num_threads()
    torch.set_num_threads(settings.num_threads)
    try:
        return measure(settings, SHAPES, ROUNDS * settings.repeat)
    finally:
        torch.set_num_threads(before)


def measure(settings: Settings, shapes: Sequence[Shape], num_rounds: int) -> KVCacheReading:
    """All kinds with each shape, in turns."""
    readings: list[Reading] = []
    others = []
    for shape in shapes:
        rigs = [make_rig(shape, dtype, kind, settings.seed) for dtype, kind in KINDS]
        for attend, _ in rigs:
            attend()
        seconds: list[list[float]] = [[] for _ in rigs]

        def play(rigs: Any = rigs, seconds: Any = seconds) -> None:
            for number in range(num_rounds):
                for index in range(len(rigs))[:: 1 if number % 2 == 0 else -1]:
                    began = perf_counter()
                    rigs[index][0]()
                    seconds[index].append(perf_counter() - began)

        others.append(timed(play).other_cores)
        plain = median(seconds[0])
        for (dtype, kind), (_, num_bytes), own in zip(KINDS, rigs, seconds, strict=True):
            took = median(own)
            readings.append(Reading(str(shape), dtype, kind, num_bytes, took, plain / took))
    return KVCacheReading(make_header("kv-cache", settings, {}, others), tuple(readings))


def make_rig(shape: Shape, dtype: str, kv_cache_dtype: str, seed: int) -> tuple[Callable[[], Any], int]:
    """Attention over a full cache of this kind, ready to be called; and the cache's bytes."""
    config = ModelConfig.from_dict(
        {
            "architectures": ["LlamaForCausalLM"],
            "vocab_size": 2,
            "hidden_size": shape.heads * shape.head_dim,
            "intermediate_size": 2,
            "num_hidden_layers": 1,
            "num_attention_heads": shape.heads,
            "num_key_value_heads": shape.kv_heads,
            "head_dim": shape.head_dim,
        }
    )
    torch_dtype = getattr(torch, dtype)
    width = -(-shape.context // BLOCK_SIZE)
    num_blocks = shape.num_sequences * width
    storage = make_storage(config, num_blocks, BLOCK_SIZE, torch_dtype, torch.device("cpu"), kv_cache_dtype)
    generator = torch.Generator().manual_seed(seed)
    for part in storage.by_block:
        if part.is_floating_point():
            part.uniform_(0.01, 0.02, generator=generator)
        else:
            part.random_(0, 100, generator=generator)
    blocks = list(range(num_blocks))
    random.Random(seed).shuffle(blocks)
    tables = [array("i", blocks[i * width : (i + 1) * width]) for i in range(shape.num_sequences)]
    scheduled = (
        ScheduledSequence(i, shape.context - 1, array("i", [1]), table, 1) for i, table in enumerate(tables)
    )
    attention = NumbaCpuAttention(config, storage)
    attention.begin_step(build_metadata(StepPlan(0, tuple(scheduled)), BLOCK_SIZE))
    query = torch.randn(shape.num_sequences, shape.heads, shape.head_dim, generator=generator).to(torch_dtype)
    return lambda: attention.attend(0, query), storage.num_bytes
