"""One plan on its way: from when it is made to when its tokens are told.

Read next: `engine.py`, which keeps them in a queue.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from minivllm.scheduling.plan import StepPlan


@dataclass(slots=True)
class Flight:
    """A plan in flight; times are the engine clock's.

    Attributes:
        began, planned: when it was begun to be made, and when it was made.
        drafting: when its drafts were begun to be made.
        launched: when the executor got it.
        laws: what its drafts were drawn from (`speculation.py`).
    """

    plan: StepPlan
    began: float
    planned: float
    drafting: float = 0.0
    launched: float = 0.0
    laws: Mapping[int, Sequence[Any]] = field(default_factory=dict)
