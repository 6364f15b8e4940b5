"""What must always hold of two pools, and of a scheduler that preempts.

The check is the engine here. It has two memories with real tokens in them, carries out the moves of every
plan, and reads a sequence's tokens through its table. Blocks that no table maps are overwritten at once. Who
has to go, and what is moved, it counts by itself: the judged code's own books are never believed.
"""

from collections.abc import Iterator
from numbers import Integral
from random import Random
from typing import Any, NamedTuple
from zlib import crc32

import subject
from hypothesis import strategies as st

from lessons.story import (
    ACCEPTED,
    AFTER_REFUSAL,
    CRASH,
    EMPTY,
    ENDLESS,
    REFUSED,
    Story,
    cell,
    counted,
    given_as,
    judged,
    row,
)

NAMES = ("mia", "ali", "zoe", "ben", "eva", "kim", "dan", "ida")
"""Of requests, in order of arrival; that is not the order of the alphabet."""
VOCAB_SIZE = 97
POISON = 255
"""What a block holds that no table maps."""
MOST_DRAWN = 32
"""Of a large pool, so many blocks are drawn."""
Moves = list[tuple[int, int]]


def tell_machine(num_blocks: int, num_host_blocks: int, block_size: int, story: Story) -> None:
    story.step(
        f"a device with {counted(num_blocks, 'block')}, a host with {counted(num_host_blocks, 'block')}; "
        f"a block has room for {counted(block_size, 'token')}"
    )


class Store:
    """The data of both memories: a list of tokens for each block."""

    def __init__(self, num_blocks: int, num_host_blocks: int, block_size: int) -> None:
        self.block_size = block_size
        self.device = [[POISON] * block_size for _ in range(num_blocks)]
        self.host = [[POISON] * block_size for _ in range(num_host_blocks)]

    def carry_out(self, out: Moves, back: Moves, memory: Any) -> None:
        """First the moves to the host, then those back; then what no table maps is overwritten."""
        for source, target in out:
            self.host[target] = list(self.device[source])
        for source, target in back:
            self.device[target] = list(self.host[source])
        for blocks, tables in ((self.device, memory.tables), (self.host, memory.host_tables)):
            mapped = {block for table in tables.values() for block in table}
            for block in range(len(blocks)):
                if block not in mapped:
                    blocks[block] = [POISON] * self.block_size

    def write(self, table: list[int], start: int, tokens: list[int]) -> None:
        for place, token in enumerate(tokens, start):
            self.device[table[place // self.block_size]][place % self.block_size] = token

    def read(self, table: list[int], count: int) -> list[int]:
        """What attention sees of the first tokens of a sequence."""
        return [token for block in table for token in self.device[block]][:count]


def pairs(moves: Any, num_sources: int, num_targets: int, words: str, story: Story) -> Moves:
    """Moves, looked at: pairs of numbers of blocks that there are."""
    story.expect(isinstance(moves, list), f"{words} to be a list of pairs of blocks", moves)
    for move in moves:
        is_pair = isinstance(move, tuple | list) and len(move) == 2
        is_pair = is_pair and all(isinstance(b, Integral) and not isinstance(b, bool) for b in move)
        story.expect(is_pair, f"a pair of blocks for each move in {words}", move)
        is_there = 0 <= move[0] < num_sources and 0 <= move[1] < num_targets
        story.expect(is_there, f"{words} from blocks 0 … {num_sources - 1} to 0 … {num_targets - 1}", move)
    return [(int(source), int(target)) for source, target in moves]


def checked_tables(memory: Any, num_blocks: int, num_host_blocks: int, story: Story) -> None:
    """All tables map blocks that there are."""
    for words, tables, count in (
        ("tables", memory.tables, num_blocks),
        ("host_tables", memory.host_tables, num_host_blocks),
    ):
        for seq_id, table in tables.items():
            is_fine = isinstance(table, list) and all(0 <= block < count for block in table)
            story.expect(is_fine, f"a list of blocks 0 … {count - 1} in {words} for {seq_id}", table)


def pool_row(label: str, num_blocks: int, tables: Any, owners: dict[str, int], new: set[int]) -> Any:
    """A pool: whose block is which. `new`: blocks that data has just moved to."""
    of: dict[int, list[str]] = {}
    for seq_id, table in tables.items():
        for block in table:
            of.setdefault(block, []).append(seq_id)
    cells = []
    for block in range(min(num_blocks, MOST_DRAWN)):
        names = of.get(block, [])
        owner = owners.get(names[0]) if names else None
        cells.append(
            cell("+".join(names), owner, "new" if block in new else "") if names else cell("", mark="free")
        )
    return row(label, cells)


# ── the memory by itself ──────────────────────────────────────────────────────────────────────────────

OPERATION = st.tuples(
    st.sampled_from(("free", "grow", "fork", "fork", "out", "out", "in", "in", "in")),
    st.integers(0, 1),
    st.integers(0, 7),
)
MEMORIES = st.fixed_dictionaries(
    {
        "num_blocks": st.integers(1, 14),
        "num_host_blocks": st.integers(0, 10),
        "block_size": st.integers(1, 4),
        "operations": st.lists(OPERATION, min_size=8, max_size=24),
    }
)


def large_memory(dice: Random) -> Any:
    """Families of sequences with hundreds of blocks, in pools of more blocks than a byte can count."""
    kinds = ("grow", "grow", "grow", "fork", "fork", "out", "in", "free")
    weights = (5, 5, 5, 4, 4, 6, 6, 1)
    operations = [
        [dice.choices(kinds, weights)[0], dice.randrange(10), dice.randrange(300)] for _ in range(240)
    ]
    return {"num_blocks": 900, "num_host_blocks": 600, "block_size": 16, "operations": operations}


class Moment(NamedTuple):
    """The memory after an operation."""

    kind: str
    memory: Any
    desk: "Desk"
    moves: Moves | None
    """None if the operation was refused, or was no move."""
    moving: list[str]
    needed: int
    """Blocks that a move must find in the other pool."""
    num_distinct: int
    """Blocks that must be moved."""
    is_refused: bool
    must_be_refused: bool
    store: "Store"
    before: Any = None
    """The judged code's books before the operation."""


class Desk:
    """What is right, in the check's own books: tables whose blocks are only names."""

    def __init__(self, case: Any) -> None:
        self.block_size = case["block_size"]
        self.room = {"device": case["num_blocks"], "host": case["num_host_blocks"]}
        self.tokens: dict[str, list[int]] = {}
        self.tables: dict[str, dict[str, list[int]]] = {"device": {}, "host": {}}
        self.families: dict[int, list[str]] = {}
        self._next = 0

    def used(self, pool: str) -> int:
        return len({block for table in self.tables[pool].values() for block in table})

    def free(self, pool: str) -> int:
        return self.room[pool] - self.used(pool)

    def new_blocks(self, count: int) -> list[int]:
        self._next += count
        return list(range(self._next - count, self._next))

    def blocks_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self.block_size)

    def distinct(self, pool: str, moving: list[str]) -> int:
        return len({block for seq_id in moving for block in self.tables[pool][seq_id]})

    def move(self, source: str, target: str, moving: list[str]) -> None:
        new_of: dict[int, int] = {}
        for seq_id in moving:
            table = self.tables[source].pop(seq_id)
            for block in table:
                if block not in new_of:
                    new_of[block] = self.new_blocks(1)[0]
            self.tables[target][seq_id] = [new_of[block] for block in table]

    def grow(self, seq_id: str, num_tokens: int) -> None:
        table = self.tables["device"].setdefault(seq_id, [])
        table += self.new_blocks(max(0, self.blocks_for(num_tokens) - len(table)))

    def owners(self) -> dict[str, int]:
        return {seq_id: family for family, members in self.families.items() for seq_id in members}

    def new_name(self, family: int) -> str:
        """Such as "a2": the second sequence of the first family, counting for ever."""
        members = self.families.setdefault(family, [])
        numbers = [int(name[1:]) for name in members]
        return f"{chr(97 + family)}{max(numbers, default=0) + 1}"


def operations_played(case: Any, story: Story) -> Iterator[Moment]:
    """Sequences come, fork, grow, are moved there and back, and go."""
    tell_machine(case["num_blocks"], case["num_host_blocks"], case["block_size"], story)
    memory = subject.Memory(case["num_blocks"], case["num_host_blocks"], case["block_size"])
    desk = Desk(case)
    store = Store(case["num_blocks"], case["num_host_blocks"], case["block_size"])
    for kind, family, number in case["operations"]:
        before = books(memory)
        moment = played(kind, family, number, memory, desk, store, story)
        if moment is None:
            continue
        yield moment._replace(before=before)
        if moment.is_refused != moment.must_be_refused:
            return  # another property's
    story.step("free everything")
    for seq_id in list(desk.tokens):
        memory.free(seq_id)
    desk.tables = {"device": {}, "host": {}}
    see(memory, desk, [], [], story)
    yield Moment("end", memory, desk, None, [], 0, 0, False, False, store)


def played(
    kind: str, family: int, number: int, memory: Any, desk: Desk, store: Store, story: Story
) -> Moment | None:
    here = [name for name in desk.families.get(family, []) if name in desk.tables["device"]]
    away = [name for name in desk.families.get(family, []) if name in desk.tables["host"]]
    if kind != "free" and not here and not away:
        return started(family, number, memory, desk, store, story)
    if kind in ("grow", "fork"):
        if not here:
            return None
        act = grown if kind == "grow" else forked
        return act(here[number % len(here)], family, number, memory, desk, store, story)
    if kind == "free" and (here or away):
        name = (here + away)[number % len(here + away)]
        story.step(f"{name} is freed")
        memory.free(name)
        desk.families[family].remove(name)
        del desk.tokens[name]
        for tables in desk.tables.values():
            tables.pop(name, None)
        store.carry_out([], [], memory)
        see(memory, desk, [], [], story)
        return Moment("free", memory, desk, None, [], 0, 0, False, False, store)
    if kind == "out" and here:
        return moved_out(here, number, memory, desk, store, story)
    if kind == "in" and away:
        return moved_in(away, number, memory, desk, store, story)
    return None


def started(family: int, number: int, memory: Any, desk: Desk, store: Store, story: Story) -> Moment | None:
    name = desk.new_name(family)
    desk.families[family].append(name)
    desk.tokens[name] = []
    desk.tables["device"][name] = []
    return grown(name, family, number, memory, desk, store, story)


def grown(name: str, family: int, number: int, memory: Any, desk: Desk, store: Store, story: Story) -> Moment:
    """A sequence gets tokens, as many as there is room for."""
    have = len(desk.tokens[name])
    room = (len(desk.tables["device"][name]) + desk.free("device")) * desk.block_size
    total = min(room, have + 1 + number)
    story.step(f"{name} grows to {counted(total, 'token')}")
    did = memory.grow(name, total)
    story.expect(did, f"room for {counted(total, 'token')} of {name}", "none: is a block lost?")
    desk.grow(name, total)
    new = [(31 * family + 7 * place + len(name)) % VOCAB_SIZE for place in range(have, total)]
    desk.tokens[name] += new
    checked_tables(memory, desk.room["device"], desk.room["host"], story)
    story.expect(
        len(memory.tables[name]) * desk.block_size >= total,
        f"a table for {counted(total, 'token')}",
        memory.tables[name],
    )
    store.carry_out([], [], memory)
    store.write(memory.tables[name], have, new)
    see(memory, desk, [], [], story)
    return Moment("grow", memory, desk, None, [], 0, 0, False, False, store)


def forked(
    name: str, family: int, number: int, memory: Any, desk: Desk, store: Store, story: Story
) -> Moment | None:
    """One more sequence with the same tokens; first, the last block is filled up."""
    size, have = desk.block_size, len(desk.tokens[name])
    if len(desk.families[family]) >= 9:
        return None
    if have % size or not have:
        grown(name, family, size - have % size - 1, memory, desk, store, story)
    if len(desk.tokens[name]) % size:
        return None
    child = desk.new_name(family)
    story.step(f"{child} is forked from {name}")
    memory.fork(name, child)
    desk.families[family].append(child)
    desk.tokens[child] = list(desk.tokens[name])
    desk.tables["device"][child] = list(desk.tables["device"][name])
    see(memory, desk, [], [], story)
    return Moment("fork", memory, desk, None, [], 0, 0, False, False, store)


def moved_out(here: list[str], number: int, memory: Any, desk: Desk, store: Store, story: Story) -> Moment:
    """Most often a whole family; sometimes one of it, and now and then none."""
    moving = (
        []
        if number == 7
        else [here[number % len(here)]]
        if number % 3 == 0
        else here[:: -1 if number % 2 else 1]
    )
    story.step(f"swap out {' and '.join(moving) or 'no sequence'}", empty=not moving)
    needed = desk.distinct("device", moving)
    must_be_refused = needed > desk.free("host")
    given = memory.swap_out(given_as(number, list(moving)))
    moves: Moves | None = None
    if given is not None:
        moves = pairs(given, desk.room["device"], desk.room["host"], "swap_out", story)
    return settled("out", moves, moving, needed, needed, must_be_refused, memory, desk, store, story)


def moved_in(away: list[str], number: int, memory: Any, desk: Desk, store: Store, story: Story) -> Moment:
    moving = [away[number % len(away)]] if number % 3 == 0 else list(away)
    totals = {name: len(desk.tokens[name]) + 1 + (number % 5 if number > 3 else 0) for name in moving}
    words = " and ".join(f"{name}, with room for {counted(total, 'token')}" for name, total in totals.items())
    story.step(f"swap in {words}")
    distinct = desk.distinct("host", moving)
    growth = [desk.blocks_for(totals[name]) - len(desk.tables["host"][name]) for name in moving]
    needed = distinct + sum(max(0, count) for count in growth)
    must_be_refused = needed > desk.free("device")
    asked = dict(totals)
    given = memory.swap_in(asked)
    asked.clear()  # it was the caller's own
    moves: Moves | None = None
    if given is not None:
        moves = pairs(given, desk.room["host"], desk.room["device"], "swap_in", story)
        if not must_be_refused:
            for name in moving:
                table = memory.tables.get(name)
                is_long = isinstance(table, list) and len(table) * desk.block_size >= totals[name]
                story.expect(is_long, f"a table for {counted(totals[name], 'token')} of {name}", table)
    moment = settled("in", moves, moving, needed, distinct, must_be_refused, memory, desk, store, story)
    if moves is not None:
        for name in moving:
            desk.grow(name, totals[name])
    return moment


def settled(
    kind: str,
    moves: Moves | None,
    moving: list[str],
    needed: int,
    num_distinct: int,
    must_be_refused: bool,
    memory: Any,
    desk: Desk,
    store: Store,
    story: Story,
) -> Moment:
    """A move was asked for: carry it out."""
    checked_tables(memory, desk.room["device"], desk.room["host"], story)
    if moves is not None:
        source, target = ("device", "host") if kind == "out" else ("host", "device")
        desk.move(source, target, moving)
        store.carry_out(moves if kind == "out" else [], moves if kind == "in" else [], memory)
    out, back = (moves or [], []) if kind == "out" else ([], moves or [])
    see(memory, desk, out, back, story, "refused" if moves is None else counted(len(moves), "move"))
    return Moment(
        kind, memory, desk, moves, moving, needed, num_distinct, moves is None, must_be_refused, store
    )


def see(memory: Any, desk: Desk, out: Moves, back: Moves, story: Story, answer: str = "done") -> None:
    owners = desk.owners()
    story.see(
        {"answer": answer, "on the device": seen(memory.tables), "on the host": seen(memory.host_tables)},
        [
            pool_row("device", desk.room["device"], memory.tables, owners, {b for _, b in back}),
            pool_row("host", desk.room["host"], memory.host_tables, owners, {b for _, b in out}),
        ],
    )


def seen(tables: Any) -> str:
    return ", ".join(f"{name}: {len(table)}" for name, table in sorted(tables.items())) or "nothing"


@judged(
    "P1",
    "In both pools, a block is free if no table maps it, and not before.",
    MEMORIES,
    hints=(
        "Count the blocks of both pools before and after a move. In which of them is one missing, or double?",
        "A move takes blocks from one pool and frees those of the other. `free_blocks` takes one reference "
        "away: call it once for each table that has left.",
        "A new block comes with one reference. With n tables it must have n: `touch` it for each table, and "
        "give the first reference back at the end.",
    ),
    when={
        CRASH: "The sequences may come as an iterator, which can be walked only once: first of all, "
        "`moving = list(seq_ids)`. And in which of the two pools does the line that raised look for them?",
    },
    large=large_memory,
)
def both_pools_conserve(case: Any, story: Story) -> None:
    for moment in operations_played(case, story):
        if moment.is_refused or moment.must_be_refused:
            continue
        desk, memory = moment.desk, moment.memory
        for words, pool in (("device", memory.device), ("host", memory.host)):
            free = desk.free(words)
            story.expect(
                pool.num_free_blocks == free,
                f"{counted(free, 'free block')} on the {words}",
                pool.num_free_blocks,
            )


@judged(
    "P2",
    "What was moved is found again: every token, where its sequence's table says.",
    MEMORIES,
    hints=(
        "Compare the moves with the tables. Is there a block that a table maps and that nothing moved to?",
        "The new table has the order of the old one: its i-th block is where the i-th block went. A "
        "sequence is in `tables` or in `host_tables`, never in both.",
        "`new_of = dict(zip(old_blocks, new_blocks))`, the table `[new_of[block] for block in table]`, and "
        "the moves `list(new_of.items())`.",
    ),
    large=large_memory,
)
def every_token_is_found_again(case: Any, story: Story) -> None:
    for moment in operations_played(case, story):
        if moment.is_refused != moment.must_be_refused:
            return
        memory, desk = moment.memory, moment.desk
        for words, tables in (("tables", memory.tables), ("host_tables", memory.host_tables)):
            right = sorted(desk.tables["device" if words == "tables" else "host"])
            story.expect(
                sorted(tables) == right, f"{', '.join(right) or 'no sequence'} in {words}", sorted(tables)
            )
        for name in desk.tables["device"]:
            tokens = desk.tokens[name]
            found = moment.store.read(memory.tables[name], len(tokens))
            wrong = next((i for i, token in enumerate(tokens) if found[i : i + 1] != [token]), None)
            words = f"the tokens of {name} in blocks {memory.tables[name]}"
            story.expect(wrong is None, words, f"other data from position {wrong} on")


@judged(
    "P3",
    "A block that several of the sequences share is moved once, and they share it where it arrives.",
    MEMORIES,
    hints=(
        "Two sequences map four blocks in common. How many copies of them should there be after the move?",
        "Collect the blocks of all sequences first, each once; only then move. One dictionary from old "
        "block to new block serves all tables.",
        "`old_blocks = list(dict.fromkeys(block for seq_id in seq_ids for block in tables[seq_id]))`",
    ),
    large=large_memory,
)
def shared_blocks_are_moved_once(case: Any, story: Story) -> None:
    for moment in operations_played(case, story):
        if moment.moves is None or moment.must_be_refused:
            continue
        wanted = f"{counted(moment.num_distinct, 'move')}, one for each block"
        story.expect(len(moment.moves) == moment.num_distinct, wanted, moment.moves)
        for place, words in enumerate(("from", "to")):
            blocks = [move[place] for move in moment.moves]
            story.expect(
                len(set(blocks)) == len(blocks), f"each block to be moved {words} once", moment.moves
            )
        target = "host" if moment.kind == "out" else "device"
        tables = moment.memory.host_tables if moment.kind == "out" else moment.memory.tables
        lengths = {name: len(moment.desk.tables[target][name]) for name in moment.moving}
        for name in moment.moving:
            for other in moment.moving:
                mine, its = tables.get(name, [])[: lengths[name]], tables.get(other, [])[: lengths[other]]
                right = len(
                    set(moment.desk.tables[target][name][: lengths[name]])
                    & set(moment.desk.tables[target][other][: lengths[other]])
                )
                shared = len(set(mine) & set(its))
                story.expect(
                    shared == right, f"{name} and {other} to share {counted(right, 'block')}", shared
                )


@judged(
    "P4",
    "A move is refused only if blocks are short for all of it, and then nothing has changed.",
    MEMORIES,
    hints=(
        "How many blocks does the whole move need in the other pool? Count before you take the first one.",
        "`swap_in` needs a block for each block on the host, and those by which the tables must grow. Blocks "
        "that are shared count once.",
        "Compute `needed`, then `if needed > pool.num_free_blocks: return None`, before anything is changed.",
    ),
    when={
        EMPTY: "No sequence is to be moved: that fits always, and takes an empty list of moves. None says "
        "that blocks are short.",
        REFUSED: "There was room for all of it. Does a block that several of the sequences map count "
        "once? And what a table has already is not missing.",
        ACCEPTED: "Blocks are short, and moves came. Into which sum do the blocks go by which the tables "
        "grow in `swap_in`?",
        AFTER_REFUSAL: "None was right; what it left behind is not. Which block was taken, which table "
        "changed, before your code knew?",
    },
)
def all_or_nothing(case: Any, story: Story) -> None:
    for moment in operations_played(case, story):
        if moment.kind not in ("out", "in"):
            continue
        other = "host" if moment.kind == "out" else "device"
        if moment.must_be_refused:
            words = f"None: it takes {counted(moment.needed, 'block')}, fewer are free on the {other}"
            story.expect(moment.is_refused, words, moment.moves, ACCEPTED)
            after, wanted = books(moment.memory), "everything as it was before the refusal"
            story.expect(after == moment.before, wanted, after, AFTER_REFUSAL)
        else:
            words = f"moves: it takes {counted(moment.needed, 'block')} on the {other}, and so many are free"
            story.expect(not moment.is_refused, words, "None", REFUSED)


def books(memory: Any) -> Any:
    """What a refusal must not change, in any order of blocks that are free."""
    return [
        {name: list(table) for name, table in memory.tables.items()},
        {name: list(table) for name, table in memory.host_tables.items()},
        list(memory.device.ref_counts),
        list(memory.host.ref_counts),
        memory.device.num_free_blocks,
        memory.host.num_free_blocks,
    ]


# ── the scheduler ─────────────────────────────────────────────────────────────────────────────────────


def worlds() -> st.SearchStrategy[Any]:
    """Two pools, and requests that arrive over time.

    The device has room for the largest request, and for `extra` blocks more. Each request: steps after the
    one before it; tokens of its prompt, and of its answer; after how many steps its user gives up (0: never).
    """
    gap, leave = st.sampled_from((0, 0, 0, 1, 2)), st.sampled_from((0, 0, 0, 0, 2, 3, 5))
    request = st.tuples(gap, st.integers(1, 7), st.integers(1, 9), leave)
    return st.fixed_dictionaries(
        {
            "extra": st.integers(0, 4),
            "num_host_blocks": st.sampled_from((0, 1, 2, 3, 4, 6, 9)),
            "block_size": st.integers(1, 4),
            "requests": st.lists(request, min_size=1, max_size=len(NAMES)),
        }
    )


def large_world(dice: Random) -> Any:
    """A hundred and forty requests, in blocks of sixteen; about sixty of them fit at a time."""
    requests = [
        [dice.choice((0, 0, 1)), dice.randrange(1, 60), dice.randrange(1, 130), dice.choice((0,) * 9 + (7,))]
        for _ in range(140)
    ]
    return {"extra": 290, "num_host_blocks": 40, "block_size": 16, "requests": requests}


def name_of(index: int) -> str:
    return NAMES[index] if index < len(NAMES) else f"{NAMES[index % len(NAMES)]}{index}"


def next_token(computed: list[int]) -> int:
    """What the toy model says after these tokens: it depends on each of them, and on its place."""
    return crc32(bytes(computed)) % VOCAB_SIZE


class Live:
    """A request that waits or runs, in the check's own books."""

    def __init__(self, index: int, prompt: int, answer: int, leave: int) -> None:
        self.name, self.index, self.leave, self.to_come, self.age = name_of(index), index, leave, answer, 0
        self.tokens = [(31 * index + 7 * place + place**2) % VOCAB_SIZE for place in range(prompt)]
        self.prompt, self.length = prompt, prompt + answer
        self.computed = 0
        self.is_running = False
        self.blocks = self.host_blocks = 0


class Expected(NamedTuple):
    """What the rules say about a step."""

    preempted: list[str]
    swapped: list[str]
    """Those of them whose blocks move to the host."""
    chunks: list[tuple[str, int, int]]
    num_out: int
    num_in: int


class Step(NamedTuple):
    """A plan, and what it should be."""

    preempted: list[str]
    out: Moves
    back: Moves
    chunks: list[tuple[str, int, int]]
    right: Expected
    live: list[Live]


class Engine:
    """Adds each request when it arrives, and carries out every plan."""

    def __init__(self, case: Any, story: Story) -> None:
        self.block_size, self.num_host_blocks = case["block_size"], case["num_host_blocks"]
        largest = max(prompt + answer - 1 for _, prompt, answer, _ in case["requests"])
        self.num_blocks = -(-largest // self.block_size) + case["extra"]
        tell_machine(self.num_blocks, self.num_host_blocks, self.block_size, story)
        self.memory = subject.Memory(self.num_blocks, self.num_host_blocks, self.block_size)
        self.scheduler = subject.Scheduler(self.memory)
        self.store = Store(self.num_blocks, self.num_host_blocks, self.block_size)
        self.story = story
        self.coming, time = [], 0
        for index, (gap, *numbers) in enumerate(case["requests"]):
            time += gap
            self.coming.append((time, Live(index, *numbers)))
        self.live: list[Live] = []
        self.rows: dict[int, list[Any]] = {}
        # Each step but those before an arrival says at least one token; without it, a loop would be endless.
        self.most_steps = time + 2 * sum(prompt + answer for _, prompt, answer, _ in case["requests"]) + 2

    def run(self, *, is_strict: bool = False) -> Iterator[Step]:
        """Step by step, until all are done.

        Args:
            is_strict: go on with whatever is planned, and say so where a token is wrong. Otherwise end,
                quietly, where a plan is not what the rules say: that is another property's.
        """
        for number in range(self.most_steps):
            if not self.coming and not self.live:
                return
            self.come_and_go(number)
            given = self.scheduler.schedule()
            step = self.read(given)
            self.draw(step, number)
            yield step
            if not is_strict and not self.is_right(step):
                return
            checked_tables(self.memory, self.num_blocks, self.num_host_blocks, self.story)
            self.store.carry_out(step.out, step.back, self.memory)
            self.compute(step, is_strict)
            named = self.scheduler.update(given)
            chunks = [name for name, *_ in step.chunks]
            is_list = isinstance(named, list) and sorted(map(repr, named)) == sorted(map(repr, chunks))
            self.story.expect(is_list, f"update to name {', '.join(chunks) or 'no request'}", named)
            for request in [request for request in self.live if not request.to_come]:
                self.scheduler.finish(request.name)
                self.live.remove(request)

    def come_and_go(self, number: int) -> None:
        leaving = [request for request in self.live if request.leave and request.age == request.leave]
        arriving = [request for due, request in self.coming if due <= number]
        words = [f"{request.name} gives up" for request in leaving]
        words += [f"{r.name} arrives (prompt: {r.prompt}, at most {r.length})" for r in arriving]
        self.story.step(f"step {number}" + (": " if words else "") + ", ".join(words))
        for request in leaving:
            self.scheduler.finish(request.name)
        for request in arriving:
            self.scheduler.add(request.name, request.prompt, request.to_come)
        self.coming = [item for item in self.coming if item[1] not in arriving]
        self.live = [request for request in self.live if request not in leaving] + arriving

    def read(self, plan: Any) -> Step:
        """A plan, looked at: it names requests that are here, and tokens that they have."""
        story, here = self.story, {request.name: request for request in self.live}
        for words in ("preempted", "swap_out", "swap_in", "chunks"):
            is_list = isinstance(getattr(plan, words, None), list)
            story.expect(is_list, f"a plan with a list `{words}`", plan)
        preempted = list(plan.preempted)
        is_fine = all(isinstance(name, str) and name in here for name in preempted)
        story.expect(is_fine and len(set(preempted)) == len(preempted), "names that are here", preempted)
        out = pairs(plan.swap_out, self.num_blocks, self.num_host_blocks, "swap_out", story)
        back = pairs(plan.swap_in, self.num_host_blocks, self.num_blocks, "swap_in", story)
        chunks = []
        for chunk in plan.chunks:
            is_triple = isinstance(chunk, tuple | list) and len(chunk) == 3
            story.expect(is_triple, "(request_id, start, end) for each chunk", chunk)
            name, start, end = chunk
            known = isinstance(name, str) and name in here and name not in [one[0] for one in chunks]
            story.expect(known, "one chunk each, for requests that wait or run", chunk)
            numbers = all(isinstance(n, Integral) and not isinstance(n, bool) for n in (start, end))
            has = len(here[name].tokens)
            is_right = numbers and 0 <= start < end <= has
            story.expect(is_right, f"a chunk within the {counted(has, 'token')} of {name}", chunk)
            is_covered = len(self.memory.tables.get(name, ())) * self.block_size >= end
            story.expect(
                is_covered, f"blocks on the device for {counted(end, 'token')} of {name}", self.memory.tables
            )
            chunks.append((name, int(start), int(end)))
        return Step(preempted, out, back, chunks, self.expected(), self.live)

    def expected(self) -> Expected:
        """What the rules say, counted in blocks; and book it."""
        running = [request for request in self.live if request.is_running]
        free = self.num_blocks - sum(request.blocks for request in running)
        host = self.num_host_blocks - sum(request.host_blocks for request in self.live)
        preempted, swapped, chunks = [], [], []
        num_out = num_in = 0
        place = 0
        while place < len(running):
            request = running[place]
            missing = self.blocks_for(request) - request.blocks
            if missing <= free:
                free -= missing
                request.blocks += missing
                chunks.append((request.name, request.computed, len(request.tokens)))
                place += 1
                continue
            victim = running.pop()
            preempted.append(victim.name)
            if victim.blocks <= host:
                swapped.append(victim.name)
                num_out += victim.blocks
                host -= victim.blocks
                victim.host_blocks = victim.blocks
            else:
                victim.computed = 0
            free += victim.blocks
            victim.blocks, victim.is_running = 0, False
        for request in self.live:
            if request.is_running or preempted:
                continue
            if self.blocks_for(request) > free:
                break
            num_in += request.host_blocks
            request.blocks, request.host_blocks, request.is_running = self.blocks_for(request), 0, True
            free -= request.blocks
            chunks.append((request.name, request.computed, len(request.tokens)))
        return Expected(preempted, swapped, chunks, num_out, num_in)

    def blocks_for(self, request: Live) -> int:
        return -(-len(request.tokens) // self.block_size)

    def is_right(self, step: Step) -> bool:
        right = step.right
        moves = (len(step.out), len(step.back)) == (right.num_out, right.num_in)
        return step.preempted == right.preempted and sorted(step.chunks) == sorted(right.chunks) and moves

    def compute(self, step: Step, is_strict: bool) -> None:
        """The toy model's next token for all that catch up, from what the blocks hold."""
        here = {request.name: request for request in self.live}
        for request in self.live:
            request.age += 1
        said = []
        for name, start, end in step.chunks:
            request = here[name]
            table = self.memory.tables[name]
            self.store.write(table, start, request.tokens[start:end])
            request.computed = end
            right = next_token(request.tokens[:end])
            if is_strict:
                token = next_token(self.store.read(table, end))
                wanted = f"the next token of {name} to be {right}, as when it runs alone"
                what = f"{token}; blocks {table}, computed in this step: {start} … {end - 1}"
                self.story.expect(token == right, wanted, what)
                whole = f"{counted(len(request.tokens), 'token')} of {name} to be computed, all that it has"
                self.story.expect(end == len(request.tokens), whole, f"{end}")
            request.tokens.append(right)
            request.to_come -= 1
            said.append(f"{name} {right}")

    def draw(self, step: Step, number: int) -> None:
        """Two pools, and a row for each request: what it computed, or where it was."""
        computes = {name: end - start for name, start, end in step.chunks}
        for request in self.live:
            cells = self.rows.setdefault(request.index, [])
            cells += [cell()] * (number - len(cells))
            if count := computes.get(request.name):
                cells.append(cell(count, request.index))
            else:
                is_away = request.name in self.memory.host_tables
                sign = "↑" if is_away else "×" if request.name in step.preempted else "…"
                cells.append(cell(sign, request.index if is_away else None, "waste" if is_away else "free"))
        owners = {request.name: request.index for request in self.live}
        self.story.see(
            {
                "computes": ", ".join(f"{name} {count}" for name, count in computes.items()) or "nothing",
                "preempted": ", ".join(step.preempted) or "none",
                "moves": f"{len(step.out)} out, {len(step.back)} in",
            },
            [
                pool_row("device", self.num_blocks, self.memory.tables, owners, {b for _, b in step.back}),
                pool_row(
                    "host", self.num_host_blocks, self.memory.host_tables, owners, {b for _, b in step.out}
                ),
                *(row(name_of(index), cells) for index, cells in sorted(self.rows.items())[:MOST_DRAWN]),
            ],
        )


@judged(
    "P5",
    "From every pool in which it fits alone, a request gets the tokens that it gets alone.",
    worlds(),
    hints=(
        "Find the first wrong token. Which of its tokens were computed again, and which came from the host?",
        "Recompute means from token 0: nothing is left of what was computed. Swapped means: go on where it "
        "was, once the moves back are in the plan.",
        "In `preempt`: `moves = self.memory.swap_out([request.request_id])`; if that is None, `free` it and "
        "set `num_computed_tokens = 0`, else `plan.swap_out.extend(moves)`.",
    ),
    when={
        CRASH: "Which request is it, and where: does it wait, does it run, or has it just been preempted "
        "for an older one? A list that shrinks while you loop over it skips the next entry.",
        ENDLESS: "What changes in each round of your `while`? The request that needs the blocks may be "
        "the newest itself: once it is preempted, no request is left to go.",
    },
    large=large_world,
)
def same_as_alone(case: Any, story: Story) -> None:
    for _ in Engine(case, story).run(is_strict=True):
        pass


@judged(
    "P6",
    "The newest goes, and only if blocks are short; its blocks go to the host if all fit there.",
    worlds(),
    hints=(
        "Look at the step in which a request is preempted. Which of all that run came last? Was a block "
        "really missing?",
        "The victim is the last of `self.running`, again and again, until the older one has its blocks. If "
        "it is that request itself, it is not in the plan.",
        "`while not self.memory.grow(request.request_id, request.num_tokens):`, with `victim = "
        "self.running[-1]` and `self.preempt(victim, plan)` in it, and `break` if the victim is `request`.",
    ),
)
def the_newest_goes(case: Any, story: Story) -> None:
    for step in Engine(case, story).run():
        right = step.right
        wanted = f"{' and then '.join(right.preempted) or 'no request'} to be preempted"
        story.expect(step.preempted == right.preempted, wanted, ", ".join(step.preempted) or "none")
        wanted = f"{counted(right.num_out, 'block')} to move to the host"
        story.expect(len(step.out) == right.num_out, wanted, counted(len(step.out), "move"))
        starts = {name: start for name, start, _ in right.chunks}
        for name, start, _ in step.chunks:
            if name in starts:
                wanted = f"{name} to go on at position {starts[name]}"
                story.expect(start == starts[name], wanted, f"it begins at {start}")


@judged(
    "P7",
    "The oldest request gets on in every step, and no request waits whose turn and blocks are there.",
    worlds(),
    hints=(
        "Which request is the oldest, and did it compute anything? Who waits, and how many blocks are free?",
        "Running requests come first, in order of arrival. A preempted one is the first that waits. Admit "
        "as long as the first that waits has room for all its tokens; no request overtakes it.",
        "`while self.waiting:`, and for the first that waits `swap_in` if it is in "
        "`host_tables`, else `grow`; None or False ends the step.",
    ),
    large=large_world,
)
def the_oldest_gets_on(case: Any, story: Story) -> None:
    for step in Engine(case, story).run():
        right, planned = step.right, {name: end for name, _, end in step.chunks}
        if step.live:
            oldest = step.live[0]
            all_of_it = f"{counted(len(oldest.tokens), 'token')}, all that it has"
            wanted = f"{oldest.name}, the oldest, to compute {all_of_it}"
            got = f"{planned.get(oldest.name, 'nothing')}"
            story.expect(planned.get(oldest.name) == len(oldest.tokens), wanted, got)
        if step.preempted != right.preempted:
            return
        names = [name for name, *_ in right.chunks]
        wanted = f"only {', '.join(names)} to compute" if names else "no request to compute"
        story.expect(sorted(planned) == sorted(names), wanted, ", ".join(planned) or "none")
