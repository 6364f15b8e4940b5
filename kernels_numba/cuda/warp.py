"""What a warp does together: the largest value of its lanes, and their sum.

A butterfly of five rounds. In round d a lane exchanges values with the lane whose number differs in d, and
combines the two; after the last round all 32 lanes have the same result.

    round 16    lanes 0↔16, 1↔17, …        round 8    0↔8, …        … 4, 2, 1

Read next: `tiles.py`.
"""

from __future__ import annotations

from typing import Any

from numba import cuda

ALL_LANES = 0xFFFFFFFF


@cuda.jit(device=True)  # type: ignore[untyped-decorator]
def warp_max(value: Any) -> Any:
    """The largest of 32 lanes, known to all of them."""
    for distance in (16, 8, 4, 2, 1):
        value = max(value, cuda.shfl_xor_sync(ALL_LANES, value, distance))
    return value


@cuda.jit(device=True)  # type: ignore[untyped-decorator]
def warp_sum(value: Any) -> Any:
    """The sum over 32 lanes, known to all of them."""
    for distance in (16, 8, 4, 2, 1):
        value += cuda.shfl_xor_sync(ALL_LANES, value, distance)
    return value
