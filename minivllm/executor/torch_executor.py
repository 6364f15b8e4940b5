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

import os
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import Tensor

from minivllm.config import DTYPES as DTYPE_NAMES
from minivllm.executor.attention.choose import BackendFactory, factory_for, fastest
from minivllm.executor.attention.metadata import build_metadata
from minivllm.executor.attention.torch_backend import TorchAttention
from minivllm.executor.batch_invariance import invariant
from minivllm.executor.block_mover import BlockMover
from minivllm.executor.cpu_hazards import guard_step, note_parallel_run, warn_of_threads
from minivllm.executor.kv_format import AUTO, scales_of_layers
from minivllm.executor.kv_storage import (
    KVStorage,
    bytes_per_block,
    decide_num_blocks,
    decide_num_host_blocks,
)
from minivllm.executor.phases import split_by_phase
from minivllm.executor.quantized_storage import make_storage, twin_of
from minivllm.executor.runners.choose import choose_runner
from minivllm.executor.runners.model_runner import ModelRunner
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
        factory = factory_for(decoder, backend)
        self.attention = (invariant(factory) if batch_invariant else factory)(decoder.config, storage)
        choose = partial(
            choose_runner,
            attention=self.attention,
            enforce_eager=enforce_eager,
            max_num_seqs=max_num_seqs,
            max_model_len=max_model_len,
            batch_invariant=batch_invariant,
        )
        # The copy first: each runner puts the output matrix, which both have, in an order of its own.
        self.decode_runner = None if decoder.decode_weights is None else choose(decoder.decode_weights)
        self.runner = choose(decoder)
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
        kv_cache_dtype: str = AUTO,
        draft_config: ModelConfig | None = None,
        decode_weight_dtype: str | None = None,
    ) -> TorchExecutor:
        """Load a model from a folder or a hub id, and allocate its cache.

        `dtype` "auto" keeps what the checkpoint was saved in; `quantization` is how weights are, or shall be,
        stored, `decode_weight_dtype` how a copy for generated tokens is. `device` None takes a GPU if there
        is one, `num_blocks` None what `decide_num_blocks` says. `swap_space_bytes` of the host's memory hold
        the blocks of preempted requests. With `virtual_memory` each sequence has addresses of its own.
        With `batch_invariant` logits do not depend on what else is computed (`batch_invariance.py`).
        """
        config = ModelConfig.from_folder(folder := resolve_model(path))
        max_tokens = config.check_max_model_len(max_model_len)
        torch_dtype, torch_device = torch_dtype_for(dtype, config), torch_device_for(device)
        _note_threads(torch_device)
        decoder = load_decoder(folder, config, torch_dtype, torch_device, quantization, decode_weight_dtype)
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
            kv_cache_dtype=kv_cache_dtype,
            bytes_beside=bytes_per_block(draft_config, block_size, torch_dtype) if draft_config else 0,
        )
        slots = (max_num_seqs, max_tokens) if virtual_memory else None
        storage = make_cache(decoder, num_blocks, block_size, kv_cache_dtype, slots)
        return cls(
            decoder, storage, backend, name_of(path, folder),
            make_host_storage(swap_space_bytes, config, storage), num_blocks, enforce_eager=enforce_eager,
            max_num_seqs=max_num_seqs, max_model_len=max_tokens, batch_invariant=batch_invariant,
        )  # fmt: skip

    @property
    def num_host_blocks(self) -> int:
        return self.host_storage.num_blocks if self.host_storage else 0

    @property
    def block_size(self) -> int:
        return self.storage.block_size

    @property
    def model_shape(self) -> ModelShape:
        """What the header of a trace says about the model, and about weights and cache as they are kept."""
        shape = self.config.shape(self.name, str(self.decoder.dtype).removeprefix("torch."))
        own, copy = bytes_told(self.decoder), self.decoder.decode_weights
        in_copy, in_copied_output = (0, 0) if copy is None else copy.step_bytes
        return msgspec.structs.replace(
            shape, kv_bytes_per_token=self.storage.bytes_per_token, layer_bytes=own[0], output_bytes=own[1],
            decode_layer_bytes=in_copy, decode_output_bytes=in_copied_output,
        )  # fmt: skip

    @property
    def settings_told(self) -> dict[str, Any]:
        """How it computes, for the header of a trace."""
        method: dict[str, str | int] = {}
        if self.decoder.quantization:
            method["quantization"] = self.decoder.quantization
        kept = {"kv_cache_dtype": self.storage.kv_cache_dtype}
        copy = self.decoder.decode_weights
        if copy is not None:
            method |= {
                "decode_weight_dtype": str(copy.quantization),
                "weight_bytes": self.decoder.num_bytes,
                "decode_weight_bytes": copy.num_own_bytes,
            }
        return {"device": str(self.device), "attention_backend": self.attention.name, **kept, **method}

    def on_kernel(self, note: Callable[[], None]) -> None:
        """From now on call `note` within each step, once it needs no Python for a while."""
        for runner in (self.runner, self.decode_runner):
            if runner is not None:
                runner.on_kernel = note

    @torch.inference_mode()
    def execute(self, plan: StepPlan) -> Tensor:
        """Logits `[sum of num_logits, vocab_size]` in plan order, float32 (float64 for a float64 model)."""
        with guard_step(torch.get_num_threads()) if self._is_on_cpu else nullcontext():
            if plan.moves:
                self.mover.carry_out(plan.moves)
            self.last_attention_seconds = 0.0
            if not plan.scheduled:
                return self.decoder.compute_logits(self.decoder.embedding[:0])
            if self.decode_runner is None:
                return self._run(self.runner, plan)
            return self._run_by_phase(self.decode_runner, plan)

    def _run(self, runner: ModelRunner, plan: StepPlan) -> Tensor:
        metadata = build_metadata(plan, self.storage.block_size)
        logits = runner.run(metadata, plan.num_padding_tokens)
        self.last_attention_seconds += runner.attention_seconds
        return logits

    def _run_by_phase(self, decode_runner: ModelRunner, plan: StepPlan) -> Tensor:
        """Prompt tokens first: a sequence's generated ones look at them (`phases.py`)."""
        prompts, generated, order = split_by_phase(plan)
        if generated is None:
            return self._run(self.runner, plan)
        if prompts is None:
            return self._run(decode_runner, plan)
        both = torch.cat([self._run(self.runner, prompts), self._run(decode_runner, generated)])
        return both if order is None else both[order]


def bytes_told(decoder: Decoder) -> tuple[int, int]:
    """`step_bytes`, if the weights are quantised; of others the type of numbers says it all."""
    return decoder.step_bytes if decoder.is_quantized else (0, 0)


def make_cache(
    decoder: Decoder, num_blocks: int, block_size: int, kv_cache_dtype: str, slots: tuple[int, int] | None
) -> KVStorage:
    """A cache for this model, beside its weights, with the scales that its checkpoint has.

    With `slots`, so many sequences of so many tokens, it is in virtual memory.
    """
    config, kind = decoder.config, (block_size, decoder.dtype, decoder.embedding.device)
    if slots is not None:
        return VirtualKVStorage.for_slots(config, slots[0], slots[1], *kind)
    scales = scales_of_layers(kv_cache_dtype, decoder.kv_scales)
    return make_storage(config, num_blocks, *kind, kv_cache_dtype, scales)


def make_host_storage(swap_space_bytes: int, config: ModelConfig, storage: KVStorage) -> KVStorage | None:
    """The swap space: blocks like those of `storage` in the host's memory, None if it has none."""
    num_blocks = decide_num_host_blocks(
        swap_space_bytes, config, storage.block_size, storage.dtype, storage.kv_cache_dtype
    )
    return twin_of(storage, config, num_blocks, torch.device("cpu")) if num_blocks else None


def name_of(path: str | Path, folder: Path) -> str:
    """What a model is called: its folder's name, or its id on the hub, whose folder is named by a commit."""
    return folder.resolve().name if os.path.isdir(os.path.expanduser(path)) else str(path)


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
