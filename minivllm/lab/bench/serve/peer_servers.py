"""Servers of other engines, started with the same model under Pythons of their own.

    llama-cpp    python -m llama_cpp.server           one request at a time; prompts are texts
    vllm         python -m vllm.entrypoints.openai…   its build for CPUs

A random model has no tokenizer. Where a server takes only texts, its converted model gets a vocabulary in
which each token is one character, so a text has exactly the tokens that were drawn, and an answer as many as
it has characters.

They end with the block that started them, and so do their children. Read next: `beside.py`.
"""

from __future__ import annotations

import json
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import ProxyHandler, build_opener

from minivllm.lab.bench.field.roster import HERE, PEERS, Peer, environment
from minivllm.lab.bench.field.vllm_peer import cores
from minivllm.lab.bench.serve.own_server import OwnServer
from minivllm.processes import end_group, end_in_order
from minivllm.text import printable

FIRST_CHARACTERS = ((0x4E00, 20_902), (0xAC00, 11_172))
"""Ranges of characters that stand for tokens: first one, and how many."""
LOOK_SECONDS = 0.2
MOST_CONTEXT = 2048


class PeerServerError(RuntimeError):
    """Why a server is out of the comparison."""


@dataclass(frozen=True)
class Place:
    """Where a server runs, and with what."""

    model: Path
    converted: Path
    port: int
    threads: int
    dtype: str
    max_num_seqs: int


@dataclass(frozen=True)
class PeerServer:
    """One server beside ours.

    Attributes:
        peer: its environment, and what converts the model for it.
        arguments: of its Python.
        install: one line for an empty environment.
        is_converted: it reads a format of its own.
        takes_text: prompts are characters, one for each token.
        more: fields of each request, beside ours.
        variables: of its environment.
        how: in a few words.
    """

    peer: Peer
    arguments: Callable[[Place], list[str]]
    install: str
    is_converted: bool = False
    takes_text: bool = False
    more: Mapping[str, Any] = field(default_factory=dict)
    variables: Callable[[Place], dict[str, str]] = lambda place: {}
    how: str = ""


def _llama_cpp(place: Place) -> list[str]:
    """Float32 keys and values, as ours; no logits but the wanted ones; no request ends another."""
    values = {
        "model": place.converted / "model.gguf",
        "model_alias": "measured",
        "host": "127.0.0.1",
        "port": place.port,
        "n_ctx": MOST_CONTEXT,
        "n_batch": MOST_CONTEXT,
        "n_threads": place.threads,
        "n_threads_batch": place.threads,
        "logits_all": "false",
        "interrupt_requests": "false",
        "verbose": "false",
        **({"type_k": 0, "type_v": 0} if place.dtype == "float32" else {}),
    }
    return ["-m", "llama_cpp.server", *(str(each) for name in values for each in (f"--{name}", values[name]))]


def _vllm(place: Place) -> list[str]:
    return [
        *("-m", "vllm.entrypoints.openai.api_server", "--model", str(place.model)),
        *("--served-model-name", "measured", "--host", "127.0.0.1", "--port", str(place.port)),
        *("--dtype", place.dtype, "--max-num-seqs", str(place.max_num_seqs)),
        *("--max-model-len", str(MOST_CONTEXT), "--no-enable-prefix-caching"),
    ]


def _vllm_variables(place: Place) -> dict[str, str]:
    bound = ",".join(map(str, cores(place.threads)))
    return {
        "VLLM_TARGET_DEVICE": "cpu", "VLLM_CPU_KVCACHE_SPACE": "4", "VLLM_CPU_OMP_THREADS_BIND": bound,
        "VLLM_LOGGING_LEVEL": "ERROR", "VLLM_NO_USAGE_STATS": "1",
        "VLLM_CACHE_ROOT": str(place.converted / "vllm"),
    }  # fmt: skip


PEER_SERVERS: Mapping[str, PeerServer] = {
    "llama-cpp": PeerServer(
        PEERS["llama-cpp"],
        _llama_cpp,
        "pip install 'llama-cpp-python[server]' gguf (a compiler is needed)",
        is_converted=True,
        takes_text=True,
        more={"repeat_penalty": 1.0},
        how="llama-cpp-python's server, one request at a time",
    ),
    "vllm": PeerServer(
        PEERS["vllm"], _vllm, PEERS["vllm"].install, variables=_vllm_variables, how="vLLM's server on a CPU"
    ),
}


def as_characters(token_ids: Sequence[int]) -> str:
    """A text whose characters are these tokens (`field/llama_cpp_peer.py` writes the vocabulary)."""
    return "".join(map(character, token_ids))


def character(token_id: int) -> str:
    """The character that stands for a token."""
    for first, count in FIRST_CHARACTERS:
        if token_id < count:
            return chr(first + token_id)
        token_id -= count
    raise ValueError(f"vocab_size must be at most {sum(count for _, count in FIRST_CHARACTERS):,} here")


@contextmanager
def peer_server(
    server: PeerServer, python: Path, place: Place, timeout: float
) -> Iterator[tuple[OwnServer, str]]:
    """Convert the model if need be, start the server, and wait until it answers; with its version.

    Raises:
        PeerServerError: it could not be started, and its own words why.
    """
    variables = environment(python, server.peer, place.threads) | server.variables(place)
    version = _version(python, server.peer.package, variables)
    if server.is_converted:
        _convert(server, python, place, variables, timeout)
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            [str(python), *server.arguments(place)], env=variables, stdin=subprocess.DEVNULL, stdout=log,
            stderr=log, start_new_session=True,
        )  # fmt: skip
        try:
            _wait(process, place.port, log, timeout)
            yield OwnServer(f"http://127.0.0.1:{place.port}", process.pid), version
        finally:
            end_in_order(process)
            end_group(process.pid)


def free_port() -> int:
    """One that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _version(python: Path, package: str, variables: dict[str, str]) -> str:
    program = f"import {package} as package; print(package.__version__)"
    done = subprocess.run([str(python), "-c", program], env=variables, capture_output=True, text=True)
    if done.returncode:
        raise PeerServerError(_last_line(done.stderr) or f"{package} cannot be imported")
    return done.stdout.strip().splitlines()[-1]


def _convert(
    server: PeerServer, python: Path, place: Place, variables: dict[str, str], timeout: float
) -> None:
    """By the script of `bench field`, in the server's own environment."""
    place.converted.mkdir(parents=True, exist_ok=True)
    job = place.converted / "job.json"
    contents = {"model": str(place.model), "weights": None, "characters": FIRST_CHARACTERS}
    job.write_text(json.dumps(contents), encoding="utf-8")
    command = [python, HERE / "serve.py", server.peer.script, job, place.converted]
    try:
        done = subprocess.run(
            [str(part) for part in command], env=variables, capture_output=True, text=True, timeout=timeout
        )
    except subprocess.TimeoutExpired:
        raise PeerServerError(f"the model was not converted within {timeout:g} seconds") from None
    if done.returncode:
        raise PeerServerError(f"the model could not be converted: {_last_line(done.stdout + done.stderr)}")


def _wait(process: subprocess.Popen[bytes], port: int, log: Any, timeout: float) -> None:
    deadline = time.monotonic() + timeout
    opener = build_opener(ProxyHandler({}))
    while time.monotonic() < deadline:
        if process.poll() is not None:
            log.seek(0)
            raise PeerServerError(f"it ended: {_last_line(log.read().decode(errors='replace'))}")
        try:
            with opener.open(f"http://127.0.0.1:{port}/v1/models", timeout=5) as answer:
                if answer.status == 200:
                    return
        except (URLError, OSError):
            time.sleep(LOOK_SECONDS)
    raise PeerServerError(f"it did not answer within {timeout:g} seconds")


def _last_line(said: str) -> str:
    lines = [line for line in said.splitlines() if line.strip()]
    return printable(lines[-1].strip())[:200] if lines else "it said nothing"
