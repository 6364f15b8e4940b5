"""What must always hold of a block pool and its tables.

Sequences of random lengths come, grow and go; which sequence holds which blocks is written down here, by what
the pool allocated. So the pool's own books are never believed.
"""

from collections.abc import Iterator
from random import Random
from typing import Any, NamedTuple

import subject
from hypothesis import strategies as st

from lessons.story import (
    ACCEPTED,
    AFTER_REFUSAL,
    CRASH,
    EMPTY,
    REFUSED,
    Story,
    cell,
    counted,
    given_as,
    judged,
    row,
)

FEW = 8
"""Sequences that are all looked at after each operation."""
counts = st.integers(0, 5)
POOLS = st.fixed_dictionaries(
    {
        "num_blocks": st.integers(1, 8),
        "operations": st.lists(
            st.tuples(st.just("take"), counts) | st.tuples(st.just("give"), st.integers(0, 9)), max_size=12
        ),
    }
)
SEQUENCES = st.fixed_dictionaries(
    {
        "num_blocks": st.integers(1, 12),
        "block_size": st.integers(1, 5),
        "operations": st.lists(
            st.tuples(st.just("grow"), st.integers(0, 3), st.integers(1, 11))
            | st.tuples(st.just("finish"), st.integers(0, 3), st.just(0)),
            min_size=1,
            max_size=10,
        ),
    }
)


def large_pool(dice: Random) -> Any:
    """Three hundred requests, as many as sixty at a time, in a pool of more blocks than a byte can count."""
    operations = [[dice.choice(("take", "take", "give")), dice.randrange(12)] for _ in range(300)]
    return {"num_blocks": 400, "operations": operations}


def large_sequences(dice: Random) -> Any:
    """Forty sequences of up to some hundred tokens, in blocks of sixteen."""
    operations = [["grow", dice.randrange(40), dice.randrange(1, 90)] for _ in range(90)]
    operations += [["finish", dice.randrange(40), 0] for _ in range(10)]
    dice.shuffle(operations)
    return {"num_blocks": 600, "block_size": 16, "operations": operations}


def pool_row(num_blocks: int, owners: dict[int, int]) -> Any:
    """The memory: which sequence holds which block, by what was allocated."""
    cells = (
        cell(f"s{owners[b]}", owners[b]) if b in owners else cell("", mark="free") for b in range(num_blocks)
    )
    return row("blocks 0 …", cells)


def taken(pool: Any, count: int, story: Story) -> list[int] | None:
    """What the pool allocates, as a list of numbers; None if it refuses."""
    with story.allowing(subject.OutOfBlocksError) as answer:
        blocks = pool.get_new_blocks(count)
    if answer.is_refused:
        return None
    story.expect(isinstance(blocks, list), "get_new_blocks to return a list of blocks", blocks)
    own = list(blocks)
    blocks.clear()  # the list belongs to the caller, who may do with it whatever he likes
    return own


class Moment(NamedTuple):
    """The pool after an operation."""

    pool: Any
    before: dict[int, int]
    """Block → the sequence that held it before."""
    after: dict[int, int]
    blocks: list[int]
    """Allocated in it."""
    asked: int | None
    """Blocks asked for; None if some were freed."""
    is_refused: bool


def take_and_free(case: Any, story: Story) -> Iterator[Moment]:
    """Take blocks and free them, in random order."""
    pool = subject.BlockPool(case["num_blocks"])
    held: dict[int, list[int]] = {}
    owners: dict[int, int] = {}
    for name, number in case["operations"]:
        before = dict(owners)
        blocks: list[int] | None = []
        who = max([-1, *held, *before.values()]) + 1
        if name == "take":
            story.step(f"s{who} takes {counted(number, 'block')}", empty=number == 0)
            blocks = taken(pool, number, story)
            if blocks:
                held[who] = blocks
                owners |= dict.fromkeys(blocks, who)
            answer = "refused" if blocks is None else counted(len(blocks), "block")
        elif held:
            who = sorted(held)[number % len(held)]
            story.step(f"s{who} frees its {counted(len(held[who]), 'block')}", empty=not held[who])
            pool.free_blocks(given_as(number, held[who]))
            owners = {block: owner for block, owner in owners.items() if block not in held[who]}
            del held[who]
            answer = "freed"
        else:
            continue
        story.see({"answer": answer, "free": pool.num_free_blocks}, [pool_row(case["num_blocks"], owners)])
        asked = number if name == "take" else None
        yield Moment(pool, before, owners, blocks or [], asked, blocks is None)


@judged(
    "P1",
    "An allocated block exists, and no other sequence holds it.",
    POOLS,
    hints=(
        "Which blocks may `get_new_blocks` choose from? When do they leave that list?",
        "Keep the free blocks in a list. A block that is allocated leaves it; one that is freed comes back.",
        "`blocks = [self._free.pop() for _ in range(count)]`, with `self._free` the list of all free blocks.",
    ),
    when={
        EMPTY: "A sequence may ask for 0 blocks: the answer is an empty list. Mind that `free[-0:]` is the "
        "whole list.",
        CRASH: "How many blocks are free in the last step, and how many does the line take that raised? If "
        "they are too few, `OutOfBlocksError` is the only exception that may come.",
    },
)
def no_block_has_two_holders(case: Any, story: Story) -> None:
    for moment in take_and_free(case, story):
        blocks = moment.blocks
        strange = [block for block in blocks if block not in range(case["num_blocks"])]
        story.expect(not strange, f"blocks from 0 to {case['num_blocks'] - 1}", strange)
        held = [block for block in blocks if block in moment.before or blocks.count(block) > 1]
        story.expect(not held, "blocks that no sequence holds, each once", f"{blocks}; held already: {held}")


@judged(
    "P2",
    "Free and held blocks are all blocks.",
    POOLS,
    hints=(
        "Count: blocks in the pool, blocks held, blocks free. Which operation changes the sum?",
        "`num_free_blocks` must follow every change. Derive it from the free list: it cannot lag.",
        "`return len(self._free)`, and `free_blocks` puts each block back exactly once.",
    ),
    large=large_pool,
)
def nothing_is_lost(case: Any, story: Story) -> None:
    for moment in take_and_free(case, story):
        if moment.is_refused:
            return  # what a refusal leaves behind is the next property's
        if moment.asked is not None:
            story.expect(len(moment.blocks) == moment.asked, f"{moment.asked} blocks", moment.blocks)
        free = case["num_blocks"] - len(moment.after)
        story.expect(moment.pool.num_free_blocks == free, f"{free} free", moment.pool.num_free_blocks)


@judged(
    "P3",
    "Blocks are refused only when too few are free, and a refusal changes nothing.",
    POOLS,
    hints=(
        "What should happen when 3 blocks are asked for and 2 are free? What is the pool like afterwards?",
        "Compare `count` with what is free before the first block is taken: half a take cannot be undone.",
        "`if count > len(self._free): raise OutOfBlocksError(...)` as the first line of `get_new_blocks`.",
    ),
    when={
        REFUSED: "There was room. As many blocks as are free may be taken, all of them: is it `>` or `>=`?",
        ACCEPTED: "More blocks were asked for than are free, and some came. Where does your code compare "
        "the two?",
        AFTER_REFUSAL: "The refusal was right; what it left behind is not. What has your code changed "
        "before it raised?",
    },
)
def a_refusal_changes_nothing(case: Any, story: Story) -> None:
    for moment in take_and_free(case, story):
        pool, free = moment.pool, case["num_blocks"] - len(moment.before)
        if moment.is_refused:
            wanted = f"{counted(moment.asked, 'block')}: {free} are free"
            story.expect(free < (moment.asked or 0), wanted, "a refusal", REFUSED)
            story.expect(pool.num_free_blocks == free, f"{free} free, as before", pool.num_free_blocks)
            rest = taken(pool, free, story)
            story.expect(rest is not None, f"the {free} free blocks, asked for next", "a refusal")
            pool.free_blocks(list(rest or []))
        elif moment.asked is not None:
            story.expect(moment.asked <= free, f"a refusal: {free} are free", moment.blocks, ACCEPTED)
    # In the end all that is free can be taken, and not one more.
    pool = subject.BlockPool(case["num_blocks"])
    story.step(f"take one block more than the {case['num_blocks']} of a new pool")
    story.expect(taken(pool, case["num_blocks"] + 1, story) is None, "a refusal", "blocks", ACCEPTED)
    story.step("take all of them")
    blocks = taken(pool, case["num_blocks"], story)
    story.expect(blocks is not None, f"all of {counted(case['num_blocks'], 'block')}", "a refusal")
    story.see({"free": pool.num_free_blocks})
    story.expect(pool.num_free_blocks == 0, "no free block", pool.num_free_blocks)


@judged(
    "P4",
    "A free block cannot be freed again, and the attempt changes nothing.",
    POOLS,
    hints=(
        "A block that is on the free list twice will be allocated twice. Which call puts it there?",
        "`free_blocks` must know which blocks are held. Look at all of its blocks before you free the first.",
        "Keep a set of held blocks; raise `ValueError` unless all given blocks are in it, each named once.",
    ),
    when={
        ACCEPTED: "Nothing was raised. Which attempt was it: a block that is free, one that there is not, "
        "or one that is named twice in the same call?",
        AFTER_REFUSAL: "`ValueError` came, but too late: blocks that stand before the wrong one were freed "
        "by then.",
        CRASH: "Only `ValueError` is a refusal: `set.remove` raises `KeyError`, and a list that you loop "
        "over while it shrinks skips blocks. The blocks may also come as an iterator, which can be walked "
        "only once.",
    },
)
def double_free_is_refused(case: Any, story: Story) -> None:
    pool = subject.BlockPool(case["num_blocks"])
    story.step(f"take all of {counted(case['num_blocks'], 'block')}")
    blocks = taken(pool, case["num_blocks"], story)
    story.expect(blocks is not None and len(blocks) == case["num_blocks"], "all blocks", blocks)
    assert blocks is not None
    owners = dict.fromkeys(blocks, 0)
    story.see({"free": pool.num_free_blocks}, [pool_row(case["num_blocks"], owners)])
    amounts = [number for _, number in case["operations"]]
    freed = blocks[: 1 + sum(amounts) % len(blocks)]
    story.step(f"free {len(freed)} of them")
    pool.free_blocks(list(freed))
    owners = {block: 0 for block in blocks if block not in freed}
    story.see({"free": pool.num_free_blocks}, [pool_row(case["num_blocks"], owners)])
    story.expect(pool.num_free_blocks == len(freed), f"{len(freed)} free blocks", pool.num_free_blocks)
    still_held = blocks[len(freed) :][:1]
    attempts = [("a block that is free", [*still_held, freed[0]])]
    attempts += [
        (f"block {number}, which there is not", [*still_held, number]) for number in (len(blocks), -1)
    ]
    if still_held:
        attempts.append(("a held block, named twice", still_held * 2))
    for words, attempt in attempts:
        story.step(f"free {words}")
        with story.allowing(ValueError) as answer:
            pool.free_blocks(list(attempt))
        refused = answer.is_refused
        story.see({"refused": refused, "free": pool.num_free_blocks}, [pool_row(case["num_blocks"], owners)])
        story.expect(refused, "ValueError", f"nothing was raised by freeing {words}", ACCEPTED)
        story.expect(
            pool.num_free_blocks == len(freed), f"{len(freed)} free blocks, as before", pool.num_free_blocks
        )
    story.step("free all that are held, and take all blocks")
    pool.free_blocks(given_as(len(freed), blocks[len(freed) :]))
    again = taken(pool, case["num_blocks"], story)
    story.see({"free": pool.num_free_blocks})
    story.expect(sorted(again or []) == sorted(blocks), "every block, once", again)


def run(case: Any, story: Story) -> Iterator[tuple[dict[int, Any], dict[int, int], list[int]]]:
    """Sequences grow, by what `missing_blocks` says, and finish.

    After each `(tables, lengths, changed)`: of many sequences, the one to which something has happened.
    """
    size, num_blocks = case["block_size"], case["num_blocks"]
    pool = subject.BlockPool(num_blocks)
    tables: dict[int, Any] = {}
    lengths: dict[int, int] = {}
    for name, which, tokens in case["operations"]:
        if name == "grow":
            table = tables.get(which) or subject.BlockTable(size)
            length = lengths.get(which, 0) + tokens
            held = sum(-(-n // size) for n in lengths.values())
            needed = -(-length // size) - -(-lengths.get(which, 0) // size)
            if held + needed > num_blocks:
                continue  # no room: another sequence may have some
            story.step(f"s{which} grows by {tokens} to {counted(length, 'token')}")
            missing = table.missing_blocks(length)
            again = table.missing_blocks(length)
            story.expect(missing == again, f"{missing} missing blocks, as when it was asked before", again)
            story.expect(
                missing == needed,
                f"{counted(needed, 'missing block')}, to have {-(-length // size)} of {size} tokens",
                missing,
            )
            given = given_as(tokens, taken(pool, missing, story) or [])
            table.append(given)
            if isinstance(given, list):
                given.clear()  # it is the caller's, who goes on with it
            tables[which], lengths[which] = table, length
        elif which in tables:
            story.step(f"s{which} finishes")
            pool.free_blocks(list(tables.pop(which).blocks))
            del lengths[which]
        else:
            continue
        owners = {block: who for who, table in tables.items() for block in table.blocks}
        story.see(
            {f"blocks of s{who}": len(table.blocks) for who, table in sorted(tables.items())}
            | {"free": pool.num_free_blocks},
            [
                pool_row(num_blocks, owners),
                *(
                    row(f"table of s{who}", [cell(b, who) for b in t.blocks])
                    for who, t in sorted(tables.items())
                ),
            ],
        )
        yield tables, lengths, list(tables) if len(tables) <= FEW else [which] if which in tables else []


@judged(
    "P5",
    "n tokens take n / block_size blocks, rounded up: less than a block is wasted.",
    SEQUENCES,
    hints=(
        "How many blocks of 4 tokens do 8 tokens need? And 9? And 0?",
        "Divide and round up. `missing_blocks` then subtracts what the table has, and is never negative.",
        "`-(-num_tokens // block_size)` rounds up; `max(0, … - len(self.blocks))` is what is missing.",
    ),
    large=large_sequences,
)
def waste_is_less_than_a_block(case: Any, story: Story) -> None:
    size = case["block_size"]
    for tables, lengths, changed in run(case, story):
        for who in changed:
            table, needed = tables[who], -(-lengths[who] // size)
            story.expect(
                len(table.blocks) == needed, f"{needed} blocks for {lengths[who]} tokens", len(table.blocks)
            )
            for shorter in range(lengths[who] + 1):
                missing = table.missing_blocks(shorter)
                story.expect(missing == 0, f"none missing for {counted(shorter, 'token')}", missing)
                blocks = subject.blocks_needed(shorter, size)
                story.expect(
                    blocks == -(-shorter // size),
                    f"{-(-shorter // size)} blocks for {counted(shorter, 'token')}",
                    blocks,
                )


@judged(
    "P6",
    "Every token has a slot of its own, in its block, at its offset.",
    SEQUENCES,
    hints=(
        "Take position 9 and blocks of 4. In which logical block is it, and at which place in that block?",
        "The logical block is `position // block_size`; the table makes it physical. What is left over?",
        "`self.blocks[position // self.block_size] * self.block_size + position % self.block_size`",
    ),
    large=large_sequences,
)
def slots_are_injective(case: Any, story: Story) -> None:
    tables: dict[int, Any] = {}
    lengths: dict[int, int] = {}
    for tables, lengths, changed in run(case, story):
        expect_slots(case["block_size"], {who: tables[who] for who in changed}, lengths, story)
    expect_slots(case["block_size"], tables, lengths, story)


def expect_slots(size: int, tables: dict[int, Any], lengths: dict[int, int], story: Story) -> None:
    used: dict[int, tuple[int, int]] = {}
    for who, table in tables.items():
        for position in range(lengths[who]):
            slot, name = table.slot(position), (position, who)
            if used.setdefault(slot, name) != name:
                wanted = "a slot of its own for token {} of s{}".format(*name)
                story.expect(False, wanted, "{}, as token {} of s{}".format(slot, *used[slot]))
            right = table.blocks[position // size] * size + position % size
            if slot != right:
                wanted = "slot {} for token {} of s{} (blocks {})".format(right, *name, list(table.blocks))
                story.expect(False, wanted, slot)


@judged(
    "P7",
    "A position that the table does not cover has no slot.",
    SEQUENCES,
    hints=(
        "What does Python's `blocks[-1]` do? What would the attention kernel do with that slot?",
        "Covered are positions from 0 to blocks · block_size - 1. Anything else is an IndexError.",
        "`if not 0 <= position < len(self.blocks) * self.block_size: raise IndexError(...)`",
    ),
)
def uncovered_positions_are_refused(case: Any, story: Story) -> None:
    size = case["block_size"]
    for tables, _, _ in run(case, story):
        for who, table in tables.items():
            room = len(table.blocks) * size
            for position in (-1, -room, room, room + size):
                if 0 <= position < room:
                    continue
                with story.allowing(IndexError) as answer:
                    slot = table.slot(position)
                wanted = f"IndexError for position {position} of s{who}, which has room for {room}"
                story.expect(answer.is_refused, wanted, "" if answer.is_refused else slot, ACCEPTED)
            story.expect(table.slot(room - 1) is not None, "a slot for the last place", None)
