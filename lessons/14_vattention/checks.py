"""What must always hold of a KV cache in virtual memory.

The machine is the check's own, with a page table and with memory: it sees every call, it refuses what no
machine could do, and reading where no page is mapped is an error, as it would be. What each request has is
written down here. So the cache's own books are never believed.
"""

from collections.abc import Iterator
from numbers import Integral
from random import Random
from typing import Any, NamedTuple

import numpy as np
import subject
from hypothesis import strategies as st

from lessons.story import ACCEPTED, AFTER_REFUSAL, CRASH, EMPTY, REFUSED, Story, cell, counted, judged, row

GAP = 3
"""Pages of addresses between two reserved ranges: no solution may rely on their being side by side."""
MOST_ROWS = 6
MOST_PAGES = 999
"""Of a machine whose page table is drawn."""
PARTS = (("keys", subject.KEYS), ("values", subject.VALUES))

WHO = st.integers(0, 5)
OPERATIONS = st.lists(
    st.tuples(st.just("admit"), st.just(0), st.just(0))
    | st.tuples(st.just("grow"), WHO, st.integers(0, 12))
    | st.tuples(st.just("free"), WHO, st.just(0)),
    max_size=12,
)


def caches(pages: st.SearchStrategy[int], token_bytes: Any = (1, 3, 4, 6, 8, 12, 20)) -> Any:
    """A machine, the shape of a cache, and what happens to it. Requests are there from the start."""
    parts = {
        "page_bytes": st.sampled_from((8, 16)),
        "token_bytes": st.sampled_from(token_bytes),
        "num_layers": st.integers(1, 3),
        "max_tokens": st.integers(1, 9),
        "max_requests": st.integers(1, 4),
        "num_pages": pages,
    }
    start = st.integers(0, 3).map(lambda count: [("admit", 0, 0)] * count)
    parts["operations"] = st.tuples(start, OPERATIONS).map(lambda pair: [*pair[0], *pair[1]])
    return st.fixed_dictionaries(parts)


ROOMY = caches(st.integers(100, 400))
TIGHT = caches(st.integers(1, 40))
ANY = caches(st.integers(1, 60) | st.integers(100, 300))
FLOATS = caches(st.integers(20, 300), (4, 8, 12, 20))
SIZES = st.tuples(st.integers(0, 40), st.integers(1, 40), st.sampled_from((4, 8, 16, 64)))


def large_cache(dice: Random) -> Any:
    """Three hundred requests, as many as sixty-four at a time, in pages of the usual size."""
    operations = [["admit", 0, 0] for _ in range(40)]
    for _ in range(300):
        operations += [["admit", 0, 0]] * dice.choice((0, 1, 1))
        operations += [["grow", dice.randrange(64), dice.randrange(300)]] * dice.choice((1, 1, 2))
        operations += [["free", dice.randrange(64), 0]] * dice.choice((0, 0, 1))
    return {
        "page_bytes": 4096,
        "token_bytes": 384,
        "num_layers": 2,
        "max_tokens": 299,
        "max_requests": 64,
        "num_pages": 2100,
        "operations": operations,
    }


def large_sizes(dice: Random) -> Any:
    """A token of Llama-7B and a page of a GPU, and a remainder of one byte."""
    return [dice.randrange(2000, 4097), 8192 + dice.randrange(2), 2 * 1024**2]


# ── the machine ───────────────────────────────────────────────────────────────────────────────────────


class Machine:
    """Page table and memory. What has no page cannot be read or written."""

    def __init__(self, num_pages: int, page_bytes: int, story: Story) -> None:
        self.num_pages, self.page_bytes = num_pages, page_bytes
        self.is_built = False
        self.num_maps = self.num_unmaps = 0
        self.table: dict[int, int] = {}  # number of the page of addresses → page of memory
        self.ranges: list[range] = []  # the same numbers
        self._story = story
        self._memory: dict[int, bytearray] = {}
        self._next = 5

    def reserve(self, num_bytes: int) -> int:
        self._story.expect(not self.is_built, "all addresses to be reserved in __init__", "a call of reserve")
        is_size = _is_count(num_bytes) and num_bytes >= 1
        self._story.expect(is_size, "bytes to reserve, at least 1", f"reserve({num_bytes!r})")
        self.ranges.append(range(self._next, self._next + -(-num_bytes // self.page_bytes)))
        self._next = self.ranges[-1].stop + GAP
        return self.ranges[-1].start * self.page_bytes

    def map(self, address: int, page: int) -> None:
        number = self._number(address, "map")
        is_page = _is_count(page) and 0 <= page < self.num_pages
        self._story.expect(is_page, f"a page from 0 to {self.num_pages - 1} to be mapped", page)
        self._story.expect(number not in self.table, f"an address that has no page, not {address}", "map")
        self.num_maps += 1
        self.table[number] = page

    def unmap(self, address: int) -> None:
        number = self._number(address, "unmap")
        self._story.expect(number in self.table, f"an address that has a page, not {address}", "unmap")
        self.num_unmaps += 1
        del self.table[number]

    def write(self, address: int, data: bytes) -> None:
        for place, piece in self._pieces(address, len(data)):
            memory, offset = place
            memory[offset : offset + len(piece)] = data[piece.start : piece.stop]

    def read(self, address: int, num_bytes: int) -> bytes:
        pieces = self._pieces(address, num_bytes)
        return b"".join(memory[offset : offset + len(piece)] for (memory, offset), piece in pieces)

    def _number(self, address: int, call: str) -> int:
        is_start = _is_count(address) and address % self.page_bytes == 0
        self._story.expect(is_start, f"the address of a page: a multiple of {self.page_bytes}", address)
        number = int(address) // self.page_bytes
        is_reserved = any(number in numbers for numbers in self.ranges)
        self._story.expect(is_reserved, "a reserved address", f"{call} at {address}")
        return number

    def _pieces(self, address: int, num_bytes: int) -> Iterator[tuple[tuple[bytearray, int], range]]:
        """What the hardware does with addresses: memory, offset in it, and which of the bytes lie there."""
        done = 0
        while done < num_bytes:
            number, offset = divmod(address + done, self.page_bytes)
            page = self.table.get(number)
            what = f"a page behind address {address + done}"
            self._story.expect(page is not None, what, "none is mapped: on a machine, a fault")
            count = min(self.page_bytes - offset, num_bytes - done)
            assert page is not None
            fresh = bytearray(b"\xff" * self.page_bytes)  # as float32: NaN
            yield (self._memory.setdefault(page, fresh), offset), range(done, done + count)
            done += count


def _is_count(number: Any) -> bool:
    return isinstance(number, Integral) and not isinstance(number, bool)


# ── a run ─────────────────────────────────────────────────────────────────────────────────────────────


class Held(NamedTuple):
    """An admitted request, in the check's own books."""

    slot: int
    num_tokens: int


class Moment(NamedTuple):
    """The cache after an operation."""

    kv: Any
    machine: Machine
    name: str
    who: int
    """The request of the operation; -1 if it was not admitted."""
    is_done: bool
    """False: refused."""
    before: dict[int, Held]
    after: dict[int, Held]
    missing: int
    """Pages that the operation needs."""
    free: int
    """Pages that were free before it."""
    maps: int
    """Calls of `map` in it."""
    unmaps: int


def regions(case: Any) -> list[tuple[int, str, int]]:
    return [(layer, name, part) for layer in range(case["num_layers"]) for name, part in PARTS]


def pages_of(case: Any, num_tokens: int) -> int:
    """Of one range."""
    return -(-num_tokens * case["token_bytes"] // case["page_bytes"])


def pages_held(case: Any, held: dict[int, Held]) -> int:
    return sum(pages_of(case, request.num_tokens) for request in held.values()) * len(regions(case))


def expected_numbers(case: Any, kv: Any, held: dict[int, Held], story: Story) -> dict[int, tuple[int, str]]:
    """The pages of addresses in which a token lies, and whose: by the addresses that the cache says."""
    found = {}
    for who, request in held.items():
        for layer, name, part in regions(case):
            first = address_of(kv, request.slot, layer, part, story) // case["page_bytes"]
            for number in range(first, first + pages_of(case, request.num_tokens)):
                found[number] = (who, f"r{who}'s {name} of layer {layer}")
    return found


def address_of(kv: Any, slot: int, layer: int, part: int, story: Story) -> int:
    address = kv.address(slot, layer, part)
    story.expect(_is_count(address), "an address, as an int", address)
    return int(address)


def build(case: Any, story: Story) -> tuple[Any, Machine]:
    sizes = [case[name] for name in ("num_layers", "token_bytes", "max_tokens", "max_requests")]
    machine = Machine(case["num_pages"], case["page_bytes"], story)
    story.step(
        f"a machine with {counted(case['num_pages'], 'page')} of {case['page_bytes']} bytes; "
        f"{counted(sizes[3], 'slot')} for requests of at most {counted(sizes[2], 'token')}; "
        f"{counted(sizes[0], 'layer')}, {counted(sizes[1], 'byte')} a token"
    )
    kv = subject.VirtualKV(machine, *sizes)
    machine.is_built = True
    story.see({"mapped": len(machine.table)})
    story.expect(not machine.table, "no page to be mapped before a token comes", f"{len(machine.table)}")
    return kv, machine


def run(
    case: Any, story: Story, built: tuple[Any, Machine] | None = None, *, refusals: bool = False
) -> Iterator[Moment]:
    """Requests come, grow and go; a moment after each operation.

    Args:
        built: the cache and its machine; made here if left out.
        refusals: also do what must be refused.
    """
    kv, machine = built or build(case, story)
    held: dict[int, Held] = {}
    coming = 0
    for name, number, tokens in case["operations"]:
        before, free = dict(held), case["num_pages"] - pages_held(case, held)
        maps, unmaps, missing, is_done, who = machine.num_maps, machine.num_unmaps, 0, True, -1
        if name == "admit":
            if len(held) == case["max_requests"] and not refusals:
                continue
            story.step(f"r{coming} comes")
            slot = kv.admit()
            is_done = slot is not None
            if is_done:
                expect_slot(slot, case, held, story)
                held[coming] = Held(int(slot), 0)
                who = coming
            coming += 1
        elif held:
            who = sorted(held)[number % len(held)]
            slot, now = held[who]
            if name == "free":
                story.step(f"r{who} is done")
                kv.free(slot)
                del held[who]
            else:
                tokens = tokens % (case["max_tokens"] + 1)
                missing = max(0, pages_of(case, tokens) - pages_of(case, now)) * len(regions(case))
                if missing > free and not refusals:
                    continue
                story.step(f"r{who} has {counted(now, 'token')}, and grows to {tokens}", empty=tokens == 0)
                answer = kv.grow(slot, tokens)
                is_bool = isinstance(answer, bool | np.bool_)
                story.expect(is_bool, "True or False from grow", answer)
                is_done = bool(answer)
                if is_done:
                    held[who] = Held(slot, max(now, tokens))
        else:
            continue
        answer = "refused" if not is_done else "done"
        story.see({"answer": answer, "mapped": len(machine.table)}, board(case, kv, machine, held))
        maps, unmaps = machine.num_maps - maps, machine.num_unmaps - unmaps
        yield Moment(kv, machine, name, who, is_done, before, dict(held), missing, free, maps, unmaps)


def expect_slot(slot: Any, case: Any, held: dict[int, Held], story: Story) -> None:
    is_slot = _is_count(slot) and 0 <= slot < case["max_requests"]
    story.expect(is_slot, f"a slot from 0 to {case['max_requests'] - 1}, or None", slot)
    taken = {request.slot: who for who, request in held.items()}
    story.expect(slot not in taken, "a slot that no request has", f"{slot}, which r{taken.get(slot)} has")


def board(case: Any, kv: Any, machine: Machine, held: dict[int, Held]) -> list[Any]:
    """The page table of some ranges, and the memory."""
    rows, owners = [], dict[int, int]()
    if case["num_pages"] > MOST_PAGES:
        return []
    for who, request in held.items():
        for layer, name, part in regions(case):
            address = kv.address(request.slot, layer, part)
            if not _is_count(address):
                return []
            first = int(address) // case["page_bytes"]
            numbers = range(first, first + pages_of(case, case["max_tokens"]))
            pages = [machine.table.get(number) for number in numbers]
            owners |= {page: who for page in pages if page is not None}
            cells = [cell(page, who) if page is not None else cell("", mark="free") for page in pages]
            if len(rows) < MOST_ROWS:
                rows.append(row(f"r{who}, layer {layer}, {name}", cells))
    if case["num_pages"] <= 64:
        pages = range(case["num_pages"])
        cells = [cell(f"r{owners[p]}", owners[p]) if p in owners else cell("", mark="free") for p in pages]
        rows.append(row("pages 0 …", cells))
    return rows


# ── the properties ────────────────────────────────────────────────────────────────────────────────────


@judged(
    "P1",
    "n tokens side by side take n · token_bytes / page_bytes pages, rounded up once, in the end.",
    SIZES,
    hints=(
        "Ten tokens of 6 bytes, in pages of 16. Must each token begin a page? How many bytes are they?",
        "Multiply first, then divide, and round up. Adding 0.9 does not: one byte too many is a page more.",
        "`-(-num_tokens * token_bytes // page_bytes)`",
    ),
    large=large_sizes,
)
def pages_are_rounded_up_once(case: Any, story: Story) -> None:
    most, token_bytes, page_bytes = case
    counts = range(most + 1) if most < 99 else (most, most - 1, *range(0, most, 256))
    for num_tokens in counts:
        story.step(f"{counted(num_tokens, 'token')} of {counted(token_bytes, 'byte')}, pages of {page_bytes}")
        pages = subject.pages_needed(num_tokens, token_bytes, page_bytes)
        story.see({"pages": pages})
        right = -(-num_tokens * token_bytes // page_bytes)
        story.expect(
            pages == right, f"{counted(right, 'page')} for {counted(num_tokens * token_bytes, 'byte')}", pages
        )


@judged(
    "P2",
    "Each range is reserved for the longest request, shares no page with others, and never moves.",
    ROOMY,
    hints=(
        "How many ranges are there? Not one for each slot: keys and values of each layer have their own.",
        "A range of 20 bytes, in pages of 16: where may the next one begin, if no page is in both?",
        "Ranges of `pages_needed(max_tokens, …) * page_bytes` bytes, one behind the other; range number "
        "`(2 * layer + part) * max_requests + slot`.",
    ),
    large=large_cache,
)
def addresses_are_contiguous_and_stay(case: Any, story: Story) -> None:
    known: dict[tuple[int, int, str], int] = {}
    length = pages_of(case, case["max_tokens"])
    for moment in run(case, story):
        known = {key: address for key, address in known.items() if key[0] in moment.after}
        names = {first: f"r{who}'s {name} of layer {layer}" for (who, layer, name), first in known.items()}
        for who, request in moment.after.items():
            if who in moment.before and who != moment.who and len(moment.after) > 8:
                continue  # of many requests, look at the one that something happens to
            for layer, name, part in regions(case):
                address = address_of(moment.kv, request.slot, layer, part, story)
                what = f"r{who}'s {name} of layer {layer}"
                old = known.get((who, layer, name), address)
                story.expect(address == old, f"{what} to stay at address {old}", address)
                is_start = address % case["page_bytes"] == 0
                story.expect(is_start, f"{what} to begin with a page of {case['page_bytes']} bytes", address)
                first = address // case["page_bytes"]
                is_reserved = any(
                    first in ranges and first + length <= ranges.stop for ranges in moment.machine.ranges
                )
                ends = f"{address} … {address + length * case['page_bytes'] - 1}"
                story.expect(is_reserved, f"{what} to have {length} pages of reserved addresses", ends)
                if (who, layer, name) not in known:
                    for other in range(first - length + 1, first + length):
                        found = names.get(other * case["page_bytes"])
                        story.expect(found is None, f"{what} to have pages of its own", f"{found} has some")
                    names[address] = what
                known[who, layer, name] = address


@judged(
    "P3",
    "Mapped are exactly the pages in which a token lies, each to a page of memory of its own.",
    ROOMY,
    hints=(
        "4 tokens of 6 bytes, 2 layers, pages of 16: how many pages are that in all?",
        "Of each range the first `pages_needed(num_tokens, …)` pages are mapped. Which are mapped already?",
        "`for address in range(start + first * size, start + end * size, size): "
        "self._machine.map(address, self._free_pages.pop())`, for each layer, for keys and for values.",
    ),
    when={
        EMPTY: "No token needs no page: to grow to 0 tokens is done at once, and changes nothing.",
    },
    large=large_cache,
)
def mapped_is_what_is_needed(case: Any, story: Story) -> None:
    for count, moment in enumerate(run(case, story)):
        if not moment.is_done:
            return  # refused without need: that is the next property's
        if case["num_pages"] > MOST_PAGES and count % 16:
            continue  # all pages of many requests take long to look at
        table = moment.machine.table
        needed = expected_numbers(case, moment.kv, moment.after, story)
        for number, (_, what) in needed.items():
            where = f"a page behind address {number * case['page_bytes']}, of {what}"
            story.expect(number in table, where, "none is mapped")
        more = sorted(set(table) - set(needed))
        words = f"address {more[0] * case['page_bytes']}" if more else ""
        story.expect(not more, counted(len(needed), "mapped page"), f"{len(table)}; no token lies at {words}")
        owners: dict[int, int] = {}
        for number, page in table.items():
            other = owners.setdefault(page, number)
            got = f"page {page} is behind {other * case['page_bytes']} and {number * case['page_bytes']}"
            story.expect(other == number, "no page to be behind two addresses", got)
        free = case["num_pages"] - len(needed)
        story.expect(moment.kv.num_free_pages == free, counted(free, "free page"), moment.kv.num_free_pages)
        tokens = sum(request.num_tokens for request in moment.after.values())
        waste = len(needed) * case["page_bytes"] - tokens * case["token_bytes"] * len(regions(case))
        story.expect(moment.kv.wasted_bytes == waste, counted(waste, "wasted byte"), moment.kv.wasted_bytes)


@judged(
    "P4",
    "Refused is only what too few free pages or slots are there for, and a refusal changes nothing.",
    TIGHT,
    hints=(
        "3 pages are missing, in keys and values together, and 2 are free. What is mapped afterwards?",
        "Count what is missing in all ranges, keys and values, all layers, before the first page is mapped.",
        "`if 2 * self._num_layers * (end - first) > len(self._free_pages): return False`, before the loops.",
    ),
    when={
        REFUSED: "There was room. What is mapped already is not missing; and of pages and slots all that "
        "are free may be taken, to the last.",
        ACCEPTED: "Pages or slots were short. Do you count what is missing in keys *and* values, in *all* "
        "layers?",
        AFTER_REFUSAL: "The refusal was right; what it left behind is not. Was a page mapped, or a number "
        "of tokens noted, before your code knew that all pages are there?",
        CRASH: "More pages were taken than are free. How many do the loops take in all, in all layers, for "
        "keys and for values? That is what is missing.",
    },
    large=large_cache,
)
def a_refusal_changes_nothing(case: Any, story: Story) -> None:
    kv: Any = None
    held: dict[int, Held] = {}
    for moment in run(case, story, refusals=True):
        kv, held = moment.kv, moment.after
        if moment.name == "admit":
            slots = case["max_requests"] - len(moment.before)
            got = "None" if not moment.is_done else f"slot {held[moment.who].slot}"
            words = "a slot" if slots else "None: no slot is free"
            story.expect(moment.is_done == (slots > 0), words, got, REFUSED if slots else ACCEPTED)
        elif moment.name == "grow":
            can = moment.missing <= moment.free
            words = f"{can} (pages missing: {moment.missing}, pages free: {moment.free})"
            story.expect(moment.is_done == can, words, moment.is_done, REFUSED if can else ACCEPTED)
        if not moment.is_done:
            calls = f"{counted(moment.maps, 'call')} of map, {moment.unmaps} of unmap"
            words = "nothing to be changed by a refusal"
            story.expect(not moment.maps and not moment.unmaps, words, calls, AFTER_REFUSAL)
            free = case["num_pages"] - pages_held(case, held)
            words = f"{counted(free, 'free page')}, as before"
            story.expect(kv.num_free_pages == free, words, kv.num_free_pages, AFTER_REFUSAL)
            tokens = sum(request.num_tokens for request in held.values())
            in_tokens = tokens * case["token_bytes"] * len(regions(case))
            waste = pages_held(case, held) * case["page_bytes"] - in_tokens
            words = f"{counted(waste, 'wasted byte')}, as before"
            story.expect(kv.wasted_bytes == waste, words, kv.wasted_bytes, AFTER_REFUSAL)
    for who, request in sorted(held.items()):  # after a refusal everything still works
        story.step(f"in the end r{who} grows by one page, if enough are free, and is done")
        free = case["num_pages"] - pages_held(case, held)
        tokens = min(case["max_tokens"], request.num_tokens + case["page_bytes"])
        missing = (pages_of(case, tokens) - pages_of(case, request.num_tokens)) * len(regions(case))
        answer = kv.grow(request.slot, tokens)
        story.expect(
            bool(answer) == (missing <= free),
            f"{missing <= free} (pages missing: {missing}, pages free: {free})",
            answer,
            REFUSED if missing <= free else ACCEPTED,
        )
        kv.free(request.slot)
        del held[who]
        free = case["num_pages"] - pages_held(case, held)
        story.expect(kv.num_free_pages == free, counted(free, "free page"), kv.num_free_pages)


@judged(
    "P5",
    "What is freed is taken again; what is not held can neither grow nor be freed.",
    ANY,
    hints=(
        "A request is done, and another one gets its slot. What does the cache still know of the first?",
        "`free` unmaps every page, puts it back on the free list, and forgets the request. A slot that no "
        "request has, or more tokens than there are addresses for: ValueError, before anything is changed.",
        "`for address, page in self._mapped.pop(slot).items(): self._machine.unmap(address); "
        "self._free_pages.append(page)`; and `del self._num_tokens[slot]`, and the slot is free.",
    ),
    when={
        ACCEPTED: "Nothing was raised. Which was it: a slot that no request has (any more), a slot that "
        "there is not, more tokens than the longest request may have, or fewer than 0?",
        AFTER_REFUSAL: "`ValueError` came, but pages or bytes had changed by then: look at the slot and "
        "at the number before anything else.",
        CRASH: "Only `ValueError` is a refusal: a dictionary without the slot raises `KeyError`, a list "
        "beyond its end `IndexError`, and -1 is its last entry.",
    },
)
def freed_is_taken_again(case: Any, story: Story) -> None:
    kv, machine = build(case, story)
    held: dict[int, Held] = {}
    for moment in run(case, story, (kv, machine)):
        held = moment.after
        if not moment.is_done:
            return  # judged above
        if moment.name == "free":
            expect_refused(case, kv, machine, moment.before[moment.who].slot, "freed", story)
    for who, request in held.items():
        story.step(f"r{who} wants one token more than the longest request may have, and one less than none")
        same = (kv.num_free_pages, kv.wasted_bytes)
        for count in (case["max_tokens"] + 1, -1):
            is_refused, words = raises(kv.grow, request.slot, count), counted(count, "token")
            story.expect(is_refused, f"ValueError for {words}", "nothing was raised", ACCEPTED)
            now = (kv.num_free_pages, kv.wasted_bytes)
            words = "free pages {}, wasted bytes {}, as before".format(*same)
            story.expect(now == same, words, now, AFTER_REFUSAL)
    expect_refused(case, kv, machine, case["max_requests"], "there", story)
    for who, request in sorted(held.items()):
        story.step(f"r{who} is done")
        kv.free(request.slot)
    story.see({"mapped": len(machine.table)})
    story.expect(not machine.table, "no page to be mapped", counted(len(machine.table), "page"))
    for again in (1, 2):
        story.step(f"all slots are taken, and as many pages as there are ({again})")
        slots: list[Any] = [kv.admit() for _ in range(case["max_requests"])]
        story.expect(None not in slots and len(set(slots)) == len(slots), "every slot, once", slots)
        story.expect(kv.admit() is None, "None when all slots are taken", "a slot")
        free = case["num_pages"]
        for slot in slots:
            tokens = case["max_tokens"]
            while pages_of(case, tokens) * len(regions(case)) > free:
                tokens -= 1
            answer = kv.grow(slot, tokens)
            story.expect(answer, f"True for {counted(tokens, 'token')} (pages free: {free})", answer)
            free -= pages_of(case, tokens) * len(regions(case))
            story.expect(kv.num_free_pages == free, counted(free, "free page"), kv.num_free_pages)
        for slot in slots:
            kv.free(slot)


def expect_refused(case: Any, kv: Any, machine: Machine, slot: int, what: str, story: Story) -> None:
    """This slot no request has: neither can it grow nor be freed, and the attempt changes nothing."""
    free, waste, mapped = kv.num_free_pages, kv.wasted_bytes, dict(machine.table)
    words = f"slot {slot}, which no request has" if what == "freed" else f"slot {slot}, which there is not"
    story.step(f"free {words}; let it grow")
    for call, arguments in ((kv.free, (slot,)), (kv.grow, (slot, 1)), (kv.grow, (slot, 0))):
        is_refused = raises(call, *arguments)
        story.expect(is_refused, f"ValueError for {words}", "nothing was raised", ACCEPTED)
    words = f"{counted(free, 'free page')}, as before"
    story.expect(kv.num_free_pages == free, words, kv.num_free_pages, AFTER_REFUSAL)
    words = f"{counted(waste, 'wasted byte')}, as before"
    story.expect(kv.wasted_bytes == waste, words, kv.wasted_bytes, AFTER_REFUSAL)
    words = "the same pages to be mapped as before"
    story.expect(machine.table == mapped, words, "others are", AFTER_REFUSAL)


def raises(call: Any, *arguments: Any) -> bool:
    try:
        call(*arguments)
    except ValueError:
        return True
    return False


@judged(
    "P6",
    "A page is mapped once, when a token needs it, and unmapped once, when its request is done.",
    ROOMY,
    hints=(
        "A call of the machine takes time. Which calls does your `grow` make that it need not make?",
        "Growing within a page needs no call. Growing to fewer tokens than before needs none either.",
        "Begin behind the last page that is mapped: pages `range(first, end)`. And never unmap in `grow`.",
    ),
)
def no_call_too_many(case: Any, story: Story) -> None:
    for moment in run(case, story):
        if not moment.is_done:
            return
        maps = moment.missing if moment.name == "grow" else 0
        story.expect(moment.maps == maps, f"{counted(maps, 'call')} of map", moment.maps)
        unmaps = 0
        if moment.name == "free":
            unmaps = pages_held(case, moment.before) - pages_held(case, moment.after)
        story.expect(moment.unmaps == unmaps, f"{counted(unmaps, 'call')} of unmap", moment.unmaps)


@judged(
    "P7",
    "A plain contiguous attention, which knows nothing of pages, gives each request its right answer.",
    FLOATS,
    examples=100,
    hints=(
        "Which bytes are not what was written? Those of the first page, of a later one, or of another layer?",
        "What was written once must stay: growing moves nothing. And no two addresses have the same page.",
        "Pages are mapped behind those that are mapped, `range(first, end)`; in `free`, all of them go back.",
    ),
    large=lambda dice: large_cache(dice) | {"operations": large_cache(dice)["operations"][:240]},
)
def unmodified_attention_agrees(case: Any, story: Story) -> None:
    random = np.random.default_rng(len(case["operations"]))
    width, size = case["token_bytes"] // 4, case["token_bytes"]
    written: dict[tuple[int, int, str], Any] = {}
    for moment in run(case, story):
        if not moment.is_done:
            return
        kv, machine, who = moment.kv, moment.machine, moment.who
        written = {key: rows for key, rows in written.items() if key[0] in moment.after}
        if moment.name == "admit":
            written |= {(who, *key[:2]): np.zeros((0, width), np.float32) for key in regions(case)}
        elif moment.name == "grow":  # the new tokens are computed, and written one by one
            slot, count = moment.after[who]
            for layer, name, part in regions(case):
                old = written[who, layer, name]
                new = random.standard_normal((count - len(old), width)).astype(np.float32)
                address = address_of(kv, slot, layer, part, story)
                for place, token in enumerate(new, len(old)):
                    machine.write(address + place * size, token.tobytes())
                written[who, layer, name] = np.concatenate([old, new])
        some = moment.after.items() if len(moment.after) < 8 else [(who, moment.after.get(who))]
        for asked, request in some:
            if request is not None and request.num_tokens:
                expect_attention(case, moment, asked, request, written, story)


def expect_attention(
    case: Any, moment: Moment, who: int, request: Held, written: dict[tuple[int, int, str], Any], story: Story
) -> None:
    width, count = case["token_bytes"] // 4, request.num_tokens
    query = np.linspace(-1, 1, width)
    for layer in range(case["num_layers"]):
        arrays, right = [], []
        for name, part in PARTS:
            address = address_of(moment.kv, request.slot, layer, part, story)
            data = moment.machine.read(address, count * case["token_bytes"])
            arrays.append(np.frombuffer(data, np.float32).reshape(count, width))
            right.append(written[who, layer, name])
            wrong = np.flatnonzero((arrays[-1] != right[-1]).any(axis=1))
            token = int(wrong[0]) if len(wrong) else 0
            what = f"{name} of token {token} of r{who} in layer {layer}: {shown(right[-1][token])}"
            story.expect(not len(wrong), what, shown(arrays[-1][token]))
        answer, wanted = attention(query, *arrays), attention(query, *right)
        story.expect(np.array_equal(answer, wanted), f"attention {shown(wanted)}", shown(answer))


def attention(query: Any, keys: Any, values: Any) -> Any:
    """Of one query, over keys that lie side by side. It knows of no table and of no page."""
    scores = keys.astype(np.float64) @ query
    weights = np.exp(scores - scores.max())
    return weights @ values / weights.sum()


def shown(numbers: Any) -> str:
    return "[" + ", ".join(f"{number:.3g}" for number in numbers[:4]) + ("…]" if len(numbers) > 4 else "]")
