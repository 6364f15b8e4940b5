"""What must always hold of an online softmax, and of attention that is made of it.

Scores are moderate, huge, or far below zero; some are hidden. What is right is computed here, a row at once.
The global memory is the check's own: it sees every tile that comes and goes.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import permutations, product
from math import fsum
from random import Random
from typing import Any

import numpy as np
import subject
from hypothesis import strategies as st

from lessons.story import CRASH, NOT_A_NUMBER, Story, cell, counted, judged, row, shortened

NAMES = ("maximum", "total", "out")
TILES = (("queries", "tile_q"), ("keys", "tile_k"))
CLOSE = 1e-9
"""A right answer in float64 is nearer than this to the right one, in parts of the largest number around."""

Parts = tuple[Any, Any, Any]  # maximum, total and out


# ── what is right, and how it is shown ────────────────────────────────────────────────────────────────


def softmax_at_once(scores: Any, values: Any) -> Parts:
    """The state of each row, over all its keys together."""
    rows = len(scores)
    maximum, total, out = np.full(rows, -np.inf), np.zeros(rows), np.zeros((rows, values.shape[1]))
    for i, line in enumerate(scores):
        seen = np.flatnonzero(line > -np.inf)
        if len(seen):
            maximum[i] = max(line[seen])
            weights = np.exp(line[seen] - maximum[i])
            total[i] = fsum(weights)
            out[i] = (weights[:, None] * values[seen]).sum(axis=0) / total[i]
    return maximum, total, out


def fitting(parts: Parts, right: Parts, values: Any) -> list[Any]:
    """In which rows maximum, total and out are right. NaN never is."""
    far = max([1.0, *np.abs(right[0][right[0] > -np.inf])])
    scales = (far, right[1], max(1.0, np.abs(values).max()))
    with np.errstate(invalid="ignore"):
        near = [(a == b) | (np.abs(a - b) <= CLOSE * s) for a, b, s in zip(parts, right, scales, strict=True)]
    return [near[0], near[1], near[2].all(axis=1)]


def expect_state(story: Story, parts: Parts, right: Parts, values: Any, when: str = "") -> None:
    """Is each row in the state in which it should be?"""
    for name, part, wanted, fits in zip(NAMES, parts, right, fitting(parts, right, values), strict=True):
        for i, fit in enumerate(fits):
            texts = [shown(wanted[i]), shown(part[i])]
            if texts[0] == texts[1]:  # they differ in later digits
                texts = [str(wanted[i]), str(part[i])]
            symptom = NOT_A_NUMBER if np.isnan(part[i]).any() else ""
            story.expect(fit, f"{name} {texts[0]} in row {i}{when}", texts[1], symptom)


def as_floats(story: Story, answer: Any, shape: tuple[int, ...], what: str) -> Any:
    """The answer, if it is an array of such a shape."""
    is_array = isinstance(answer, np.ndarray)
    came = f"an array of shape {answer.shape}, {answer.dtype}" if is_array else answer
    holds = is_array and answer.dtype.kind in "fiu" and answer.shape == shape
    story.expect(holds, f"{what} as an array of numbers, of shape {shape}", came)
    return answer.astype(np.float64)


def shown(value: Any) -> str:
    """A number, or a row of them."""
    if np.ndim(value):
        return f"[{', '.join(shown(number) for number in value)}]"
    return shortened(float(value) + 0.0)  # no -0


def facts_of(parts: Parts) -> dict[str, str]:
    return {name: shown(part if len(part) > 1 else part[0]) for name, part in zip("mlo", parts, strict=True)}


def board_of(parts: Parts, right: Parts, values: Any) -> list[Any]:
    """A line for each of m, l and o; a cell for each query."""
    lines = []
    for name, part, fits in zip("mlo", parts, fitting(parts, right, values), strict=True):
        cells = [cell(shown(p).strip("[]"), i, "" if fits[i] else "wrong") for i, p in enumerate(part)]
        lines.append(row(f"{name} of rows 0 …", cells))
    return lines


def score_lines(scores: Any) -> list[Any]:
    lines = [[cell("", mark="free") if s == -np.inf else cell(shown(s)) for s in line] for line in scores]
    return [row(f"scores of row {i}", line) for i, line in enumerate(lines)]


def words(scores: Any) -> str:
    return "; ".join(", ".join("hidden" if s == -np.inf else f"{s:g}" for s in line) for line in scores)


# ── scores and states ─────────────────────────────────────────────────────────────────────────────────


@st.composite
def rows_of_scores(draw: Callable[[Any], Any], fewest: int, most: int) -> dict[str, Any]:
    """Rows of scores, in tiles of random widths; None where a key may not be seen."""
    widths = draw(st.lists(st.integers(1, 3), min_size=fewest, max_size=most))
    line = st.lists(st.none() | st.integers(-9, 9), min_size=sum(widths), max_size=sum(widths))
    return {
        "widths": widths,
        "scores": draw(st.lists(line, min_size=1, max_size=3)),
        "times": draw(st.sampled_from((1, 0.25, 100))),
        "plus": draw(st.sampled_from((0, -1000, -10_000, 1000, 10_000))),
        "sides": draw(st.lists(st.booleans(), min_size=most, max_size=most)),
        "head_dim": draw(st.integers(1, 3)),
        "seed": draw(st.integers(0, 99)),
    }


def tiles_of(case: Any) -> Iterator[tuple[Any, Any]]:
    """The scores of each tile of keys, and its values."""
    number = {None: -np.inf} | {n: n * case["times"] + case["plus"] for n in range(-9, 10)}
    scores = np.array([[number[s] for s in line] for line in case["scores"]], np.float64)
    values = np.random.default_rng(case["seed"]).integers(-99, 100, (scores.shape[1], case["head_dim"])) / 10
    for width, end in zip(case["widths"], np.cumsum(case["widths"]), strict=True):
        yield scores[:, end - width : end].copy(), values[end - width : end].copy()


def see_and_expect(story: Story, answer: Any, what: str, tiles: Sequence[tuple[Any, Any]]) -> Parts:
    """What came, and whether it is the state over all these tiles."""
    scores, values = np.hstack([s for s, _ in tiles]), np.concatenate([v for _, v in tiles])
    right = softmax_at_once(scores, values)
    story.expect(isinstance(answer, tuple) and len(answer) == 3, f"a State from {what}", answer)
    shapes = [part.shape for part in right]
    parts = tuple(as_floats(story, *pair) for pair in zip(answer, shapes, NAMES, strict=True))
    story.see(facts_of(parts), [*score_lines(scores), *board_of(parts, right, values)])
    expect_state(story, parts, right, values)
    return parts


@judged(
    "P1",
    "The state of some scores is their maximum, total and output, however large they are.",
    rows_of_scores(1, 1),
    hints=(
        "What is e^10000 as a float64? And if the row's own maximum is subtracted first?",
        "In a row of nothing, -inf - (-inf) is NaN: subtract 0 there, and do not divide by its total, 0.",
        "`shift = np.where(np.isneginf(maximum), 0, maximum)`; `weights = np.exp(scores - shift[:, None])`; "
        "`out = weights @ values / np.where(total > 0, total, 1)[:, None]`.",
    ),
    when={
        NOT_A_NUMBER: "NaN is -inf - (-inf), 0 / 0, or inf / inf. Look at the row: is all of it hidden, "
        "or are its scores thousands?",
        CRASH: "Write down the shapes in the line that raised: scores are [rows, keys], a maximum is "
        "[rows], and `maximum[:, None]` is a column.",
    },
)
def one_tile(case: Any, story: Story) -> None:
    scores, values = next(tiles_of(case))
    story.step(f"scores {words(scores)}")
    see_and_expect(story, subject.state_of(scores, values), "state_of", list(tiles_of(case)))


@judged(
    "P2",
    "Merging tile after tile into nothing always gives the softmax of the keys so far.",
    rows_of_scores(1, 4),
    hints=(
        "The new maximum is the larger one. What makes e^(s - new m) of e^(s - m), term by term?",
        "Each total gets its factor e^(m - new m). `out` was divided by its old total: undo this, add, and "
        "divide by the new one. And mind -inf - (-inf).",
        "`share_a = a.total * np.exp(a.maximum - shift)`, likewise `share_b`; `total = share_a + share_b`; "
        "`out = (share_a[:, None] * a.out + share_b[:, None] * b.out) / total[:, None]`, and 0 for nothing.",
    ),
    when={
        NOT_A_NUMBER: "One of the two states has seen nothing in that row, or both: its maximum is -inf. "
        "Then -inf - (-inf) is NaN, and so is 0 / 0.",
    },
)
def a_stream_of_tiles(case: Any, story: Story) -> None:
    rows, width = len(case["scores"]), case["head_dim"]
    parts: Parts = (np.full(rows, -np.inf), np.zeros(rows), np.zeros((rows, width)))
    tiles = list(tiles_of(case))
    for i, (tile, is_left) in enumerate(zip(tiles, case["sides"], strict=False)):
        story.step(f"merge scores {words(tile[0])}, {'from the left' if is_left else 'from the right'}")
        pair = [subject.State(*parts), subject.State(*softmax_at_once(*tile))]
        answer = subject.merge(*(pair[::-1] if is_left else pair))
        parts = see_and_expect(story, answer, "merge", tiles[: i + 1])


@judged(
    "P3",
    "Three states may be merged in any order and grouping, and be used again afterwards.",
    rows_of_scores(3, 3),
    examples=60,
    hints=(
        "Merge A with B. Then look at A: is it still what it was?",
        "`a.total *= …` and `np.maximum(…, out=…)` write into an array that belongs to the caller.",
        "Compute into new arrays, `total = a.total * … + b.total * …`, and return a new `State`.",
    ),
)
def any_order(case: Any, story: Story) -> None:
    tiles = list(tiles_of(case))
    states = [subject.State(*softmax_at_once(*tile)) for tile in tiles]
    story.step(f"A, B and C see scores {' | '.join(words(scores) for scores, _ in tiles)}")
    for i, j, k in permutations(range(3)):
        a, b, c = ("ABC"[n] for n in (i, j, k))
        story.step(f"({a} · {b}) · {c}")
        answer = subject.merge(subject.merge(states[i], states[j]), states[k])
        see_and_expect(story, answer, "merge", tiles)
        story.step(f"{a} · ({b} · {c})")
        answer = subject.merge(states[i], subject.merge(states[j], states[k]))
        see_and_expect(story, answer, "merge", tiles)


# ── attention, and the memory that it uses ────────────────────────────────────────────────────────────


def heads(causal: Any) -> Any:
    sizes = {"queries": (1, 7), "keys": (1, 9), "tile_q": (1, 5), "tile_k": (1, 5), "head_dim": (2, 4)}
    parts = {name: st.integers(*ends) for name, ends in (sizes | {"seed": (0, 99)}).items()}
    parts |= {"spread": st.sampled_from((1, 30, 1000)), "plus": st.sampled_from((0, -10_000, 10_000))}
    return st.fixed_dictionaries(parts | {"causal": causal})


def large_head(is_causal: bool) -> Callable[[Random], Any]:
    """A head of real width, over more keys than a byte can count; tiles that divide nothing."""
    sizes = {"queries": 40, "keys": 300, "tile_q": 16, "tile_k": 64, "head_dim": 128}
    return lambda dice: {**sizes, "seed": dice.randrange(99), "spread": 1, "plus": 0, "causal": is_causal}


class Memory:
    """Global memory with one head in it. It tells what comes and goes, a step for each tile of keys."""

    def __init__(self, case: Any, story: Story, is_strict: bool = False) -> None:
        random = np.random.default_rng(case["seed"])
        rows, keys, d = case["queries"], case["keys"], case["head_dim"]
        query, key = (random.standard_normal((n, d)) for n in (rows, keys))
        query *= case["spread"]
        query[:, 0], key[:, 0] = d**0.5, key[:, 0] + case["plus"]  # moves all scores by the same amount
        self.values = random.integers(-99, 100, (keys, d)) / 10
        self.scores = np.array([[float(np.dot(q, k)) / d**0.5 for k in key] for q in query])
        self.last_visible = np.arange(rows) + keys - rows if case["causal"] else np.full(rows, keys - 1)
        self.scores[np.arange(keys) > self.last_visible[:, None]] = -np.inf
        self._arrays = {"query": query, "key": key, "value": self.values.copy()}
        nothing = softmax_at_once(self.scores[:, :0], self.values[:0])
        self._arrays |= dict(zip(NAMES, nothing, strict=True))
        self._case, self._story, self._is_strict = case, story, is_strict
        self.moves: list[tuple[str, str, int, int]] = []  # "loaded" or "stored", name, start, end
        self._num_told = 0  # moves that are in a picture
        self._alone: tuple[str, int, int] | None = None  # keys without their values, or the other way round

    def shape(self, name: str) -> tuple[int, ...]:
        return self._array(name).shape

    def load(self, name: str, start: int, end: int) -> Any:
        array = self._rows(name, start, end, f"load({name!r}, {start!r}, {end!r})")
        if name in ("key", "value"):
            self._next_keys(name, start, end)
        self.moves.append(("loaded", name, start, end))
        return array[start:end].copy()

    def store(self, name: str, start: int, tile: Any) -> None:
        self._story.expect(name in NAMES, "only maximum, total and out to be stored", f"a store to {name!r}")
        rows = len(tile) if isinstance(tile, np.ndarray) and tile.ndim else 1
        end = start + rows if isinstance(start, int | np.integer) else None
        array = self._rows(name, start, end, f"store({name!r}, {start!r}, …) of {counted(rows, 'row')}")
        shape = (rows, *array.shape[1:])
        array[start:end] = as_floats(self._story, tile, shape, f"the tile of `{name}` to store")
        self.moves.append(("stored", name, start, start + rows))

    def times(self, way: str, name: str) -> Any:
        """How often each row was loaded, or stored."""
        counts = np.zeros(len(self._arrays[name]), int)
        for *move, start, end in self.moves:
            counts[start:end] += move == [way, name]
        return counts

    def state(self) -> Parts:
        return self._arrays["maximum"], self._arrays["total"], self._arrays["out"]

    def right(self) -> Parts:
        """What the state should be over the keys that were loaded with their values."""
        seen = (self.times("loaded", "key") > 0) & (self.times("loaded", "value") > 0)
        return softmax_at_once(self.scores[:, seen], self.values[seen])

    def tell(self) -> None:
        """Show what came of the last tile of keys."""
        if self._num_told == len(self.moves):
            return
        lines, numbers = board_of(self.state(), self.right(), self.values), {}
        for way, name, start, end in self.moves[self._num_told :]:
            numbers[way, name] = numbers.get((way, name), 0) + self._arrays[name][start:end].size
        for way in ("loaded", "stored"):
            cells = [cell(f"{name} {n}", mark="new") for (w, name), n in numbers.items() if w == way]
            lines.append(row(f"numbers {way}", cells))
        self._story.see(facts_of(self.state()), lines)
        self._num_told = len(self.moves)

    def _array(self, name: str) -> Any:
        self._story.expect(name in [*self._arrays], f"one of the arrays {', '.join(self._arrays)}", name)
        return self._arrays[name]

    def _rows(self, name: str, start: Any, end: Any, got: str) -> Any:
        """The array, if it has such rows."""
        array = self._array(name)
        exist = all(isinstance(n, int | np.integer) for n in (start, end)) and 0 <= start < end <= len(array)
        self._story.expect(exist, f"rows of `{name}` that exist, from 0 to {len(array) - 1}", got)
        return array

    def _next_keys(self, name: str, start: int, end: int) -> None:
        """Keys or values come: what has become of those before them?"""
        other = "value" if name == "key" else "key"
        is_second = self._alone == (other, start, end)
        self._alone = None if is_second else (name, start, end)
        if is_second:
            return
        self.tell()
        mine, others = (self.times("loaded", which) > 0 for which in (name, other))
        tiles = np.split(mine, range(self._case["tile_k"], len(mine), self._case["tile_k"]))
        if self._is_strict and (mine == others).all() and all(tile.all() or not tile.any() for tile in tiles):
            when = f", after {mine.sum()} of {counted(len(mine), 'key')}"
            expect_state(self._story, self.state(), self.right(), self.values, when)
        self._story.step(f"keys {start} … {end - 1} come" if end - start > 1 else f"key {start} comes")


def run(case: Any, story: Story, is_strict: bool = False) -> Memory:
    """One head through `flash1`."""
    memory = Memory(case, story, is_strict)
    sizes = [f"{what}: {case[what]} in tiles of {case[tile]}" for what, tile in TILES]
    story.step(f"{', '.join(sizes)}, {'causal' if case['causal'] else 'all visible'}")
    story.see({}, score_lines(memory.scores))
    try:
        subject.flash1(memory, case["tile_q"], case["tile_k"], case["causal"])
    finally:
        memory.tell()
    return memory


@judged(
    "P4",
    "Where every query sees every key, flash1 is attention, for all lengths and tiles.",
    heads(st.just(False)),
    hints=(
        "Keys and values outside, queries inside. What must a query know of the tiles before? Who keeps it?",
        "For each pair of tiles: load the queries, compute scores, make their state, load the old state, "
        "merge, store. The last tile may be smaller: `end = min(first + tile, length)`.",
        "`new = merge(old, state_of(queries @ keys.T / np.sqrt(head_dim), values))`, where `old` is "
        "`State(*(memory.load(name, first, end) for name in State._fields))`.",
    ),
    when={
        CRASH: "Look at both tiles in the line that raised: the last of either may be shorter than the "
        "others, and it ends at `min(first + tile, length)`.",
    },
    large=large_head(False),
)
def flash_is_attention(case: Any, story: Story) -> None:
    memory = run(case, story)
    right, out = softmax_at_once(memory.scores, memory.values), memory.state()[2]
    expect_state(story, (*right[:2], out), right, memory.values, ", in the end")


@judged(
    "P5",
    "A causal query sees keys up to its own position; one that sees none has out = 0.",
    heads(st.just(True)),
    hints=(
        "There are 3 queries and 5 keys: the queries are the last three tokens. Which keys does query 0 see?",
        "Query i is at position i + keys - queries. Hide scores before the maximum is taken.",
        "`positions = np.arange(first, end)[:, None] + num_keys - num_queries`; "
        "`scores = np.where(np.arange(first_key, end_key) <= positions, scores, -np.inf)`.",
    ),
    when={
        NOT_A_NUMBER: "In a tile of keys a query may see none, and the query may see none at all. Do "
        "`state_of` and `merge` hold for it?",
    },
    large=large_head(True),
)
def causal_flash_is_attention(case: Any, story: Story) -> None:
    flash_is_attention.play(case, story)


@judged(
    "P6",
    "Keys and values come once, queries and states once for each tile of keys.",
    heads(st.booleans()),
    hints=(
        "Count with pencil and paper: which array is loaded how often? Which loop is outside?",
        "Compare the first key with the position of the last query of the tile: does it see anything?",
        "`if causal and first_key > end - 1 + num_keys - num_queries: continue`, before the first load.",
    ),
)
def traffic_follows_the_formula(case: Any, story: Story) -> None:
    memory = run(case, story)
    for way, name, start, end in memory.moves:
        most = case["tile_k" if name in ("key", "value") else "tile_q"]
        what, rows = f"at most {counted(most, 'row')} of `{name}` {way} at a time", end - start
        story.expect(rows <= most, what, rows)
    for name in ("key", "value"):
        for i, count in enumerate(memory.times("loaded", name)):
            story.expect(count == 1, f"row {i} of `{name}` to be loaded once", f"{count} times")
    starts, size, last = range(0, case["keys"], case["tile_k"]), case["tile_q"], memory.last_visible
    for i in range(case["queries"]):
        # Rows that see nothing may be left out, and the empty state need not be loaded: it is known.
        most = sum(start <= max(last[i // size * size :][:size]) for start in starts)
        least = sum(start <= last[i] for start in starts)
        for way, name in (("loaded", "query"), *product(("loaded", "stored"), NAMES)):
            count, fewest = memory.times(way, name)[i], least - (way == "loaded" and name in NAMES)
            what = f"row {i} of `{name}` to be {way} {most} times: so many tiles of keys matter to its tile"
            story.expect(fewest <= count <= most, what, f"{count} times")


@judged(
    "P7",
    "After each tile of keys, global memory holds the softmax of the keys so far.",
    heads(st.booleans()),
    hints=(
        "Stop after the first tile of keys. Is `out` in global memory right, as if there were no others?",
        "`out` is divided by `total` at each visit. (FlashAttention 2 divides once, in the end.)",
        "Store all three parts of `merge(old, new)` as they are, before the next tile of keys is loaded.",
    ),
)
def memory_holds_the_state(case: Any, story: Story) -> None:
    memory = run(case, story, is_strict=True)
    expect_state(
        story, memory.state(), softmax_at_once(memory.scores, memory.values), memory.values, ", in the end"
    )
