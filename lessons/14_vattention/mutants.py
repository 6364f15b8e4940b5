"""Wrong solutions of lesson 14, and right ones written otherwise."""

from pathlib import Path
from typing import Any

from lessons.mutant import Mutant

REFERENCE = Path(__file__).with_name("reference.py").read_text(encoding="utf-8")
CACHE = REFERENCE[REFERENCE.index("    def __init__(\n        self, machine") :]
CEIL = "return -(-num_tokens * token_bytes // page_bytes)"
RANGE = "self._range_bytes = pages_needed(max_tokens, token_bytes, machine.page_bytes) * machine.page_bytes"
ROW = "row = (2 * layer + part) * self._max_requests + slot"
REFUSE = """        if 2 * self._num_layers * (end - first) > len(self._free_pages):
            return False
"""
COMMIT = """                for address in range(start + first * size, start + end * size, size):
                    page = self._free_pages.pop()
                    self._machine.map(address, page)
                    self._mapped[slot][address] = page
"""
LOOPS = REFERENCE[REFERENCE.index(REFUSE) + len(REFUSE) : REFERENCE.index(COMMIT)]
KEEP_MOST = "self._num_tokens[slot] = max(num_tokens, self._num_tokens[slot])"
FORGET = "        del self._num_tokens[slot]\n"
ADMIT = "        self._num_tokens[slot], self._mapped[slot] = 0, {}\n"

MUTANTS = (
    Mutant(
        "a_page_for_each_token",
        CEIL,
        "return num_tokens * -(-token_bytes // page_bytes)",
        caught_by="P1",
        tells="every token begins a new page.",
    ),
    Mutant(
        "rounds_up_by_nine_tenths",
        CEIL,
        "return int(num_tokens * token_bytes / page_bytes + 0.9)",
        caught_by="P1",
        tells="it rounds up by adding 0.9, which is right as long as pages are small.",
        sly=True,
    ),
    Mutant(
        "tokens_in_a_page",
        CEIL,
        "return -(-num_tokens // max(1, page_bytes // token_bytes))",
        caught_by="P1",
        tells="no token may lie in two pages.",
        sly=True,
    ),
    Mutant(
        "ranges_end_with_their_last_token",
        RANGE,
        "self._range_bytes = max_tokens * token_bytes",
        caught_by="P2",
        tells="a range begins where the one before it ends, be it in the middle of a page.",
        sly=True,
    ),
    Mutant(
        "one_range_for_keys_and_values",
        ROW,
        "row = layer * self._max_requests + slot",
        caught_by="P2",
        tells="the keys of a layer and its values have the same addresses.",
    ),
    Mutant(
        "slots_of_one_layer_overlap",
        ROW,
        "row = 2 * layer + part + slot",
        caught_by="P2",
        tells="the keys of one request lie where another one has its values.",
        sly=True,
    ),
    Mutant(
        "one_page_ahead",
        "end = pages_needed(num_tokens, self._token_bytes, size)",
        "end = pages_needed(min(num_tokens + 1, self._max_tokens), self._token_bytes, size)",
        caught_by="P3",
        tells="it maps the page of the next token, too, and does not say so.",
        sly=True,
    ),
    Mutant(
        "keys_alone_are_counted",
        "return mapped - 2 * self._num_layers",
        "return mapped - self._num_layers",
        caught_by="P3",
        tells="the bytes of values are taken for waste.",
    ),
    Mutant(
        "maps_before_it_refuses",
        REFUSE + LOOPS + COMMIT,
        LOOPS
        + COMMIT.replace(
            "                    page = self._free_pages.pop()\n",
            "                    if not self._free_pages:\n"
            "                        return False\n"
            "                    page = self._free_pages.pop()\n",
        ),
        caught_by="P4",
        tells="when it refuses, the pages that it had mapped by then stay where they are.",
        sly=True,
    ),
    Mutant(
        "counts_one_range",
        "if 2 * self._num_layers * (end - first) > len(self._free_pages):",
        "if end - first > len(self._free_pages):",
        caught_by="P4",
        tells="it compares what is free with what a single range needs.",
    ),
    Mutant(
        "keeps_one_in_reserve",
        "if 2 * self._num_layers * (end - first) > len(self._free_pages):",
        "if 2 * self._num_layers * (end - first) > max(0, len(self._free_pages) - 1):",
        caught_by="P4",
        tells="the last free page is never mapped.",
        sly=True,
    ),
    Mutant(
        "remembers_the_one_before",
        FORGET,
        "",
        caught_by="P3",
        tells="tokens of requests that are done are still counted.",
        sly=True,
    ),
    Mutant(
        "pages_by_slot",
        CACHE,
        CACHE.replace(FORGET, "").replace(
            ADMIT, "        self._num_tokens.setdefault(slot, 0)\n        self._mapped[slot] = {}\n"
        ),
        caught_by="P5",
        tells="a request that gets the slot of another is believed to have its tokens.",
    ),
    Mutant(
        "the_last_page_stays",
        "for address, page in self._mapped.pop(slot).items():",
        "for address, page in list(self._mapped.pop(slot).items())[:2]:",
        caught_by="P5",
        tells="some pages of a long request never come back.",
        sly=True,
    ),
    Mutant(
        "slots_go_round",
        "        self._free_slots.append(slot)\n",
        "        self._free_slots = self._free_slots or [slot]\n",
        caught_by="P5",
        tells="after some requests there are fewer slots than before.",
        sly=True,
    ),
    Mutant(
        "runs_into_the_next_range",
        "if not 0 <= num_tokens <= self._max_tokens:",
        "if num_tokens < 0 or pages_needed(num_tokens, self._token_bytes, 1) > self._range_bytes:",
        caught_by="P5",
        tells="a request may have more tokens than the longest, as long as its last page has room.",
        sly=True,
    ),
    Mutant(
        "shrinks",
        KEEP_MOST,
        """for layer in range(self._num_layers):
            for part in (KEYS, VALUES):
                start = self.address(slot, layer, part)
                for address in range(start + end * size, start + first * size, size):
                    self._machine.unmap(address)
                    self._free_pages.append(self._mapped[slot].pop(address))
        self._num_tokens[slot] = num_tokens""",
        caught_by="P6",
        tells="it takes pages away from a request that needs fewer for once.",
        sly=True,
    ),
    Mutant(
        "all_anew",
        COMMIT,
        """                for index in range(end):
                    address = start + index * size
                    if address in self._mapped[slot]:
                        self._machine.unmap(address)
                        self._free_pages.insert(0, self._mapped[slot][address])
                    page = self._free_pages.pop()
                    self._machine.map(address, page)
                    self._mapped[slot][address] = page
""",
        caught_by="P7",
        tells="whenever a request grows, all of its addresses get other pages.",
        sly=True,
    ),
    Mutant(
        "counts_in_a_byte",
        KEEP_MOST,
        "self._num_tokens[slot] = max(num_tokens, self._num_tokens[slot]) & 255",
        caught_by="P3",
        tells="it keeps the number of tokens in a byte.",
        sly=True,
    ),
)

VARIANTS = (
    Mutant(
        "a_reservation_for_each_range",
        CACHE[: CACHE.index("    @property")],
        """    def __init__(self, machine, num_layers, token_bytes, max_tokens, max_requests):
        self._machine = machine
        self._num_layers, self._token_bytes, self._max_tokens = num_layers, token_bytes, max_tokens
        self._starts = {
            (slot, layer, part): machine.reserve(max_tokens * token_bytes)
            for slot in range(max_requests)
            for layer in range(num_layers)
            for part in (VALUES, KEYS)
        }
        self.address = lambda slot, layer, part: self._starts[slot, layer, part]
        self._free_pages = list(range(machine.num_pages))
        self._free_slots = list(range(max_requests))
        self._num_tokens, self._mapped = {}, {}

""",
    ),
    Mutant(
        "lowest_page_first",
        COMMIT,
        """                for address in reversed(range(start + first * size, start + end * size, size)):
                    page = min(self._free_pages)
                    self._free_pages.remove(page)
                    self._machine.map(address, page)
                    self._mapped[slot][address] = page
""",
    ),
    Mutant(
        "the_page_table_is_all_it_keeps",
        CACHE,
        """    def __init__(self, machine, num_layers, token_bytes, max_tokens, max_requests):
        self.machine, self.shape = machine, (num_layers, token_bytes, max_tokens, max_requests)
        self.size = machine.page_bytes
        self.stride = pages_needed(max_tokens, token_bytes, self.size)
        self.base = machine.reserve(2 * num_layers * max_requests * self.stride * self.size)
        self.pages = {}  # (slot, row, index) → page
        self.lengths = [None] * max_requests

    @property
    def num_free_pages(self):
        return self.machine.num_pages - len(self.pages)

    @property
    def wasted_bytes(self):
        tokens = sum(length or 0 for length in self.lengths)
        return len(self.pages) * self.size - 2 * self.shape[0] * tokens * self.shape[1]

    def address(self, slot, layer, part):
        return self.base + ((slot * 2 + part) * self.shape[0] + layer) * self.stride * self.size

    def admit(self):
        if None not in self.lengths:
            return None
        slot = self.lengths.index(None)
        self.lengths[slot] = 0
        return slot

    def _check(self, slot):
        if slot not in range(len(self.lengths)) or self.lengths[slot] is None:
            raise ValueError(slot)

    def grow(self, slot, num_tokens):
        self._check(slot)
        if num_tokens not in range(self.shape[2] + 1):
            raise ValueError(num_tokens)
        rows = [(layer, part) for layer in range(self.shape[0]) for part in (VALUES, KEYS)]
        count = pages_needed(num_tokens, self.shape[1], self.size)
        wanted = [(slot, row, i) for row in rows for i in range(count) if (slot, row, i) not in self.pages]
        if len(wanted) > self.num_free_pages:
            return False
        free = set(range(self.machine.num_pages)) - set(self.pages.values())
        for slot, row, index in wanted:
            self.pages[slot, row, index] = page = free.pop()
            self.machine.map(self.address(slot, *row) + index * self.size, page)
        self.lengths[slot] = max(self.lengths[slot], num_tokens)
        return True

    def free(self, slot):
        self._check(slot)
        for key in [key for key in self.pages if key[0] == slot]:
            self.machine.unmap(self.address(slot, *key[1]) + key[2] * self.size)
            del self.pages[key]
        self.lengths[slot] = None
""",
    ),
    Mutant(
        "divmod",
        CEIL,
        "whole, rest = divmod(num_tokens * token_bytes, page_bytes)\n    return whole + (rest > 0)",
    ),
)

TO_CATCH = "all_anew"

PRODUCT = "it is a product: whether so many tokens of so many bytes, or the other way round"
EQUIVALENT = {
    "first = pages_needed(self._num_tokens[slot], self._token_bytes, size)  →  "
    "first = pages_needed(self._token_bytes, self._num_tokens[slot], size)": PRODUCT,
    "end = pages_needed(num_tokens, self._token_bytes, size)  →  "
    "end = pages_needed(self._token_bytes, num_tokens, size)": PRODUCT,
    "self._range_bytes = pages_needed(max_tokens, token_bytes, machine.page_bytes) * machine.page_bytes  →  "
    "self._range_bytes = pages_needed(token_bytes, max_tokens, machine.page_bytes) * machine.page_bytes": (
        PRODUCT
    ),
    "self._first_address = machine.reserve(2 * num_layers * max_requests * self._range_bytes)  →  "
    "self._first_address = machine.reserve(3 * num_layers * max_requests * self._range_bytes)": (
        "more addresses than are needed cost nothing"
    ),
}


def examples(subject: Any) -> None:
    """The tests that one would write first."""
    assert subject.pages_needed(4, 4, 8) == 2
    assert subject.pages_needed(0, 4, 8) == 0
    machine = subject.Machine(12, 8)
    kv = subject.VirtualKV(machine, 1, 4, 6, 2)
    assert kv.num_free_pages == 12
    one, other = kv.admit(), kv.admit()
    assert {one, other} == {0, 1}
    assert kv.admit() is None
    assert len({kv.address(one, 0, part) for part in (subject.KEYS, subject.VALUES)}) == 2
    assert kv.grow(one, 1)
    assert kv.num_free_pages == 10
    assert kv.wasted_bytes == 8
    assert len(set(machine.page_table.values())) == 2
    kv.free(one)
    assert kv.num_free_pages == 12
    assert not machine.page_table
    one = kv.admit()
    assert kv.grow(one, 6)
    assert kv.num_free_pages == 6
    assert kv.wasted_bytes == 0
    for wrong in (-1, 20):
        try:
            kv.grow(one, wrong)
            raise AssertionError("no error")
        except ValueError:
            pass
    tight = subject.VirtualKV(subject.Machine(3, 8), 1, 4, 6, 1)
    slot = tight.admit()
    assert not tight.grow(slot, 4)
