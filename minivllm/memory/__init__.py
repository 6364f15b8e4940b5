"""Who owns which piece of the KV cache: plain Python, no tensors.

Read in this order: `block_pool` (physical blocks, free or in use), `block_table` (one sequence's map
from logical to physical), `kv_cache_manager` (the face that the scheduler talks to).
"""

from minivllm.memory.block_pool import BlockPool, OutOfBlocksError
from minivllm.memory.block_table import BlockTable, blocks_needed
from minivllm.memory.kv_cache_manager import KVCacheManager

__all__ = ["BlockPool", "BlockTable", "KVCacheManager", "OutOfBlocksError", "blocks_needed"]
