"""Contiguous reservation: every request gets one strip of memory, long enough for all that it may ever need.

Before its first token is computed a request reserves consecutive slots, one for each token that it may come
to. The first gap that is long enough gives up its beginning (first fit):

    slot   0 1 2 3 4 5 6 7 8 9 . . . . 14 15
           A A A A . . . B B B . . . . .  .         gaps: 3 slots at 4, and 6 slots at 10

           take(4) is 10: the gap at 4 is too short.       take(7) is None, though 9 slots are free.

Then `waste` asks what all these slots are good for. Of a strip of ten slots, with three tokens now (filled)
and five at the end (final):

           █ █ █ ▓ ▓ ░ ░ ░ ░ ░                      █ used   ▓ reserved   ░ internal

Slots are only numbers here; a slot is the place of one token's keys and values.

Source: Kwon et al., "Efficient Memory Management for Large Language Model Serving with PagedAttention" (SOSP
2023), section 3.1 and figure 2. In the engine: minivllm/memory/contiguous.py and waste.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple


class Strip(NamedTuple):
    """The slots `first … first + num_slots - 1`."""

    first: int
    num_slots: int


class Progress(NamedTuple):
    """How far a request is: `0 <= filled <= final <= num_slots` of its strip."""

    filled: int
    """Tokens that it has now. They lie at the beginning of its strip."""
    final: int
    """Tokens that it will have in the end."""


class Waste(NamedTuple):
    """Slots of each kind; together they are all slots of the memory."""

    used: int
    """Held, with a token in it."""
    reserved: int
    """Held, empty now, and filled later."""
    internal: int
    """Held, and never filled."""
    external: int
    """Free, and useless: the request at the head of the queue fits into no gap."""
    free: int
    """Free, and no request waits for lack of it: the queue is empty, or its head fits into a gap."""


class ContiguousAllocator:
    """A memory of `num_slots` slots, numbered from 0, from which strips are taken by first fit."""

    def __init__(self, num_slots: int) -> None:
        """All slots are free: one gap. `num_slots` is at least 1."""
        self._gaps = [Strip(0, num_slots)]  # by address; no two touch
        self._held: dict[int, int] = {}  # first slot → length

    @property
    def num_free_slots(self) -> int:
        """Slots that no request holds."""
        return sum(gap.num_slots for gap in self._gaps)

    def gaps(self) -> list[Strip]:
        """The free strips, by address, each as long as can be: no two touch, for two that touch are one."""
        return list(self._gaps)

    def take(self, num_slots: int) -> int | None:
        """Reserve `num_slots` (at least 1) consecutive slots: the beginning of the first gap that has room.

        Returns:
            The first of these slots; None if no gap is long enough, and then nothing has changed.
        """
        for index, (first, length) in enumerate(self._gaps):
            if length >= num_slots:
                rest = Strip(first + num_slots, length - num_slots)
                self._gaps[index : index + 1] = [rest] if rest.num_slots else []
                self._held[first] = num_slots
                return first
        return None

    def give_back(self, first: int) -> None:
        """The strip that begins at `first` is free again, in one gap with the free slots beside it.

        Raises:
            ValueError: no strip that is held begins there; nothing has changed.
        """
        if first not in self._held:
            raise ValueError(f"no strip begins at slot {first}; held: {sorted(self._held)}")
        apart = sorted([*self._gaps, Strip(first, self._held.pop(first))])
        merged = [apart[0]]
        for gap in apart[1:]:
            last = merged[-1]
            if last.first + last.num_slots == gap.first:
                merged[-1] = Strip(last.first, last.num_slots + gap.num_slots)
            else:
                merged.append(gap)
        self._gaps = merged


def waste(num_slots: int, strips: Mapping[Strip, Progress], waiting: Sequence[int]) -> Waste:
    """Sort all slots of one moment into the five kinds.

    Args:
        num_slots: slots of the memory.
        strips: those that are held, in any order, each with the progress of its request; no two overlap.
        waiting: slots that each waiting request would reserve, in order of arrival. Only the first one
            counts: no request overtakes the head of the queue.
    """
    used = sum(progress.filled for progress in strips.values())
    planned = sum(progress.final for progress in strips.values())
    held = sum(strip.num_slots for strip in strips)
    idle = num_slots - held
    longest = end = 0
    for first, length in sorted([*strips, Strip(num_slots, 0)]):
        longest = max(longest, first - end)
        end = first + length
    head_waits = bool(waiting) and waiting[0] > longest
    return Waste(
        used=used,
        reserved=planned - used,
        internal=held - planned,
        external=idle if head_waits else 0,
        free=0 if head_waits else idle,
    )
