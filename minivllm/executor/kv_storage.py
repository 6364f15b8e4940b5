"""The physical KV cache: every block of every layer, and how many there can be.

    keys[layer], values[layer]   [num_blocks, num_kv_heads, block_size, head_dim]

A block holds, for each KV head, `block_size` consecutive tokens side by side. That order (heads outside
tokens) makes one head's share of a block one contiguous run of memory, which is what an attention kernel
streams; the other order was measured to cost up to 40 % on a CPU.

Memory is taken but not touched: pages come from the operating system as blocks are first written. Cells
that no token was written to may hold anything, even NaN; attention backends must never let it show.

Paper: PagedAttention (arXiv 2309.06180), section 4.
Here numbers are kept in the model's type; `quantized_storage.py` keeps them in 8 bits.

Read next: `minivllm/executor/attention/metadata.py`, which says which token goes to which cell.
"""

from __future__ import annotations

from pathlib import Path

import psutil
import torch
from torch import Tensor

from minivllm.executor.kv_format import AUTO, FORMATS, canonical
from minivllm.model.config import ModelConfig
from minivllm.validation import check_integer, check_number

GIB = 1 << 30
CPU_BUDGET_BYTES = 4 * GIB
"""Most that the cache takes of a machine's RAM unless told otherwise, as in vLLM."""


KEYS, VALUES = 0, 1
"""Which half of a layer's cells."""


class KVStorage:
    """Keys and values of all layers, in one allocation.

    Attributes:
        cells: [layers, 2, num_blocks, num_kv_heads, block_size, head_dim], of the type that is kept.
        keys, values: for each layer, its part: [num_blocks, num_kv_heads, block_size, head_dim].
        dtype: the model's type.
    """

    kv_cache_dtype = AUTO

    def __init__(
        self, config: ModelConfig, num_blocks: int, block_size: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.num_blocks = check_integer("num_blocks", num_blocks, at_least=1)
        self.block_size = check_integer("block_size", block_size, at_least=1)
        shape = (config.num_layers, 2, num_blocks, config.num_kv_heads, block_size, config.head_dim)
        self._set(torch.empty(shape, dtype=FORMATS[self.kv_cache_dtype].cells or dtype, device=device), dtype)

    def _set(self, cells: Tensor, dtype: torch.dtype) -> None:
        self.cells, self.dtype = cells, dtype
        self.keys: list[Tensor] = [layer[KEYS] for layer in cells]
        self.values: list[Tensor] = [layer[VALUES] for layer in cells]

    @property
    def device(self) -> torch.device:
        return self.cells.device

    @property
    def by_block(self) -> tuple[Tensor, ...]:
        """All that belongs to blocks, [layers, 2, num_blocks, …]: what moves when a block moves."""
        return (self.cells,)

    @property
    def num_bytes(self) -> int:
        return sum(tensor.numel() * tensor.element_size() for tensor in self.by_block)

    @property
    def bytes_per_token(self) -> int:
        """Over all layers: keys and values."""
        return self.num_bytes // (self.num_blocks * self.block_size)


def bytes_per_block(
    config: ModelConfig, block_size: int, dtype: torch.dtype, kv_cache_dtype: str = AUTO
) -> int:
    """Memory of one block over all layers: keys and values of `block_size` tokens, and their scales."""
    heads = 2 * config.num_layers * config.num_kv_heads
    head = FORMATS[canonical(kv_cache_dtype)].bytes_per_head(config.head_dim, dtype)
    return block_size * heads * head


def num_blocks_for(
    budget_bytes: int, config: ModelConfig, block_size: int, dtype: torch.dtype, kv_cache_dtype: str = AUTO
) -> int:
    """How many whole blocks fit into `budget_bytes`."""
    return max(0, budget_bytes) // bytes_per_block(config, block_size, dtype, kv_cache_dtype)


def decide_num_blocks(
    config: ModelConfig,
    *,
    block_size: int,
    dtype: torch.dtype,
    device: torch.device,
    max_num_seqs: int,
    max_model_len: int,
    weight_bytes: int,
    gpu_memory_utilization: float = 0.92,
    num_gpu_blocks_override: int | None = None,
    kv_cache_memory_bytes: int | None = None,
    kv_cache_dtype: str = AUTO,
    bytes_beside: int = 0,
) -> int:
    """The number of blocks to allocate, given vLLM's settings, once `weight_bytes` of weights are in place.

    An override is obeyed; a budget in bytes is divided by the block; otherwise the device is asked what
    is free, of which `gpu_memory_utilization` (above 0, at most 1) may be used in all, weights included.
    With each block go `bytes_beside`, which a draft model keeps of the same tokens.
    On a CPU at most 4 GiB are taken, and never more than `max_num_seqs` sequences of full length can use.
    Raises `ValueError` with the numbers if not even one block fits.
    """
    check_integer("block_size", block_size, at_least=1)
    check_integer("max_num_seqs", max_num_seqs, at_least=1)
    check_integer("max_model_len", max_model_len, at_least=1)
    check_number("gpu_memory_utilization", gpu_memory_utilization, more_than=0, at_most=1)
    one = bytes_per_block(config, block_size, dtype, kv_cache_dtype) + bytes_beside
    if num_gpu_blocks_override is not None:
        check_integer("num_gpu_blocks_override", num_gpu_blocks_override, at_least=1)
        needed = num_gpu_blocks_override * one
        _check_it_exists(f"num_gpu_blocks_override {num_gpu_blocks_override:,}", needed, device)
        return num_gpu_blocks_override
    if kv_cache_memory_bytes is not None:
        budget = check_integer("kv_cache_memory_bytes", kv_cache_memory_bytes, at_least=1)
        source = "kv_cache_memory_bytes"
        _check_it_exists(f"{source} {budget:,}", budget, device)
    else:
        budget, source = _free_budget(device, gpu_memory_utilization, weight_bytes)
    num_blocks = max(0, budget) // one
    if num_blocks < 1:
        raise ValueError(
            f"the KV cache has {max(0, budget):,} bytes ({source}), but one block of {block_size} tokens "
            f"needs {one:,}; raise gpu_memory_utilization or kv_cache_memory_bytes, or lower block_size"
        )
    if kv_cache_memory_bytes is None and device.type == "cpu":
        num_blocks = min(num_blocks, max_num_seqs * -(-max_model_len // block_size))
    return num_blocks


def decide_num_host_blocks(
    swap_space_bytes: int,
    config: ModelConfig,
    block_size: int,
    dtype: torch.dtype,
    kv_cache_dtype: str = AUTO,
) -> int:
    """The number of blocks in a swap space of that size; `ValueError` if the machine has no room for it."""
    if not swap_space_bytes:
        return 0
    gib = f"swap_space {swap_space_bytes / GIB:,.6g} GiB"
    _check_it_exists(gib, swap_space_bytes, torch.device("cpu"))
    num_blocks = num_blocks_for(swap_space_bytes, config, block_size, dtype, kv_cache_dtype)
    if num_blocks < 1:
        raise ValueError(
            f"{gib} has {swap_space_bytes:,} bytes, but one block of {block_size} tokens needs "
            f"{bytes_per_block(config, block_size, dtype, kv_cache_dtype):,}; raise it, or lower block_size"
        )
    return num_blocks


def _check_it_exists(wish: str, num_bytes: int, device: torch.device) -> None:
    """More memory than there is would be promised now and fail in the middle of a request."""
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else available_ram_bytes()
    if num_bytes > free:
        raise ValueError(
            f"{wish} needs {num_bytes:,} bytes for keys and values, but only {free:,} are free on {device}"
        )


def _free_budget(device: torch.device, utilization: float, weight_bytes: int) -> tuple[int, str]:
    """Bytes the cache may take on `device`, and a few words on where the number comes from."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        budget = int(utilization * total) - (total - free)
        return budget, f"{utilization:.0%} of {total:,} bytes on {device}, less the {total - free:,} in use"
    before_weights = available_ram_bytes() + weight_bytes
    budget = min(int(utilization * before_weights) - weight_bytes, CPU_BUDGET_BYTES)
    return budget, f"{utilization:.0%} of {before_weights:,} bytes of RAM, less {weight_bytes:,} for weights"


def available_ram_bytes() -> int:
    """RAM that could still be used: what the kernel calls available, or a container's limit if smaller."""
    available = int(psutil.virtual_memory().available)
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if limit.is_file() and used.is_file() and limit.read_text().strip() != "max":
        available = min(available, int(limit.read_text()) - int(used.read_text()))
    return max(0, available)
