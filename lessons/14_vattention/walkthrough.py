# %% [markdown]
# # 14 vAttention, step by step
#
# First the operating system's memory itself: addresses without memory, and what the first write does. Then
# the engine with its KV cache in virtual memory. Then a solution of this lesson, on real pages: it follows a
# paged run of the engine, and an attention that knows of no table reads what it keeps. At last, what pages
# cost. Before each result there is a question: answer it first.
#
# This is a CPU: the pages are real, and the system is asked which of them are there. What a GPU would do is
# computed, not measured. The system must be Linux; elsewhere the parts with real pages are left out.

# %%
import ctypes
import mmap
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

import msgspec
import numpy as np

from lessons.catalogue import find_lesson
from lessons.loading import load_module
from lessons.walkthroughs import trace_path
from minivllm.engine.create_engine import create_engine
from minivllm.engine.engine_args import EngineArgs
from minivllm.model.tiny import MODEL_PATH
from minivllm.sampling_params import RequestOutputKind, SamplingParams
from minivllm.trace.events import BatchPlanned, BlocksAllocated, BlocksFreed
from minivllm.trace.reader import read_trace
from minivllm.trace.recorder import Recorder
from minivllm.trace.replay import Replay
from minivllm.trace.timeline import make_timeline

TRACES = ("14_addresses.jsonl", "14_paged.jsonl", "14_pages.jsonl", "14_large_pages.jsonl")
PAGE = "kv_pool"
PICTURES = {
    "addresses.svg": ("block_pool", 0, 55, {"tables": False}),
    "ladders.svg": ("ladders", 1, 55, {"request": "1"}),
    "small_pages.svg": ("memory_over_time", 2, -1),
    "large_pages.svg": ("memory_over_time", 3, -1),
}

HAS_PAGES = sys.platform == "linux"
PAGE_BYTES = 4096
BLOCK_SIZE, NUM_BLOCKS, LONGEST, LOOK = 16, 32, 256, 55
PROMPTS = (
    ("Question: What is a KV cache?\nAnswer:", 20),
    ("Once upon a time,", 84),
    ("Question: What is a block table?\nAnswer:", 50),
    ("Long ago, a small fox", 60),
    ("Question: What is paging?\nAnswer:", 30),
    ("Question: What is preemption?\nAnswer:", 40),
)
if not HAS_PAGES:
    print(f"this is {sys.platform}, not Linux: parts with real pages are left out")

# %% [markdown]
# ## What does an address cost?
#
# A mapping of 64 GiB is asked for. Then one byte is written in three places. `mincore` says which pages are
# in memory.
#
# Predict: how many bytes are there before the first write? And after the third?


# %%
def resident_bytes(address: int, num_bytes: int) -> int:
    """Of these addresses, the bytes with memory behind them now, as the operating system says."""
    found = (ctypes.c_ubyte * -(-num_bytes // mmap.PAGESIZE))()
    if ctypes.CDLL(None).mincore(ctypes.c_void_p(address), ctypes.c_size_t(num_bytes), found):
        raise OSError("mincore does not know these addresses")
    return sum(entry & 1 for entry in found) * mmap.PAGESIZE


if HAS_PAGES:
    NO_PROMISE = getattr(mmap, "MAP_NORESERVE", 0x4000)
    large = mmap.mmap(-1, 64 * 1024**3, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | NO_PROMISE)
    large.madvise(mmap.MADV_NOHUGEPAGE)
    start = ctypes.addressof(ctypes.c_char.from_buffer(large))
    window = 64 * 1024**2
    print(f"64 GiB of addresses; of the first 64 MiB {resident_bytes(start, window):6,} bytes are there")
    for place in (0, 1, 1_000_000):
        large[place] = 1
        print(f"byte {place:9,} was written:          {resident_bytes(start, window):6,} bytes are there")

# %% [markdown]
# ## The engine in virtual memory
#
# Six requests, at most four at a time. A slot has addresses for 256 tokens, in keys and values of each of the
# model's 5 layers. A token has 2 KV heads of 32 numbers, 4 bytes each: 256 bytes in each of these 10 ranges.
#
# Predict: a page of 4,096 bytes holds how many tokens of a range? Which is the smallest number of bytes that
# a request can have? And of all reserved addresses, what share is ever in memory?


# %%
def run(allocator: str, path: Path) -> list[tuple[int, int]]:
    """Serve all requests; after each step, bytes of memory by the engine's books and by the system."""
    looks = []
    with Recorder(path) as recorder:
        engine = create_engine(
            EngineArgs(
                MODEL_PATH,
                allocator=allocator,
                block_size=BLOCK_SIZE,
                num_gpu_blocks_override=NUM_BLOCKS,
                max_model_len=LONGEST,
                max_num_seqs=4,
                trace=recorder,
            )
        )
        for number, (prompt, count) in enumerate(PROMPTS):
            params = SamplingParams(
                temperature=0, max_tokens=count, ignore_eos=True, output_kind=RequestOutputKind.FINAL_ONLY
            )
            engine.add_request(str(number), engine.tokenizer.encode(prompt), params, prompt=prompt)
        while engine.has_unfinished_requests():
            engine.step()
            storage = engine.executor.storage
            block_bytes = storage.num_bytes // storage.num_blocks
            books = (NUM_BLOCKS - engine.cache.num_free_blocks) * block_bytes
            machine = storage.resident_bytes() if allocator == "virtual_memory" else 0
            looks.append((books, machine))
            reserved = storage.num_bytes
        if allocator == "virtual_memory":
            print(f"{reserved:,} bytes of addresses")
    return looks


looks = run("virtual_memory" if HAS_PAGES else "paged", trace_path(TRACES[0]))
for step in (0, 20, LOOK, 70, len(looks) - 1):
    print(f"after step {step:2d}: books {looks[step][0]:9,} bytes, the system says {looks[step][1]:9,}")
if HAS_PAGES:
    assert all(books == machine for books, machine in looks), "the system does as the books say"
run("paged", trace_path(TRACES[1]))

# %% [markdown]
# ## Two ladders
#
# Now the lesson's own `VirtualKV`. Its machine is made of the real thing: pages are those of a file in
# memory, `map` lets addresses show one of them, as cuMemMap does on a GPU. It follows the paged run, token by
# token, with one layer: so 32 blocks of 16 tokens are 64 pages, 32 for keys and 32 for values.
#
# Predict: request 1 has 61 tokens after step 55. How many entries has its block table? How many has its page
# table? Are its pages side by side in memory? And its addresses?

# %%
lesson = load_module(find_lesson("14").reference, "vattention")


class RealMachine:
    """`reserve`, `map` and `unmap` with the operating system's own page table."""

    def __init__(self, num_pages: int, page_bytes: int) -> None:
        self.num_pages, self.page_bytes = num_pages, page_bytes
        self.page_table: dict[int, int] = {}
        self.memory = os.memfd_create("pages")
        os.ftruncate(self.memory, num_pages * page_bytes)
        library = ctypes.CDLL(None, use_errno=True)
        number, size = ctypes.c_int, ctypes.c_size_t
        library.mmap.argtypes = (ctypes.c_void_p, size, number, number, number, ctypes.c_long)
        library.mmap.restype = ctypes.c_void_p
        self._mmap = library.mmap

    def reserve(self, num_bytes: int) -> int:
        found = self._call(None, num_bytes + self.page_bytes, 0, self._no_memory, -1, 0)
        return -(-found // self.page_bytes) * self.page_bytes

    def map(self, address: int, page: int) -> None:
        access, fixed = mmap.PROT_READ | mmap.PROT_WRITE, 0x10
        flags = mmap.MAP_SHARED | fixed
        self._call(address, self.page_bytes, access, flags, self.memory, page * self.page_bytes)
        self.page_table[address] = page

    def unmap(self, address: int) -> None:
        self._call(address, self.page_bytes, 0, self._no_memory | 0x10, -1, 0)
        del self.page_table[address]

    @property
    def _no_memory(self) -> int:
        return mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000

    def _call(self, *arguments: int | None) -> int:
        found = self._mmap(*arguments)
        if found in (None, ctypes.c_void_p(-1).value):
            raise OSError(ctypes.get_errno(), "mmap refused")
        return int(found)

    def array(self, address: int, num_tokens: int) -> np.ndarray:
        """The tokens at these addresses, as any library sees them: [tokens, heads · head_dim]."""
        memory = (ctypes.c_char * (num_tokens * TOKEN_BYTES)).from_address(address)
        return np.frombuffer(memory, np.float32).reshape(num_tokens, -1)


TOKEN_BYTES = 256


class Moment(NamedTuple):
    """After a step."""

    step: int
    kv: Any
    machine: Any
    slots: dict[int, int]
    """Of each sequence that is there."""
    lengths: dict[int, int]
    """Tokens that are computed."""


def page_table(kv: Any, machine: Any, slot: int) -> tuple[int, ...]:
    """The pages of a slot: keys, values, keys, values …, in the order of their addresses."""
    starts = [kv.address(slot, 0, part) for part in (lesson.KEYS, lesson.VALUES)]
    offsets = range(0, LONGEST * TOKEN_BYTES, machine.page_bytes)
    places = [start + offset for offset in offsets for start in starts]
    return tuple(machine.page_table[place] for place in places if place in machine.page_table)


def follow(num_pages: int, page_bytes: int, name: str) -> Iterator[Moment]:
    """What the paged run does, with `VirtualKV`; its page tables become a trace."""
    trace, slots, lengths = read_trace(trace_path(TRACES[1])), dict[int, int](), dict[int, int]()
    machine = (RealMachine if HAS_PAGES else lesson.Machine)(num_pages, page_bytes)
    kv = lesson.VirtualKV(machine, 1, TOKEN_BYTES, LONGEST, 4)
    header = msgspec.structs.replace(
        trace.header,
        num_blocks=num_pages,
        block_size=page_bytes // TOKEN_BYTES // 2,  # a token has a place in two pages
        config={"allocator": "page tables", "page_bytes": page_bytes, "ranges": ["keys", "values"]},
    )
    with Recorder(trace_path(name)) as recorder:
        recorder.emit(header)
        for step in range(trace.num_steps):
            for event in trace.step_events(step):
                if isinstance(event, BlocksAllocated):
                    continue
                if isinstance(event, BatchPlanned):
                    for seq, start, count in event.items:
                        slot = slots[seq] if seq in slots else slots.setdefault(seq, kv.admit())
                        before = len(page_table(kv, machine, slot))
                        assert kv.grow(slot, start + count)
                        lengths[seq] = start + count
                        if new := page_table(kv, machine, slot)[before:]:
                            recorder.emit(BlocksAllocated(seq, new))
                elif isinstance(event, BlocksFreed):
                    slot = slots.pop(event.seq)
                    event = BlocksFreed(event.seq, page_table(kv, machine, slot))
                    kv.free(slot)
                recorder.emit(event)
            yield Moment(step, kv, machine, slots, lengths)


run_in_pages = follow(2 * NUM_BLOCKS, PAGE_BYTES, TRACES[2])
moment = next(moment for moment in run_in_pages if moment.step == LOOK)
kv, machine, slot, length = moment.kv, moment.machine, moment.slots[1], moment.lengths[1]
blocks = Replay(read_trace(trace_path(TRACES[1]))).state_at(LOOK).tables[1]
pages = page_table(kv, machine, slot)
start = kv.address(slot, 0, lesson.KEYS)
print(f"request 1 has {length} tokens; its block table: {list(blocks)}")
print(f"its page table: keys {list(pages[::2])}, values {list(pages[1::2])}")
print(f"the keys of token 0 are at address {start:#x}; those of token {length - 1}", end=" ")
print(f"{(length - 1) * TOKEN_BYTES:,} bytes behind it: {length - 1} · {TOKEN_BYTES}")

# %% [markdown]
# ## An attention that knows of no table
#
# Keys and values of request 1 are made up, and written to both memories: to plain addresses, and through the
# block table into a pool. `attention` below takes two arrays. For the pool, blocks must be gathered first (a
# paged kernel does that block by block, lesson 13).
#
# Predict: are the two answers equal, or only nearly? And for which of the two are keys copied?


# %%
def attention(query: np.ndarray, keys: np.ndarray, values: np.ndarray) -> np.ndarray:
    scores = keys @ query / np.sqrt(len(query))
    weights = np.exp(scores - scores.max())
    return weights @ values / weights.sum()


if HAS_PAGES:
    random = np.random.default_rng(7)
    pool = np.zeros((2, NUM_BLOCKS, BLOCK_SIZE, TOKEN_BYTES // 4), np.float32)
    plain = [machine.array(kv.address(slot, 0, part), length) for part in (lesson.KEYS, lesson.VALUES)]
    for part, array in enumerate(plain):
        array[:] = random.standard_normal(array.shape)
        for position in range(length):
            pool[part, blocks[position // BLOCK_SIZE], position % BLOCK_SIZE] = array[position]
    gathered = [memory[list(blocks)].reshape(-1, TOKEN_BYTES // 4)[:length] for memory in pool]
    query = random.standard_normal(TOKEN_BYTES // 4).astype(np.float32)
    answers = [attention(query, *arrays) for arrays in (plain, gathered)]
    print(f"plain addresses: {answers[0][:3]} …, block table: {answers[1][:3]} …")
    print(f"equal: {np.array_equal(*answers)}; the plain array is a copy: {plain[0].flags.owndata}")
    del plain, array
*_, moment = run_in_pages  # to its end
print(f"when all are done, {moment.kv.num_free_pages} of {2 * NUM_BLOCKS} pages are free")

# %% [markdown]
# ## What do large pages waste?
#
# A GPU's pages are large: 2 MiB. Here sixteen of the system's pages are taken for one of 64 KiB, and the same
# requests are served in the same memory, 4 × 64 KiB for keys and as much for values.
#
# Predict: a page of 64 KiB has room for 256 tokens. The longest request has 90. What share of the mapped
# bytes holds a token?

# %%
for _ in follow(8, 16 * PAGE_BYTES, TRACES[3]):
    pass
for name in TRACES[2:]:
    trace = make_timeline(read_trace(trace_path(name)))
    size = trace.trace.header.block_size
    filled = sum(record.num_filled_slots for record in trace.records)
    used = sum(record.num_used_blocks * size for record in trace.records)
    page_bytes = trace.trace.header.config["page_bytes"]
    print(
        f"pages of {page_bytes:6,} bytes: {filled / used:.1%} of what is mapped holds a token, over all steps"
    )

# %% [markdown]
# Now models for GPUs, with 2 bytes a number: computed, not measured. Every layer has keys and values of its
# own, so a request has 2 · layers ranges, and a page in each of them.
#
# Predict: Llama 2 7B has 32 layers and 32 KV heads of 128. How many bytes does a request with a single token
# hold, if a page has 2 MiB?

# %%
print("                          page  tokens in a page  a request has at least  wasted at 100, 1,000 tokens")
for name, kv_heads, num_ranges in (("Llama 2 7B, 32 KV heads", 32, 64), ("Llama 3 8B,  8 KV heads", 8, 64)):
    token_bytes = kv_heads * 128 * 2
    for page_bytes in (4 * 1024, 64 * 1024, 2 * 1024**2):
        least = num_ranges * page_bytes * lesson.pages_needed(1, token_bytes, page_bytes)
        waste = [
            1 - count * token_bytes / (page_bytes * lesson.pages_needed(count, token_bytes, page_bytes))
            for count in (100, 1000)
        ]
        print(f"{name} {page_bytes // 1024:5,} KiB {page_bytes / token_bytes:17,.4g}", end="")
        print(f" {least / 1024**2:19,.3g} MiB {waste[0]:19.1%} {waste[1]:6.1%}")

# %% [markdown]
# ## What does a call cost, and who waits for it?
#
# To map a page is a call of the operating system, and the first write to it is another trap. Both can be done
# before the page is needed. And a request that is done may leave its pages where they are: the next one in
# its slot finds them mapped (the paper: deferred reclamation).
#
# Predict: is a step that maps a page slower by a little, or by a lot? Here a step of the engine takes some
# milliseconds.

# %%
if HAS_PAGES:
    count = 500
    machine = RealMachine(count, PAGE_BYTES)
    start = machine.reserve(count * PAGE_BYTES)
    places = range(start, start + count * PAGE_BYTES, PAGE_BYTES)

    def seconds_each(work: Callable[[int], object]) -> float:
        begin = perf_counter()
        for place in places:
            work(place)
        return (perf_counter() - begin) / count

    costs = {
        "map": seconds_each(lambda place: machine.map(place, (place - start) // PAGE_BYTES)),
        "first write": seconds_each(lambda place: ctypes.memset(place, 1, 1)),
        "another write": seconds_each(lambda place: ctypes.memset(place, 1, 1)),
        "unmap": seconds_each(machine.unmap),
    }
    for name, seconds in costs.items():
        print(f"{name:14s} {1e6 * seconds:6.2f} µs")
print(f"\nThe engine's run, step by step: minivllm dashboard {trace_path(TRACES[0])}")
