"""The executor that computes: a decoder, a paged KV cache and an attention backend, driven by plans.

    StepPlan ── moves ──► BlockMover: blocks are copied and swapped before anything is written
        │
        └────── build_metadata ──► token_ids, positions, slots, block tables
                                        │
               decoder.forward(token_ids, positions, attention, logit_rows) ──► hidden [n, hidden_size]
                                        │
               decoder.compute_logits(hidden) ──► logits [n, vocab_size]

Nothing is remembered between steps but the cache's cells, and those belong to whoever the next plan's
block tables say.

Read next: `minivllm/model/decoder.py` and `minivllm/executor/attention/metadata.py`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from minivllm.config import DTYPES as DTYPE_NAMES
from minivllm.executor.attention.backend import to_device
from minivllm.executor.attention.choose import BackendFactory, automatic
from minivllm.executor.attention.metadata import build_metadata
from minivllm.executor.attention.torch_backend import TorchAttention
from minivllm.executor.block_mover import BlockMover
from minivllm.executor.cpu_hazards import note_parallel_run, one_at_a_time, warn_of_threads
from minivllm.executor.kv_storage import KVStorage, decide_num_blocks, decide_num_host_blocks
from minivllm.executor.padding import AttentionWithoutPadding, pad_rows
from minivllm.executor.virtual_storage import VirtualKVStorage
from minivllm.model.config import ModelConfig
from minivllm.model.decoder import Decoder
from minivllm.model.hub import resolve_model
from minivllm.model.weights import Checkpoint
from minivllm.scheduling.plan import StepPlan
from minivllm.trace.events import ModelShape
from minivllm.validation import check_choice

if TYPE_CHECKING:
    from minivllm.executor.compiled_steps import CompiledSteps
    from minivllm.executor.decode_graphs import DecodeGraphs

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
    ) -> None:
        if decoder.embedding.device.type == "cpu":
            note_parallel_run(torch.get_num_threads())
        self.decoder = decoder
        self.storage = storage
        self.num_blocks = storage.num_blocks if num_blocks is None else num_blocks
        """Blocks that may be in memory; a storage in virtual memory has addresses for more."""
        self.host_storage = host_storage
        self.mover = BlockMover(storage, host_storage)
        self.config = decoder.config
        self.attention = backend(decoder.config, storage)
        self.whole_steps: DecodeGraphs | CompiledSteps | None = self.attention.whole_steps(decoder)
        """Steps that are one call: recorded on a GPU, compiled on a CPU."""
        self.tuned: Any = self.attention.tuned(decoder)
        """The decoder, or another form of its `forward` that is faster with this backend."""
        self.name = name
        self.device = decoder.embedding.device
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
        backend: BackendFactory = automatic,
    ) -> TorchExecutor:
        """Load a model from a folder or a hub id, and allocate its cache.

        `dtype` "auto" keeps what the checkpoint was saved in. `device` is "cpu" or "cuda"; a GPU is used if
        there is one. `num_blocks` None sizes the cache by `decide_num_blocks` from the settings below it.
        `swap_space_bytes` of the host's memory hold the blocks of preempted requests. With `virtual_memory`
        each of `max_num_seqs` sequences has addresses for `max_model_len` tokens, and memory on demand.
        """
        folder = resolve_model(path)
        config = ModelConfig.from_folder(folder)
        torch_dtype = torch_dtype_for(dtype, config)
        torch_device = torch_device_for(device)
        if torch_device.type == "cpu":
            warn_of_threads(torch.get_num_threads())
            note_parallel_run(torch.get_num_threads())
        decoder = load_decoder(folder, config, torch_dtype, torch_device)
        num_blocks = decide_num_blocks(
            config,
            block_size=block_size,
            dtype=torch_dtype,
            device=torch_device,
            max_num_seqs=max_num_seqs,
            max_model_len=max_model_len or config.max_position_embeddings,
            gpu_memory_utilization=gpu_memory_utilization,
            num_gpu_blocks_override=num_blocks,
            kv_cache_memory_bytes=kv_cache_memory_bytes,
        )
        num_host_blocks = decide_num_host_blocks(swap_space_bytes, config, block_size, torch_dtype)
        storage: KVStorage
        if virtual_memory:
            longest = max_model_len or config.max_position_embeddings
            storage = VirtualKVStorage.for_slots(
                config, max_num_seqs, longest, block_size, torch_dtype, torch_device
            )
        else:
            storage = KVStorage(config, num_blocks, block_size, torch_dtype, torch_device)
        host_storage = None
        if num_host_blocks:
            host_storage = KVStorage(config, num_host_blocks, block_size, torch_dtype, torch.device("cpu"))
        is_folder = Path(path).expanduser().is_dir()  # a hub id's folder is named after a commit
        name = folder.resolve().name if is_folder else str(path)
        return cls(decoder, storage, backend, name, host_storage, num_blocks)

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
        if self.device.type == "cpu":
            note_parallel_run(torch.get_num_threads())
        with one_at_a_time():
            return self._execute(plan)

    def _execute(self, plan: StepPlan) -> Tensor:
        self.mover.carry_out(plan.moves)
        if not plan.scheduled:
            self.last_attention_seconds = 0.0
            return self.decoder.compute_logits(self.decoder.embedding[:0])
        metadata = build_metadata(plan, self.block_size)
        if self.whole_steps and self.whole_steps.covers(metadata, plan.num_padding_tokens):
            logits = self.whole_steps.run(metadata, plan.num_padding_tokens)
            self.last_attention_seconds = self.whole_steps.attention_seconds
            return logits
        token_ids = to_device(metadata.token_ids, self.device)
        positions = to_device(metadata.positions, self.device)
        self.attention.prepare(metadata)
        attend: Any = self.attention
        if padding := plan.num_padding_tokens:
            attend = AttentionWithoutPadding(self.attention, metadata.num_tokens, padding)
            token_ids, positions = pad_rows(token_ids, padding), pad_rows(positions, padding)
        rows = to_device(metadata.logit_rows, self.device)
        hidden = self.tuned.forward(token_ids, positions, attend, rows)
        self.last_attention_seconds = self.attention.seconds
        return self.tuned.compute_logits(hidden)  # type: ignore[no-any-return]


def load_decoder(folder: Path, config: ModelConfig, dtype: torch.dtype, device: torch.device) -> Decoder:
    """A decoder with the folder's weights, converted to `dtype`."""
    checkpoint = Checkpoint(folder)
    # A file that has its own lm_head means it, whatever the config says about tying: so does transformers.
    tied = config.tie_word_embeddings and "lm_head.weight" not in checkpoint.file_of
    decoder = Decoder(config, dtype, device, tied=tied)
    checkpoint.load_into(decoder.views())
    return decoder


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
