"""What must always hold of prefix caches.

Prompts with common beginnings come and go, in small memories. What can be found is known by brute force: by
comparing a prompt with every earlier one, or from a model (`Memory`, `Paths`) in which whole prefixes are the
names of blocks: nothing is hashed, and nothing is a tree. So the judged code's own books are never believed.
"""

from collections.abc import Iterator, Sequence
from random import Random
from typing import Any

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

Prompt = tuple[list[int], str | None]
Path = tuple[str | None, tuple[int, ...]]
"""Salt and tokens from the beginning: what a block stands for."""

TOKENS = st.sampled_from((1, 2, 12, 21))
few = st.integers(0, 7)


def prompts_of(longest: int) -> Any:
    """Up to five prompts: the beginning of a common stem, then tokens of its own."""
    salts = st.sampled_from((None, None, None, "a", "1"))
    own = st.tuples(st.integers(0, longest), st.lists(TOKENS, max_size=longest // 2 + 1), salts)
    return st.builds(
        lambda stem, some: [[stem[:cut] + tokens, salt] for cut, tokens, salt in some],
        st.lists(TOKENS, min_size=1, max_size=longest),
        st.lists(own, min_size=1, max_size=5),
    )


def worlds(operation: Any, most_blocks: int = 9, longest: int = 7) -> Any:
    """Cases: a memory, some prompts, and what is done with them."""
    some = st.lists(operation, max_size=9)
    return st.fixed_dictionaries(
        {
            "num_blocks": st.integers(1, most_blocks),
            "block_size": st.sampled_from((1, 2, 3)),
            "prompts": prompts_of(longest),
            "operations": st.builds(list.__add__, some, some),
        }
    )


def large_prompts(dice: Random) -> list[Any]:
    """Forty prompts of up to a few hundred tokens of a large vocabulary, many of which begin alike."""
    found: list[Any] = [[[dice.randrange(150_000) for _ in range(160)], None]]
    while len(found) < 40:
        before, salt = dice.choice(found)
        begin = before[: dice.choice((0, 40, 64, 96, 128, len(before)))]
        own = [dice.randrange(150_000) for _ in range(dice.randrange(1, 70))]
        found.append([[*begin, *own], dice.choice((salt, salt, salt, "tenant"))])
    return found


def large_world(*names: str) -> Any:
    """A hundred and fifty operations in blocks of sixteen, and more blocks than a byte can count."""

    def make(dice: Random) -> Any:
        operations = [[dice.choice(names), dice.randrange(64), dice.randrange(12)] for _ in range(150)]
        sizes = {"num_blocks": 330, "block_size": 16}
        return {**sizes, "prompts": large_prompts(dice), "operations": operations}

    return make


def words(things: Any) -> str:
    return " ".join(map(str, things)) or "nothing"


def told(number: int, prompt: Prompt, size: int) -> str:
    """A prompt in words, cut into blocks."""
    tokens, salt = prompt
    cut = " | ".join(words(tokens[start : start + size]) for start in range(0, len(tokens), size))
    return f"p{number} ({cut or 'no tokens'}{'' if salt is None else f'; salt {salt!r}'})"


def common(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens two prompts have in common at their beginning."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((index for index, (a, b) in pairs if a != b), min(len(one), len(other)))


def brute_force(prompt: Prompt, earlier: Sequence[Prompt], size: int) -> int:
    """Full blocks that a prompt has in common with one of the earlier ones, compared token by token."""
    shared = [common(prompt[0], tokens) for tokens, salt in earlier if salt == prompt[1]]
    return max(shared, default=0) // size


def paths_of(prompt: Prompt, size: int) -> list[Path]:
    """What each full block of a prompt stands for."""
    tokens, salt = prompt
    return [(salt, tuple(tokens[:end])) for end in range(size, len(tokens) + 1, size)]


def as_list(story: Story, what: str, value: Any) -> list[int]:
    """A copy of a list that the judged code gave back; the list itself is cleared, for it is the caller's."""
    story.expect(isinstance(value, list), f"{what} to return a list of blocks", value)
    own = list(value)
    value.clear()
    return own


def matched(cache: Any, prompt: Prompt, story: Story) -> list[int]:
    tokens, salt = prompt
    return as_list(story, "match", cache.match(given_as(len(tokens), tokens), salt))


def looked_up(prompts: Sequence[Prompt], moment: int) -> list[tuple[int, Prompt]]:
    """The prompts that are looked up after an operation: all, or some if they are many."""
    numbered = list(enumerate(prompts))
    return numbered if len(numbered) <= 6 else [numbered[(moment * 5 + i) % len(numbered)] for i in range(5)]


class Cached:
    """What is right: the block of each path that is cached. Whole prefixes are the names."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.block_at: dict[Path, int] = {}

    def match(self, prompt: Prompt) -> list[int]:
        found = []
        for path in paths_of(prompt, self.size):
            if path not in self.block_at:
                break
            found.append(self.block_at[path])
        return found


def expect_longest(
    case: Any, found: dict[int, list[int]], earlier: Sequence[Prompt], cached: Cached, story: Story
) -> None:
    """Is the longest prefix found, as long as brute force says, and in the right blocks?"""
    for n, blocks in found.items():
        prompt = case["prompts"][n]
        count, right = brute_force(prompt, earlier, cached.size), cached.match(prompt)
        story.expect(len(blocks) == count, f"{counted(count, 'block')} for p{n}", words(blocks))
        story.expect(blocks == right, f"the blocks {words(right)} for p{n}", words(blocks))


# ── keys ──────────────────────────────────────────────────────────────────────────────────────────────

CHAINS = st.fixed_dictionaries(
    {
        "block_size": st.sampled_from((1, 2, 3)),
        "prompts": prompts_of(8),
        "changed": st.integers(0, 7),
        "by": st.sampled_from((1, 256, 65_536)),
    }
)


def large_chains(dice: Random) -> Any:
    return {"block_size": 16, "prompts": large_prompts(dice), "changed": dice.randrange(160), "by": 65_536}


def chain(prompt: Prompt, size: int, story: Story) -> list[Any]:
    """The keys of a prompt's full blocks."""
    tokens, salt = prompt
    keys: list[Any] = []
    for end in range(size, len(tokens) + 1, size):
        given = given_as(end, tokens[end - size : end])
        keys.append(subject.block_hash(keys[-1] if keys else None, given, salt))
        story.expect(keys[-1] is not None, "a key, which is not None", keys[-1])
    return keys


@judged(
    "P1",
    "Two blocks have one key exactly when they and all before them hold the same tokens, under one salt.",
    CHAINS,
    hints=(
        "Two prompts differ in their first token only. Which of their blocks may have the same key?",
        "The parent's key stands for all that comes before. Parent, tokens and salt all go into the key.",
        "`hash((parent, tuple(token_ids), salt))`; a text of digits alone can't tell 1, 12 from 11, 2.",
    ),
    when={
        CRASH: "Tokens may come as a list, a tuple or an iterator, and a list has no hash: "
        "`tuple(token_ids)`. The parent of a first block is `None`.",
    },
    large=large_chains,
)
def a_key_stands_for_everything_before(case: Any, story: Story) -> None:
    size = case["block_size"]
    known: dict[Any, Path] = {}
    key_of: dict[Path, Any] = {}
    prompts = [(tokens, salt) for tokens, salt in case["prompts"]]
    changed = []
    for tokens, salt in prompts:
        for place in [case["changed"] % len(tokens)] if tokens else []:
            changed.append(([*tokens[:place], tokens[place] + case["by"], *tokens[place + 1 :]], salt))
            # The same digits, cut otherwise: 1 21 becomes 12 1.
            digits = words(tokens[place : place + 2]).replace(" ", "")
            cuts = [(int(digits[:i]), int(digits[i:])) for i in range(1, len(digits))]
            changed += [([*tokens[:place], *cut, *tokens[place + 2 :]], salt) for cut in cuts[:3]]
    for number, prompt in enumerate([*prompts, *changed]):
        story.step(f"the keys of {told(number, prompt, size)}", empty=not prompt[0])
        keys = chain(prompt, size, story)
        paths = paths_of(prompt, size)
        seen = [f"{i}: {'a key known before' if key in known else 'a new key'}" for i, key in enumerate(keys)]
        story.see({"keys": ", ".join(seen) or "none"}, [row("blocks", [words(p[1][-size:]) for p in paths])])
        for index, (key, path) in enumerate(zip(keys, paths, strict=True)):
            other = known.setdefault(key, path)
            story.expect(
                other == path,
                f"a key of its own for block {index} of p{number}",
                f"the key of the block after {words(other[1])}, salt {other[0]!r}",
            )
            again = key_of.setdefault(path, key)
            story.expect(again == key, f"for block {index} of p{number} the key that it had before", key)


# ── the cache with hashes ─────────────────────────────────────────────────────────────────────────────

BEGIN, END = "begin", "end"
SERVED = worlds(st.tuples(st.sampled_from((BEGIN, BEGIN, END)), few, st.just(0)))


@judged(
    "P2",
    "HashPrefixCache finds the longest cached prefix in full blocks, as brute force does.",
    worlds(st.tuples(st.just(BEGIN), few, st.just(0)), longest=9),
    hints=(
        "A prompt of 7 tokens, blocks of 3: which blocks can be found? When must the search stop?",
        "Walk from the first block on: each key needs the one before. Stop at the first that isn't cached.",
        "`key = block_hash(key, tokens, salt)` for each full block, and a dictionary from keys to blocks.",
    ),
    when={
        EMPTY: "A prompt without tokens is no error: it finds nothing, and its table is an empty list.",
        CRASH: "Tokens may come as an iterator, which has no length and can be walked only once: first of "
        "all, `tokens = list(tokens)`.",
    },
    large=large_world(BEGIN),
)
def the_cache_finds_the_longest_prefix(case: Any, story: Story) -> None:
    size = case["block_size"]
    room = sum(len(tokens) // size + 1 for tokens, _ in case["prompts"]) * (len(case["operations"]) + 1)
    cache, earlier, cached = subject.HashPrefixCache(room, size), list[Prompt](), Cached(size)
    for moment, (_, number, _) in enumerate(case["operations"]):
        number %= len(case["prompts"])
        prompt = case["prompts"][number]
        story.step(f"{told(number, prompt, size)} begins", empty=not prompt[0])
        tokens = list(prompt[0])
        table = as_list(story, "allocate", cache.allocate(tokens, prompt[1]))
        tokens.clear()
        needed = -(-len(prompt[0]) // size)
        story.expect(len(table) == needed, f"{needed} blocks for {len(prompt[0])} tokens", words(table))
        for path, block in zip(paths_of(prompt, size), table, strict=False):
            first = cached.block_at.setdefault(path, block)
            story.expect(first == block, f"block {first}, which holds the same prefix", block)
        earlier.append(prompt)
        found = {n: matched(cache, other, story) for n, other in looked_up(case["prompts"], moment)}
        facts = {f"p{n} finds": counted(len(blocks), "block") for n, blocks in found.items()}
        story.see(facts, [row(f"table of p{number}", table)])
        expect_longest(case, found, earlier, cached, story)


class Memory(Cached):
    """What is right: blocks are known by what they stand for, and evictable ones wait in a list."""

    def __init__(self, num_blocks: int, size: int) -> None:
        super().__init__(size)
        self.num_blocks = num_blocks
        self.users: dict[int, int] = {}
        self.evictable: list[int] = []
        """The least recently used first."""

    @property
    def empty(self) -> set[int]:
        return set(range(self.num_blocks)) - set(self.users) - set(self.evictable)

    @property
    def num_free(self) -> int:
        return self.num_blocks - len(self.users)

    def missing(self, prompt: Prompt) -> int:
        return -(-len(prompt[0]) // self.size) - len(self.match(prompt))

    def has_room(self, prompt: Prompt) -> bool:
        idle = sum(block not in self.users for block in self.match(prompt))
        return self.missing(prompt) <= self.num_free - idle

    def begin(self, prompt: Prompt, table: Sequence[int]) -> None:
        new = {*table[len(self.match(prompt)) :]}
        self.block_at = {path: block for path, block in self.block_at.items() if block not in new}
        self.block_at.update(zip(paths_of(prompt, self.size), table, strict=False))
        self.evictable = [block for block in self.evictable if block not in table]
        for block in table:
            self.users[block] = self.users.get(block, 0) + 1

    def end(self, table: Sequence[int]) -> None:
        for block in reversed(table):
            self.users[block] -= 1
            if self.users[block] == 0:
                del self.users[block]
                if block in self.block_at.values():
                    self.evictable.append(block)

    def board(self) -> Any:
        """A picture of the memory."""
        holds = {block: words(path[1][-self.size :]) for path, block in self.block_at.items()}
        cells = [
            cell(holds.get(block, "·"), block)
            if block in self.users
            else cell(holds.get(block, ""), None, "free")
            for block in range(self.num_blocks)
        ]
        return row("blocks 0 …", cells)


def serve(case: Any, story: Story, attempts: bool = False) -> Iterator[tuple[Any, Any, Any, Any, Any]]:
    """Sequences begin and end; `(cache, memory, prompt, table, what match said before)` after each."""
    size, prompts = case["block_size"], case["prompts"]
    cache, memory = subject.HashPrefixCache(case["num_blocks"], size), Memory(case["num_blocks"], size)
    running: list[tuple[int, list[int]]] = []
    for moment, (name, number, _) in enumerate(case["operations"]):
        table: list[int] = []
        which = number % len(prompts)
        prompt = prompts[which]
        if name == BEGIN and not memory.has_room(prompt):
            if attempts:
                refuse_to_begin(cache, memory, prompts, which, story)
            continue
        if name == BEGIN:
            story.step(f"{told(which, prompt, size)} begins", empty=not prompt[0])
            found = matched(cache, prompt, story)
            with story.allowing(subject.OutOfBlocksError) as answer:
                table = as_list(story, "allocate", cache.allocate(given_as(moment, prompt[0]), prompt[1]))
            new = memory.missing(prompt)
            wanted = f"room: it takes {new} new blocks"
            story.expect(not answer.is_refused, wanted, "OutOfBlocksError", REFUSED)
            yield cache, memory, prompt, table, found
            memory.begin(prompt, table)
            running.append((which, table))
        elif running:
            number, table = running.pop(number % len(running))
            story.step(f"p{number} ends, and its {len(table)} blocks are freed")
            given = given_as(moment, list(table))
            cache.free(given)
            memory.end(table)
        else:
            continue
        shown = {f"p{n} finds": len(matched(cache, other, story)) for n, other in looked_up(prompts, moment)}
        story.see({"free": cache.num_free_blocks, **shown}, [memory.board()])
        yield cache, memory, None, running, looked_up(prompts, moment)
        if attempts:
            refuse_to_free(cache, memory, prompts, running, moment, story)
    for number, table in running:
        story.step(f"p{number} ends, and its {len(table)} blocks are freed")
        cache.free(list(table))
    story.step("a prompt takes all blocks")
    count = case["num_blocks"]
    every = as_list(story, "allocate", cache.allocate([7] * (count * size - size + 1), "all"))
    story.see({"free": cache.num_free_blocks})
    story.expect(
        sorted(every) == list(range(count)), f"every block from 0 to {count - 1}, once", words(every)
    )


@judged(
    "P3",
    "A block in use is neither evicted nor given to others; used and free blocks are all blocks.",
    SERVED,
    hints=(
        "What does a new sequence get that finds two blocks and needs three? Who else uses each of the five?",
        "Count the users of each block. Blocks that are found leave the evictable ones before you evict any.",
        "First take `found` out of the evictable blocks, then take new ones; `free` counts down.",
    ),
    when={
        REFUSED: "There was room: a cached block that no sequence uses counts as free, and may be evicted.",
        EMPTY: "A prompt without tokens takes no block, and freeing its empty table changes nothing.",
    },
    large=large_world(BEGIN, BEGIN, END),
)
def a_block_in_use_stays(case: Any, story: Story) -> None:
    for cache, memory, prompt, blocks, found in serve(case, story):
        if prompt is not None:
            needed = -(-len(prompt[0]) // memory.size)
            story.expect(len(blocks) == needed, f"{needed} blocks for {len(prompt[0])} tokens", words(blocks))
            strange = [block for block in blocks if block not in range(memory.num_blocks)]
            story.expect(not strange, f"blocks from 0 to {memory.num_blocks - 1}", words(strange))
            story.expect(blocks[: len(found)] == found, f"first the blocks {words(found)}", words(blocks))
            taken = [b for b in blocks[len(found) :] if b in memory.users or blocks.count(b) > 1]
            story.expect(not taken, "new blocks that are in no table, each once", f"{words(blocks)}")
            continue
        story.expect(
            cache.num_free_blocks == memory.num_free, f"{memory.num_free} free blocks", cache.num_free_blocks
        )
        for number, table in blocks:
            used = case["prompts"][number]
            right = table[: len(used[0]) // memory.size]
            again = matched(cache, used, story)
            story.expect(
                again == right, f"p{number} to be found in {words(right)}, which it uses", words(again)
            )


@judged(
    "P4",
    "Only what is needed is evicted: the least recently used block first, the end before the beginning.",
    SERVED,
    hints=(
        "Two sequences have ended. Which block goes first? And is one evicted while an empty one is free?",
        "Blocks become evictable in the order in which they're freed, each table from its end. Keep it.",
        "`for block in reversed(blocks)`: append it to an ordered dictionary, and evict from its front.",
    ),
    large=large_world(BEGIN, BEGIN, END),
)
def the_least_recently_used_block_goes(case: Any, story: Story) -> None:
    lru_holds(serve(case, story), story)


def lru_holds(moments: Any, story: Story) -> None:
    """Are the blocks evicted that must be, and no others?"""
    for cache, memory, prompt, blocks, seen in moments:
        if prompt is not None:
            right = memory.match(prompt)
            story.expect(seen == right, f"the blocks {words(right)} to be found", words(seen))
            new = blocks[len(seen) :]
            evicted = [block for block in memory.evictable if block in new]
            idle = [block for block in memory.evictable if block not in right]
            must = idle[: max(0, len(new) - len(memory.empty))]
            story.expect(
                evicted == must,
                f"evicted: {words(must)} (evictable are {words(idle)}; empty are {len(memory.empty)} blocks)",
                f"evicted: {words(evicted)}",
            )
            continue
        for number, other in seen:
            right, found = memory.match(other), matched(cache, other, story)
            story.expect(found == right, f"p{number} to be found in: {words(right)}", words(found))


# ── the tree ──────────────────────────────────────────────────────────────────────────────────────────

INSERT, PIN, UNPIN, EVICT = "insert", "pin", "unpin", "evict"


@judged(
    "P5",
    "RadixTree finds the longest cached prefix in full blocks, too, as brute force does.",
    worlds(st.tuples(st.just(INSERT), few, st.just(0)), longest=9),
    hints=(
        "An edge holds blocks A B C, and a prompt comes with A B D. What must the tree look like then?",
        "Walk down as far as the pieces agree. If that ends within an edge, split the edge there.",
        "The upper part takes the node's place with its first blocks; the node itself becomes its child.",
    ),
    when={
        EMPTY: "A prompt without a full block: nothing is inserted, nothing is found, and no node is made.",
        CRASH: "Look at the edge in the line that raised. After a split both parts have at least one "
        "block, and the lower one is a child of the upper one, under its own first tokens.",
    },
    large=large_world(INSERT),
)
def the_tree_finds_the_longest_prefix(case: Any, story: Story) -> None:
    size = case["block_size"]
    tree, earlier, model = subject.RadixTree(size), list[Prompt](), Paths(size)
    for moment, (_, number, _) in enumerate(case["operations"]):
        number %= len(case["prompts"])
        prompt = case["prompts"][number]
        insert(tree, model, number, prompt, story, moment)
        earlier.append(prompt)
        found = {n: matched(tree, other, story) for n, other in looked_up(case["prompts"], moment)}
        facts = {f"p{n} finds": words(blocks) for n, blocks in found.items()}
        story.see({"cached": tree.num_cached_blocks} | facts, model.board())
        count = len(model.block_at)
        story.expect(tree.num_cached_blocks == count, f"{count} cached blocks", tree.num_cached_blocks)
        expect_longest(case, found, earlier, model, story)


class Paths(Cached):
    """What is right: for each path its block, the time of its last use, and the pinned paths."""

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.time = self.next_block = 0
        self.used: dict[Path, int] = {}
        self.pins: list[list[Path]] = []

    def use(self, paths: Sequence[Path]) -> None:
        self.time += 1
        self.used.update(dict.fromkeys(paths, self.time))

    @property
    def pinned(self) -> set[Path]:
        return {path for pin in self.pins for path in pin}

    @property
    def num_evictable(self) -> int:
        return len(self.block_at) - len(self.pinned)

    def evict(self, count: int) -> list[int]:
        """One block after the other, each found by looking at all of them."""
        evicted, pinned = [], self.pinned
        for _ in range(count):
            followed = {(salt, tokens[: -self.size]) for salt, tokens in self.block_at}
            ends = [path for path in self.block_at if path not in followed and path not in pinned]
            oldest = min(ends, key=lambda path: self.used[path])
            evicted.append(self.block_at.pop(oldest))
        return evicted

    def board(self) -> list[Any]:
        """A row for each cached path that no other goes on from."""
        followed = {(salt, tokens[: -self.size]) for salt, tokens in self.block_at}
        pinned, rows = self.pinned, []
        for path in [path for path in self.block_at if path not in followed][:8]:
            paths = paths_of((list(path[1]), path[0]), self.size)
            cells = [
                cell(words(p[1][-self.size :]), self.block_at[p], "" if p in pinned else "free")
                for p in paths
            ]
            rows.append(row("" if path[0] is None else f"salt {path[0]}", cells))
        return rows


def insert(tree: Any, model: Paths, number: int, prompt: Prompt, story: Story, form: int) -> None:
    """Insert a prompt with new blocks; those that are not needed must come back."""
    paths, found = paths_of(prompt, model.size), model.match(prompt)
    # Some of the blocks that are given are those that are cached for it already, as after a match.
    given = found[: len(found) * (form % 2)]
    given += range(model.next_block, model.next_block + len(paths) - len(given))
    model.next_block += len(paths)
    inserted = f"{told(number, prompt, model.size)} is inserted, in the blocks {words(given)}"
    story.step(inserted, empty=not paths)
    tokens, handed = list(prompt[0]), list(given)
    answer = tree.insert(given_as(form, tokens), given_as(form // 2, handed), prompt[1])
    tokens.clear()
    handed.clear()
    back = as_list(story, "insert", answer)
    right = [block for block, other in zip(given, found, strict=False) if block != other]
    story.expect(back == right, f"back the blocks that were given in vain: {words(right)}", words(back))
    for path, block in zip(paths, given, strict=True):
        model.block_at.setdefault(path, block)
    model.use(paths)


def grow(case: Any, story: Story, attempts: bool = False) -> Iterator[tuple[Any, Paths, Any]]:
    """Insert prompts, pin and unpin paths, evict blocks; `(tree, model, looked up)` after each."""
    size, prompts = case["block_size"], case["prompts"]
    tree, model = subject.RadixTree(size), Paths(size)
    for moment, (name, number, count) in enumerate(case["operations"]):
        prompt = prompts[number % len(prompts)]
        if name == INSERT:
            insert(tree, model, number % len(prompts), prompt, story, moment)
        elif name == PIN:
            path = paths_of(prompt, size)[: len(model.match(prompt))]
            path = path[: len(path) - count % 3] if len(path) > 2 else path
            blocks = [model.block_at[one] for one in path]
            story.step(f"the path {words(blocks)} is pinned")
            tree.pin(given_as(moment, blocks))
            model.pins.append(path)
            model.use(path)
        elif name == UNPIN and model.pins:
            path = model.pins.pop(number % len(model.pins))
            blocks = [model.block_at[one] for one in path]
            story.step(f"the path {words(blocks)} is unpinned")
            tree.unpin(given_as(moment, blocks))
            model.use(path)
        elif name == EVICT:
            count = min(count, model.num_evictable)
            evict(tree, model, count, story)
        else:
            continue
        shown = {f"p{n} finds": words(matched(tree, other, story)) for n, other in looked_up(prompts, moment)}
        counts = {"cached": tree.num_cached_blocks, "evictable": tree.num_evictable_blocks}
        story.see(counts | shown, model.board())
        yield tree, model, looked_up(prompts, moment)
        if attempts:
            refuse_in_tree(tree, model, prompts, moment, story)
    evict(tree, model, model.num_evictable, story)
    for path in model.pins:
        story.step(f"the path {words(model.block_at[one] for one in path)} is unpinned")
        tree.unpin([model.block_at[one] for one in path])
        model.use(path)
    model.pins.clear()
    evict(tree, model, model.num_evictable, story)
    story.expect(tree.num_cached_blocks == 0, "no cached block", tree.num_cached_blocks)


def evict(tree: Any, model: Paths, count: int, story: Story) -> None:
    """Evict, and compare block by block."""
    story.step(f"{count} blocks are evicted", empty=count == 0)
    pinned = {model.block_at[path] for path in model.pinned}
    blocks = as_list(story, "evict", tree.evict(count))
    story.see({"evicted": words(blocks)}, model.board())
    story.expect(len(blocks) == count, counted(count, "block"), words(blocks))
    story.expect(not pinned & set(blocks), f"no pinned block ({words(sorted(pinned))})", words(blocks))
    right = model.evict(count)
    story.expect(blocks == right, f"{words(right)}, the least recently used ends of paths", words(blocks))


@judged(
    "P6",
    "A pinned path is never evicted; of the other ends of paths, the least recently used goes first.",
    worlds(st.tuples(st.sampled_from((INSERT, INSERT, PIN, UNPIN, EVICT)), few, st.integers(0, 4))),
    hints=(
        "A path that ends within an edge is pinned. What of the rest of that edge, and its last use?",
        "Split where the path ends; then count the pin, and the time, in every node from there to the root.",
        "Evict from the end of the unpinned node without children whose last use is oldest, block by block.",
    ),
    when={
        EMPTY: "Nothing is inserted, or 0 blocks are evicted: the answer is an empty list, and no time is "
        "counted.",
    },
    large=large_world(INSERT, INSERT, PIN, UNPIN, EVICT),
)
def pins_hold_and_old_leaves_go(case: Any, story: Story) -> None:
    tree_holds(grow(case, story), story)


def tree_holds(moments: Any, story: Story) -> None:
    """Does the tree hold what it must, and count it?"""
    for tree, model, seen in moments:
        counts = (tree.num_cached_blocks, tree.num_evictable_blocks)
        right = (len(model.block_at), model.num_evictable)
        story.expect(counts == right, f"{right[0]} cached blocks, {right[1]} evictable", counts)
        for number, prompt in seen:
            blocks, found = model.match(prompt), matched(tree, prompt, story)
            story.expect(found == blocks, f"p{number} to be found in: {words(blocks)}", words(found))


# ── what cannot be done ───────────────────────────────────────────────────────────────────────────────


def refused(story: Story, text: str, error: Any, function: Any, *arguments: Any) -> None:
    story.step(text)
    with story.allowing(error) as answer:
        function(*arguments)
    said = error.__name__ if answer.is_refused else "no error"
    story.see({"answer": said})
    story.expect(answer.is_refused, error.__name__, said, ACCEPTED)


def refuse_to_begin(cache: Any, memory: Memory, prompts: Sequence[Prompt], number: int, story: Story) -> None:
    """A prompt for which there is no room."""
    prompt = prompts[number]
    text = f"{told(number, prompt, memory.size)} begins: {memory.missing(prompt)} new blocks, no room"
    refused(story, text, subject.OutOfBlocksError, cache.allocate, list(prompt[0]), prompt[1])
    as_before(cache, memory, prompts, story)


def refuse_to_free(
    cache: Any, memory: Memory, prompts: Sequence[Prompt], running: Any, moment: int, story: Story
) -> None:
    """Tables that no sequence has."""
    used = [block for _, table in running for block in table][:2]
    free = sorted(set(range(memory.num_blocks)) - set(memory.users))
    attempts = [
        ("that there is not", [*used, memory.num_blocks + moment]),
        ("that there is not", [*used, -1]),
    ]
    if free:
        attempts.append(("that is free", [*used, free[moment % len(free)]]))
    if used:
        attempts.append(("of them, named twice", [*used, used[0]]))
    why, blocks = attempts[moment % len(attempts)]
    refused(
        story,
        f"freed are {counted(len(used), 'block')} in use and one {why}",
        ValueError,
        cache.free,
        given_as(moment, blocks),
    )
    as_before(cache, memory, prompts, story)


def as_before(cache: Any, memory: Memory, prompts: Sequence[Prompt], story: Story) -> None:
    story.expect(
        cache.num_free_blocks == memory.num_free,
        f"{memory.num_free} free blocks, as before",
        cache.num_free_blocks,
    )
    for number, prompt in looked_up(prompts, 0):
        right, found = memory.match(prompt), matched(cache, prompt, story)
        story.expect(found == right, f"p{number} to be found as before: {words(right)}", words(found))


def refuse_in_tree(tree: Any, model: Paths, prompts: Sequence[Prompt], moment: int, story: Story) -> None:
    """Paths that there are not, blocks that are cached elsewhere, more than is evictable."""
    stranger, cached = model.next_block + 9, list(model.block_at.values())
    unpinned = [path for path in model.block_at if path not in model.pinned]
    prompt = next((one for one in prompts if len(one[0]) >= model.size), ([1] * model.size, None))
    new = [stranger + i for i in range(len(prompt[0]) // model.size)]
    attempts: list[tuple[str, Any, list[Any]]] = [
        (f"more is evicted than the {model.num_evictable} blocks", tree.evict, [model.num_evictable + 1]),
        (f"block {stranger} is pinned, which is not cached", tree.pin, [[stranger]]),
        (f"block {stranger} is unpinned, which is not cached", tree.unpin, [[stranger]]),
        ("a prompt is inserted with a block too many", tree.insert, [prompt[0], [*new, -1], prompt[1]]),
        ("a prompt is inserted with a block too few", tree.insert, [prompt[0], new[1:], prompt[1]]),
    ]
    if len(new) > 1:
        twice = [*new[:-1], new[0]]
        attempts.append(
            ("a prompt is inserted with a block named twice", tree.insert, [prompt[0], twice, prompt[1]])
        )
    if cached:
        other = [*prompt[0][:-1], 99] if len(prompt[0]) == model.size else [*prompt[0], *[99] * model.size]
        blocks = [stranger + i for i in range(len(other) // model.size - 1)] + [cached[moment % len(cached)]]
        text = f"new tokens are inserted in {words(blocks)}, the last of which is cached elsewhere"
        attempts.append((text, tree.insert, [other, blocks, prompt[1]]))
    long = next((path for path in model.block_at if len(path[1]) > model.size), None)
    if long is not None:
        path = [model.block_at[one] for one in paths_of((list(long[1]), long[0]), model.size)]
        for wrong in (path[1:], path[::-1], [*path, path[-1]], [path[0], *path[2:], stranger]):
            attempts.append((f"{words(wrong)} is pinned, which is no path", tree.pin, [wrong]))
    if unpinned:
        salt, tokens = unpinned[moment % len(unpinned)]
        path = [model.block_at[one] for one in paths_of((list(tokens), salt), model.size)]
        attempts.append((f"{words(path)} is unpinned, which is not pinned", tree.unpin, [path]))
    text, function, arguments = attempts[moment * 7 % len(attempts)]
    refused(story, text, ValueError, function, *arguments)
    tree_holds([(tree, model, looked_up(prompts, 0))], story)


@judged(
    "P7",
    "What cannot be done is refused, and a refusal changes nothing.",
    st.fixed_dictionaries(
        {
            "served": SERVED,
            "grown": worlds(
                st.tuples(st.sampled_from((INSERT, INSERT, PIN, UNPIN, EVICT)), few, st.integers(0, 4))
            ),
        }
    ),
    hints=(
        "What does your code change before it notices that it must refuse? Is that undone?",
        "Look at everything first: is there room without what is found? Is each block what it must be?",
        "Found blocks that are evictable are no room for new ones. `list(blocks)` first, then all checks.",
    ),
    when={
        ACCEPTED: "No error came. Is each block looked at: is it there, in use (or pinned), and named only "
        "once?",
        AFTER_REFUSAL: "The error came, but something had changed by then: a count, the order of the "
        "evictable blocks, an edge that was split, the time of a last use.",
        CRASH: "An exception of another kind than the exercise asks for: what is not in a dictionary "
        "raises `KeyError`, and an empty one, too. Look before you take.",
    },
)
def a_refusal_changes_nothing(case: Any, story: Story) -> None:
    lru_holds(serve(case["served"], story, attempts=True), story)
    tree_holds(grow(case["grown"], story, attempts=True), story)
