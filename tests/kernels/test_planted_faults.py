"""The microscope is worth its trouble: change one place in a kernel, and it says what is wrong there.

Each case takes the source of a kernel, replaces one piece of it, imports the result and runs it. What must
come out is the name of the fault, and the line that was changed is the line that is named.
"""

from __future__ import annotations

import importlib.util
import inspect
import itertools
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from kernels_numba.cuda import copy_blocks, flash_attention_1, flash_attention_2, kv_write
from kernels_numba.cuda import naive_attention as naive
from kernels_numba.cuda import paged_attention as paged
from kernels_numba.cuda.tiles import Tiles
from kernels_numba.microscope import BarrierMismatch, KernelFault, OutOfBounds
from tests.kernels.oracle import allowed_error, assert_close, attention, normal
from tests.kernels.test_flash_kernels import check_notes
from tests.kernels.test_paged_kernels import make_world

Plant = Callable[..., ModuleType]
NUMBERS = itertools.count()
NAN = np.float32(np.nan)


@pytest.fixture
def plant(tmp_path: Path) -> Iterator[Plant]:
    """From a module, what to replace in it and by what, to the module with the fault."""
    names = []

    def make(module: ModuleType, right: str, wrong: str) -> ModuleType:
        source = inspect.getsource(module)
        changed = source.replace(right, wrong, 1)
        assert changed != source, f"{right!r} is no longer in {module.__name__}"
        name = f"planted_{next(NUMBERS)}"
        file = tmp_path / f"{name}.py"
        file.write_text(changed, encoding="utf-8")
        spec = importlib.util.spec_from_file_location(name, file)
        assert spec is not None and spec.loader is not None
        planted = sys.modules[name] = importlib.util.module_from_spec(spec)
        names.append(name)
        spec.loader.exec_module(planted)
        return planted

    yield make
    for name in names:
        del sys.modules[name]


TILES = Tiles(1, 2)


class Flash:
    """FlashAttention on a small problem; `version` is 1 or 2, or a module with a fault."""

    def __init__(self, module: ModuleType, len_q: int = 2, len_k: int = 34, tiles: Tiles = TILES) -> None:
        rng = np.random.default_rng(0)
        self.query, self.key, self.value = (normal(rng, n, 1, 32) for n in (len_q, len_k, len_k))
        self.key[32:] = self.query[-1]  # the largest score comes last, so that something is rescaled
        self.out = np.full_like(self.query, NAN)
        if hasattr(module, "flash_attention_1"):
            stats = np.full((2, 1, len_q), NAN)
            arrays = (self.query, self.key, self.value, self.out, *stats)
            self.launch = module.flash_attention_1(*arrays, tiles=tiles)
        else:
            ends = np.array([0, len_q], np.int32), np.array([0, len_k], np.int32)
            arrays = (self.query, self.key, self.value, self.out, *ends)
            self.launch = module.flash_attention_2(*arrays, longest_query=len_q, tiles=tiles)

    def faults(self) -> set[tuple[str, str]]:
        return {(fault.kind, fault.array) for fault in self.launch.observe().faults}

    def check_numbers(self) -> None:
        error = allowed_error(self.query, self.key, self.value, None, tiles=2)
        assert_close(self.out, attention(self.query, self.key, self.value, None, True), error)


# ── barriers ──────────────────────────────────────────────────────────────────────────────────────────────

BARRIERS = [
    (
        flash_attention_1,
        "cuda.syncthreads()\n                if thread",
        "if thread",
        {"keys", "values", "queries"},
    ),
    (
        flash_attention_1,
        "cuda.syncthreads()  # all warps",
        "pass  # all warps",
        {"keys", "values", "queries"},
    ),
    (flash_attention_1, "cuda.syncwarp()  #", "pass  #", {"maxima", "sums"}),
    (flash_attention_2, "cuda.syncthreads()\n            if thread", "if thread", {"tile", "queries"}),
    (flash_attention_2, "cuda.syncthreads()  # all warps", "pass  # all warps", {"tile"}),
    (flash_attention_2, "cuda.syncthreads()\n            for j", "for j", {"tile"}),
    (flash_attention_2, "cuda.syncthreads()  # and", "pass  # and", {"tile"}),
]


@pytest.mark.parametrize(("module", "right", "wrong", "arrays"), BARRIERS)
def test_a_missing_barrier_is_a_race_even_where_the_numbers_are_right(plant, module, right, wrong, arrays):
    assert Flash(module).faults() == set()
    races = {array for kind, array in Flash(plant(module, right, wrong)).faults() if kind == "race"}
    assert races and races <= arrays


def test_a_missing_barrier_between_warps_is_a_race_in_paged_attention(plant):
    planted = plant(paged, "        cuda.syncthreads()\n", "")
    launches, _ = make_world(0, [9]).launches()
    observed = launches[0]._replace(kernel=planted.make_kernel(32, 1, "float32")).observe()
    assert {("race", "warp_maxima"), ("race", "warp_sums"), ("race", "warp_totals")} & {
        (fault.kind, fault.array) for fault in observed.faults
    }
    with pytest.raises(KernelFault, match=r"^(thread|race).*race in block"):
        raise_all(observed)


def raise_all(observed: Any) -> None:
    try:
        observed.check()
    except KernelFault as fault:
        raise KernelFault(str(fault).replace("\n", " ")) from None


def test_a_barrier_that_only_some_threads_reach_never_opens(plant):
    planted = plant(flash_attention_2, "cuda.syncthreads()  # all", "if warp == 0: cuda.syncthreads()  # all")
    with pytest.raises(BarrierMismatch, match=r"32 at syncthreads in line \d+ .*, 32 at syncthreads in line"):
        Flash(planted).launch.observe()


def test_a_shuffle_in_a_branch_that_some_lanes_do_not_take_never_ends(plant):
    planted = plant(paged, "while distance > 0:", "while distance > 0 and inside:")
    launches, _ = make_world(0, [3]).launches()
    with pytest.raises(BarrierMismatch, match="shfl_xor_sync in line"):
        launches[0]._replace(kernel=planted.make_kernel(32, 1, "float32")).observe()


# ── memory ────────────────────────────────────────────────────────────────────────────────────────────────


def worst(launch: Any, array: str, kind: str) -> tuple[float, str]:
    """Units of the most expensive place, and its line in the source."""
    seen = launch.observe()
    row = max(
        (row for row in seen.by_place() if (row.array, row.kind) == (array, kind)),
        key=lambda row: row.units_per_request,
    )
    return row.units_per_request, seen.source[row.place.line - 1].strip()


@pytest.mark.parametrize(
    ("module", "array", "line"),
    [(flash_attention_1, "keys", "+ lane, c]"), (flash_attention_2, "tile", "k = tile[lane, c]")],
)
def test_a_tile_without_padding_conflicts_32_ways_where_lanes_read_rows(plant, module, array, line):
    assert worst(Flash(module).launch, array, "read")[0] == 1
    for right in ("(KEYS, head_dim + 1)", "(num_keys, head_dim + 1)"):
        if right in inspect.getsource(module):
            planted = plant(module, right, right.replace(" + 1", ""))
    conflicts, where = worst(Flash(planted).launch, array, "read")
    assert conflicts == 32 and line in where


def test_lanes_that_walk_down_a_column_take_a_sector_each(plant):
    right = "r, c = i // head_dim, i % head_dim\n                inside = first_key"
    wrong = "r, c = i % KEYS, i // KEYS\n                inside = first_key"
    planted = plant(flash_attention_2, right, wrong)
    assert worst(Flash(flash_attention_2, len_k=32).launch, "key", "read")[0] == 4
    planted_run = Flash(planted, len_k=32)
    sectors, where = worst(planted_run.launch, "key", "read")
    assert sectors == 32 and where.startswith("tile[r, c] = key[")
    planted_run.check_numbers()  # right, and slow: nothing else would tell

    def scores_of(module: ModuleType) -> Any:
        rng = np.random.default_rng(0)
        q, k, scores = normal(rng, 16, 1, 2), normal(rng, 16, 1, 2), np.zeros((1, 16, 16), np.float32)
        return module.naive_attention(q, k, k, np.zeros_like(q), scores)[0]

    planted = plant(naive, "j, i = cuda.grid(2)", "i, j = cuda.grid(2)")
    assert worst(scores_of(naive), "scores", "write")[0] == 4
    assert worst(scores_of(planted), "scores", "write")[0] == 32 // 2


def test_a_vector_load_that_does_not_begin_at_a_multiple_of_its_size_is_refused(plant):
    planted = plant(
        paged,
        "first = (n * row_lanes + part) * per_load\n",
        "first = (n * row_lanes + part) * per_load + 1\n",
    )
    launches, _ = make_world(0, [3]).launches()
    with pytest.raises(OutOfBounds, match="must be a multiple of 16 bytes"):
        launches[0]._replace(kernel=planted.make_kernel(32, 1, "float32")).observe()


# ── one too many, one too few ─────────────────────────────────────────────────────────────────────────────


def run_paged(
    planted: ModuleType, world: Any, group: int = 1, splits: int = 1
) -> tuple[set[tuple[str, str]], Any]:
    """Faults, and the output."""
    launches, out = world.launches(splits)
    faults = set()
    heads, dim = world.query.shape[1:]
    kernels = (planted.make_kernel(dim, group, world.cache_dtype), planted.combine_splits)
    for launch, kernel, poison in zip(launches, kernels, (world.poison, {}), strict=True):
        seen = launch._replace(kernel=kernel).observe(poison=poison)
        faults |= {(fault.kind, fault.array) for fault in seen.faults}
    return faults, out


def test_reading_one_row_behind_the_last_token_is_a_read_of_poison(plant):
    planted = plant(paged, "and position < end_key", "and position <= end_key")
    world = make_world(0, [6], 4)
    faults, out = run_paged(planted, world)
    assert ("poison", "keys") in faults and ("poison", "values") in faults
    assert np.isnan(out).any()


def test_reading_one_entry_behind_the_end_of_a_table_is_a_read_of_poison(plant):
    world = make_world(0, [8], 4)
    assert run_paged(paged, world)[0] == set()
    planted = plant(paged, "+ warp * tile, end_key,", "+ warp * tile, end_key + 1,")
    assert run_paged(planted, world)[0] == {("poison", "tables")}


def test_reading_one_key_behind_the_last_sequence_is_out_of_bounds(plant):
    planted = plant(flash_attention_2, "first_key + r < len_k", "first_key + r <= len_k")
    with pytest.raises(OutOfBounds, match=r"accesses key\[34, 0, \d+\], and key has the shape \(34, 1, 32\)"):
        Flash(planted).launch.observe()


def test_a_kv_head_of_the_wrong_group_is_out_of_bounds(plant):
    planted = plant(
        paged, "kv_head = first_head // (query.shape[1] // keys.shape[1])", "kv_head = first_head"
    )
    with pytest.raises(OutOfBounds, match=r"accesses keys\[\d+, 2, 0, 3\]"):
        run_paged(planted, make_world(0, [3], 4, (4, 2)), group=2)


# ── numbers ───────────────────────────────────────────────────────────────────────────────────────────────

WRONG_NUMBERS = [
    (flash_attention_2, "total[r, n] *= rescale", "total[r, n] *= float32(1)"),
    (flash_attention_2, "sums[r] = sums[r] * rescale +", "sums[r] = sums[r] +"),
    (flash_attention_2, "j < len_k and (not causal or j <= i + offset)", "j < len_k"),
    (flash_attention_2, "j <= i + offset", "j < i + offset"),
    (flash_attention_2, "visible = j < len_k and", "visible = j <= len_k and"),
    (flash_attention_2, "offset = len_k - len_q", "offset = 0"),
    (flash_attention_2, "* scale if inside", "if inside"),
    (flash_attention_1, "old_sum * rescale +", "old_sum +"),
    (flash_attention_1, "* old_sum * rescale if", "* rescale if"),
]


@pytest.mark.parametrize(("module", "right", "wrong"), WRONG_NUMBERS)
def test_a_wrong_rescale_or_a_forgotten_mask_gives_wrong_numbers(plant, module, right, wrong):
    whole = Flash(module, len_q=4)
    whole.launch.observe().check()
    whole.check_numbers()
    broken = Flash(plant(module, right, wrong), len_q=4)
    if "<= len_k" in wrong:  # the causal mask would hide it
        broken.launch = broken.launch._replace(arguments=(*broken.launch.arguments[:-1], False))
    broken.launch.observe()
    with pytest.raises(AssertionError, match="numbers differ by more than"):
        if "<= len_k" in wrong:
            expected = attention(broken.query, broken.key, broken.value, None, False)
            assert_close(broken.out, expected, allowed_error(broken.query, broken.key, broken.value, None, 2))
        broken.check_numbers()


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("sums[r] = sums[r] * rescale +", "sums[r] = sums[r] +"),
        (
            "note_softmax(head, i, maximum, sums[r], rescale)",
            "note_softmax(head, i, score, sums[r], rescale)",
        ),
        ("rescale = math.exp(maxima[r] - maximum)", "rescale = math.exp(maxima[r])"),
        ("note_tile(head, first_query, end_query,", "note_tile(head, first_query, first_query + 1,"),
    ],
)
def test_a_kernel_that_errs_about_itself_is_found_out_by_its_notes(plant, right, wrong):
    def check(module: ModuleType) -> None:
        flash = Flash(module, len_q=2, tiles=Tiles(2, 1))
        check_notes(flash.launch.observe(), flash.query, flash.key, None, True)

    check(flash_attention_2)
    planted = plant(flash_attention_2, right, wrong)
    with pytest.raises((AssertionError, OverflowError)):
        check(planted)


PAGED_NUMBERS = [
    ("total[g, c] *= rescale", "total[g, c] *= float32(1)"),
    ("warp_sums[w, g] * weight", "warp_sums[w, g]"),
    ("total[g, c] * mine + added * theirs", "total[g, c] * mine + added"),
    ("end_key = min(lengths[sequence], first_key + split_keys)", "end_key = lengths[sequence]"),
    ("maximum + math.log(all_sums)", "maximum"),
    ("weight = math.exp(log_sums[sequence, head, split] - maximum)", "weight = float32(1)"),
    ("loaded[n * per_load + 1] = b", "loaded[n * per_load + 1] = a"),
    ("range(first_key + warp * tile, end_key,", "range(first_key, end_key,"),
]


@pytest.mark.parametrize(("right", "wrong"), PAGED_NUMBERS)
def test_wrong_merging_in_paged_attention_gives_wrong_numbers(plant, right, wrong):
    world = make_world(7, [20], 2)
    for module in (paged, plant(paged, right, wrong)):
        faults, out = run_paged(module, world, splits=2)
        assert faults == set()
        if module is paged:
            assert_close(out, world.expected(None), world.error(None, tiles=24))
    with pytest.raises(AssertionError, match="numbers differ by more than"):
        assert_close(out, world.expected(None), world.error(None, tiles=24))


# ── into the cache ────────────────────────────────────────────────────────────────────────────────────────


def test_a_block_that_is_copied_with_the_wrong_stride_has_races_or_holes(plant):
    cache = np.arange(2 * 600).reshape(2, 600)
    pairs = np.array([[0, 1]], np.int32)
    planted = plant(copy_blocks, "cache.shape[1], cuda.blockDim.x)", "cache.shape[1], cuda.blockDim.x + 1)")
    planted.copy_blocks(cache, pairs).observe().check()
    assert (cache[1] != np.arange(600)).sum() == 2
    planted = plant(copy_blocks, "cache.shape[1], cuda.blockDim.x)", "cache.shape[1], cuda.blockDim.x - 1)")
    assert {(f.kind, f.array) for f in planted.copy_blocks(cache, pairs).observe().faults} == {
        ("race", "cache")
    }


def test_a_slot_that_is_taken_for_padding_or_padding_for_a_slot_is_found(plant):
    def write(module: ModuleType) -> tuple[Any, Any]:
        key, cache = np.ones((2, 1, 4), np.float32), np.zeros((2, 2, 1, 3, 4), np.float32)
        launch = module.kv_write(key, key, *cache, np.array([-1, 0], np.int32))
        launch.observe().check()
        return cache.sum()

    assert write(kv_write) == 8
    assert write(plant(kv_write, "if slot < 0", "if slot <= 0")) == 0
    with pytest.raises(OutOfBounds, match=r"accesses keys\[-1, 0, 2, 0\]"):
        write(plant(kv_write, "if slot < 0", "if slot < -1"))
