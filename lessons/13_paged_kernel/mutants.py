"""Wrong solutions of lesson 13, and right ones written otherwise."""

from typing import Any

import numpy as np

from lessons.mutant import Mutant

BODY = """\
    for first in range(0, length, head_dim):
        position = first + thread
        if position < length:  # this thread is a token
            block, row = block_tables[sequence, position // block_size], position % block_size
            score = float32(0)
            for c in range(head_dim):
                score += query[sequence, head, c] * key_cache[block, kv_head, row, c]
            scores[thread] = score * scale
        cuda.syncthreads()  # all scores of the tile are written

        count = min(head_dim, length - first)
        highest = maximum
        for t in range(count):
            highest = max(highest, scores[t])
        rescale = math.exp(maximum - highest)
        total, mine, maximum = total * rescale, mine * rescale, highest
        for t in range(count):  # this thread is a number of the output
            position = first + t
            block, row = block_tables[sequence, position // block_size], position % block_size
            weight = math.exp(scores[t] - maximum)
            total += weight
            mine += weight * value_cache[block, kv_head, row, thread]
        cuda.syncthreads()  # all have read the scores: the next tile may take their place
"""
"""Of the reference: what some of these write otherwise as a whole."""

MUTANTS = (
    Mutant(
        "does_not_wait_for_the_scores",
        "        cuda.syncthreads()  # all scores of the tile are written\n",
        "",
        caught_by="P1",
        tells="a thread uses the scores of a tile before the others have written theirs.",
    ),
    Mutant(
        "waits_where_not_all_come",
        """            scores[thread] = score * scale
        cuda.syncthreads()""",
        """            scores[thread] = score * scale
            cuda.syncthreads()""",
        caught_by="P1",
        tells="threads of a tile that is not full never come to one of its barriers.",
        sly=True,
    ),
    Mutant(
        "no_maximum",
        """        for t in range(count):
            highest = max(highest, scores[t])
        rescale = math.exp(maximum - highest)
        total, mine, maximum = total * rescale, mine * rescale, highest
""",
        "        maximum = float32(0)\n",
        caught_by="P1",
        tells="it takes e to the power of the scores as they are.",
        sly=True,
    ),
    Mutant(
        "kv_heads_round_robin",
        "kv_head = head // (query.shape[1] // key_cache.shape[1])",
        "kv_head = head % key_cache.shape[1]",
        caught_by="P2",
        tells="query heads take the KV heads one after another, again and again.",
        sly=True,
    ),
    Mutant(
        "tiles_begin_with_a_block",
        """            position = first + t
            block, row = block_tables[sequence, position // block_size], position % block_size
""",
        """            block = block_tables[sequence, first // block_size + t // block_size]
            row = t % block_size
""",
        caught_by="P3",
        tells="it believes that the first token of every tile is the first of a block.",
        sly=True,
    ),
    Mutant(
        "does_not_wait_for_the_readers",
        "        cuda.syncthreads()  # all have read the scores: the next tile may take their place\n",
        "",
        caught_by="P3",
        tells="a fast thread writes the next tile's scores while a slow one still reads those of this one.",
        sly=True,
    ),
    Mutant(
        "each_thread_alone",
        BODY,
        """\
    for position in range(length):
        block, row = block_tables[sequence, position // block_size], position % block_size
        score = float32(0)
        for c in range(head_dim):
            score += query[sequence, head, c] * key_cache[block, kv_head, row, c]
        score *= scale
        highest = max(maximum, score)
        weight, rescale = math.exp(score - highest), math.exp(maximum - highest)
        maximum = highest
        total = total * rescale + weight
        mine = mine * rescale + weight * value_cache[block, kv_head, row, thread]
""",
        caught_by="P4",
        tells="every thread computes every score for itself.",
        sly=True,
    ),
    Mutant(
        "one_thread_reads_the_length_for_all",
        "    length = context_lens[sequence]\n",
        """    shared_length = cuda.shared.array(1, float32)
    if thread == 0:
        shared_length[0] = context_lens[sequence]
    length = int(shared_length[0])
""",
        caught_by="P5",
        tells="thread 0 puts the length into shared memory for all, and the others do not wait for it.",
        sly=True,
    ),
    Mutant(
        "waits_for_its_warp_only",
        "        cuda.syncthreads()  # all scores of the tile are written\n",
        "        cuda.syncwarp()\n",
        caught_by="P5",
        tells="a thread waits for the scores of its own warp, and uses those of all.",
        sly=True,
    ),
    Mutant(
        "writes_after_every_tile",
        """        cuda.syncthreads()  # all have read the scores: the next tile may take their place

    out[sequence, head, thread] = mine / total
""",
        """        cuda.syncthreads()  # all have read the scores: the next tile may take their place
        out[sequence, head, thread] = mine / total
""",
        caught_by="P5",
        tells="it writes the output, as far as it is known, after every tile.",
        sly=True,
    ),
    Mutant(
        "gives_the_rest_of_the_tile_no_weight",
        """        count = min(head_dim, length - first)
""",
        """        count = head_dim
        if position >= length:
            scores[thread] = float32(-math.inf)
        cuda.syncthreads()
""",
        caught_by="P6",
        tells="it also looks at rows behind the last token, and gives them a weight of 0.",
        sly=True,
    ),
    Mutant(
        "looks_into_the_table_first",
        """        if position < length:  # this thread is a token
            block, row = block_tables[sequence, position // block_size], position % block_size
""",
        """        block, row = block_tables[sequence, position // block_size], position % block_size
        if position < length:  # this thread is a token
""",
        caught_by="P6",
        tells="threads without a token ask the table for a block, too, and do nothing with it.",
        sly=True,
    ),
    Mutant(
        "in_the_order_of_memory",
        BODY,
        """\
    for block in range(key_cache.shape[0]):
        for index in range((length + block_size - 1) // block_size):
            if block_tables[sequence, index] == block:
                rows = min(block_size, length - index * block_size)
                for first in range(0, rows, head_dim):
                    if first + thread < rows:
                        score = float32(0)
                        for c in range(head_dim):
                            score += query[sequence, head, c] * key_cache[block, kv_head, first + thread, c]
                        scores[thread] = score * scale
                    cuda.syncthreads()
                    for t in range(min(head_dim, rows - first)):
                        highest = max(maximum, scores[t])
                        rescale = math.exp(maximum - highest)
                        weight = math.exp(scores[t] - highest)
                        maximum = highest
                        total = total * rescale + weight
                        mine = mine * rescale + weight * value_cache[block, kv_head, first + t, thread]
                    cuda.syncthreads()
""",
        caught_by="P7",
        tells="it walks through its blocks in the order of their addresses.",
        sly=True,
    ),
    Mutant(
        "two_kv_heads",
        "    kv_head = head // (query.shape[1] // key_cache.shape[1])\n",
        "    kv_head = min(head // (query.shape[1] // key_cache.shape[1]), 1)\n",
        caught_by="P2",
        tells="it knows of two KV heads, however many there are.",
        sly=True,
    ),
    Mutant(
        "shared_memory_for_64",
        "MOST_THREADS = 256\n",
        "MOST_THREADS = 64\n",
        caught_by="P1",
        tells="its shared array has 64 cells, which is too few for the heads of real models.",
        sly=True,
    ),
)

VARIANTS = (
    Mutant(
        "weights_once",
        BODY,
        """\
    first = 0
    while first < length:
        position = first + thread
        block = row = -1
        if position < length:
            block, row = block_tables[sequence, position // block_size], position % block_size
            score = float32(0)
            for c in range(head_dim):
                score += scale * query[sequence, head, c] * key_cache[block, kv_head, row, c]
            scores[thread] = score
        cuda.syncthreads()
        count = min(head_dim, length - first)
        highest = maximum
        for t in range(count):
            highest = max(highest, scores[t])
        cuda.syncthreads()
        if thread < count:
            scores[thread] = math.exp(scores[thread] - highest)
        cuda.syncthreads()
        rescale = math.exp(maximum - highest)
        maximum = highest
        total *= rescale
        mine *= rescale
        for t in range(count):
            place = first + t
            block = block_tables[sequence, place // block_size]
            total += scores[t]
            mine += scores[t] * value_cache[block, kv_head, place % block_size, thread]
        cuda.syncthreads()
        first += head_dim
""",
    ),
    Mutant(
        "two_buffers",
        BODY,
        """\
    second = cuda.shared.array(MOST_THREADS, float32)
    for tile in range((length + head_dim - 1) // head_dim):
        position = tile * head_dim + thread
        if position < length:
            block = block_tables[sequence, position // block_size]
            row_of_keys = key_cache[block, kv_head, position % block_size]
            score = float32(0)
            for c in range(head_dim):
                score += query[sequence, head, c] * row_of_keys[c]
            if tile % 2:
                second[thread] = score * scale
            else:
                scores[thread] = score * scale
        cuda.syncthreads()
        for t in range(head_dim):
            place = tile * head_dim + t
            if place >= length:
                break
            score = second[t] if tile % 2 else scores[t]
            block = block_tables[sequence, place // block_size]
            highest = max(maximum, score)
            rescale = math.exp(maximum - highest)
            weight = math.exp(score - highest)
            total = total * rescale + weight
            mine = mine * rescale + weight * value_cache[block, kv_head, place % block_size, thread]
            maximum = highest
""",
    ),
    Mutant(
        "number_by_number",
        BODY,
        """\
    number = query[sequence, head, thread] * scale
    for position in range(length):
        block, row = block_tables[sequence, position // block_size], position % block_size
        scores[thread] = number * key_cache[block, kv_head, row, thread]
        cuda.syncthreads()
        score = float32(0)
        for c in range(head_dim):
            score += scores[c]
        cuda.syncthreads()
        highest = max(maximum, score)
        weight, rescale = math.exp(score - highest), math.exp(maximum - highest)
        maximum = highest
        total = total * rescale + weight
        mine = mine * rescale + weight * value_cache[block, kv_head, row, thread]
""",
    ),
    Mutant(
        "a_finite_beginning",
        "maximum, total, mine = float32(-math.inf), float32(0), float32(0)",
        "maximum, total, mine = float32(-1e30), 0.0, 0.0",
    ),
    Mutant(
        "threads_of_the_launch",
        "head_dim, block_size = query.shape[2], key_cache.shape[2]",
        "head_dim, block_size = cuda.blockDim.x, value_cache.shape[2]",
    ),
)

TO_CATCH = "gives_the_rest_of_the_tile_no_weight"

_BEGIN = "maximum, total, mine = (float32(-math.inf), float32({}), float32({}))"
EQUIVALENT = {
    "MOST_THREADS = 256  →  MOST_THREADS = 257": "room for one thread more than any launch has",
    f"{_BEGIN.format(0, 0)}  →  {_BEGIN.format(1, 0)}": "the first tile multiplies it by e to the -inf, 0",
    f"{_BEGIN.format(0, 0)}  →  {_BEGIN.format(0, 1)}": "the first tile multiplies it by e to the -inf, 0",
    "score = float32(0)  →  score = float32(1)": "all scores grow by the scale: the same softmax",
}


def examples(subject: Any) -> None:
    """The test that one would write first: two sequences of one tile each, numpy beside it."""
    from kernels_numba.microscope import observe

    random = np.random.default_rng(0)
    query = random.standard_normal((2, 2, 4), dtype=np.float32)
    keys, values = (random.standard_normal((5, 1, 2, 4), dtype=np.float32) for _ in range(2))
    tables = np.array([[3, 0], [4, 1]], np.int32)
    out = np.zeros_like(query)
    lengths, scale = np.array([4, 4], np.int32), np.float32(0.5)
    with np.errstate(all="ignore"):
        observe(subject.paged_attention, (2, 2), 4, query, keys, values, tables, lengths, scale, out)
    for sequence in range(2):
        key, value = (cache[tables[sequence], 0].reshape(4, 4) for cache in (keys, values))
        scores = query[sequence] @ key.T * scale
        weights = np.exp(scores - scores.max(axis=1, keepdims=True))
        right = weights @ value / weights.sum(axis=1, keepdims=True)
        assert np.allclose(out[sequence], right, atol=1e-4)
