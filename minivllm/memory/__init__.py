"""Which sequence owns which blocks of the KV cache: plain Python, no tensors.

Read in this order: `block_pool` (physical blocks, free or in use), `block_table` (one sequence's map
from logical to physical), `cache_manager` (what the scheduler asks), `kv_cache_manager` (how paging answers);
then its edges: `copy_on_write`, `prefix_caching` with `hash_prefix_cache` and `radix_tree`, `swap_space`;
then `reservation` and `virtual_memory`: what paging is compared with.
"""

from minivllm.memory.block_pool import BlockPool, OutOfBlocksError
from minivllm.memory.block_table import BlockTable, blocks_needed
from minivllm.memory.kv_cache_manager import KVCacheManager

__all__ = ["BlockPool", "BlockTable", "KVCacheManager", "OutOfBlocksError", "blocks_needed"]
