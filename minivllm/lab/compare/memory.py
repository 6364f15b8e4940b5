"""What paging saves: the same requests on every way to allocate the KV cache, and what sharing adds.

Five questions, all answered with the real scheduler and no model (`memory_play.py`), in a memory of the size
that the vLLM paper had for OPT-13B on an A100:

    1. one sequence per request    how much of the memory is effective, reserved, wasted; how many fit at once
    2. several per request         which memory must copy, and how much, when sequences fork
    3. several, paged              how many blocks sharing saves: parallel samples, and beams
    4. 8 bits a number             how many more requests fit at once into the same bytes (`kv_cache_dtype`)
    5. a second copy of weights    how many fewer do beside it (`decode_weight_dtype`: precision by phase)

Beside the first three stand the papers' answers. `differences.py` says why they differ, from what was
measured.

Read next: `differences.py`, `memory_report.py` (tables), `memory_picture.py`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from math import gcd
from typing import TYPE_CHECKING

from minivllm.config import SchedulerConfig
from minivllm.lab.compare.memory_play import MemoryPlay, Played
from minivllm.lab.papers import HEAD_DIM, KV_BYTES_PER_TOKEN, MAX_MODEL_LEN, NUM_SLOTS
from minivllm.lab.workloads.lengths import DATA_SETS, draw_lengths
from minivllm.memory import KVCacheManager
from minivllm.memory.allocators import BASELINES, make_baseline
from minivllm.memory.cache_manager import CacheManager
from minivllm.memory.contiguous import FirstFit
from minivllm.memory.reservation import ReservationManager
from minivllm.validation import check_choice, check_integer

if TYPE_CHECKING:
    from minivllm.lab.compare.resident import Residency

ALLOCATORS = ("contiguous", "buddy", "oracle", "virtual_memory", "paged", "token")
"""In the order of the tables. "token" is paged memory with a block size of 1: TokenAttention."""
PLACED_OTHERWISE = ("oracle_buddy", "doubled, first fit")
"""The same reservations as "oracle" and "buddy", each with the placement of the other."""

SMALLER = ("int8_per_token_head", "fp8")
"""Kinds of KV cache in 8 bits."""
COPIES = ("int4", "int8", "fp8")
"""Of the weights, for generated tokens."""

WIDTHS = (2, 4, 6)
COPIES_WIDTH = 4
MAX_NUM_SEQS = 1024
"""So many that only the memory is ever short."""
REQUESTS_FACTOR = {"sharegpt": 1, "alpaca": 4}
"""Short requests: more of them fit at once, so more are needed to fill the memory. (Half as many do for
question 2: with several sequences each, and copies, few fit. Twice as many are for question 4.)"""
PAGE_BYTES = 64 << 10
"""The smallest pages that vAttention uses on a GPU (its own extension of the driver)."""
PAGE_REGIONS = 2 * 40
"""Regions of the address space that each have pages of their own: keys and values of each layer."""


@dataclass(frozen=True)
class MemorySettings:
    """What was asked for."""

    requests: int
    seed: int
    block_size: int
    num_slots: int
    max_model_len: int = MAX_MODEL_LEN


@dataclass(frozen=True)
class Run:
    """One play: which memory, which requests, and the result."""

    data_set: str
    allocator: str
    kind: str
    """"single", "parallel" or "beam"."""
    width: int
    played: Played
    kv_cache_dtype: str = "auto"
    decode_weight_dtype: str | None = None


@dataclass(frozen=True)
class MemoryComparison:
    """The result."""

    settings: MemorySettings
    single: tuple[Run, ...]
    """Question 1: every allocator on every data set."""
    placed_otherwise: tuple[Run, ...]
    """For the differences: reservations with another placement."""
    copies: tuple[Run, ...]
    """Question 2: every allocator, forks, on the short requests."""
    sharing: tuple[Run, ...]
    """Question 3: paged, several widths, on every data set."""
    model: tuple[Run, ...]
    """Question 3 again: beams of the shipped model, on short requests; empty if not asked for."""
    residency: Residency | None = None
    """Virtual memory as the machine sees it; None if there is no model, or this is not Linux."""
    smaller: tuple[Run, ...] = ()
    """Question 4: paged, other kinds of cache, on every data set."""
    second_copy: tuple[Run, ...] = ()
    """Question 5: paged, beside each copy that leaves room for a sequence, on every data set."""

    def find(self, runs: str, **wanted: object) -> Run:
        """The one run of a group that has these attributes."""
        group: tuple[Run, ...] = getattr(self, runs)
        (found,) = (
            run for run in group if all(getattr(run, name) == value for name, value in wanted.items())
        )
        return found


Progress = Callable[[str, float], None]
"""Told what is being played, and which share of everything is done."""


def compare_memory(
    *,
    requests: int = 200,
    seed: int = 0,
    block_size: int = 16,
    num_slots: int = NUM_SLOTS,
    with_model: bool = True,
    progress: Progress | None = None,
) -> MemoryComparison:
    """Play everything.

    Args:
        requests: long requests per play; of the short ones four times as many.
        seed: of lengths and beams.
        block_size: tokens per block.
        num_slots: tokens that fit into the memory; rounded down to whole blocks.
        with_model: play the shipped model too: its beams, and virtual memory. Takes some fifteen seconds.
        progress: told what comes next, and which share of the plays is done.

    Raises:
        ValueError: a number is out of range, the memory cannot hold one request, or there are too few
            requests to fill it.
    """
    check_integer("requests", requests, at_least=10)
    check_integer("seed", seed)
    check_integer("block_size", block_size, at_least=1, at_most=MAX_MODEL_LEN)
    least = max(WIDTHS) * MAX_MODEL_LEN
    if check_integer("num_slots", num_slots) < least:
        raise ValueError(
            f"num_slots (--slots) must be at least {least:,}: a memory that reserves the longest needs so "
            f"many for one request of {max(WIDTHS)} sequences of {MAX_MODEL_LEN:,} tokens; got {num_slots:,}"
        )
    settings = MemorySettings(requests, seed, block_size, num_slots)
    runs = _play_all(settings, progress)
    model: list[Run] = []
    residency = None
    if with_model:
        from minivllm.lab.compare.beam_model import play_shipped_model  # torch only if there is a model
        from minivllm.lab.compare.resident import measure_residency

        if progress:
            progress("the shipped model", 1.0)
        for width, played in zip(WIDTHS, play_shipped_model(WIDTHS, block_size, seed), strict=True):
            model.append(Run("alpaca", "paged", "beam", width, played))
        if sys.platform == "linux":
            residency = measure_residency(seed, block_size)
    return MemoryComparison(
        settings,
        single=tuple(runs["single"]),
        placed_otherwise=tuple(runs["placed_otherwise"]),
        copies=tuple(runs["copies"]),
        sharing=tuple(runs["sharing"]),
        model=tuple(model),
        residency=residency,
        smaller=tuple(runs["smaller"]),
        second_copy=tuple(runs["second_copy"]),
    )


def _play_all(settings: MemorySettings, progress: Progress | None) -> dict[str, list[Run]]:
    """Group → its plays, of those that need no model."""
    plan = _plan()
    groups = ("single", "placed_otherwise", "copies", "sharing", "smaller", "second_copy")
    runs: dict[str, list[Run]] = {group: [] for group in groups}
    beside = [name for name in COPIES if slots_beside(settings, name) >= settings.max_model_len]
    num_plays = len(plan) + len(DATA_SETS) * (len(SMALLER) + len(beside))
    for number, (group, data_set, allocator, kind, width) in enumerate(plan):
        if progress:
            words = "" if kind == "single" else f", {kind} {width}"
            progress(f"{DATA_SETS[data_set].name}, {allocator}{words}", number / num_plays)
        runs[group].append(play(settings, group, data_set, allocator, kind, width))
    for data_set in DATA_SETS:
        for kv_cache_dtype in SMALLER:
            if progress:
                number = len(plan) + len(runs["smaller"])
                progress(f"{DATA_SETS[data_set].name}, {kv_cache_dtype}", number / num_plays)
            runs["smaller"].append(play(settings, "smaller", data_set, "paged", "single", 1, kv_cache_dtype))
        for name in beside:
            if progress:
                number = len(plan) + len(runs["smaller"]) + len(runs["second_copy"])
                progress(f"{DATA_SETS[data_set].name}, a copy in {name}", number / num_plays)
            run = play(settings, "second_copy", data_set, "paged", "single", 1, decode_weight_dtype=name)
            runs["second_copy"].append(run)
    return runs


def _plan() -> list[tuple[str, str, str, str, int]]:
    """(group, data set, allocator, kind, width) of all plays."""
    single = [("single", data, name, "single", 1) for data in DATA_SETS for name in ALLOCATORS]
    otherwise = [
        ("placed_otherwise", data, name, "single", 1) for data in DATA_SETS for name in PLACED_OTHERWISE
    ]
    forks = [
        ("copies", "alpaca", name, kind, COPIES_WIDTH)
        for kind in ("parallel", "beam")
        for name in ALLOCATORS
        if name != "token"
    ]
    sharing = [
        ("sharing", data, "paged", kind, width)
        for kind in ("parallel", "beam")
        for data in DATA_SETS
        for width in WIDTHS
    ]
    return single + otherwise + forks + sharing


def kv_bytes_per_token(kv_cache_dtype: str) -> int:
    """Of OPT-13B, whose type has 16 bits."""
    import torch

    from minivllm.executor.kv_format import FORMATS

    heads = KV_BYTES_PER_TOKEN // (2 * HEAD_DIM)
    return heads * FORMATS[kv_cache_dtype].bytes_per_head(HEAD_DIM, torch.float16)


def slots_of(settings: MemorySettings, kv_cache_dtype: str) -> int:
    """Tokens that such a cache holds in the bytes that hold `num_slots` in 16 bits."""
    if kv_cache_dtype == "auto":
        return settings.num_slots
    return settings.num_slots * KV_BYTES_PER_TOKEN // kv_bytes_per_token(kv_cache_dtype)


def copy_bytes(decode_weight_dtype: str) -> int:
    """Of a second copy of OPT-13B's weights."""
    from minivllm.lab.simulation.cards import hardware_card, model_card
    from minivllm.lab.simulation.cost_model import CostModel

    cost = CostModel(
        hardware_card("a100-40gb"), model_card("opt-13b"), decode_weight_dtype=decode_weight_dtype
    )
    return round(cost.second_weight_bytes)


def slots_beside(settings: MemorySettings, decode_weight_dtype: str) -> int:
    """Tokens that are left to the cache beside such a copy; none if it takes more than the cache had."""
    return max(0, settings.num_slots - -(-copy_bytes(decode_weight_dtype) // KV_BYTES_PER_TOKEN))


def play(
    settings: MemorySettings,
    group: str,
    data_set: str,
    allocator: str,
    kind: str,
    width: int,
    kv_cache_dtype: str = "auto",
    decode_weight_dtype: str | None = None,
) -> Run:
    """One play."""
    count = settings.requests * REQUESTS_FACTOR[data_set]
    if group == "copies":
        count //= 2
    elif group == "smaller":
        count *= 2
    lengths = draw_lengths(data_set, count, settings.seed)
    block_size = 1 if allocator == "token" else settings.block_size
    slots = slots_of(settings, kv_cache_dtype)
    if decode_weight_dtype is not None:
        slots = slots_beside(settings, decode_weight_dtype)
    config = SchedulerConfig(
        slots // block_size,
        block_size,
        max_num_seqs=MAX_NUM_SEQS,
        max_model_len=settings.max_model_len,
    )
    memory = make_memory(allocator, config)
    one_play = MemoryPlay(memory, config, lengths, width=width, beams=kind == "beam", seed=settings.seed)
    played = one_play.run()
    return Run(data_set, allocator, kind, width, played, kv_cache_dtype, decode_weight_dtype)


def make_memory(allocator: str, config: SchedulerConfig) -> CacheManager:
    """An empty memory by the name it has in the tables."""
    check_choice("allocator", allocator, (*ALLOCATORS, *PLACED_OTHERWISE))
    num_blocks, size = config.num_blocks, config.block_size
    if allocator in ("paged", "token"):
        return KVCacheManager(num_blocks, size)
    if allocator in BASELINES:
        return make_baseline(
            allocator,
            num_blocks=num_blocks,
            block_size=size,
            max_model_len=config.max_model_len,
            max_num_seqs=config.max_num_seqs,
            blocks_per_commit=blocks_per_page(size),
        )
    assert allocator == "doubled, first fit"
    placement = FirstFit(num_blocks)
    return ReservationManager(
        placement, num_blocks, size, max_model_len=config.max_model_len, guess="doubled"
    )


def blocks_per_page(block_size: int) -> int:
    """Blocks that come and go together in virtual memory: the fewest that fill whole pages of each region."""
    region_bytes = KV_BYTES_PER_TOKEN // PAGE_REGIONS * block_size
    return PAGE_BYTES // gcd(PAGE_BYTES, region_bytes)
