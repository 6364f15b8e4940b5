"""What a peer is given: a folder with the model in the measured type, and the requests of every measure.

All sides read the same weights. Random models come in float32 and without a tokenizer; for another type
they are cast here, once, and for libraries that insist on a tokenizer there is one with a made-up word for
each token. Read next: `serve.py`, which gets the job.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from minivllm.lab.bench.field.measures import Measure
from minivllm.lab.bench.field.settings import FieldSettings
from minivllm.lab.subjects.subject import Subject

SIDE_FILES = ("generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")


def make_job(
    subject: Subject, model: Path, cache: Path, settings: FieldSettings, measures: Sequence[Measure]
) -> dict[str, Any]:
    """The first line that each peer reads; `serve.py` and the scripts know its fields by name."""
    lengths = [
        [len(request.prompt_token_ids) + request.num_output_tokens for request in measure.requests]
        for measure in measures
    ]
    shape = subject.executor.model_shape
    cells = max(map(sum, lengths)) + subject.limits.block_size * max(map(len, lengths))
    return {
        "model": str(model),
        "cache": str(cache),
        "dtype": shape.dtype,
        "device": subject.executor.device.type,
        "weights": settings.weights,
        "threads": settings.num_threads,
        "max_model_len": max(map(max, lengths)),
        "max_num_seqs": subject.limits.max_num_seqs,
        "cache_gib": -(-cells * shape.kv_bytes_per_token // 2**30),  # room for all, rounded up
        "measures": {
            measure.name: {
                "prompts": [list(request.prompt_token_ids) for request in measure.requests],
                "lengths": [request.num_output_tokens for request in measure.requests],
            }
            for measure in measures
        },
    }


def write_model(subject: Subject, into: Path) -> Path:
    """The subject's model as a folder that any library can read, in the type that is measured."""
    import torch
    from safetensors.torch import load_file, save_file

    into.mkdir(parents=True, exist_ok=True)
    dtype = subject.executor.model_shape.dtype
    config = json.loads((subject.folder / "config.json").read_text(encoding="utf-8"))
    for name in ("dtype", "torch_dtype"):  # the newer name and the older one
        config[name] = dtype
    (into / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    for path in subject.folder.glob("*.safetensors"):
        tensors = {name: tensor.to(getattr(torch, dtype)) for name, tensor in load_file(path).items()}
        save_file(tensors, into / path.name, metadata={"format": "pt"})
    for name in (*SIDE_FILES, "model.safetensors.index.json"):
        if (subject.folder / name).is_file():
            shutil.copyfile(subject.folder / name, into / name)
    if not (into / "tokenizer.json").is_file():
        _write_tokenizer(subject.executor.config.vocab_size, into)
    return into


def fingerprint(folder: Path) -> str:
    """A short name for exactly these weights: what is kept for one model must not be taken for another's."""
    digest = hashlib.sha256()
    for path in sorted([*folder.glob("*.safetensors"), folder / "config.json"]):
        with open(path, "rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16]


def _write_tokenizer(vocab_size: int, folder: Path) -> None:
    """One word for each token; no text is ever made of them."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {f"t{token}": token for token in range(vocab_size)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="t0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(folder / "tokenizer.json"))
    roles = {"bos_token": "t0", "eos_token": "t1", "pad_token": "t2", "unk_token": "t0"}
    config = {"tokenizer_class": "PreTrainedTokenizerFast", **roles}
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
