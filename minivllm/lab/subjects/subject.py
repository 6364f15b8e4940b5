"""The subject of a measurement: one loaded model, and as many fresh engines around it as are needed.

Weights are loaded once. An executor remembers nothing between steps but cells of the cache, so one can
serve many engines one after the other, and repetitions need not wait for a disk.

Read next: `workload.py`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minivllm.config import SchedulerConfig
from minivllm.lab.subjects.settings import Settings
from minivllm.lab.subjects.shapes import SHAPES, write_checkpoint
from minivllm.lab.subjects.workload import BenchRequest, make_workload
from minivllm.scratch import ScratchFolder

if TYPE_CHECKING:
    from minivllm.engine.engine import Engine
    from minivllm.executor.torch_executor import TorchExecutor
    from minivllm.model.tokenizer import Tokenizer
    from minivllm.trace.recorder import Recorder


@dataclass(frozen=True)
class Subject:
    """A model ready to be measured."""

    name: str
    folder: Path
    executor: TorchExecutor
    tokenizer: Tokenizer | None
    """None for random models: there are no texts to make of random tokens."""
    limits: SchedulerConfig

    def engine(self, recorder: Recorder | None = None) -> Engine:
        """A fresh engine: empty pool, empty queues, the same weights."""
        from minivllm.decoding.sampler import Sampler
        from minivllm.engine.engine import Engine

        vocab_size = self.executor.config.vocab_size
        return Engine(
            self.limits,
            self.executor,
            Sampler(vocab_size),
            vocab_size=vocab_size,
            tokenizer=self.tokenizer,
            eos_token_ids=self.executor.config.eos_token_ids,
            recorder=recorder,
            model_shape=self.executor.model_shape,
        )

    def twin(self) -> Subject:
        """The same weights with a cache of their own, for an engine that runs at the same time."""
        from minivllm.executor.quantized_storage import twin_of
        from minivllm.executor.torch_executor import TorchExecutor

        own = self.executor
        storage = twin_of(own.storage, own.config, own.num_blocks, own.storage.device)
        return replace(self, executor=TorchExecutor(own.decoder, storage, type(own.attention), own.name))

    def workload(self, settings: Settings) -> list[BenchRequest]:
        """The requests for this model."""
        return make_workload(
            self.executor.config.vocab_size,
            num_requests=settings.requests,
            seed=settings.seed,
            max_model_len=self.limits.max_model_len,
        )

    def facts(self) -> dict[str, Any]:
        """What a reader of the numbers wants to know of the model and of the engine around it."""
        shape = self.executor.model_shape
        return {
            "model": self.name,
            "parameters": shape.num_parameters,
            "dtype": shape.dtype,
            "device": str(self.executor.device),
            "attention": self.executor.attention.name,
            "num_blocks": self.limits.num_blocks,
            "block_size": self.limits.block_size,
            "max_num_seqs": self.limits.max_num_seqs,
            "max_num_batched_tokens": self.limits.max_num_batched_tokens,
        }


@contextmanager
def open_subject(settings: Settings, quantization: str | None = None, **how: Any) -> Iterator[Subject]:
    """Load the model that the settings name, on as many threads as they say; maybe rounded (`quantization`).

    `how`: further arguments of `TorchExecutor.from_folder`.

    Raises:
        ValueError: no such shape or folder, or a model that cannot be loaded.
    """
    with ScratchFolder("bench") as scratch:
        name, folder = find_model(settings.model, scratch)
        import torch

        threads_before = torch.get_num_threads()
        torch.set_num_threads(settings.num_threads)
        try:
            yield _load(name, folder, settings, quantization, how)
        finally:
            torch.set_num_threads(threads_before)


def find_model(name: str | None, scratch: Path) -> tuple[str, Path]:
    """Name and folder of the model; a random one is written below `scratch`.

    None is the shipped model, or nano where none is shipped.
    """
    if name is None:
        shipped = shipped_model()
        if shipped is not None:
            return "shipped", shipped
        name = "nano"
    if name in SHAPES:
        return name, write_checkpoint(name, scratch / name)
    folder = Path(os.path.expanduser(name))
    if not folder.is_dir():
        raise ValueError(
            f"model must be {', '.join(SHAPES)}, or a folder with config.json and *.safetensors; got {name!r}"
        )
    return folder.resolve().name, folder


def shipped_model() -> Path | None:
    """The folder of the model that comes with the package, if it is there."""
    try:
        from minivllm.model.tiny import MODEL_PATH
    except ImportError:
        return None
    folder = Path(MODEL_PATH)
    return folder if (folder / "config.json").is_file() else None


def _load(
    name: str, folder: Path, settings: Settings, quantization: str | None, how: Mapping[str, Any]
) -> Subject:
    from minivllm.engine.create_engine import load_tokenizer, scheduler_config
    from minivllm.engine.engine_args import EngineArgs
    from minivllm.executor.torch_executor import TorchExecutor

    args = EngineArgs(
        folder,
        dtype=settings.dtype,
        num_gpu_blocks_override=settings.num_blocks,
        quantization=quantization,
    )
    executor = TorchExecutor.from_folder(
        folder,
        dtype=args.dtype,
        num_blocks=args.num_gpu_blocks_override,
        quantization=args.quantization,
        **how,
    )
    limits = scheduler_config(args, executor.num_blocks, executor.config.max_model_len)
    tokenizer = None if name in SHAPES else load_tokenizer(args)
    return Subject(name, folder, executor, tokenizer, limits)
