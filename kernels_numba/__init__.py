"""Kernels for CPUs and GPUs, each written once in Python.

    cpu/           compiled for the processor: products, attention, a whole step
    cuda/          `@cuda.jit` functions: one kernel, one idea, one file
    microscope/    runs those very functions thread by thread, on any machine, and shows what they do

Nothing here knows requests or schedulers: kernels see arrays. Read next: `cuda/naive_attention.py`, then
`microscope/__init__.py`.
"""

from __future__ import annotations

import importlib.util  # noqa: F401  # numba-cuda uses it and does not import it
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

import minivllm.guard  # noqa: F401  # Ctrl-C finds it ready, whatever is imported afterwards


class _OwnModules:
    """Finds our own modules before numba-cuda's import hook sees them.

    That hook redirects every module with "numba.cuda" *in* its name, and `kernels_numba.cuda` has it.
    """

    @staticmethod
    def find_spec(
        name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return PathFinder.find_spec(name, path, target) if name.startswith("kernels_numba.") else None


sys.meta_path.insert(0, _OwnModules)
