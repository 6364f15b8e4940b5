"""What can be set about a comparison with the field, checked before anything is loaded.

Read next: `roster.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from minivllm.lab.bench.field.measures import MEASURES
from minivllm.lab.bench.field.roster import PEERS, WEIGHTS
from minivllm.lab.subjects.settings import Settings
from minivllm.validation import check_integer


@dataclass(frozen=True)
class FieldSettings(Settings):
    """The settings of all measurements, and these.

    Attributes:
        pythons: name of a peer → the Python of its environment.
        peers: names of the peers that take part, all of them by default.
        measures: what is measured.
        cache: a folder that keeps converted models and compiled code; None keeps nothing.
        timeout: seconds that a peer may take for one answer, loading and compiling included.
        weights: "int8" or "int4" rounds the weights of all sides, each in its own way; None leaves them.
    """

    pythons: dict[str, str] = field(default_factory=dict)
    peers: tuple[str, ...] = tuple(PEERS)
    measures: tuple[str, ...] = MEASURES
    cache: str | None = None
    timeout: int = 900
    weights: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_integer("timeout", self.timeout, at_least=1)
        for name in self.measures:
            if name not in MEASURES:
                raise ValueError(f"measure must be one of {', '.join(MEASURES)}; got {name!r}")
        if self.weights not in (None, *WEIGHTS):
            raise ValueError(f"weights must be one of {', '.join(WEIGHTS)}; got {self.weights!r}")


def parse_pythons(given: Sequence[str]) -> dict[str, str]:
    """`NAME=PATH`, as often as there are peers.

    Raises:
        ValueError: not of that form, or the same peer twice.
    """
    pythons: dict[str, str] = {}
    for each in given:
        name, equals, path = each.partition("=")
        if not (name and equals and path):
            raise ValueError(f"python must be NAME=PATH, as in vllm=/envs/vllm/bin/python; got {each!r}")
        if name in pythons:
            raise ValueError(f"python: {name} is given twice")
        pythons[name] = path
    return pythons
