"""Python's garbage collector at rest: while traces are read, scenes made, kernels compiled, calls timed.

Building allocates a million objects that all stay. CPython's collector counts allocations: it walks over the
young objects after every 700 of them, and from time to time over all there are, the cached runs among them.
Here it would find nothing, and it stops all threads meanwhile: a fifteenth of the time until a first picture,
a sixth of compiling. What is no longer referred to is freed at once as always; only cycles wait, until the
collector goes on.

    with without_collections():         may be nested, and several threads may be inside: the last one that
        scenes = make_scenes()          leaves lets the collector go on, if it was on before

Source: the documentation of `gc`.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock


class _Rest:
    """The collector is the process's: all threads share one rest."""

    def __init__(self) -> None:
        self.lock = Lock()
        self.num_inside = 0
        self.was_enabled = False


_rest = _Rest()


@contextmanager
def without_collections() -> Iterator[None]:
    """No collection begins within a `with`, in any thread."""
    with _rest.lock:
        if not _rest.num_inside:
            _rest.was_enabled = gc.isenabled()
            gc.disable()
        _rest.num_inside += 1
    try:
        yield
    finally:
        with _rest.lock:
            _rest.num_inside -= 1
            if not _rest.num_inside and _rest.was_enabled:
                gc.enable()
