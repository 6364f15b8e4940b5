"""What a prefix cache costs: looking prompts up among a hundred known ones, and among a hundred thousand.

Finding a prefix takes a step for each of its blocks, so it should not matter how many others are known. What
does matter a little is memory: of a hundred thousand prefixes, the one that is asked for is in no processor
cache. Three operations are measured, each on random prefixes:

    look up    match all blocks of a known prompt
    hold       match, acquire, release: what admitting a request and finishing it costs
    replace    evict as many blocks as a prompt has, and insert another prompt

Both forms, each at every size, are measured in turns. Seconds are those of one operation.

Read next: `minivllm/memory/prefix_cache.py`.
"""

from __future__ import annotations

import random
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from time import perf_counter

from minivllm.lab.bench.report import Header, Section, make_header
from minivllm.lab.bench.timing import timed
from minivllm.lab.subjects.settings import Settings
from minivllm.memory.make_cache_manager import make_prefix_cache
from minivllm.memory.prefix_cache import PrefixCache

BLOCK_SIZE = 16
BLOCKS_PER_PREFIX = 8
SIZES = (100, 1_000, 10_000, 100_000)
FORMS = ("hash", "radix")
BATCH = 32
"""Operations that are timed together."""
ROUNDS = 40
VOCAB_SIZE = 32_000


class CacheRig:
    """A cache of `num_prefixes` random prompts, all of them evictable. A prompt has a place and keeps it."""

    def __init__(self, form: str, num_prefixes: int, seed: int) -> None:
        cache = make_prefix_cache(form, BLOCK_SIZE)
        assert cache is not None
        self.cache: PrefixCache = cache
        self._rng = random.Random(seed)
        self._prompts = [self._new_prompt() for _ in range(num_prefixes)]
        self._place_of: dict[int, int] = {}  # block → place of the prompt that it belongs to
        for place, prompt in enumerate(self._prompts):
            first = place * BLOCKS_PER_PREFIX
            self._insert(prompt, range(first, first + BLOCKS_PER_PREFIX))
            self._place_of.update(dict.fromkeys(range(first, first + BLOCKS_PER_PREFIX), place))

    def round(self) -> dict[str, float]:
        """One batch of each operation; operation → seconds of one."""
        asked = self._rng.choices(self._prompts, k=BATCH)
        fresh = [self._new_prompt() for _ in range(BATCH)]
        return {
            "look up": _seconds_each(self._look_up, asked),
            "hold": _seconds_each(self._hold, asked),
            "replace": _seconds_each(self._replace, fresh),
        }

    def _look_up(self, prompt: array[int]) -> None:
        found = self.cache.match(None, prompt)
        assert len(found) == BLOCKS_PER_PREFIX

    def _hold(self, prompt: array[int]) -> None:
        found = self.cache.match(None, prompt)
        self.cache.acquire(found)
        self.cache.release(found)

    def _replace(self, prompt: array[int]) -> None:
        blocks = self.cache.evict(BLOCKS_PER_PREFIX)
        self._prompts[self._place_of[blocks[0]]] = prompt
        self._insert(prompt, blocks)

    def _insert(self, prompt: array[int], blocks: Sequence[int]) -> None:
        self.cache.insert(None, prompt, blocks)
        self.cache.release(blocks)

    def _new_prompt(self) -> array[int]:
        tokens = self._rng.choices(range(VOCAB_SIZE), k=BLOCK_SIZE * BLOCKS_PER_PREFIX)
        return array("i", tokens)


@dataclass(frozen=True)
class OperationCost:
    """One operation of one form, at each size: medians over the rounds."""

    form: str
    operation: str
    seconds: tuple[float, ...]

    @property
    def flatness(self) -> float:
        """Cost at the largest size, as a multiple of that at the smallest."""
        return self.seconds[-1] / self.seconds[0]


@dataclass(frozen=True)
class PrefixLookup:
    """The result."""

    header: Header
    sizes: tuple[int, ...]
    costs: tuple[OperationCost, ...]

    def sections(self) -> list[Section]:
        columns = ["form", "operation", *(f"{size:,} prefixes" for size in self.sizes), "last / first"]
        rows = [
            [cost.form, cost.operation, *(f"{s * 1e6:.1f} µs" for s in cost.seconds), f"{cost.flatness:.2f}×"]
            for cost in self.costs
        ]
        note = f"prompts of {BLOCKS_PER_PREFIX} blocks of {BLOCK_SIZE} random tokens"
        return [Section("One operation on a prefix cache", columns, rows, note)]


def run(settings: Settings) -> PrefixLookup:
    """Measure both forms. No model is loaded."""
    return measure(settings, SIZES, ROUNDS * settings.repeat)


def measure(settings: Settings, sizes: Sequence[int], num_rounds: int) -> PrefixLookup:
    """Both forms at each size, in turns."""
    rigs = {(form, size): CacheRig(form, size, settings.seed) for form in FORMS for size in sizes}
    rounds: dict[tuple[str, int], list[dict[str, float]]] = {key: [] for key in rigs}

    def play() -> None:
        for number in range(num_rounds):
            for key in list(rigs)[:: 1 if number % 2 == 0 else -1]:
                rounds[key].append(rigs[key].round())

    sample = timed(play)
    costs = tuple(
        OperationCost(
            form, operation, tuple(median(r[operation] for r in rounds[form, size]) for size in sizes)
        )
        for form in FORMS
        for operation in ("look up", "hold", "replace")
    )
    header = make_header("prefix-cache", settings, {}, [sample.other_cores])
    return PrefixLookup(header, tuple(sizes), costs)


def _seconds_each(operation: Callable[[array[int]], None], prompts: Sequence[array[int]]) -> float:
    began = perf_counter()
    for prompt in prompts:
        operation(prompt)
    return (perf_counter() - began) / len(prompts)
