"""The event vocabulary: everything a reader may learn about a run, version 6.

A trace file is JSON Lines. The first line is a `TraceHeader`, every other line one event; the field
`event` names the type, the other fields are below. Replaying the events in order rebuilds block pools,
block tables, prefix cache, beams, queues and token lists exactly as the engine had them after each step
(`minivllm/trace/replay.py`; it is a property, tested over random workloads).

How a run reads, step by step. Indented lines may come any number of times, in any order:

    TraceHeader
    SnapshotTaken                               only where the trace begins in the middle of a run
        RequestQueued  RequestRefused  SequenceFinished("abort")  BlocksFreed      between steps
    StepStarted
        BlocksFreed | BlocksSwappedOut, then RequestPreempted      a request leaves the batch and waits
        BlocksSwappedIn  RequestScheduled   a request is admitted: from the waiting queue into the batch
        BlocksShared                        a block table continues in blocks that are filled already
        BlocksEvicted                       the prefix cache forgets blocks, because others are needed
        BlocksAllocated                     a block table grows
        BlockCopied                         copy-on-write: the writer of a shared block gets its own
        BlocksCached                        full blocks can be found by requests with the same prefix
    BatchPlanned                            what the step computes
        BlockMerged                         two full blocks turned out the same: one is enough
        SequenceForked                      one sequence becomes two that share every block
        SequenceFinished("pruned")          a beam without a descendant
    BlocksTruncated  DraftsVerified         what became of drafts, and of blocks that only they needed
    TokensAllowed                           what structured output left to choose from
    TokensSampled  BeamsAdvanced            what came out
        SequenceFinished + BlocksFreed
    StepFinished
        RanksTimed                          of a step before: what each rank did when, once all have told
    TraceEnded                              absent if the run was cut off

A step that failed ends with `StepAbandoned` in place of `BatchPlanned` and all that follows it. After an
interrupt (Ctrl-C), `StateRebuilt` may come anywhere: all that was open is void, and the step begins again.

Conventions: `request` is the caller's request id, `seq` the engine's own integer id of one sequence of
tokens (a request owns one or more), `block` a physical block number, `host_block` one of the swap space.
`time` is in seconds since the header, on the clock that the header names. A new name or a changed *meaning*
raises `VERSION`; `upgrade.py` turns events of older versions into these, and a reader refuses a version that
it does not know.

What a physical block is, at any moment: *free* (on the free list), *in use* (mapped by one table or
more: its reference count), or *evictable* (mapped by none, but the prefix cache remembers what is in it).

Read next: `recorder.py`, which writes events to a file; `replay.py`, which applies them.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

VERSION = 6
"""2 added sharing: forks, copies, prefix caches, swapping, beams. Version 1 is a subset of it.
3 added `StateRebuilt` and renamed what `upgrade.py` lists.
4 added `SnapshotTaken` and `TokensAllowed`. Version 3 is a subset of it.
5 added `DraftsVerified`, `BlocksTruncated` and `BatchPlanned.is_ahead`. Version 4 is a subset of it.
6 added `TraceHeader.ranks` and `RanksTimed`. Version 5 is a subset of it."""

# What a field may be. A reader holds every line to these, so that no value of a trace is absurd.
MOST = 10**15
"""Of anything that is counted: products of such numbers still fit a float."""
MOST_BLOCKS = 2**22
"""Of a pool: a replay keeps a hundred bytes for each."""
MOST_RANKS = 1024
MOST_TALKS = 1024
"""Of a rank in a step: a model of 128 layers takes a quarter."""
Count = Annotated[int, msgspec.Meta(ge=0, le=MOST)]
Positive = Annotated[int, msgspec.Meta(ge=1, le=MOST)]
Integer = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]
Seconds = Annotated[float, msgspec.Meta(ge=0, le=MOST)]
Rate = Annotated[float, msgspec.Meta(gt=0, le=1e30)]
Score = Annotated[float, msgspec.Meta(ge=-1e39, le=1e39)]
"""A logarithm of a probability, or some of them; a logit that was masked may be the lowest float32."""
Probability = Annotated[float, msgspec.Meta(ge=0, le=1)]


class Event(msgspec.Struct, frozen=True, tag_field="event", tag=True, gc=False):
    """Base of all events: an immutable record whose JSON carries its own type name."""


class ModelShape(msgspec.Struct, frozen=True):
    """The few numbers of a model that explain its KV cache."""

    name: str
    num_layers: Count
    num_heads: Count
    num_kv_heads: Count
    head_dim: Count
    vocab_size: Count
    num_parameters: Count
    dtype: str
    kv_bytes_per_token: Count
    """2 (keys and values) · layers · KV heads · head_dim · bytes per element; in 8 bits, with scales."""
    hidden_size: Count = 0
    """Width of the stream between layers; 0 in a trace that does not say."""
    is_tied: bool = False
    """Is the embedding the output matrix, too?"""
    layer_bytes: Count = 0
    """What a step reads of the layers' weights, as they are stored; 0: their numbers are of `dtype`."""
    output_bytes: Count = 0
    """The same of the output matrix."""
    decode_layer_bytes: Count = 0
    """What generated tokens read instead: a copy in fewer bits; 0: there is none."""
    decode_output_bytes: Count = 0


class HardwareShape(msgspec.Struct, frozen=True):
    """The few numbers of a device that make its roofline: what it can do in a second at most."""

    name: str
    peak_flops: Rate
    """FLOP/s of matrix products in the model's dtype."""
    memory_bandwidth: Rate
    """Bytes/s between the memory that holds weights and cache, and the processor."""
    num_devices: Positive = 1
    """Devices that work on one model; the numbers above are for one."""


MOST_ROWS = 2**31
Row = Annotated[int, msgspec.Meta(ge=0, le=MOST_ROWS)]
Range = tuple[Row, Row]
"""`(first, end)`: the end is not in it."""


class PartShape(msgspec.Struct, frozen=True):
    """One part of a model that ranks share, a thin model of its own; ranges of the whole model's indices."""

    number: Count
    heads: Range
    kv_heads: Range
    """What its heads look at: where there are fewer KV heads than parts, several parts have the same."""
    intermediate: Range
    """Rows of the MLP."""
    vocabulary: Range
    """Token ids."""


class RankShape(msgspec.Struct, frozen=True):
    """What one rank of several owns (`minivllm/model/parallel/layout.py`)."""

    rank: Count
    stage: Count
    """Its place in the pipeline."""
    tensor: Count
    """Its place among the ranks that share the layers of its stage."""
    layers: Range
    parts: Annotated[tuple[PartShape, ...], msgspec.Meta(max_length=MOST_RANKS)]
    """Its own, of each of these layers."""
    padded_vocabulary: Row
    """Rows that each part has for its share of the vocabulary, padding included."""
    has_embedding: bool
    has_head: bool
    """Does it make logits?"""
    weight_bytes: Count
    cache_bytes: Count
    """Of its KV cache: its layers and heads of every block."""


class TraceHeader(Event, frozen=True):
    """The first line: when this was written, with which limits, about which model."""

    version: Count
    created: str
    """Wall-clock time of the start, ISO 8601 in UTC."""
    clock: str
    """"wall" (seconds as they passed) or "virtual" (a simulator's)."""
    num_blocks: Annotated[int, msgspec.Meta(ge=1, le=MOST_BLOCKS)]
    block_size: Positive
    """Tokens per block."""
    max_num_seqs: Positive
    max_num_batched_tokens: Positive
    max_model_len: Positive
    model: ModelShape | None = None
    hardware: HardwareShape | None = None
    """Where it ran, or was simulated to run, if that was measured or is known."""
    num_host_blocks: Annotated[int, msgspec.Meta(ge=0, le=MOST_BLOCKS)] = 0
    """Blocks of the swap space."""
    prefix_cache: str | None = None
    """"hash", "radix", or None if nothing is cached across requests."""
    config: dict[str, Any] = {}
    """Every other setting of the run, for display."""
    workload: str = ""
    ranks: Annotated[tuple[RankShape, ...], msgspec.Meta(max_length=MOST_RANKS)] = ()
    """Who owns what, in order, where several ranks compute the model."""


class RequestQueued(Event, frozen=True):
    """A request was accepted and added to the waiting queue."""

    request: str
    seq: Count
    time: Seconds
    """When it arrived: perhaps during a step, although the engine queued it only after that step."""
    prompt_token_ids: tuple[Count, ...]
    max_tokens: Count
    """Most output tokens it may still produce, after capping to the model's length."""
    prompt: str | None = None
    prompt_pieces: tuple[str, ...] = ()
    """The text of each prompt token, special tokens by name; empty if there is no tokenizer."""
    priority: Integer = 0
    num_outputs: Count = 1
    """Outputs that were asked for (`n`, or the beam width)."""
    is_beam_search: bool = False
    salt: str | None = None
    structure: str = ""
    """What its outputs must be, as it was asked for ("regex [0-9]+"), cut if it is long; or empty."""


class RequestRefused(Event, frozen=True):
    """A request that could never be served, with the reason in words for its sender."""

    request: str
    time: Seconds
    reason: str


class StepStarted(Event, frozen=True):
    """The scheduler begins to plan step `step` (counted from 0)."""

    step: Count
    time: Seconds


class RequestScheduled(Event, frozen=True):
    """The scheduler admitted a request: it left the waiting queue for the running batch."""

    request: str


class RequestPreempted(Event, frozen=True):
    """The scheduler preempted a running request, which waits again at its place in the order of arrival."""

    request: str
    mode: str
    """"recompute": its blocks are gone, its tokens will be computed anew. "swap": its blocks are in the
    swap space, and nothing needs to be computed again."""
    num_computed_tokens: Count
    """Tokens whose keys and values were given up; 0 if they were swapped out."""
    reason: str = ""
    """Why it was not the mode that was asked for, in words; or empty."""
    preempted_for: str = ""
    """The request that needed what this one had; empty in traces that do not say, and after a failed step."""
    shortage: str = "blocks"
    """What was short: "blocks", or "batch_slots" (of which there are `max_num_seqs`)."""


class BlocksAllocated(Event, frozen=True):
    """Physical blocks were taken from the head of the free list and appended to a block table."""

    seq: Count
    blocks: tuple[Count, ...]


class BlocksShared(Event, frozen=True):
    """Blocks that already hold a sequence's next tokens were appended to its table: nothing to compute.

    Each has one more reference now; one that was evictable is in use again.
    """

    seq: Count
    blocks: tuple[Count, ...]
    source: str
    """"cache": the prefix cache had them. "sibling": another sequence of the same request has them."""


class BlockCopied(Event, frozen=True):
    """Copy-on-write: `seq` is about to write to a shared block, so it gets a copy of its own.

    `target` came from the head of the free list and takes the place `index` of the block table; `source`
    has one reference less. The data is copied before anything of this step is written.
    """

    seq: Count
    index: Count
    source: Count
    target: Count


class BlocksCached(Event, frozen=True):
    """The prefix cache remembers full blocks: those from `first` on in the table of `seq`.

    They follow, in the cache, the block before them in that table (or the root, if `first` is 0).
    """

    seq: Count
    first: Count
    blocks: tuple[Count, ...]
    salt: str | None = None
    """Only requests with the same salt can find them."""


class BlockMerged(Event, frozen=True):
    """Two sequences filled the same block at the same time: `seq` maps `twin` now, and `block` no more."""

    seq: Count
    index: Count
    block: Count
    twin: Count


class BlocksEvicted(Event, frozen=True):
    """The prefix cache forgot evictable blocks, which went to the tail of the free list in this order."""

    blocks: tuple[Count, ...]
    reason: str = "capacity"
    """"capacity": a table needs free blocks. "abandoned": the step that was to fill them failed.
    "reset": the caller emptied the cache."""


class BlocksFreed(Event, frozen=True):
    """A sequence's whole block table was dropped, in this order, one reference to each block.

    A block that loses its last reference goes to the tail of the free list, unless the prefix cache
    remembers it: then it is evictable.
    """

    seq: Count
    blocks: tuple[Count, ...]


class BlocksTruncated(Event, frozen=True):
    """A sequence's table was cut: these, its last blocks, were dropped, the last one first.

    Only drafts needed them, and were rejected. Else as in `BlocksFreed`.
    """

    seq: Count
    blocks: tuple[Count, ...]


class BlocksSwappedOut(Event, frozen=True):
    """A sequence's table moved to the swap space: the data of `blocks[i]` is in `host_blocks[i]` from now on.

    Each block loses a reference, as in `BlocksFreed` and in the order of `blocks`. A block that several
    sequences share has one host block, with as many references.
    """

    seq: Count
    blocks: tuple[Count, ...]
    host_blocks: tuple[Count, ...]


class BlocksSwappedIn(Event, frozen=True):
    """A sequence's table came back: the data of `host_blocks[i]` is in `blocks[i]` from now on.

    Blocks were taken from the head of the free list, except those that a sibling's swap-in had taken.
    """

    seq: Count
    host_blocks: tuple[Count, ...]
    blocks: tuple[Count, ...]


class HostBlocksFreed(Event, frozen=True):
    """A swapped-out sequence's table was dropped, one reference to each host block."""

    seq: Count
    host_blocks: tuple[Count, ...]


class SequenceForked(Event, frozen=True):
    """A sequence became two: `child` has the tokens of `parent` and shares every block of its table."""

    request: str
    parent: Count
    child: Count


class BatchPlanned(Event, frozen=True):
    """What this step computes: one `(seq, start, num_tokens)` for each scheduled sequence.

    `start` tokens were computed before; after `StepFinished`, `start + num_tokens` are, less the drafts that
    `DraftsVerified` rejects.
    """

    items: tuple[tuple[Count, Count, Count], ...]
    num_padding_tokens: Count = 0
    """Tokens that are computed only to make a static batch rectangular, and thrown away."""
    drafts: tuple[tuple[Count, Positive], ...] = ()
    """`(seq, num_drafts)`: so many of its tokens, the last ones, are drafts."""
    is_ahead: bool = False
    """It was planned while an earlier step was computed, and before it was known what that one sampled. So a
    sequence may be in it that ended with that step: then its token is computed, and thrown away."""


class VerifiedDrafts(msgspec.Struct, frozen=True):
    """The drafts of one sequence, and how many of them were right."""

    seq: Count
    token_ids: tuple[Count, ...]
    num_accepted: Count
    """So many, from the first one on, are tokens of the sequence now. The others are struck out."""
    texts: tuple[str, ...] = ()
    """What each draft says; empty where the trace tells no texts."""


class DraftsVerified(Event, frozen=True):
    """What became of the drafts of this step; `TokensSampled` follows, with those that were accepted."""

    items: tuple[VerifiedDrafts, ...]


class TokensSampled(Event, frozen=True):
    """One `(seq, token_id, text)` for each sequence that got a new token.

    `text` is what the token added to the output: empty while a multi-byte character is incomplete.
    """

    items: tuple[tuple[Count, Count, str], ...]


class AllowedTokens(msgspec.Struct, frozen=True):
    """What one sequence could choose its next token from, because its output must have a structure."""

    seq: Count
    num_allowed: Count
    """Tokens with which the output could still get its structure; all others were struck out."""
    candidates: tuple[tuple[Count, str, Probability, bool], ...]
    """`(token_id, text, probability, is it allowed)` of the likeliest, by the model's own probabilities
    before anything was struck out, the likeliest first; then of the chosen token, if it is none of these."""


class TokensAllowed(Event, frozen=True):
    """What structured output left to choose from, of each sequence that has one; `TokensSampled` follows."""

    items: tuple[AllowedTokens, ...]


class BeamsAdvanced(Event, frozen=True):
    """One step of a beam search. Scores are sums of log-probabilities, except those of `finished`."""

    request: str
    kept: tuple[tuple[Count, Count, Count, Score, str], ...]
    """`(parent seq, seq, token_id, score, text)` of each beam that continues, best first."""
    finished: tuple[tuple[Count, Count, Score, str], ...] = ()
    """`(parent seq, token_id, score, text)` of each hypothesis that ended here and is among the best so
    far; this score is divided by length ** length_penalty."""
    rejected: tuple[tuple[Count, Count, Score, str], ...] = ()
    """`(parent seq, token_id, score, text)` of the best candidates that were not kept."""


class SequenceFinished(Event, frozen=True):
    """A sequence is done; its request leaves its queue with its last sequence."""

    seq: Count
    reason: str
    """"stop", "length" or "abort"; "error" if its logits were no numbers; "pruned" for a beam whose
    candidates were all worse than others."""
    time: Seconds
    stop: Count | str | None = None
    """The stop token id or stop string that ended it, if one did; of an error, what went wrong."""


class StepFinished(Event, frozen=True):
    """The step is over. `seconds` splits its duration: schedule, model, attention, sample, update.

    `attention` is the part of `model` spent in the attention backend. Where steps are in flight while others
    are planned, `schedule` may lie before the step began, and `update` behind its end.
    """

    step: Count
    time: Seconds
    seconds: dict[str, Seconds] = {}


class RankTime(msgspec.Struct, frozen=True):
    """When one rank carried out a step; while it was in no talk, it computed."""

    rank: Count
    start: Seconds
    end: Seconds
    talks: Annotated[tuple[tuple[str, Seconds, Seconds], ...], msgspec.Meta(max_length=MOST_TALKS)] = ()
    """`(what, start, end)` of all that it sent to others and waited for, in order: "all-gather" (parts of a
    sum or of a lookup, from each to each), "send" and "receive" (hidden states, down the stages), "send
    logits" and "receive logits" (to rank 0)."""
    num_left_out: Count = 0
    """Talks after these, in a step that has more than `MOST_TALKS`."""


class RanksTimed(Event, frozen=True):
    """When each rank carried out step `step`, which is over.

    It comes between two later steps, or after the last one: once all ranks have told, which they do several
    times a second. A step that failed or was interrupted may be among them, beside the one that replaced it.
    """

    step: Count
    ranks: Annotated[tuple[RankTime, ...], msgspec.Meta(min_length=1, max_length=MOST_RANKS)]


class StepAbandoned(Event, frozen=True):
    """The executor failed. The requests of the step start again from zero (see the events before)."""

    step: Count
    time: Seconds
    error: str


class RebuiltSequence(msgspec.Struct, frozen=True):
    """One live sequence as the engine has it after an interrupt."""

    seq: Count
    token_ids: tuple[Count, ...]
    """Prompt and output so far. None of their keys and values are in the cache."""
    beam_score: Score | None = None
    """Sum of log-probabilities, if it is a beam with at least one output token."""


class RebuiltRequest(msgspec.Struct, frozen=True):
    """One unfinished request as the engine has it after an interrupt.

    It repeats what `RequestQueued` told, because that event may be among those that the interrupt lost.
    """

    request: str
    time: Seconds
    """When it arrived, as in `RequestQueued`."""
    first_seq: Count
    """The sequence that it began with, though that one may have finished: it is the order of arrival."""
    num_prompt_tokens: Count
    max_tokens: Count
    sequences: tuple[RebuiltSequence, ...]


class StateRebuilt(Event, frozen=True):
    """An interrupt came between two lines, so the engine rebuilt all its books from its requests.

    Every named sequence has nothing computed, and every named request waits. All blocks are free, in the
    order of their numbers; tables, prefix cache and swap space are empty. A sequence that is not named is
    gone. Events just before this one may be missing: what they would have told is in these fields.
    """

    time: Seconds
    num_steps: Count
    """Finished steps, which is the number of the step that comes next."""
    requests: tuple[RebuiltRequest, ...]
    """All unfinished requests, in order of arrival."""


class SnapshotSequence(msgspec.Struct, frozen=True, omit_defaults=True):
    """One sequence in a snapshot: what the events before would have told of it."""

    seq: Count
    request: str
    token_ids: tuple[Count, ...]
    """Prompt and output so far."""
    num_prompt_tokens: Count
    max_tokens: Count
    queued_time: Seconds
    prompt: str | None = None
    prompt_pieces: tuple[str, ...] = ()
    output_pieces: tuple[str, ...] = ()
    """What each output token added to the text."""
    num_computed_tokens: Count = 0
    num_preemptions: Count = 0
    num_cached_tokens: Count = 0
    """Tokens that it did not have to compute, because the prefix cache or a sibling had them."""
    first_token_time: Seconds | None = None
    parent: Count | None = None
    """The sequence that it was forked from."""
    beam_score: Score | None = None
    structure: str = ""
    """What its output must be, as in `RequestQueued`."""


class SnapshotTaken(Event, frozen=True):
    """The first event of a trace that begins in the middle of a run: all that is, between two steps.

    Events that follow go on from here, so that replay needs nothing of what came before. `snapshots.py` takes
    it from a replayed state, never from the engine.
    """

    time: Seconds
    num_steps: Count
    """Steps that were finished before, which is the number of the step that comes next."""
    waiting: tuple[str, ...]
    """In order of arrival."""
    running: tuple[str, ...]
    members: dict[str, tuple[Count, ...]]
    """Unfinished sequences of each unfinished request, in order."""
    first_sequences: dict[str, Count]
    """The sequence that each of them began with, though that one may have finished."""
    sequences: tuple[SnapshotSequence, ...]
    """All unfinished sequences."""
    former: tuple[SnapshotSequence, ...]
    """Finished ones whose tokens the prefix cache still holds."""
    free: tuple[tuple[Count, Positive], ...]
    """The free list, in order, as runs of rising numbers: `(first, length)`."""
    tables: dict[Count, tuple[Count, ...]]
    cached: tuple[tuple[Count, Count | None, Count, Count, str | None], ...]
    """`(block, the block before it, seq, index, salt)` of each block that the prefix cache remembers: it
    holds the tokens of `seq` from `index · block_size` on."""
    host_free: tuple[tuple[Count, Positive], ...] = ()
    """The same as `free`, of the swap space."""
    host_tables: dict[Count, tuple[Count, ...]] = {}


class TraceEnded(Event, frozen=True):
    """The recorder was closed properly; a trace without this line was cut off or is still being written."""

    time: Seconds


BlockEvent = (
    BlocksAllocated
    | BlocksShared
    | BlockCopied
    | BlocksCached
    | BlockMerged
    | BlocksEvicted
    | BlocksFreed
    | BlocksTruncated
    | BlocksSwappedOut
    | BlocksSwappedIn
    | HostBlocksFreed
    | SequenceForked
    | StateRebuilt
    | SnapshotTaken
)
"""The events that change what a block is or which table maps it: `blocks.py` applies each of them."""

AnyEvent = (
    BlockEvent
    | RequestQueued
    | RequestRefused
    | StepStarted
    | RequestScheduled
    | RequestPreempted
    | BatchPlanned
    | DraftsVerified
    | TokensAllowed
    | TokensSampled
    | BeamsAdvanced
    | SequenceFinished
    | StepFinished
    | RanksTimed
    | StepAbandoned
    | TraceEnded
)
"""Every event that may follow the header."""
