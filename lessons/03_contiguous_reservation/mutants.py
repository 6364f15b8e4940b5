"""Wrong solutions of lesson 03, and right ones written otherwise."""

from pathlib import Path
from typing import Any

from lessons.mutant import Mutant

REFERENCE = Path(__file__).with_name("reference.py").read_text(encoding="utf-8")
ALLOCATOR = REFERENCE[REFERENCE.index("class ContiguousAllocator") : REFERENCE.index("def waste")]
REST = """                rest = Strip(first + num_slots, length - num_slots)
                self._gaps[index : index + 1] = [rest] if rest.num_slots else []
"""
FIRST_FIT = """        for index, (first, length) in enumerate(self._gaps):
            if length >= num_slots:
"""
MERGE = """        apart = sorted([*self._gaps, Strip(first, self._held.pop(first))])
        merged = [apart[0]]
        for gap in apart[1:]:
            last = merged[-1]
            if last.first + last.num_slots == gap.first:
                merged[-1] = Strip(last.first, last.num_slots + gap.num_slots)
            else:
                merged.append(gap)
        self._gaps = merged
"""
NOT_HELD = """        if first not in self._held:
            raise ValueError(f"no strip begins at slot {first}; held: {sorted(self._held)}")
"""

MUTANTS = (
    Mutant(
        "keeps_one_slot_too_many",
        "rest = Strip(first + num_slots, length - num_slots)",
        "rest = Strip(first + num_slots - 1, length - num_slots)",
        caught_by="P1",
        tells="the rest of a gap begins one slot too early.",
    ),
    Mutant(
        "merges_in_one_direction",
        MERGE,
        """        length = self._held.pop(first)
        for gap in self._gaps:
            if gap.first == first + length:
                self._gaps.remove(gap)
                length += gap.num_slots
                break
        self._gaps = sorted([*self._gaps, Strip(first, length)])
""",
        caught_by="P2",
        tells="depending on the order in which strips come back, the memory stays cut into pieces.",
        sly=True,
    ),
    Mutant(
        "never_fills_a_gap",
        "if length >= num_slots:",
        "if length > num_slots or (length == num_slots and len(self._gaps) == 1):",
        caught_by="P3",
        tells="a strip that is exactly as long as a gap between two others is refused.",
        sly=True,
    ),
    Mutant(
        "best_fit",
        FIRST_FIT,
        """        for length, first in sorted((gap.num_slots, gap.first) for gap in self._gaps):
            index = self._gaps.index(Strip(first, length))
            if length >= num_slots:
""",
        caught_by="P4",
        tells="it looks for the tightest gap.",
        sly=True,
    ),
    Mutant(
        "forgets_that_it_came_back",
        "apart = sorted([*self._gaps, Strip(first, self._held.pop(first))])",
        "apart = sorted([*self._gaps, Strip(first, self._held[first])])",
        caught_by="P5",
        tells="a strip can be given back twice.",
    ),
    Mutant(
        "any_slot_of_a_strip_will_do",
        NOT_HELD,
        """        begins = [start for start, length in self._held.items() if start <= first < start + length]
        if not begins:
            raise ValueError(f"no request holds slot {first}")
        first = begins[0]
""",
        caught_by="P5",
        tells="a slot in the middle of a strip is enough to give the whole strip back.",
        sly=True,
    ),
    Mutant(
        "what_is_held_is_reserved",
        "reserved=planned - used,\n        internal=held - planned,",
        "reserved=held - used,\n        internal=0,",
        caught_by="P6",
        tells="it does not ask what becomes of an empty slot.",
    ),
    Mutant(
        "the_sum_of_all_gaps",
        "head_waits = bool(waiting) and waiting[0] > longest",
        "head_waits = bool(waiting) and waiting[0] > idle",
        caught_by="P7",
        tells="a request that fits into no gap is said to fit, because enough slots are free.",
    ),
    Mutant(
        "one_behind_could_have_it",
        "head_waits = bool(waiting) and waiting[0] > longest",
        "head_waits = bool(waiting) and min(waiting) > longest",
        caught_by="P7",
        tells="it looks at the whole queue, though no request may overtake another.",
        sly=True,
    ),
    Mutant(
        "strips_in_the_order_they_come",
        "in sorted([*strips, Strip(num_slots, 0)]):",
        "in [*strips, Strip(num_slots, 0)]:",
        caught_by="P7",
        tells="it depends on the order in which strips are listed.",
        sly=True,
    ),
    Mutant(
        "counts_in_a_byte",
        "                self._held[first] = num_slots\n                return first\n",
        "                self._held[first & 255] = num_slots\n                return first\n",
        caught_by="P2",
        tells="it writes down in a byte where a strip begins: slot 256 is slot 0.",
        sly=True,
    ),
)

VARIANTS = (
    Mutant(
        "only_what_is_held",
        ALLOCATOR,
        """class ContiguousAllocator:
    def __init__(self, num_slots):
        self._num_slots, self._held = num_slots, {}

    @property
    def num_free_slots(self):
        return self._num_slots - sum(self._held.values())

    def gaps(self):
        ends = [0, *(first + length for first, length in sorted(self._held.items()))]
        starts = [*sorted(self._held), self._num_slots]
        return [Strip(end, start - end) for end, start in zip(ends, starts) if start > end]

    def take(self, num_slots):
        for gap in self.gaps():
            if gap.num_slots >= num_slots:
                self._held[gap.first] = num_slots
                return gap.first

    def give_back(self, first):
        try:
            del self._held[first]
        except KeyError:
            raise ValueError(first) from None


""",
    ),
    Mutant(
        "a_list_of_owners",
        ALLOCATOR,
        """class ContiguousAllocator:
    def __init__(self, num_slots):
        self._owners = [None] * num_slots

    @property
    def num_free_slots(self):
        return self._owners.count(None)

    def gaps(self):
        ends = [slot for slot, who in enumerate([*self._owners, "end"]) if who is not None]
        starts = [0, *(slot + 1 for slot in ends)]
        return tuple(Strip(a, b - a) for a, b in zip(starts, ends) if b > a)

    def take(self, num_slots):
        for first in range(len(self._owners) - num_slots + 1):
            if self._owners[first : first + num_slots].count(None) == num_slots:
                self._owners[first : first + num_slots] = [first] * num_slots
                return first
        return None

    def give_back(self, first):
        if first not in range(len(self._owners)) or self._owners[first] != first:
            raise ValueError(f"{first} is the beginning of no strip")
        self._owners = [None if who == first else who for who in self._owners]


""",
    ),
    Mutant(
        "gaps_anew",
        REST,
        """                rest = Strip(first + num_slots, length - num_slots)
                self._gaps = [*self._gaps[:index], *([rest] if rest[1] else []), *self._gaps[index + 1 :]]
""",
    ),
    Mutant(
        "slot_by_slot",
        MERGE,
        """        freed = {slot for start, length in self._gaps for slot in range(start, start + length)}
        freed.update(range(first, first + self._held.pop(first)))
        self._gaps = []
        for slot in sorted(freed):
            if slot - 1 in freed:
                start, length = self._gaps.pop()
                self._gaps.append(Strip(start, length + 1))
            else:
                self._gaps.append(Strip(slot, 1))
""",
    ),
    Mutant(
        "longest_gap_by_looking_at_every_slot",
        """    longest = end = 0
    for first, length in sorted([*strips, Strip(num_slots, 0)]):
        longest = max(longest, first - end)
        end = first + length
""",
        """    memory = ["."] * num_slots
    for first, length in strips:
        memory[first : first + length] = "x" * length
    longest = max(len(gap) for gap in "".join(memory).split("x"))
""",
    ),
    Mutant(
        "waste_with_an_allocator",
        "    head_waits = bool(waiting) and waiting[0] > longest\n",
        """    memory = ContiguousAllocator(num_slots)
    for slot in range(num_slots):
        memory.take(1)
    held_slots = {slot for first, length in strips for slot in range(first, first + length)}
    for slot in range(num_slots):
        if slot not in held_slots:
            memory.give_back(slot)
    head_waits = bool(waiting) and memory.take(waiting[0]) is None
""",
    ),
)

TO_CATCH = "merges_in_one_direction"

EQUIVALENT = {
    "for first, length in sorted([*strips, Strip(num_slots, 0)]):  →  "
    "for first, length in sorted([*strips, Strip(num_slots, 1)]):": "its length is never used",
}


def examples(subject: Any) -> None:
    """The tests that one would write first."""
    memory = subject.ContiguousAllocator(16)
    assert [memory.take(4), memory.take(3), memory.take(9)] == [0, 4, 7]
    assert memory.num_free_slots == 0
    assert memory.take(1) is None
    memory.give_back(4)
    assert memory.num_free_slots == 3
    assert memory.gaps() == [(4, 3)]
    assert memory.take(4) is None
    memory.give_back(0)
    memory.give_back(7)
    assert memory.num_free_slots == 16
    for wrong in (0, 16):
        try:
            memory.give_back(wrong)
            raise AssertionError("no error")
        except ValueError:
            pass

    strips = {subject.Strip(0, 10): subject.Progress(3, 5), subject.Strip(12, 4): subject.Progress(4, 4)}
    assert subject.waste(16, strips, []) == (7, 2, 5, 0, 2)
    assert subject.waste(16, strips, [2]) == (7, 2, 5, 0, 2)
    assert subject.waste(16, strips, [3]) == (7, 2, 5, 2, 0)
    apart = {subject.Strip(2, 10): subject.Progress(3, 5)}
    assert subject.waste(16, apart, [5]) == (3, 2, 5, 6, 0)
