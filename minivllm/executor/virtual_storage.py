"""The KV cache in virtual memory: a long range of addresses, and memory only where something was written.

    keys[layer], values[layer]   [num_blocks, num_kv_heads, block_size, head_dim]      as in `kv_storage.py`

One anonymous mapping holds all of it, far larger than the machine's memory if need be. The operating system
puts a page behind an address when it is first written, and takes it away when told that it is not needed any
more (`madvise` with `MADV_DONTNEED`); what is read there afterwards is zero. The mapping must be private: of
a shared one, Linux keeps the pages.

    layer 0 keys    [ slot 0: ▓▓▓······ ][ slot 1: ▓········ ][ slot 2: ▓▓▓▓····· ]
    layer 0 values  [ slot 0: ▓▓▓······ ][ slot 1: ▓········ ][ slot 2: ▓▓▓▓····· ]
    …               a slot has pages in each of these 2 · layers regions

Pages are 4 KiB or so, and two sequences must never have a part of the same one, or giving it back would take
the neighbour's tokens along. A block of a region has `kv_heads · block_size · head_dim · itemsize` bytes. So
blocks come and go in units of `blocks_per_commit`, the smallest number of them that fills whole pages (huge
pages are refused, since one would reach over many slots):

    block of 4,096 bytes → 1      of 2,048 → 2      of 6,144 → 2 (three pages)      of 1,000 → 512

Source: Prabhu et al., "vAttention" (2024), which does the same on GPUs with cuMemMap and large pages.
Read next: `minivllm/memory/virtual_memory.py`, which says what to give back.
"""

from __future__ import annotations

import ctypes
import mmap
import sys
from contextlib import suppress
from math import gcd

import numpy as np
import torch

from minivllm.executor.kv_storage import KVStorage
from minivllm.memory.virtual_memory import blocks_per_slot
from minivllm.model.config import ModelConfig
from minivllm.validation import check_integer

MAP_NORESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000)
"""Promise no memory for the addresses; Python names it since 3.13."""


class VirtualKVStorage(KVStorage):
    """Keys and values of all layers, in one mapping on the CPU.

    Args:
        config: the model's shape.
        num_blocks: blocks of address space, a multiple of `blocks_per_commit`.
        block_size: tokens per block.
        dtype: of keys and values.
        device: must be the CPU.

    Raises:
        ValueError: this is not Linux, or not the CPU; a number does not fit; there are too few addresses.
    """

    def __init__(
        self,
        config: ModelConfig,
        num_blocks: int,
        block_size: int,
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
    ) -> None:
        check_support(torch.device(device))
        self.num_blocks = check_integer("num_blocks", num_blocks, at_least=1)
        self.block_size = check_integer("block_size", block_size, at_least=1)
        self.blocks_per_commit = blocks_per_commit(config, block_size, dtype)
        if num_blocks % self.blocks_per_commit:
            raise ValueError(
                f"num_blocks must be a multiple of {self.blocks_per_commit}, because so many blocks fill "
                f"whole pages of {mmap.PAGESIZE:,} bytes; got {num_blocks}"
            )
        shape = (config.num_layers, 2, num_blocks, config.num_kv_heads, block_size, config.head_dim)
        count = torch.Size(shape).numel()
        self._block_bytes = bytes_per_block_and_region(config, block_size, dtype)
        self._num_regions = 2 * config.num_layers
        self._mapping = _reserve(count * dtype.itemsize)
        self._set(torch.frombuffer(self._mapping, dtype=dtype, count=count).view(shape), dtype)

    @classmethod
    def for_slots(
        cls,
        config: ModelConfig,
        max_num_seqs: int,
        max_model_len: int,
        block_size: int,
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
    ) -> VirtualKVStorage:
        """Addresses for `max_num_seqs` sequences of `max_model_len` tokens, each in pages of its own."""
        check_support(torch.device(device))
        unit = blocks_per_commit(config, block_size, dtype)
        num_blocks = max_num_seqs * blocks_per_slot(max_model_len, block_size, unit)
        return cls(config, num_blocks, block_size, dtype, device)

    def decommit(self, first_block: int, num_blocks: int) -> None:
        """Give the memory of these blocks back; what they held is lost. Their addresses stay.

        Raises:
            ValueError: they are not whole pages, or do not all exist.
        """
        for offset, length in self._ranges(first_block, num_blocks):
            self._mapping.madvise(mmap.MADV_DONTNEED, offset, length)

    def resident_bytes(self, first_block: int = 0, num_blocks: int | None = None) -> int:
        """Bytes of these blocks (None: of all that follow) that are in memory now, as the machine reports.

        It counts whole pages. What was only read is not there: it is one page of zeros for all.
        """
        if num_blocks is None:
            num_blocks = self.num_blocks - first_block
        ranges = self._ranges(first_block, num_blocks)
        return sum(_resident_pages(self._mapping, *place) for place in ranges) * mmap.PAGESIZE

    def _ranges(self, first_block: int, num_blocks: int) -> list[tuple[int, int]]:
        """(offset, length) in bytes of some blocks in each region."""
        unit = self.blocks_per_commit
        if first_block % unit or num_blocks % unit:
            raise ValueError(f"blocks come and go in units of {unit}, got {num_blocks} from {first_block} on")
        if not 0 <= first_block <= first_block + num_blocks <= self.num_blocks:
            raise ValueError(f"there are {self.num_blocks} blocks, got {num_blocks} from {first_block} on")
        if num_blocks == 0:
            return []
        region = self.num_blocks * self._block_bytes
        return [
            (index * region + first_block * self._block_bytes, num_blocks * self._block_bytes)
            for index in range(self._num_regions)
        ]


def check_support(device: torch.device) -> None:
    """Raise `ValueError` unless memory can be committed on demand here."""
    if sys.platform != "linux":
        raise ValueError(
            f"allocator 'virtual_memory' needs Linux, whose madvise gives pages back; this is "
            f"{sys.platform}: choose 'paged'"
        )
    if device.type != "cpu":
        raise ValueError(f"allocator 'virtual_memory' works on the CPU only, got device '{device}'")


def bytes_per_block_and_region(config: ModelConfig, block_size: int, dtype: torch.dtype) -> int:
    """Bytes of one block's keys (or values) in one layer."""
    return config.num_kv_heads * block_size * config.head_dim * dtype.itemsize


def blocks_per_commit(config: ModelConfig, block_size: int, dtype: torch.dtype) -> int:
    """The smallest number of consecutive blocks that fills whole pages of every region."""
    return mmap.PAGESIZE // gcd(mmap.PAGESIZE, bytes_per_block_and_region(config, block_size, dtype))


def _reserve(num_bytes: int) -> mmap.mmap:
    """Private addresses without memory behind them."""
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_NORESERVE
    try:
        mapping = mmap.mmap(-1, num_bytes, flags=flags)
    except (OSError, OverflowError) as error:
        raise ValueError(
            f"{num_bytes:,} bytes of address space cannot be reserved ({error}): lower max_num_seqs or "
            "max_model_len"
        ) from error
    with suppress(OSError):  # a kernel without huge pages refuses to be told not to use them
        mapping.madvise(mmap.MADV_NOHUGEPAGE)
    return mapping


def _resident_pages(mapping: mmap.mmap, offset: int, length: int) -> int:
    """Pages of a part of the mapping that are in memory, and this process's own.

    Linux has eight bytes on each page of a process. Bit 63 says that it is present; bit 56, that no other
    process maps it. An address that was read but never written shows a page of zeros, which all share.
    """
    start = ctypes.addressof(ctypes.c_char.from_buffer(mapping)) + offset
    with open("/proc/self/pagemap", "rb", buffering=0) as pagemap:
        pagemap.seek(start // mmap.PAGESIZE * 8)
        entries = np.frombuffer(pagemap.read(length // mmap.PAGESIZE * 8), np.uint64)
    return int(np.count_nonzero((entries >> np.uint64(63)) & (entries >> np.uint64(56)) & np.uint64(1)))
