"""The KV cache: keys and values are kept, so that a new token costs one row, and not the whole text again.

Attention lets a token look at itself and at all tokens before it, never at a later one. So keys and values of
the tokens that are there do not change when another one comes, in any layer:

    token       0   1   2   3   4            computed before        computed now
    keys        k0  k1  k2  k3 ─────────────► from the cache         k4  ─► into the cache
    values      v0  v1  v2  v3 ─────────────► from the cache         v4  ─► into the cache
    queries                                                          q4: looks at k0 … k4

A prompt of n tokens is the same step with n queries instead of one. It may be computed at once, or in chunks.

All numbers of the model are float64. `Floats` stands for arrays of them.

Source: Vaswani et al., "Attention Is All You Need" (NeurIPS 2017), section 3.2; Shazeer, "Fast Transformer
Decoding: One Write-Head is All You Need" (2019), section 2.4, for decoding step by step.
In the engine: minivllm/executor/kv_storage.py and minivllm/model/layers.py.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import DTypeLike, NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Layer:
    """The weights of one layer: rows go in from the left, `rows @ weights`.

    Attributes:
        query: [hidden, num_heads * head_dim]; head h has columns `h * head_dim … (h + 1) * head_dim - 1`.
        key, value: [hidden, num_kv_heads * head_dim], by head likewise.
        output: [num_heads * head_dim, hidden].
    """

    query: Floats
    key: Floats
    value: Floats
    output: Floats


@dataclass(frozen=True)
class Model:
    """A decoder of which only attention is left: nowhere else do tokens meet.

    A token t at position p goes in as `embedding[t] + position[p]`. Each layer adds its attention, multiplied
    with `output`, to the row. The last row of a token times `embedding` transposed are its logits.

    Attributes:
        embedding: [vocab_size, hidden].
        position: [longest, hidden], with as many rows as any cache of this model has room for, or more.
        layers: in the order in which they compute.
        num_heads: query heads, a multiple of `num_kv_heads`.
        num_kv_heads: heads of keys and values.
        head_dim: numbers in a query, a key or a value of one head.
    """

    embedding: Floats
    position: Floats
    layers: tuple[Layer, ...]
    num_heads: int
    num_kv_heads: int
    head_dim: int


def kv_bytes(
    num_layers: int, num_kv_heads: int, head_dim: int, num_tokens: int, bytes_per_number: int
) -> int:
    """Bytes of the keys and values of `num_tokens` tokens."""
    return 2 * num_layers * num_kv_heads * head_dim * num_tokens * bytes_per_number


class KVCache:
    """Keys and values of one sequence, for every layer.

    A step appends to one layer after the other, to each the same number of tokens. In the midst of a step
    some layers have more tokens than others.
    """

    def __init__(
        self, num_layers: int, num_kv_heads: int, head_dim: int, capacity: int, dtype: DTypeLike = np.float64
    ) -> None:
        """Nothing is kept yet.

        Whether the memory is taken at once or grows with the tokens is left to you.

        Args:
            capacity: most tokens of the sequence.
            dtype: in which numbers are kept, such as `np.float16`.
        """
        self.capacity = capacity
        self._lengths = [0] * num_layers
        self._cells = np.zeros((num_layers, 2, num_kv_heads, capacity, head_dim), dtype)

    @property
    def num_tokens(self) -> int:
        """Tokens that all layers have: the next token has this position."""
        return min(self._lengths)

    @property
    def num_bytes(self) -> int:
        """Bytes of the keys and values of these tokens in `dtype`, as `kv_bytes` counts them."""
        num_layers, _, num_kv_heads, _, head_dim = self._cells.shape
        return kv_bytes(num_layers, num_kv_heads, head_dim, self.num_tokens, self._cells.itemsize)

    def append(self, layer: int, keys: Floats, values: Floats) -> None:
        """Keep the keys and values of the next tokens of one layer.

        They are copied: whatever becomes of the two arrays later, the cache keeps what was in them now.

        Args:
            layer: from 0 to num_layers - 1.
            keys, values: [num_kv_heads, new tokens, head_dim]; there may be no new token.

        Raises:
            ValueError: there is no such layer; or one of the arrays has another shape; or the layer would
                have more than `capacity` tokens. Nothing has changed, in no layer.
        """
        if not 0 <= layer < len(self._lengths):
            raise ValueError(f"there is no layer {layer}, only {len(self._lengths)} layers")
        heads, room, head_dim = self._cells.shape[2:]
        start = self._lengths[layer]
        wanted = (heads, keys.shape[1] if keys.ndim == 3 else 0, head_dim)
        if keys.shape != wanted or values.shape != wanted:
            raise ValueError(f"keys {keys.shape} and values {values.shape} must be of shape {wanted}")
        end = start + wanted[1]
        if end > room:
            raise ValueError(f"{end} tokens do not fit, the cache has room for {room}")
        self._cells[layer, 0, :, start:end] = keys
        self._cells[layer, 1, :, start:end] = values
        self._lengths[layer] = end

    def read(self, layer: int) -> tuple[Floats, Floats]:
        """All keys and all values of one layer, in the order of its tokens.

        The arrays may be views of the cache or copies: the caller does not write to them. When more is
        appended, they stay what they were.

        Args:
            layer: from 0 to num_layers - 1.

        Returns:
            Two arrays [num_kv_heads, tokens of this layer, head_dim], of type `dtype`.
        """
        length = self._lengths[layer]
        return self._cells[layer, 0, :, :length], self._cells[layer, 1, :, :length]


def attend(queries: Floats, keys: Floats, values: Floats) -> Floats:
    """Attention of the last tokens of a sequence over all tokens up to themselves.

    Query i of m belongs to the token at position n - m + i. It sees the keys at positions 0 … n - m + i:
    their scores are query · key / √head_dim, and the softmax of these are the weights of their values. Scores
    may be large (10,000) or far below zero (-10,000).

    If there are fewer KV heads than query heads, neighbouring query heads share one: with 4 and 2, the query
    heads 0 and 1 look at KV head 0, and 2 and 3 at KV head 1.

    Args:
        queries: [num_heads, m, head_dim], of the last m of n tokens; 0 ≤ m ≤ n. They are not changed.
        keys, values: [num_kv_heads, n, head_dim], of any floating-point type. They are not changed.

    Returns:
        [num_heads, m, head_dim], float64.
    """
    num_heads, m, head_dim = queries.shape
    num_kv_heads, n, _ = keys.shape
    grouped = queries.reshape(num_kv_heads, num_heads // num_kv_heads, m, head_dim)
    scores = grouped @ keys[:, None].transpose(0, 1, 3, 2) / np.sqrt(head_dim)
    is_later = np.arange(n) > np.arange(n - m, n)[:, None]
    scores = np.where(is_later, -np.inf, scores)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True, initial=-np.inf))
    weights /= weights.sum(axis=-1, keepdims=True)
    return (weights @ values[:, None]).reshape(queries.shape)


def prefill(model: Model, cache: KVCache, tokens: Iterable[int]) -> Floats:
    """Compute the next tokens of a sequence: a prompt, or the next chunk of one.

    The cache holds the tokens before them, and afterwards these, too. Only the new tokens are multiplied with
    the model's weights.

    Args:
        cache: of this model, filled by `prefill` and `decode_step` alone, or empty.
        tokens: numbers from 0 to vocab_size - 1; there may be none.

    Returns:
        The logits of each of these tokens, [tokens, vocab_size]: what is likely to come after it.

    Raises:
        ValueError: a token is not in the vocabulary, or they do not all fit into the cache. The cache is as
            it was before.
    """
    given = list(tokens)
    start, end = cache.num_tokens, cache.num_tokens + len(given)
    if end > cache.capacity:
        raise ValueError(f"{end} tokens do not fit, the cache has room for {cache.capacity}")
    if any(not 0 <= token < len(model.embedding) for token in given):
        raise ValueError(f"tokens must lie in 0 … {len(model.embedding) - 1}, got {given}")
    rows = model.embedding[np.array(given, int)] + model.position[start:end]
    for number, layer in enumerate(model.layers):
        queries = _by_head(rows @ layer.query, model.num_heads)
        keys = _by_head(rows @ layer.key, model.num_kv_heads)
        cache.append(number, keys, _by_head(rows @ layer.value, model.num_kv_heads))
        seen = attend(queries, *cache.read(number))
        rows = rows + seen.transpose(1, 0, 2).reshape(len(given), len(layer.output)) @ layer.output
    return rows @ model.embedding.T


def decode_step(model: Model, cache: KVCache, token: int) -> Floats:
    """Compute one token, the newest of a sequence, whose others are in the cache.

    Returns:
        Its logits, [vocab_size].

    Raises:
        ValueError: as `prefill` does.
    """
    return prefill(model, cache, [token])[0]


def _by_head(rows: Floats, num_heads: int) -> Floats:
    """[tokens, num_heads * head_dim] as [num_heads, tokens, head_dim]."""
    return rows.reshape(len(rows), num_heads, rows.shape[1] // num_heads).transpose(1, 0, 2)
