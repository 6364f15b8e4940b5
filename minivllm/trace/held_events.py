"""Held events: what is planned ahead is told when its step begins.

A plan that is made while an earlier step computes changes the books at once. A trace that told so at once
would have two steps in one another, and no reader could say which tokens belong to which. So the events of
such a plan are held, and the trace tells one step after the other:

    what happens    plan 0   plan 1   tokens 0   plan 2   tokens 1   …
    what is told    plan 0 · · · · ·  tokens 0   plan 1   tokens 1   plan 2   …
                              held ──────────────►

Told so it is as true. A plan ahead takes free blocks, and what ends with a step gives blocks back at the end
of the free list; no sequence that a plan in flight names gives any back. So the two may change places.
`BatchPlanned.is_ahead` says which plans were made so.

Read next: `minivllm/engine/core.py`, which decides when.
"""

from __future__ import annotations

from collections import deque

from minivllm.trace.events import BatchPlanned, Event
from minivllm.trace.tee import Emit


class HeldEvents:
    """An `emit` between the engine and the sinks: events pass, or are held for a step that is to begin."""

    def __init__(self, emit: Emit) -> None:
        self._emit = emit
        self._is_open = False
        self._held: deque[list[Event]] = deque()
        self._begun: list[Event] = []

    @property
    def ahead(self) -> list[Event]:
        """What was done, of plans that were made ahead, since the last step was finished, told or not.

        Without it the books say how things stood after that step.
        """
        return [*self._begun, *(event for events in tuple(self._held) for event in events)]

    def __call__(self, event: Event) -> None:
        if self._is_open:
            self._held[-1].append(event)
        else:
            self._emit(event)

    def hold(self) -> None:
        """From now on hold what is told: it is of a step behind all those held before."""
        self._held.append([])
        self._is_open = True

    def close(self, *, is_kept: bool = True) -> None:
        """Let events pass again. If there is no step after all, what was done belongs to the one before."""
        self._is_open = False
        if not is_kept:
            for event in self._held.pop():
                (self._held[-1].append if self._held else self._emit)(event)

    def tell_next(self, beginning: Event) -> None:
        """The next held step begins, with this event: tell what belongs to it."""
        self._emit(beginning)
        self._begun = self._held.popleft()
        for event in self._begun:
            self._emit(event)

    def note_end(self) -> None:
        """The step that began last is finished: what was done for it is ahead no more."""
        self._begun = []

    def spill(self) -> None:
        """No held step will begin. Tell what was done for them, without saying that there were any."""
        self._is_open, self._begun = False, []
        while self._held:
            for event in self._held.popleft():
                if not isinstance(event, BatchPlanned):
                    self._emit(event)

    def drop(self) -> None:
        """Tell nothing of what was held: it was undone, and what comes next says how things stand."""
        self._is_open, self._begun = False, []
        self._held.clear()
