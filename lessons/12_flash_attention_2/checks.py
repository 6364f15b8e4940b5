"""What must always hold of FlashAttention 2, of split-K, and of the merge.

Queries, keys and values are random; some scores are thousands. What must come out is computed here, in
float64, a row at once. The kernels run under the microscope, which knows what they read, wrote and computed.
"""

from collections.abc import Callable, Iterator
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
from lessons.story import ENDLESS, NOT_A_NUMBER, Story, cell, counted, judged, row

QUERY, KEY, VALUE, OUT = range(4)
"""Arrays of `flash2`, as the microscope numbers them; the first three are also those of `decode_split`."""
TILE_KEYS = 16
MOST_SHOWN = 8
"""Numbers of a row that are told; of a longer one, the first that is wrong."""
FAULTS = {
    OUT_OF_BOUNDS: "An index is outside of its array. The last tile may be shorter, of queries and of "
    "keys: does the thread in the message have a query, and its loop a key?",
    BARRIER: "Some threads wait at a barrier that others never come to. Threads without a query, or past "
    "their last key, must come as often as the others: no `if` around it, no `return` before it.",
    UNWRITTEN: "A cell of shared memory is read that no thread wrote: the last tile has `min(TILE_KEYS, end "
    "- first)` keys. Or was it read before the tile had come?",
    RACE: "Two threads touch one cell, and nothing says which is first: between the two lines in the "
    "message belongs a barrier.",
    NOT_A_NUMBER: "NaN is a number that was never written, 0 / 0, or -inf - (-inf). Has the query seen no "
    "key at all, or none in this tile?",
    ENDLESS: "Does the loop's variable reach the last key? And does each thread do only its own share?",
}
"""What to say first of what the microscope saw."""
FEW, MANY = st.integers(1, 16), st.integers(17, 40)


# ── what is right, and how near to it a right answer in float32 is ────────────────────────────────────────


class Head(NamedTuple):
    """One head's numbers, its scores in float64 (-inf where a key may not be seen), and their rounding."""

    query: Any
    key: Any
    value: Any
    scale: Any
    scores: Any
    rounding: Any
    """[queries]: by so much a score in float32 may be off."""


class State(NamedTuple):
    """Of each query: maximum, total, and output that is not divided."""

    maximum: Any
    total: Any
    mine: Any


def make_head(case: Any) -> Head:
    """Random numbers; the scores of loud ones are hundreds and thousands, and `plus` moves all of them."""
    random = np.random.default_rng(case["seed"])
    rows, keys, d = case["queries"], case["keys"], case["head_dim"]
    query, key, value = (random.standard_normal((n, d)).astype(np.float32) for n in (rows, keys, keys))
    query *= np.float32(1000 if case["is_loud"] else 1)
    query[:, 0], key[:, 0] = 1, key[:, 0] + np.float32(case["plus"])
    scale = np.float32(random.uniform(0.3, 1.5))
    scores = query.astype(float) @ key.astype(float).T * float(scale)
    if case.get("causal"):
        scores[np.arange(keys) > np.arange(rows)[:, None] + keys - rows] = -np.inf
    sizes = np.abs(query).astype(float) @ np.abs(key).astype(float).T
    return Head(query, key, value, scale, scores, (d + 4) * 2.0**-24 * sizes.max(axis=1) * float(scale))


def state_of(head: Head, first: int = 0, end: int | None = None) -> State:
    """Over keys `first … end - 1`, in float64."""
    scores, value = head.scores[:, first:end], head.value[first:end].astype(float)
    maximum = scores.max(axis=1, initial=-np.inf)
    weights = np.exp(scores - np.where(np.isneginf(maximum), 0, maximum)[:, None])
    return State(maximum, weights.sum(axis=1), weights @ value)


def divided(state: State) -> Any:
    return state.mine / np.where(state.total > 0, state.total, 1)[:, None]


def allowed(head: Head) -> Any:
    """How far outputs may be from the right ones, [queries, 1]; undivided ones: times the total."""
    return (np.abs(head.value).max() * (4 * np.expm1(2 * head.rounding) + 1e-5))[:, None]


def tell_rows(answer: Any, out: Any, is_right: Any) -> list[Any]:
    """Some rows of a board, those that are wrong first."""
    board = []
    for i in sorted(range(len(out)), key=lambda i: bool(is_right[i].all()))[:6]:
        board.append(row(f"query {i}, expected", [cell(f"{x:.4g}", i) for x in answer[i]]))
        pairs = zip(out[i], is_right[i], strict=True)
        board.append(row(f"query {i}, got", [cell(f"{x:.4g}", i, "" if ok else "wrong") for x, ok in pairs]))
    return board


def expect_rows(story: Story, name: str, right: Any, got: Any, near: Any, seen: Any) -> None:
    """Go on only if every number is right; the first row that is not is told, and what may be the reason."""
    with np.errstate(invalid="ignore"):
        is_right = (got == right) | (np.abs(got - right) <= near)
    for place in np.argwhere(~is_right)[:1].tolist():
        index = tuple(place[:-1] if right.shape[-1] <= MOST_SHOWN else place)
        pairs = [np.atleast_1d(numbers[index]).tolist() for numbers in (right, got)]
        texts = [", ".join(f"{x:.4g}" for x in numbers) for numbers in pairs]
        if texts[0] == texts[1]:  # they differ in later digits
            texts = [", ".join(map(str, numbers)) for numbers in pairs]
        where = f"{name}{list(index)}" if index else name
        symptom = seen.faults[0].kind if seen.faults else NOT_A_NUMBER if np.isnan(got).any() else ""
        story.expect(False, f"{where} = {texts[0]}", f"{texts[1]}{first_fault(seen)}", symptom)


def expect_written_once(story: Story, seen: Any, names: dict[int, str]) -> None:
    """Each cell of these arrays, and nothing else in global memory."""
    columns = seen.columns
    for access in np.flatnonzero(columns["kind"] != 0):
        number = int(columns["array"][access])
        if number not in names and not seen.arrays[number].is_shared:
            words = describe_access(seen, access, f"writes {seen.arrays[number].name}")
            story.expect(False, f"writes to {' and '.join(names.values())} alone", words)
    for number, name in names.items():
        times = times_written(seen, number)
        for index in np.argwhere(times != 1)[:1].tolist():
            count = often(int(times[tuple(index)]))
            story.expect(False, f"{name}{index} to be written once", f"{count}{first_fault(seen)}")


def reads_of(seen: Any, number: int, shape: Any) -> Any:
    """How often each block reads each row of an array, [blocks, rows]; the most often read number counts."""
    columns = seen.columns
    mine = (columns["array"] == number) & (columns["kind"] == 0)
    times = np.zeros((int(np.prod(seen.grid)), *shape), int)
    np.add.at(times.reshape(len(times), -1), (columns["block"][mine], columns["first"][mine]), 1)
    return times


def expect_reads(story: Story, seen: Any, number: int, name: str, least: Any, most: Any) -> None:
    """Each block reads each number of a row at least and at most so often, [blocks, rows]."""
    times = reads_of(seen, number, seen.arrays[number].shape)
    wrong = (times < least[:, :, None]) | (times > most[:, :, None])
    for block, line, column in np.argwhere(wrong)[:1].tolist():
        wanted, count = int(most[block, line]), int(times[block, line, column])
        where = f"{name}[{line}, {column}]"
        what = f"{where} to be read {often(wanted)}" if wanted else f"no read of {where}"
        story.expect(False, f"{what} by thread block {block}", often(count))


def often(count: int) -> str:
    return ("never", "once", "twice")[count] if count < 3 else f"{count} times"


# ── flash2 ────────────────────────────────────────────────────────────────────────────────────────────────


def heads(causal: Any, tiles: Any = None, keys: Any = None) -> Any:
    """Heads, and the tiles in which their queries come."""
    return st.fixed_dictionaries(
        {
            "queries": st.integers(1, 9),
            "keys": FEW | MANY if keys is None else keys,
            "head_dim": st.integers(2, 5),
            "tile_q": st.integers(1, 5) if tiles is None else tiles,
            "causal": causal,
            "is_loud": st.booleans(),
            "plus": st.sampled_from((0, -1000, 1000)),
            "seed": st.integers(0, 999),
        }
    )


def large_head(queries: int, keys: int, head_dim: int, tile_q: int, causal: bool) -> Callable[[Random], Any]:
    sizes = {"queries": queries, "keys": keys, "head_dim": head_dim, "tile_q": tile_q, "causal": causal}
    return lambda dice: {**sizes, "is_loud": False, "plus": 0, "seed": dice.randrange(999)}


def run_flash(case: Any, story: Story, head: Head, count: bool = False) -> tuple[Any, Any]:
    """The observation, and `out`; the step shows it beside the right one."""
    tile_q, (num_queries, head_dim) = case["tile_q"], head.query.shape
    tiles, out = -(-num_queries // tile_q), np.full_like(head.query, np.nan)
    loud = "" if np.abs(head.scores[head.scores > -np.inf]).max(initial=0) < 80 else ", scores of hundreds"
    story.step(
        f"flash2, grid ({tiles},), {counted(tile_q, 'thread')}: queries 0 … {num_queries - 1}, keys 0 … "
        f"{len(head.key) - 1}, head_dim {head_dim}, {'causal' if case['causal'] else 'all visible'}{loud}"
    )
    given = {"query": head.query.copy(), "key": head.key.copy(), "value": head.value.copy()}
    given |= {"scale": head.scale, "causal": case["causal"], "out": out}
    seen = run_kernel(story, subject.flash2, (tiles,), (tile_q,), given, {"out": True}, count)
    right = divided(state_of(head))
    is_right = np.abs(out - right) <= allowed(head)
    count_right = int(is_right.all(axis=1).sum())
    story.see({"right rows": f"{count_right} of {num_queries}"}, tell_rows(right, out, is_right))
    return seen, out


@judged(
    "P1",
    "Where every query sees every key, flash2 is attention, for all lengths and tiles.",
    heads(st.just(False)),
    hints=(
        "Begin with one thread and three keys. What must it keep of keys 0 to 15, when key 16 comes?",
        "A thread keeps maximum, total and a local array for its output, from the first tile to the last. A "
        "larger score rescales total and output. It divides after the last tile.",
        "`for first in range(0, num_keys, TILE_KEYS):` all threads copy the tile, `cuda.syncthreads()`; "
        "each takes `scores[k]`, the highest, `rescale = math.exp(maximum - highest)`, then the weights; a "
        "second barrier.",
    ),
    when=FAULTS,
    examples=50,
    seconds=6.0,
    large=large_head(3, 40, 128, 2, False),
)
def flash_is_attention(case: Any, story: Story) -> None:
    head = make_head(case)
    seen, out = run_flash(case, story, head)
    expect_rows(story, "out", divided(state_of(head)), out, allowed(head), seen)


@judged(
    "P2",
    "A causal query sees keys up to its own position; one that sees none has out = 0.",
    heads(st.just(True)),
    hints=(
        "There are 3 queries and 5 keys: the queries are the last three tokens. Which keys does query 0 see?",
        "Query i is at position i + num_keys - num_queries. Of a tile, a thread uses only the keys up to "
        "there; a thread that sees none of them leaves its state as it is: e^(-inf - (-inf)) is NaN.",
        "`own_end = row + num_keys - num_queries + 1`; in a tile, `seen = min(count, own_end - first)`, and "
        "only `if seen > 0:` is there something to do. In the end, `mine[c] / total if total > 0 else "
        "float32(0)`.",
    ),
    when=FAULTS,
    examples=80,
    seconds=6.0,
    large=large_head(20, 300, 4, 8, True),
)
def causal_flash_is_attention(case: Any, story: Story) -> None:
    flash_is_attention.play(case, story)


@judged(
    "P3",
    "A block reads its queries once, and once what they may see; out is written once, never read.",
    heads(st.booleans()),
    hints=(
        "Four queries in tiles of 2, and 20 keys: how often is a key read from global memory, all in all?",
        "Twice: once by each block, for all of its threads. They copy it into shared memory together. And a "
        "block whose last query stands at position 9 needs no key behind it.",
        "`for i in range(thread, count * head_dim, cuda.blockDim.x):` copies number `i % head_dim` of key "
        "`first + i // head_dim`. The loop over tiles ends at the last key that the block's last query sees.",
    ),
    when=FAULTS,
    examples=40,
    seconds=6.0,
    large=large_head(40, 45, 3, 4, True),
)
def traffic_follows_the_formula(case: Any, story: Story) -> None:
    head = make_head(case)
    seen, out = run_flash(case, story, head)
    num_queries, num_keys = head.scores.shape
    owner = np.arange(num_queries) // case["tile_q"]
    blocks = np.arange(seen.grid[0])[:, None]
    is_mine = owner == blocks
    sees_some = (head.scores > -np.inf).any(axis=1)  # a query that sees nothing need not be read
    expect_reads(story, seen, QUERY, "query", is_mine & sees_some, is_mine.astype(int))
    visible = np.array([(head.scores[mine] > -np.inf).any(axis=0) for mine in is_mine])
    ends = visible.sum(axis=1)
    last_tile = -(-ends // TILE_KEYS) * TILE_KEYS  # the rest of a tile may be brought, too
    behind = np.arange(num_keys) < last_tile[:, None]
    for number, name in ((KEY, "key"), (VALUE, "value")):
        expect_reads(story, seen, number, name, visible, behind.astype(int))
    expect_written_once(story, seen, {OUT: "out"})
    reads = np.flatnonzero((seen.columns["array"] == OUT) & (seen.columns["kind"] == 0))
    for access in reads[:1]:
        story.expect(False, "no read of out", describe_access(seen, access, "reads out"))
    expect_rows(story, "out", divided(state_of(head)), out, allowed(head), seen)


@judged(
    "P4",
    "There is no race, and nothing is read that no thread wrote, with or without a full last tile.",
    heads(st.booleans()) | heads(st.booleans(), st.sampled_from((33, 40, 64)), MANY),
    hints=(
        "The answer may be right: here threads run one by one, on a GPU not. Which two touch one cell?",
        "After the tile is copied, and before its first use, all threads must wait. After its last use, "
        "before the next tile takes its place, they must wait again.",
        "One `cuda.syncthreads()` after the copying, one at the end of the loop's body, both outside of any "
        "`if`; the loop runs equally often for all threads of a block, also for those without a query.",
    ),
    when=FAULTS,
    examples=40,
    seconds=6.0,
)
def no_race(case: Any, story: Story) -> None:
    head = make_head(case)
    seen, out = run_flash(case, story, head)
    expect_no_fault(story, seen)
    expect_rows(story, "out", divided(state_of(head)), out, allowed(head), seen)


@judged(
    "P5",
    "Beside the products, a query costs one rescale for each tile of keys, and one division.",
    heads(st.booleans(), keys=st.integers(24, 48)),
    hints=(
        "FlashAttention 1 divides at each visit, so that memory holds an answer. Who looks at it here?",
        "Nothing: keep the sum of weight · value, and divide once, after the last tile. And take the largest "
        "score of a whole tile first: then total and output are rescaled once, not for each key.",
        "Two loops over the keys of a tile: one for `scores[k]` and `highest`; then `rescale` on `total` "
        "and `mine`; then one for the weights. `out[row, c] = mine[c] / total` stands behind the loop over "
        "tiles.",
    ),
    examples=20,
    seconds=6.0,
)
def work_beside_the_products(case: Any, story: Story) -> None:
    head = make_head(case)
    seen, _ = run_flash(case, story, head, count=True)
    tile_q, (num_queries, d) = case["tile_q"], head.query.shape
    products = tiles = 0
    for first in range(0, num_queries, tile_q):
        end = int((head.scores[first : first + tile_q] > -np.inf).any(axis=0).sum())
        rows, own_tiles = min(tile_q, num_queries - first), -(-end // TILE_KEYS)
        products, tiles = products + rows * own_tiles * TILE_KEYS, tiles + rows * own_tiles
    # Some more of each: a learner may fold the scale into the query, or turn a division into a product.
    most = {
        "divisions": num_queries * (d + 1),
        "exponentials": products + 3 * tiles + 3 * num_queries,
        "multiplications": products * (2 * d + 2) + tiles * (d + 4) + 3 * d * num_queries,
    }
    what = f"for {counted(num_queries, 'query')}, {len(head.key)} keys in tiles of {TILE_KEYS}, head_dim {d}"
    for name, limit in most.items():
        number = getattr(seen.tally, name)
        each = " (head_dim + 1 for each query)" if name == "divisions" else ""
        story.expect(number <= limit, f"at most {limit:,} {name}{each} {what}", f"{number:,}")


# ── split-K, and the merge ────────────────────────────────────────────────────────────────────────────────


def decodings() -> Any:
    """One token's queries over some keys, in some splits; there may be more splits than keys."""
    parts = {
        "queries": st.integers(1, 4),
        "keys": FEW | MANY | st.integers(41, 80),
        "head_dim": st.integers(2, 5),
        "splits": st.integers(1, 9),
        "idle": st.integers(0, 3),
        "is_loud": st.booleans(),
        "plus": st.sampled_from((0, -1000, 1000)),
        "seed": st.integers(0, 999),
    }
    return st.fixed_dictionaries(parts)


def long_context(dice: Random) -> Any:
    """More keys than a byte can count, in seven splits."""
    sizes = {"queries": 1, "keys": 260, "head_dim": 40, "splits": 7, "idle": 2, "is_loud": False, "plus": 0}
    return {**sizes, "seed": dice.randrange(999)}


@judged(
    "P6",
    "Each split leaves the state of its own keys, reads each of them once, and no other.",
    decodings(),
    hints=(
        "Ten keys in four splits: ceil(10 / 4) = 3 keys each. Which keys has split 3? And 9 keys in 4 "
        "splits?",
        "Split s begins at s · per_split, and ends before the next one, or with the last key. Behind the "
        "last key begins a split of nothing: its loop never runs, and it still writes -inf, 0 and zeros.",
        "`per_split = (num_keys + cuda.gridDim.x - 1) // cuda.gridDim.x`, then `range(split * per_split, "
        "min(num_keys, (split + 1) * per_split), TILE_KEYS)` with the body of `flash2`; write `mine` "
        "undivided.",
    ),
    when=FAULTS,
    examples=50,
    seconds=6.0,
    large=long_context,
)
def splits_keep_their_states(case: Any, story: Story) -> None:
    head = make_head(case)
    rows, num_keys, splits = case["queries"], case["keys"], case["splits"]
    state = State(
        *(np.full((splits, *shape), np.nan, np.float32) for shape in ((rows,), (rows,), head.query.shape))
    )
    threads = rows + case["idle"]
    story.step(
        f"decode_split, grid ({splits},), {counted(threads, 'thread')}: queries 0 … {rows - 1}, "
        f"keys 0 … {num_keys - 1}, head_dim {case['head_dim']}"
    )
    given = {
        "query": head.query.copy(),
        "key": head.key.copy(),
        "value": head.value.copy(),
        "scale": head.scale,
    }
    given |= dict(zip(("maxima", "sums", "parts"), state, strict=True))
    poison = dict.fromkeys(("maxima", "sums", "parts"), True)
    seen = run_kernel(story, subject.decode_split, (splits,), (threads,), given, poison)
    per_split = -(-num_keys // splits)
    bounds = [(min(num_keys, s * per_split), min(num_keys, (s + 1) * per_split)) for s in range(splits)]
    right = State(*(np.array(part) for part in zip(*(state_of(head, *ends) for ends in bounds), strict=True)))
    board = []
    for s, (first, end) in list(enumerate(bounds))[:6]:
        name = f"split {s}, {f'keys {first} … {end - 1}' if first < end else 'no key'}: m and l of query 0 …"
        pairs = [cell(f"{x:.4g}", i) for i in range(rows) for x in (state.maximum[s, i], state.total[s, i])]
        board.append(row(name, pairs))
    story.see({"splits with keys": sum(first < end for first, end in bounds)}, board)
    off, near = np.expm1(2 * head.rounding) + 1e-5, allowed(head)
    expect_rows(story, "maxima", right.maximum, state.maximum, head.rounding + 1e-6, seen)
    expect_rows(story, "sums", right.total, state.total, 4 * off * right.total, seen)
    expect_rows(story, "parts", right.mine, state.mine, near * right.total[..., None], seen)
    own = np.array([(np.arange(num_keys) >= first) & (np.arange(num_keys) < end) for first, end in bounds])
    for number, name in ((KEY, "key"), (VALUE, "value")):
        expect_reads(story, seen, number, name, own.astype(int), own.astype(int))
    expect_no_fault(story, seen)
    expect_written_once(story, seen, {3: "maxima", 4: "sums", 5: "parts"})


@st.composite
def states(draw: Callable[[Any], Any]) -> dict[str, Any]:
    """States of some splits; None for an empty state."""
    splits, rows = draw(st.integers(1, 7)), draw(st.integers(1, 3))
    maximum = st.none() | st.integers(-9, 9) | st.sampled_from((-10_000, 10_000))
    line = st.lists(maximum, min_size=rows, max_size=rows)
    return {
        "maxima": draw(st.lists(line, min_size=splits, max_size=splits)),
        "head_dim": draw(st.integers(1, 5)),
        "seed": draw(st.integers(0, 999)),
    }


def many_splits(dice: Random) -> Any:
    """More splits than a byte can count, of a head of more than one warp; some are empty."""
    maxima = [[dice.choice((None, dice.randrange(-5, 6)))] for _ in range(257)]
    return {"maxima": maxima, "head_dim": 34, "seed": dice.randrange(999)}


def in_orders(case: Any) -> Iterator[tuple[str, list[int]]]:
    forward = list(range(len(case["maxima"])))
    yield "in their order", forward
    if 1 < len(forward) < 100:
        yield "the last one first", forward[::-1]


def maxima_in_words(line: list[int | None]) -> str:
    """Those of one split: in brackets if there are several queries."""
    told = ", ".join("nothing" if maximum is None else str(maximum) for maximum in line)
    return told if len(line) == 1 else f"({told})"


@judged(
    "P7",
    "The merge is the softmax of all splits together, in any order, also of splits without a key.",
    states(),
    hints=(
        "Split 0 has the maximum 1, split 1 has 3. What is the sum of split 0 worth, beside that of split 1?",
        "It counts in units of e^1, and the result in units of e^3: multiply sum and part by e^(1 - 3). "
        "Where all splits have seen nothing there is no largest maximum: -inf - (-inf) is NaN.",
        "First the largest of `maxima[:, row]`; then `weight = math.exp(maxima[split, row] - maximum)`, "
        "`total += weight * sums[split, row]`, `mine += weight * parts[split, row, c]`; one division, or 0.",
    ),
    when={
        OUT_OF_BOUNDS: "An index is outside of its array: `maxima` and `sums` are [splits, rows], `parts` "
        "is [splits, rows, head_dim]. The block is the row, and the thread is the number of the output.",
        NOT_A_NUMBER: "NaN is 0 / 0, or -inf - (-inf). Has the query seen nothing in one split, or in "
        "none of them?",
    },
    examples=60,
    seconds=6.0,
    large=many_splits,
)
def merge_is_the_softmax_of_all(case: Any, story: Story) -> None:
    random, d = np.random.default_rng(case["seed"]), case["head_dim"]
    maxima = np.array([[-np.inf if m is None else m for m in line] for line in case["maxima"]], np.float32)
    is_something = maxima > -np.inf
    # The sum of a split with a single key is exactly 1.
    sums = (np.maximum(1, random.uniform(-2, 9, maxima.shape)) * is_something).astype(np.float32)
    parts = (random.standard_normal((*maxima.shape, d)) * sums[..., None]).astype(np.float32)
    highest = maxima.max(axis=0).astype(float)
    weights = np.exp(maxima - np.where(np.isneginf(highest), 0, highest))
    total = (weights * sums).sum(axis=0)
    right = (weights[..., None] * parts).sum(axis=0) / np.where(total > 0, total, 1)[:, None]
    rows = maxima.shape[1]
    for words, order in in_orders(case):
        told = ", ".join(maxima_in_words(case["maxima"][s]) for s in order[:9])
        story.step(f"merge_splits, {counted(len(order), 'split')}, {words}, with the maxima {told}")
        out = np.full((rows, d), np.nan, np.float32)
        given = {"maxima": maxima[order], "sums": sums[order], "parts": parts[order], "out": out}
        seen = run_kernel(story, subject.merge_splits, (rows,), (d,), given, {"out": True})
        near = 1e-4 * max(1.0, np.abs(parts).max(initial=0))
        is_right = np.abs(out - right) <= near
        story.see(
            {"right rows": f"{int(is_right.all(axis=1).sum())} of {rows}"}, tell_rows(right, out, is_right)
        )
        expect_rows(story, "out", right, out, near, seen)
        expect_no_fault(story, seen)
        times = reads_of(seen, 2, given["parts"].shape).sum(axis=0)
        for index in np.argwhere(times > 1)[:1].tolist():
            story.expect(False, f"parts{index} to be read once", often(int(times[tuple(index)])))
        expect_written_once(story, seen, {3: "out"})
