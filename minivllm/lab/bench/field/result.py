"""Tables of a comparison with the field: one for each measure, and one of the peers, those missing included.

Read next: `job.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from minivllm.lab.bench.report import Header, Section

COLUMNS = ("", "tokens/s", "slowest … fastest", "ours/theirs", "same", "others")
NOTE = (
    "ours/theirs: above 1, minivllm is faster (median over the rounds). same: requests to which both gave "
    "the same tokens; near ties fall either way, in bfloat16 most of them. others: cores that other programs "
    "used meanwhile."
)


@dataclass(frozen=True)
class Side:
    """One engine in one measure."""

    name: str
    all_seconds: tuple[float, ...]
    tokens_per_second: float
    """At the median of the rounds."""
    all_tokens_per_second: tuple[float, ...]
    other_cores: float
    """Cores that neither side used, but other programs meanwhile; median."""
    ratio: float | None = None
    """How many times as fast ours is: the median over the rounds; None for ours."""
    all_ratios: tuple[float, ...] = ()
    same_outputs: int | None = None
    """Requests with the same tokens as ours."""
    padding: float | None = None
    """Tokens that it computes for each one that is needed; None of an engine that does not pad."""


@dataclass(frozen=True)
class MeasureResult:
    """All sides of one measure; ours first, the others by speed."""

    name: str
    title: str
    num_requests: int
    num_tokens: int
    """Tokens that are counted in a round."""
    sides: tuple[Side, ...]

    def section(self) -> Section:
        rows = []
        for side in self.sides:
            slowest, fastest = min(side.all_tokens_per_second), max(side.all_tokens_per_second)
            rows.append(
                [
                    side.name,
                    f"{side.tokens_per_second:,.0f}",
                    f"{slowest:,.0f} … {fastest:,.0f}",
                    "" if side.ratio is None else f"{side.ratio:.2f}×",
                    "" if side.same_outputs is None else f"{side.same_outputs}/{self.num_requests}",
                    f"{side.other_cores:.2f}",
                ]
            )
        return Section(self.title, COLUMNS, rows, self._padding())

    def _padding(self) -> str:
        """What static batches compute in vain, said once for all peers that pad alike."""
        names: dict[str, list[str]] = {}
        for side in self.sides:
            if side.padding is not None and side.padding > 1:
                names.setdefault(f"{side.padding:.2f}", []).append(side.name)
        return "; ".join(
            f"static batches ({', '.join(sides)}) compute {padding} tokens for each one asked for"
            for padding, sides in names.items()
        )


@dataclass(frozen=True)
class Participant:
    """A peer, and what it is; or why it is not in the tables, or not in all of them."""

    name: str
    version: str = ""
    how: str = ""
    """How it computes a batch."""
    padded_batch_size: int | None = None
    """Requests of a static batch whose prompts and answers are padded to the longest; None if it has none."""
    skipped: str = ""
    install: str = ""
    """How to get one that is skipped."""


@dataclass(frozen=True)
class FieldResult:
    """The whole comparison."""

    header: Header
    measures: tuple[MeasureResult, ...]
    peers: tuple[Participant, ...]

    def sections(self) -> list[Section]:
        rows = []
        for peer in self.peers:
            facts = ", ".join(fact for fact in (peer.version, peer.how) if fact)
            rows.append([peer.name, f"skipped: {peer.skipped}" if peer.skipped else facts, peer.install])
        return [
            *(measure.section() for measure in self.measures),
            Section("The peers", ("", "what it is, or why it is missing", "to install"), rows, NOTE),
        ]


def make_side(
    name: str,
    num_tokens: int,
    all_seconds: Sequence[float],
    other_cores: Sequence[float],
    ours: Sequence[float] | None = None,
    same_outputs: int | None = None,
    padding: float | None = None,
) -> Side:
    """A side from its rounds; with our seconds in the same rounds, its ratios."""
    ratios = tuple(theirs / own for theirs, own in zip(all_seconds, ours or all_seconds, strict=True))
    return Side(
        name,
        tuple(all_seconds),
        num_tokens / median(all_seconds),
        tuple(num_tokens / seconds for seconds in all_seconds),
        round(median(other_cores), 2),
        None if ours is None else median(ratios),
        () if ours is None else ratios,
        same_outputs,
        padding,
    )
