"""Which memory an engine gets: the paged one, or one of those it is compared with.

Read next: `memory/cache_manager.py` for what they have in common, `memory/kv_cache_manager.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from minivllm.config import SchedulerConfig
from minivllm.memory import KVCacheManager
from minivllm.memory.allocators import ALLOCATORS, make_baseline
from minivllm.memory.cache_manager import CacheManager
from minivllm.memory.prefix_cache import make_prefix_cache
from minivllm.trace.events import Event
from minivllm.validation import check_choice


class Pages(NamedTuple):
    """What virtual memory needs to know of the storage whose accounts it keeps."""

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
