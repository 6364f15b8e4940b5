"""Which memory an engine gets, by the names in its configuration: paging, or a memory to compare it with.

Read next: `cache_manager.py` for what they have in common, `kv_cache_manager.py` for the paged one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from minivllm.config import SchedulerConfig
from minivllm.memory.allocators import ALLOCATORS, make_baseline
from minivllm.memory.cache_manager import CacheManager
from minivllm.memory.hash_prefix_cache import HashPrefixCache
from minivllm.memory.kv_cache_manager import KVCacheManager
from minivllm.memory.prefix_cache import PrefixCache
from minivllm.memory.radix_tree import RadixTree
from minivllm.trace.events import Event
from minivllm.validation import check_choice

PREFIX_CACHES: dict[str, Callable[[int], PrefixCache]] = {"hash": HashPrefixCache, "radix": RadixTree}
"""Name → what makes one, of a block size."""


class Pages(NamedTuple):
    """What the accounts of virtual memory need to know of its storage."""

    blocks_per_commit: int
    """So many blocks come and go together."""
    decommit: Callable[[int, int], None]
    """Gives the memory of `(first_block, num_blocks)` back."""


def make_cache_manager(
    config: SchedulerConfig, emit: Callable[[Event], None] | None, pages: Pages | None = None
) -> CacheManager:
    """The memory that the configuration names.

    Raises:
        ValueError: there is none of that name.
    """
    check_choice("allocator", config.allocator, ALLOCATORS)
    if config.allocator != "paged":
        return make_baseline(
            config.allocator,
            num_blocks=config.num_blocks,
            block_size=config.block_size,
            max_model_len=config.max_model_len,
            max_num_seqs=config.max_num_seqs,
            emit=emit,
            blocks_per_commit=pages.blocks_per_commit if pages else 1,
            decommit=pages.decommit if pages else None,
        )
    return KVCacheManager(
        config.num_blocks,
        config.block_size,
        emit,
        prefix_cache=make_prefix_cache(config.prefix_cache, config.block_size),
        num_host_blocks=config.num_host_blocks,
        copy_on_fork=config.copy_on_fork,
    )


def make_prefix_cache(name: str | None, block_size: int) -> PrefixCache | None:
    """The prefix cache of that name, "hash" or "radix"; None for None.

    Raises:
        ValueError: there is none of that name.
    """
    if name is None:
        return None
    return PREFIX_CACHES[check_choice("prefix_cache", name, tuple(PREFIX_CACHES))](block_size)
