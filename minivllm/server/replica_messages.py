"""What the server and a replica tell each other, over a socket between the two processes.

    server  ── Start ─► Add, Leave, Abort, Ask … ──────────────► replica
    server  ◄── Ready or Refused, then Outputs, Failed, Answer ── replica
    server  ◄── Beat, once a second, from the first moment on ─── replica

MessagePack, each message after its length. Outputs leave the prompt out: the server has it, and it would
cross again with every token. All outputs of a step are one message.

Read next: `replica.py`, which answers them.
"""

from __future__ import annotations

import json
import socket
import struct
from collections.abc import Callable
from dataclasses import fields
from typing import Any, TypeAlias

import msgspec

from minivllm.decoding.structured.expressions import StructureError
from minivllm.outputs import RequestOutput
from minivllm.sampling_params import BeamSearchParams, RequestOutputKind, SamplingParams
from minivllm.server.engine_report import EngineReport
from minivllm.structured_outputs import StructuredOutputsParams
from minivllm.validation import error_words

LENGTH = struct.Struct(">Q")


class Start(msgspec.Struct, frozen=True, tag=True):
    """Load a model: the settings of `EngineArgs`, as plain values."""

    settings: dict[str, Any]


class Add(msgspec.Struct, frozen=True, tag=True):
    """A request. `number` is its name on this socket, `params` what `encode_params` made."""

    number: int
    request_id: str
    prompt: str | None
    token_ids: list[Any]
    cache_salt: Any
    priority: Any
    params: dict[str, Any]


class Leave(msgspec.Struct, frozen=True, tag=True):
    """The caller of this request has left."""

    number: int


class Abort(msgspec.Struct, frozen=True, tag=True):
    """End this request now, and tell what there is."""

    number: int


class Ask(msgspec.Struct, frozen=True, tag=True):
    """Forget cached prefixes (`"reset"`), or tell the metrics (`"report"`)."""

    number: int
    what: str


ToReplica: TypeAlias = Start | Add | Leave | Abort | Ask


class Ready(msgspec.Struct, frozen=True, tag=True):
    """The engine serves."""

    max_model_len: int


class Refused(msgspec.Struct, frozen=True, tag=True):
    """The engine cannot be made, and why."""

    message: str


class Outputs(msgspec.Struct, frozen=True, tag=True):
    """What a step has given, and how many requests the engine has in its batch now."""

    items: list[tuple[int, RequestOutput]]
    num_running: int


class Failed(msgspec.Struct, frozen=True, tag=True):
    """This request was refused, or has failed."""

    number: int
    kind: str
    message: str
    problem: str = ""


class Answer(msgspec.Struct, frozen=True, tag=True):
    """To an `Ask`."""

    number: int
    is_done: bool = True
    report: EngineReport | None = None


class Beat(msgspec.Struct, frozen=True, tag=True):
    """It lives. How many steps its engine has done, and whether any request is in its batch."""

    num_steps: int = 0
    is_busy: bool = False


FromReplica: TypeAlias = Ready | Refused | Outputs | Failed | Answer | Beat

decode_to_replica: Callable[[bytes], ToReplica] = msgspec.msgpack.Decoder(ToReplica).decode
decode_from_replica: Callable[[bytes], FromReplica] = msgspec.msgpack.Decoder(FromReplica).decode


def frame(message: ToReplica | FromReplica) -> bytes:
    """A message with its length before it.

    Raises:
        ValueError: it has something in it that no other process can be told.
    """
    try:
        body = _encoder.encode(message)
    except (OverflowError, TypeError) as error:  # an integer of more than 64 bits, say
        raise ValueError(f"this cannot be told to an engine in another process: {error}") from None
    return LENGTH.pack(len(body)) + body


def receive(connection: socket.socket) -> bytes | None:
    """The next message's bytes; None at the end of the connection.

    Raises:
        TimeoutError: the connection has a timeout, and nothing came for so long.
    """
    head = _receive_exactly(connection, LENGTH.size)
    return None if head is None else _receive_exactly(connection, LENGTH.unpack(head)[0])


def _receive_exactly(connection: socket.socket, size: int) -> bytes | None:
    found = bytearray()
    while len(found) < size:
        try:
            piece = connection.recv(min(size - len(found), 1 << 20))
        except TimeoutError:
            raise
        except OSError:  # the other side was killed
            return None
        if not piece:
            return None
        found += piece
    return bytes(found)


def encode_params(params: SamplingParams | BeamSearchParams) -> dict[str, Any]:
    """The fields of the params as plain values."""
    values = {field.name: getattr(params, field.name) for field in fields(params)}
    if isinstance(params, SamplingParams):
        values["output_kind"] = params.output_kind.value
        if (asked := params.structured_outputs) is not None:
            inner = {field.name: getattr(asked, field.name) for field in fields(asked)}
            if inner["json"] is not None:  # a schema may have integers of any size
                inner["json"] = json.dumps(inner["json"])
            values["structured_outputs"] = inner
    return values


def decode_params(values: dict[str, Any]) -> SamplingParams | BeamSearchParams:
    """The inverse. Raises `ValueError` for what the constructors refuse."""
    if "beam_width" in values:
        return BeamSearchParams(**values)
    values = values | {"output_kind": RequestOutputKind(values["output_kind"])}
    if (inner := values["structured_outputs"]) is not None:
        values["structured_outputs"] = StructuredOutputsParams(**inner)
    return SamplingParams(**values)


def failure_of(number: int, error: Exception) -> Failed:
    """An error, told in words."""
    kind = "structure" if isinstance(error, StructureError) else "value"
    if not isinstance(error, ValueError):
        return Failed(number, "other", error_words(error))
    return Failed(number, kind, str(error), getattr(error, "problem", ""))


def error_of(failed: Failed) -> Exception:
    """The error again, so that clients are answered as by an engine in this process."""
    if failed.kind == "structure":
        return StructureError(failed.message, failed.problem)
    return ValueError(failed.message) if failed.kind == "value" else ReplicaError(failed.message)


class ReplicaError(RuntimeError):
    """What went wrong in the step that a request was in."""


_encoder = msgspec.msgpack.Encoder(enc_hook=list)  # sequences of token ids that are no lists
