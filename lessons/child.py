"""The environment of a Python that we start: it finds this project, wherever it runs.

Read next: `runner.py`.
"""

from __future__ import annotations

import os

from lessons.catalogue import ROOT


def child_environment(**more: str) -> dict[str, str]:
    """This process's environment, with our packages on the path, and what is given besides."""
    # An empty entry would be the folder in which the child runs: only what is there is handed on.
    inherited = os.environ.get("PYTHONPATH")
    path = os.pathsep.join([str(ROOT.parent), *([inherited] if inherited else [])])
    return {**os.environ, "PYTHONPATH": path, **more}
