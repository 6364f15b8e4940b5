"""Weights from a checkpoint folder into their places, one tensor at a time.

A folder holds one file, or several shards. An index says which tensor is in which shard; without one, the
names of the shards say how many there are:

    model.safetensors
    model.safetensors.index.json    {"weight_map": {"model.norm.weight": "model-00002-of-00002.safetensors", …
    model-00001-of-00002.safetensors, model-00002-of-00002.safetensors

Every file is an entry of the folder itself. It may be a link, as in the hub's cache; an index that names a
file elsewhere is refused.

Safetensors files are mapped into memory, so reading one tensor, converting it to the model's type and
writing it to its final place costs no more than that tensor on top of the model itself. The decoder says
where each name belongs (`Decoder.views`); this module knows nothing about models, only names and shapes.

Nothing is guessed: a tensor that is missing, misshapen or left over is named, with what was expected.

Read next: `minivllm/model/decoder.py`; the format is described at github.com/huggingface/safetensors.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from minivllm.model.hub import conversion_hint, pointer_hint
from minivllm.model.json_file import read_json_object
from minivllm.validation import shown

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
STORED_TYPES = ("F16", "BF16", "F32", "F64")
"""What plain weights can be."""
STORED_BITS = {"BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "U16": 16, "I16": 16, "F16": 16,
               "BF16": 16, "U32": 32, "I32": 32, "F32": 32, "U64": 64, "I64": 64, "F64": 64}  # fmt: skip
"""Of one number, by safetensors' names of types."""

_SHARD = re.compile(r"model-(\d{5})-of-(\d{5})\.safetensors", re.ASCII)
_PLAIN_NAME = re.compile(r"[\w\-.]{1,200}\.safetensors", re.ASCII)


class CheckpointError(ValueError):
    """The weights in a folder are not what its config promises; the message names tensor and file."""


@dataclass(frozen=True)
class StoredTensor:
    """What a tensor of a file must be like.

    Attributes:
        shape: its size along each dimension.
        types: safetensors' names of the types that it may have.
        why: what calls for it, in a few words; the message about another shape says them.
        is_single: it is one number, with any number of dimensions; `shape` does not count.
    """

    shape: tuple[int, ...]
    types: tuple[str, ...] = STORED_TYPES
    why: str = ""
    is_single: bool = False

    def has_shape(self, shape: tuple[int, ...]) -> bool:
        return all(size == 1 for size in shape) if self.is_single else shape == self.shape


class TensorSlice(NamedTuple):
    """A place in memory, and which rows and columns of a stored tensor belong there."""

    name: str
    view: Tensor
    rows: slice = slice(None)
    columns: slice = slice(None)


class Checkpoint:
    """The tensors of a folder by name. Opening it checks that every file is there and readable."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.file_of: dict[str, Path] = dict(self._locate())
        """Tensor name → the file that holds it."""

    def is_tied(self, config_says: bool) -> bool:
        """Are logits made with the embedding? A file that has its own lm_head means it, whatever its config
        says about tying: so does transformers."""
        return config_says and not any(name.startswith("lm_head.") for name in self.file_of)

    def check(self, views: Iterable[tuple[str, Tensor]], config: str = "") -> None:
        """Are all these tensors here, in these shapes, as numbers that can be converted?

        Only the files' headers are read; the views may be on the device "meta", which has no memory.

        Args:
            views: what will be loaded.
            config: what asks for it, in a few words.

        Raises:
            CheckpointError: a tensor is missing, misshapen, or of a type that is none of `STORED_TYPES`.
        """
        self.check_stored({name: StoredTensor(tuple(view.shape)) for name, view in views}, config)

    def check_stored(self, wanted: Mapping[str, StoredTensor], config: str = "") -> None:
        """As `check`, for tensors of any shape and type."""
        asks = "its config.json calls for" + (f" ({config})" if config else "")
        missing = [name for name in wanted if name not in self.file_of]
        if missing:
            raise CheckpointError(f"{self.folder} lacks {_some(missing)}, which {asks}")
        for name, file, tensors in self._each(wanted):
            stored, like = tensors.get_slice(name), wanted[name]
            shape, kind = tuple(stored.get_shape()), stored.get_dtype()
            if not like.has_shape(shape):
                called_for = "a single number" if like.is_single else str(list(like.shape))
                reason = f"what {like.why} calls for" if like.why else f"what {asks}"
                raise CheckpointError(
                    f"{name} in {file} has shape {list(shape)}, but {called_for} is {reason}"
                )
            if kind not in like.types:
                what = (
                    f"{like.why} has {' or '.join(like.types)} there"
                    if like.why
                    else (f"weights can be {', '.join(like.types)}")
                )
                raise CheckpointError(f"{name} in {file} is stored as {kind}; {what}")

    def load_into(self, views: Iterable[tuple[str, Tensor]], also_used: Container[str] = ()) -> None:
        """Fill every view with the tensor of its name, converted to the view's type and device.

        Tensors that no view asked for, and that are not `also_used` in another way, are listed in one
        warning, except rotary frequencies: older files carry them, and they are computed here.
        """
        wanted = dict(views)
        self.check(wanted.items())
        with torch.inference_mode():
            for name, _, tensors in self._each(wanted):
                wanted[name].copy_(tensors.get_tensor(name))
        self.warn_of_unused(wanted, also_used, stacklevel=3)

    def load_slices(self, slices: Iterable[TensorSlice]) -> None:
        """Fill every view with its rows and columns of a tensor, and read no others (`check` comes first)."""
        by_name: dict[str, list[TensorSlice]] = {}
        for item in slices:
            by_name.setdefault(item.name, []).append(item)
        with torch.inference_mode():
            for name, _, tensors in self._each(by_name):
                stored = tensors.get_slice(name)
                is_matrix = len(stored.get_shape()) > 1
                for item in by_name[name]:
                    item.view.copy_(stored[item.rows, item.columns] if is_matrix else stored[item.rows])

    def warn_of_unused(
        self, used: Container[str], also_used: Container[str] = (), *, stacklevel: int = 2
    ) -> None:
        """One warning that names the tensors of the folder that are neither."""
        left = [
            name
            for name in self.file_of
            if name not in used and name not in also_used and not name.endswith("rotary_emb.inv_freq")
        ]
        if left:
            message = f"{self.folder} has tensors that the model does not use: {_some(left)}"
            warnings.warn(message, stacklevel=stacklevel)

    def read(self, names: Iterable[str]) -> dict[str, Tensor]:
        """These tensors, as they are. They lie in the mapped file: copy what shall stay."""
        return {name: tensors.get_tensor(name) for name, _, tensors in self._each(names)}

    def num_bytes(self) -> dict[str, int]:
        """Of each tensor; only the files' headers are read."""
        sizes = {}
        for name, _, tensors in self._each(self.file_of):
            stored = tensors.get_slice(name)
            sizes[name] = prod(stored.get_shape()) * STORED_BITS[stored.get_dtype()] // 8
        return sizes

    def _each(self, names: Iterable[str]) -> Iterator[tuple[str, Path, Any]]:
        """These tensors, file by file: name, file, and the handle that reads it."""
        by_file: dict[Path, list[str]] = {}
        for name in sorted(names):
            by_file.setdefault(self.file_of[name], []).append(name)
        for file in sorted(by_file):
            with _open(file) as tensors:
                yield from ((name, file, tensors) for name in by_file[file])

    def _locate(self) -> Iterator[tuple[str, Path]]:
        if (self.folder / SINGLE_FILE).is_file():
            yield from ((name, self.folder / SINGLE_FILE) for name in _names(self.folder / SINGLE_FILE))
        elif (self.folder / INDEX_FILE).exists():
            yield from self._locate_by_index()
        else:
            yield from self._locate_in_shards()

    def _locate_by_index(self) -> Iterator[tuple[str, Path]]:
        for shard, promised in self._read_index().items():
            path = self.folder / shard
            if not path.is_file():
                lack = "is no file" if path.exists() else "is missing"
                raise CheckpointError(f"{path} {lack}; {INDEX_FILE} places {_some(promised)} there")
            absent = sorted(set(promised) - set(_names(path)))
            if absent:
                raise CheckpointError(f"{path} lacks {_some(absent)}, which {INDEX_FILE} places there")
            yield from ((name, path) for name in promised)

    def _locate_in_shards(self) -> Iterator[tuple[str, Path]]:
        totals = {found[2] for path in self.folder.iterdir() if (found := _SHARD.fullmatch(path.name))}
        if not totals:
            hint = conversion_hint(self.folder)
            raise CheckpointError(f"{self.folder} has neither {SINGLE_FILE} nor {INDEX_FILE}{hint}")
        if len(totals) > 1:
            raise CheckpointError(
                f"{self.folder} has shards of several models (-of-{', -of-'.join(sorted(totals))}) and no "
                f"{INDEX_FILE} that says which of them count"
            )
        total = totals.pop()
        shards = [f"model-{number:05d}-of-{total}.safetensors" for number in range(1, int(total) + 1)]
        missing = [shard for shard in shards if not (self.folder / shard).is_file()]
        if missing:
            raise CheckpointError(f"{self.folder} has shards -of-{total}, but lacks {_some(missing)}")
        seen: dict[str, Path] = {}
        for path in (self.folder / shard for shard in shards):
            for name in _names(path):
                if name in seen:
                    raise CheckpointError(
                        f"{name} is in both {seen[name]} and {path.name}: which of them counts?"
                    )
                seen[name] = path
                yield name, path

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
        for shard, names in shards.items():
            if not _PLAIN_NAME.fullmatch(shard):
                raise CheckpointError(
                    f"{path} places {_some(names)} in {shown(shard)}; it must be a *.safetensors file of its "
                    "own folder, by its plain name"
                )
        return shards


def _open(file: Path) -> Any:
    """A handle that reads single tensors, or the reason why the file is none."""
    try:
        return safe_open(str(file), framework="pt")
    except (SafetensorError, OSError) as error:
        size, hint = file.stat().st_size, pointer_hint(file) or "; download it again"
        raise CheckpointError(
            f"{file} ({size} bytes) is not a complete safetensors file: {error}{hint}"
        ) from None


def _names(file: Path) -> list[str]:
    with _open(file) as tensors:
        return list(tensors.keys())


def _some(names: list[str], most: int = 5) -> str:
    """A readable list: the first few names and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(name[:100] for name in names[:most]) + more
