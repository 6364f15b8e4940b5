"""The memory as it is, against the plainest one; and the same with bugs planted, each of which is found."""

import sys
from types import ModuleType, SimpleNamespace

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

import minivllm.memory
from minivllm.memory.cache_manager import Admission, Span
from minivllm.memory.kv_cache_manager import KVCacheManager
from minivllm.memory.make_cache_manager import make_prefix_cache
from tests.memory.sharing_machine import SharingMachine

STEPS = 40
"""Operations in one story. By default 150 stories are told; in a nightly run 3,000, so 120,000 operations."""


class TheRealMemory(SharingMachine):
    memory = SimpleNamespace(
        Admission=Admission, KVCacheManager=KVCacheManager, Span=Span, make_prefix_cache=make_prefix_cache
    )


TestSharing = TheRealMemory.TestCase
TestSharing.settings = settings(
    max_examples=max(150, settings.default.max_examples), stateful_step_count=STEPS, deadline=None
)

# In the order in which they import each other.
MODULES = (
    "block_move",
    "block_pool",
    "block_table",
    "cache_manager",
    "prefix_cache",
    "hash_prefix_cache",
    "radix_tree",
    "prefix_caching",
    "copy_on_write",
    "swap_space",
    "kv_cache_manager",
    "strips",
    "buddy",
    "contiguous",
    "strip_manager",
    "reservation",
    "virtual_memory",
    "allocators",
    "make_cache_manager",
)

MUTANTS = {
    "a missed copy": (
        "copy_on_write",
        "if pool.ref_counts[blocks[index]] > 1]\n",
        "if pool.ref_counts[blocks[index]] > 2]\n",
    ),
    "a late copy": (
        "kv_cache_manager",
        "moves, self._moves = tuple(self._moves), []",
        "moves, self._moves = tuple(self._moves[:-1]), self._moves[-1:]",
    ),
    "a leaked reference": (
        "kv_cache_manager",
        "        blocks = tuple(reversed(table.blocks))\n        self.pool.free_blocks(blocks)\n",
        "        blocks = tuple(reversed(table.blocks))\n        self.pool.free_blocks(blocks[1:])\n",
    ),
    "an evicted block in use": (
        "hash_prefix_cache",
        "            if cached.num_tables == 0:\n                del self._evictable[block]\n",
        "",
    ),
    "an evicted block in use, in the tree": (
        "radix_tree",
        "            node.lock += 1\n            left -=",
        "            left -=",
    ),
    "a stale hash": (
        "hash_prefix_cache",
        "        for block in evicted:\n            self._unlink(self._by_block.pop(block))\n",
        "        for block in evicted:\n            del self._by_block[block]\n",
    ),
    "an off-by-one at a block edge": (
        "prefix_caching",
        "most = (len(token_ids) - 1) // block_size * block_size",
        "most = len(token_ids) // block_size * block_size",
    ),
    "a swap that forgets a shared block": (
        "swap_space",
        "        pool.touch(block for block in blocks if block in mapped)\n",
        "",
    ),
    "a copy that the last reader makes too": (
        "copy_on_write",
        "if pool.ref_counts[blocks[index]] > 1]\n",
        "if pool.ref_counts[blocks[index]] > 0]\n",
    ),
    "blocks of a failed step that stay known": (
        "prefix_caching",
        '        self.cache.remove(fresh)\n        self._uncache(fresh, "abandoned")\n',
        "",
    ),
    "a question that counts as a use": (
        "radix_tree",
        "        return found\n",
        "        self._use(node)\n        return found\n",
    ),
    "computed blocks that count as free": (
        "kv_cache_manager",
        "if wanted > self.num_free_blocks - len(evictable):",
        "if wanted > self.num_free_blocks:",
    ),
}


def load(module="", old="", new=""):
    """The memory's modules, compiled anew under another name, with one text replaced in one of them."""
    package = "mutated_memory"
    folder = minivllm.memory.__path__[0]
    sys.modules[package] = ModuleType(package)
    for name in MODULES:
        with open(f"{folder}/{name}.py", encoding="utf-8") as file:
            source = file.read()
        if name == module:
            assert source.count(old) == 1, f"{name}.py has {source.count(old)} times: {old!r}"
            source = source.replace(old, new)
        source = source.replace("minivllm.memory.", f"{package}.")
        loaded = sys.modules[f"{package}.{name}"] = ModuleType(f"{package}.{name}")
        exec(compile(source, f"<mutated {name}>", "exec"), loaded.__dict__)
    return SimpleNamespace(
        KVCacheManager=sys.modules[f"{package}.kv_cache_manager"].KVCacheManager,
        Span=sys.modules[f"{package}.cache_manager"].Span,
        Admission=sys.modules[f"{package}.cache_manager"].Admission,
        make_prefix_cache=sys.modules[f"{package}.make_cache_manager"].make_prefix_cache,
    )


def search_for_a_failure(memory, max_examples):
    """Tell the same stories each time, and do not spend time on making the failing one short."""
    machine = type("Mutated", (SharingMachine,), {"memory": memory})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=max_examples,
            stateful_step_count=STEPS,
            derandomize=True,
            database=None,
            deadline=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        ),
    )


@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_planted_bug_is_found(mutant):
    with pytest.raises(BaseException) as failure:
        search_for_a_failure(load(*MUTANTS[mutant]), max_examples=2_000)
    print(f"{mutant}: {failure.value!r}"[:300])


def test_without_a_planted_bug_nothing_is_found():
    search_for_a_failure(load(), max_examples=40)
