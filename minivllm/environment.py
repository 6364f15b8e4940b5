"""Variables of the environment that torch's libraries read once, when they are loaded.

They have to be set before, and therefore on the first import of anything in this package. So this module
needs nothing but `os` and `sys`: `import minivllm` costs next to nothing, and Ctrl-C in the first moment of a
command meets `minivllm/console/cli.py` and not an import.

Read next: `minivllm/executor/cpu_hazards.py`, which says what these variables prevent.
"""

from __future__ import annotations

import os
import sys

SPIN_COUNT = "1000"
"""Rounds that an idle thread waits before it sleeps: on a quiet machine as fast as spinning on."""
PRIMITIVES = "4096"
"""Pieces of code that oneDNN keeps, some for each matrix and number of rows; its own limit is 1,024."""


def set_environment() -> bool:
    """Let idle threads sleep soon, and oneDNN keep its code. Returns whether torch was not loaded yet.

    Afterwards it would be too late: both are read once. A variable that is already set stays as it is.
    """
    if "torch" in sys.modules:
        return False
    if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys():
        os.environ["GOMP_SPINCOUNT"] = SPIN_COUNT
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", PRIMITIVES)
    return True
