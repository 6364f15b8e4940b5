"""Memory is where tokens were written and nowhere else, and attention cannot tell the difference."""

from __future__ import annotations

import mmap
import random
import sys
from array import array
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minivllm.config import SchedulerConfig
from minivllm.decoding.sampler import Sampler
from minivllm.engine.engine import Engine
from minivllm.executor.attention.metadata import build_metadata
from minivllm.executor.attention.torch_backend import TorchAttention
from minivllm.executor.kv_storage import KVStorage
from minivllm.executor.torch_executor import TorchExecutor
from minivllm.executor.virtual_storage import VirtualKVStorage, blocks_per_commit
from minivllm.memory.block_table import blocks_needed
from minivllm.memory.cache_manager import Admission, Span
from minivllm.memory.make_cache_manager import Pages
from minivllm.memory.virtual_memory import VirtualMemoryManager, round_up
from minivllm.model.config import ModelConfig
from minivllm.model.tiny import MODEL_PATH
from minivllm.sampling_params import SamplingParams
from minivllm.scheduling.plan import ScheduledSequence, StepPlan

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux gives pages back")
CPU = torch.device("cpu")
PAGE = mmap.PAGESIZE


def model(kv_heads: int = 2, head_dim: int = 16, layers: int = 2) -> ModelConfig:
    return ModelConfig.from_dict(
        {
            "architectures": ["Qwen2ForCausalLM"],
            "vocab_size": 2,
            "hidden_size": 8,
            "intermediate_size": 8,
            "num_hidden_layers": layers,
            "num_attention_heads": 2 * kv_heads,
            "num_key_value_heads": kv_heads,
            "head_dim": head_dim,
        }
    )


shapes = st.fixed_dictionaries(
    {
        "kv_heads": st.sampled_from([1, 2, 3]),
        "head_dim": st.sampled_from([8, 12, 64]),
        "block_size": st.sampled_from([1, 4, 16]),
        "dtype": st.sampled_from([torch.float32, torch.bfloat16, torch.float64]),
    }
)


class Memory:
    """A manager and the storage that it keeps the accounts of."""

    def __init__(
        self,
        kv_heads: int,
        head_dim: int,
        block_size: int,
        dtype: torch.dtype,
        units: int = 12,
        length: int = 90,
    ) -> None:
        self.config = model(kv_heads, head_dim)
        self.unit = blocks_per_commit(self.config, block_size, dtype)
        self.storage: Any = None
        self.manager = VirtualMemoryManager(
            units * self.unit,
            block_size,
            max_model_len=length,
            max_num_seqs=4,
            blocks_per_commit=self.unit,
            decommit=lambda first, count: self.storage.decommit(first, count),
        )
        self.storage = VirtualKVStorage(self.config, self.manager.num_virtual_blocks, block_size, dtype)
        self.block_bytes = self.storage.num_bytes // self.storage.num_blocks

    def write(self, seq: int, start: int, end: int) -> set[int]:
        """Fill the cells of these positions in all layers; returns the pages that they touch."""
        pages = set()
        cells = self.storage.cells
        length = self.config.head_dim * cells.element_size()
        regions = [region for layer in cells for region in layer]
        for position in range(start, end):
            block, offset = divmod(self.manager.tables[seq].slot(position), self.storage.block_size)
            cells[:, :, block, :, offset] = seq + 1
            for region in regions:
                for head in region[block, :, offset]:
                    first = head.data_ptr() - cells.data_ptr()
                    pages.update(range(first // PAGE, (first + length - 1) // PAGE + 1))
        return pages


@settings(max_examples=settings.default.max_examples // 2)
@given(shape=shapes, seed=st.integers(0, 10**6))
def test_pages_are_resident_where_tokens_are_and_nowhere_else(shape: dict[str, Any], seed: int) -> None:
    """Sequences come, grow, and go; after each step the machine is asked which pages are there."""
    rng = random.Random(seed)
    memory = Memory(**shape)
    manager, storage = memory.manager, memory.storage
    lengths: dict[int, int] = {}
    pages: dict[int, set[int]] = {}
    assert storage.resident_bytes() == 0
    for step in range(25):
        if lengths and rng.random() < 0.25:
            seq = rng.choice(sorted(lengths))
            slot = manager.tables[seq].blocks
            first = slot[0] if slot else None
            manager.free(seq)
            del lengths[seq], pages[seq]
            if first is not None:
                assert storage.resident_bytes(first, manager.slot_blocks) == 0, "its pages are gone"
        elif len(lengths) < 4 and rng.random() < 0.4:
            manager.allocate_slots([Span(step, 0, 0)], Admission(step, [1] * rng.randint(1, 40), 90))
            if step in manager.tables:
                lengths[step], pages[step] = 0, set()
        if lengths:
            seq = rng.choice(sorted(lengths))
            end = min(90, lengths[seq] + rng.randint(1, 30))
            if lengths[seq] < end and manager.allocate_slots([Span(seq, lengths[seq], end)]):
                pages[seq] |= memory.write(seq, lengths[seq], end)
                lengths[seq] = end
        touched = [page for each in pages.values() for page in each]
        assert len(touched) == len(set(touched)), "two sequences have a part of the same page"
        assert storage.resident_bytes() == len(touched) * PAGE
        size, unit = storage.block_size, memory.unit
        committed = sum(round_up(blocks_needed(length, size), unit) for length in lengths.values())
        assert manager.num_blocks - manager.num_free_blocks == committed
        assert len(touched) * PAGE <= committed * memory.block_bytes
        if unit * memory.block_bytes == PAGE * 4:  # a page in each of 2 · 2 regions: no part stays untouched
            assert len(touched) * PAGE == committed * memory.block_bytes
        for seq, length in lengths.items():
            slots = torch.tensor([manager.tables[seq].slot(position) for position in range(length)]).long()
            cells = storage.cells[:, :, slots // size, :, slots % size]
            assert cells.eq(seq + 1).all(), "a neighbour's pages were given back"


def test_addresses_cost_nothing() -> None:
    """Sixty-four GiB of addresses on any machine, and one token's pages; to read elsewhere adds none."""
    config = model(layers=4)
    per_block = 2 * 4 * 2 * 16 * 16 * 4
    storage = VirtualKVStorage(config, (64 << 30) // per_block // 2 * 2, 16, torch.float32)
    assert storage.num_bytes > 63 << 30 and storage.resident_bytes(0, 4) == 0
    assert storage.cells[:, :, 3].eq(0).all()
    storage.cells[:, :, 2, 0, 0] = 1
    assert storage.resident_bytes(0, 4) == 8 * PAGE


@pytest.mark.parametrize(
    ("kv_heads", "head_dim", "block_size", "dtype", "expected"),
    [
        (2, 32, 16, torch.float32, 1),  # 4,096 bytes
        (1, 32, 16, torch.float32, 2),  # 2,048
        (3, 32, 16, torch.float32, 2),  # 6,144: two blocks are three pages
        (1, 250, 1, torch.float32, 512),  # 1,000: 8 · 125 and 2^12 have only 8 in common
        (8, 128, 16, torch.bfloat16, 1),  # 32 KiB
    ],
)
@pytest.mark.skipif(PAGE != 4096, reason="the figures are those of 4 KiB pages")
def test_blocks_come_and_go_in_whole_pages(
    kv_heads: int, head_dim: int, block_size: int, dtype: torch.dtype, expected: int
) -> None:
    assert blocks_per_commit(model(kv_heads, head_dim), block_size, dtype) == expected


@settings(max_examples=settings.default.max_examples // 2)
@given(
    shape=shapes,
    lengths=st.lists(st.tuples(st.integers(0, 60), st.integers(1, 30)), min_size=1, max_size=4),
    seed=st.integers(0, 10**6),
)
def test_attention_over_it_is_attention_over_the_ordinary_storage(
    shape: dict[str, Any], lengths: list[tuple[int, int]], seed: int
) -> None:
    """The same backend, the same plan: once over scattered blocks, once over slots."""
    memory = Memory(**shape, units=10_000)
    config, storage, dtype, size = memory.config, memory.storage, shape["dtype"], shape["block_size"]
    ordinary = KVStorage(config, sum(90 // size + 1 for _ in lengths), size, dtype, CPU)
    places = list(range(ordinary.num_blocks))
    random.Random(seed).shuffle(places)
    generator = torch.Generator().manual_seed(seed)
    items: list[list[ScheduledSequence]] = [[], []]
    for seq, (start, new) in enumerate(lengths):
        end = start + new
        assert memory.manager.allocate_slots([Span(seq, 0, end)], Admission(seq, [1] * end, 90))
        slots = memory.manager.tables[seq].blocks
        scattered = array("i", [places.pop() for _ in range(-(-end // size))])
        for block, place in zip(slots, scattered, strict=False):  # what was computed before
            shape_of_block = storage.cells[:, :, block].shape
            data = torch.randn(shape_of_block, generator=generator, dtype=torch.float64).to(dtype)
            storage.cells[:, :, block], ordinary.cells[:, :, place] = data, data
        for table, side in zip((slots, scattered), items, strict=True):
            side.append(ScheduledSequence(seq, start, array("i", range(new)), table, 1))
    count = sum(new for _, new in lengths)

    def randn(heads: int) -> torch.Tensor:
        return torch.randn(count, heads, config.head_dim, generator=generator).to(dtype)

    query, key, value = randn(config.num_heads), randn(config.num_kv_heads), randn(config.num_kv_heads)
    results = []
    for side, cells in zip(items, (storage, ordinary), strict=True):
        backend = TorchAttention(config, cells)
        backend.begin_step(build_metadata(StepPlan(0, tuple(side)), size))
        results.append(backend(1, query, key, value))
    assert torch.equal(*results)


def test_the_shipped_model_says_the_same_and_leaves_no_page_behind() -> None:
    """Samples, forks and beams under a budget so tight that requests are preempted."""
    shipped = TorchExecutor.from_folder(MODEL_PATH, device="cpu", num_blocks=200, block_size=16)
    config = shipped.config
    storage = VirtualKVStorage.for_slots(config, 6, 128, 16, shipped.decoder.dtype)
    rng = random.Random(5)
    kinds = [
        SamplingParams(temperature=0, max_tokens=30, ignore_eos=True),
        SamplingParams(n=2, seed=3, max_tokens=30, ignore_eos=True),
        SamplingParams(n=2, use_beam_search=True, max_tokens=30),
    ]
    work = [([rng.randrange(3, 4000) for _ in range(30)], kinds[number % 3]) for number in range(6)]

    def talk(executor: TorchExecutor, num_blocks: int, **more: Any) -> tuple[list[Any], int]:
        """What is said, and how often a request was preempted."""
        allocator = "virtual_memory" if more else "paged"
        limits = SchedulerConfig(num_blocks, 16, max_num_seqs=6, max_model_len=128, allocator=allocator)
        sampler = Sampler(config.vocab_size)
        engine = Engine(limits, executor, sampler, vocab_size=config.vocab_size, **more)
        for number, (prompt, params) in enumerate(work):
            engine.add_request(str(number), prompt, params)
        said, preemptions, peak = {}, 0, 0
        while engine.has_unfinished_requests():
            for output in engine.step():
                said[output.request_id] = [item.token_ids for item in output.outputs]
            peak = max(peak, storage.resident_bytes())
            preemptions = max(preemptions, *(r.num_preemptions for r in engine.core.state.waiting), 0)
        assert peak <= num_blocks * storage.num_bytes // storage.num_blocks
        return [said[str(number)] for number in range(len(work))], preemptions

    expected, _ = talk(shipped, 200)
    pages = Pages(storage.blocks_per_commit, storage.decommit)
    got, preemptions = talk(TorchExecutor(shipped.decoder, storage), 12, pages=pages)
    assert got == expected and preemptions > 0
    assert storage.resident_bytes() == 0


def test_what_cannot_work_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    config = model(1, 32)
    with pytest.raises(ValueError, match="num_blocks must be a multiple of 2"):
        VirtualKVStorage(config, 3, 16, torch.float32)
    with pytest.raises(ValueError, match="num_blocks must be an integer of at least 1"):
        VirtualKVStorage(config, 0, 16, torch.float32)
    with pytest.raises(ValueError, match=r"cannot be reserved .*lower max_num_seqs"):
        VirtualKVStorage(config, 1 << 44, 16, torch.float32)
    with pytest.raises(ValueError, match="on the CPU only, got device 'cuda'"):
        VirtualKVStorage(config, 4, 16, torch.float32, "cuda")
    storage = VirtualKVStorage(config, 4, 16, torch.float32)
    with pytest.raises(ValueError, match="units of 2, got 1 from 0 on"):
        storage.decommit(0, 1)
    with pytest.raises(ValueError, match="there are 4 blocks, got 4 from 2 on"):
        storage.decommit(2, 4)
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(ValueError, match=r"needs Linux, .* this is darwin: choose 'paged'"):
        VirtualKVStorage(config, 4, 16, torch.float32)
