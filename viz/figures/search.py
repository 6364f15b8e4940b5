"""A beam search as a tree: every candidate that the trace tells of, and what became of it.

    prompt ─┬─ the ─┬─ cat ─── sat ✓      kept beams, by rank; ✓ a hypothesis that ended
            │       └─ dog ─── ran
            └─ a ───── red                pruned: none of the beams kept later descends from it
               ˈ an  ˈ big                rejected: among the best, but not good enough

`BeamsAdvanced` names parents by their sequence, and a sequence goes on as its first child. So the tree is
built by asking, step by step, which node a sequence stood at before.

Read next: `beam_tree.py`, which draws it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from minivllm.trace.events import BeamsAdvanced
from minivllm.trace.timeline import Timeline

ROOT = -1
NEVER = 1 << 60


class Kind(StrEnum):
    """What became of a candidate in its own step."""

    KEPT = "kept"
    FINISHED = "finished"
    REJECTED = "rejected"


class Fate(StrEnum):
    """What a node is at a later moment."""

    FUTURE = "not yet"
    LIVE = "a kept beam, or the past of one"
    ENDED = "on the way to a finished hypothesis"
    PRUNED = "pruned"
    REJECTED = "rejected"


@dataclass(slots=True)
class Node:
    """One candidate."""

    kind: Kind
    column: int
    """Number of the search's step, from 0."""
    rank: int
    """Its place among those of its kind and step, best first."""
    parent: int
    """Index of the node it continues; `ROOT` for the prompt."""
    token_id: int
    text: str
    score: float
    """Sum of log-probabilities; of a finished hypothesis divided by its length ** length_penalty."""
    seq: int | None = None
    """The sequence that a kept beam is."""
    last_live: int = -1
    """Last column in which a kept beam descends from it."""
    first_finished: int = NEVER
    """First column in which a hypothesis that descends from it ended."""

    @property
    def words(self) -> str:
        """The token, so that it can be seen."""
        if not self.text:
            return f"{self.token_id}"
        return self.text.strip() or self.text.replace(" ", "␣")


@dataclass
class Search:
    """The whole search of one request: `steps[c]` is the trace's step of column `c`."""

    request: str
    nodes: list[Node] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)
    columns: list[list[int]] = field(default_factory=list)
    """Indices of the nodes of each column."""

    def most(self, kind: Kind) -> int:
        """Most nodes of a kind in one column."""
        return max((sum(self.nodes[i].kind is kind for i in column) for column in self.columns), default=0)

    def row(self, index: int) -> int:
        """Where a node stands in its column: kept beams best first, then what finished, then the rest."""
        node = self.nodes[index]
        before = {Kind.KEPT: (), Kind.FINISHED: (Kind.KEPT,), Kind.REJECTED: (Kind.KEPT, Kind.FINISHED)}
        return node.rank + sum(self.nodes[i].kind in before[node.kind] for i in self.columns[node.column])

    def column_at(self, step: int) -> int:
        """The latest column that is over after a step of the trace; -1 before the first."""
        return sum(start <= step for start in self.steps) - 1

    def fate(self, index: int, column: int) -> Fate:
        """What a node is when `column` is the latest."""
        node = self.nodes[index]
        if node.column > column:
            return Fate.FUTURE
        if node.kind is Kind.REJECTED:
            return Fate.REJECTED
        if node.kind is Kind.KEPT and node.last_live >= column:
            return Fate.LIVE
        return Fate.ENDED if node.first_finished <= column else Fate.PRUNED

    def best(self, column: int) -> int | None:
        """The best hypothesis that has ended up to a column."""
        ended = [i for i, n in enumerate(self.nodes) if n.kind is Kind.FINISHED and n.column <= column]
        return max(ended, key=lambda index: self.nodes[index].score, default=None)

    def text_to(self, index: int) -> str:
        """The output up to a node, its token included."""
        parts: list[str] = []
        while index != ROOT:
            node = self.nodes[index]
            parts.append(node.text or f" {node.token_id}")
            index = node.parent
        return "".join(reversed(parts))


def searched_requests(timeline: Timeline) -> list[str]:
    """Requests with a beam search, in the order in which they searched."""
    return list(dict.fromkeys(event.request for record in timeline.records for event in record.beams))


def search_of(timeline: Timeline, request: str) -> Search:
    """The search of one request."""
    search = Search(request)
    at: dict[int, int] = {}  # sequence → the node at which it stands
    for record in timeline.records:
        for event in record.beams:
            if event.request == request:
                at = _add_column(search, event, record.step, at)
    for node in reversed(search.nodes):
        if node.kind is Kind.KEPT:
            node.last_live = max(node.last_live, node.column)
        if node.kind is Kind.FINISHED:
            node.first_finished = node.column
        if node.parent != ROOT and node.kind is not Kind.REJECTED:
            parent = search.nodes[node.parent]
            parent.last_live = max(parent.last_live, node.last_live)
            parent.first_finished = min(parent.first_finished, node.first_finished)
    return search


def _add_column(search: Search, event: BeamsAdvanced, step: int, at: dict[int, int]) -> dict[int, int]:
    column, nodes = len(search.columns), search.nodes
    first = len(nodes)
    after: dict[int, int] = {}
    for rank, (parent, seq, token_id, score, text) in enumerate(event.kept):
        after[seq] = len(nodes)
        nodes.append(Node(Kind.KEPT, column, rank, at.get(parent, ROOT), token_id, text, score, seq))
    for kind, items in ((Kind.FINISHED, event.finished), (Kind.REJECTED, event.rejected)):
        for rank, (parent, token_id, score, text) in enumerate(items):
            nodes.append(Node(kind, column, rank, at.get(parent, ROOT), token_id, text, score))
    search.steps.append(step)
    search.columns.append(list(range(first, len(nodes))))
    return after
