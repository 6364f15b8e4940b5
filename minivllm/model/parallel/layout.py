"""Which ranks talk to each other, and what each owns, when one model is computed by several ranks.

A *rank* is one process with one device. All of them are one grid, numbered like an array:

    np.arange(data · pipeline · tensor).reshape(data, pipeline, tensor)

                     tensor 0   tensor 1
    pipeline 0   ┌  rank 0      rank 1  ┐     a row: these two share every layer of stage 0
    pipeline 1   └  rank 2      rank 3  ┘     a column: hidden states go down it

What is shared is cut into *parts*, at least as many as there are ranks in a row. A part is a thin model of
its own: some query heads with the KV heads that they look at, some rows of the MLP, some rows of the
vocabulary. Every rank has whole parts, next to each other, and computes each as if it were alone. Where parts
must be added (after `o_proj` and `down_proj`), they are added in their order. So what a part computes, and
what is added to what, does not depend on how many ranks there are: with 1, 2 and 4 of them logits are equal
in every bit. A sum of the ranks' own sums would not be: additions of floats are not associative.

    4 parts:     0   1   2   3          the sum is always  ((0 + 1) + 2) + 3
    1 rank       ─────────────
    2 ranks      ─────   ─────
    4 ranks      ─   ─   ─   ─

Everything here is plain arithmetic. Papers: Megatron-LM (arXiv 1909.08053, section 3), GPipe (1811.06965).
Read next: `sharded_decoder.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from minivllm.model.config import ModelConfig

AXES = ("data", "pipeline", "tensor")
PARTITION = "VLLM_PP_LAYER_PARTITION"
"""vLLM's variable of the environment: `7,5` gives the first of two stages seven layers."""
DEFAULT_PARTS = 4
"""Parts, unless the model's heads or the number of ranks call for another number."""


class Place(NamedTuple):
    """Where a rank is in the grid."""

    data: int
    pipeline: int
    tensor: int


@dataclass(frozen=True)
class Grid:
    """All ranks: `data` copies of a model, each of `pipeline` stages, each shared by `tensor` ranks.

    `layers` says how many each stage has; empty, they are divided evenly.
    """

    data: int = 1
    pipeline: int = 1
    tensor: int = 1
    layers: tuple[int, ...] = ()

    @property
    def size(self) -> int:
        return self.data * self.pipeline * self.tensor

    def place(self, rank: int) -> Place:
        return Place(*(int(index) for index in np.unravel_index(rank, self._shape)))

    def groups(self, axis: str) -> list[tuple[int, ...]]:
        """The ranks that differ in this axis only: they talk to each other."""
        ranks = np.arange(self.size).reshape(self._shape)
        lines = np.moveaxis(ranks, AXES.index(axis), -1).reshape(-1, getattr(self, axis))
        return [tuple(line) for line in lines.tolist()]

    def group_of(self, rank: int, axis: str) -> tuple[int, ...]:
        """The group of this axis that a rank is in."""
        return next(group for group in self.groups(axis) if rank in group)

    @property
    def _shape(self) -> tuple[int, int, int]:
        return self.data, self.pipeline, self.tensor


class Part(NamedTuple):
    """One thin model: what a part owns. Ranges are indices of the whole model."""

    number: int
    heads: range
    kv_heads: range
    """What its heads look at. Where there are fewer KV heads than parts, several parts have the same one."""
    intermediate: range
    vocabulary: range
    """Token ids; short, or empty, at the end of the vocabulary."""


@dataclass(frozen=True)
class Share:
    """What one rank owns: whole parts of whole layers.

    Attributes:
        config: the whole model's.
        num_parts: of the whole model.
        layers: of its stage.
        parts: next to each other.
        is_first, is_last: its stage embeds tokens, computes logits.
        padded_vocabulary: rows of each part's share of the vocabulary, the padding included.
    """

    config: ModelConfig
    num_parts: int
    place: Place
    layers: range
    parts: tuple[Part, ...]
    is_first: bool
    is_last: bool
    padded_vocabulary: int

    @property
    def kv_slots(self) -> tuple[range, ...]:
        """The KV heads that this rank keeps in its cache, each group once, in order."""
        return tuple(dict.fromkeys(part.kv_heads for part in self.parts))

    def part_config(self, part: Part) -> ModelConfig:
        """A part as a model of its own."""
        return replace(
            self.config,
            num_heads=len(part.heads),
            num_kv_heads=len(part.kv_heads),
            intermediate_size=len(part.intermediate),
        )

    @property
    def cache_config(self) -> ModelConfig:
        """The model that this rank's KV cache is made for: a layer for each slot of each own layer.

        So a cache, an attention backend and a block mover that know nothing of parts serve them all.
        """
        windows = self.config.layer_windows[self.layers.start : self.layers.stop]
        part = self.part_config(self.parts[0])
        num_layers = len(self.kv_slots) * len(self.layers)
        return replace(part, num_layers=num_layers, layer_windows=windows * len(self.kv_slots))

    def cache_layer(self, part: Part, layer: int) -> int:
        """Where a part of a layer keeps its keys and values: a layer of `cache_config`."""
        slot = self.kv_slots.index(part.kv_heads)
        return slot * len(self.layers) + self.layers.index(layer)


def share_of(config: ModelConfig, grid: Grid, rank: int, num_parts: int) -> Share:
    """What `rank` owns."""
    place = grid.place(rank)
    each = num_parts // grid.tensor
    parts = tuple(split_model(config, num_parts))
    return Share(
        config=config,
        num_parts=num_parts,
        place=place,
        layers=layers_of_stages(config.num_layers, grid)[place.pipeline],
        parts=parts[place.tensor * each : (place.tensor + 1) * each],
        is_first=place.pipeline == 0,
        is_last=place.pipeline == grid.pipeline - 1,
        padded_vocabulary=-(-config.vocab_size // num_parts),
    )


def split_model(config: ModelConfig, num_parts: int) -> Iterator[Part]:
    """All parts of a model that can be split so (`check_parts`)."""
    heads_each, group = config.num_heads // num_parts, config.num_heads // config.num_kv_heads
    rows = -(-config.vocab_size // num_parts)
    inner = split_evenly(config.intermediate_size, num_parts)
    for index in range(num_parts):
        heads = range(index * heads_each, (index + 1) * heads_each)
        yield Part(
            number=index,
            heads=heads,
            kv_heads=range(heads.start // group, (heads.stop - 1) // group + 1),
            intermediate=inner[index],
            vocabulary=range(
                min(index * rows, config.vocab_size), min((index + 1) * rows, config.vocab_size)
            ),
        )


def split_evenly(total: int, count: int) -> list[range]:
    """So many ranges one after another, whose lengths differ by one at most, the longer ones first."""
    short, longer = divmod(total, count)
    starts = [index * short + min(index, longer) for index in range(count + 1)]
    return [range(start, stop) for start, stop in pairwise(starts)]


def split_layers(num_layers: int, num_stages: int) -> list[range]:
    """The layers of each stage. What is left over goes to the last stage but one, and to those before it:
    the last one computes logits besides, the first one only looks tokens up."""
    short, longer = divmod(num_layers, num_stages)
    lengths = [short] * num_stages
    for index in range(longer):
        lengths[(num_stages - 2 - index) % num_stages] += 1
    return _in_order(lengths)


def layers_of_stages(num_layers: int, grid: Grid) -> list[range]:
    """The layers of each stage: as many as `grid.layers` says, or divided evenly."""
    return _in_order(grid.layers) if grid.layers else split_layers(num_layers, grid.pipeline)


def _in_order(lengths: Sequence[int]) -> list[range]:
    ends = np.cumsum([0, *lengths]).tolist()
    return [range(start, stop) for start, stop in pairwise(ends)]


# ---- what can be split --------------------------------------------------------------------------------


def wanted_partition(environment: Mapping[str, str]) -> tuple[int, ...]:
    """Layers of each stage, as `PARTITION` says; empty if it says nothing.

    Raises:
        ValueError: it is no list of positive numbers.
    """
    said = environment.get(PARTITION, "")
    numbers = [word.strip() for word in said.split(",")] if said.strip() else []
    if not all(word.isdecimal() and int(word) > 0 for word in numbers):
        raise ValueError(f"{PARTITION} must be numbers of layers such as 7,5, each at least 1; got {said!r}")
    return tuple(map(int, numbers))


def choose_parts(config: ModelConfig, grid: Grid, wanted: int | None = None) -> int:
    """The number of parts: `wanted`, or four where heads allow it, and as many as there are ranks otherwise.

    Raises:
        ValueError: the model cannot be split so; the message names the setting and what is possible.
    """
    if grid.pipeline > config.num_layers:
        raise ValueError(
            f"pipeline_parallel_size must be at most {config.num_layers}, the layers of this model; got "
            f"{grid.pipeline}"
        )
    if grid.layers and (len(grid.layers) != grid.pipeline or sum(grid.layers) != config.num_layers):
        raise ValueError(
            f"{PARTITION} must name {grid.pipeline} numbers of layers, one for each stage, that add up to "
            f"{config.num_layers}; got {','.join(map(str, grid.layers))}"
        )
    possible = [count for count in range(1, config.num_heads + 1) if can_split(config, count)]
    ranks = grid.tensor
    if ranks not in possible:
        raise ValueError(
            f"tensor_parallel_size must be one of {_listed(possible)} for this model, which has "
            f"{config.num_heads} heads and {config.num_kv_heads} KV heads; got {ranks}"
        )
    if wanted is None:
        few = max(count for count in (1, 2, DEFAULT_PARTS) if count in possible)
        return few if few % ranks == 0 else ranks
    fitting = [count for count in possible if count % ranks == 0]
    if wanted not in fitting:
        raise ValueError(
            f"reduction_parts must be one of {_listed(fitting)} for this model with tensor_parallel_size "
            f"{ranks}: it divides the {config.num_heads} heads, and each rank has whole parts; got {wanted}"
        )
    return wanted


def can_split(config: ModelConfig, count: int) -> bool:
    """Has each of `count` parts equally many heads, and equally many KV heads that belong to them?"""
    if config.num_heads % count or config.intermediate_size < count:
        return False
    return config.num_kv_heads % count == 0 or count % config.num_kv_heads == 0


def _listed(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers))
