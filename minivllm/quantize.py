"""A checkpoint in, a quantised checkpoint out.

    MODEL ──► decoder ──► quantised layer by layer ──► packed tensors ─┐
      │                                                                ├──► OUT, whole or not at all
      └── norms, embedding, head, tokenizer, generation config ────────┘

`quantize` makes a checkpoint; what it tells on the way goes to a `Progress`. `quantized_folder` is for
loading: it makes one once, and keeps it in the user's folder for caches, beside compiled kernels.

Read next: `minivllm/model/quantization/quantize_layers.py`.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from minivllm.files import CannotWrite, check_new_folder, new_folder
from minivllm.model.config import ModelConfig
from minivllm.model.decoder import Decoder
from minivllm.model.hub import resolve_model, resolve_tokenizer
from minivllm.model.json_file import read_json_object
from minivllm.model.load import load_decoder
from minivllm.model.quantization.judge import Verdict, judge
from minivllm.model.quantization.packed_checkpoint import (
    check_layout,
    packed_tensors,
    quantization_config,
)
from minivllm.model.quantization.quantize_layers import LayerResult, Run, Samples
from minivllm.model.quantization.settings import QuantizationSettings, make_settings
from minivllm.model.quantization.texts import HELD_OUT, read_samples
from minivllm.model.tokenizer import Tokenizer
from minivllm.model.weights import Checkpoint
from minivllm.user_caches import user_caches
from minivllm.validation import check_integer, shown

NUM_HELD_OUT = 32
RECIPE = 1
"""Raised when the algorithms change, so that what is kept from before is made again."""
COPIED = ("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt", "*.jinja",
          "chat_template*", "generation_config.json", "LICENSE*")  # fmt: skip
COPIED_FOLDERS = ("additional_chat_templates",)

Progress = Callable[[LayerResult, int], None]
"""Called after each layer, with how many there are."""


@dataclass(frozen=True)
class Calibration:
    """Which texts a model is quantised with.

    Attributes:
        source: "builtin", or a file (`model/quantization/texts.py`).
        num_samples, seq_len: how many samples, of at most how many tokens.
        held_out: a file to judge by; None: what is left of `source`, or the built-in held-out texts.
        tokenizer: a folder or a name on the hub; None: the model's own.
    """

    source: str | Path = "builtin"
    num_samples: int = 128
    seq_len: int = 512
    held_out: str | Path | None = None
    tokenizer: str | Path | None = None
    seed: int = 0


@dataclass
class Plan:
    """A model, what to do to it, and with which samples: everything that can be refused has been."""

    folder: Path
    config: ModelConfig
    settings: QuantizationSettings
    samples: Samples
    results: list[LayerResult] = field(default_factory=list)


@dataclass(frozen=True)
class Quantized:
    """What came out: where it is, its size beside the original's, and how much it lost."""

    folder: Path
    bytes_before: int
    bytes_after: int
    verdict: Verdict


def plan_quantization(
    model: str | os.PathLike[str], method: str, calibration: Calibration | None = None, **options: Any
) -> Plan:
    """Check everything that can be checked before the model is loaded.

    Args:
        model: a folder, or a name on the hub.
        method: one of `settings.METHODS`; `options` are those of `make_settings`.

    Raises:
        ValueError: naming what is wrong.
    """
    calibration = calibration or Calibration()
    folder = resolve_model(model)
    already = read_json_object(folder / "config.json").get("quantization_config")
    if already:
        how = already.get("quant_method") if isinstance(already, dict) else already
        raise ValueError(f"{folder} is quantised already ({shown(how)}); quantise the original checkpoint")
    config = ModelConfig.from_folder(folder)
    if method == "rtn" and "scale_dtype" not in options:
        options["scale_dtype"] = _scale_dtype(config)
    settings = make_settings(method, config, **options)
    check_layout(settings, config)
    return Plan(folder, config, settings, _samples(folder, config, calibration))


def quantize(plan: Plan, out: str | Path, progress: Progress | None = None) -> Quantized:
    """Carry out a plan, and write the quantised checkpoint to the new folder `out`.

    Raises:
        ValueError: a tensor of the model is missing or not finite.
        CannotWrite: the disk is full.
    """
    place = check_new_folder(out, "out")
    decoder, stored = load_whole(plan.folder, plan.config)
    before = {name: view.clone() for name, view in decoder.views() if view.dim() == 1}
    run = Run(decoder, plan.settings, plan.samples, fold_dtype=_norm_dtype(stored, plan.folder))
    packed: dict[str, Tensor] = {}
    for result in run:
        packed |= packed_tensors(decoder.layers[result.index], result, plan.settings)
        if progress is not None:
            progress(result, plan.config.num_layers)
    verdict = judge(decoder, plan.samples.held_out, run.held_out)
    tensors = packed | _unpacked(decoder, stored, before, packed)
    with new_folder(place, "out") as folder:
        _fill(folder, plan, tensors)
    return Quantized(place, _weight_bytes(plan.folder), _weight_bytes(place), verdict)


def quantized_folder(
    model: str | os.PathLike[str], method: str, progress: Progress | None = None, cache: Path | None = None
) -> Path:
    """A quantised checkpoint of `model`, made with the built-in texts now or some time before.

    It is kept in `cache` or in the user's folder for caches, by method and by what is in the model's folder.

    Raises:
        ValueError: as `plan_quantization`.
        CannotWrite: it cannot be kept.
    """
    plan = plan_quantization(model, method)
    caches = cache or user_caches() / "minivllm"
    place = caches / f"quantized-{method}-{_fingerprint(plan)}"
    if not (place / "config.json").is_file():
        try:
            caches.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CannotWrite(
                f"{caches}: a quantised model cannot be kept there: {error.strerror}"
            ) from error
        try:
            quantize(plan, place, progress)
        except ValueError:  # another process may have been quicker
            if not (place / "config.json").is_file():
                raise
    return place


def load_whole(folder: Path, config: ModelConfig) -> tuple[Decoder, Checkpoint]:
    """The decoder in the type that its checkpoint asks for, on the CPU, and the files it came from."""
    decoder = load_decoder(folder, config, torch_dtype(config), torch.device("cpu"))
    return decoder, Checkpoint(folder)


def torch_dtype(config: ModelConfig) -> torch.dtype:
    """The type that the checkpoint was saved for."""
    dtype: torch.dtype = getattr(torch, config.dtype)
    return dtype


def _samples(folder: Path, config: ModelConfig, calibration: Calibration) -> Samples:
    where = calibration.tokenizer or folder
    if calibration.tokenizer is None and not (folder / "tokenizer.json").is_file():
        raise ValueError(f"{folder} has no tokenizer.json, and calibration reads text: name a tokenizer")
    encode = Tokenizer.from_folder(resolve_tokenizer(where)).encode
    check_integer("samples", calibration.num_samples, at_least=1)
    seq_len = min(check_integer("seq_len", calibration.seq_len, at_least=2), config.max_model_len)

    def read(source: str | Path, count: int, name: str = "calibration") -> list[list[int]]:
        samples = read_samples(
            source, encode, num_samples=count, seq_len=seq_len, seed=calibration.seed, name=name
        )
        if (largest := max(map(max, samples))) >= config.vocab_size:
            raise ValueError(
                f"the tokenizer gives token {largest}, but the model's vocab_size is {config.vocab_size}"
            )
        return samples

    held_out = calibration.held_out or (HELD_OUT if calibration.source == "builtin" else None)
    if held_out is not None:
        return Samples(
            read(calibration.source, calibration.num_samples), read(held_out, NUM_HELD_OUT, "held_out")
        )
    samples = read(calibration.source, calibration.num_samples + NUM_HELD_OUT)
    if len(samples) < 2:
        raise ValueError("calibration: the file has one sample, and one more must be held out: add text")
    apart = min(NUM_HELD_OUT, max(1, len(samples) // 5))
    return Samples(samples[:-apart], samples[-apart:])


def _scale_dtype(config: ModelConfig) -> torch.dtype:
    dtype = torch_dtype(config)
    return torch.float32 if dtype == torch.float64 else dtype


def _norm_dtype(checkpoint: Checkpoint, folder: Path) -> torch.dtype:
    """What norms are stored as, which is what folded ones will be stored as."""
    return _read(checkpoint, "model.layers.0.input_layernorm.weight").dtype


def _unpacked(
    decoder: Decoder, checkpoint: Checkpoint, before: dict[str, Tensor], packed: dict[str, Tensor]
) -> dict[str, Tensor]:
    """All that was not quantised, as it was stored. What was folded into changed, and keeps its type."""
    quantized = {f"{name.rpartition('.')[0]}.weight" for name in packed}
    tensors: dict[str, Tensor] = {}
    for name, view in decoder.views():
        if name in quantized:
            continue
        stored = _read(checkpoint, name)
        changed = name in before and not torch.equal(view, before[name])
        tensors[name] = view.to(stored.dtype).contiguous() if changed else stored
    return tensors


def _read(checkpoint: Checkpoint, name: str) -> Tensor:
    with safe_open(str(checkpoint.file_of[name]), framework="pt") as file:
        tensor: Tensor = file.get_tensor(name)
    return tensor


def _fill(folder: Path, plan: Plan, tensors: dict[str, Tensor]) -> None:
    """Write weights and config, and copy what a model's folder has besides."""
    try:
        save_file(tensors, str(folder / "model.safetensors"), metadata={"format": "pt"})
    except SafetensorError as error:  # what it says of a full disk
        raise OSError(str(error)) from error
    config = read_json_object(plan.folder / "config.json")
    config["quantization_config"] = quantization_config(plan.settings)
    text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
    (folder / "config.json").write_text(text, encoding="utf-8")
    shutil.copymode(folder / "config.json", folder / "model.safetensors")  # safetensors' is its owner's only
    if plan.settings.method == "gptq":
        twin = json.dumps(config["quantization_config"], indent=2) + "\n"
        (folder / "quantize_config.json").write_text(twin, encoding="utf-8")
    for pattern in COPIED:
        for path in sorted(plan.folder.glob(pattern)):
            if path.is_file():
                shutil.copyfile(path, folder / path.name)
    for name in COPIED_FOLDERS:
        if (plan.folder / name).is_dir():
            shutil.copytree(plan.folder / name, folder / name)


def _weight_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def _fingerprint(plan: Plan) -> str:
    """Of settings, and of the model's files by size and time: another one is another checkpoint."""
    digest = sha256(f"{RECIPE} {plan.settings} {plan.folder.resolve()}".encode())
    for path in sorted(plan.folder.glob("*")):
        if path.is_file():
            state = path.stat()
            digest.update(f"{path.name} {state.st_size} {state.st_mtime_ns}".encode())
    return digest.hexdigest()[:16]
