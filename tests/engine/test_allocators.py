"""Every memory runs the same requests, with the same texts, and the trace can be replayed."""

import pytest

from minivllm import LLM, SamplingParams
from minivllm.memory.allocators import ALLOCATORS
from minivllm.model.tiny import MODEL_PATH
from minivllm.trace.recorder import Recorder
from minivllm.trace.replay import ReplayState
from tests import profiles

PROMPTS = ["Once upon a time,", "Question: What is a KV cache?\nAnswer:", "从前，", "The " * 40]
KINDS = {
    "greedy": SamplingParams(temperature=0, max_tokens=24),
    "sampled": SamplingParams(n=3, seed=2, temperature=1.1, max_tokens=24),
    "beams": SamplingParams(n=3, use_beam_search=True, max_tokens=20),
}


def make(**more):
    return LLM(MODEL_PATH, dtype="float64", max_model_len=128, max_num_seqs=16, **more)


def texts(llm, params):
    outputs = llm.generate(PROMPTS, params, use_tqdm=False)
    return [[completion.text for completion in output.outputs] for output in outputs]


@pytest.fixture(scope="module")
def expected():
    llm = make(num_gpu_blocks_override=256)
    return {name: texts(llm, params) for name, params in KINDS.items()}


CASES = [(name, block_size) for name in ALLOCATORS for block_size in (1, 16)]


@pytest.mark.parametrize(
    ("allocator", "block_size"),
    profiles.by_day([case for case in CASES if case[1] == 1 or case[0] == "paged"], CASES),
)
def test_every_allocator_says_the_same(expected, allocator, block_size):
    recorder = Recorder()
    llm = make(
        allocator=allocator,
        block_size=block_size,
        num_gpu_blocks_override=480 // block_size,
        trace=recorder,
        watermark=0,
    )
    state, num_applied = ReplayState(recorder.events[0]), 1
    for kind, params in KINDS.items():
        assert texts(llm, params) == expected[kind], kind
        llm.engine.check_invariants()
        for event in recorder.events[num_applied:]:
            state.apply(event)
        num_applied = len(recorder.events)
        assert state.snapshot() == llm.engine.snapshot()
        assert llm.engine.cache.num_free_blocks == llm.engine.config.num_blocks, "every block comes back"


@pytest.mark.parametrize("allocator", ["contiguous", "oracle", "buddy", "virtual_memory"])
def test_what_can_never_fit_is_refused_with_the_numbers(allocator):
    llm = make(allocator=allocator, num_gpu_blocks_override=8)
    params = SamplingParams(n=2, max_tokens=110)
    with pytest.raises(
        ValueError, match=r"the request can never fit: .* for 2 sequences need .* the pool has 8"
    ):
        llm.generate("Once upon a time,", params, use_tqdm=False)
    assert not llm.engine.has_unfinished_requests()


def test_a_memory_that_holds_no_reservation_is_refused_at_once():
    with pytest.raises(ValueError, match="num_blocks must be at least 8, because every sequence reserves"):
        make(allocator="contiguous", num_gpu_blocks_override=6)
