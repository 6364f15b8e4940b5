"""The executor that computes: a model runner over a paged KV cache, driven by plans.

    StepPlan ── moves ──► BlockMover: blocks are copied and swapped before anything is written
        │
        └────── build_metadata ──► token_ids, positions, slots, block tables
                                        │
                         runner.run(metadata, padding) ──► logits [n, vocab_size]
                           a decoder and an attention backend

How a runner computes a step is its own business; `runners/choose.py` says which one an engine gets. Nothing
is kept between steps but the cache's cells, and the next plan's block tables say which sequence owns them.

Read next: `minivllm/executor/attention/metadata.py`, then `minivllm/executor/runners/eager.py`.
"""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import torch
from torch import Tensor

from minivllm.config import DTYPES as DTYPE_NAMES
from minivllm.executor.attention.choose import BackendFactory, fastest
from minivllm.executor.attention.metadata import build_metadata
from minivllm.executor.attention.torch_backend import TorchAttention
from minivllm.executor.batch_invariance import invariant
from minivllm.executor.block_mover import BlockMover
from minivllm.executor.cpu_hazards import guard_step, note_parallel_run, warn_of_threads
from minivllm.executor.kv_storage import KVStorage, decide_num_blocks, decide_num_host_blocks
from minivllm.executor.runners.choose import choose_runner
from minivllm.executor.virtual_storage import VirtualKVStorage
from minivllm.model.config import ModelConfig
from minivllm.model.decoder import Decoder
from minivllm.model.hub import resolve_model
from minivllm.model.load import load_decoder
from minivllm.scheduling.plan import StepPlan
from minivllm.trace.events import ModelShape
from minivllm.validation import check_choice

DTYPES: dict[str, torch.dtype] = {name: getattr(torch, name) for name in DTYPE_NAMES}


class TorchExecutor:
    """Carries out plans with torch, on the CPU or one GPU. See `Executor` for the contract."""

    def __init__(
        self,
        decoder: Decoder,
        storage: KVStorage,
        backend: BackendFactory = TorchAttention,
        name: str = "",
        host_storage: KVStorage | None = None,
        num_blocks: int | None = None,
        *,
        enforce_eager: bool = False,
        max_num_seqs: int = 128,
        max_model_len: int | None = None,
        batch_invariant: bool = False,
    ) -> None:
        """The last four settings are for `choose_runner`."""
        if decoder.embedding.device.type == "cpu":
            note_parallel_run(torch.get_num_threads())
        self.decoder = decoder
        self.storage = storage
        self.num_blocks = storage.num_blocks if num_blocks is None else num_blocks
        """Blocks that may be in memory; a storage in virtual memory has addresses for more."""
        self.host_storage = host_storage
        self.mover = BlockMover(storage, host_storage)
        self.config = decoder.config
        self.attention = (invariant(backend) if batch_invariant else backend)(decoder.config, storage)
        self.runner = choose_runner(
            decoder,
            self.attention,
            enforce_eager=enforce_eager,
            max_num_seqs=max_num_seqs,
            max_model_len=max_model_len,
            batch_invariant=batch_invariant,
        )
        self.name = name
        self.device = decoder.embedding.device
        self._is_on_cpu = self.device.type == "cpu"
        self.last_attention_seconds = 0.0

    @classmethod
    def from_folder(
        cls,
        path: str | Path,
        *,
        dtype: str = "auto",
        device: str | None = None,
        block_size: int = 16,
        num_blocks: int | None = None,
        kv_cache_memory_bytes: int | None = None,
        gpu_memory_utilization: float = 0.92,
        max_num_seqs: int = 128,
        max_model_len: int | None = None,
        swap_space_bytes: int = 0,
        virtual_memory: bool = False,
        backend: BackendFactory = fastest,
        enforce_eager: bool = False,
        quantization: str | None = None,
        batch_invariant: bool = False,
    ) -> TorchExecutor:
        """Load a model from a folder or a hub id, and allocate its cache.

        `dtype` "auto" keeps what the checkpoint was saved in; `quantization` is how weights are, or shall be,
        stored. `device` is "cpu" or "cuda"; a GPU is used if there is one. `num_blocks` None sizes the cache
        by `decide_num_blocks` from the settings below it. `swap_space_bytes` of the host's memory hold the
        blocks of preempted requests. With `virtual_memory` each of `max_num_seqs` sequences has addresses
        for `max_model_len` tokens, and memory on demand. With `enforce_eager` no step is recorded as a CUDA
        graph. With `batch_invariant` logits do not depend on what else is computed (`batch_invariance.py`).
        """
        config = ModelConfig.from_folder(folder := resolve_model(path))
        max_tokens = config.check_max_model_len(max_model_len)
        torch_dtype, torch_device = torch_dtype_for(dtype, config), torch_device_for(device)
        kind = block_size, torch_dtype, torch_device
        _note_threads(torch_device)
        decoder = load_decoder(folder, config, torch_dtype, torch_device, quantization)
        num_blocks = decide_num_blocks(
            config,
            block_size=block_size,
            dtype=torch_dtype,
            device=torch_device,
            max_num_seqs=max_num_seqs,
            max_model_len=max_tokens,
            weight_bytes=decoder.num_bytes,
            gpu_memory_utilization=gpu_memory_utilization,
            num_gpu_blocks_override=num_blocks,
            kv_cache_memory_bytes=kv_cache_memory_bytes,
        )
        host_storage = make_host_storage(swap_space_bytes, config, block_size, torch_dtype)
        return cls(
            decoder,
            VirtualKVStorage.for_slots(config, max_num_seqs, max_tokens, *kind)
            if virtual_memory
            else KVStorage(config, num_blocks, *kind),
            backend,
            name_of(path, folder),
            host_storage,
            num_blocks,
            enforce_eager=enforce_eager,
            max_num_seqs=max_num_seqs,
            max_model_len=max_tokens,
            batch_invariant=batch_invariant,
        )

    @property
    def num_host_blocks(self) -> int:
        return self.host_storage.num_blocks if self.host_storage else 0

    @property
    def block_size(self) -> int:
        return self.storage.block_size

    @property
    def model_shape(self) -> ModelShape:
        """What the header of a trace says about the model."""
        return self.config.shape(self.name, str(self.decoder.dtype).removeprefix("torch."))

    @torch.inference_mode()
    def execute(self, plan: StepPlan) -> Tensor:
        """Logits `[sum of num_logits, vocab_size]` in plan order, float32 (float64 for a float64 model)."""
        with guard_step(torch.get_num_threads()) if self._is_on_cpu else nullcontext():
            if plan.moves:
                self.mover.carry_out(plan.moves)
            if not plan.scheduled:
                self.last_attention_seconds = 0.0
                return self.decoder.compute_logits(self.decoder.embedding[:0])
            metadata = build_metadata(plan, self.storage.block_size)
            logits = self.runner.run(metadata, plan.num_padding_tokens)
            self.last_attention_seconds = self.runner.attention_seconds
            return logits


def make_host_storage(
    swap_space_bytes: int, config: ModelConfig, block_size: int, dtype: torch.dtype
) -> KVStorage | None:
    """The swap space: blocks in the host's memory, None if it has none."""
    num_blocks = decide_num_host_blocks(swap_space_bytes, config, block_size, dtype)
    return KVStorage(config, num_blocks, block_size, dtype, torch.device("cpu")) if num_blocks else None


def name_of(path: str | Path, folder: Path) -> str:
    """What a model is called: its folder's name, or its id on the hub, whose folder is named by a commit."""
    return folder.resolve().name if Path(path).expanduser().is_dir() else str(path)


def torch_device_for(device: str | None) -> torch.device:
    """The device to compute on: a GPU if there is one and nothing else was asked for."""
    has_gpu = torch.cuda.is_available()
    if device is None:
        return torch.device("cuda" if has_gpu else "cpu")
    kind = check_choice("device", device.split(":")[0], ("cpu", "cuda"))
    if kind == "cuda" and not has_gpu:
        raise ValueError(f"device is {device!r}, but torch finds no GPU here; use 'cpu'")
    return torch.device(device)


def torch_dtype_for(dtype: str, config: ModelConfig) -> torch.dtype:
    """The torch type for one of vLLM's names, "auto" meaning what the checkpoint was saved in."""
    check_choice("dtype", dtype, ("auto", *DTYPES))
    return DTYPES[config.dtype if dtype == "auto" else dtype]


def _note_threads(device: torch.device) -> None:
    if device.type == "cpu":
        warn_of_threads(torch.get_num_threads())
        note_parallel_run(torch.get_num_threads())
