"""Wrong solutions of lesson 01, and right ones written otherwise."""

from typing import Any

from lessons.mutant import Mutant

COST = """@dataclass(frozen=True)
class Cost:
    \"\"\"What some work takes: whole numbers, exact, however large.\"\"\"

    flops: int
    num_bytes: int
    \"\"\"Moved between memory and processor, reads and writes.\"\"\"

    @property
    def intensity(self) -> float:
        \"\"\"FLOP for each byte; 0.0 if no byte is moved.\"\"\"
        return self.flops / self.num_bytes if self.num_bytes else 0.0
"""
LOOP = """    num_tokens = num_sequences = 0
    attention = Cost(0, 0)
    for num_computed_tokens, num_new_tokens in batch:
        if num_computed_tokens < 0 or num_new_tokens < 1:
            raise ValueError(f"{num_new_tokens} new tokens after {num_computed_tokens} are no step")
        num_tokens += num_new_tokens
        num_sequences += 1
        attention += attention_cost(model, num_computed_tokens, num_new_tokens)
    return StepCost(linear_cost(model, num_tokens, num_sequences), attention)
"""
PAIRS = "pairs = num_new_tokens * (num_computed_tokens + 1 + context) // 2"
MOVED = "bytes_per_token * (num_new_tokens + context)"
SECONDS = (
    "    return sum(max(part.flops / device.peak_flops, part.num_bytes / device.memory_bandwidth) "
    "for part in step)\n"
)

MUTANTS = (
    Mutant(
        "one_flop_for_a_mac",
        "Cost(2 * num_tokens * weights,",
        "Cost(num_tokens * weights,",
        caught_by="P1",
        tells="it counts a multiplication with the addition that follows it as one.",
    ),
    Mutant(
        "reads_weights_without_tokens",
        "weights * bytes_per_weight if num_tokens else 0)",
        "weights * bytes_per_weight)",
        caught_by="P1",
        tells="a matrix is read although no token is multiplied with it.",
        sly=True,
    ),
    Mutant(
        "whole_intensities",
        "return self.flops / self.num_bytes if",
        "return float(self.flops // self.num_bytes) if",
        caught_by="P1",
        tells="every intensity is a whole number.",
        sly=True,
    ),
    Mutant(
        "counts_tokens_in_16_bits",
        "    weights = num_inputs * num_outputs\n",
        "    weights = num_inputs * num_outputs\n    num_tokens = num_tokens % 2**16\n",
        caught_by="P1",
        tells="its counter of tokens is large enough for every prompt that one would try.",
        sly=True,
    ),
    Mutant(
        "logits_for_every_token",
        "matrix_cost(num_logit_rows, hidden,",
        "matrix_cost(num_tokens, hidden,",
        caught_by="P2",
        tells="it makes logits of tokens after which nothing is said.",
        sly=True,
    ),
    Mutant(
        "as_many_kv_heads_as_heads",
        "hidden * (2 * heads + 2 * kv_heads + 3 * inner)",
        "hidden * (4 * heads + 3 * inner)",
        caught_by="P2",
        tells="it is right for models without grouped heads.",
        sly=True,
    ),
    Mutant(
        "square_matrices",
        "hidden * (2 * heads + 2 * kv_heads",
        "hidden * (2 * hidden + 2 * kv_heads",
        caught_by="P2",
        tells="it takes for granted that heads times their size are the hidden size.",
        sly=True,
    ),
    Mutant(
        "two_matrices_in_the_mlp",
        "+ 3 * inner)",
        "+ 2 * inner)",
        caught_by="P2",
        tells="a matrix of every layer is forgotten.",
    ),
    Mutant(
        "looks_ahead",
        PAIRS,
        "pairs = num_new_tokens * context",
        caught_by="P3",
        tells="tokens of a prompt look at tokens that come after them.",
        sly=True,
    ),
    Mutant(
        "reads_the_cache_for_each_new_token",
        MOVED,
        "bytes_per_token * (num_new_tokens + num_new_tokens * context)",
        caught_by="P3",
        tells="tokens of one chunk do not share what they read from the cache.",
        sly=True,
    ),
    Mutant(
        "keys_of_every_query_head",
        "2 * model.num_layers * model.num_kv_heads * model.head_dim * model.bytes_per_kv",
        "2 * model.num_layers * model.num_heads * model.head_dim * model.bytes_per_kv",
        caught_by="P3",
        tells="it caches more heads than there are.",
        sly=True,
    ),
    Mutant(
        "does_not_write",
        MOVED,
        "bytes_per_token * context",
        caught_by="P3",
        tells="keys and values come into the cache without being written.",
    ),
    Mutant(
        "walks_twice",
        "    num_tokens = num_sequences = 0\n    attention = Cost(0, 0)\n",
        "    num_tokens = num_sequences = 0\n    attention = Cost(0, 0)\n"
        "    if not all(len(pair) == 2 for pair in batch):\n        raise ValueError('pairs, please')\n",
        caught_by="P4",
        tells="it looks at the batch before it counts, and some batches can be looked at only once.",
        sly=True,
    ),
    Mutant(
        "accepts_sequences_without_tokens",
        "or num_new_tokens < 1:",
        "or num_new_tokens < 0:",
        caught_by="P4",
        tells="a sequence that computes nothing gets logits.",
        sly=True,
    ),
    Mutant(
        "remembers_what_it_refused",
        LOOP,
        """    rows = cost.__dict__.setdefault("rows", [])
    for computed, new in batch:
        if computed < 0 or new < 1:
            raise ValueError("no step")
        rows.append((computed, new))
    attention = Cost(0, 0)
    for computed, new in rows:
        attention += attention_cost(model, computed, new)
    step = StepCost(linear_cost(model, sum(new for _, new in rows), len(rows)), attention)
    rows.clear()
    return step
""",
        caught_by="P4",
        tells="after a refusal, the next answer is too large.",
        sly=True,
    ),
    Mutant(
        "reads_the_weights_for_each_sequence",
        "    return StepCost(linear_cost(model, num_tokens, num_sequences), attention)",
        "    linear = linear_cost(model, num_tokens, num_sequences)\n"
        "    return StepCost(Cost(linear.flops, linear.num_bytes * num_sequences), attention)",
        caught_by="P5",
        tells="a batch is computed as if its sequences came one after the other.",
        sly=True,
    ),
    Mutant(
        "the_higher_line",
        "return min(device.peak_flops,",
        "return max(device.peak_flops,",
        caught_by="P6",
        tells="its roof is open at the top.",
    ),
    Mutant(
        "the_ridge_in_whole_numbers",
        "    return min(device.peak_flops, intensity * device.memory_bandwidth)",
        "    if intensity >= device.peak_flops // device.memory_bandwidth:\n"
        "        return device.peak_flops\n"
        "    return intensity * device.memory_bandwidth",
        caught_by="P6",
        tells="just left of the ridge, it promises more than memory can give.",
        sly=True,
    ),
    Mutant(
        "parts_overlap",
        SECONDS,
        "    total = step.total\n"
        "    return max(total.flops / device.peak_flops, total.num_bytes / device.memory_bandwidth)\n",
        caught_by="P7",
        tells="it lets attention read while the products are still computed.",
        sly=True,
    ),
    Mutant(
        "computes_after_reading",
        "max(part.flops / device.peak_flops, part.num_bytes / device.memory_bandwidth)",
        "part.flops / device.peak_flops + part.num_bytes / device.memory_bandwidth",
        caught_by="P7",
        tells="it reads first, and computes only then.",
    ),
    Mutant(
        "rounds_up_by_nine_tenths",
        "math.ceil(ridge_point(device) * bytes_per_weight / 2)",
        "int(ridge_point(device) * bytes_per_weight / 2 + 0.9)",
        caught_by="P7",
        tells="it rounds up by adding 0.9.",
        sly=True,
    ),
)

VARIANTS = (
    Mutant(
        "a_class_with_an_attribute",
        COST,
        """class Cost:
    def __init__(self, flops, num_bytes):
        self.flops, self.num_bytes = flops, num_bytes
        self.intensity = flops / num_bytes if num_bytes > 0 else 0
""",
    ),
    Mutant("pairs_one_by_one", PAIRS, "pairs = sum(range(num_computed_tokens + 1, context + 1))"),
    Mutant(
        "list_first",
        LOOP,
        """    pairs = list(batch)
    if any(computed < 0 or new <= 0 for computed, new in pairs):
        raise ValueError("no step")
    parts = [attention_cost(model, *pair) for pair in pairs]
    return StepCost(
        linear_cost(model, sum(new for _, new in pairs), len(pairs)),
        Cost(sum(part.flops for part in parts), sum(part.num_bytes for part in parts)),
    )
""",
    ),
    Mutant(
        "matrix_by_matrix",
        "    layers = matrix_cost(num_tokens, 1, weights, model.bytes_per_weight)\n",
        """    layers = Cost(0, 0)
    for _ in range(model.num_layers):
        for inputs, outputs in [(hidden, heads), (heads, hidden)] + [(hidden, kv_heads), (hidden, inner)] * 2:
            layers = layers + matrix_cost(num_tokens, inputs, outputs, model.bytes_per_weight)
        layers += matrix_cost(num_tokens, inner, hidden, model.bytes_per_weight)
""",
    ),
    Mutant(
        "seconds_by_the_roof",
        SECONDS,
        """    whole = 0
    for part in step:
        if part.num_bytes == 0:
            whole += part.flops / device.peak_flops
        elif part.flops == 0:
            whole += part.num_bytes / device.memory_bandwidth
        else:
            whole += part.flops / attainable(part.intensity, device)
    return whole
""",
    ),
    Mutant(
        "numpy_numbers",
        "math.ceil(ridge_point(device) * bytes_per_weight / 2)",
        "__import__('numpy').int64(math.ceil(ridge_point(device) * bytes_per_weight / 2))",
    ),
    Mutant(
        "exact_ceiling",
        "math.ceil(ridge_point(device) * bytes_per_weight / 2)",
        "-int(-device.peak_flops * bytes_per_weight // (2 * device.memory_bandwidth))",
    ),
)

TO_CATCH = "reads_the_weights_for_each_sequence"

EQUIVALENT: dict[str, str] = {}


def examples(subject: Any) -> None:
    """The tests that one would write first."""
    product = subject.matrix_cost(3, 4, 5, 2)
    assert (product.flops, product.num_bytes) == (120, 40)
    assert product.intensity == 3
    model = subject.Model(
        num_layers=2,
        hidden_size=8,
        intermediate_size=16,
        num_heads=2,
        num_kv_heads=2,
        head_dim=4,
        vocab_size=100,
        bytes_per_weight=2,
        bytes_per_kv=2,
    )
    weights = 2 * (4 * 8 * 8 + 3 * 8 * 16) + 8 * 100
    step = subject.cost(model, [(9, 1)])
    assert (step.linear.flops, step.linear.num_bytes) == (2 * weights, 2 * weights)
    assert (step.attention.flops, step.attention.num_bytes) == (4 * 2 * 2 * 4 * 10, 2 * 2 * 2 * 4 * 2 * 11)
    try:
        subject.cost(model, [(-1, 1)])
        raise AssertionError("no error")
    except ValueError:
        pass
    device = subject.Device(100.0, 20.0)
    assert subject.ridge_point(device) == 5
    assert [subject.attainable(x, device) for x in (1, 5, 500)] == [20, 100, 100]
    one, none = subject.Cost(1000, 100), subject.Cost(0, 0)
    assert subject.seconds(subject.StepCost(one, none), device) == 10
    assert subject.tokens_at_ridge(device, 2) == 5
