"""From the name of a model to a folder on disk.

A name is either a folder (`./my-model`) or an id on the Hugging Face hub (`owner/name`). A folder is
used as it is. An id is looked up in the local cache and, if there is a network, downloaded, but only the
files this engine reads. When neither works, the error says what was tried and what to do about it.

Read next: `minivllm/model/config.py`, the first file that is opened.
"""

from __future__ import annotations

import os
import re
from contextlib import suppress
from pathlib import Path

from minivllm.validation import shown

TOKENIZER_FILES = ["*.json", "*.jinja", "tokenizer*"]
MODEL_FILES = [*TOKENIZER_FILES, "*.safetensors"]
FILES_DOUBLED = ["consolidated*", "original/*"]
"""The same weights again, in the publisher's own layout: some repositories carry both."""

OTHER_WEIGHTS = (".bin", ".pt", ".pth", ".gguf")

LFS_POINTER = b"version https://git-lfs"

_HUB_ID = re.compile(r"[\w\-.]+(/[\w\-.]+)?")


class ModelNotFoundError(ValueError):
    """No folder could be found for a model's name; the message says what was tried and what to do."""


def resolve_model(name_or_path: str | os.PathLike[str]) -> Path:
    """The folder of a model, downloaded if need be, with everything in it that loading requires."""
    folder = _local_or_fetched("model", os.fspath(name_or_path), MODEL_FILES)
    return _complete(folder, missing_files(folder), "model")


def resolve_tokenizer(name_or_path: str | os.PathLike[str]) -> Path:
    """The folder of a tokenizer: as `resolve_model`, but only `tokenizer.json` has to be there."""
    folder = _local_or_fetched("tokenizer", os.fspath(name_or_path), TOKENIZER_FILES)
    return _complete(folder, [] if (folder / "tokenizer.json").is_file() else ["tokenizer.json"], "tokenizer")


def missing_files(folder: Path) -> list[str]:
    """What a model folder lacks before it can be loaded; empty if it looks complete."""
    missing = [] if (folder / "config.json").exists() else ["config.json"]
    if not any(folder.glob("*.safetensors")):
        missing.append("model.safetensors (or shards with model.safetensors.index.json)")
    return missing


def conversion_hint(folder: Path) -> str:
    """What to do about weights in another format, to end a message with; empty if there are none."""
    others = sorted(path.name for path in folder.iterdir() if path.suffix in OTHER_WEIGHTS)
    if not others:
        return ""
    return (
        f"; found {', '.join(others[:5])}, convert it to safetensors first "
        "(`transformers.AutoModelForCausalLM.from_pretrained(folder).save_pretrained(folder)`)"
    )


def pointer_hint(path: Path) -> str:
    """What to do about a file that `git clone` has left behind in place of a large one; else empty."""
    with suppress(OSError), path.open("rb") as file:
        if file.read(len(LFS_POINTER)) == LFS_POINTER:
            return "; it is only a pointer to the file: `git lfs pull` in its folder fetches the file itself"
    return ""


def _local_or_fetched(kind: str, name: str, files: list[str]) -> Path:
    folder = Path(os.path.expanduser(name))  # those of `os.path` raise nothing, whatever the name
    if os.path.isdir(folder):
        return folder
    if os.path.exists(folder):
        raise ModelNotFoundError(f"{kind}: {shown(name)} is a file; give the folder that holds it")
    if _looks_like_a_path(name):
        place = str(folder.absolute())
        looked = "" if place == name else f" (looked in {shown(place)})"
        raise ModelNotFoundError(f"{kind}: there is no folder {shown(name)}{looked}")
    return _from_hub(kind, name, files)


def _complete(folder: Path, missing: list[str], kind: str) -> Path:
    if missing:
        held = ", ".join(sorted(path.name for path in folder.iterdir())[:20]) or "nothing"
        lack = " and ".join(missing)
        hint = conversion_hint(folder) if kind == "model" else ""
        raise ModelNotFoundError(f"{folder} is not a {kind} folder: it lacks {lack}; it holds {held}{hint}")
    return folder


def _looks_like_a_path(name: str) -> bool:
    if name.startswith((".", "~", os.sep)) or "\\" in name:
        return True
    return _HUB_ID.fullmatch(name) is None or (os.sep in name and os.path.isdir(Path(name).parent))


def _from_hub(kind: str, name: str, files: list[str]) -> Path:
    from huggingface_hub import snapshot_download  # imported late: a local folder needs no hub

    try:
        path = snapshot_download(name, allow_patterns=files, ignore_patterns=FILES_DOUBLED)
    except Exception as error:  # the hub's errors are many (offline, unknown, gated, proxy …); all end here
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelNotFoundError(
            f"{kind}: {shown(name)} is neither a folder here nor a model that could be fetched from the "
            f"Hugging Face hub ({type(error).__name__}: {reason}). Give a local folder, or run `hf download` "
            "for it on a machine with network access and copy the folder here."
        ) from error
    return Path(path)
