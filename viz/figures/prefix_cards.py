"""The card of every edge of the prefix tree: its text, its readers and blocks, and what happened to it.

    edge 2   " a block table? …"     step 4   blocks cached; A reads it           readers: A     blocks: 7 2
                                     step 9   prefix hit; C reads it              readers: A, C  blocks: 7 2
                                     step 30  A and C let go                      readers: none  blocks: 7 2
                                     step 41  blocks evicted                      readers: none  blocks: none

Folded in the same pass as the picture; an entry is made only when something happens to an edge.

Read next: `prefix_tree.py`; `viz/player/panel.js`, which shows it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from minivllm.text import printable
from viz.figures.common import EDGE_MARKS, Name, clip, listing
from viz.figures.prefixes import PrefixHistory
from viz.language import _

MOST_TEXT = 2000


class PrefixCards:
    """Grows step by step."""

    def __init__(self, history: PrefixHistory, names: Mapping[str, Name]) -> None:
        self.history, self.names = history, names
        self._entries: dict[int, list[tuple[int, str, list[int], list[int]]]] = {}

    def note(
        self, step: int, edge: int, happened: Iterable[str], requests: Iterable[str], blocks: Sequence[int]
    ) -> None:
        """What a step made of an edge: what `happened` (`EDGE_MARKS`), its readers and blocks now."""
        entries = self._entries.setdefault(edge, [])
        before = entries[-1] if entries else (-1, "", [], [])
        readers = sorted(self.names[request].number for request in requests)
        happened = set(happened)
        told = [mark.words for name, mark in EDGE_MARKS.items() if name in happened]
        if gained := [number for number in readers if number not in before[2]]:
            told.append(_("read by {who}").format(who=self._tags(gained)))
        if lost := [number for number in before[2] if number not in readers]:
            told.append(_("{who} lets go").format(who=self._tags(lost)))
        if told or list(blocks) != before[3]:
            entries.append((step, _("; ").join(told) or _("other blocks"), readers, list(blocks)))

    def _tags(self, numbers: Sequence[int]) -> str:
        tags = [name.tag for name in self.names.values()]
        return listing([tags[number] for number in numbers])

    def to_data(self, drawn: Collection[int]) -> list[dict[str, Any]]:
        """For the player: one for each edge of the run; it leads to neighbours that are drawn."""
        return [
            {
                "text": printable(clip(edge.text, MOST_TEXT)),
                "before": [edge.parent] if edge.parent in drawn else [],
                "after": [child for child in edge.children if child in drawn],
                "history": self._entries.get(number, []),
            }
            for number, edge in enumerate(self.history.edges)
        ]
