"""What must always hold of the paged kernel.

Keys and values of random tokens are laid into random blocks. What must come out is computed here, from the
tokens, in float64; the kernel runs under the microscope, which knows what it read and wrote.
"""

from collections.abc import Iterator
from random import Random
from typing import Any, NamedTuple

import numpy as np
import subject
from hypothesis import strategies as st

from lessons.kernels import (
    BARRIER,
    OUT_OF_BOUNDS,
    RACE,
    UNWRITTEN,
    describe_access,
    expect_no_fault,
    first_fault,
    run_kernel,
    times_written,
)
from lessons.story import ENDLESS, NOT_A_NUMBER, Story, cell, judged, row

KEYS, VALUES, OUT = 1, 2, 5
"""Arrays of the launch, as the microscope numbers them."""
NARROW, WIDE = st.integers(2, 6), st.just(33)
"""Numbers of a head, and so threads of a block: some, and more than a warp has."""


def cases(
    *, heads: int = 1, sequences: int = 1, tiles: int = 1, smallest_block: int = 1, widths: Any = NARROW
) -> st.SearchStrategy[Any]:
    """Launches of at most so many query heads to a KV head, sequences, and tiles of tokens to each."""

    def of_width(head_dim: int) -> st.SearchStrategy[Any]:
        lengths = st.integers(1, tiles * head_dim)
        if tiles > 1:
            lengths |= st.integers(head_dim + 1, tiles * head_dim + 1)
        return st.fixed_dictionaries(
            {
                "head_dim": st.just(head_dim),
                "block_size": st.integers(smallest_block, 4),
                "kv_heads": st.integers(1, min(2, heads)),
                "group": st.integers(1, heads),
                "lengths": st.lists(lengths, min_size=1, max_size=sequences),
                "is_loud": st.booleans(),
                "seed": st.integers(0, 999),
            }
        )

    return widths.flatmap(of_width)


def wide_head(dice: Random) -> Any:
    """One head of more than two warps, in blocks of sixteen."""
    sizes = {"head_dim": 66, "block_size": 16, "kv_heads": 1, "group": 1, "lengths": [65]}
    return {**sizes, "is_loud": False, "seed": dice.randrange(999)}


def many_heads(dice: Random) -> Any:
    """Five KV heads, and six sequences."""
    lengths = [dice.randrange(1, 41) for _ in range(6)]
    sizes = {"head_dim": 8, "block_size": 16, "kv_heads": 5, "group": 2, "lengths": lengths}
    return {**sizes, "is_loud": False, "seed": dice.randrange(999)}


class Tokens(NamedTuple):
    """Numbers, wherever they will lie."""

    query: Any
    """[num_seqs, num_heads, head_dim]"""
    keys: list[Any]
    """Of each sequence: [tokens, num_kv_heads, head_dim]."""
    values: list[Any]
    scale: Any
    lengths: list[int]

    @property
    def group(self) -> int:
        return self.query.shape[1] // self.keys[0].shape[1]


class Launch(NamedTuple):
    """Tokens laid into blocks, and what else the kernel gets."""

    tokens: Tokens
    filled: Any
    """[num_blocks, block_size]: the sequence whose token is in a row, or -1."""
    tables: list[list[int]]
    arguments: dict[str, Any]


def make_tokens(case: Any) -> Tokens:
    """Random tokens; the scores of loud ones are hundreds and thousands."""
    random = np.random.default_rng(case["seed"])
    kv_heads, head_dim, lengths = case["kv_heads"], case["head_dim"], case["lengths"]
    loudness = 1000 if case["is_loud"] else 1

    def floats(*shape: int) -> Any:
        return random.standard_normal(shape).astype(np.float32)

    return Tokens(
        floats(len(lengths), kv_heads * case["group"], head_dim) * np.float32(loudness),
        [floats(length, kv_heads, head_dim) for length in lengths],
        [floats(length, kv_heads, head_dim) for length in lengths],
        np.float32(random.uniform(0.3, 1.5)),
        lengths,
    )


def lay_out(tokens: Tokens, block_size: int, seed: int, bare: bool = False, mirror: bool = False) -> Launch:
    """Tokens in random blocks.

    Args:
        bare: NaN wherever no token is, and tables that may end where their sequence ends; otherwise old
            tokens lie there, and tables are wide enough for whole tiles.
        mirror: every block at the other end of memory.
    """
    random = np.random.default_rng(seed + 1)
    needed = [-(-length // block_size) for length in tokens.lengths]
    num_blocks = sum(needed) + 1 + seed % 3
    places = random.permutation(num_blocks)
    places = num_blocks - 1 - places if mirror else places
    _, kv_heads, head_dim = tokens.keys[0].shape
    shape = (num_blocks, kv_heads, block_size, head_dim)
    keys, values = (random.standard_normal(shape).astype(np.float32) for _ in range(2))
    if bare:
        keys[:], values[:] = np.nan, np.nan
    width = max(needed) + (seed % 2 if bare else head_dim)
    tables = np.full((len(needed), width), places[-1], np.int32)  # the last of them belongs to no sequence
    filled = np.full((num_blocks, block_size), -1)
    for number, (count, length) in enumerate(zip(needed, tokens.lengths, strict=True)):
        start = sum(needed[:number])
        tables[number, :count] = places[start : start + count]
        for position in range(length):
            block, line = tables[number, position // block_size], position % block_size
            keys[block, :, line] = tokens.keys[number][position]
            values[block, :, line] = tokens.values[number][position]
            filled[block, line] = number
    arguments = {
        "query": tokens.query.copy(),
        "key_cache": keys,
        "value_cache": values,
        "block_tables": tables,
        "context_lens": np.array(tokens.lengths, np.int32),
        "scale": tokens.scale,
        "out": np.full_like(tokens.query, np.nan),
    }
    own = [tables[number, :count].tolist() for number, count in enumerate(needed)]
    return Launch(tokens, filled, own, arguments)


def all_scores(tokens: Tokens) -> Iterator[tuple[tuple[int, int], Any]]:
    """Of each `(sequence, head)`, in float64."""
    for number, head in np.ndindex(tokens.query.shape[:2]):
        keys = tokens.keys[number][:, head // tokens.group].astype(float)
        yield (number, head), keys @ tokens.query[number, head].astype(float) * float(tokens.scale)


def right_answer(tokens: Tokens) -> tuple[Any, Any]:
    """Attention in float64, and how far float32 may be from it; both [num_seqs, num_heads, head_dim]."""
    answer = np.empty(tokens.query.shape)
    allowed = np.empty_like(answer)
    for (number, head), scores in all_scores(tokens):
        query = tokens.query[number, head].astype(float)
        keys, values = (of[number][:, head // tokens.group] for of in (tokens.keys, tokens.values))
        weights = np.exp(scores - scores.max())
        answer[number, head] = weights @ values / weights.sum()
        rounding = (len(query) + 4) * 2.0**-24 * (np.abs(keys) @ np.abs(query)).max() * float(tokens.scale)
        allowed[number, head] = np.abs(values).max() * (4 * np.expm1(2 * rounding) + 1e-5)
    return answer, allowed


def counted(count: int, thing: str, before: str = "") -> str:
    return f"{before}{count} {thing}{'s' * (count > 1)}"


def tell(story: Story, launch: Launch, words: str) -> None:
    """The step in which tokens are laid into blocks: the sequence of each block, and the tables."""
    size = launch.filled.shape[1]
    lengths = " and ".join(counted(n, "token", f"s{who} has ") for who, n in enumerate(launch.tokens.lengths))
    scores = np.concatenate([score for _, score in all_scores(launch.tokens)])
    loud = f"; scores from {scores.min():,.0f} to {scores.max():,.0f}" if np.abs(scores).max() > 80 else ""
    story.step(f"{lengths}{words}{loud}")
    owners = zip(launch.filled.max(axis=1).tolist(), (launch.filled >= 0).sum(axis=1).tolist(), strict=True)
    pool = (cell(f"s{n}: {full}/{size}", n) if full else cell("", mark="free") for n, full in owners)
    board = [row(f"blocks of {counted(size, 'token')}", pool)]
    board += [row(f"table of s{n}", [cell(b, n) for b in table]) for n, table in enumerate(launch.tables)]
    story.see({f"blocks of s{n}": len(table) for n, table in enumerate(launch.tables)}, board)


def begin(case: Any, story: Story, bare: bool = False) -> Launch:
    """The first step."""
    launch = lay_out(make_tokens(case), case["block_size"], case["seed"], bare)
    tell(story, launch, f"; there are {case['head_dim']} threads{', and NaN where no token is' * bare}")
    return launch


def run(story: Story, launch: Launch, poison: dict[str, Any] | None = None) -> Any:
    """Run the kernel; the step shows its output beside the right one."""
    num_seqs, num_heads, head_dim = launch.tokens.query.shape
    kv_heads = launch.tokens.keys[0].shape[1]
    heads = f"{counted(num_heads, 'head')}, {counted(kv_heads, 'KV head')}"
    story.step(f"paged_attention, grid ({num_heads}, {num_seqs}), blocks of {head_dim} threads: {heads}")
    grid, given = (num_heads, num_seqs), launch.arguments
    seen = run_kernel(story, subject.paged_attention, grid, (head_dim,), given, poison)
    out, (answer, allowed) = launch.arguments["out"], right_answer(launch.tokens)
    is_right = np.abs(out - answer) <= allowed
    rows = list(np.ndindex(num_seqs, num_heads))
    board = []
    for place in sorted(rows, key=lambda place: bool(is_right[place].all()))[:6]:
        name = f"s{place[0]} head {place[1]}"
        board.append(row(f"{name}, expected", [cell(f"{x:.4g}", place[0]) for x in answer[place]]))
        pairs = zip(out[place], is_right[place], strict=True)
        got = [cell(f"{x:.4g}", place[0], "" if ok else "wrong") for x, ok in pairs]
        board.append(row(f"{name}, got", got))
    story.see({"right rows": f"{int(is_right.all(axis=2).sum())} of {len(rows)}"}, board)
    return seen


def expect_answer(story: Story, launch: Launch, seen: Any) -> None:
    """Go on only if every number is right; the first row that is not is told, and what may be the reason."""
    out, (answer, allowed) = launch.arguments["out"], right_answer(launch.tokens)
    written = times_written(seen, OUT) > 0
    symptom = seen.faults[0].kind if seen.faults else NOT_A_NUMBER if np.isnan(out).any() else ""
    for who, head in np.ndindex(out.shape[:2]):
        is_right = np.abs(out[who, head] - answer[who, head]) <= allowed[who, head]
        pairs = zip(out[who, head], written[who, head], strict=True)
        got = [f"{x:.4g}" if has else "(not written)" for x, has in pairs]
        numbers = ", ".join(f"{x:.4g}" for x in answer[who, head])
        words = f"{', '.join(got)}{first_fault(seen)}"
        story.expect(is_right.all(), f"out[{who}, {head}] = {numbers}", words, symptom)


def token_reads(launch: Launch, seen: Any) -> Iterator[tuple[str, Any, list[list[int]], Any]]:
    """Of keys, then of values: name, accesses, and for each of them its cell and its token's sequence."""
    for number in (KEYS, VALUES):
        name = list(launch.arguments)[number]
        accesses = np.flatnonzero(seen.columns["array"] == number)
        cells = np.argwhere(np.ones(launch.arguments[name].shape))[seen.columns["first"][accesses]]
        yield name, accesses, cells.tolist(), launch.filled[cells[:, 0], cells[:, 2]]


FAULTS = {
    OUT_OF_BOUNDS: "An index is outside of its array. `position // block_size` is an index of the table, "
    "and `position % block_size` a row of a block. Has the thread in the message a token at all?",
    BARRIER: "Some threads wait at a barrier that others never come to. No `cuda.syncthreads()` within an "
    "`if` that only some of them enter, and no `return` before one.",
    UNWRITTEN: "A cell of shared memory is read that no thread wrote: a tile has `min(head_dim, length - "
    "first)` scores, and not always as many as there are threads.",
    RACE: "Two threads touch one cell, and nothing says which is first: a barrier belongs between the two "
    "lines of the message.",
    NOT_A_NUMBER: "NaN is a number that was never written, 0 / 0, or -inf - (-inf). Which of the three can "
    "your `out` come from?",
    ENDLESS: "Does the loop's variable reach the end of the context? And does each thread do its own part "
    "alone?",
}
"""What helps with a fault of a kernel, whatever property notices it."""


@judged(
    "P1",
    "The output is attention over the tokens that the block table names.",
    cases(),
    hints=(
        "Begin with one thread. In which row of which block is token 3? What is it multiplied with?",
        "Thread t leaves the score of token t in shared memory. Then thread c takes the largest score, "
        "e to each score less that, and with these weights number c of the values.",
        "`block, row = block_tables[sequence, position // block_size], position % block_size`; after this, "
        "outside of any `if`, `cuda.syncthreads()`; at the end `out[sequence, head, thread] = mine / total`.",
    ),
    examples=30,
    seconds=6.0,
    when=FAULTS,
    large=wide_head,
)
def attention_through_the_table(case: Any, story: Story) -> None:
    launch = begin(case, story)
    expect_answer(story, launch, run(story, launch))


@judged(
    "P2",
    "Every sequence has its own length and table, and neighbouring query heads share a KV head.",
    cases(heads=3, sequences=3),
    hints=(
        "Six query heads and two KV heads: which of the six read KV head 0?",
        "Heads 0, 1 and 2 do: neighbours share, so the KV head is a quotient, not a remainder.",
        "`kv_head = head // (query.shape[1] // key_cache.shape[1])`, and `sequence` is `cuda.blockIdx.y`.",
    ),
    examples=30,
    seconds=6.0,
    when=FAULTS,
    large=many_heads,
)
def heads_and_sequences(case: Any, story: Story) -> None:
    launch = begin(case, story)
    expect_answer(story, launch, run(story, launch))


@judged(
    "P3",
    "A context may have many more tokens than there are threads.",
    cases(heads=2, sequences=2, tiles=3),
    hints=(
        "Five threads, twelve tokens: which one computes the score of token 7, and where does it go?",
        "Go through the context in tiles of head_dim tokens. A larger score rescales what you have. "
        "And before new scores go to shared memory, all threads must have read the old ones.",
        "`for first in range(0, length, head_dim):` around both parts, with `position = first + thread`; "
        "`rescale = math.exp(maximum - highest)` for `total` and `mine`; a barrier ends the loop's body.",
    ),
    examples=30,
    seconds=6.0,
    when=FAULTS,
)
def more_tokens_than_threads(case: Any, story: Story) -> None:
    launch = begin(case, story)
    expect_answer(story, launch, run(story, launch))


@judged(
    "P4",
    "Threads share the work: together they read each number of keys and values once.",
    cases(heads=2, sequences=2, tiles=2),
    hints=(
        "If every thread computes every score, head_dim threads do the same work. How could they share it?",
        "Thread t computes the score of token t alone, and leaves it where all can read it: shared memory.",
        "`scores = cuda.shared.array(MOST_THREADS, float32)`, `scores[thread] = score * scale`, a barrier; "
        "`for t in range(count):` with the weight of `scores[t]` and value number `thread` of token t.",
    ),
    examples=20,
    seconds=6.0,
    when=FAULTS,
)
def work_is_shared(case: Any, story: Story) -> None:
    launch = begin(case, story)
    seen = run(story, launch)
    for name, accesses, cells, owners in token_reads(launch, seen):
        size = launch.arguments[name].size
        mine = np.where(
            owners >= 0, seen.columns["block"][accesses] * size + seen.columns["first"][accesses], -1
        )
        times = np.bincount(mine + 1)[mine + 1]
        for read in np.flatnonzero((mine >= 0) & (times > 1))[:1]:
            words = f"reads {name}{cells[read]}, which its block reads {times[read]} times"
            story.expect(
                False, "each number to be read once by a block", describe_access(seen, accesses[read], words)
            )
    expect_answer(story, launch, seen)


@judged(
    "P5",
    "There is no race; each cell of the output is written once, and nothing else is.",
    cases(heads=2, sequences=2, tiles=3) | cases(tiles=2, widths=WIDE),
    hints=(
        "The answer may be right: here threads run one by one, on a GPU not. Which two touch one cell?",
        "Between a write and another thread's access to that cell belongs a `cuda.syncthreads()`, both ways: "
        "after writing, before others read; after they have read, before it is written again.",
        "One barrier after the scores, one after their use, outside of any `if`. What else a thread has is "
        "its own: keep it in variables. `out` is written once, after the loop.",
    ),
    examples=25,
    seconds=6.0,
    when=FAULTS,
)
def no_race(case: Any, story: Story) -> None:
    launch = begin(case, story)
    seen = run(story, launch, {"out": True})
    expect_no_fault(story, seen)
    columns = seen.columns
    for access in np.flatnonzero((columns["kind"] != 0) & (columns["array"] < OUT)):
        name = list(launch.arguments)[columns["array"][access]]
        story.expect(False, "writes to out alone", describe_access(seen, access, f"writes {name}"))
    times = times_written(seen, OUT)
    for index in np.argwhere(times != 1).tolist():
        words = f"{times[tuple(index)]} writes of out{index}"
        story.expect(False, "each cell of out to be written once", words)
    expect_answer(story, launch, seen)


@judged(
    "P6",
    "Rows behind the last token, the rest of a table and blocks of others are never read.",
    cases(heads=2, sequences=2, tiles=2),
    hints=(
        "The last block is rarely full, and a table is as wide as the longest one needs. What is read there?",
        "A weight of 0 does not help: 0 · NaN is NaN. Look at the length before you look at the table.",
        "`if position < length:` around the look into the table and all that follows; and the sum over "
        "the values ends with the last token: `count = min(head_dim, length - first)`.",
    ),
    examples=25,
    seconds=6.0,
    when=FAULTS,
)
def nothing_else_is_read(case: Any, story: Story) -> None:
    launch = begin(case, story, bare=True)
    given = launch.arguments
    nothing = np.broadcast_to((launch.filled < 0)[:, None, :, None], given["key_cache"].shape)
    behind = np.ones(given["block_tables"].shape, bool)
    for number, table in enumerate(launch.tables):
        behind[number, : len(table)] = False
    poison = {"key_cache": nothing, "value_cache": nothing, "block_tables": behind, "out": True}
    seen = run(story, launch, poison)
    expect_no_fault(story, seen)
    for name, accesses, cells, owners in token_reads(launch, seen):
        reader = seen.columns["block"][accesses] // given["query"].shape[1]
        for read in np.flatnonzero(owners != reader)[:1]:
            words = f"works for s{reader[read]} and reads {name}{cells[read]}, a token of s{owners[read]}"
            story.expect(
                False, "reads of this sequence's tokens alone", describe_access(seen, accesses[read], words)
            )
    expect_answer(story, launch, seen)


@judged(
    "P7",
    "In other blocks not a bit of the result changes; in blocks of one token not a number.",
    cases(heads=2, sequences=2, tiles=2, smallest_block=2),
    hints=(
        "Which numbers are added in which order? What would change it?",
        "Follow the tokens: 0, 1, 2 … A block's number may be an index, and nothing else.",
        "Only `block_tables[sequence, position // block_size]` knows where a token lies, and only "
        "`key_cache.shape[2]` how large a block is.",
    ),
    examples=25,
    seconds=6.0,
    when=FAULTS,
)
def places_do_not_matter(case: Any, story: Story) -> None:
    launch = begin(case, story)
    tokens = launch.tokens
    run(story, launch)
    moved = lay_out(tokens, case["block_size"], case["seed"], mirror=True)
    tell(story, moved, ", the same ones; every block has moved")
    seen = run(story, moved)
    before, after = launch.arguments["out"], moved.arguments["out"]
    same = before.view(np.uint32) == after.view(np.uint32)
    for index in np.argwhere(~same).tolist():
        old, new = (float(out[tuple(index)]) for out in (before, after))
        story.expect(False, f"out{index} = {old!r}, bit for bit, as with the other blocks", f"{new!r}")
    expect_answer(story, moved, seen)
    single = lay_out(tokens, 1, case["seed"])
    tell(story, single, ", the same ones, in blocks of one: TokenAttention")
    expect_answer(story, single, run(story, single))
