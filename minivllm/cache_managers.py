"""Which memory an engine gets: the paged one, or one of those it is compared with.

Read next: `memory/cache_manager.py` for what they have in common, `memory/kv_cache_manager.py`.
"""

from __future__ import annotations

from collections.abc import Callable

from minivllm.config import SchedulerConfig
from minivllm.memory import KVCacheManager
from minivllm.memory.cache_manager import CacheManager
from minivllm.memory.prefix_cache import make_prefix_cache
from minivllm.trace.events import Event


def make_cache_manager(config: SchedulerConfig, emit: Callable[[Event], None] | None) -> CacheManager:
    """The memory that the configuration names."""
    return KVCacheManager(
        config.num_blocks,
        config.block_size,
        emit,
        prefix_cache=make_prefix_cache(config.prefix_cache, config.block_size),
        num_host_blocks=config.num_host_blocks,
        copy_on_fork=config.copy_on_fork,
    )
