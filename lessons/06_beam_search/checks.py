"""What must always hold of samples and beams that share blocks.

The language model is a few numbers here (`Toy`): the log-probability of a token is one of them, a different
one after each beginning. They are eighths, so sums are exact and equal scores are really equal. What a search
must do is known from one that owns no memory (`Search`), what is best from trying everything (P5), and which
blocks are shared from tables whose blocks are only names (`Names`). So the judged code's books are never
believed, and it may take any free block and any name for a sequence.
"""

from collections import Counter
from copy import deepcopy
from itertools import product
from numbers import Integral, Real
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

STRANGER = 10**6
"""The name of no sequence."""
IMPOSSIBLE = 13
"""Of the numbers of a toy model: this one stands for a log-probability of minus infinity."""
PENALTIES = (1.0, 0.0, 2.0, 0.5)
MOST_SHOWN = 12
"""Of a large family, so many sequences are shown."""
ROOMY = 3
"""Spare blocks for each beam, where it does not matter when blocks come back."""


# ── sequences that share blocks ───────────────────────────────────────────────────────────────────────


class Names:
    """What is right in the memory: tables whose blocks are only names. Readers are looked up, not counted."""

    def __init__(self, block_size: int) -> None:
        self.block_size = block_size
        self.data: dict[int, list[int]] = {}
        """Every sequence has all of its tokens for itself."""
        self.tables: dict[int, list[int]] = {}
        self._next = 0

    def readers(self, block: int) -> int:
        return sum(block in table for table in self.tables.values())

    @property
    def used(self) -> int:
        return len({block for table in self.tables.values() for block in table})

    def is_taking(self, who: int) -> bool:
        """Does it take a block to write one more token?"""
        if len(self.data[who]) % self.block_size == 0:
            return True
        return self.readers(self.tables[who][-1]) > 1

    def add(self, who: int, parent: int | None = None) -> None:
        self.data[who] = list(self.data.get(parent, [])) if parent is not None else []
        self.tables[who] = list(self.tables.get(parent, [])) if parent is not None else []

    def append(self, who: int, token: int) -> None:
        if self.is_taking(who):
            if len(self.data[who]) % self.block_size:
                self.tables[who].pop()
            self.tables[who].append(self._next)
            self._next += 1
        self.data[who].append(token)

    def free(self, who: int) -> None:
        del self.data[who], self.tables[who]


def words(things: Any) -> str:
    return " ".join(map(str, things))


def write(cache: Any, names: Names, who: int, seq_id: Any, tokens: list[int]) -> None:
    for token in tokens:
        cache.append(seq_id, token)
        names.append(who, token)


def table_of(cache: Any, seq_id: Any, who: str, story: Story) -> list[int]:
    """A table, if it is one."""
    table, count = cache.tables.get(seq_id), len(cache.storage)
    is_table = isinstance(table, list) and all(isinstance(b, Integral) and 0 <= b < count for b in table)
    story.expect(is_table, f"the table of {who} to be a list of blocks", table)
    return list(table)


def memory_rows(cache: Any, tables: dict[str, list[int]]) -> list[Any]:
    """The blocks, and who maps them."""
    colours = {who: number for number, who in enumerate(tables)}
    first = {block: colours[who] for who, table in reversed(tables.items()) for block in table}
    texts = [words("·" if token is None else token for token in tokens) for tokens in cache.storage]
    blocks = [cell(text, first[b]) if b in first else cell("", mark="free") for b, text in enumerate(texts)]
    maps = [row(f"table of {who}", [cell(b, first[b]) for b in t]) for who, t in tables.items()]
    return [row("blocks 0 …", blocks), *maps]


def memory_right(cache: Any, names: Names, called: dict[int, tuple[str, Any]], story: Story) -> None:
    """Are blocks free, shared and counted as they must be, and does each sequence read its own tokens?

    Args:
        called: what each sequence of `names` is called in the story, and in the cache.
    """
    tables = {who: table_of(cache, seq_id, told, story) for who, (told, seq_id) in called.items()}
    for who, (told, seq_id) in called.items():
        data, table = names.data[who], tables[who]
        found, num_blocks = cache.read(seq_id), len(names.tables[who])
        if found != data:  # the words are many, and there are hundreds of sequences
            story.expect(False, f"{told} to read {words(data)}", found)
        story.expect(len(table) == num_blocks, f"{counted(num_blocks, 'block')} for {told}", table)
    right = len(cache.storage) - names.used
    free = sorted(cache.free_list)
    used = {block for table in tables.values() for block in table}
    story.expect(len(used) == names.used, f"{counted(names.used, 'block')} in the tables", sorted(used))
    not_used = sorted(set(range(len(cache.storage))) - used)
    story.expect(free == not_used, f"{right} free blocks: all that are in no table", words(free))
    readers = Counter(block for table in tables.values() for block in set(table))
    for block, count in readers.items():
        told = cache.ref_counts[block]
        story.expect(told == count, f"{counted(count, 'reader')} of block {block}", told)
    others = set(cache.tables) - {seq_id for _, seq_id in called.values()}
    story.expect(not others, "no other sequence to be left", sorted(map(str, others)))


FORK, APPEND, FREE = "fork", "append", "free"
which = st.integers(0, 7)
DOINGS = {
    FORK: st.tuples(st.just(FORK), which, st.sampled_from((1, 2, 1, 3, 0))),
    APPEND: st.tuples(st.just(APPEND), which, st.integers(1, 4)),
    FREE: st.tuples(st.just(FREE), which, st.just(0)),
}


def families(*doings: str) -> Any:
    """Cases: a prompt, and what it and its children do then."""
    sizes = {"num_blocks": st.integers(2, 16), "block_size": st.sampled_from((2, 3, 4, 1))}
    sizes["length"] = st.integers(0, 9)
    some = st.lists(st.one_of(*(DOINGS[name] for name in doings)), max_size=8)
    return st.fixed_dictionaries({**sizes, "operations": st.builds(list.__add__, some, some)})


def large_family(dice: Random) -> Any:
    """A prompt of six full blocks, three hundred samples at a time: more than a byte can count."""
    operations = [[FORK, 0, 300]]
    for _ in range(20):
        operations.append([dice.choice((APPEND, APPEND, FREE)), dice.randrange(300), dice.randrange(1, 20)])
    return {"num_blocks": 400, "block_size": 16, "length": 103, "operations": operations}


def live(case: Any, story: Story) -> Any:
    """Do what a case says; after each step, the cache, the model, and who is called what."""
    cache, names = subject.KVCache(case["num_blocks"], case["block_size"]), Names(case["block_size"])
    called = {0: ("s0", cache.new_sequence())}
    names.add(0)
    next_token, next_name = 10, 1
    for name, number, count in [(APPEND, 0, case["length"]), *case["operations"]]:
        if not called:
            return
        who = sorted(called)[number % len(called)]
        told, seq_id = called[who]
        if name == FORK:
            story.step(f"{told} forks to {count} more", empty=count == 0)
            children = cache.fork_n(seq_id, count)
            story.expect(isinstance(children, list), "fork_n to return a list of names", children)
            story.expect(len(children) == count, f"{count} names", children)
            ids = [*(seq_id for _, seq_id in called.values()), *children]
            story.expect(len(set(ids)) == len(ids), "a name of its own for each", ids)
            for child in children:
                names.add(next_name, who)
                called[next_name] = (f"s{next_name}", child)
                next_name += 1
            children.clear()  # the list belongs to the caller
        elif name == APPEND:
            tokens = []
            story.step(f"{told} appends {counted(count, 'token')} from {next_token} on")
            for _ in range(count):
                error = subject.OutOfBlocksError
                if names.is_taking(who) and names.used == case["num_blocks"]:
                    must_be_refused(cache, story, "append", error, cache.append, seq_id, 99)
                    break
                tokens.append(next_token)
                with story.allowing(error) as answer:
                    write(cache, names, who, seq_id, [next_token])
                wanted = f"room for token {next_token}"
                story.expect(not answer.is_refused, wanted, "OutOfBlocksError", REFUSED)
                next_token += 1
        else:
            story.step(f"{told} is freed")
            cache.free(seq_id)
            names.free(who)
            del called[who]
        shown = list(called.values())[:MOST_SHOWN]
        tables = {told: table_of(cache, seq_id, told, story) for told, seq_id in shown}
        facts = {told: words(cache.read(seq_id)) for told, seq_id in shown}
        story.see(facts | {"free": len(cache.free_list)}, memory_rows(cache, tables))
        yield cache, names, called


def everything(cache: Any) -> dict[str, Any]:
    """All that can be seen of a cache."""
    seen = {"free blocks": sorted(cache.free_list), "references": cache.ref_counts}
    seen |= {"tables": cache.tables, "lengths": cache.lengths}
    seen["what is read"] = {seq_id: cache.read(seq_id) for seq_id in cache.tables}
    return deepcopy(seen)


def must_be_refused(cache: Any, story: Story, name: str, error: Any, function: Any, *arguments: Any) -> None:
    """Try what cannot be done."""
    before = everything(cache)
    with story.allowing(error) as answer:
        function(*arguments)
    story.expect(answer.is_refused, f"{error.__name__} from {name}", "no error", ACCEPTED)
    for part, value in everything(cache).items():
        story.expect(value == before[part], f"{part} as before: {before[part]}", value)


@judged(
    "P1",
    "A fork into n takes no block: each block has n readers more, and all read what the parent reads.",
    families(FORK, FORK, FREE),
    hints=(
        "Ten answers to one prompt: how many of its blocks are needed once, and how many ten times?",
        "Each child has a table of its own with the same numbers, and the parent's length. Who counts?",
        "`self.tables[child] = list(table)` for each child; `self.ref_counts[block] += n` for each block.",
    ),
    when={
        EMPTY: "A fork into 0 makes no child, and no reference: the answer is an empty list.",
        CRASH: "A parent may have no token and no block yet. And a child needs its entry in `tables` and "
        "in `lengths`, under a name that `new_sequence` gives.",
    },
    large=large_family,
)
def a_fork_takes_no_block(case: Any, story: Story) -> None:
    for cache, names, called in live(case, story):
        memory_right(cache, names, called, story)


@judged(
    "P2",
    "Each sequence reads its own tokens; of r readers that write to a block, r − 1 copy it.",
    families(FORK, APPEND, APPEND, APPEND, FREE),
    hints=(
        "Parent and child map a block that is half full, and the child writes into it. Who sees that?",
        "A block with other readers is copied first, and loses a reader at once. The last one is alone then.",
        "If `offset and ref_counts[table[-1]] > 1`: take, copy, drop the old one, `table[-1] = target`.",
    ),
    when={
        REFUSED: "There was room. A sequence takes a block only if its last one is full, or if others "
        "read that one; who reads a block alone writes in place.",
        ACCEPTED: "No block was free, and one was needed. Has the token gone into a block that others read?",
        AFTER_REFUSAL: "`OutOfBlocksError` was right, but something had changed by then. Take the new "
        "block first: only then does the old one lose a reader, and the sequence get longer.",
    },
    examples=200,
    large=large_family,
)
def the_last_block_is_copied_on_write(case: Any, story: Story) -> None:
    for cache, names, called in live(case, story):
        memory_right(cache, names, called, story)


# ── searches ──────────────────────────────────────────────────────────────────────────────────────────


class Toy:
    """The language model: eighths, one of `numbers` for each beginning and each token."""

    def __init__(self, case: Any) -> None:
        self.vocab, self.numbers = case["vocab"], case["numbers"]
        self._rows: dict[tuple[int, ...], list[float]] = {}

    def row(self, tokens: Any) -> list[float]:
        beginning = tuple(tokens)
        if beginning not in self._rows:
            place = 0
            for token in beginning:
                place = (place * 31 + token + 7) % 1_000_003
            logprobs = [self.logprob(place + token * (place % 5 + 1)) for token in range(self.vocab)]
            self._rows[beginning] = logprobs
        return self._rows[beginning]

    def logprob(self, place: int) -> float:
        number = self.numbers[place % len(self.numbers)]
        return -float("inf") if number == IMPOSSIBLE else -number / 8


class Search:
    """What is right: the same search, without any memory. Beams and hypotheses are `(tokens, score)`."""

    def __init__(self, case: Any, toy: Toy | None = None) -> None:
        self.case, self.toy = case, toy or Toy(case)
        self.beams: list[tuple[tuple[int, ...], float]] = [((), 0.0)]
        self.finished: list[tuple[tuple[int, ...], float]] = []
        self.parents: list[int] = []

    def step(self) -> None:
        width, case = self.case["width"], self.case
        ranked = []
        for place, (tokens, score) in enumerate(self.beams):
            for token, logprob in enumerate(self.toy.row(tokens)):
                if logprob > -float("inf"):
                    ranked.append((-(score + logprob), place, token))
        ranked.sort()
        beams, parents = [], []
        for rank, (cost, place, token) in enumerate(ranked):
            tokens = (*self.beams[place][0], token)
            if token != case["eos"] and len(tokens) < case["max_tokens"]:
                beams.append((tokens, -cost))
                parents.append(place)
            elif rank < width:
                self.finished.append((tokens, -cost / len(tokens) ** case["penalty"]))
        self.finished = sorted(self.finished, key=lambda found: -found[1])[:width]
        self.beams, self.parents = beams[:width], parents[:width]


def searches(most_tokens: int = 6, most_prompt: int = 6) -> Any:
    numbers = st.lists(st.integers(0, IMPOSSIBLE), min_size=1, max_size=12)
    return st.fixed_dictionaries(
        {
            "vocab": st.integers(2, 6),
            "width": st.integers(1, 5),
            "eos": st.integers(0, 6),
            "max_tokens": st.integers(1, most_tokens),
            "penalty": st.sampled_from(PENALTIES),
            "numbers": numbers,
            "block_size": st.integers(1, 4),
            "prompt": st.integers(0, most_prompt),
            "kept": st.booleans(),
        }
    )


def large_search(dice: Random) -> Any:
    """Twenty-four beams, three hundred tokens, blocks of sixteen: more than a byte can count."""
    return {
        "vocab": 300,
        "width": 24,
        "eos": 280,
        "max_tokens": 8,
        "penalty": 1.0,
        "numbers": tuple(dice.randrange(1, 400) for _ in range(997)),
        "block_size": 16,
        "prompt": 37,
        "kept": True,
    }


class Run:
    """A search of the judged code, beside the right one, in a memory that is as large as it must be."""

    def __init__(self, case: Any, story: Story, spare: int | None = None) -> None:
        self.case, self.story, self.right = case, story, Search(case)
        size = case["block_size"]
        self.names = Names(size)
        self.prompt = [100 + place for place in range(case["prompt"])]
        self.called: dict[int, tuple[str, Any]] = {}
        num_blocks = peak(case, self.right.toy) + (spare or 0)
        self.cache = subject.KVCache(num_blocks, size)
        prompt = self.cache.new_sequence()
        self.names.add(0)
        write(self.cache, self.names, 0, prompt, self.prompt)
        self.others: dict[int, tuple[str, Any]] = {}
        if case["kept"]:
            (copy,) = self.cache.fork_n(prompt, 1)
            self.names.add(-1, 0)
            self.others = {-1: ("the other reader of the prompt", copy)}
        self.search = subject.BeamSearch(
            self.cache,
            prompt,
            case["width"],
            eos=case["eos"],
            max_tokens=case["max_tokens"],
            length_penalty=case["penalty"],
        )
        self.count = 0
        story.step(f"a prompt of {len(self.prompt)} tokens, width {case['width']}, eos {case['eos']}")
        self.show()

    def rows(self) -> list[list[float]]:
        return [self.right.toy.row(tokens) for tokens, _ in self.right.beams]

    def steps(self) -> Any:
        """Step by step, until the right search is done."""
        while self.right.beams:
            rows = self.rows()
            self.count += 1
            self.story.step(f"step {self.count}: {counted(len(rows), 'beam')} and their candidates")
            kind = tuple if self.count % 2 else list
            given = given_as(self.count, [kind(one) for one in rows])
            with self.story.allowing(subject.OutOfBlocksError) as answer:
                self.search.step(given)
            wanted = "room: enough blocks are free, once old beams are freed"
            self.story.expect(not answer.is_refused, wanted, "none", REFUSED)
            if isinstance(given, list):
                given.clear()  # it is the caller's, who goes on with it
            self.right.step()
            follow(self.names, self.right, self.prompt)
            self.show()
            yield self

    def show(self) -> None:
        beams, finished = list(self.search.beams), list(self.search.finished)
        facts = {f"beam {i}": told(beam.tokens, beam.score) for i, beam in enumerate(beams)}
        facts |= {f"finished {i}": told(found.tokens, found.score) for i, found in enumerate(finished)}
        called = {f"beam {i}": beam.seq_id for i, beam in enumerate(beams)}
        called |= dict(self.others.values())
        tables = {told: self.cache.tables.get(seq_id) or [] for told, seq_id in called.items()}
        facts["free"] = len(self.cache.free_list)
        self.story.see(facts, memory_rows(self.cache, tables))

    def beams_right(self) -> None:
        """The beams: their number, their tokens, their scores, their order."""
        story, right = self.story, self.right.beams
        width, beams = self.case["width"], self.search.beams
        story.expect(len(beams) <= width, f"at most {counted(width, 'beam')}", len(beams))
        found = [told(beam.tokens, beam.score) for beam in beams]
        wanted = [told(tokens, score) for tokens, score in right]
        story.expect(found == wanted, f"the beams {wanted}", found)
        for beam, (_, score) in zip(beams, right, strict=True):
            is_number = isinstance(beam.score, Real) and abs(beam.score - score) < 1e-9
            story.expect(is_number, f"score {score}", beam.score)

    def finished_right(self) -> None:
        """The hypotheses: which, with which scores, in which order."""
        story, right = self.story, self.right.finished
        found = [told(one.tokens, one.score) for one in self.search.finished]
        wanted = [told(tokens, score) for tokens, score in right]
        story.expect(found == wanted, f"the hypotheses {wanted or 'to be none'}", found or "none")
        best = self.search.best()
        said = None if best is None else told(best.tokens, best.score)
        story.expect(said == (wanted[0] if wanted else None), f"best to be {wanted[:1]}", said)

    def memory_right(self) -> None:
        beams = enumerate(self.search.beams)
        called = {place: (f"beam {place}", beam.seq_id) for place, beam in beams}
        ids = [seq_id for _, seq_id in (*called.values(), *self.others.values())]
        self.story.expect(len(set(ids)) == len(ids), "a sequence of its own for each beam", ids)
        self.story.expect(len(called) == len(self.right.beams), f"{len(self.right.beams)} beams", len(called))
        memory_right(self.cache, self.names, called | self.others, self.story)


def told(tokens: Any, score: Any) -> str:
    """Tokens and score, in words; minus zero is zero."""
    number = f"{float(score) + 0.0:.6g}" if isinstance(score, Real) else repr(score)
    return f"{words(tokens) or '·'} ({number})"


def follow(names: Names, right: Search, prompt: list[int]) -> None:
    """After a step, the right tables: children get those of their parents, the old ones end, tokens come."""
    old = [who for who in names.data if who >= 0]
    tables = [(list(names.data[p]), list(names.tables[p])) for p in right.parents]
    for who in old:
        names.free(who)
    for who, (data, table) in enumerate(tables):
        names.data[who], names.tables[who] = data, table
    for who, (tokens, _) in enumerate(right.beams):
        names.append(who, tokens[-1])


def peak(case: Any, toy: Toy) -> int:
    """Blocks that a search needs if nothing is wasted: as many as it has after its fullest step."""
    names, right = Names(case["block_size"]), Search(case, toy)
    names.add(0)
    for token in range(case["prompt"]):
        names.append(0, token)
    if case["kept"]:
        names.add(-1, 0)
    most = names.used
    while right.beams:
        right.step()
        follow(names, right, [])
        most = max(most, names.used)
    return most


@judged(
    "P3",
    "The best candidates of all beams go on, at most `width`, in order; scores are sums, ties as said.",
    searches(),
    hints=(
        "Two beams, three tokens: how many candidates are there? May both new beams be children of one?",
        "Rank all of them in one list: score, then the beam's place, then the token. One that ends takes no "
        "place: walk on until `width` are found that go on.",
        "`candidates.sort(key=lambda c: (-c.score, c.beam, c.token))`, and `beam.score + logprob` is the "
        "new score; no division while a beam goes on.",
    ),
    when={
        CRASH: "The rows may come as an iterator, which has no length and can be walked only once: first "
        "of all, `rows = list(logprobs)`. And perhaps no candidate goes on.",
    },
    examples=250,
    large=large_search,
)
def the_best_candidates_go_on(case: Any, story: Story) -> None:
    for run in Run(case, story, spare=ROOMY * case["width"]).steps():
        run.beams_right()
    done = run.search.is_done
    story.expect(done, "the search to be done: no beam is live", done)


@judged(
    "P4",
    "What ends among the `width` best candidates is kept, its sum divided; the best of all is returned.",
    searches(),
    hints=(
        "A candidate with the end token: which rank must it have, and what is its length?",
        "Count ranks over all candidates, also those that go on. At max_tokens everything ends.",
        "If it ends and `rank < width`: `score / length ** length_penalty`. Sort `finished` (the sort is "
        "stable), then `del finished[width:]`.",
    ),
    examples=250,
    large=large_search,
)
def the_best_hypotheses_are_kept(case: Any, story: Story) -> None:
    for run in Run(case, story, spare=ROOMY * case["width"]).steps():
        run.finished_right()


SMALL = st.fixed_dictionaries(
    {
        "vocab": st.integers(2, 4),
        "eos": st.integers(0, 4),
        "max_tokens": st.integers(1, 3),
        "penalty": st.sampled_from(PENALTIES),
        "numbers": st.lists(st.integers(0, IMPOSSIBLE - 1), min_size=1, max_size=12),
        "block_size": st.integers(1, 3),
        "prompt": st.integers(0, 4),
        "kept": st.just(False),
    }
)


@judged(
    "P5",
    "With room for every beginning, the search finds what trying everything finds.",
    SMALL,
    hints=(
        "If nothing is ever pruned, which sequence could be missed? Does the search end too early?",
        "A search that has found one hypothesis goes on: a longer one may be better. It ends without beams.",
        "Nothing but `max_tokens`, or a lack of candidates, ends a search.",
    ),
    examples=100,
)
def full_width_is_brute_force(case: Any, story: Story) -> None:
    case = {**case, "width": case["vocab"] ** case["max_tokens"]}
    toy, found = Toy(case), []
    for length in range(1, case["max_tokens"] + 1):
        for tokens in product(range(case["vocab"]), repeat=length):
            is_ended = tokens[-1] == case["eos"] or length == case["max_tokens"]
            if case["eos"] in tokens[:-1] or not is_ended:
                continue
            total = sum(toy.row(tokens[:place])[token] for place, token in enumerate(tokens))
            found.append(total / length ** case["penalty"])
    run = Run(case, story, spare=ROOMY * case["width"])
    for _ in run.steps():
        pass
    best = run.search.best()
    story.expect(best is not None, f"the best of {counted(len(found), 'sequence')}", "nothing")
    story.expect(abs(best.score - max(found)) < 1e-9, f"score {max(found):.6g}", best.score)
    total = sum(toy.row(best.tokens[:place])[token] for place, token in enumerate(best.tokens))
    right = total / len(best.tokens) ** case["penalty"]
    story.expect(
        abs(best.score - right) < 1e-9, f"the score of {words(best.tokens)}: {right:.6g}", best.score
    )


@judged(
    "P6",
    "A beam reads its prompt and its tokens; what pruned beams held comes back, before it is needed.",
    searches(8, 9),
    hints=(
        "A beam has two children, another none. Which blocks have a reader less after the step?",
        "First fork every parent, then free every old beam, then append. What would another order lose?",
        "`fork_n(beam.seq_id, its children)` for all; `free(beam.seq_id)` for all; `append` for all.",
    ),
    when={
        REFUSED: "Blocks are enough, once those of the old beams are free. Is a token appended before the "
        "last of them is freed?",
    },
    examples=250,
    large=large_search,
)
def pruned_blocks_come_back(case: Any, story: Story) -> None:
    run = Run(case, story)
    run.memory_right()
    for _ in run.steps():
        run.memory_right()
    held = {seq_id for _, seq_id in run.others.values()}
    for seq_id in held:
        run.cache.free(seq_id)
    free = sorted(run.cache.free_list)
    story.expect(free == list(range(len(free))), "every block free once, at the end", free)
    story.expect(len(free) == len(run.cache.storage), f"{len(run.cache.storage)} free blocks", len(free))


MORE_ROWS, FEWER_ROWS, FORK_STRANGER, FORK_NEGATIVE, APPEND_STRANGER = TRIES = (
    "more rows",
    "fewer rows",
    "fork a stranger",
    "fork to less than none",
    "append to a stranger",
)
REFUSALS = st.fixed_dictionaries(
    {
        "search": searches(4),
        "tries": st.lists(
            st.tuples(st.sampled_from(TRIES), st.integers(0, 3), st.integers(1, 2)), min_size=1, max_size=4
        ),
    }
)


@judged(
    "P7",
    "What cannot be done is refused and changes nothing; everything goes on afterwards.",
    REFUSALS,
    hints=(
        "A step gets one row too many. What is the search like afterwards?",
        "Look at everything first: rows, live beams, the parent, n. Only then change something.",
        "`rows = list(logprobs)`, then ValueError unless `len(rows) == len(self.beams) > 0`. In `fork_n`: "
        "look up the table, look at n, then make the children.",
    ),
    when={
        ACCEPTED: "No error came. `zip` ends with the shorter of two, `range(-1)` is empty, and of 0 "
        "beams any number of rows is wrong: count first.",
        AFTER_REFUSAL: "The error came, but beams, hypotheses or references had changed by then. All "
        "looking comes before the first change.",
        CRASH: "Another exception than the exercise asks for: a sequence that is not there is a "
        "`KeyError`, rows that do not fit are a `ValueError`.",
    },
    examples=200,
)
def a_refusal_changes_nothing(case: Any, story: Story) -> None:
    run = Run(case["search"], story, spare=20)
    tries = list(case["tries"])
    attempt(run, tries, story)
    for _ in run.steps():
        run.beams_right()
        run.finished_right()
        run.memory_right()
        attempt(run, tries, story)
    for kind in (MORE_ROWS, FEWER_ROWS, FORK_STRANGER):
        attempt(run, [(kind, 0, 1)], story)
    run.memory_right()


def attempt(run: Run, tries: list[Any], story: Story) -> None:
    """The next of the tries, if there is one."""
    if not tries:
        return
    kind, form, count = tries.pop(0)
    search, cache, rows = run.search, run.cache, run.rows()
    live = [beam.seq_id for beam in search.beams]
    before = [told(one.tokens, one.score) for one in (*search.beams, *search.finished)]
    if kind in (MORE_ROWS, FEWER_ROWS):
        # Without a live beam no number of rows is right.
        wrong = rows[:-count] if kind == FEWER_ROWS else [*rows, *(rows or [[0.0]])[:1] * count]
        story.step(f"a step with {counted(len(wrong), 'row')}, for {counted(len(live), 'beam')}")
        must_be_refused(cache, story, "step", ValueError, search.step, given_as(form, wrong))
    elif kind == FORK_NEGATIVE and live:
        story.step(f"a beam forks to {-count}")
        must_be_refused(cache, story, "fork_n", ValueError, cache.fork_n, live[form % len(live)], -count)
    elif kind == APPEND_STRANGER:
        story.step("a sequence that is not there appends a token")
        must_be_refused(cache, story, "append", KeyError, cache.append, STRANGER, 5)
    else:
        story.step("a sequence that is not there forks")
        must_be_refused(cache, story, "fork_n", KeyError, cache.fork_n, STRANGER, form)
    run.show()
    after = [told(one.tokens, one.score) for one in (*search.beams, *search.finished)]
    story.expect(before == after, f"beams and hypotheses as before: {before}", after)
