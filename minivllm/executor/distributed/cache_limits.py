"""How many blocks the KV cache of all ranks has: one number, since block 7 is block 7 on every rank.

On CPUs the ranks of a machine share its memory, so a block costs what all of them keep of it. On GPUs each
has its own, and the first rank's stands for all.

Read next: `minivllm/executor/kv_storage.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from minivllm.executor.distributed.messages import CacheSizes, RankSettings
from minivllm.executor.kv_storage import decide_num_blocks, decide_num_host_blocks
from minivllm.model.config import ModelConfig
from minivllm.model.parallel.layout import share_of


@dataclass(frozen=True)
class CacheLimits:
    """What a user has asked for, as `decide_num_blocks` takes it."""

    max_num_seqs: int = 128
    max_model_len: int | None = None
    gpu_memory_utilization: float = 0.92
    num_gpu_blocks_override: int | None = None
    kv_cache_memory_bytes: int | None = None
    swap_space_bytes: int = 0

    def sizes(
        self, config: ModelConfig, settings: RankSettings, rank_bytes: int, num_local: int
    ) -> CacheSizes:
        """The numbers of blocks, given the model and the bytes of weights of one rank, of `num_local` here.

        Raises:
            ValueError: there is no room for that.
        """
        dtype, device = getattr(torch, settings.dtype), torch.device(settings.device)
        here = share_of_machine(config, settings, num_local)
        is_cpu = device.type == "cpu"
        num_blocks = decide_num_blocks(
            here if is_cpu else share_of_machine(config, settings, 1),
            block_size=settings.block_size,
            dtype=dtype,
            device=device,
            max_num_seqs=self.max_num_seqs,
            max_model_len=config.check_max_model_len(self.max_model_len),
            weight_bytes=rank_bytes * (num_local if is_cpu else 1),
            gpu_memory_utilization=self.gpu_memory_utilization,
            num_gpu_blocks_override=self.num_gpu_blocks_override,
            kv_cache_memory_bytes=self.kv_cache_memory_bytes,
            kv_cache_dtype=settings.kv_cache_dtype,
        )
        num_host_blocks = decide_num_host_blocks(
            self.swap_space_bytes, here, settings.block_size, dtype, settings.kv_cache_dtype
        )
        return CacheSizes(num_blocks, num_host_blocks)


def share_of_machine(config: ModelConfig, settings: RankSettings, num_local: int) -> ModelConfig:
    """A model that needs as much cache as the first `num_local` ranks together."""
    shares = [share_of(config, settings.grid, rank, settings.num_parts) for rank in range(num_local)]
    num_layers = sum(share.cache_config.num_layers for share in shares)
    return replace(shares[0].cache_config, num_layers=num_layers)
