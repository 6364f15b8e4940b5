"""Our kernels on a GPU, beside what the device can do: time, bytes a second, FLOP a second.

Every kernel has a *floor*, the time that its work takes if nothing else were in the way:

    paged decode, copies      bytes of keys and values / bandwidth of a copy, measured in the same run
    prefill                   FLOPs / what torch's own flash attention reaches on the same shapes

Times are medians over repetitions, between events on the stream, with the caches of the device filled with
something else in between. Needs an NVIDIA GPU; without one, `minivllm microscope` and
`minivllm compare attention` look at the same kernels.

Read next: `kernels_numba/cuda/paged_attention.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np
import torch
from torch.nn.functional import scaled_dot_product_attention

from kernels_numba.cuda.flash_attention_2 import flash_attention_2
from kernels_numba.cuda.flash_attention_tensor_core import flash_attention_tensor_core
from kernels_numba.cuda.launch import Launch
from kernels_numba.cuda.paged_attention import choose_splits, paged_attention
from minivllm.lab.bench.report import Header, Section, make_header
from minivllm.lab.subjects.settings import Settings

FLUSH_BYTES = 256 << 20
"""More than any device's cache."""
COPY_BYTES = 1 << 30
BLOCK_SIZE = 16
GOOD_DECODE, GOOD_PREFILL = 0.8, 0.5
"""Aims: of the copy's bandwidth, and of torch's flash attention."""


@dataclass(frozen=True)
class DecodeCase:
    """One new token of each sequence."""

    batch: int
    context: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    dtype: str

    @property
    def num_bytes(self) -> int:
        """Keys and values, each once."""
        width = 4 if self.dtype == "float32" else 2
        return 2 * self.batch * self.context * self.num_kv_heads * self.head_dim * width

    def __str__(self) -> str:
        return (
            f"batch {self.batch}, context {self.context:,}, {self.num_heads}/{self.num_kv_heads} heads of "
            f"{self.head_dim}, {self.dtype}"
        )


@dataclass(frozen=True)
class PrefillCase:
    """Whole prompts, causal."""

    batch: int
    tokens: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    dtype: str

    @property
    def flops(self) -> int:
        """Two products, half of each below the diagonal."""
        return 2 * self.batch * self.num_heads * self.tokens**2 * self.head_dim

    def __str__(self) -> str:
        return (
            f"batch {self.batch}, {self.tokens:,} tokens, {self.num_heads}/{self.num_kv_heads} heads of "
            f"{self.head_dim}, {self.dtype}"
        )


DECODES = (
    DecodeCase(64, 4096, 32, 8, 128, "bfloat16"),
    DecodeCase(64, 1024, 32, 8, 128, "bfloat16"),
    DecodeCase(8, 16384, 32, 8, 128, "bfloat16"),
    DecodeCase(1, 16384, 32, 8, 128, "bfloat16"),
    DecodeCase(64, 4096, 32, 8, 128, "float32"),
    DecodeCase(64, 4096, 32, 32, 64, "float16"),
)
PREFILLS = (
    PrefillCase(1, 4096, 32, 8, 128, "bfloat16"),
    PrefillCase(4, 1024, 32, 8, 128, "bfloat16"),
    PrefillCase(1, 4096, 32, 32, 64, "float16"),
    PrefillCase(1, 1024, 32, 8, 128, "float32"),
)


@dataclass(frozen=True)
class Timing:
    """Ours and the floor, or ours and torch's."""

    name: str
    seconds: float
    other_seconds: float
    """Of the floor (decode), or of torch (prefill)."""
    per_second: float
    """Bytes, or FLOPs."""
    error: float
    """Largest difference from torch's attention."""


@dataclass(frozen=True)
class Kernels:
    """The result."""

    header: Header
    copy_bytes_per_second: float
    decodes: tuple[Timing, ...]
    prefills: tuple[Timing, ...]

    def sections(self) -> list[Section]:
        decodes = [
            [t.name, f"{1e6 * t.seconds:,.1f} µs", f"{t.per_second / 1e12:.2f} TB/s",
             f"{t.other_seconds / t.seconds:.0%}", f"{t.error:.1e}"]
            for t in self.decodes
        ]  # fmt: skip
        prefills = [
            [t.name, f"{1e6 * t.seconds:,.1f} µs", f"{t.per_second / 1e12:.1f} TFLOP/s",
             f"{t.other_seconds / t.seconds:.0%}", f"{t.error:.1e}"]
            for t in self.prefills
        ]  # fmt: skip
        return [
            Section(
                "Paged decode",
                ["", "time", "keys and values", "of a copy", "error"],
                decodes,
                f"a copy on this device: {self.copy_bytes_per_second / 1e12:.2f} TB/s, read and written; "
                f"aim: {GOOD_DECODE:.0%}",
            ),
            Section(
                "Prefill",
                ["", "time", "FLOPs", "of torch's flash attention", "error"],
                prefills,
                f"aim on tensor cores: {GOOD_PREFILL:.0%}",
            ),
        ]


def run(settings: Settings) -> Kernels:
    """Measure everything on the current GPU.

    Raises:
        ValueError: there is none.
    """
    if not torch.cuda.is_available():
        raise ValueError(
            "`minivllm bench kernels` needs an NVIDIA GPU, and there is none here; `minivllm microscope` and "
            "`minivllm compare attention` look at the same kernels on any machine"
        )
    rounds = max(5, settings.repeat)
    bandwidth = measure_copy(rounds)
    decodes = tuple(measure_decode(case, bandwidth, rounds) for case in DECODES)
    prefills = tuple(measure_prefill(case, rounds) for case in PREFILLS)
    device = torch.cuda.get_device_properties(0)
    facts = {"device": device.name, "multiprocessors": device.multi_processor_count}
    return Kernels(make_header("kernels", settings, facts), bandwidth, decodes, prefills)


def measure_copy(rounds: int) -> float:
    """Bytes a second of a large copy on the device, read and written counted."""
    source = torch.empty(COPY_BYTES, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return 2 * COPY_BYTES / _seconds(lambda: target.copy_(source), rounds)


def measure_decode(case: DecodeCase, bandwidth: float, rounds: int) -> Timing:
    """Paged attention through a random block table."""
    dtype = getattr(torch, case.dtype)
    blocks = -(-case.context // BLOCK_SIZE)
    shape = (case.batch * blocks, case.num_kv_heads, BLOCK_SIZE, case.head_dim)
    keys, values = (torch.randn(shape, device="cuda", dtype=dtype) for _ in range(2))
    query = torch.randn(case.batch, case.num_heads, case.head_dim, device="cuda")
    tables = torch.randperm(shape[0], device="cuda").view(case.batch, blocks).int()
    lengths = torch.full((case.batch,), case.context, device="cuda", dtype=torch.int32)
    processors = torch.cuda.get_device_properties(0).multi_processor_count
    splits = choose_splits(case.batch, case.num_kv_heads, blocks, processors)
    out = torch.empty_like(query)
    parts = query.new_empty(case.batch, case.num_heads, splits, case.head_dim)
    sums = query.new_empty(parts.shape[:3])
    launches = paged_attention(
        array(query), words(keys), words(values), array(tables), array(lengths), array(out), array(parts),
        array(sums), cache_dtype=case.dtype,
    )  # fmt: skip
    if splits == 1:
        out = parts.view_as(query)
    seconds = _seconds(lambda: launch_all(launches), rounds)
    group = case.num_heads // case.num_kv_heads
    first = slice(0, min(4, case.batch))
    gathered = [
        cache[tables[first].long()].transpose(2, 3).flatten(1, 2)[:, : case.context].transpose(1, 2)
        for cache in (keys, values)
    ]
    key, value = (cells.float().repeat_interleave(group, 1) for cells in gathered)
    expected = scaled_dot_product_attention(query[first, :, None], key, value)[:, :, 0]
    error = (out[first] - expected).abs().max().item()
    return Timing(str(case), seconds, case.num_bytes / bandwidth, case.num_bytes / seconds, error)


def measure_prefill(case: PrefillCase, rounds: int) -> Timing:
    """FlashAttention-2, on tensor cores if the numbers have 16 bits, beside torch's."""
    dtype = getattr(torch, case.dtype)
    tokens, total = case.tokens, case.batch * case.tokens
    query = torch.randn(total, case.num_heads, case.head_dim, device="cuda", dtype=dtype)
    key, value = (
        torch.randn(total, case.num_kv_heads, case.head_dim, device="cuda", dtype=dtype) for _ in range(2)
    )
    out = torch.empty_like(query)
    starts = array(torch.arange(0, total + 1, tokens, device="cuda", dtype=torch.int32))
    if case.dtype == "float32":
        processors = torch.cuda.get_device_properties(0).multi_processor_count
        launch = flash_attention_2(
            array(query), array(key), array(value), array(out), starts, starts, longest_query=tokens,
            num_processors=processors,
        )  # fmt: skip
    else:
        launch = flash_attention_tensor_core(
            words(query), words(key), words(value), words(out), starts, starts, longest_query=tokens,
            dtype=case.dtype,
        )  # fmt: skip
    seconds = _seconds(lambda: launch_all([launch]), rounds)
    group = case.num_heads // case.num_kv_heads
    q, k, v = (
        tensor.view(case.batch, tokens, -1, case.head_dim).transpose(1, 2).contiguous()
        for tensor in (query, key.repeat_interleave(group, 1), value.repeat_interleave(group, 1))
    )
    torch_seconds = _seconds(lambda: scaled_dot_product_attention(q, k, v, is_causal=True), rounds)
    expected = scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(out.shape)
    error = (out.float() - expected.float()).abs().max().item()
    return Timing(str(case), seconds, torch_seconds, case.flops / seconds, error)


def array(tensor: torch.Tensor) -> Any:
    """The same memory, as Numba sees it."""
    from numba import cuda

    return cuda.as_cuda_array(tensor.view(torch.int16) if tensor.element_size() == 2 else tensor)


def words(tensor: torch.Tensor) -> Any:
    """16-bit numbers two by two; float32 as it is."""
    return array(tensor).view(np.uint32) if tensor.element_size() == 2 else array(tensor)


def launch_all(launches: list[Launch]) -> None:
    """In order, on torch's stream."""
    from numba import cuda

    stream = cuda.external_stream(torch.cuda.current_stream().cuda_stream)
    for launch in launches:
        launch.run(stream)


def _seconds(work: Callable[[], Any], rounds: int) -> float:
    """Median over rounds, each with cold caches; compiled and warm before."""
    flush = torch.empty(FLUSH_BYTES, dtype=torch.uint8, device="cuda")
    for _ in range(2):
        work()
    times: list[float] = []
    make_event: Any = torch.cuda.Event
    for _ in range(rounds):
        flush.zero_()
        begin, end = (make_event(enable_timing=True) for _ in range(2))
        begin.record()
        work()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) / 1e3)
    return median(times)
