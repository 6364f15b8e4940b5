"""The events of a comparison of precisions: a fourth kind of trace, in the same kind of file.

    PrecisionHeader
        VariantMeasured  …      a precision: what it takes, how fast it is, what it loses
        MatrixSampled           a matrix: a corner of its weights, and what its inputs are like
            GridTried  …        the same corner on one grid: bits × group size
    PrecisionEnded

Codes are kept, not what they stand for: (code − zero) · scale.

Read next: `minivllm/lab/compare/precision_trace.py`, which records it; `viz/figures/precision.py`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import msgspec

from minivllm.files import write_file
from minivllm.trace.events import Count, Event, Positive, Score
from minivllm.trace.lines import TraceError, begins_as, open_trace, read_events, read_header, words

PRECISION_VERSION = 1
MOST_INPUTS = 2**16
MOST_SHOWN = 256
"""Rows and columns of the corner."""

Code = Annotated[int, msgspec.Meta(ge=0, le=255)]
Zero = Annotated[int, msgspec.Meta(ge=-(2**15), le=2**15)]
Number = Score
Size = Annotated[float, msgspec.Meta(ge=0, le=1e30)]
Bits = Annotated[int, msgspec.Meta(ge=1, le=8)]
Numbers = Annotated[tuple[Number, ...], msgspec.Meta(min_length=1, max_length=MOST_INPUTS)]
Sizes = Annotated[tuple[Size, ...], msgspec.Meta(min_length=1, max_length=MOST_INPUTS)]
Corner = Annotated[tuple[Numbers, ...], msgspec.Meta(min_length=1, max_length=MOST_SHOWN)]
Codes = Annotated[tuple[Code, ...], msgspec.Meta(min_length=1, max_length=MOST_INPUTS)]


class PrecisionHeader(Event, frozen=True):
    """The first line: which model, on which text."""

    version: Count
    created: str
    """ISO 8601, in UTC."""
    model: str
    text: str
    """What quality was judged on, in words."""
    speed_model: str = ""
    """What speed was measured on; "" if it was not."""


class VariantMeasured(Event, frozen=True):
    """One precision; None is what was not measured."""

    name: str
    skipped: str = ""
    """Why it was left out."""
    weight_bytes: Count | None = None
    cache_bytes_per_token: Count | None = None
    perplexity: Size | None = None
    kl_prompts: Number | None = None
    """To float32, nats a token; rounding can make a zero a little less."""
    kl_decoding: Number | None = None
    kept: Annotated[float, msgspec.Meta(ge=0, le=1)] | None = None
    """Share of tokens that greedy decoding chooses as float32 does."""
    prompt_tokens_per_second: Size | None = None
    one_stream_tokens_per_second: Size | None = None
    batch_tokens_per_second: Size | None = None


class MatrixSampled(Event, frozen=True):
    """A matrix [num_outputs, num_inputs]; of its weights a corner, and one row whole."""

    name: str
    num_outputs: Positive
    num_inputs: Annotated[int, msgspec.Meta(ge=1, le=MOST_INPUTS)]
    first_output: Count
    first_input: Count
    weights: Corner
    """Rows of the corner."""
    row: Count
    """The row of the corner that is there whole."""
    row_weights: Numbers
    """[num_inputs]"""
    mean_inputs: Sizes
    """mean|x| of each input channel [num_inputs], over the tokens of the text."""


class GridTried(Event, frozen=True):
    """The latest matrix, rounded to the nearest on one grid."""

    bits: Bits
    group_size: Count
    """Inputs that share a scale; 0: all of a row."""
    codes: Annotated[tuple[Codes, ...], msgspec.Meta(min_length=1, max_length=MOST_SHOWN)]
    """Of the corner."""
    scales: Corner
    """Of the groups that the corner's rows have there, row by row."""
    zeros: Annotated[tuple[tuple[Zero, ...], ...], msgspec.Meta(min_length=1, max_length=MOST_SHOWN)]
    row_codes: Codes
    row_scales: Numbers
    row_zeros: Annotated[tuple[Zero, ...], msgspec.Meta(min_length=1, max_length=MOST_INPUTS)]
    channel_errors: Sizes
    """Root of the mean squared error of each input channel's weights [num_inputs]."""
    weight_error: Size
    """Of the whole matrix, relative to its weights."""
    output_error: Size
    """Of its products with the text's inputs, relative to them."""


class PrecisionEnded(Event, frozen=True):
    """The file was written to its end."""


PrecisionEvent = VariantMeasured | MatrixSampled | GridTried | PrecisionEnded


@dataclass(frozen=True)
class MatrixOnGrids:
    """A matrix, and all grids that were tried on it."""

    matrix: MatrixSampled
    grids: list[GridTried] = field(default_factory=list)


@dataclass(frozen=True)
class PrecisionTrace:
    """A comparison of precisions."""

    header: PrecisionHeader
    variants: list[VariantMeasured] = field(default_factory=list)
    matrices: list[MatrixOnGrids] = field(default_factory=list)
    is_whole: bool = True
    """Was it written to its end?"""


def write_precision(path: Path, trace: PrecisionTrace) -> None:
    """Write a comparison to a file.

    Raises:
        CannotWrite: and a file that was there before is still there.
    """
    events: list[Event] = [trace.header, *trace.variants]
    for found in trace.matrices:
        events += [found.matrix, *found.grids]
    encode = msgspec.json.Encoder().encode
    write_file(path, b"".join(encode(event) + b"\n" for event in (*events, PrecisionEnded())), "trace")


def is_precision(path: str | Path) -> bool:
    """Does the file begin like one?"""
    return begins_as(path, "PrecisionHeader")


def read_precision(path: str | Path) -> PrecisionTrace:
    """Open a file that `write_precision` wrote; one that was cut off is read as far as it goes.

    Raises:
        TraceError: it cannot be read, is not such a file, is of an unknown version, or is damaged or absurd.
    """
    path = Path(path)
    with open_trace(path) as file:
        header = read_header(
            path,
            file,
            "PrecisionHeader",
            PRECISION_VERSION,
            msgspec.json.Decoder(PrecisionHeader).decode,
        )
        decode = msgspec.json.Decoder(PrecisionEvent).decode
        events, _ = read_events(path, file, decode, "an event of a comparison of precisions")
    trace = PrecisionTrace(header, is_whole=any(isinstance(event, PrecisionEnded) for event in events))
    _sort_in(path, trace, events)
    return trace


def _sort_in(path: Path, trace: PrecisionTrace, events: Iterable[PrecisionEvent]) -> None:
    for event in events:
        if isinstance(event, VariantMeasured):
            trace.variants.append(event)
        elif isinstance(event, MatrixSampled):
            _check(path, _fits(event), event.name)
            trace.matrices.append(MatrixOnGrids(event))
        elif isinstance(event, GridTried):
            _check(path, bool(trace.matrices) and _grid_fits(event, trace.matrices[-1].matrix), "a grid")
            trace.matrices[-1].grids.append(event)


def _check(path: Path, is_right: bool, what: str) -> None:
    if not is_right:
        raise TraceError(f"{words(path)} is damaged: the parts of {words(what)} do not fit together")


def _fits(matrix: MatrixSampled) -> bool:
    """Do its parts have the sizes that they should?"""
    width = len(matrix.weights[0])
    return (
        all(len(row) == width for row in matrix.weights)
        and matrix.first_output + len(matrix.weights) <= matrix.num_outputs
        and matrix.first_input + width <= matrix.num_inputs
        and matrix.row < len(matrix.weights)
        and len(matrix.row_weights) == len(matrix.mean_inputs) == matrix.num_inputs
    )


def _grid_fits(grid: GridTried, matrix: MatrixSampled) -> bool:
    size = grid.group_size or matrix.num_inputs
    width, last = len(matrix.weights[0]), matrix.first_input + len(matrix.weights[0]) - 1
    groups = last // size - matrix.first_input // size + 1
    in_row = -(-matrix.num_inputs // size)
    return (
        len(grid.codes) == len(grid.scales) == len(grid.zeros) == len(matrix.weights)
        and all(len(row) == width for row in grid.codes)
        and all(len(row) == groups for row in (*grid.scales, *grid.zeros))
        and len(grid.row_codes) == len(grid.channel_errors) == matrix.num_inputs
        and len(grid.row_scales) == len(grid.row_zeros) == in_row
    )
