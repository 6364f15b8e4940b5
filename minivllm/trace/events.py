"""The event vocabulary: everything a reader may learn about a run, version 1.

A trace file is JSON Lines. The first line is a `TraceHeader`, every other line one event; the field
`event` names the type, the other fields are below. Replaying the events in order rebuilds block pool,
block tables, queues and token lists exactly as the engine had them after each step
(`minivllm/trace/replay.py`; it is a property, tested over random workloads).

How a run reads, step by step. Indented lines may come any number of times, in any order:

    TraceHeader
        RequestQueued  RequestRefused  SequenceFinished("abort")  BlocksFreed      between steps
    StepStarted
        BlocksFreed + RequestPreempted      the pool was full: the youngest request steps aside
        RequestScheduled                    a request leaves the waiting queue and joins the batch
        BlocksAllocated                     a block table grows
    BatchPlanned                            what the step computes
    TokensSampled                           what came out
        SequenceFinished + BlocksFreed
    StepFinished
    TraceEnded                              absent if the run was cut off

Conventions: `request` is the caller's request id, `seq` the engine's own integer id of one sequence of
tokens (a request owns one or more), `block` a physical block number. `time` is in seconds since the
header, on the clock that the header names. Fields are only ever added; a new or changed *meaning*
raises `VERSION`, and a reader refuses a version it does not know.
"""

from __future__ import annotations

from typing import Any

import msgspec

VERSION = 1


class Event(msgspec.Struct, frozen=True, tag_field="event", tag=True, gc=False):
    """Base of all events: an immutable record whose JSON carries its own type name."""


class ModelShape(msgspec.Struct, frozen=True):
    """The few numbers of a model that explain its KV cache."""

    name: str
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    num_parameters: int
    dtype: str
    kv_bytes_per_token: int
    """2 (keys and values) · layers · KV heads · head_dim · bytes per element."""


class TraceHeader(Event, frozen=True):
    """The first line: who wrote this, with which limits, about which model."""

    version: int
    created: str
    """Wall-clock time of the start, ISO 8601 in UTC."""
    clock: str
    """"wall" (seconds as they passed) or "virtual" (a simulator's)."""
    num_blocks: int
    block_size: int
    """Tokens per block."""
    max_num_seqs: int
    max_num_batched_tokens: int
    max_model_len: int
    model: ModelShape | None = None
    config: dict[str, Any] = {}
    """Every other setting of the run, for display."""
    workload: str = ""


class RequestQueued(Event, frozen=True):
    """A request was accepted and joined the end of the waiting queue."""

    request: str
    seq: int
    time: float
    prompt_token_ids: tuple[int, ...]
    max_tokens: int
    """Most output tokens it may still produce, after capping to the model's length."""
    prompt: str | None = None
    prompt_pieces: tuple[str, ...] = ()
    """The text of each prompt token, special tokens by name; empty if there is no tokenizer."""
    priority: int = 0


class RequestRefused(Event, frozen=True):
    """A request that could never be served, and why, in words for its sender."""

    request: str
    time: float
    reason: str


class StepStarted(Event, frozen=True):
    """The scheduler begins to plan step `step` (counted from 0)."""

    step: int
    time: float


class RequestScheduled(Event, frozen=True):
    """A request left the head of the waiting queue and joined the running batch."""

    request: str


class RequestPreempted(Event, frozen=True):
    """A running request stepped aside for lack of blocks and heads the waiting queue again."""

    request: str
    mode: str
    """"recompute": its blocks are gone, its tokens will be computed anew."""
    num_computed_tokens: int
    """Tokens whose keys and values were given up."""


class BlocksAllocated(Event, frozen=True):
    """Physical blocks were taken from the head of the free list and appended to a block table."""

    seq: int
    blocks: tuple[int, ...]


class BlocksFreed(Event, frozen=True):
    """A sequence's whole block table was dropped; blocks join the tail of the free list in this order."""

    seq: int
    blocks: tuple[int, ...]


class BatchPlanned(Event, frozen=True):
    """What this step computes: one `(seq, start, num_tokens)` for each scheduled sequence.

    `start` tokens were computed before; after `StepFinished`, `start + num_tokens` are.
    """

    items: tuple[tuple[int, int, int], ...]


class TokensSampled(Event, frozen=True):
    """One `(seq, token_id, text)` for each sequence that got a new token.

    `text` is what the token added to the output: empty while a multi-byte character is incomplete.
    """

    items: tuple[tuple[int, int, str], ...]


class SequenceFinished(Event, frozen=True):
    """A sequence is done; its request leaves its queue with its last sequence."""

    seq: int
    reason: str
    """"stop", "length" or "abort"."""
    time: float
    stop: int | str | None = None
    """The stop token id or stop string that ended it, if one did."""


class StepFinished(Event, frozen=True):
    """The step is over. `seconds` splits its duration: schedule, model, attention, sample, update.

    `attention` is the part of `model` spent in the attention backend.
    """

    step: int
    time: float
    seconds: dict[str, float] = {}


class TraceEnded(Event, frozen=True):
    """The recorder was closed properly; a trace without this line was cut off or is still being written."""

    time: float


AnyEvent = (
    RequestQueued
    | RequestRefused
    | StepStarted
    | RequestScheduled
    | RequestPreempted
    | BlocksAllocated
    | BlocksFreed
    | BatchPlanned
    | TokensSampled
    | SequenceFinished
    | StepFinished
    | TraceEnded
)
"""Every event that may follow the header."""
