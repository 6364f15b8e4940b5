"""Wrong solutions of lesson 11, and right ones written otherwise."""

from typing import Any

import numpy as np

from lessons.mutant import Mutant

MERGE = """    maximum = np.maximum(a.maximum, b.maximum)
    share_a = a.total * np.exp(a.maximum - _shift(maximum)[:, 0])
    share_b = b.total * np.exp(b.maximum - _shift(maximum)[:, 0])
    total = share_a + share_b
    return State(maximum, total, _divided(share_a[:, None] * a.out + share_b[:, None] * b.out, total))
"""
LOOPS = """    for first_key in range(0, num_keys, tile_k):
        end_key = min(first_key + tile_k, num_keys)
        keys = memory.load("key", first_key, end_key)
        values = memory.load("value", first_key, end_key)
        for first in range(0, num_queries, tile_q):
            end = min(first + tile_q, num_queries)
            if causal and first_key > end - 1 + earlier:
                continue
"""
VISIT = """            scores = memory.load("query", first, end) @ keys.T / np.sqrt(head_dim)
            if causal:
                positions = np.arange(first, end)[:, None] + earlier
                scores = np.where(np.arange(first_key, end_key) <= positions, scores, -np.inf)
            old = State(*(memory.load(name, first, end) for name in State._fields))
            new = merge(old, state_of(scores, values))
            for name, tile in zip(State._fields, new, strict=True):
                memory.store(name, first, tile)
"""

MUTANTS = (
    Mutant(
        "starts_from_zero",
        "maximum = scores.max(axis=1)",
        "maximum = scores.max(axis=1, initial=0.0)",
        caught_by="P1",
        tells="its running maximum is never negative.",
        sly=True,
    ),
    Mutant(
        "subtracts_too_late",
        "weights = np.exp(scores - _shift(maximum))",
        "weights = np.exp(scores) / np.exp(_shift(maximum))",
        caught_by="P1",
        tells="for scores of ordinary size its answers are right.",
        sly=True,
    ),
    Mutant(
        "forgets_the_old_output",
        "_divided(share_a[:, None] * a.out + share_b[:, None] * b.out, total)",
        "_divided(a.total[:, None] * a.out + share_b[:, None] * b.out, total)",
        caught_by="P2",
        tells="it is right as long as no later tile has a larger score.",
    ),
    Mutant(
        "right_the_first_time",
        MERGE,
        """    maximum = np.maximum(a.maximum, b.maximum)
    share_a, share_b = a.total, b.total * np.exp(b.maximum - _shift(maximum)[:, 0])
    share_a *= np.exp(a.maximum - _shift(maximum)[:, 0])
    total = share_a + share_b
    return State(maximum, total, _divided(share_a[:, None] * a.out + share_b[:, None] * b.out, total))
""",
        caught_by="P3",
        tells="what `merge` returns is right, the first time.",
        sly=True,
    ),
    Mutant(
        "leaves_the_last_tile_out",
        "for first_key in range(0, num_keys, tile_k):",
        "for first_key in range(0, num_keys - num_keys % tile_k or num_keys, tile_k):",
        caught_by="P4",
        tells="some keys are never looked at, if the tiles are of an awkward size.",
        sly=True,
    ),
    Mutant(
        "counts_queries_from_the_first_key",
        "    earlier = num_keys - num_queries\n",
        "    earlier = 0\n",
        caught_by="P5",
        tells="with as many queries as keys its mask is right.",
        sly=True,
    ),
    Mutant(
        "masks_after_the_maximum",
        "            new = merge(old, state_of(scores, values))\n",
        """            visible = scores > -np.inf
            scores = memory.load("query", first, end) @ keys.T / np.sqrt(head_dim)
            maximum = scores.max(axis=1)
            weights = np.exp(scores - maximum[:, None]) * visible
            total = weights.sum(axis=1)
            fresh = State(np.where(total > 0, maximum, -np.inf), total, _divided(weights @ values, total))
            new = merge(old, fresh)
""",
        caught_by="P5",
        tells="a key that a query may not see weighs nothing, and yet it can do harm.",
        sly=True,
    ),
    Mutant(
        "turns_the_loops_around",
        LOOPS,
        """    for first, first_key in np.ndindex(-(-num_queries // tile_q), -(-num_keys // tile_k)):
        for first in [first * tile_q]:
            first_key *= tile_k
            end_key, end = min(first_key + tile_k, num_keys), min(first + tile_q, num_queries)
            if causal and first_key > end - 1 + earlier:
                continue
            keys = memory.load("key", first_key, end_key)
            values = memory.load("value", first_key, end_key)
""",
        caught_by="P6",
        tells="the output is right, and so is its use of shared memory.",
        sly=True,
    ),
    Mutant(
        "divides_in_the_end",
        """            for name, tile in zip(State._fields, new, strict=True):
                memory.store(name, first, tile)
""",
        """            last_key = end - 1 + earlier if causal else num_keys - 1
            if first_key > 0:
                sums = old.out * np.exp(old.maximum - _shift(new.maximum)[:, 0])[:, None]
                weights = np.exp(scores - _shift(new.maximum))
                new = new._replace(out=sums + weights @ values)
            else:
                new = new._replace(out=new.out * new.total[:, None])
            if first_key + tile_k > min(last_key, num_keys - 1):
                new = new._replace(out=_divided(new.out, new.total))
            for name, tile in zip(State._fields, new, strict=True):
                memory.store(name, first, tile)
""",
        caught_by="P7",
        tells="in the end all is right, but if you stopped it half way, it would not be.",
        sly=True,
    ),
)

VARIANTS = (
    Mutant(
        "algorithm_1_line_by_line",
        VISIT,
        """            old_m, old_l = (memory.load(name, first, end) for name in ("maximum", "total"))
            old_o = memory.load("out", first, end)
            scores = head_dim**-0.5 * memory.load("query", first, end) @ keys.T
            hidden = np.zeros(scores.shape, bool)
            if causal:
                hidden = np.subtract.outer(np.arange(first, end) + earlier, np.arange(first_key, end_key)) < 0
            scores[hidden] = -np.inf
            new_m = np.maximum(old_m, scores.max(axis=1))
            seen = new_m > -np.inf
            factor, weights = np.zeros(end - first), np.zeros(scores.shape)
            factor[seen] = np.exp(old_m[seen] - new_m[seen])
            weights[seen] = np.exp(scores[seen] - new_m[seen, None])
            new_l = factor * old_l + weights.sum(axis=1)
            new_o = (factor * old_l)[:, None] * old_o + weights @ values
            new_o[seen] /= new_l[seen, None]
            memory.store("out", first, new_o)
            memory.store("maximum", first, new_m)
            memory.store("total", first, new_l)
""",
    ),
    Mutant(
        "row_by_row",
        MERGE,
        """    rows = []
    for m_a, l_a, o_a, m_b, l_b, o_b in zip(*a, *b, strict=True):
        if l_a == 0:
            rows.append((m_b, l_b, o_b))
        elif l_b == 0:
            rows.append((m_a, l_a, o_a))
        else:
            m = max(m_a, m_b)
            l_a, l_b = l_a * np.exp(m_a - m), l_b * np.exp(m_b - m)
            rows.append((m, l_a + l_b, o_a * (l_a / (l_a + l_b)) + o_b * (l_b / (l_a + l_b))))
    return State(*(np.array(part) for part in zip(*rows, strict=True)))
""",
    ),
    Mutant(
        "last_keys_first",
        "for first_key in range(0, num_keys, tile_k):",
        "for first_key in reversed(range(0, num_keys, tile_k)):",
    ),
    Mutant(
        "knows_the_state_of_nothing",
        "            old = State(*(memory.load(name, first, end) for name in State._fields))\n",
        """            if first_key > 0:
                old = State(*(memory.load(name, first, end) for name in State._fields))
            else:
                rows = end - first
                old = State(np.full(rows, -np.inf), np.zeros(rows), np.zeros((rows, head_dim)))
""",
    ),
    Mutant(
        "skips_rows_that_see_nothing",
        "            scores = memory.load(",
        """            if causal:
                first = max(first, first_key - earlier)
            scores = memory.load(""",
    ),
)

TO_CATCH = "right_the_first_time"

EQUIVALENT = {
    "maximum = np.maximum(a.maximum, b.maximum)  →  maximum = np.maximum(b.maximum, a.maximum)": (
        "the larger of two is the larger of two"
    ),
    "new = merge(old, state_of(scores, values))  →  new = merge(state_of(scores, values), old)": (
        "states may be merged in any order (P3)"
    ),
    "return np.where(np.isneginf(maximum), 0.0, maximum)[:, None]  →  "
    "return np.where(np.isneginf(maximum), 1.0, maximum)[:, None]": (
        "in a row of nothing, any finite number may be subtracted: e^-inf is 0"
    ),
    "return sums / np.where(total > 0, total, 1.0)[:, None]  →  "
    "return sums / np.where(total > 0, total, 2.0)[:, None]": "in a row of nothing, 0 is divided",
    "return sums / np.where(total > 0, total, 1.0)[:, None]  →  "
    "return sums / np.where(total > 1, total, 1.0)[:, None]": (
        "a total is 0 or at least 1, as its largest term is 1; and a total of 1 is divided by 1 in both"
    ),
}


def examples(subject: Any) -> None:
    """The tests that one would write first."""
    scores, values = np.array([[1.0, 2.0, 3.0]]), np.array([[1.0], [2.0], [4.0]])
    weights = np.exp(scores) / np.exp(scores).sum()
    whole = subject.state_of(scores, values)
    assert whole.maximum[0] == 3
    assert np.allclose(whole.total, np.exp(scores - 3).sum())
    assert np.allclose(whole.out, weights @ values)
    hidden = subject.state_of(np.array([[-np.inf]]), values[:1])
    assert hidden.total[0] == 0
    assert hidden.out[0, 0] == 0
    first, second = (subject.state_of(scores[:, s], values[s]) for s in (slice(1, 3), slice(0, 1)))
    merged = subject.merge(first, second)
    assert np.allclose(merged.out, whole.out)
    assert np.allclose(merged.total, whole.total)
    random = np.random.default_rng(0)
    query, key, value = (random.standard_normal((8, 4)) for _ in range(3))
    for causal in (False, True):
        memory = subject.GlobalMemory(query, key, value)
        subject.flash1(memory, 2, 4, causal)
        all_scores = query @ key.T / 2
        if causal:
            all_scores[np.triu_indices(8, 1)] = -np.inf
        weights = np.exp(all_scores)
        assert np.allclose(memory.arrays["out"], weights / weights.sum(axis=1, keepdims=True) @ value)
