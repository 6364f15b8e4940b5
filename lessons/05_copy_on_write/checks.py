"""What must always hold of sequences that share blocks.

Sequences are added, fork, write and end in random order. What each of them must read is known from a model in
which nothing is ever shared (`Model.data`); which blocks must be shared is known from tables whose blocks are
only names (`Model.tables`). So a solution may take any free block, and its own books are never believed.
"""

from collections import Counter
from copy import deepcopy
from numbers import Integral
from random import Random
from typing import Any, NamedTuple

import subject
from hypothesis import strategies as st

from lessons.story import ACCEPTED, AFTER_REFUSAL, CRASH, REFUSED, Story, cell, counted, given_as, judged, row

ADD, FORK, WRITE, FREE, WRONG = "add", "fork", "write", "free", "wrong"
which = st.integers(0, 5)
OPERATIONS = {
    # (name, number of a living sequence, how far before its end the write begins or what is wrong, tokens)
    ADD: st.tuples(st.just(ADD), which, st.just(0), st.integers(1, 6)),
    FORK: st.tuples(st.just(FORK), which, st.just(0), st.just(0)),
    WRITE: st.tuples(st.just(WRITE), which, st.integers(0, 7), st.integers(1, 5)),
    FREE: st.tuples(st.just(FREE), which, st.just(0), st.just(0)),
    WRONG: st.tuples(st.just(WRONG), which, st.integers(0, 6), st.integers(1, 3)),
}


def worlds(*names: str, most: int = 20) -> Any:
    """Cases: a pool, a first sequence, and what is done then."""
    some = st.lists(st.one_of(*(OPERATIONS[name] for name in names)), max_size=10)
    operations = st.builds(list.__add__, some, some)
    sizes = {"num_blocks": st.integers(1, most), "block_size": st.sampled_from((2, 3, 4, 1))}
    first = {"first_token": st.integers(10, 60), "length": st.integers(1, 8)}
    return st.fixed_dictionaries({**sizes, **first, "operations": operations})


def large_world(dice: Random) -> Any:
    """Dozens of sequences, forks of forks, in blocks of sixteen and more of them than a byte can count."""
    operations = []
    for _ in range(120):
        name = dice.choice((ADD, FORK, FORK, WRITE, WRITE, WRITE, FREE))
        tokens = dice.randrange(1, 49) if name in (ADD, WRITE) else 0
        operations.append([name, dice.randrange(64), dice.randrange(20) if name == WRITE else 0, tokens])
    sizes = {"num_blocks": 300, "block_size": 16, "first_token": 10, "length": 70}
    return {**sizes, "operations": operations}


class Action(NamedTuple):
    """One operation of a case, in the model's words; `missing` is the number of blocks that it takes."""

    name: str
    who: int
    start: int
    tokens: list[int]
    missing: int
    detail: int


class Model:
    """What is right, by other means."""

    def __init__(self, case: Any) -> None:
        self.num_blocks, self.block_size = case["num_blocks"], case["block_size"]
        self.data: dict[int, list[int]] = {}
        """Every sequence has all of its tokens for itself."""
        self.tables: dict[int, list[int]] = {}
        """Names of blocks. The readers of a block are looked up in all of them: there are no counts."""
        self.last = Action("", 0, 0, [], 0, 0)
        self.promised: Any = None  # what `missing_blocks` said before the last write
        self.next_sequence = self._next_block = 0
        self._next_token = case["first_token"]

    @property
    def free(self) -> int:
        """Blocks that are in no table."""
        return self.num_blocks - len({block for table in self.tables.values() for block in table})

    def readers(self, block: int) -> int:
        return sum(block in table for table in self.tables.values())

    def to_take(self, who: int, start: int, count: int) -> list[int]:
        """Logical blocks for which a write takes a block."""
        table = self.tables.get(who, [])
        touched = range(start // self.block_size, -(-(start + count) // self.block_size))
        return [i for i in touched if i >= len(table) or self.readers(table[i]) > 1]

    def meaning(self, operation: list[Any]) -> Action | None:
        """What an operation means now; None if there is no sequence to do it."""
        name, number, detail, count = operation
        living = sorted(self.data)
        if name == ADD:
            who, start = self.next_sequence, 0
        elif living:
            who = living[number % len(living)]
            start = len(self.data[who]) - min(detail, len(self.data[who]))
        else:
            return None
        tokens = list(range(self._next_token, self._next_token + count))
        self._next_token += count
        missing = len(self.to_take(who, start, count)) if count else 0
        return Action(name, who, start, tokens, missing, detail)

    def follow(self, action: Action) -> None:
        self.last = action
        name, who, start, tokens = action[:4]
        if name in (ADD, FORK):
            parent = who if name == FORK else None
            self.data[self.next_sequence] = list(self.data.get(parent, []))
            self.tables[self.next_sequence] = list(self.tables.get(parent, []))
            self.next_sequence += 1
        if name in (ADD, WRITE):
            for index in self.to_take(who, start, len(tokens)):
                self.tables[who][index : index + 1] = [self._next_block]
                self._next_block += 1
            self.data[who][start : start + len(tokens)] = tokens
        if name == FREE:
            del self.data[who], self.tables[who]


def live(case: Any, story: Story, attempt: Any = None, strict: bool = True, ends: bool = False) -> Any:
    """Do what a case says; after each step, the cache and the model. `attempt` gets what is impossible."""
    model, cache = Model(case), subject.KVCache(case["num_blocks"], case["block_size"])
    operations = [(ADD, 0, 0, case["length"]), *case["operations"], *[(FREE, 0, 0, 0)] * 64 * ends]
    for action in filter(None, map(model.meaning, operations)):
        if action.name == WRONG or action.missing > model.free:
            if attempt and action.name != ADD:
                attempt(cache, model, action, story)
            continue
        with story.allowing(subject.OutOfBlocksError) as answer:
            carry_out(cache, model, action, story)
        if answer.is_refused:
            room = f"room: it takes {counted(action.missing, 'block')}, and {model.free} are free"
            story.expect(not strict, room, "OutOfBlocksError", REFUSED)
            return  # too many blocks taken: another property's business
        model.follow(action)
        show(cache, model, story)
        yield cache, model
    if ends:
        story.step("take all blocks")
        blocks = cache.pool.get_new_blocks(model.num_blocks)
        story.expect(sorted(blocks) == list(range(model.num_blocks)), "every block once", blocks)


def carry_out(cache: Any, model: Model, action: Action, story: Story) -> None:
    """Let the judged code do it."""
    name, who, start, tokens = action[:4]
    if name == ADD:
        story.step(f"s{who} is added and writes {words(tokens)}")
        cache.add_sequence(who)
        story.expect(cache.read(who) == [], "no token before the first write", cache.read(who))
        put(cache, who, 0, tokens)
    elif name == FORK:
        story.step(f"s{who} forks to s{model.next_sequence}")
        cache.fork(who, model.next_sequence)
    elif name == FREE:
        story.step(f"s{who} is freed")
        cache.free(who)
    else:
        story.step(f"s{who} writes {words(tokens)} at position {start}")
        model.promised = cache.missing_blocks(who, start, start + len(tokens))
        again = cache.missing_blocks(who, start, start + len(tokens))
        story.expect(model.promised == again, f"{model.promised}, as when it was asked before", again)
        put(cache, who, start, tokens)


def put(cache: Any, who: int, start: int, tokens: list[int]) -> None:
    """Write; what was handed over belongs to the caller, who goes on with it."""
    given = list(tokens)
    cache.write(who, start, given if len(tokens) % 2 else tuple(given))
    given.clear()


def words(things: Any) -> str:
    return " ".join(map(str, things))


def references(pool: Any, blocks: list[int]) -> list[Any]:
    return [pool.ref_counts[block] for block in blocks]


def table_of(cache: Any, who: int, story: Story) -> list[int]:
    """A table, if it is one."""
    table, count = cache.tables.get(who), len(cache.storage)
    is_table = isinstance(table, list) and all(isinstance(b, Integral) and 0 <= b < count for b in table)
    story.expect(is_table, f"the table of s{who} to be a list of blocks", table)
    return list(table)


def show(cache: Any, model: Model, story: Story) -> None:
    """What is in the memory now, and which sequence reads what."""
    tables = {who: table_of(cache, who, story) for who in sorted(model.data)}
    facts: dict[str, object] = {}
    for who, table in tables.items():
        read = cache.read(who)
        facts[f"s{who}"] = words(read) if isinstance(read, list) else read
        facts[f"readers(s{who})"] = words(references(cache.pool, table))
    first = {block: who for who, table in reversed(tables.items()) for block in table}
    texts = [words("·" if token is None else token for token in tokens) for tokens in cache.storage]
    blocks = [cell(text, first[b]) if b in first else cell("", mark="free") for b, text in enumerate(texts)]
    maps = [row(f"table of s{who}", [cell(b, first[b]) for b in table]) for who, table in tables.items()]
    story.see(facts | {"free": cache.pool.num_free_blocks}, [row("blocks 0 …", blocks), *maps])


def reads_right(cache: Any, model: Model, story: Story) -> None:
    """Does each sequence read what it would if nothing were shared, and is it where its table says?"""
    for who, data in model.data.items():
        table, size = table_of(cache, who, story), model.block_size
        story.expect(len(table) * size >= len(data), f"blocks for the {len(data)} tokens of s{who}", table)
        stored = [cache.storage[table[i // size]][i % size] for i in range(len(data))]
        for found in (cache.read(who), stored):
            story.expect(found == data, f"s{who} to read {words(data)}", found)


def memory_right(cache: Any, model: Model, story: Story) -> None:
    """Are blocks free, shared and counted as they must be, whatever their numbers?"""
    pool, called = cache.pool, dict[int, int]()
    story.expect(pool.num_free_blocks == model.free, f"{model.free} free blocks", pool.num_free_blocks)
    for who, names in model.tables.items():
        table = table_of(cache, who, story)
        story.expect(len(table) == len(names), f"{len(names)} blocks in the table of s{who}", table)
        found, right = references(pool, table), [model.readers(name) for name in names]
        story.expect(found == right, f"readers of the blocks of s{who}: {words(right)}", words(found))
        right = [called.setdefault(name, block) for name, block in zip(names, table, strict=True)]
        story.expect(table == right, f"s{who} to map {words(right)}", words(table))
    story.expect(len(set(called.values())) == len(called), "a block of its own for each", called)
    readers = references(pool, [block for block in range(model.num_blocks) if block not in called.values()])
    story.expect(not any(readers), "no reader of a block that is in no table", words(readers))


calls = st.sampled_from(("touch", "free_blocks")), st.lists(st.integers(0, 4), min_size=1, max_size=3)
POOLS = st.fixed_dictionaries(
    {"num_blocks": st.integers(1, 5), "operations": st.lists(st.tuples(*calls), max_size=8)}
)


@judged(
    "P1",
    "A block is free exactly when it has no references; it can be neither shared nor freed then.",
    POOLS,
    hints=(
        "A block has two references and loses one. Is it free? And if it loses the second one, too?",
        "A block whose count becomes 0 goes to the free list. Look at all of them before you change one.",
        "ValueError if any `blocks.count(block) > ref_counts[block]`; only then subtract.",
    ),
    when={
        ACCEPTED: "Nothing was raised. Is the block free? Or is it named more often in this call than it "
        "has references?",
        REFUSED: "This is allowed: an empty list, or a block that is named as often as it has references.",
        AFTER_REFUSAL: "What was refused has changed the counts: blocks before the wrong one have lost a "
        "reference.",
    },
)
def free_means_no_references(case: Any, story: Story) -> None:
    count, names = case["num_blocks"], "ABCDE"
    pool, refs = subject.BlockPool(count), [1] * count
    story.step(f"take the blocks {words(names[:count])}")
    blocks = pool.get_new_blocks(count)
    for name, numbers in [("", []), *case["operations"]]:
        picked = [number % count for number in numbers]
        times = Counter(picked)
        allowed = all(refs[i] >= (1 if name == "touch" else n) for i, n in times.items())
        refused = False
        if name:
            story.step(f"{name} {words(names[i] for i in picked)}")
            with story.allowing(ValueError) as answer:
                getattr(pool, name)(given_as(len(picked), [blocks[i] for i in picked]))
            refused = answer.is_refused
        found, free = references(pool, blocks), pool.num_free_blocks
        shown = [cell(f"{names[i]}: {n}", i, "" if n else "free") for i, n in enumerate(found)]
        facts = {"answer": "ValueError" if refused else "done", "references": words(found), "free": free}
        story.see(facts, [row("references", shown)])
        before = f"{words(refs)} references before"
        story.expect(refused or allowed, f"ValueError: {before}", "nothing was raised", ACCEPTED)
        story.expect(not (refused and allowed), f"no error: {before}", "ValueError", REFUSED)
        for i, n in times.items() if allowed else ():
            refs[i] += n if name == "touch" else -n
        story.expect(found == refs, f"references {words(refs)}", words(found))
        story.expect(free == refs.count(0), f"{refs.count(0)} free blocks", free)
    story.step("take all free blocks")
    right = sorted(block for block, n in zip(blocks, refs, strict=True) if n == 0)
    again = pool.get_new_blocks(len(right))
    story.expect(sorted(again) == right, f"{right}, which have no references", again)


@judged(
    "P2",
    "A sequence reads what it wrote, in as few blocks as hold it.",
    worlds(ADD, WRITE, WRITE),
    hints=(
        "Which blocks does a write to the positions 5, 6 and 7 touch, if a block has 3 places?",
        "First the table grows to ⌈end / size⌉ blocks. Writing over old tokens makes nothing shorter.",
        "`storage[table[position // size]][position % size] = value`, and `max(lengths[seq_id], end)`.",
    ),
    when={
        REFUSED: "There was room. A write takes the blocks that the table lacks: ⌈end / size⌉ less those "
        "it has.",
        CRASH: "Does the table reach as far as the position in the line that raised? It must grow before "
        "anything is stored. A write of no tokens, or one over old tokens, needs no block.",
    },
)
def what_was_written_is_read(case: Any, story: Story) -> None:
    for cache, model in live(case, story):
        reads_right(cache, model, story)
        memory_right(cache, model, story)


@judged(
    "P3",
    "A fork reads what its parent reads and takes no block; each block counts one reader more.",
    worlds(ADD, FORK, FORK, FORK),
    hints=(
        "What must a child know to find its parent's tokens? What must the pool know?",
        "A fork is a new table with the same block numbers. The pool has a method that counts the readers.",
        "`self.tables[child] = list(self.tables[parent])`, the same length, and `self.pool.touch(…)`.",
    ),
)
def a_fork_copies_no_data(case: Any, story: Story) -> None:
    for cache, model in live(case, story):
        reads_right(cache, model, story)
        memory_right(cache, model, story)


@judged(
    "P4",
    "A block is free when its last reader has gone, and not before.",
    worlds(ADD, FORK, FORK, FREE, FREE),
    hints=(
        "Parent and child share three blocks, and the parent ends. How many blocks are free now?",
        "A sequence that ends drops its reference to each block. The pool knows whether others are left.",
        "`self.pool.free_blocks(self.tables.pop(seq_id))`, and forget its length.",
    ),
    when={
        CRASH: "What does the pool say if a block is freed that has no reference? Each sequence that maps "
        "a block holds one: a fork must count it, and only the end of a sequence, or a copy, gives it back.",
    },
)
def the_last_reader_frees(case: Any, story: Story) -> None:
    for cache, model in live(case, story, ends=True):
        is_gone = model.last.name != FREE or model.last.who not in cache.tables
        story.expect(is_gone, f"no table for s{model.last.who}", cache.tables)
        reads_right(cache, model, story)
        memory_right(cache, model, story)


@judged(
    "P5",
    "When a sequence writes, the others read what they read before.",
    worlds(FORK, FORK, WRITE, WRITE, WRITE, FREE),
    hints=(
        "Parent and child map the same block, and the child writes. Which of them sees it?",
        "A write to a block with other readers goes to a copy: for every block that it touches.",
        "If `ref_counts[table[index]] > 1`: copy, free the old block, `table[index] = target`.",
    ),
    examples=300,
    large=large_world,
)
def no_other_sequence_notices(case: Any, story: Story) -> None:
    for cache, model in live(case, story, strict=False):
        reads_right(cache, model, story)


@judged(
    "P6",
    "A write takes a block only to grow, or to copy one that others read; `missing_blocks` foretells it.",
    worlds(ADD, FORK, FORK, WRITE, WRITE, WRITE, FREE),
    hints=(
        "Parent and child share a block. The child writes to it, then the parent. How many copies is that?",
        "The last reader of a block writes in place. So a block that is copied must lose a reader.",
        "`missing_blocks` counts where `index >= len(table) or ref_counts[table[index]] > 1`.",
    ),
    when={
        REFUSED: "There was room for what the write needs. Do you ask for a copy of a block whose last "
        "reader writes?",
    },
    examples=200,
)
def nothing_is_copied_without_need(case: Any, story: Story) -> None:
    for cache, model in live(case, story, ends=True):
        is_kept = model.last.name != WRITE or model.promised == model.last.missing
        story.expect(is_kept, f"missing_blocks to say {model.last.missing} before it", model.promised)
        memory_right(cache, model, story)


@judged(
    "P7",
    "What cannot be done is refused, and changes nothing.",
    worlds(ADD, FORK, FORK, WRITE, WRITE, FREE, WRONG, WRONG, most=7),
    hints=(
        "A write needs a copy and one more block; one is free. What is the cache like afterwards?",
        "Find out whether all of it can be done before you change anything.",
        "Compare `missing_blocks` with `num_free_blocks` first. In `fork`, look for both before `touch`.",
    ),
    when={
        ACCEPTED: "No error came. What stands in the last step that there is not, or that is there already?",
        AFTER_REFUSAL: "The error came, but something had changed by then. Which line before the `raise` "
        "changes a table, a length or a count?",
        CRASH: "An exception of another kind than the exercise asks for: `KeyError` for a sequence that "
        "there is not, `ValueError` for one that there is, and for a position that cannot be written.",
    },
    examples=200,
)
def a_refusal_changes_nothing(case: Any, story: Story) -> None:
    for cache, model in live(case, story, attempt=must_be_refused, ends=True):
        memory_right(cache, model, story)


def must_be_refused(cache: Any, model: Model, action: Action, story: Story) -> None:
    """Try what cannot be done."""
    text, error, method, arguments = forbidden(model, action)
    before = everything(cache)
    story.step(text)
    with story.allowing(error, subject.OutOfBlocksError) as answer:
        getattr(cache, method)(*arguments)
    show(cache, model, story)
    story.expect(answer.is_refused, error.__name__, "no error", ACCEPTED)
    for name, value in everything(cache).items():
        story.expect(value == before[name], f"{name} as before: {before[name]}", value)


def forbidden(model: Model, action: Action) -> tuple[str, Any, str, tuple[Any, ...]]:
    """`(in words, error, method, arguments)` of something that cannot be done."""
    _, who, start, tokens, missing, detail = action
    count, new, beyond = len(tokens), model.next_sequence, len(model.data[who]) + len(tokens)
    stranger = max(set(range(new)) - set(model.data), default=new)
    if action.name == WRITE:
        text = f"s{who} writes {words(tokens)} at position {start}: {missing} blocks, {model.free} free"
        return text, subject.OutOfBlocksError, "write", (who, start, tokens)
    return (
        (f"s{stranger}, which is not there, is freed", KeyError, "free", (stranger,)),
        (f"s{stranger}, which is not there, writes", KeyError, "write", (stranger, 0, tokens)),
        (f"s{stranger}, which is not there, forks", KeyError, "fork", (stranger, new + 1)),
        (f"s{who} forks to s{who}, which is there", ValueError, "fork", (who, who)),
        (f"s{who}, which is there, is added", ValueError, "add_sequence", (who,)),
        (f"s{who} writes at {beyond}, behind a gap", ValueError, "write", (who, beyond, tokens)),
        (f"s{who} writes at position -{count}", ValueError, "write", (who, -count, tokens)),
    )[detail]


def everything(cache: Any) -> dict[str, Any]:
    """All that can be seen of a cache."""
    seen = {"free blocks": cache.pool.num_free_blocks, "references": cache.pool.ref_counts}
    seen |= {"tables": cache.tables, "lengths": cache.lengths}
    seen["what is read"] = {f"s{who}": cache.read(who) for who in cache.tables}
    return deepcopy(seen)
