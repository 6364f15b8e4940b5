"""A kernel with everything that it needs to run: on a GPU, or under the microscope.

Arrays are whatever the side that runs them understands: numpy's under the microscope, torch's on a GPU. Their
shapes, types and order in memory are looked at before anything is launched.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

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
    contiguous = array.is_contiguous() if hasattr(array, "is_contiguous") else array.flags.c_contiguous
    if not contiguous:
        raise ValueError(
            f"{name} must be contiguous in memory; it is a view with gaps or another order of axes"
        )


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


def check_head_dim(head_dim: int, allowed: Sequence[int]) -> None:
    """Refuse a head that the kernel is not made for."""
    if head_dim not in allowed:
        raise ValueError(f"head_dim must be one of {', '.join(map(str, allowed))}, got {head_dim}")
