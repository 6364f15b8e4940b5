"""What must always hold of the costs of a step, and of the roof above them.

Shapes are drawn at random, so that no two numbers of a model are equal by rule: heads times their size are
not the hidden size, weights and cache differ in bytes. All expected numbers are counted here.
"""

import math
from collections.abc import Sequence
from numbers import Real
from random import Random
from typing import Any

import subject
from hypothesis import strategies as st

from lessons.story import ACCEPTED, AFTER_REFUSAL, CRASH, EMPTY, Story, cell, given_as, judged, row

# ── cases ─────────────────────────────────────────────────────────────────────────────────────────────

small, width = st.integers(1, 4), st.sampled_from((1, 2, 4))
MODELS = st.fixed_dictionaries(
    {
        "num_layers": small,
        "hidden_size": st.integers(1, 9),
        "intermediate_size": st.integers(1, 9),
        "num_heads": small,
        "num_kv_heads": small,
        "head_dim": small,
        "vocab_size": st.integers(1, 20),
        "bytes_per_weight": width,
        "bytes_per_kv": width,
    }
)
LLAMA_70B = {
    "num_layers": 80,
    "hidden_size": 8192,
    "intermediate_size": 28_672,
    "num_heads": 64,
    "num_kv_heads": 8,
    "head_dim": 128,
    "vocab_size": 128_256,
    "bytes_per_weight": 2,
    "bytes_per_kv": 1,
}
SEQUENCES = st.tuples(st.integers(0, 12), st.integers(1, 6))
BATCHES = st.lists(SEQUENCES, max_size=5)
DEVICES = st.tuples(st.integers(1, 400), st.integers(1, 40)) | st.tuples(
    st.integers(10**11, 10**15), st.integers(10**9, 10**13)
)


FORMS = ("a list", "a tuple", "an iterator", "a generator")


def model_of(shape: dict[str, int], story: Story) -> Any:
    """The learner's model of a drawn shape; of several query heads each group shares a KV head."""
    fields = shape | {"num_heads": num_heads(shape)}
    story.step("a model")
    story.see(fields)
    return subject.Model(**fields)


def num_heads(shape: dict[str, int]) -> int:
    """A multiple of the KV heads."""
    heads, kv_heads = shape["num_heads"], shape["num_kv_heads"]
    return heads if heads % kv_heads == 0 else heads * kv_heads


def matrices(shape: dict[str, int]) -> list[tuple[str, int, int]]:
    """The matrices of one layer: name, inputs, outputs."""
    hidden, inner, size = shape["hidden_size"], shape["intermediate_size"], shape["head_dim"]
    heads, kv_heads = num_heads(shape) * size, shape["num_kv_heads"] * size
    return [
        ("query", hidden, heads),
        ("key", hidden, kv_heads),
        ("value", hidden, kv_heads),
        ("output", heads, hidden),
        ("gate", hidden, inner),
        ("up", hidden, inner),
        ("down", inner, hidden),
    ]


def linear(shape: dict[str, int], num_tokens: int, num_rows: int) -> tuple[int, int]:
    """FLOP and bytes of all matrix products of a step."""
    in_layers = shape["num_layers"] * sum(inputs * outputs for _, inputs, outputs in matrices(shape))
    in_logits = shape["hidden_size"] * shape["vocab_size"]
    read = (in_layers if num_tokens else 0) + (in_logits if num_rows else 0)
    return 2 * (in_layers * num_tokens + in_logits * num_rows), read * shape["bytes_per_weight"]


def attention(shape: dict[str, int], computed: int, new: int) -> tuple[int, int]:
    """FLOP and bytes of attention, pair by pair of a token and one that it looks at."""
    pairs = sum(computed + number for number in range(1, new + 1))
    flops_of_a_pair = 2 * shape["head_dim"] + 2 * shape["head_dim"]  # its score, and its weighted value
    per_token = 2 * shape["num_kv_heads"] * shape["head_dim"] * shape["bytes_per_kv"] * shape["num_layers"]
    moved = new + (computed + new)
    return pairs * flops_of_a_pair * num_heads(shape) * shape["num_layers"], per_token * moved


def attention_of_all(shape: dict[str, int], batch: Sequence[Sequence[int]]) -> tuple[int, int]:
    costs = [attention(shape, computed, new) for computed, new in batch]
    return sum(flops for flops, _ in costs), sum(num_bytes for _, num_bytes in costs)


# ── what is looked at ─────────────────────────────────────────────────────────────────────────────────


def numbers_of(story: Story, what: str, got: Any) -> tuple[Any, Any]:
    """FLOP and bytes of a `Cost`."""
    is_cost = hasattr(got, "flops") and hasattr(got, "num_bytes")
    story.expect(is_cost, f"a Cost for {what}", got)
    return got.flops, got.num_bytes


def compare(story: Story, what: str, got: Any, right: tuple[int, int], board: Any = ()) -> None:
    """One `Cost` beside the right one."""
    flops, num_bytes = numbers_of(story, what, got)
    story.see({"FLOP": flops, "bytes": num_bytes}, board)
    story.expect(flops == right[0], f"{right[0]:,} FLOP for {what}", flops)
    story.expect(num_bytes == right[1], f"{right[1]:,} bytes for {what}", num_bytes)


def in_words(batch: Sequence[Sequence[int]]) -> str:
    if len(batch) > 8:
        return f"{len(batch)} sequences, the first of them {in_words(batch[:3])}"
    return ", ".join(f"{new} after {computed}" for computed, new in batch) or "nothing"


def close(got: Any, right: float) -> bool:
    return isinstance(got, Real) and math.isclose(got, right, rel_tol=1e-9)


def large_matrix(dice: Random) -> Any:
    """A prompt of some thousand tokens through the largest matrix of a large model."""
    return [dice.randrange(70_000, 130_000), 16_384, 53_248, 2]


def large_tokens(dice: Random) -> Any:
    return {"model": LLAMA_70B, "tokens": dice.randrange(70_000, 200_000), "rows": dice.randrange(256, 400)}


def large_sequence(dice: Random) -> Any:
    """A long prompt, and the answer after a context that no 16 bits count."""
    chunks = [[0, dice.randrange(4000, 9000)], [dice.randrange(70_000, 130_000), 1], [65_535, 2048]]
    return {"model": LLAMA_70B, "sequences": chunks}


def large_batch(dice: Random) -> Any:
    """Three hundred sequences: chunks of prompts beside answers."""
    batch = [[dice.randrange(130_000), dice.choice((1, 1, 1, 512))] for _ in range(300)]
    return {"model": LLAMA_70B, "batch": batch}


# ── the properties ────────────────────────────────────────────────────────────────────────────────────


@judged(
    "P1",
    "A product takes 2 FLOP for each weight and token, and reads each weight once.",
    st.tuples(st.integers(0, 6), st.integers(1, 7), st.integers(1, 7), width),
    hints=(
        "Write down the product of two rows with a matrix of 3 × 2. How many multiplications, and additions?",
        "Every weight is multiplied and added once for each token: 2 FLOP. But how often is it read?",
        "`weights = num_inputs * num_outputs`; `2 * num_tokens * weights` FLOP, and `weights * "
        "bytes_per_weight` bytes, or 0 without a token. Intensity: FLOP / bytes; 0.0 if those are 0.",
    ),
    when={
        EMPTY: "Without a token nothing is multiplied, and no weight is read: 0 FLOP, and 0 bytes.",
        CRASH: "Work that moves no byte has an intensity, too. Which number does your code divide by then?",
    },
    large=large_matrix,
)
def products(case: Any, story: Story) -> None:
    num_tokens, num_inputs, num_outputs, num_bytes = case
    what = f"{num_tokens} tokens times {num_inputs} × {num_outputs} weights of {num_bytes} bytes"
    story.step(what, empty=num_tokens == 0)
    got = subject.matrix_cost(num_tokens, num_inputs, num_outputs, num_bytes)
    weights = num_inputs * num_outputs
    right = 2 * num_tokens * weights, weights * num_bytes if num_tokens else 0
    compare(story, what, got, right)
    story.step("its intensity")
    intensity = got.intensity
    story.see({"FLOP for each byte": intensity})
    expected = 2 * num_tokens / num_bytes
    story.expect(close(intensity, expected), f"{expected:.4g} FLOP for each byte", intensity)
    story.step("the intensity of 7 FLOP that move no byte")
    intensity = subject.Cost(7, 0).intensity
    story.see({"FLOP for each byte": intensity})
    story.expect(intensity == 0, "0.0", intensity)


@judged(
    "P2",
    "The products of a step are those of its layers, added up, and the logits of the rows that want some.",
    st.fixed_dictionaries({"model": MODELS, "tokens": st.integers(0, 6), "rows": st.integers(0, 6)}),
    hints=(
        "The docstring of Model lists eight matrices. Which of them is there once a layer, and which once?",
        "Keys and values have fewer heads than queries; the hidden size need not be heads · head_dim. Only "
        "`num_logit_rows` tokens go through the last matrix.",
        "One layer has `hidden * (2 * heads + 2 * kv_heads + 3 * inner)` weights; add the cost of "
        "`hidden × vocab_size` for `num_logit_rows`.",
    ),
    when={
        EMPTY: "Without a token no layer is read, and without a row of logits the last matrix is not.",
    },
    large=large_tokens,
)
def layers_and_logits(case: Any, story: Story) -> None:
    shape, num_tokens, num_rows = case["model"], case["tokens"], min(case["rows"], case["tokens"])
    model = model_of(shape, story)
    board = [row(name, [f"{inputs} × {outputs}"]) for name, inputs, outputs in matrices(shape)]
    board.append(row("logits", [f"{shape['hidden_size']} × {shape['vocab_size']}"]))
    words = f"{num_tokens} tokens in {shape['num_layers']} layers, logits for {num_rows}"
    story.step(words, empty=num_tokens == 0)
    got = subject.linear_cost(model, num_tokens, num_rows)
    compare(story, "all matrix products", got, linear(shape, num_tokens, num_rows), board)


@judged(
    "P3",
    "Attention costs by pairs of a token and one that it looks at; each key and value is read once.",
    st.fixed_dictionaries({"model": MODELS, "sequences": st.lists(SEQUENCES, min_size=1, max_size=2)}),
    hints=(
        "Three tokens are computed, two new ones come. At how many tokens does the first of them look?",
        "Count the pairs: computed + 1, computed + 2, … Scores and values each take head_dim MACs a pair and "
        "*query* head. Bytes: *KV* heads; the context is read once, new tokens are written besides.",
        "`pairs = num_new_tokens * (num_computed_tokens + 1 + context) // 2`; `context` is the sum of both; "
        "`4 * head_dim * num_heads * num_layers * pairs` FLOP; a token has "
        "`2 * num_layers * num_kv_heads * head_dim * bytes_per_kv` bytes, times `num_new_tokens + context`.",
    ),
    large=large_sequence,
)
def attention_by_pairs(case: Any, story: Story) -> None:
    shape = case["model"]
    model = model_of(shape, story)
    for computed, new in case["sequences"]:
        what = f"{new} new tokens after {computed} computed ones"
        story.step(what)
        board = [
            row(f"token {computed + number} looks at", looks_at(computed + number + 1, computed))
            for number in range(new)
            if computed + new < 20
        ]
        got = subject.attention_cost(model, computed, new)
        compare(story, what, got, attention(shape, computed, new), board)


def looks_at(count: int, computed: int) -> list[Any]:
    return [cell(token, 0 if token < computed else 1) for token in range(count)]


@judged(
    "P4",
    "A step is all its tokens through the weights, and each sequence's attention; no other step is planned.",
    st.fixed_dictionaries({"model": MODELS, "batch": BATCHES}),
    hints=(
        "What do the sequences of a batch share, and what does each have of its own?",
        "Add up the tokens of all sequences for one `linear_cost`, with a row of logits for each of them; "
        "attention comes from each. An iterator can be walked only once; an impossible pair is refused.",
        "In one loop: raise ValueError if `num_computed_tokens < 0 or num_new_tokens < 1`, count tokens and "
        "sequences, and add `attention_cost(...)`. After it: `StepCost(linear_cost(...), attention)`.",
    ),
    when={
        EMPTY: "A step with an empty batch costs nothing: no token goes through the weights, so no weight "
        "is read.",
        ACCEPTED: "That is no step, and nothing was raised. Is each pair looked at, wherever it stands in "
        "the batch: are there fewer computed tokens than none, is there at least one new one?",
        AFTER_REFUSAL: "The same batch cost something else before it was refused something. What does "
        "your code add up outside of the call: in the model, in a default argument, in a global name?",
        CRASH: "The batch may come as an iterator, which has no length and can be walked only once: count "
        "and add up in one loop. And it may be empty.",
    },
    large=large_batch,
)
def steps(case: Any, story: Story) -> None:
    shape, batch = case["model"], [tuple(pair) for pair in case["batch"]]
    model = model_of(shape, story)
    for number in range(4):
        story.step(f"a step computes {in_words(batch)}, given as {FORMS[number]}", empty=not batch)
        given = given_as(number, batch)
        story_of_step(story, shape, subject.cost(model, given), batch)
        if isinstance(given, list):
            story.expect(given == batch, "the list of the caller to be as it was", given)
    for wrong in ((0, 0), (3, 0), (-1, 1), (2, -1)):
        where = len(batch) // 2
        attempt = [*batch[:where], wrong, *batch[where:]]
        story.step(f"a step computes {in_words([wrong])}" + (", beside the others" if batch else ""))
        got: Any = None
        with story.allowing(ValueError) as answer:
            got = subject.cost(model, given_as(where, attempt))
        story.see({"answer": "refused" if answer.is_refused else "accepted"})
        words = f"ValueError: {wrong[1]} new tokens after {wrong[0]} are no step"
        story.expect(answer.is_refused, words, got, ACCEPTED)
    story.step(f"a step computes {in_words(batch)}, after the refusals")
    story_of_step(story, shape, subject.cost(model, batch), batch)


def story_of_step(story: Story, shape: Any, got: Any, batch: Sequence[Sequence[int]]) -> None:
    story.expect(hasattr(got, "linear") and hasattr(got, "attention"), "a StepCost", got)
    num_tokens = sum(new for _, new in batch)
    compare(story, "the linear part", got.linear, linear(shape, num_tokens, len(batch)))
    story.step("its attention")
    compare(story, "the attention part", got.attention, attention_of_all(shape, batch))


@judged(
    "P5",
    "The intensity of the weights grows with the batch, that of attention does not.",
    st.tuples(MODELS, st.integers(0, 12), st.lists(st.integers(1, 9), min_size=1, max_size=4)),
    hints=(
        "Sixteen sequences decode together. How often is a weight read? And a key of one of them?",
        "Weights are read once for all: n tokens make n times the FLOP of the same bytes. Keys and values "
        "belong to one sequence: n sequences make n times the FLOP, and n times the bytes.",
        "One `linear_cost` for all tokens of the batch, and not one for each sequence; `attention_cost` for "
        "each sequence.",
    ),
)
def batches(case: Any, story: Story) -> None:
    shape, computed, sizes = case
    weights_alone = 2 / shape["bytes_per_weight"]
    flops, num_bytes = attention(shape, computed, 1)
    model = model_of(shape, story)
    for size in sizes:
        story.step(f"{size} sequences decode, each after {computed} tokens")
        got = subject.cost(model, [(computed, 1)] * size)
        of_weights, of_attention = got.linear.intensity, got.attention.intensity
        story.see({"weights, FLOP for each byte": of_weights, "attention": of_attention})
        right = size * weights_alone
        words = f"{right:.4g} FLOP for each byte of the weights, {size} times that of one sequence"
        story.expect(close(of_weights, right), words, of_weights)
        right = flops / num_bytes
        words = f"{right:.4g} FLOP for each byte of keys and values, as for one sequence"
        story.expect(close(of_attention, right), words, of_attention)


@judged(
    "P6",
    "The roof is the lower of two lines, bandwidth · intensity and the peak; they meet at the ridge.",
    st.tuples(DEVICES, st.lists(st.integers(0, 60), max_size=4)),
    hints=(
        "A device reads 10 bytes a second and does 3 FLOP for each. How many FLOP a second? Always?",
        "`intensity * memory_bandwidth` is what memory allows, `peak_flops` what arithmetic allows. Both "
        "hold. Where are they equal?",
        "`return min(device.peak_flops, intensity * device.memory_bandwidth)`; the ridge is "
        "`device.peak_flops / device.memory_bandwidth`.",
    ),
)
def roof(case: Any, story: Story) -> None:
    (peak, bandwidth), shares = case
    device = subject.Device(peak, bandwidth)
    story.step(f"the ridge point of a device with {peak:,} FLOP/s and {bandwidth:,} bytes/s")
    ridge = subject.ridge_point(device)
    story.see({"FLOP for each byte": ridge})
    story.expect(close(ridge, peak / bandwidth), f"{peak / bandwidth:.6g} FLOP for each byte", ridge)
    for share in (*shares, 20):
        intensity = share / 20 * peak / bandwidth  # 20: at the ridge
        story.step(f"at most, at {intensity:.4g} FLOP for each byte")
        flops = subject.attainable(intensity, device)
        story.see({"FLOP/s": flops})
        right = peak if share >= 20 else intensity * bandwidth
        limit = "the peak" if share >= 20 else "what memory allows"
        story.expect(close(flops, right), f"{right:.6g} FLOP/s, {limit}", flops)


@judged(
    "P7",
    "Each part of a step waits for the slower of computing and reading: from tokens_at_ridge on, computing.",
    st.tuples(DEVICES, st.lists(st.integers(0, 400), min_size=4, max_size=4), width),
    examples=300,
    hints=(
        "10 FLOP at 5 FLOP/s, beside 12 bytes at 2 bytes/s, both at once: when is it done?",
        "The longer of the two counts, for each part by itself: attention begins when the products are done. "
        "For tokens_at_ridge: n tokens take 2 n FLOP for each weight. When is that as long as reading it?",
        "`sum(max(part.flops / peak, part.num_bytes / bandwidth) for part in step)`; and "
        "`math.ceil(ridge_point(device) * bytes_per_weight / 2)`.",
    ),
)
def times(case: Any, story: Story) -> None:
    (peak, bandwidth), numbers, num_bytes = case
    device = subject.Device(peak, bandwidth)
    # Of a size with the device, so that each of the two may be the slower.
    unit = [max(1, peak // 100), max(1, bandwidth // 100)] * 2
    flops, read, more_flops, more_read = (a * b for a, b in zip(numbers, unit, strict=True))
    story.step(
        f"a device with {peak:,} FLOP/s and {bandwidth:,} bytes/s: {flops:,} FLOP and {read:,} bytes in the "
        f"products, {more_flops:,} FLOP and {more_read:,} bytes in attention"
    )
    got = subject.seconds(
        subject.StepCost(subject.Cost(flops, read), subject.Cost(more_flops, more_read)), device
    )
    story.see({"seconds": got})
    right = max(flops / peak, read / bandwidth) + max(more_flops / peak, more_read / bandwidth)
    story.expect(close(got, right), f"{right:.6g} seconds", got)
    story.step(f"the fewest tokens that are worth reading weights of {num_bytes} bytes")
    tokens = subject.tokens_at_ridge(device, num_bytes)
    story.see({"tokens": tokens})
    is_whole = isinstance(tokens, Real) and math.isfinite(tokens) and tokens == int(tokens)
    story.expect(is_whole, "a whole number of tokens", tokens)
    computing, reading = 2 * tokens / peak, num_bytes / bandwidth
    words = f"with {tokens} tokens, computing to take {reading:.6g} seconds a weight, as long as reading it"
    story.expect(computing >= reading * (1 - 1e-9), words, f"{computing:.6g}")
    computing = 2 * (tokens - 1) / peak
    words = f"with {tokens - 1} tokens, computing to take less than the {reading:.6g} seconds of reading"
    story.expect(computing < reading * (1 + 1e-9), words, f"{computing:.6g}: so fewer are enough")
