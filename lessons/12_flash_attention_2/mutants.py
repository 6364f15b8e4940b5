"""Wrong solutions of lesson 12, and right ones written otherwise."""

from typing import Any

import numpy as np

from lessons.mutant import Mutant

TILE = """\
            highest = maximum
            for k in range(seen):
                score = float32(0)
                for c in range(head_dim):
                    score += own_query[c] * keys[k, c]
                scores[k] = score * scale
                highest = max(highest, scores[k])
            rescale = math.exp(maximum - highest)
            maximum = highest
            total *= rescale
            for c in range(head_dim):
                mine[c] *= rescale
            for k in range(seen):
                weight = math.exp(scores[k] - maximum)
                total += weight
                for c in range(head_dim):
                    mine[c] += weight * values[k, c]
"""
USED = "        cuda.syncthreads()  # all have used it: the next one may take its place\n"
LAST_SEEN = """\
        end = min(first + cuda.blockDim.x, num_queries) + earlier  # what the last query of the tile sees
"""
SUM_UP = """\
    for split in range(num_splits):
        maximum = max(maximum, maxima[split, row])
    if maximum > -math.inf:
        for split in range(num_splits):
            weight = math.exp(maxima[split, row] - maximum)
            total += weight * sums[split, row]
            mine += weight * parts[split, row, c]
"""
"""Of the reference: what some of these write otherwise as a whole."""

MUTANTS = (
    Mutant(
        "does_not_wait_for_the_tile",
        "        cuda.syncthreads()  # the tile is there\n",
        "",
        caught_by="P1",
        tells="a thread uses keys that the others have not brought yet.",
    ),
    Mutant(
        "does_not_wait_for_the_readers",
        USED,
        "",
        caught_by="P1",
        tells="a fast thread brings the next tile while a slow one still uses this one.",
    ),
    Mutant(
        "starts_from_zero",
        "    maximum, total = float32(-math.inf), float32(0)\n",
        "    maximum, total = float32(0), float32(0)\n",
        caught_by="P1",
        tells="its running maximum is never negative.",
        sly=True,
    ),
    Mutant(
        "leaves_the_last_tile_out",
        "    for first in range(start, end, TILE_KEYS):\n",
        """    rest = key.shape[0] % TILE_KEYS
    for first in range(start, min(end, key.shape[0] - rest or end), TILE_KEYS):
""",
        caught_by="P1",
        tells="some keys are never looked at, if their number is an awkward one.",
        sly=True,
    ),
    Mutant(
        "threads_without_a_query_go_home",
        "    row, end = first + thread, key.shape[0]\n",
        "    row, end = first + thread, key.shape[0]\n    if row >= num_queries:\n        return\n",
        caught_by="P1",
        tells="threads behind the last query return at once.",
        sly=True,
    ),
    Mutant(
        "shared_memory_for_64",
        "MOST_HEAD_DIM = 128\n",
        "MOST_HEAD_DIM = 64\n",
        caught_by="P1",
        tells="its arrays have 64 columns, which is too few for the heads of real models.",
        sly=True,
    ),
    Mutant(
        "counts_queries_from_the_first_key",
        "        earlier = end - num_queries  # query i stands at position i + earlier\n",
        "        earlier = 0\n",
        caught_by="P2",
        tells="with as many queries as keys its mask is right.",
        sly=True,
    ),
    Mutant(
        "masks_after_the_maximum",
        TILE,
        """\
            highest = maximum
            for k in range(count):
                score = float32(0)
                for c in range(head_dim):
                    score += own_query[c] * keys[k, c]
                scores[k] = score * scale
                highest = max(highest, scores[k])
            rescale = math.exp(maximum - highest)
            maximum = highest
            total *= rescale
            for c in range(head_dim):
                mine[c] *= rescale
            for k in range(seen):
                weight = math.exp(scores[k] - maximum)
                total += weight
                for c in range(head_dim):
                    mine[c] += weight * values[k, c]
""",
        caught_by="P2",
        tells="a key that a query may not see weighs nothing, and yet it can do harm.",
        sly=True,
    ),
    Mutant(
        "divides_nothing_by_nothing",
        "            out[row, c] = mine[c] / total if total > 0 else float32(0)\n",
        "            out[row, c] = mine[c] / total\n",
        caught_by="P2",
        tells="it is right for every query that sees a key.",
        sly=True,
    ),
    Mutant(
        "skips_no_tile",
        LAST_SEEN,
        "",
        caught_by="P3",
        tells="it brings keys that none of its queries may see.",
        sly=True,
    ),
    Mutant(
        "each_thread_alone",
        "                    score += own_query[c] * keys[k, c]\n",
        "                    score += own_query[c] * key[first + k, c]\n",
        caught_by="P3",
        tells="each thread fetches keys for itself, though they lie in shared memory.",
        sly=True,
    ),
    Mutant(
        "fetches_the_query_again",
        "                    score += own_query[c] * keys[k, c]\n",
        "                    score += query[row, c] * keys[k, c]\n",
        caught_by="P3",
        tells="it fetches its query for every key.",
        sly=True,
    ),
    Mutant(
        "divides_in_place",
        "            out[row, c] = mine[c] / total if total > 0 else float32(0)\n",
        """            out[row, c] = mine[c]
        for c in range(head_dim):
            if total > 0:
                out[row, c] /= total
""",
        caught_by="P3",
        tells="its output visits global memory more than once.",
        sly=True,
    ),
    Mutant(
        "waits_for_its_warp_only",
        USED,
        "        cuda.syncwarp()\n",
        caught_by="P4",
        tells="before the next tile comes, a thread waits for its own warp.",
        sly=True,
    ),
    Mutant(
        "one_thread_counts_for_all",
        "        count = min(TILE_KEYS, end - first)\n",
        """        shared_count = cuda.shared.array(1, float32)
        if thread == 0:
            shared_count[0] = min(TILE_KEYS, end - first)
        count = int(shared_count[0])
""",
        caught_by="P4",
        tells="thread 0 tells the others how many keys a tile has, and they do not wait for it.",
        sly=True,
    ),
    Mutant(
        "divides_at_each_tile",
        TILE,
        """\
            highest = maximum
            for k in range(seen):
                score = float32(0)
                for c in range(head_dim):
                    score += own_query[c] * keys[k, c]
                scores[k] = score * scale
                highest = max(highest, scores[k])
            before = total * math.exp(maximum - highest)
            maximum, total = highest, before
            for c in range(head_dim):
                mine[c] *= before
            for k in range(seen):
                weight = math.exp(scores[k] - maximum)
                total += weight
                for c in range(head_dim):
                    mine[c] += weight * values[k, c]
            for c in range(head_dim):
                mine[c] = mine[c] / total
            if first + TILE_KEYS >= own_end:
                for c in range(head_dim):
                    mine[c] *= total
""",
        caught_by="P5",
        tells="its output is right after every tile, which the contract does not ask for.",
        sly=True,
    ),
    Mutant(
        "rescales_for_each_key",
        TILE,
        """\
            for k in range(seen):
                score = float32(0)
                for c in range(head_dim):
                    score += own_query[c] * keys[k, c]
                highest = max(maximum, score * scale)
                rescale, weight = math.exp(maximum - highest), math.exp(score * scale - highest)
                maximum = highest
                total = total * rescale + weight
                for c in range(head_dim):
                    mine[c] = mine[c] * rescale + weight * values[k, c]
""",
        caught_by="P5",
        tells="it does more beside the products than it has to.",
        sly=True,
    ),
    Mutant(
        "rounds_down",
        "    per_split = (num_keys + cuda.gridDim.x - 1) // cuda.gridDim.x\n",
        "    per_split = num_keys // cuda.gridDim.x\n",
        caught_by="P6",
        tells="some keys belong to no split.",
        sly=True,
    ),
    Mutant(
        "says_nothing_of_nothing",
        "    if row < query.shape[0]:\n",
        "    if row < query.shape[0] and end > split * per_split:\n",
        caught_by="P6",
        tells="a split without a key leaves no word of it.",
        sly=True,
    ),
    Mutant(
        "divides_in_each_split",
        "            parts[split, row, c] = mine[c]\n",
        "            parts[split, row, c] = mine[c] / total if total > 0 else float32(0)\n",
        caught_by="P6",
        tells="what it leaves is no longer a sum.",
    ),
    Mutant(
        "as_many_threads_as_queries",
        "        for i in range(thread, count * head_dim, cuda.blockDim.x):\n",
        "        for i in range(thread, count * head_dim, min(cuda.blockDim.x, query.shape[0])):\n",
        caught_by="P6",
        tells="if there are more threads than queries, some keys are brought twice.",
        sly=True,
    ),
    Mutant(
        "merges_without_a_maximum",
        SUM_UP,
        """\
    for split in range(num_splits):
        weight = math.exp(maxima[split, row])
        total += weight * sums[split, row]
        mine += weight * parts[split, row, c]
""",
        caught_by="P7",
        tells="it takes e to the power of the maxima as they are.",
        sly=True,
    ),
    Mutant(
        "believes_that_somebody_saw_something",
        "    out[row, c] = mine / total if total > 0 else float32(0)\n",
        "    out[row, c] = mine / total\n",
        caught_by="P7",
        tells="it is right if any of the splits has seen a key.",
        sly=True,
    ),
    Mutant(
        "counts_to_64",
        "    row, c, num_splits = cuda.blockIdx.x, cuda.threadIdx.x, maxima.shape[0]\n",
        "    row, c, num_splits = cuda.blockIdx.x, cuda.threadIdx.x, min(64, maxima.shape[0])\n",
        caught_by="P7",
        tells="it merges at most 64 splits.",
        sly=True,
    ),
)

VARIANTS = (
    Mutant(
        "queries_in_shared_memory",
        "    own_query = cuda.local.array(MOST_HEAD_DIM, float32)\n",
        """    own_queries = cuda.shared.array((64, MOST_HEAD_DIM), float32)
    own_query = own_queries[thread]
""",
    ),
    Mutant(
        "keys_and_then_values_in_one_place",
        """\
        cuda.syncthreads()  # the tile is there
        seen = min(count, own_end - first)
        if seen > 0:
"""
        + TILE,
        """\
        cuda.syncthreads()
        seen = min(count, own_end - first)
        highest = maximum
        for k in range(seen):
            score = float32(0)
            for c in range(head_dim):
                score += own_query[c] * keys[k, c]
            scores[k] = score * scale
            highest = max(highest, scores[k])
        cuda.syncthreads()
        for k in range(thread, count, cuda.blockDim.x):
            for c in range(head_dim):
                keys[k, c] = values[k, c]
        cuda.syncthreads()
        if seen > 0:
            rescale = math.exp(maximum - highest)
            maximum = highest
            total *= rescale
            for k in range(seen):
                scores[k] = math.exp(scores[k] - maximum)
                total += scores[k]
            for c in range(head_dim):
                mine[c] *= rescale
                for k in range(seen):
                    mine[c] += scores[k] * keys[k, c]
""",
    ),
    Mutant(
        "whole_tiles",
        LAST_SEEN,
        """        end = max(0, min(first + cuda.blockDim.x, num_queries) + earlier)
        end = min(key.shape[0], (end + TILE_KEYS - 1) // TILE_KEYS * TILE_KEYS)
""",
    ),
    Mutant(
        "merges_one_after_the_other",
        SUM_UP,
        """\
    for split in range(num_splits - 1, -1, -1):
        if sums[split, row] > 0:
            highest = max(maximum, maxima[split, row])
            old, new = math.exp(maximum - highest), math.exp(maxima[split, row] - highest)
            total = total * old + new * sums[split, row]
            mine = mine * old + new * parts[split, row, c]
            maximum = highest
""",
    ),
)

TO_CATCH = "says_nothing_of_nothing"

EQUIVALENT = {
    "TILE_KEYS = 16  →  TILE_KEYS = 17": "it brings no key too many, whatever the size of its tiles",
    "MOST_HEAD_DIM = 128  →  MOST_HEAD_DIM = 129": "room for one column more than any head has",
    "if maximum > -math.inf:  →  if maximum >= -math.inf:": "NaN is not above 0 either, and the output is 0",
    "if seen > 0:  →  if seen >= 0:": "without a key it multiplies by 1, or nothing by NaN, which becomes 0",
}


def examples(subject: Any) -> None:
    """The tests that one would write first: sizes that divide, numpy beside it."""
    from kernels_numba.microscope import observe

    random = np.random.default_rng(0)
    query, key, value = (random.standard_normal((32, 4), dtype=np.float32) for _ in range(3))
    scale = np.float32(0.5)
    scores = query @ key.T * scale
    for causal in (False, True):
        hidden = np.where(np.tri(32, dtype=bool), scores, -np.inf) if causal else scores
        weights = np.exp(hidden)
        right = weights / weights.sum(axis=1, keepdims=True) @ value
        out = np.zeros_like(query)
        observe(subject.flash2, 8, 4, query, key, value, scale, causal, out)
        assert np.allclose(out, right, atol=1e-4)
    maxima, sums = (np.zeros((2, 2), np.float32) for _ in range(2))
    parts, out = np.zeros((2, 2, 4), np.float32), np.zeros((2, 4), np.float32)
    observe(subject.decode_split, 2, 2, query[:2], key, value, scale, maxima, sums, parts)
    observe(subject.merge_splits, 2, 4, maxima, sums, parts, out)
    weights = np.exp(scores[:2])
    assert np.allclose(out, weights / weights.sum(axis=1, keepdims=True) @ value, atol=1e-4)
