"""What can be put under the microscope by name: each kernel, with arrays of a shape that one can look at.

    minivllm microscope flash-attention-2 --shape tokens=48,head_dim=64

Arrays are random and small: a picture of 4,096 tokens shows nothing that one of 32 does not. Read next:
`own_kernel.py`, for a kernel of one's own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernels_numba.cuda.copy_blocks import copy_blocks
from kernels_numba.cuda.flash_attention_1 import flash_attention_1
from kernels_numba.cuda.flash_attention_2 import flash_attention_2
from kernels_numba.cuda.flash_attention_tensor_core import flash_attention_tensor_core
from kernels_numba.cuda.kv_write import kv_write
from kernels_numba.cuda.launch import Launch
from kernels_numba.cuda.naive_attention import naive_attention
from kernels_numba.cuda.paged_attention import paged_attention
from kernels_numba.cuda.quantized_product import MAX_ROWS, quantized_product
from kernels_numba.cuda.tiles import Tiles
from minivllm.lab.microscope.pairs import integer_or_text
from minivllm.validation import check_choice, check_integer

Shape = dict[str, int]
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Subject:
    """One computation: its kernels in order, and what must not be read."""

    title: str
    launches: list[Launch]
    poison: dict[str, Any] = field(default_factory=dict)
    """By the name of a parameter, True for cells that hold nothing."""


def make_subject(name: str, changes: Mapping[str, int | str], seed: int) -> Subject:
    """A kernel and its arrays.

    Args:
        changes: sizes that differ from the usual ones, as numbers or as they were typed.

    Raises:
        ValueError: there is no such kernel, or no such size, or it is not possible.
    """
    make, usual = SUBJECTS[check_choice("kernel", name, tuple(SUBJECTS))]
    shape = dict(usual)
    for key, value in changes.items():
        check_choice(f"shape of {name}", key, tuple(usual))
        size = integer_or_text(value) if isinstance(value, str) else value
        least, most = (0, 1) if key == "causal" else (1, MAX_SIZE)
        shape[key] = check_integer(key, size, at_least=least, at_most=most)
    if prod(filter(None, shape.values())) > MAX_PRODUCT:
        sizes = ", ".join(f"{key}={value}" for key, value in shape.items())
        raise ValueError(f"shape of {name} must have a product of at most {MAX_PRODUCT:,}, got {sizes}")
    launches, poison = make(shape, np.random.default_rng(seed))
    title = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in shape.items())
    return Subject(f"{name}: {title}", launches, poison)


MAX_SIZE = 4096
MAX_PRODUCT = 2**24
"""Of all sizes: arrays of a few gigabytes, which take longer than anybody looks, are refused before."""
Made = tuple[list[Launch], dict[str, Any]]


def _random(random: np.random.Generator, *shape: int) -> Floats:
    return random.standard_normal(shape, dtype=np.float32)


def _attention(shape: Shape, random: np.random.Generator) -> tuple[Floats, Floats, Floats]:
    tokens, d = shape["tokens"], shape["head_dim"]
    kv = shape.get("kv_heads", shape["heads"])
    return (
        _random(random, tokens, shape["heads"], d),
        _random(random, tokens, kv, d),
        _random(random, tokens, kv, d),
    )


def _naive(shape: Shape, random: np.random.Generator) -> Made:
    q, k, v = _attention(shape, random)
    scores = np.zeros((q.shape[1], len(q), len(k)), np.float32)
    return naive_attention(q, k, v, np.zeros_like(q), scores, causal=bool(shape["causal"])), {}


def _flash_1(shape: Shape, random: np.random.Generator) -> Made:
    q, k, v = _attention(shape, random)
    state = [np.zeros((q.shape[1], len(q)), np.float32) for _ in range(2)]
    causal, tiles = bool(shape["causal"]), Tiles(shape["rows"], shape["warps"])
    return [flash_attention_1(q, k, v, np.zeros_like(q), *state, causal=causal, tiles=tiles)], {}


def _flash_2(shape: Shape, random: np.random.Generator) -> Made:
    q, k, v = _attention(shape, random)
    starts = np.array([0, len(q)], np.int32)
    causal, tiles = bool(shape["causal"]), Tiles(shape["rows"], shape["warps"])
    given = (q, k, v, np.zeros_like(q), starts, starts)
    return [flash_attention_2(*given, longest_query=len(q), causal=causal, tiles=tiles)], {}


def _tensor_core(shape: Shape, random: np.random.Generator) -> Made:
    q, k, v = (array.astype(np.float16).view(np.uint32) for array in _attention(shape, random))
    starts = np.array([0, len(q)], np.int32)
    given = (q, k, v, np.zeros_like(q), starts, starts)
    causal = bool(shape["causal"])
    return [flash_attention_tensor_core(*given, longest_query=len(q), causal=causal, dtype="float16")], {}


def _paged(shape: Shape, random: np.random.Generator) -> Made:
    sequences, context, size = shape["sequences"], shape["context"], shape["block_size"]
    kv, d, splits = shape["kv_heads"], shape["head_dim"], shape["splits"]
    width = -(-context // size)  # of a block table
    num_blocks = sequences * width + 2
    query = _random(random, sequences, shape["heads"], d)
    keys, values = (_random(random, num_blocks, kv, size, d) for _ in range(2))
    tables = random.permutation(num_blocks)[: sequences * width].reshape(sequences, width).astype(np.int32)
    lengths = np.maximum(1, context - 3 * np.arange(sequences)).astype(np.int32)
    nothing = np.ones(keys.shape, bool)
    for table, length in zip(tables, lengths, strict=True):
        for position in range(length):
            nothing[table[position // size], :, position % size] = False
    out = np.zeros_like(query)
    several = (sequences, shape["heads"], splits, d)
    parts = out.reshape(several) if splits == 1 else np.zeros(several, np.float32)
    sums = np.zeros(parts.shape[:3], np.float32)
    launches = paged_attention(query, keys, values, tables, lengths, out, parts, sums)
    return launches, {"keys": nothing, "values": nothing}


def _quantized(shape: Shape, random: np.random.Generator) -> Made:
    rows, outputs, inputs, size, bits = (
        shape[key] for key in ("rows", "outputs", "inputs", "group_size", "bits")
    )
    check_integer("rows", rows, at_least=1, at_most=MAX_ROWS)
    per_group = (outputs, -(-inputs // size))
    words = random.integers(0, 1 << 32, (outputs, inputs * bits // 32), dtype=np.uint32)
    scales = random.random(per_group, dtype=np.float32)
    zeros = random.integers(0, 1 << bits, per_group).astype(np.float32)
    x, out = _random(random, rows, inputs), np.zeros((rows, outputs), np.float32)
    return [quantized_product(x, words, scales, zeros, out, bits=bits, group_size=size)], {}


def _kv_write(shape: Shape, random: np.random.Generator) -> Made:
    tokens, kv, d, size = (shape[key] for key in ("tokens", "kv_heads", "head_dim", "block_size"))
    num_blocks = -(-tokens // size) + 2
    key, value = (_random(random, tokens, kv, d) for _ in range(2))
    keys, values = (np.zeros((num_blocks, kv, size, d), np.float32) for _ in range(2))
    slots = random.permutation(num_blocks * size)[:tokens].astype(np.int32)
    return [kv_write(key, value, keys, values, slots)], {}


def _copy_blocks(shape: Shape, random: np.random.Generator) -> Made:
    pairs = random.permutation(2 * shape["pairs"]).reshape(-1, 2).astype(np.int32)
    return [copy_blocks(_random(random, 2 * shape["pairs"], shape["cells"]), pairs)], {}


SUBJECTS: dict[str, tuple[Callable[[Shape, np.random.Generator], Made], Shape]] = {
    "naive-attention": (_naive, {"tokens": 32, "heads": 1, "kv_heads": 1, "head_dim": 32, "causal": 1}),
    "flash-attention-1": (
        _flash_1,
        {"tokens": 64, "heads": 1, "kv_heads": 1, "head_dim": 32, "causal": 1, "rows": 4, "warps": 2},
    ),
    "flash-attention-2": (
        _flash_2,
        {"tokens": 64, "heads": 1, "kv_heads": 1, "head_dim": 32, "causal": 1, "rows": 4, "warps": 2},
    ),
    "flash-attention-tensor-core": (
        _tensor_core,
        {"tokens": 128, "heads": 1, "kv_heads": 1, "head_dim": 64, "causal": 1},
    ),
    "paged-attention": (
        _paged,
        {
            "sequences": 2,
            "context": 27,
            "heads": 2,
            "kv_heads": 1,
            "head_dim": 64,
            "block_size": 4,
            "splits": 1,
        },
    ),
    "quantized-product": (
        _quantized,
        {"rows": 2, "outputs": 16, "inputs": 256, "group_size": 64, "bits": 4},
    ),
    "kv-write": (_kv_write, {"tokens": 5, "kv_heads": 2, "head_dim": 32, "block_size": 4}),
    "copy-blocks": (_copy_blocks, {"pairs": 2, "cells": 512}),
}
"""By name: what makes it, and its usual shape."""
