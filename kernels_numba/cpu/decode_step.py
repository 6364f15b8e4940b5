"""A whole step of decoding for a handful of sequences, in one compiled function.

One token of one user needs a few thousand multiplications for each row of a matrix, and every weight once.
Nothing can be reused, so the step is as long as it takes to read the weights, if only nobody calls anything:
for a small model, the hundred calls of a step from Python take longer than its arithmetic. So here all of it,
from token to logits, is one call.

    embed ─┬─ norm ─ [q k v] ─ turn, write ─ attend ─ o ─ (+) ─ norm ─ [gate up] ─ down ─ (+) ─┬─ norm ─ head
           └────────────────────────────── for every layer ────────────────────────────────────┘

Matrices are divided among threads by rows. Four rows at a time are multiplied with the same vector, so that
it is loaded once for all of them. Vectors are float32 whatever the weights are, so little is rounded.

The plain twin is `Decoder.forward`; `tests/executor/test_small_batches.py` says that the two agree.
Read next: `paged_decode.py`, the attention in it; `minivllm/executor/small_batches.py`, which calls it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import njit, prange

from kernels_numba.cpu.arithmetic import widen
from kernels_numba.cpu.paged_decode import paged_decode
from kernels_numba.cpu.rows import gate_rows, norm_rows, turn_rows

ZERO = np.float32(0)


class Weights(NamedTuple):
    """A decoder, layer by layer; what a model does not have is empty. bfloat16 is given as uint16."""

    embedding: Any
    """[vocab, hidden]"""
    input_norm: Any
    """[layers, hidden]"""
    qkv: Any
    """[layers, (heads + 2 · kv_heads) · d, hidden]"""
    qkv_bias: Any
    """[layers, …] or [layers, 0], like the following biases"""
    query_norm: Any
    """[layers, d] or [layers, 0]"""
    key_norm: Any
    output: Any
    """[layers, hidden, heads · d]"""
    output_bias: Any
    mlp_norm: Any
    """[layers, hidden]"""
    gate_up: Any
    """[layers, 2 · inner, hidden]"""
    gate_up_bias: Any
    down: Any
    """[layers, hidden, inner]"""
    down_bias: Any
    norm: Any
    """[hidden]"""
    head: Any
    """[vocab, hidden]"""


@njit(fastmath=True, nogil=True, cache=True, error_model="numpy")
def add_products(x, weight, bias, out, begin, end):  # type: ignore[no-untyped-def]
    """Columns `begin … end` of `out` [T, n] grow by those of `x Wᵀ + bias`: `x` [T, k], `weight` [n, k]."""
    k = x.shape[1]
    row = begin
    while row + 4 <= end:
        for t in range(len(x)):
            s0, s1, s2, s3 = ZERO, ZERO, ZERO, ZERO
            for c in range(k):
                value = widen(x[t, c])
                s0 += value * widen(weight[row, c])
                s1 += value * widen(weight[row + 1, c])
                s2 += value * widen(weight[row + 2, c])
                s3 += value * widen(weight[row + 3, c])
            out[t, row] += s0
            out[t, row + 1] += s1
            out[t, row + 2] += s2
            out[t, row + 3] += s3
        row += 4
    while row < end:
        for t in range(len(x)):
            total = ZERO
            for c in range(k):
                total += widen(x[t, c]) * widen(weight[row, c])
            out[t, row] += total
        row += 1
    if len(bias):
        for t in range(len(x)):
            for n in range(begin, end):
                out[t, n] += widen(bias[n])


@njit(nogil=True, cache=True, parallel=True)
def add_products_parallel(x, weight, bias, out, parts):  # type: ignore[no-untyped-def]
    """`add_products` of all columns, divided into `parts`."""
    n = out.shape[1]
    for part in prange(parts):
        add_products(x, weight, bias, out, part * n // parts, (part + 1) * n // parts)


@njit(fastmath=True, nogil=True, cache=True, error_model="numpy")
def decode_step(  # type: ignore[no-untyped-def]
    tokens, pairs, positions, slots, tables, items, item_starts, cells, w, eps, scale, parts, logits
):
    """Logits after one new token of each of T sequences.

    Args:
        tokens, slots: [T], and the cells of the cache that they are written to.
        pairs, positions: as `turn_rows` takes them.
        tables, items, item_starts: as `paged_decode` takes them.
        cells: the cache, [layers, 2, blocks, kv_heads, block_size, d].
        w: the weights.
        eps: of the norms.
        scale: of the scores.
        parts: into how many parts a product is divided: the number of threads.
        logits: [T, vocab], float32, written.
    """
    num_layers, num_tokens, hidden = len(w.qkv), len(tokens), w.embedding.shape[1]
    kv_heads, d = cells.shape[3], cells.shape[5]
    heads = w.output.shape[2] // d
    x, normed = np.empty((num_tokens, hidden), np.float32), np.empty((num_tokens, hidden), np.float32)
    qkv = np.empty((num_tokens, (heads + 2 * kv_heads) * d), np.float32)
    queries = np.empty((num_tokens, heads, d), cells.dtype)
    attended = np.empty((num_tokens, heads, d), cells.dtype)
    gate_up = np.empty((num_tokens, w.gate_up.shape[1]), np.float32)
    gated = np.empty((num_tokens, w.down.shape[2]), np.float32)
    for t in range(num_tokens):
        for c in range(hidden):
            x[t, c] = widen(w.embedding[tokens[t], c])
    for layer in range(num_layers):
        norm_rows(x, w.input_norm[layer], eps, normed, 0, num_tokens)
        qkv[:] = ZERO
        add_products_parallel(normed, w.qkv[layer], w.qkv_bias[layer], qkv, parts)
        keys, values = cells[layer, 0], cells[layer, 1]
        turn_rows(
            qkv.reshape(num_tokens, heads + 2 * kv_heads, d), pairs, positions, w.query_norm[layer],
            w.key_norm[layer], eps, slots, keys, values, queries, 0, num_tokens,
        )  # fmt: skip
        paged_decode(queries, keys, values, tables, items, item_starts, attended, scale)
        flat = attended.reshape(num_tokens, heads * d)
        add_products_parallel(flat, w.output[layer], w.output_bias[layer], x, parts)
        norm_rows(x, w.mlp_norm[layer], eps, normed, 0, num_tokens)
        gate_up[:] = ZERO
        add_products_parallel(normed, w.gate_up[layer], w.gate_up_bias[layer], gate_up, parts)
        gate_rows(gate_up, gated, 0, num_tokens)
        add_products_parallel(gated, w.down[layer], w.down_bias[layer], x, parts)
    norm_rows(x, w.norm, eps, normed, 0, num_tokens)
    logits[:] = ZERO
    add_products_parallel(normed, w.head, w.head[0, :0], logits, parts)
