"""Weights from a checkpoint folder into their places, one tensor at a time.

A folder holds `model.safetensors`, or several shards and an index that says which tensor is in which:

    model.safetensors.index.json    {"weight_map": {"model.norm.weight": "model-00002-of-00002.safetensors", …

Safetensors files are mapped into memory, so reading one tensor, converting it to the model's type and
writing it to its final place costs no more than that tensor on top of the model itself. The decoder says
where each name belongs (`Decoder.views`); this module knows nothing about models, only names and shapes.

Nothing is guessed: a tensor that is missing, misshapen or left over is named, with what was expected.

Read next: `minivllm/model/decoder.py`; the format is described at github.com/huggingface/safetensors.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from minivllm.model.config import read_json_object

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"


class CheckpointError(ValueError):
    """The weights in a folder are not what its config promises; the message names tensor and file."""


class Checkpoint:
    """The tensors of a folder by name. Opening it checks that every file is there and readable."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.file_of: dict[str, Path] = dict(self._locate())
        """Tensor name → the file that holds it."""

    def load_into(self, views: Iterable[tuple[str, Tensor]]) -> None:
        """Fill every view with the tensor of its name, converted to the view's type and device.

        Tensors that no view asked for are listed in one warning, except rotary frequencies: older files
        carry them, and they are computed here.
        """
        wanted = dict(views)
        missing = [name for name in wanted if name not in self.file_of]
        if missing:
            raise CheckpointError(f"{self.folder} lacks {_some(missing)}, which its config.json calls for")
        for file in sorted(set(self.file_of.values())):
            with _open(file) as tensors:
                for name in sorted(name for name in wanted if self.file_of[name] == file):
                    _copy(name, file, tensors, wanted[name])
        left = [n for n in self.file_of if n not in wanted and not n.endswith("rotary_emb.inv_freq")]
        if left:
            message = f"{self.folder} has tensors that the model does not use: {_some(left)}"
            warnings.warn(message, stacklevel=2)

    def _locate(self) -> Iterator[tuple[str, Path]]:
        if (self.folder / SINGLE_FILE).is_file():
            yield from ((name, self.folder / SINGLE_FILE) for name in _names(self.folder / SINGLE_FILE))
            return
        if not (self.folder / INDEX_FILE).is_file():
            others = sorted(path.name for path in self.folder.glob("*") if path.suffix in _WEIGHT_SUFFIXES)
            hint = f"; found {_some(others)}, convert it to safetensors first" if others else ""
            raise CheckpointError(f"{self.folder} has neither {SINGLE_FILE} nor {INDEX_FILE}{hint}")
        for shard, promised in self._read_index().items():
            path = self.folder / shard
            if not path.is_file():
                raise CheckpointError(f"{path} is missing; {INDEX_FILE} places {_some(promised)} there")
            absent = sorted(set(promised) - set(_names(path)))
            if absent:
                raise CheckpointError(f"{path} lacks {_some(absent)}, which {INDEX_FILE} places there")
            yield from ((name, path) for name in promised)

    def _read_index(self) -> dict[str, list[str]]:
        """Shard file name → the tensors it should hold."""
        path = self.folder / INDEX_FILE
        try:
            weight_map = read_json_object(path).get("weight_map")
        except ValueError as error:
            raise CheckpointError(str(error)) from None
        if not isinstance(weight_map, dict) or not all(isinstance(v, str) for v in weight_map.values()):
            raise CheckpointError(f"{path} must have a 'weight_map' from tensor names to file names")
        shards: dict[str, list[str]] = {}
        for name, shard in weight_map.items():
            shards.setdefault(shard, []).append(name)
        return shards


_WEIGHT_SUFFIXES = {".bin", ".pt", ".pth", ".gguf", ".safetensors"}


def _open(file: Path) -> Any:
    """A handle that reads single tensors, or the reason why the file is none."""
    try:
        return safe_open(str(file), framework="pt")
    except (SafetensorError, OSError) as error:
        size = file.stat().st_size
        raise CheckpointError(
            f"{file} ({size} bytes) is not a complete safetensors file: {error}; download it again"
        ) from None


def _names(file: Path) -> list[str]:
    with _open(file) as tensors:
        return list(tensors.keys())


def _copy(name: str, file: Path, tensors: Any, view: Tensor) -> None:
    shape = tuple(tensors.get_slice(name).get_shape())
    if shape != tuple(view.shape):
        raise CheckpointError(
            f"{name} in {file} has shape {list(shape)}, but its config.json calls for {list(view.shape)}"
        )
    tensor = tensors.get_tensor(name)
    if not tensor.is_floating_point():
        raise CheckpointError(f"{name} in {file} holds {tensor.dtype}, expected floating-point weights")
    with torch.inference_mode():
        view.copy_(tensor)


def _some(names: list[str], most: int = 5) -> str:
    """A readable list: the first few names and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
