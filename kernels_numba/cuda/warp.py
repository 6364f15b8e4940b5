"""What a warp does together: the largest value of its lanes, and their sum.

A butterfly: in five rounds every lane meets all others. In round d it exchanges with the lane whose number
differs in bit d, and keeps what the two make together; so at the end all lanes know the same.

    round 16    lanes 0↔16, 1↔17, …        round 8    0↔8, …        … 4, 2, 1
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
