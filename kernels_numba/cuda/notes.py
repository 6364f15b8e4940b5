"""What kernels say about themselves. On a GPU these functions do nothing, and the compiler removes them.

Under the microscope each call is written down, so a picture can show the tiles and the running softmax of the
very run whose accesses it shows.

Read next: `minivllm/lab/microscope/record.py`, which turns notes into events.
"""

from __future__ import annotations

from typing import Any

from numba import cuda

from kernels_numba.meanings import means


@cuda.jit(device=True)  # type: ignore[untyped-decorator]
def note_tile(head: Any, first_query: Any, end_query: Any, first_key: Any, end_key: Any) -> None:
    """A block begins to work on these queries and these keys."""


@cuda.jit(device=True)  # type: ignore[untyped-decorator]
def note_softmax(head: Any, query: Any, maximum: Any, total: Any, rescale: Any) -> None:
    """The running softmax of one query after a tile: its maximum, its sum, and by what the old was scaled."""


@cuda.jit(device=True)  # type: ignore[untyped-decorator]
def note_score(head: Any, query: Any, key: Any, score: Any) -> None:
    """A score that the softmax is about to take in; every lane notes its own."""


@means(note_tile)
def _(lane: Any, *values: Any) -> None:
    lane.note("tile", tuple(int(value) for value in values))


@means(note_score)
def _(lane: Any, head: Any, query: Any, key: Any, score: Any) -> None:
    lane.note("score", (int(head), int(query), int(key), float(score)))


@means(note_softmax)
def _(lane: Any, head: Any, query: Any, *values: Any) -> None:
    lane.note("softmax", (int(head), int(query), *(float(value) for value in values)))
