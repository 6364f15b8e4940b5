"""A whole step in one compiled function: from tokens to logits, prompts and decoding sequences together.

    embed ┬ norm ─ [q k v] ─ rotate, write ─ attend ─ o (+) ─ norm ─ [gate up] ─ gate ─ down (+) ┬ norm ─ head
          └───────────────────────────────── for every layer ────────────────────────────────────┘

For one token of a small model the hundred calls of a step from Python take longer than its arithmetic, and
for a batch they still are a third. Here no stage calls Python: each is a loop over rows or panels, divided
among threads where that is worth waking them, and all that lies between two stages is kept in the same arrays
from step to step. What is added up from layer to layer is float32 whatever the weights are.

After the last layer's attention only the rows whose logits are wanted are computed further.

The plain twin is `Decoder.forward`; `tests/executor/test_compiled_runner.py` says that the two agree.
Read next: `matrix_products.py`, `paged_decode.py`, `paged_prefill.py` and `rows.py`, of which it is made.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import njit

from kernels_numba.cpu.arithmetic import ticks, widen
from kernels_numba.cpu.coded_cells import code, layer_of, numbers, where_to_rotate
from kernels_numba.cpu.matrix_products import multiply_by
from kernels_numba.cpu.paged_decode import paged_decode
from kernels_numba.cpu.paged_prefill import paged_prefill
from kernels_numba.cpu.panels import padded
from kernels_numba.cpu.rows import gate, norm, rotate

STAGES = ("products", "attention", "between")
"""What is timed apart."""
PRODUCTS, ATTENTION, BETWEEN = (np.int64(stage) for stage in range(3))
YES, NO = np.bool_(True), np.bool_(False)
"""Literals would be types of their own, and functions be compiled for each."""


class Weights(NamedTuple):
    """A decoder, layer by layer; what a model does not have is empty. bfloat16 is given as uint16.

    Matrices, of whichever kinds, are rows that say where they lie: int64 [layers, FIELDS], see
    `matrix_packing.py`.
    """

    embedding: Any
    """[vocab, hidden]"""
    input_norm: Any
    """[layers, hidden]"""
    qkv: Any
    """(heads + 2 · kv_heads) · d columns, of each layer"""
    qkv_bias: Any
    """[layers, …] or [layers, 0], like the following biases"""
    query_norm: Any
    """[layers, d] or [layers, 0]"""
    key_norm: Any
    output: Any
    """hidden columns"""
    output_bias: Any
    mlp_norm: Any
    """[layers, hidden]"""
    gate_up: Any
    """2 · inner columns"""
    gate_up_bias: Any
    down: Any
    """hidden columns"""
    down_bias: Any
    norm: Any
    """[hidden]"""
    head: Any
    """vocab columns: [FIELDS], one matrix"""
    quantized: int
    """The address of what multiplies by quantised matrices, `quantized_product`, if there are any; or 0."""


class Batch(NamedTuple):
    """What a step computes: T tokens. Padding may follow, which is computed and stored nowhere."""

    tokens: Any
    """[≥ T]"""
    pairs: Any
    """Cosines and sines, as `rotate_rows` takes them."""
    positions: Any
    """[T]"""
    slots: Any
    """[T] the cell of the cache that each token's key and value are written to."""
    wanted: Any
    """Rows that logits are wanted of, ascending."""
    work: Any
    """`AttentionWork`."""


class AttentionWork(NamedTuple):
    """What attention does in a step, the same in every layer: for one new token, and for many."""

    rows: Any
    """The first five are those of `paged_decode`."""
    tables: Any
    items: Any
    row_starts: Any
    item_shares: Any
    prompt_tables: Any
    """The last three are those of `paged_prefill`."""
    tiles: Any
    shares: Any


class Scratch(NamedTuple):
    """Room for what lies between the stages, for so many tokens; the narrow ones in the weights' type."""

    x: Any
    """[tokens, padded(hidden)], float32: what every layer adds to"""
    normed: Any
    """[tokens, hidden]"""
    qkv: Any
    """[tokens, padded((heads + 2 · kv_heads) · d)], float32"""
    queries: Any
    """[tokens, heads · d]"""
    attended: Any
    """[tokens, heads · d]"""
    gate_up: Any
    """[tokens, padded(2 · inner)], float32"""
    gated: Any
    """[tokens, inner]"""
    new: Any
    """[2, tokens, kv_heads, 1, d]: keys and values before they are coded; no tokens if they are not."""


def make_scratch(
    tokens: int, hidden: int, heads: int, kv_heads: int, d: int, inner: int, dtype: Any, is_coded: bool
) -> Scratch:
    """For steps of up to `tokens` tokens; `is_coded`: the cache holds 8 bits."""

    def sums(columns: int) -> Any:
        return np.zeros((tokens, padded(columns)), np.float32)

    def rows(columns: int) -> Any:
        return np.zeros((tokens, columns), dtype)

    return Scratch(
        sums(hidden), rows(hidden), sums((heads + 2 * kv_heads) * d), rows(heads * d), rows(heads * d),
        sums(2 * inner), rows(inner), np.zeros((2, tokens if is_coded else 0, kv_heads, 1, d), dtype),
    )  # fmt: skip


@njit(nogil=True, cache=True, error_model="numpy")
def _add_bias(bias, out, fresh):  # type: ignore[no-untyped-def]
    """`out`, if it is `fresh`, becomes `bias`, otherwise grows by it. Is it still fresh then?"""
    if len(bias):
        for row in range(len(out)):
            for c in range(len(bias)):
                out[row, c] = widen(bias[c]) + (np.float32(0) if fresh else out[row, c])
            if fresh:
                out[row, len(bias) :] = np.float32(0)
        return NO
    return fresh


@njit(nogil=True, cache=True, error_model="numpy")
def _keep_rows(array, wanted):  # type: ignore[no-untyped-def]
    """Row i becomes row `wanted[i]`, which is never one before it."""
    for i in range(len(wanted)):
        source, target = array[wanted[i]], array[i]
        for c in range(len(target)):
            target[c] = source[c]


@njit(nogil=True, cache=True, error_model="numpy")
def attend(queries, keys, values, work, out, scale):  # type: ignore[no-untyped-def]
    """Rows of `out` [T, heads, d] for `queries` [T, heads, d], in one layer."""
    if len(work.items):
        paged_decode(
            queries, keys, values, work.rows, work.tables, work.items, work.row_starts, work.item_shares,
            out, scale,
        )  # fmt: skip
    if len(work.tiles):
        paged_prefill(queries, keys, values, work.prompt_tables, work.tiles, work.shares, out, scale)


@njit(nogil=True, cache=True, error_model="numpy")
def _rotate(qkv, batch, query_norm, key_norm, eps, keys, values, new, queries, num_threads):  # type: ignore[no-untyped-def]
    """Queries and keys are rotated; keys and values go to their cells, as numbers or as codes."""
    new_keys, new_values, places = where_to_rotate(keys, values, batch.slots, new)
    rotate(
        qkv, batch.pairs, batch.positions, query_norm, key_norm, eps, places, new_keys, new_values, queries,
        num_threads,
    )  # fmt: skip
    code(new, batch.slots, keys, values, num_threads)


@njit(nogil=True, cache=True, error_model="numpy")
def whole_step(batch, cells, w, room, eps, scale, num_threads, logits, clock):  # type: ignore[no-untyped-def]
    """Logits of the rows that are wanted.

    Args:
        batch, w, room: see the classes.
        cells: the cache, [layers, 2, blocks, kv_heads, block_size, d]; keys and values are written. Of
            whole numbers a pair, with their scales [layers, 2, blocks, kv_heads, block_size].
        eps: of the norms. scale: of the scores.
        num_threads: how many share each stage; paged attention uses those that Numba has.
        logits: [wanted, padded(vocab)], float32, written.
        clock: [len(STAGES)], int64; grows by the ticks of each stage.
    """
    num_tokens, real, num_layers = len(batch.tokens), len(batch.slots), len(w.qkv)
    d = numbers(cells).shape[5]
    heads = room.queries.shape[1] // d
    x, normed, qkv = room.x[:num_tokens], room.normed[:num_tokens], room.qkv[:num_tokens]
    attended, gate_up, gated = room.attended[:num_tokens], room.gate_up[:num_tokens], room.gated[:num_tokens]
    queries = room.queries[:num_tokens].reshape(num_tokens, heads, d)
    began = ticks()
    for t in range(num_tokens):
        for c in range(w.embedding.shape[1]):
            x[t, c] = widen(w.embedding[batch.tokens[t], c])
    attended[real:] = 0
    for layer in range(num_layers):
        norm(x, w.input_norm[layer], eps, normed, num_threads)
        began = _lap(clock, BETWEEN, began)
        fresh = _add_bias(w.qkv_bias[layer], qkv, YES)
        multiply_by(normed, w.qkv[layer], qkv, fresh, num_threads, w.quantized)
        began = _lap(clock, PRODUCTS, began)
        keys, values = layer_of(cells, layer)
        _rotate(
            qkv, batch, w.query_norm[layer], w.key_norm[layer], eps, keys, values, room.new, queries,
            num_threads,
        )  # fmt: skip
        attend(queries, keys, values, batch.work, attended.reshape(num_tokens, heads, d), scale)
        began = _lap(clock, ATTENTION, began)
        if layer == num_layers - 1:
            num_tokens = len(batch.wanted)
            _keep_rows(x, batch.wanted)
            _keep_rows(attended, batch.wanted)
            x, normed, attended = x[:num_tokens], normed[:num_tokens], attended[:num_tokens]
            gate_up, gated = gate_up[:num_tokens], gated[:num_tokens]
        fresh = _add_bias(w.output_bias[layer], x, NO)
        multiply_by(attended, w.output[layer], x, fresh, num_threads, w.quantized)
        began = _lap(clock, PRODUCTS, began)
        norm(x, w.mlp_norm[layer], eps, normed, num_threads)
        began = _lap(clock, BETWEEN, began)
        fresh = _add_bias(w.gate_up_bias[layer], gate_up, YES)
        multiply_by(normed, w.gate_up[layer], gate_up, fresh, num_threads, w.quantized)
        began = _lap(clock, PRODUCTS, began)
        gate(gate_up, gated, num_threads)
        began = _lap(clock, BETWEEN, began)
        fresh = _add_bias(w.down_bias[layer], x, NO)
        multiply_by(gated, w.down[layer], x, fresh, num_threads, w.quantized)
        began = _lap(clock, PRODUCTS, began)
    norm(x, w.norm, eps, normed, num_threads)
    began = _lap(clock, BETWEEN, began)
    fresh = _add_bias(w.norm[:0], logits, YES)  # it has none
    multiply_by(normed, w.head, logits, fresh, num_threads, w.quantized)
    _lap(clock, PRODUCTS, began)


@njit(nogil=True, cache=True, error_model="numpy")
def _lap(clock, stage, began):  # type: ignore[no-untyped-def]
    """Count what has passed since `began` for a stage; the next one begins now."""
    now = ticks()
    clock[stage] += now - began
    return now
