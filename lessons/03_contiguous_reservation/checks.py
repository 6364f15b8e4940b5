"""What must always hold of a memory that gives out strips, and of the count of what they waste.

Requests of random lengths come and go; which strip is whose is written down here, by what `take` answered.
Free runs are found by looking at the slots one by one. So the allocator's own books are never believed.
"""

from collections.abc import Iterator, Mapping
from numbers import Integral, Real
from random import Random
from types import MappingProxyType
from typing import Any, NamedTuple

import subject
from hypothesis import strategies as st

from lessons.story import ACCEPTED, AFTER_REFUSAL, CRASH, EMPTY, REFUSED, Story, cell, judged, row


def free_runs(num_slots: int, strips: Mapping[int, tuple[int, int]]) -> list[tuple[int, int]]:
    """`(first, length)` of every longest run of slots that are in no strip, found slot by slot."""
    held = {slot for first, length in strips.values() for slot in range(first, first + length)}
    runs: list[tuple[int, int]] = []
    for slot in range(num_slots):
        if slot in held:
            continue
        if runs and sum(runs[-1]) == slot:
            runs[-1] = (runs[-1][0], runs[-1][1] + 1)
        else:
            runs.append((slot, 1))
    return runs


def first_fit(num_slots: int, strips: Mapping[int, tuple[int, int]], length: int) -> int | None:
    """Where a strip of this length belongs; None if there is no room."""
    return next((first for first, room in free_runs(num_slots, strips) if room >= length), None)


def memory(
    lengths: list[int], free: int, leaving: list[int], later: list[Any], fill: str = ""
) -> dict[str, Any]:
    """Strips lie side by side, and some leave, so that gaps lie between others; then anything may happen.

    `fill`: in the end strips come that are just as long as the gaps that should be there, the "longest" or
    the "shortest" first.
    """
    num_slots = max(1, sum(lengths) + free)
    takes = [("take", who, length) for who, length in enumerate(lengths)]
    operations = [*takes, *(("give", who, 0) for who in leaving), *later]
    strips: dict[int, tuple[int, int]] = {}
    for name, who, length in operations:
        first = first_fit(num_slots, strips, length)
        if name == "give":
            strips.pop(who, None)
        elif who not in strips and first is not None:
            strips[who] = (first, length)
    gaps = sorted((room for _, room in free_runs(num_slots, strips)), reverse=fill == "longest")
    operations += [("take", 6 + number, room) for number, room in enumerate(gaps if fill else [])]
    return {"num_slots": num_slots, "operations": operations}


WHO = st.integers(0, 5)
TAKE = st.tuples(st.just("take"), WHO, st.integers(1, 6))
GIVE = st.tuples(st.just("give"), WHO, st.just(0))
PARTS = (
    st.lists(st.integers(1, 4), max_size=6),
    st.integers(0, 5),
    st.lists(WHO, max_size=4, unique=True),
    st.lists(TAKE | GIVE, max_size=6),
)
MEMORIES = st.builds(memory, *PARTS)
FILLED = st.builds(memory, *PARTS, st.sampled_from(("longest", "shortest")))
WRONG_RETURNS = st.tuples(MEMORIES, st.lists(st.integers(-3, 20), min_size=1, max_size=4))
MOMENTS = st.fixed_dictionaries(
    {
        # free slots before the strip, its length, and at most: filled, final
        "strips": st.lists(
            st.tuples(st.integers(0, 4), st.integers(1, 6), st.integers(0, 6), st.integers(0, 6)), max_size=4
        ),
        "free_behind": st.integers(0, 4),
        "order": st.permutations(range(4)),
        "waiting": st.lists(st.integers(1, 9), max_size=3),
    }
)


def large_memory(dice: Random) -> Any:
    """Three hundred requests, some sixty at a time, in more slots than a byte can count."""
    operations = []
    for _ in range(300):
        name = dice.choice(("take", "take", "give"))
        operations.append([name, dice.randrange(64), dice.randrange(1, 33) if name == "take" else 0])
    return {"num_slots": 700, "operations": operations}


def large_moment(dice: Random) -> Any:
    """Sixty-four strips of up to forty slots."""
    strips = [
        [dice.choice((0, 0, 1, 5)), dice.randrange(1, 41), dice.randrange(41), dice.randrange(41)]
        for _ in range(64)
    ]
    order = list(range(64))
    dice.shuffle(order)
    return {"strips": strips, "free_behind": 3, "order": order, "waiting": [dice.choice((3, 5, 6)), 1]}


def in_words(gaps: Any) -> str:
    """Gaps, for people."""
    return ", ".join(f"{length} at {first}" for first, length in gaps) or "none"


def place(first: int | None, length: int) -> str:
    """Where a strip lies, for people."""
    if first is None:
        return "no room"
    return f"slot {first}" if length == 1 else f"slots {first} to {first + length - 1}"


def slots(count: int) -> str:
    return f"{count} slot" + ("s" if count != 1 else "")


def memory_row(num_slots: int, strips: Mapping[int, tuple[int, int]]) -> Any:
    """The memory: which requests have which slot, by what `take` answered; more than one is wrong."""
    cells = []
    for slot in range(num_slots):
        owners = [who for who, (first, length) in strips.items() if first <= slot < first + length]
        mark = "wrong" if len(owners) > 1 else "" if owners else "free"
        cells.append(cell(" ".join(f"r{who}" for who in owners), owners[0] if owners else None, mark))
    return row("slots 0 …", cells)


class Moment(NamedTuple):
    """The memory after an operation."""

    allocator: Any
    before: dict[int, tuple[int, int]]
    """Request → its strip as `(first, length)`, before the operation."""
    after: dict[int, tuple[int, int]]
    asked: int | None
    """Slots asked for; None if a strip was given back."""
    answer: int | None
    """The first slot; None if there was said to be no room."""


def taken(allocator: Any, count: int, story: Story) -> int | None:
    """What `take` answers: a slot, or None."""
    first = allocator.take(count)
    is_slot = isinstance(first, Integral) and not isinstance(first, bool)
    story.expect(first is None or is_slot, "take to return a slot (an int), or None", repr(first))
    return None if first is None else int(first)


def books(allocator: Any, story: Story) -> tuple[int, list[tuple[int, int]]]:
    """What the allocator says of itself: `num_free_slots`, and `gaps()` as pairs."""
    free, gaps = allocator.num_free_slots, allocator.gaps()
    is_list = isinstance(gaps, list | tuple)
    pairs = is_list and all(isinstance(gap, tuple) and len(gap) == 2 for gap in gaps)
    story.expect(pairs, "gaps to return a list of Strips", gaps)
    return free, [(gap[0], gap[1]) for gap in gaps]


def compare_books(
    allocator: Any, runs: list[tuple[int, int]], story: Story, when: str = "", symptom: str = ""
) -> None:
    """The allocator must know these gaps, and no others."""
    free, gaps = books(allocator, story)
    count = sum(length for _, length in runs)
    story.expect(free == count, f"num_free_slots to be {count}{when}", free, symptom)
    story.expect(gaps == runs, f"these gaps{when}: {in_words(runs)}", in_words(gaps), symptom)


def come_and_go(case: Any, story: Story, *, with_books: bool = True) -> Iterator[Moment]:
    """Requests take strips and give them back. `with_books`: show the allocator's own."""
    num_slots = case["num_slots"]
    allocator = subject.ContiguousAllocator(num_slots)
    strips: dict[int, tuple[int, int]] = {}
    for name, who, length in case["operations"]:
        before = dict(strips)
        asked = answer = None
        if name == "take" and who not in strips:
            asked = length
            story.step(f"r{who} takes {slots(asked)}")
            answer = taken(allocator, asked, story)
            if answer is not None:
                strips[who] = (answer, asked)
        elif name == "give" and who in strips:
            first, length = strips.pop(who)
            story.step(f"r{who} gives {slots(length)} back, from slot {first}")
            allocator.give_back(first)
        else:
            continue
        facts: dict[str, Any] = {f"r{number}": place(*strip) for number, strip in sorted(strips.items())}
        if asked is not None and answer is None:
            facts[f"r{who}"] = place(None, asked)
        if with_books:
            free, gaps = books(allocator, story)
            facts |= {"free": free, "gaps": in_words(gaps)}
        story.see(facts, [memory_row(num_slots, strips)])
        yield Moment(allocator, before, dict(strips), asked, answer)


# ── the allocator ─────────────────────────────────────────────────────────────────────────────────────


@judged(
    "P1",
    "A strip lies inside of the memory, and no slot of it belongs to another request.",
    MEMORIES,
    hints=(
        "Which slots may `take` choose from? What must change in your books when it has chosen?",
        "Keep a list of gaps, by address. A strip is cut off the beginning of one, which becomes shorter.",
        "`(first, length)` becomes `(first + num_slots, length - num_slots)`, or vanishes if that is empty.",
    ),
)
def no_two_strips_overlap(case: Any, story: Story) -> None:
    num_slots = case["num_slots"]
    for moment in come_and_go(case, story, with_books=False):
        if moment.answer is None or moment.asked is None:
            continue
        strip = range(moment.answer, moment.answer + moment.asked)
        story.expect(
            strip.start >= 0 and strip.stop <= num_slots,
            f"{slots(moment.asked)} between 0 and {num_slots - 1}",
            place(moment.answer, moment.asked),
        )
        for who, (first, length) in moment.before.items():
            both = sorted(set(strip) & set(range(first, first + length)))
            story.expect(not both, "slots that no request holds", f"{both}, held by r{who} already")


@judged(
    "P2",
    "Free and held slots are all slots, and gaps that touch are one gap.",
    MEMORIES,
    hints=(
        "A strip comes back between two gaps. How many gaps are there afterwards?",
        "Put the strip among the gaps, by address; then merge each gap that begins where the last one ends.",
        "In order: `if last.first + last.num_slots == gap.first`, the two are one; add up lengths.",
    ),
    when={
        CRASH: "Is there a gap before the strip that comes back, and one behind it? If not, there is no "
        "neighbour to merge with; and perhaps there was no gap at all.",
    },
    large=large_memory,
)
def gaps_are_merged(case: Any, story: Story) -> None:
    for moment in come_and_go(case, story):
        if moment.asked is not None and moment.answer is None:
            return  # what a refusal leaves behind is the next property's
        compare_books(moment.allocator, free_runs(case["num_slots"], moment.after), story)


@judged(
    "P3",
    "A strip is refused exactly when no gap is long enough, and a refusal changes nothing.",
    FILLED,
    hints=(
        "Six slots are free, in gaps of 2 and 4. For which requests is there room? And if all are one gap?",
        "Compare every gap's length with what is asked for, and change nothing before one is found.",
        "For each gap: `if gap.num_slots >= num_slots`, cut and return; `return None` after the loop.",
    ),
    when={
        REFUSED: "There is a gap that is long enough, if only just: is it `>` or `>=`? And are two gaps "
        "that touch one gap in your books?",
        ACCEPTED: "No gap is as long as that, and a strip came. Is it the sum of the gaps that you compare?",
        AFTER_REFUSAL: "None was right; what it left behind is not. What has your code changed before it "
        "knew that no gap is long enough?",
    },
)
def refused_only_if_no_gap_is_long_enough(case: Any, story: Story) -> None:
    for moment in come_and_go(case, story):
        if moment.asked is None:
            continue
        runs = free_runs(case["num_slots"], moment.before)
        longest = max((length for _, length in runs), default=0)
        if moment.answer is not None:
            wanted = f"None: the longest gap is {longest}"
            story.expect(moment.asked <= longest, wanted, moment.answer, ACCEPTED)
            continue
        granted = f"a strip of {moment.asked}: there is a gap of {longest}"
        story.expect(moment.asked > longest, granted, "None", REFUSED)
        compare_books(moment.allocator, runs, story, ", as before the refusal", AFTER_REFUSAL)


@judged(
    "P4",
    "A strip lies at the beginning of the first gap that is long enough: first fit.",
    FILLED,
    hints=(
        "There are gaps of 5, 3 and 8, in this order, and a request needs 3. Which of them is it?",
        "Not the tightest, not the largest, not the one after the last: the lowest address that has room.",
        "Keep gaps sorted by address (what comes back goes to its place), and stop at the first that fits.",
    ),
    examples=300,
)
def lowest_place_that_fits(case: Any, story: Story) -> None:
    for moment in come_and_go(case, story):
        if moment.asked is None:
            continue
        right = first_fit(case["num_slots"], moment.before, moment.asked)
        story.expect(moment.answer == right, f"slot {right} for a strip of {moment.asked}", moment.answer)


@judged(
    "P5",
    "Only a strip that is held can be given back; any other attempt raises and changes nothing.",
    WRONG_RETURNS,
    hints=(
        "A slot in the middle of a strip, or one that is free already: whose strip would come back?",
        "You must know the length of every strip anyway: a dict from first slot to length says what is held.",
        "First `if first not in self._held: raise ValueError(...)`, then `length = self._held.pop(first)`.",
    ),
    when={
        ACCEPTED: "Nothing was raised. Where does that slot lie: in the middle of a strip, in a gap, or "
        "where a strip has been given back already?",
        AFTER_REFUSAL: "`ValueError` came, but something had changed by then. Look whether the strip is "
        "held before anything is put among the gaps.",
        CRASH: "Only `ValueError` is a refusal: a dictionary raises `KeyError`, and a loop that finds "
        "nothing may go on with what its variable held last.",
    },
)
def what_is_not_held_cannot_come_back(case: Any, story: Story) -> None:
    case, wrong = case
    num_slots = case["num_slots"]
    allocator, strips = subject.ContiguousAllocator(num_slots), {}
    for moment in come_and_go(case, story):
        allocator, strips = moment.allocator, moment.after
    runs = free_runs(num_slots, strips)
    for slot in wrong:
        if slot in [first for first, _ in strips.values()]:
            continue
        inside = [who for who, (first, length) in strips.items() if first < slot < first + length]
        what = f"inside of the strip of r{inside[0]}" if inside else "where no strip begins"
        story.step(f"give back slot {slot}, {what}")
        with story.allowing(Exception) as answer:
            allocator.give_back(slot)
        raised = answer.error
        free, gaps = books(allocator, story)
        facts = {"refused": isinstance(raised, ValueError), "free": free, "gaps": in_words(gaps)}
        story.see(facts, [memory_row(num_slots, strips)])
        name = type(raised).__name__ if raised else "nothing"
        got = f"{name} was raised by giving back slot {slot}, {what}"
        story.expect(isinstance(raised, ValueError), "ValueError", got, CRASH if raised else ACCEPTED)
        compare_books(allocator, runs, story, ", as before")
    count = sum(length for _, length in runs)
    for who, (first, length) in strips.items():
        story.step(f"r{who} gives {slots(length)} back, from slot {first}")
        allocator.give_back(first)
        count += length
        free = allocator.num_free_slots
        story.see({"free": free})
        story.expect(free == count, f"{count} free", free)
    story.step(f"take all {slots(num_slots)}")
    first = taken(allocator, num_slots, story)
    story.expect(first == 0, "slot 0: no strip is held", first)


# ── the count ─────────────────────────────────────────────────────────────────────────────────────────


KINDS = ("used", "reserved", "internal", "external", "free")
SHOWN = {"reserved": ("later", "new"), "internal": ("never", "waste"), "external": ("no use", "wrong")}


class Scene(NamedTuple):
    """One moment of a memory, and the kind of each of its slots."""

    num_slots: int
    strips: list[tuple[int, int, int, int]]
    """`(first, length, filled, final)`, in the order in which they are told."""
    kinds: list[str]
    owners: list[int | None]


def scene(case: Any, story: Story) -> Scene:
    """Build a moment, say what it is, and sort its slots one by one."""
    placed, end = [], 0
    for before, length, filled, final in case["strips"]:
        final = min(final, length)
        placed.append((end + before, length, min(filled, final), final))
        end += before + length
    num_slots = max(1, end + case["free_behind"])
    kinds, owners = ["free"] * num_slots, [None] * num_slots
    strips = [placed[which] for which in case["order"] if which < len(placed)]
    for who, (first, length, filled, final) in enumerate(strips):
        for offset in range(length):
            kind = "used" if offset < filled else "reserved" if offset < final else "internal"
            kinds[first + offset], owners[first + offset] = kind, who
        story.step(f"r{who} holds {slots(length)} from slot {first}: {filled} tokens now, {final} in the end")
    waiting = case["waiting"]
    starts = range(num_slots - waiting[0] + 1) if waiting else ()
    fitting = [at for at in starts if {*kinds[at : at + waiting[0]]} == {"free"}]
    if waiting and not fitting:
        kinds = ["external" if kind == "free" else kind for kind in kinds]
    queue = f"slots waited for: {', then '.join(map(str, waiting))}" if waiting else "no request waits"
    story.step(f"sort the memory of {slots(num_slots)}; {queue}", empty=not strips)
    return Scene(num_slots, strips, kinds, owners)


def counted(now: Scene, case: Any, kinds: tuple[str, ...], story: Story) -> None:
    """Compare the judged count with ours, kind by kind."""
    strips = {
        subject.Strip(first, length): subject.Progress(filled, final)
        for first, length, filled, final in now.strips
    }
    answer = subject.waste(now.num_slots, MappingProxyType(strips), tuple(case["waiting"]))
    story.expect(isinstance(answer, subject.Waste), "a Waste", answer)
    numbers = {kind: getattr(answer, kind) for kind in KINDS}
    are_numbers = all(isinstance(number, Real) for number in numbers.values())
    story.expect(are_numbers, "five numbers", answer)
    cells = []
    for kind, who in zip(now.kinds, now.owners, strict=True):
        text, mark = SHOWN.get(kind, ("", "free") if who is None else (f"r{who}", ""))
        cells.append(cell(text, who, mark))
    story.see({kind: numbers[kind] for kind in kinds}, [row("slots 0 …", cells)])
    for kind in kinds:
        right = now.kinds.count(kind)
        story.expect(numbers[kind] == right, f"{kind} to be {right}", numbers[kind])


@judged(
    "P6",
    "Every held slot is used, reserved or internal, as the tokens of its request say.",
    MOMENTS,
    hints=(
        "A strip of 8, with 3 tokens now and 5 in the end: how many of its slots are of which kind?",
        "used: the tokens that are there. reserved: those still to come. internal: the rest of the strip.",
        "For each strip: `filled`, `final - filled`, and `num_slots - final`. Sum each over all strips.",
    ),
    when={
        EMPTY: "No strip is held: then no slot is used, reserved or internal.",
    },
)
def held_slots_by_the_future(case: Any, story: Story) -> None:
    counted(scene(case, story), case, KINDS[:3], story)


@judged(
    "P7",
    "Free slots are external exactly when the head of the queue fits into no gap; the kinds add up.",
    MOMENTS,
    hints=(
        "Seven slots are free. When are they of no use to a request that needs four?",
        "What counts is the longest gap, not the sum of them; and only the first in the queue.",
        "Walk over the strips by address, remembering where the last one ended; and the gap at the end.",
    ),
    when={
        EMPTY: "No strip is held: the whole memory is one gap. The head of the queue fits into it, or all "
        "of it is external.",
        CRASH: "The queue may be empty: then it has no head. And there may be no strip before a gap, or "
        "none behind it.",
    },
    large=large_moment,
)
def free_slots_by_the_queue(case: Any, story: Story) -> None:
    counted(scene(case, story), case, KINDS, story)
