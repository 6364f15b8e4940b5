"""What must always hold of a KV cache, and of a decoder that uses one.

Models are small and random, often with fewer KV heads than query heads, and no two of their sizes are equal
by rule. What is right is computed here from the whole text, token by token and head by head: without a cache.
"""

from collections.abc import Callable, Sequence
from random import Random
from typing import Any

import numpy as np
import subject
from hypothesis import strategies as st

from lessons.story import (
    ACCEPTED,
    AFTER_REFUSAL,
    CRASH,
    EMPTY,
    Story,
    cell,
    counted,
    given_as,
    judged,
    row,
    shortened,
)

CLOSE = 1e-9
"""A right answer in float64 is nearer than this to the right one, in parts of the largest number around."""
TYPES = ("float64", "float32", "float16")
seeds = st.integers(0, 99)


# ── what is shown, and compared ───────────────────────────────────────────────────────────────────────


def numbers(array: Any) -> str:
    """The first numbers of an array."""
    flat = np.asarray(array).ravel()
    return f"[{', '.join(shortened(float(n)) for n in flat[:4])}{', …' if flat.size > 4 else ''}]"


def both(right: Any, got: Any) -> tuple[str, str]:
    """The right numbers and others, in words that differ: where they are farthest apart, in enough digits."""
    right, got = (np.asarray(array, np.float64).ravel() for array in (right, got))
    with np.errstate(invalid="ignore"):
        apart = np.where(np.isfinite(got), np.abs(right - got), np.inf)
    first = int(apart.argmax()) // 4 * 4
    words: tuple[str, ...] = ()
    for digits in (4, 9, 17):
        texts = [", ".join(f"{n:.{digits}g}" for n in array[first : first + 4]) for array in (right, got)]
        around = ("[" + "…, " * (first > 0), ", …" * (first + 4 < right.size) + "]")
        words = tuple(text.join(around) for text in texts)
        if texts[0] != texts[1]:
            break
    return words[0], words[1]


def is_floats(answer: Any, shape: tuple[int, ...]) -> bool:
    return isinstance(answer, np.ndarray) and answer.dtype.kind == "f" and answer.shape == shape


def in_words(answer: Any) -> Any:
    if isinstance(answer, np.ndarray):
        return f"an array of shape {answer.shape}, {answer.dtype}"
    return answer


def plural(count: int) -> str:
    return counted(count, "token")


def near(answer: Any, right: Any) -> Any:
    """In which of the rows all numbers are right; NaN never is."""
    scale = max(1.0, float(np.abs(right).max(initial=0.0)))
    with np.errstate(invalid="ignore"):
        return (np.abs(np.asarray(answer, np.float64) - right) <= CLOSE * scale).all(axis=-1)


def refused(call: Callable[[], Any], story: Story, why: str) -> None:
    """Make a call that must raise a ValueError."""
    came: Any = None
    with story.allowing(ValueError) as answer:
        came = call()
    story.see({"answer": "refused" if answer.is_refused else "accepted"})
    story.expect(answer.is_refused, f"ValueError: {why}", in_words(came), ACCEPTED)


def positions(count: int, steps: Sequence[int], wrong: Any = ()) -> list[Any]:
    """A cell for each token: colours tell the steps that brought them, a corner the newest."""
    bounds = np.cumsum(steps)
    cells = []
    for place in range(count):
        step = int(np.searchsorted(bounds, place, side="right"))
        mark = "wrong" if place in wrong else "new" if step == len(steps) - 1 else ""
        cells.append(cell(place, step, mark))
    return cells


# ── a cache, filled by hand ───────────────────────────────────────────────────────────────────────────

SHAPES = {
    "num_layers": st.integers(1, 3),
    "num_kv_heads": st.integers(1, 3),
    "head_dim": st.integers(1, 4),
    "type": st.sampled_from(TYPES),
    "seed": seeds,
}
APPENDS = st.fixed_dictionaries(
    SHAPES | {"steps": st.lists(st.tuples(st.integers(0, 1), st.integers(0, 4)), min_size=1, max_size=6)}
)


def large_cache(dice: Random) -> Any:
    """Two sequences of some hundred tokens: prompts, then one token after the other."""
    steps = [[0, 240], [1, 130]] + [[dice.choice((0, 0, 1)), 1] for _ in range(40)]
    shape = {"num_layers": 2, "num_kv_heads": 4, "head_dim": 128, "type": "float16"}
    return shape | {"seed": dice.randrange(99), "steps": steps}


class Kept:
    """A learner's cache, and what should be in it: `rows[layer]` is a pair of lists of arrays."""

    def __init__(self, case: Any, capacity: int, story: Story, name: str = "the cache") -> None:
        self.layers, self.heads, self.size = case["num_layers"], case["num_kv_heads"], case["head_dim"]
        self.type, self.capacity, self.story, self.name = np.dtype(case["type"]), capacity, story, name
        self.cache = subject.KVCache(self.layers, self.heads, self.size, capacity, self.type)
        empty = np.zeros((self.heads, 0, self.size), self.type)
        self.right: list[list[Any]] = [[empty, empty] for _ in range(self.layers)]
        self.steps: list[int] = []
        self.random = np.random.default_rng(case["seed"])

    def append(self, layer: int, count: int) -> None:
        """To one layer; afterwards the caller uses his arrays for something else."""
        pair = self.random.standard_normal((2, self.heads, count, self.size))
        old = self.right[layer]
        self.right[layer] = [
            np.concatenate((a, b.astype(self.type)), 1) for a, b in zip(old, pair, strict=True)
        ]
        self.cache.append(layer, *pair)
        for array in pair:
            array.fill(99.0)

    def length(self, layer: int) -> int:
        return int(self.right[layer][0].shape[1])

    def step(self, count: int, look: Callable[[str], None] | None = None) -> None:
        """To all layers, one after the other; `look` looks at the cache after each of them."""
        self.steps.append(count)
        for layer in range(self.layers):
            self.append(layer, count)
            when = f" when {layer + 1} of {counted(self.layers, 'layer')} got {plural(count)} more"
            (look or self.expect_count)(when)

    def expect_count(self, when: str = "") -> None:
        right = min(self.length(layer) for layer in range(self.layers))
        got = self.cache.num_tokens
        self.story.expect(got == right, f"num_tokens to be {right}{when}", got)

    def expect_rows(self, when: str = "") -> list[tuple[Any, Any]]:
        """Everything that should be in it, layer by layer; returns what was read."""
        found = [self.cache.read(layer) for layer in range(self.layers)]
        lines = []
        for layer, pair in enumerate(found):
            is_pair = isinstance(pair, tuple) and len(pair) == 2
            self.story.expect(is_pair, "read to return a tuple of keys and values", pair)
            wrong = {
                place
                for answer, right in zip(pair, self.right[layer], strict=True)
                if is_floats(answer, right.shape)
                for place in np.flatnonzero((answer != right).any(axis=(0, 2)))
            }
            lines.append(row(f"layer {layer}", positions(self.length(layer), self.steps, wrong)))
        self.story.see({"tokens": self.length(0)}, lines)
        for layer, pair in enumerate(found):
            for what, answer, right in zip(("keys", "values"), pair, self.right[layer], strict=True):
                self.expect_array(answer, right, f"the {what} of layer {layer} of {self.name}{when}")
        return found

    def expect_array(self, answer: Any, right: Any, what: str) -> None:
        fits = is_floats(answer, right.shape) and answer.dtype == self.type
        self.story.expect(fits, f"{what} as an array of shape {right.shape}, {self.type}", in_words(answer))
        for place in np.flatnonzero((answer != right).any(axis=(0, 2))):
            wanted, got = both(right[:, place], answer[:, place])
            self.story.expect(False, f"{what}, position {place}, to be {wanted}", got)


@judged(
    "P1",
    "What is appended is kept: as a copy, in order, layer by layer, in the cache's own type.",
    APPENDS,
    hints=(
        "Two layers get 3 tokens each, then 2 more. Where do the 2 go? How many tokens are there meanwhile?",
        "Each layer has a length of its own; the new rows go from there on. `num_tokens` is what all have. A "
        "list that holds the caller's array changes when he does; class attributes are shared by all caches.",
        "`self.cells[layer, 0, :, start:start + new] = keys`, with cells from `np.zeros((num_layers, 2, "
        "num_kv_heads, capacity, head_dim), dtype)`; read returns `[…, :length, :]`.",
    ),
    when={
        CRASH: "A layer without a token can be read, too: as two arrays of shape (num_kv_heads, 0, "
        "head_dim). `np.concatenate` of an empty list raises.",
    },
    examples=100,
    large=large_cache,
)
def what_is_appended_is_kept(case: Any, story: Story) -> None:
    room = sum(count for _, count in case["steps"])
    both = [Kept(case, room, story, f"cache {name}") for name in "AB"]
    for which, count in case["steps"]:
        kept = both[which]
        words = f"append {plural(count)}, layer by layer; then fill the arrays that were given with 99"
        story.step(f"cache {'AB'[which]} ({kept.type}): {words}")
        before = kept.right[0]
        seen = kept.cache.read(0)
        kept.step(count)
        kept.expect_rows()
        for what, answer, right in zip(("keys", "values"), seen, before, strict=True):
            kept.expect_array(answer, right, f"the {what} that were read before {count} more came")
    for number, kept in enumerate(both):
        story.step(f"cache {'AB'[number]} is read once more")
        kept.expect_rows()


ATTEMPTS = (
    "one token too many",
    "far too many tokens",
    "one token more, when layer 0 alone is full",
    "a head too many",
    "one head for all",
    "a number too many in each head",
    "more keys than values",
    "fewer keys than values",
    "one value for all keys",
    "one head of values for all",
    "a number too many in the values",
    "one number of a value for all",
    "keys of one head alone, as a matrix",
    "layer -1",
    "a layer too many",
)


@judged(
    "P2",
    "What does not fit is refused whole, and afterwards everything goes on.",
    st.fixed_dictionaries(
        SHAPES
        | {
            "capacity": st.integers(1, 6),
            "steps": st.lists(st.integers(1, 3), max_size=3),
            "attempts": st.lists(st.sampled_from(ATTEMPTS), min_size=1, max_size=3),
        }
    ),
    hints=(
        "A cache of 4 has 4 tokens. What does `cells[:, 4:5] = keys` do in numpy, with one token more?",
        "numpy writes one row into no row without a word, takes -1 for the last layer, and fits one head to "
        "three. So look at layer, both shapes and room yourself, before the first assignment.",
        "`if not 0 <= layer < num_layers: raise ValueError(…)`; compare `keys.shape` and `values.shape` with "
        "`(num_kv_heads, new, head_dim)`; `if length + new > capacity: raise ValueError(…)`; then write.",
    ),
    when={
        ACCEPTED: "Nothing was raised. Which attempt was it: a layer that there is not, an array of "
        "another shape, or more tokens than there is room for? numpy fits most of them in without a word.",
        AFTER_REFUSAL: "`ValueError` came, but something had changed by then: the length of a layer, or "
        "the keys, before the values were looked at.",
        CRASH: "Only `ValueError` is a refusal: a list raises `IndexError` for a layer too many, and a "
        "matrix has no third axis. Look at `keys.ndim` before you take its shape apart.",
    },
)
def refusals_change_nothing(case: Any, story: Story) -> None:
    kept = Kept(case, case["capacity"], story)
    for count in case["steps"]:
        count = min(count, kept.capacity - kept.length(0))
        story.step(f"append {plural(count)}: {kept.length(0) + count} of {kept.capacity}")
        kept.step(count)
        kept.expect_rows()
    for attempt in case["attempts"]:
        attempt_once(kept, attempt, story)
        story.step("what is in the cache now?")
        kept.expect_count(" after the refusal")
        kept.expect_rows(" after the refusal")
    rest = kept.capacity - kept.length(0)
    story.step(f"append what still fits, {plural(rest)}")
    kept.step(rest)
    kept.expect_rows()
    attempt_once(kept, "one token too many", story)
    story.step("the full cache is read once more")
    kept.expect_rows(" of the full cache")


def attempt_once(kept: Kept, attempt: str, story: Story) -> None:
    """One call of `append` that must be refused; none if it would be right, in a cache of this shape."""
    room = kept.capacity - kept.length(0)
    heads, size = kept.heads, kept.size
    if attempt == "one token more, when layer 0 alone is full":
        fill_layer_by_layer(kept, room, story)
        return
    keys: tuple[int, ...] = (heads, room, size)
    values: tuple[int, ...] = keys
    if attempt in ("one token too many", "far too many tokens"):
        keys = values = (heads, room + 1 if attempt.startswith("one") else 2 * kept.capacity + 1, size)
    elif attempt in ("a head too many", "one head for all"):
        keys = values = (1 if attempt.startswith("one") else heads + 1, room, size)
    elif attempt == "a number too many in each head":
        keys = values = (heads, room, size + 1)
    elif attempt == "keys of one head alone, as a matrix":
        keys = (room, size)
    else:
        keys = (heads, max(0, room - 1), size) if attempt == "fewer keys than values" else keys
        values = {
            "more keys than values": (heads, max(0, room - 1), size),
            "one value for all keys": (heads, min(1, room), size),
            "one head of values for all": (1, room, size),
            "a number too many in the values": (heads, room, size + 1),
            "one number of a value for all": (heads, room, 1),
        }.get(attempt, values)
    layer = {"layer -1": -1, "a layer too many": kept.layers}.get(attempt, kept.layers - 1)
    if keys == values == (heads, min(keys[1], room), size) and 0 <= layer < kept.layers:
        return
    story.step(
        f"append to layer {layer}: {attempt} (keys {keys}, values {values}; "
        f"{room} of {kept.capacity} are free)"
    )
    arrays = kept.random.standard_normal(keys), kept.random.standard_normal(values)
    refused(lambda: kept.cache.append(layer, *arrays), story, attempt)


def fill_layer_by_layer(kept: Kept, room: int, story: Story) -> None:
    """In the midst of a step the first layer is full, and the others are not."""
    if kept.layers == 1:
        return
    kept.steps.append(room)
    story.step(f"layer 0 is filled with {plural(room)}; then it gets one more")
    kept.append(0, room)
    more = kept.random.standard_normal((2, kept.heads, 1, kept.size))
    refused(lambda: kept.cache.append(0, *more), story, "layer 0 is full")
    for layer in range(1, kept.layers):
        kept.append(layer, room)


def large_bytes(dice: Random) -> Any:
    """A long text in a large model: more bytes than 32 bits count."""
    return {
        "numbers": (
            80,
            8,
            128,
            dice.randrange(100_000, 200_000),
            2,
        ),  # not a list, of which parts may be left out
        "num_layers": 2,
        "num_kv_heads": 2,
        "head_dim": 2,
        "type": "float16",
        "seed": 0,
        "steps": [300] + [1] * 20,
        "room": 5,
    }


@judged(
    "P3",
    "A token takes 2 · layers · KV heads · head_dim numbers, each of so many bytes.",
    st.fixed_dictionaries(
        SHAPES
        | {
            "numbers": st.tuples(*[st.integers(1, 9)] * 3, st.integers(0, 20), st.sampled_from((1, 2, 4, 8))),
            "steps": st.lists(st.integers(0, 4), max_size=4),
            "room": st.integers(0, 5),
        }
    ),
    hints=(
        "What is kept of one token, in one layer, by one KV head?",
        "A key and a value, of `head_dim` numbers each. Query heads and the room that is still empty do not "
        "count. How many bytes a number has, the type knows: `np.dtype(dtype).itemsize`.",
        "`2 * num_layers * num_kv_heads * head_dim * num_tokens * bytes_per_number`",
    ),
    examples=100,
    large=large_bytes,
)
def bytes_by_formula(case: Any, story: Story) -> None:
    layers, heads, size, tokens, width = case["numbers"]
    parts = counted(layers, "layer"), counted(heads, "KV head"), plural(tokens), counted(width, "byte")
    story.step("{}, {} of {}, {}, {} a number".format(*parts[:2], size, *parts[2:]))
    right = sum(width * size * heads * layers for _ in ("keys", "values")) * tokens
    got = subject.kv_bytes(layers, heads, size, tokens, width)
    story.see({"bytes": got})
    story.expect(got == right, f"{right:,} bytes", got)
    kept = Kept(case, sum(case["steps"]) + case["room"], story)
    told = f"{counted(kept.layers, 'layer')}, {counted(kept.heads, 'KV head')} of {kept.size}, {kept.type}"

    def look(when: str) -> None:
        """In the midst of a step only those tokens count that all layers have."""
        of_all = min(kept.length(layer) for layer in range(kept.layers))
        right = sum(array[:, :of_all].nbytes for pair in kept.right for array in pair)
        got = kept.cache.num_bytes
        story.see({"tokens": of_all, "bytes": got})
        story.expect(got == right, f"num_bytes to be {right:,}{when} ({told})", got)

    for count in (0, *case["steps"]):
        story.step(f"append {plural(count)}, layer by layer, to a cache of {kept.type}")
        kept.step(count, look)


# ── attention ─────────────────────────────────────────────────────────────────────────────────────────


def attention_by_hand(queries: Any, keys: Any, values: Any) -> Any:
    """Query by query, over the keys that it may see."""
    (heads, m, size), (kv_heads, n, _) = queries.shape, keys.shape
    keys, values = keys.astype(np.float64), values.astype(np.float64)
    out = np.zeros(queries.shape)
    for head in range(heads):
        shared = head // (heads // kv_heads)
        for i in range(m):
            seen = n - m + i + 1
            scores = keys[shared, :seen] @ queries[head, i] / size**0.5
            weights = np.exp(scores - scores.max())
            out[head, i] = weights @ values[shared, :seen] / weights.sum()
    return out


def large_attention(dice: Random) -> Any:
    """A chunk of a prompt over more keys than a byte can count, with real heads."""
    return {
        "num_kv_heads": 4, "group": 8, "head_dim": 128, "new": 5, "before": dice.randrange(290, 400),
        "spread": 1, "plus": 0, "type": "float16", "seed": dice.randrange(99),
    }  # fmt: skip


@judged(
    "P4",
    "Each query sees the keys up to its own position, of the KV head that its group shares.",
    st.fixed_dictionaries(
        {
            "num_kv_heads": st.integers(1, 3),
            "group": st.integers(1, 3),
            "head_dim": st.integers(2, 4),
            "new": st.integers(0, 4),
            "before": st.integers(0, 5),
            "spread": st.sampled_from((1, 30)),
            "plus": st.sampled_from((0, 0, 10_000, -10_000)),
            "type": st.sampled_from(TYPES),
            "seed": seeds,
        }
    ),
    hints=(
        "Five tokens, and the last two bring queries. Which keys does the first of the two see?",
        "Query i of m sees keys 0 … n - m + i. Query head h looks at KV head h // (num_heads // "
        "num_kv_heads). Subtract each row's largest score before e^…, or it overflows.",
        "`keys = np.repeat(keys, num_heads // num_kv_heads, axis=0)`; `scores = queries @ keys.transpose(0, "
        "2, 1) / np.sqrt(head_dim)`; `scores[:, np.arange(n) > np.arange(n - m, n)[:, None]] = -np.inf`; "
        "softmax; `weights @ values`.",
    ),
    when={
        EMPTY: "There is no query: the answer is an array of shape (num_heads, 0, head_dim). If there is "
        "no key either, the largest of no scores raises, unless it has an `initial=`.",
        CRASH: "Write down the shape of each array in the line that raised. There may be fewer KV heads "
        "than query heads: which axis do they share?",
    },
    large=large_attention,
)
def attention_sees_what_was_before(case: Any, story: Story) -> None:
    random = np.random.default_rng(case["seed"])
    kv_heads, size, n = case["num_kv_heads"], case["head_dim"], case["before"] + case["new"]
    heads = kv_heads * case["group"]
    queries = case["spread"] * random.standard_normal((heads, case["new"], size))
    keys, values = random.standard_normal((2, kv_heads, n, size))
    queries[:, :, 0], keys[:, :, 0] = size**0.5, keys[:, :, 0] + case["plus"]  # moves all scores alike
    keys, values = keys.astype(case["type"]), values.astype(case["type"])
    story.step(
        f"{counted(heads, 'query head')}, {counted(kv_heads, 'KV head')}, {counted(case['new'], 'query')}, "
        f"{counted(n, 'key')} of {size} ({keys.dtype})",
        empty=case["new"] == 0,
    )
    right = attention_by_hand(queries, keys, values)
    given = [array.copy() for array in (queries, keys, values)]
    answer = subject.attend(*given)
    story.expect(is_floats(answer, right.shape), f"an array of shape {right.shape}", in_words(answer))
    story.expect(answer.dtype == np.float64, "float64", answer.dtype)
    fits = near(answer, right)
    lines = []
    for head, line in enumerate(fits):
        shared = head // case["group"]
        cells = [cell(case["before"] + i, shared, "" if fit else "wrong") for i, fit in enumerate(line)]
        lines.append(row(f"query head {head}, KV head {shared}", cells))
    story.see({"right rows": f"{int(fits.sum())} of {fits.size}"}, lines)
    for head, i in np.argwhere(~fits):
        where = f"the query at position {case['before'] + i} in query head {head}"
        wanted, got = both(right[head, i], answer[head, i])
        story.expect(False, f"{wanted} for {where}", got)
    for what, array, was in zip(("queries", "keys", "values"), given, (queries, keys, values), strict=True):
        story.expect(np.array_equal(array, was), f"the {what} to be as they were", numbers(array))


# ── a model ───────────────────────────────────────────────────────────────────────────────────────────

MODELS = st.fixed_dictionaries(
    {
        "num_layers": st.integers(1, 3),
        "num_kv_heads": st.integers(1, 2),
        "group": st.integers(1, 3),
        "head_dim": st.integers(1, 3),
        "hidden": st.integers(2, 5),
        "vocab_size": st.integers(3, 9),
        "seed": seeds,
    }
)
LARGE_MODEL = {
    "num_layers": 2,
    "num_kv_heads": 2,
    "group": 4,
    "head_dim": 64,
    "hidden": 96,
    "vocab_size": 400,
}


class Watched(np.ndarray):
    """Weights that count the multiplications in which they take part."""

    count: Any = None

    def __array_finalize__(self, other: Any) -> None:
        self.count = getattr(other, "count", None)

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, out: Any = None, **kwargs: Any) -> Any:
        given = [plain(item) for item in inputs]
        if out is not None:
            kwargs["out"] = tuple(plain(item) for item in out)
        answer = getattr(ufunc, method)(*given, **kwargs)
        if method == "__call__" and ufunc is np.matmul:
            self.counted(inputs, answer.size * given[0].shape[-1])
        elif method == "__call__" and ufunc is np.multiply and np.size(answer) > max(map(np.size, given)):
            self.counted(inputs, answer.size)
        return out[0] if out is not None else answer

    def __array_function__(self, func: Any, types: Any, args: Any, kwargs: Any) -> Any:
        answer = func(*plain(args), **plain(kwargs))
        if func in (np.dot, np.inner, np.tensordot, np.einsum):
            arrays = [item for item in args if isinstance(item, np.ndarray)]
            if len(arrays) == 2 and answer.size:
                inner = (arrays[0].size * arrays[1].size / answer.size) ** 0.5
                self.counted(arrays, round(answer.size * inner))
        elif isinstance(answer, np.ndarray) and np.may_share_memory(answer, self):
            answer = answer.view(Watched)  # the same weights in another shape
            answer.count = self.count
        return answer

    def dot(self, other: Any, out: Any = None) -> Any:
        return np.dot(self, other)

    def counted(self, inputs: Any, multiplications: int) -> None:
        """Count, if one of the inputs is a part of the weights themselves, and not something computed."""
        if self.count is not None and any(self.count.has(item) for item in inputs):
            self.count.total += multiplications


def plain(item: Any) -> Any:
    """Without the watch."""
    if isinstance(item, Watched):
        return item.view(np.ndarray)
    if isinstance(item, tuple | list):
        return type(item)(plain(each) for each in item)
    if isinstance(item, dict):
        return {name: plain(each) for name, each in item.items()}
    return item


class Count:
    """Multiplications with the weights so far."""

    def __init__(self) -> None:
        self.total = 0
        self.weights: list[Any] = []

    def watch(self, weights: Any) -> Any:
        self.weights.append(weights)
        watched = weights.view(Watched)
        watched.count = self
        return watched

    def has(self, item: Any) -> bool:
        return isinstance(item, Watched) and any(np.may_share_memory(item, own) for own in self.weights)


class World:
    """A random model, and what it says of a text: the whole of it computed anew."""

    def __init__(self, case: Any, longest: int) -> None:
        self.case, self.longest = case, longest
        random = np.random.default_rng(case["seed"])
        self.kv_heads, self.size, self.vocab = case["num_kv_heads"], case["head_dim"], case["vocab_size"]
        self.heads, hidden = self.kv_heads * case["group"], case["hidden"]
        across, kv = self.heads * self.size, self.kv_heads * self.size
        shapes = ((hidden, across), (hidden, kv), (hidden, kv), (across, hidden))
        self.layers = [
            [random.standard_normal(shape) / shape[0] ** 0.5 for shape in shapes]
            for _ in range(case["num_layers"])
        ]
        self.embedding = random.standard_normal((self.vocab, hidden))
        self.position = random.standard_normal((longest, hidden))
        # One row of each is multiplied with each weight once.
        self.multiplications = sum(w.size for layer in self.layers for w in layer) + self.embedding.size
        self.count = Count()

    def model(self, is_watched: bool = False) -> Any:
        """As the learner gets it: copies, so that nothing of it can be changed here."""

        def given(weights: Any) -> Any:
            return self.count.watch(weights.copy()) if is_watched else weights.copy()

        return subject.Model(
            given(self.embedding),
            self.position.copy(),
            tuple(subject.Layer(*map(given, layer)) for layer in self.layers),
            self.heads,
            self.kv_heads,
            self.size,
        )

    def cache(self, capacity: int) -> Any:
        return subject.KVCache(len(self.layers), self.kv_heads, self.size, capacity)

    def split(self, rows: Any, heads: int) -> Any:
        """[tokens, heads · head_dim] as [heads, tokens, head_dim]."""
        return np.stack([rows[:, h * self.size : (h + 1) * self.size] for h in range(heads)])

    def whole(self, tokens: Sequence[int]) -> tuple[Any, list[tuple[Any, Any]]]:
        """The logits of every token of a text, and the keys and values of every layer."""
        rows = np.array([self.embedding[token] + self.position[p] for p, token in enumerate(tokens)])
        kept = []
        for query, key, value, output in self.layers:
            keys, values = self.split(rows @ key, self.kv_heads), self.split(rows @ value, self.kv_heads)
            seen = attention_by_hand(self.split(rows @ query, self.heads), keys, values)
            rows = rows + np.concatenate(list(seen), axis=1) @ output
            kept.append((keys, values))
        return rows @ self.embedding.T, kept


class Text:
    """A sequence on its way through the learner's decoder, held against the whole computed anew."""

    def __init__(
        self, world: World, model: Any, tokens: Sequence[int], room: int, story: Story, name: str
    ) -> None:
        self.world, self.model, self.tokens, self.story, self.name = world, model, list(tokens), story, name
        self.logits, self.kept = world.whole(tokens)
        self.cache = world.cache(room)
        self.done, self.steps = 0, list[int]()

    def words(self, count: int, how: str) -> str:
        first = self.tokens[self.done : self.done + count][:9]
        return f"{self.name}: {how} {plural(count)} after {self.done}: {first}"

    def prefill(self, count: int, form: int = 0) -> None:
        given = given_as(form, self.tokens[self.done : self.done + count])
        was = list(given) if isinstance(given, list) else None
        self.story.step(self.words(count, "prefill"), empty=count == 0)
        answer = subject.prefill(self.model, self.cache, given)
        self.story.expect(was is None or given == was, "the list of the caller to be as it was", given)
        self.compare(answer, count)

    def decode(self) -> None:
        self.story.step(self.words(1, "decode"))
        answer = subject.decode_step(self.model, self.cache, self.tokens[self.done])
        fits = is_floats(answer, (self.world.vocab,))
        self.story.expect(fits, f"logits as an array of shape {(self.world.vocab,)}", in_words(answer))
        self.compare(answer[None], 1)

    def compare(self, answer: Any, count: int) -> None:
        """The logits of the new tokens, and what the cache holds now."""
        right = self.logits[self.done : self.done + count]
        self.story.expect(
            is_floats(answer, right.shape), f"logits as an array of shape {right.shape}", in_words(answer)
        )
        first, self.done = self.done, self.done + count
        self.steps.append(count)
        fits = near(answer, right)
        wrong = {first + i for i in np.flatnonzero(~fits)}
        lines = [row("logits of tokens", positions(self.done, self.steps, wrong))]
        self.story.see({"tokens": self.done}, lines)
        for i in np.flatnonzero(~fits):
            wanted, got = both(right[i], answer[i])
            what = f"logits {wanted} after token {first + i}, as when all is computed anew"
            self.story.expect(False, what, got)
        self.expect_cache()

    def expect_cache(self, when: str = "") -> None:
        got = self.cache.num_tokens
        self.story.expect(got == self.done, f"{counted(self.done, 'token')} in the cache{when}", got)
        for layer, pair in enumerate(self.kept):
            found = self.cache.read(layer)
            for what, answer, whole in zip(("keys", "values"), found, pair, strict=True):
                right = whole[:, : self.done]
                fits = is_floats(answer, right.shape)
                wanted, told = (
                    both(right, answer) if fits and right.size else (numbers(right), in_words(answer))
                )
                fits = fits and near(answer, right).all()
                self.story.expect(fits, f"{what} {wanted} in layer {layer} of the cache{when}", told)


def text_of(seed: int, count: int, vocab_size: int) -> list[int]:
    return [int(token) for token in np.random.default_rng(seed).integers(0, vocab_size, count)]


@judged(
    "P5",
    "Prefill gives each token's logits, and no later token changes them.",
    st.fixed_dictionaries(
        {
            "model": MODELS,
            "tokens": st.integers(1, 8),
            "changed": st.integers(0, 7),
            "form": st.integers(0, 3),
        }
    ),
    hints=(
        "What of token 2 depends on token 5? And what of token 5 on token 2?",
        "All rows go through a layer together; only `attend` mixes them, and there each sees what is before "
        "it. Is the position added? Is the old row added to what attention brings?",
        "For each layer: append keys and values, read all of them, `rows = rows + attended @ layer.output`, "
        "where attended has the heads of a token side by side. In the end `rows @ model.embedding.T`.",
    ),
    when={
        CRASH: "Tokens may come as an iterator, which has no length and can be walked only once: first of "
        "all, `given = list(tokens)`.",
    },
    examples=80,
    large=lambda dice: {
        "model": LARGE_MODEL | {"seed": dice.randrange(99)}, "tokens": 300, "changed": 270, "form": 3,
    },
)  # fmt: skip
def prefill_is_causal(case: Any, story: Story) -> None:
    count = case["tokens"]
    world = World(case["model"], count)
    tokens = text_of(case["model"]["seed"], count, world.vocab)
    first = Text(world, world.model(), tokens, count, story, "A")
    first.prefill(count, case["form"])
    place = case["changed"] % count
    other = [*tokens[:place], (tokens[place] + 1) % world.vocab, *tokens[place + 1 :]]
    second = Text(world, first.model, other, count, story, f"B, which is A with another token {place}")
    second.prefill(count, case["form"] + 1)
    story.step("A's cache, once more")
    first.expect_cache(" of A, after B")


def large_split(dice: Random) -> Any:
    """A prompt in chunks of 64, then token after token, beside another sequence."""
    steps = [[0, 64, 0], [1, 100, 2], [0, 64, 1], [0, 64, 3], [0, 64, 0]]
    steps += [[dice.randrange(2), 1, 4] for _ in range(60)]
    return {"model": LARGE_MODEL | {"seed": dice.randrange(99)}, "steps": steps, "room": 7}


STEPS = st.tuples(st.integers(0, 1), st.integers(0, 4), st.integers(0, 3)) | st.tuples(
    st.integers(0, 1), st.just(1), st.just(4)
)


@judged(
    "P6",
    "Any split of a text into chunks and decode steps gives what the whole text gives, computed anew.",
    st.fixed_dictionaries(
        {"model": MODELS, "steps": st.lists(STEPS, min_size=1, max_size=6), "room": st.integers(0, 3)}
    ),
    hints=(
        "The cache has 5 tokens, and 3 more come. What is the position of the first of them?",
        "Positions begin at `cache.num_tokens`, as it is before the first layer appends. A new token attends "
        "to what is in the cache and to the new ones up to itself.",
        "`start = cache.num_tokens` once, above the loop; `model.position[start:start + len(given)]`; "
        "`attend(queries, *cache.read(number))` after `cache.append(number, keys, values)`.",
    ),
    when={
        EMPTY: "To prefill no token is no error: logits of shape (0, vocab_size). But `np.array([])` has "
        "floats in it, which are no indices: `np.array(given, int)`.",
    },
    examples=100,
    large=large_split,
)
def any_split_agrees(case: Any, story: Story) -> None:
    lengths = [sum(count for which, count, _ in case["steps"] if which == number) for number in (0, 1)]
    world = World(case["model"], max(lengths) + case["room"])
    model = world.model()
    texts = []
    for number, length in enumerate(lengths):
        tokens = text_of(case["model"]["seed"] + number, length, world.vocab)
        if length:
            texts.append(Text(world, model, tokens, length + case["room"], story, "AB"[number]))
    both = {text.name: text for text in texts}
    for which, count, form in case["steps"]:
        text = both.get("AB"[which])
        if text is None:
            continue
        if form == 4:
            text.decode()
        else:
            text.prefill(count, form)


WRONG = (
    "one token too many",
    "a negative token",
    "a token that is not in the vocabulary",
    "too many, one by one",
)


@judged(
    "P7",
    "A step computes its new tokens alone; or it refuses them all, and changes nothing.",
    st.fixed_dictionaries(
        {
            "model": MODELS,
            "steps": st.lists(st.integers(1, 4), min_size=1, max_size=4),
            "room": st.integers(0, 2),
            "wrong": st.lists(st.sampled_from(WRONG), max_size=2),
        }
    ),
    hints=(
        "Of which tokens must a decode step know the row? And of which the keys and values?",
        "Only new tokens are multiplied with weights; of the old ones the cache knows all that is needed. "
        "Look at room and tokens before the first layer: what a layer has appended it cannot take back.",
        "`if cache.num_tokens + len(given) > cache.capacity: raise ValueError(…)` and `if any(not 0 <= token "
        "< len(model.embedding) for token in given): raise ValueError(…)`; rows of `given` alone.",
    ),
    when={
        ACCEPTED: "Nothing was raised. A negative token is an index from the end for numpy; a wrong one "
        "may be the last of many; and an iterator must be counted before it is used.",
        AFTER_REFUSAL: "`ValueError` came, but a layer had got its keys and values by then. Which check "
        "stands behind the first `append`?",
        CRASH: "Only `ValueError` is a refusal: for numpy, a token behind the vocabulary is an "
        "`IndexError`, and positions that run out are too short an array.",
    },
    examples=80,
    large=lambda dice: {
        "model": LARGE_MODEL | {"seed": dice.randrange(99)}, "steps": [200] + [1] * 60, "room": 0,
        "wrong": [WRONG[dice.randrange(4)]],
    },
)  # fmt: skip
def only_new_tokens(case: Any, story: Story) -> None:
    length = sum(case["steps"])
    world = World(case["model"], length + case["room"])
    model = world.model(is_watched=True)
    text = Text(
        world, model, text_of(case["model"]["seed"], length, world.vocab), length + case["room"], story, "A"
    )
    for count in case["steps"]:
        for wrong in case["wrong"]:
            refuse(text, wrong, length + case["room"] - text.done)
        before, first = world.count.total, text.done
        if count == 1:
            text.decode()
        else:
            text.prefill(count, count)
        rows = (world.count.total - before) / world.multiplications
        told = f"{count} of {text.done} tokens to be multiplied with the weights: {first} are in the cache"
        story.expect(rows <= count + 1e-9, told, f"{shortened(rows)} tokens")
    for wrong in case["wrong"]:
        refuse(text, wrong, case["room"])


def refuse(text: Text, wrong: str, room: int) -> None:
    """A step that must be refused, and what is in the cache afterwards."""
    world, story = text.world, text.story
    bad = {"a negative token": -1, "a token that is not in the vocabulary": world.vocab}
    tokens = [0] * (room + 1) if wrong not in bad else [*[0] * (room - 1), bad[wrong]] if room else []
    if not tokens:
        return
    story.step(f"prefill {wrong}: {tokens[:9]}, when {room} tokens are free")
    given = given_as(3 if wrong == "too many, one by one" else 0, tokens)
    refused(lambda: subject.prefill(text.model, text.cache, given), story, wrong)
    text.expect_cache(" after the refusal")
    if len(tokens) == 1:
        story.step(f"decode {wrong}: {tokens[0]}")
        refused(lambda: subject.decode_step(text.model, text.cache, tokens[0]), story, wrong)
        text.expect_cache(" after the refusal")
