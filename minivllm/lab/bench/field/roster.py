"""The peers: their scripts, what they can compute, and how to install them.

A peer is a line of data here and a script beside this file. Read next: `serve.py`, which runs the scripts.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

HERE = Path(__file__).parent
WEIGHTS = ("int8", "int4")
"""How weights can be rounded on all sides: to 8 bits, or to 4 in groups (ours and OpenVINO's of 128)."""


@dataclass(frozen=True)
class Peer:
    """One engine beside ours."""

    package: str
    """What it is imported as."""
    script: Path
    """Defines `load(job)`, see `serve.py`."""
    install: str
    """One line for an empty environment."""
    dtypes: tuple[str, ...] = ("float32", "bfloat16")
    devices: tuple[str, ...] = ("cpu",)
    """Where its script can compute, in torch's words."""
    weights: tuple[str, ...] = ()
    """How its script can round weights."""
    preload: str = ""
    """A library below its environment that is loaded first, if it is there."""


PEERS: Mapping[str, Peer] = {
    "openvino": Peer(
        "openvino_genai",
        HERE / "openvino_peer.py",
        "pip install openvino-genai openvino-tokenizers optimum-intel && pip uninstall -y torchvision",
        weights=WEIGHTS,
    ),
    "vllm": Peer(
        "vllm",
        HERE / "vllm_peer.py",
        "vLLM's build for CPUs: https://docs.vllm.ai, Installation, CPU",
        preload="lib/libiomp5.so",
    ),
    "llama-cpp": Peer(
        "llama_cpp",
        HERE / "llama_cpp_peer.py",
        "pip install llama-cpp-python gguf (a compiler is needed)",
        weights=WEIGHTS,
    ),
    "onnx": Peer(
        "onnxruntime_genai",
        HERE / "onnx_peer.py",
        "pip install onnxruntime-genai onnx-ir transformers torch",
        dtypes=("float32",),
    ),
    "ctranslate2": Peer(
        "ctranslate2",
        HERE / "ctranslate2_peer.py",
        "pip install ctranslate2 transformers torch",
        dtypes=("float32",),
    ),
    "transformers": Peer(
        "transformers",
        HERE / "transformers_peer.py",
        "pip install 'transformers>=5,<6' torch",
        dtypes=("float32", "bfloat16", "float16", "float64"),
        devices=("cpu", "cuda"),
    ),
}


def find_pythons(
    given: Mapping[str, str], wanted: tuple[str, ...], roster: Mapping[str, Peer] = PEERS
) -> dict[str, Path | None]:
    """Which Python runs which peer; None where none is known.

    One that is given is taken; otherwise this one, if the peer can be imported here.

    Raises:
        ValueError: an unknown peer, or a Python that is not there.
    """
    for name in (*given, *wanted):
        if name not in roster:
            raise ValueError(f"a peer must be one of {', '.join(roster)}; got {name!r}")
    pythons: dict[str, Path | None] = {}
    for name in wanted:
        if name in given:
            pythons[name] = _check_python(name, given[name])
        else:
            pythons[name] = Path(sys.executable) if find_spec(roster[name].package) else None
    return pythons


def environment(python: Path, peer: Peer, threads: int, device: str = "cpu") -> dict[str, str]:
    """Variables for that process: as if its environment were activated, on so many threads.

    A GPU is hidden where the comparison is made on the CPU.

    How long idle threads spin is left to each library: made to sleep at once, they would lose in every step
    what they have by default. They all stop within the pause between two turns (`compare.py`).
    """
    variables = {
        name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")
    }
    variables["PATH"] = f"{python.parent}{os.pathsep}{variables.get('PATH', '')}"
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        variables[name] = str(threads)
    variables |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    if device == "cpu":
        variables["CUDA_VISIBLE_DEVICES"] = ""
    library = python.parent.parent / peer.preload
    if peer.preload and library.is_file():
        variables["LD_PRELOAD"] = str(library)
    return variables


def _check_python(name: str, given: str) -> Path:
    path = Path(os.path.expanduser(given)).absolute()  # not resolved: an environment is known by its link
    if not path.is_file():
        raise ValueError(f"python: {name}: there is no file {given}")
    if not os.access(path, os.X_OK):
        raise ValueError(f"python: {name}: {given} cannot be executed")
    return path
