"""What a block of the pool looks like after a step: colour, letter, readers, mark, and what a pointer reads.

    free     no colour                        in use   the colour and letter of its first reader
    cached   dashed, the letter of who filled it       mark   what this step did to it

A run that is drawn from its trace and one that goes on (`live_pool.py`) show the same.

Read next: `block_grid.py`, which draws a `Look`.
"""

from __future__ import annotations

from collections.abc import Mapping

from minivllm.trace.events import TraceHeader
from minivllm.trace.replay import ReplayState
from viz.figures.block_grid import Look
from viz.figures.common import Name
from viz.figures.readers import Readers, StepMarks, filled_slots, mark_of
from viz.language import _
from viz.subjects import belongs_to


class BlockLooks:
    """Looks of blocks, by the readers that are noted in `readers` and `host_readers`.

    Args:
        names: of requests.
        requests: the request of each sequence.
        selected: the request whose blocks are outlined.
        spotlight: leave the blocks of all others grey.
    """

    def __init__(
        self,
        header: TraceHeader,
        names: Mapping[str, Name],
        requests: Mapping[int, str],
        selected: str | None = None,
        spotlight: bool = False,
    ) -> None:
        self.header = header
        self.names = names
        self.requests = requests
        self.selected = selected
        self.spotlight = spotlight
        self.readers, self.host_readers = Readers(), Readers()
        self._told: dict[int, tuple[dict[int, int], str, str]] = {}
        """Block → its readers when it was looked at last, and the words that only they decide."""
        self.filled_words = _("{filled} of {size} slots filled").replace("{size}", f"{header.block_size}")

    def of(self, block: int, marks: StepMarks, state: ReplayState) -> Look:
        """What the cell of a block of the pool shows after a step."""
        first = self.readers.first(block)
        if first is None:
            return self._look_unread(block, marks, state)
        readers = self.readers.of[block]
        mark = mark_of(marks.device.get(block, set()), len(readers))
        seq, logical = first
        name = self.names[self.requests[seq]]
        is_selected = self.selected is not None and any(
            self.requests[reader] == self.selected for reader in readers
        )
        words = [mark.words] if mark else []
        if sources := [source for source, target in marks.copies if target == block]:
            words.append(_("copied from block {source}").format(source=sources[-1]))
        if block in state.blocks.cached:
            words.append(_("in the prefix cache"))
        is_lit = is_selected or not self.spotlight
        if self.spotlight and is_selected:
            name = self.names[self.selected or ""]
        tip, of = self._tell(block, readers, seq, logical)
        return Look(
            fill=name.colour if is_lit else "waiting",
            label=name.tag if is_lit else "",
            references=len(readers) if is_lit else 0,
            mark=mark if is_lit else None,
            is_selected=is_selected and not self.spotlight,
            tip=tip,
            detail=_(", ").join(words) if words else "",
            filled=filled_slots(state, readers),
            of=of,
        )

    def filled(self, block: int, state: ReplayState) -> int | None:
        """How many slots of a block hold a token; None if no table maps it."""
        readers = self.readers.of.get(block)
        return filled_slots(state, readers) if readers else None

    def _tell(self, block: int, readers: dict[int, int], seq: int, logical: int) -> tuple[str, str]:
        """`Look.tip` and `Look.of` of a block that is read. It is looked at again when its mark goes: then
        its readers are mostly the same, and so are the words."""
        before, tip, of = self._told.get(block, ({}, "", ""))
        if readers != before:
            words = self._owner_words(readers, seq, logical)
            tip = _("Block {block}: {words}").format(block=block, words=words)
            of = belongs_to(self.names[self.requests[reader]].number for reader in readers)
            self._told[block] = dict(readers), tip, of
        return tip, of

    def _owner_words(self, readers: dict[int, int], seq: int, logical: int) -> str:
        words = _("request {name}, logical block {logical}").format(
            name=self.names[self.requests[seq]].full, logical=logical
        )
        if len(readers) > 1:
            words = _("{words}, shared by {count} sequences").format(words=words, count=len(readers))
            others = {self.requests[reader] for reader in readers} - {self.requests[seq]}
            if others:
                words = _("{words} of {count} requests").format(words=words, count=len(others) + 1)
        return words

    def _look_unread(self, block: int, marks: StepMarks, state: ReplayState) -> Look:
        """A free block, or one that is cached and evictable."""
        mark = mark_of(marks.device.get(block, set()), 0)
        detail = mark.words if mark else ""
        entry = state.blocks.cached.get(block)
        if entry is None:
            return Look(mark=mark, detail=detail)
        name = self.names.get(self.requests.get(entry.seq, ""))
        owner = _("request {name}").format(name=name.full) if name else _("a request from before the trace")
        tip = _("Block {block}: cached and evictable, tokens that {owner} computed").format(
            block=block, owner=owner
        )
        label = name.tag if name and not self.spotlight else ""
        return Look(fill="cached", label=label, mark=mark, is_evictable=True, tip=tip, detail=detail)

    def of_host(self, block: int, marks: StepMarks, state: ReplayState) -> Look:
        """The same for a block of the swap space."""
        first = self.host_readers.first(block)
        references = len(self.host_readers.of.get(block, ()))
        mark = mark_of(marks.host.get(block, set()), references, is_host=True)
        detail = mark.words if mark else ""
        if first is None:
            return Look(mark=mark, detail=detail)
        seq, logical = first
        name = self.names[self.requests[seq]]
        is_lit = not self.spotlight or self.requests[seq] == self.selected
        return Look(
            fill=name.colour if is_lit else "waiting",
            label=name.tag if is_lit else "",
            references=references if is_lit else 0,
            mark=mark if is_lit else None,
            is_selected=self.requests[seq] == self.selected and not self.spotlight,
            tip=_("Host block {block}: {words}").format(
                block=block, words=self._owner_words(self.host_readers.of[block], seq, logical)
            ),
            detail=detail,
            filled=filled_slots(state, self.host_readers.of[block]),
            of=belongs_to(self.names[self.requests[reader]].number for reader in self.host_readers.of[block]),
        )

    def empty_shares(self, state: ReplayState) -> dict[int, float]:
        """Block → the empty share of it, for each sequence's last blocks: the strips of the cells."""
        empty: dict[int, float] = {}
        for table in state.tables.values():
            for block in reversed(table):  # more than one where memory is reserved
                filled = filled_slots(state, self.readers.of[block])
                if filled == self.header.block_size:
                    break
                empty[block] = 1 - filled / self.header.block_size
        return empty
