"""Wrong solutions of lesson 02, and right ones written otherwise."""

from typing import Any

import numpy as np

from lessons.mutant import Mutant

WRITE = """        self._cells[layer, 0, :, start:end] = keys
        self._cells[layer, 1, :, start:end] = values
"""
CELLS = "        self._cells = np.zeros((num_layers, 2, num_kv_heads, capacity, head_dim), dtype)\n"
FITS = """        if end > room:
            raise ValueError(f"{end} tokens do not fit, the cache has room for {room}")
"""
GROUPED = "    grouped = queries.reshape(num_kv_heads, num_heads // num_kv_heads, m, head_dim)\n"
LAYERS = """    rows = model.embedding[np.array(given, int)] + model.position[start:end]
    for number, layer in enumerate(model.layers):
        queries = _by_head(rows @ layer.query, model.num_heads)
        keys = _by_head(rows @ layer.key, model.num_kv_heads)
        cache.append(number, keys, _by_head(rows @ layer.value, model.num_kv_heads))
        seen = attend(queries, *cache.read(number))
        rows = rows + seen.transpose(1, 0, 2).reshape(len(given), len(layer.output)) @ layer.output
    return rows @ model.embedding.T
"""

MUTANTS = (
    Mutant(
        "keeps_the_callers_arrays",
        WRITE,
        """        parts = self.__dict__.setdefault("_parts", {}).setdefault(layer, [])
        parts.append((start, end, keys, values))
        for first, last, old_keys, old_values in parts:
            self._cells[layer, 0, :, first:last] = old_keys
            self._cells[layer, 1, :, first:last] = old_values
""",
        caught_by="P1",
        tells="what callers do with their arrays afterwards shows in the cache.",
        sly=True,
    ),
    Mutant(
        "caches_of_one_shape_share_memory",
        CELLS,
        """        shape = (num_layers, 2, num_kv_heads, capacity, head_dim)
        shared = KVCache.__init__.__dict__
        self._cells = shared.setdefault(str((shape, np.dtype(dtype))), np.zeros(shape, dtype))
""",
        caught_by="P1",
        tells="two sequences overwrite each other's keys and values.",
        sly=True,
    ),
    Mutant(
        "counts_when_the_first_layer_has_them",
        "return min(self._lengths)",
        "return self._lengths[0]",
        caught_by="P1",
        tells="in the midst of a step it counts tokens that only some layers have.",
        sly=True,
    ),
    Mutant(
        "counts_in_eight_bits",
        "self._lengths = [0] * num_layers",
        "self._lengths = np.zeros(num_layers, np.int8)",
        caught_by="P1",
        tells="it is right as long as a text is short.",
        sly=True,
    ),
    Mutant(
        "always_float64",
        CELLS,
        CELLS.replace(", dtype)", ")"),
        caught_by="P1",
        tells="it keeps numbers in another type than it was told.",
        sly=True,
    ),
    Mutant(
        "counts_bytes_that_not_all_layers_have",
        "head_dim, self.num_tokens, self._cells.itemsize)",
        "head_dim, self._lengths[0], self._cells.itemsize)",
        caught_by="P3",
        tells="in the midst of a step it counts bytes of tokens that only some layers have.",
        sly=True,
    ),
    Mutant(
        "numpy_will_check",
        FITS,
        "",
        caught_by="P2",
        tells="a token that does not fit may be lost without a word.",
        sly=True,
    ),
    Mutant(
        "counts_before_it_refuses",
        FITS,
        FITS.replace("            raise", "            self._lengths[layer] = room\n            raise"),
        caught_by="P2",
        tells="after a refusal a layer seems to have more tokens than before.",
        sly=True,
    ),
    Mutant(
        "layers_from_the_end",
        "if not 0 <= layer < len(self._lengths):",
        "if layer >= len(self._lengths):",
        caught_by="P2",
        tells="layer -1 is the last one.",
        sly=True,
    ),
    Mutant(
        "looks_at_the_keys_alone",
        "if keys.shape != wanted or values.shape != wanted:",
        "if keys.shape != wanted:",
        caught_by="P2",
        tells="values of another shape may be accepted.",
        sly=True,
    ),
    Mutant(
        "keys_without_values",
        "return 2 * num_layers",
        "return num_layers",
        caught_by="P3",
        tells="it counts half of what is kept.",
    ),
    Mutant(
        "counts_the_room",
        "return kv_bytes(num_layers, num_kv_heads, head_dim, self.num_tokens,",
        "return kv_bytes(num_layers, num_kv_heads, head_dim, self.capacity,",
        caught_by="P3",
        tells="an empty cache counts as much as a full one.",
        sly=True,
    ),
    Mutant(
        "bytes_in_32_bits",
        "return 2 * num_layers * num_kv_heads * head_dim * num_tokens * bytes_per_number",
        "return (2 * num_layers * num_kv_heads * head_dim * num_tokens * bytes_per_number) % 2**32",
        caught_by="P3",
        tells="a cache of more than 4 GiB seems to be small.",
        sly=True,
    ),
    Mutant(
        "next_head_next_group",
        GROUPED,
        """    keys, values = (np.tile(array, (num_heads // num_kv_heads, 1, 1)) for array in (keys, values))
    grouped = queries[:, None]
""",
        caught_by="P4",
        tells="neighbouring query heads look at different KV heads.",
        sly=True,
    ),
    Mutant(
        "only_the_first_chunk_is_masked_right",
        "np.arange(n - m, n)[:, None]",
        "(np.arange(m) if m > 1 else np.arange(n - m, n))[:, None]",
        caught_by="P4",
        tells="a chunk that is not the first one does not see all that it may.",
        sly=True,
    ),
    Mutant(
        "exponents_as_they_are",
        "np.exp(scores - scores.max(axis=-1, keepdims=True, initial=-np.inf))",
        "np.exp(scores)",
        caught_by="P4",
        tells="large scores overflow, and of very small ones nothing is left.",
        sly=True,
    ),
    Mutant(
        "forgets_the_row_itself",
        "rows = rows + seen",
        "rows = seen",
        caught_by="P5",
        tells="a layer replaces what the one before it has found, instead of adding to it.",
        sly=True,
    ),
    Mutant(
        "zero_is_padding",
        "given = list(tokens)",
        "given = [token for token in tokens if token]",
        caught_by="P5",
        tells="a token of the vocabulary is left out.",
        sly=True,
    ),
    Mutant(
        "later_chunks_begin_at_zero",
        "model.position[start:end]",
        "model.position[start if len(given) == 1 else 0 :][: len(given)]",
        caught_by="P6",
        tells="some tokens are computed as if they stood elsewhere in the text.",
        sly=True,
    ),
    Mutant(
        "decode_sees_only_itself",
        "seen = attend(queries, *cache.read(number))",
        "seen = attend(queries, *(array[:, -len(given) or 0 :] for array in cache.read(number)))",
        caught_by="P6",
        tells="a step looks only at the tokens of this step.",
    ),
    Mutant(
        "computes_it_all_again",
        LAYERS,
        """    cache.known = known = [*getattr(cache, "known", []), *given]
    rows = model.embedding[np.array(known, int)] + model.position[:end]
    for number, layer in enumerate(model.layers):
        queries = _by_head(rows @ layer.query, model.num_heads)
        keys, values = (_by_head(rows @ w, model.num_kv_heads) for w in (layer.key, layer.value))
        cache.append(number, keys[:, start:], values[:, start:])
        seen = attend(queries, keys, values)
        rows = rows + seen.transpose(1, 0, 2).reshape(len(known), len(layer.output)) @ layer.output
    return (rows @ model.embedding.T)[start:]
""",
        caught_by="P7",
        tells="there is a cache, and it saves nothing.",
        sly=True,
    ),
    Mutant(
        "tokens_from_the_end",
        "if any(not 0 <= token < len(model.embedding) for token in given):",
        "if any(token >= len(model.embedding) for token in given):",
        caught_by="P7",
        tells="token -1 is taken for the last one of the vocabulary.",
        sly=True,
    ),
    Mutant(
        "computes_what_fits",
        """    if end > cache.capacity:
        raise""",
        """    if end > cache.capacity:
        prefill(model, cache, given[: cache.capacity - start])
        raise""",
        caught_by="P7",
        tells="of a prompt that it refuses, a part is in the cache afterwards.",
        sly=True,
    ),
)

VARIANTS = (
    Mutant(
        "a_new_array_each_time",
        WRITE,
        """        grown = self._cells.copy()
        grown[layer, 0, :, start:end], grown[layer, 1, :, start:end] = keys, values
        self._cells = grown
""",
    ),
    Mutant(
        "repeats_the_kv_heads",
        GROUPED,
        """    keys, values = (np.repeat(rows, num_heads // num_kv_heads, axis=0) for rows in (keys, values))
    grouped = queries[:, None]
""",
    ),
    Mutant(
        "one_token_after_the_other",
        LAYERS,
        """    logits = np.zeros((len(given), len(model.embedding)))
    for place, token in enumerate(given):
        rows = (model.embedding[token] + model.position[start + place])[None]
        for number, layer in enumerate(model.layers):
            queries = _by_head(rows @ layer.query, model.num_heads)
            keys = _by_head(rows.dot(layer.key), model.num_kv_heads)
            cache.append(number, keys, _by_head(np.dot(rows, layer.value), model.num_kv_heads))
            seen = attend(queries, *cache.read(number))
            rows = rows + np.tensordot(seen.reshape(1, -1), layer.output, 1)
        logits[place] = model.embedding @ rows[0]
    return logits
""",
    ),
    Mutant(
        "head_by_head",
        "        queries = _by_head(rows @ layer.query, model.num_heads)\n",
        """        by_head = layer.query.reshape(rows.shape[1], model.num_heads, model.head_dim)
        queries = np.einsum("th,hnd->ntd", rows, by_head)
""",
    ),
    Mutant(
        "one_product_for_all_three",
        """        keys = _by_head(rows @ layer.key, model.num_kv_heads)
        cache.append(number, keys, _by_head(rows @ layer.value, model.num_kv_heads))
""",
        """        both = (layer.key.T @ rows.T).T, (rows[:, :, None] * layer.value).sum(axis=1)
        cache.append(number, *(_by_head(part, model.num_kv_heads) for part in both))
""",
    ),
)

TO_CATCH = "later_chunks_begin_at_zero"

REFUSES = "raise ValueError(f'tokens must lie in 0 … {len(model.embedding) - 1}, got {given}')"
EQUIVALENT: dict[str, str] = {
    "raise ValueError(f'{end} tokens do not fit, the cache has room for {cache.capacity}')  →  (removed)": (
        "the rows of positions or the first append raise ValueError, before anything has changed"
    ),
    "return kv_bytes(num_layers, num_kv_heads, head_dim, self.num_tokens, self._cells.itemsize)  →  "
    "return kv_bytes(num_kv_heads, num_layers, head_dim, self.num_tokens, self._cells.itemsize)": (
        "a product does not depend on the order of its factors"
    ),
    "self._cells = np.zeros((num_layers, 2, num_kv_heads, capacity, head_dim), dtype)  →  "
    "self._cells = np.zeros((num_layers, 3, num_kv_heads, capacity, head_dim), dtype)": (
        "room that is never used; how much memory is taken is left open"
    ),
    "wanted = (heads, keys.shape[1] if keys.ndim == 3 else 0, head_dim)  →  "
    "wanted = (heads, keys.shape[1] if keys.ndim == 3 else 1, head_dim)": (
        "an array of another number of dimensions is refused either way"
    ),
    f"{REFUSES}  →  {REFUSES.replace(' - 1', ' + 1')}": "only the message",
    f"{REFUSES}  →  {REFUSES.replace(' - 1', ' - 2')}": "only the message",
}


def examples(subject: Any) -> None:
    """The tests that one would write first."""
    cache = subject.KVCache(2, 1, 3, 4)
    keys, values = np.arange(6.0).reshape(1, 2, 3), np.arange(6.0, 12.0).reshape(1, 2, 3)
    for layer in (0, 1):
        cache.append(layer, keys, values)
    assert cache.num_tokens == 2
    assert np.array_equal(cache.read(1)[0], keys) and np.array_equal(cache.read(1)[1], values)
    for layer, wrong in ((0, np.zeros((1, 5, 3))), (2, keys), (0, np.zeros((2, 2, 3)))):
        try:
            cache.append(layer, wrong, wrong)
            raise AssertionError("no error")
        except ValueError:
            pass
    assert subject.kv_bytes(32, 32, 128, 1, 2) == 512 * 1024
    queries = np.ones((1, 1, 3))
    assert np.allclose(subject.attend(queries, np.zeros((1, 2, 3)), values), values.mean(axis=1))
    dice = np.random.default_rng(0)
    weights = [dice.standard_normal((4, 4)) for _ in range(4)]
    layers = (subject.Layer(*weights),)
    model = subject.Model(dice.standard_normal((5, 4)), dice.standard_normal((9, 4)), layers, 2, 2, 2)
    whole = subject.prefill(model, subject.KVCache(1, 2, 2, 8), [3, 1, 4, 1])
    cache = subject.KVCache(1, 2, 2, 8)
    first = subject.prefill(model, cache, [3, 1])
    rest = [subject.decode_step(model, cache, token) for token in (4, 1)]
    assert np.allclose(np.vstack([first, *rest]), whole)
    try:
        subject.prefill(model, cache, [1] * 7)
        raise AssertionError("no error")
    except ValueError:
        pass
