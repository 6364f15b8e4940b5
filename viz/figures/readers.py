"""Readers: which sequences map each block, and what this step did to it.

A block table says block by block where a sequence's tokens are. Here it is turned round, and kept up to date
from the tables that changed in a step, so that no step costs more than what happened in it.

    tables    A: 7 2 5      B: 7 2 9        ──►    7: A, B    2: A, B    5: A    9: B

Read next: `block_grid.py`, which draws it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from minivllm.trace.replay import ReplayState
from minivllm.trace.timeline import StepRecord
from viz.figures.common import MARKS, Mark
from viz.language import _


@dataclass
class Readers:
    """Block → the sequences whose tables map it, each with the logical number that it has there."""

    of: dict[int, dict[int, int]] = field(default_factory=dict)
    _tables: dict[int, list[int]] = field(default_factory=dict)

    def update(self, seqs: Iterable[int], tables: Mapping[int, Sequence[int]]) -> set[int]:
        """Take over the tables of the sequences `seqs`; returns the blocks whose readers changed."""
        changed: set[int] = set()
        for seq in seqs:
            old, new = self._tables.pop(seq, []), list(tables.get(seq, ()))
            same = min(len(old), len(new))
            if old[:same] != new[:same]:  # mostly a table has only grown
                same = next(index for index in range(same) if old[index] != new[index])
            for block in old[same:]:
                del self.of[block][seq]
            for logical, block in enumerate(new[same:], same):
                self.of.setdefault(block, {})[seq] = logical
            changed.update(old[same:], new[same:])
            if new:
                self._tables[seq] = new
        return changed

    def first(self, block: int) -> tuple[int, int] | None:
        """The reader that arrived first: `(seq, logical)`; None if there is no reader."""
        readers = self.of.get(block)
        if not readers:
            return None
        return min(readers.items()) if len(readers) > 1 else next(iter(readers.items()))


def filled_slots(state: ReplayState, readers: Mapping[int, int]) -> int:
    """How many slots of a block hold a token: as many as the furthest of its readers has filled."""
    size, sequences, most = state.header.block_size, state.sequences, 0
    for seq, logical in readers.items():
        if sequence := sequences.get(seq):
            filled = sequence.num_computed_tokens - logical * size
            if filled > most:
                most = filled
    return most if most < size else size


@dataclass
class StepMarks:
    """What happened to blocks in one step: `device` and `host` map a block to names of `MARKS`."""

    device: dict[int, set[str]] = field(default_factory=dict)
    host: dict[int, set[str]] = field(default_factory=dict)
    copies: list[tuple[int, int]] = field(default_factory=list)
    """`(source, target)`."""

    @classmethod
    def of_step(cls, record: StepRecord, state: ReplayState) -> StepMarks:
        """Sort a step's events by block."""
        marks = cls()
        device, host = marks.device, marks.host

        def add(where: dict[int, set[str]], blocks: Iterable[int], name: str) -> None:
            for block in blocks:
                where.setdefault(block, set()).add(name)

        add(device, record.taken, "allocated")
        add(device, record.returned, "freed")
        for shared in record.shared:
            add(device, shared.blocks, "shared")
        for fork in record.forked:
            add(device, state.tables.get(fork.child, ()), "shared")
        for merged in record.merged:
            add(device, [merged.twin], "shared")
        for copied in record.copied:
            add(device, [copied.target], "copied")
            marks.copies.append((copied.source, copied.target))
        for evicted in record.evicted:
            add(device, evicted.blocks, "evicted")
        for out in record.swapped_out:
            add(device, out.blocks, "out")
            add(host, out.host_blocks, "out")
        for back in record.swapped_in:
            add(device, back.blocks, "in")
            add(host, back.host_blocks, "in")
        return marks


# What may be said of a block with readers, and of one without; the first that applies.
ARRIVALS: tuple[str, ...] = ("copied", "in", "allocated", "shared")
HOST_ARRIVALS: tuple[str, ...] = ("out",)
DEPARTURES: tuple[str, ...] = ("evicted", "out", "freed")
HOST_DEPARTURES: tuple[str, ...] = ("in",)


def mark_of(happened: set[str], references: int, *, is_host: bool = False) -> Mark | None:
    """The mark of a block: of what happened to it in this step, what led to its present state."""
    if not happened:
        return None
    if references:
        names = HOST_ARRIVALS if is_host else ARRIVALS
    else:
        names = HOST_DEPARTURES if is_host else DEPARTURES
    name = next((name for name in names if name in happened), None)
    if name is None:
        return None
    mark = MARKS[name]
    if references and not is_host and "evicted" in happened:
        # It was evicted to make room, and this is the sequence that got it.
        return Mark(
            MARKS["evicted"].sign + mark.sign,
            mark.dash,
            _("evicted, then {words}").format(words=mark.words),
        )
    return mark
