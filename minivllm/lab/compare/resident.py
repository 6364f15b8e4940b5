"""Virtual memory, not in the books but in the machine: how many bytes are really there.

The shipped model answers a few requests over `VirtualKVStorage`. Every few steps the operating system is
asked which pages of the cache are in memory, and the answer is set beside what the manager says it has
committed. In the end nothing may be left.

Read next: `minivllm/executor/virtual_storage.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import cycle

import torch

from minivllm.config import SchedulerConfig
from minivllm.executor.torch_executor import TorchExecutor
from minivllm.executor.virtual_storage import VirtualKVStorage, blocks_per_commit
from minivllm.lab.compare.beam_model import ModelPlay, unseen_prompts
from minivllm.lab.workloads.lengths import Lengths, draw_lengths
from minivllm.memory.virtual_memory import VirtualMemoryManager
from minivllm.model.tiny import MODEL_PATH
from minivllm.scheduling.plan import StepPlan

NUM_REQUESTS = 24
MAX_NUM_SEQS = 16
MAX_MODEL_LEN = 2048
NUM_BLOCKS = 64
LONGEST_OUTPUT = 128
LOOK_EVERY = 4


@dataclass(frozen=True)
class Residency:
    """Bytes of one KV cache."""

    address_bytes: int
    """Reserved: `MAX_NUM_SEQS` sequences of `MAX_MODEL_LEN` tokens."""
    committed_bytes: int
    """By the books, in the fullest of the steps that were looked at."""
    resident_bytes: int
    """As the machine reports, in the same step."""
    left_bytes: int
    """Resident when all requests are done."""


class ResidentPlay(ModelPlay):
    """A play that looks at pages instead of blocks."""

    storage: VirtualKVStorage
    fullest: tuple[int, int] = (0, 0)
    """Committed and resident bytes."""

    def _look(self, plan: StepPlan, step: int) -> None:
        super()._look(plan, step)
        if step % LOOK_EVERY == 0:
            block_bytes = self.storage.num_bytes // self.storage.num_blocks
            committed = (self.config.num_blocks - self.memory.num_free_blocks) * block_bytes
            self.fullest = max(self.fullest, (committed, self.storage.resident_bytes()))


def measure_residency(seed: int, block_size: int = 16) -> Residency:
    """Play the requests and ask the machine.

    Raises:
        ValueError: memory cannot be committed on demand here.
    """
    executor = TorchExecutor.from_folder(MODEL_PATH, device="cpu", num_blocks=1, block_size=block_size)
    config, dtype = executor.config, executor.decoder.dtype
    unit = blocks_per_commit(config, block_size, dtype)
    num_blocks = NUM_BLOCKS * 16 // block_size
    memory = VirtualMemoryManager(
        num_blocks,
        block_size,
        max_model_len=MAX_MODEL_LEN,
        max_num_seqs=MAX_NUM_SEQS,
        blocks_per_commit=unit,
        decommit=lambda first, count: storage.decommit(first, count),
    )
    storage = VirtualKVStorage(config, memory.num_virtual_blocks, block_size, dtype, torch.device("cpu"))
    lengths = [
        Lengths(prompt, min(output, LONGEST_OUTPUT))
        for prompt, output in draw_lengths("alpaca", NUM_REQUESTS, seed)
    ]
    limits = SchedulerConfig(num_blocks, block_size, max_num_seqs=MAX_NUM_SEQS, max_model_len=MAX_MODEL_LEN)
    prompts = unseen_prompts([prompt for prompt, _ in lengths])
    play = ResidentPlay(memory, limits, lengths, prompts=prompts, wait_for_full_memory=False)
    play.executor, play.storage = TorchExecutor(executor.decoder, storage), storage
    play.tokens = cycle(range(3, config.vocab_size))  # which tokens they are does not matter here
    play.run()
    return Residency(storage.num_bytes, *play.fullest, storage.resident_bytes())
