"""What a figure is when it is done: a picture, a table of ours against theirs, and every assumption.

Read next: `page.py`.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

from matplotlib.figure import Figure

from minivllm.lab.figures.paper_numbers import Claim
from minivllm.lab.simulation.cards import JUDGED, hardware_card


class Row(NamedTuple):
    """One number of ours, beside the paper's."""

    what: str
    ours: float
    paper: Claim | float | None
    unit: str = ""

    @property
    def ratio(self) -> float | None:
        """Ours divided by the paper's; of a range, by the end that is nearer, and 1 within it."""
        if self.paper is None:
            return None
        if isinstance(self.paper, Claim):
            return self.ours / min(max(self.ours, self.paper.low), self.paper.high)
        return self.ours / self.paper

    @property
    def differs(self) -> bool:
        """Whether ours is more than a quarter away from the paper's."""
        return self.ratio is not None and not 0.8 <= self.ratio <= 1.25

    def in_words(self) -> tuple[str, str, str, str]:
        """For a table."""
        if self.paper is None:
            theirs = "–"
        else:
            theirs = str(self.paper) if isinstance(self.paper, Claim) else f"{self.paper:.4g}{self.unit}"
        ratio = "–" if self.ratio is None else f"{self.ratio:.2f}"
        return self.what, f"{self.ours:.3g}{self.unit}", theirs, ratio


class Assumption(NamedTuple):
    """Something that is not in the paper, or not known: by name, with its value and the reason for it."""

    name: str
    value: str
    reason: str


@dataclass
class FigureResult:
    """One figure."""

    name: str
    """Of its file."""
    title: str
    source: str
    picture: Figure
    rows: list[Row]
    differences: list[str] = field(default_factory=list)
    assumptions: list[Assumption] = field(default_factory=list)

    def as_data(self) -> dict[str, Any]:
        """Everything but the picture, for a file."""
        return {
            "name": self.name,
            "title": self.title,
            "source": self.source,
            "rows": [
                row._asdict() | {"paper": row.paper._asdict() if isinstance(row.paper, Claim) else row.paper}
                for row in self.rows
            ],
            "differences": self.differences,
            "assumptions": [assumption._asdict() for assumption in self.assumptions],
        }


def card_assumptions(name: str) -> list[Assumption]:
    """What is judged, and not published, about a hardware card."""
    card = asdict(hardware_card(name))
    return [Assumption(f"{name}: {field}", f"{card[field]:g}", reason) for field, reason in JUDGED.items()]
