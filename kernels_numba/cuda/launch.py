"""A kernel with everything that it needs to run: on a GPU, or under the microscope.

Arrays are those of the side that runs them: numpy's under the microscope, torch's on a GPU. Their
shapes, types and order in memory are checked before anything is launched.

Read next: `warp.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from kernels_numba.microscope.observation import Observation, observe


class Launch(NamedTuple):
    """One kernel, its grid and its arguments."""

    kernel: Callable[..., Any]
    grid: tuple[int, ...]
    block: tuple[int, ...]
    arguments: tuple[Any, ...]

    def run(self, stream: Any = 0) -> None:
        """On the current GPU, in the order of the stream; returns at once."""
        self.kernel[self.grid, self.block, stream](*self.arguments)  # type: ignore[index]

    def observe(self, poison: Mapping[str, Any] | None = None, **options: Any) -> Observation:
        """Thread by thread, on any machine: see `microscope.observe`."""
        return observe(self.kernel, self.grid, self.block, *self.arguments, poison=poison, **options)


def check_array(name: str, array: Any, dimensions: str, dtypes: Sequence[str] = ("float32",)) -> None:
    """Refuse an array that a kernel could not read.

    Args:
        dimensions: their names, such as "tokens, heads, head_dim".

    Raises:
        ValueError: wrong number of dimensions, wrong type, or not contiguous.
    """
    expected = [part.strip() for part in dimensions.split(",")]
    shape = tuple(array.shape)
    if len(shape) != len(expected):
        raise ValueError(f"{name} must be [{dimensions}], got the shape {shape}")
    dtype = str(array.dtype).removeprefix("torch.")
    if dtype not in dtypes:
        raise ValueError(f"{name} must be of {' or '.join(dtypes)}, got {dtype}")
    if not _is_contiguous(array):
        raise ValueError(
            f"{name} must be contiguous in memory; it is a view with gaps or another order of axes"
        )


def _is_contiguous(array: Any) -> bool:
    for method in ("is_contiguous", "is_c_contiguous"):  # torch's name, and numba's of arrays on a device
        if hasattr(array, method):
            return bool(getattr(array, method)())
    return bool(array.flags.c_contiguous)


def check_same(name: str, value: Any, other_name: str, other: Any) -> None:
    """Refuse sizes that should be equal and are not."""
    if value != other:
        raise ValueError(f"{name} must be that of {other_name} ({other}), got {value}")


def check_heads(num_heads: int, num_kv_heads: int) -> int:
    """Query heads of one KV head.

    Raises:
        ValueError: they cannot be divided evenly.
    """
    if num_kv_heads < 1 or num_heads % num_kv_heads:
        raise ValueError(
            f"the heads of query ({num_heads}) must be a multiple of those of key ({num_kv_heads})"
        )
    return num_heads // num_kv_heads


def check_keys(num_queries: int, num_keys: int, causal: bool) -> None:
    """Refuse causal attention with fewer keys than queries: the first of them would see nothing."""
    if causal and num_keys < num_queries:
        raise ValueError(
            f"key must have at least as many tokens as query ({num_queries}) if causal, got {num_keys}"
        )


def check_starts(name: str, starts: Any, array_name: str, num_tokens: int) -> None:
    """Refuse sequences that do not lie one behind the other within an array.

    Raises:
        ValueError: with the first that does not.
    """
    check_array(name, starts, "sequences + 1", ("int32",))
    if len(starts) < 2:
        raise ValueError(f"{name} must have a beginning and an end for at least one sequence")
    if isinstance(starts, np.ndarray):  # on a GPU, the caller has checked them
        for i, end in enumerate(starts.tolist()):
            least = 0 if i == 0 else int(starts[i - 1])
            if not least <= end <= num_tokens:
                raise ValueError(
                    f"{name}[{i}] must be from {least} to {num_tokens}, the tokens of {array_name}, got {end}"
                )


def check_longest(longest_query: int, starts_q: Any) -> None:
    """Refuse a length that would leave queries out."""
    longest = int(np.diff(starts_q).max()) if isinstance(starts_q, np.ndarray) else 1
    if longest_query < max(1, longest):
        raise ValueError(f"longest_query must be at least {max(1, longest)}, got {longest_query}")


def check_head_dim(head_dim: int, allowed: Sequence[int]) -> None:
    """Refuse a head that the kernel is not made for."""
    if head_dim not in allowed:
        raise ValueError(f"head_dim must be one of {', '.join(map(str, allowed))}, got {head_dim}")
