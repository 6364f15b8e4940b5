"""A KV cache in 8 bits, as users of `LLM` meet it: no token depends on company, on room, or on luck.

What a slot stands for depends on its token alone, so a request must get the same tokens alone and in a batch,
after a swap or a recomputation, from a prefix cache, after forks, in chunks of any size. In float64, so that
a near tie can never be blamed for a difference; the shipped model, and the plain backend.
"""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minivllm import LLM, BeamSearchParams, SamplingParams
from minivllm.model.tiny import MODEL_PATH
from minivllm.trace.events import BlockCopied, BlocksSwappedIn, RequestPreempted, TraceHeader
from minivllm.trace.recorder import Recorder

SHARED = "The scheduler hands out a token budget at every step, and nobody overtakes in the queue. "
PROMPTS = ["Once upon a time,", SHARED + "What is a block?", SHARED + "What is paging?", SHARED + "Why?"]
GREEDY = SamplingParams(temperature=0, max_tokens=24, ignore_eos=True)
SAMPLED = SamplingParams(n=3, seed=1, temperature=1.2, max_tokens=24, ignore_eos=True)
BEAMS = SamplingParams(n=3, use_beam_search=True, temperature=0, max_tokens=20, ignore_eos=True)
KINDS = ["int8_per_token_head", "fp8"]


def make(kind, **more):
    settings = {"dtype": "float64", "attention_backend": "torch", "num_gpu_blocks_override": 128}
    return LLM(MODEL_PATH, **{**settings, "kv_cache_dtype": kind, **more})


def tokens(output):
    return [completion.token_ids for completion in output.outputs]


@pytest.fixture(scope="module")
def alone():
    """What each request says when it is the only one, in an engine with plenty of room."""
    said = {}
    for kind in KINDS:
        llm = make(kind)
        for prompt in PROMPTS:
            for params in (GREEDY, SAMPLED, BEAMS):
                (output,) = llm.generate(prompt, params, use_tqdm=False)
                said[kind, prompt, id(params)] = tokens(output)
    return said


engines = st.fixed_dictionaries(
    {
        "block_size": st.sampled_from([3, 16]),
        "prefix_cache": st.sampled_from([None, "hash", "radix"]),
        "swap_space": st.sampled_from([0, 0.01]),
        "max_num_batched_tokens": st.sampled_from([5, 64, 2048]),
        "scheduling_policy": st.sampled_from(["fcfs", "tail(tokens_left=8)"]),
        "max_num_seqs": st.sampled_from([8, 64]),
        "watermark": st.just(0),
    }
)


@settings(max_examples=max(8, settings.default.max_examples // 10), deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    engine=engines,
    room=st.sampled_from([220, 800]),
    requests=st.lists(
        st.tuples(st.sampled_from(PROMPTS), st.sampled_from([GREEDY, SAMPLED, BEAMS])), min_size=2, max_size=6
    ),
)
def test_a_request_says_the_same_in_any_company(alone, kind, engine, room, requests):
    llm = make(kind, num_gpu_blocks_override=room // engine["block_size"], **engine)
    prompts, params = (list(column) for column in zip(*requests, strict=True))
    outputs = llm.generate(prompts, params, use_tqdm=False)
    for (prompt, own), output in zip(requests, outputs, strict=True):
        assert tokens(output) == alone[kind, prompt, id(own)]
    llm.engine.check_invariants()


@pytest.mark.parametrize("kind", KINDS)
def test_the_property_above_meets_copies_swaps_and_hits(alone, kind):
    recorder = Recorder()
    llm = make(
        kind, num_gpu_blocks_override=16, swap_space=0.01, prefix_cache="hash", watermark=0, trace=recorder
    )
    outputs = llm.generate(PROMPTS, SAMPLED, use_tqdm=False)
    outputs += llm.generate(PROMPTS, BEAMS, use_tqdm=False)
    for prompt, params, output in zip(PROMPTS * 2, [SAMPLED] * 4 + [BEAMS] * 4, outputs, strict=True):
        assert tokens(output) == alone[kind, prompt, id(params)]
    for happened in (RequestPreempted, BlocksSwappedIn, BlockCopied):
        assert any(isinstance(event, happened) for event in recorder.events), happened
    assert any(output.num_cached_tokens for output in outputs)


@pytest.mark.parametrize("method", ["ngram", "draft_model"])
def test_speculation_changes_no_token(alone, method):
    """A draft model keeps its own keys and values in its own type; ours are rewritten where it was wrong."""
    config = {"method": method, "num_speculative_tokens": 3}
    config |= {"model": str(MODEL_PATH)} if method == "draft_model" else {}
    llm = make("int8_per_token_head", speculative_config=config)
    for prompt, output in zip(PROMPTS, llm.generate(PROMPTS, GREEDY, use_tqdm=False), strict=True):
        assert tokens(output) == alone["int8_per_token_head", prompt, id(GREEDY)]


def test_beam_search_of_its_own_and_a_prefix_hit_agree():
    llm = make("int8_per_token_head", prefix_cache="radix")
    found = [llm.beam_search(PROMPTS[1], BeamSearchParams(4, max_tokens=10))[0] for _ in range(2)]
    assert [s.tokens for s in found[0].sequences] == [s.tokens for s in found[1].sequences]


def test_an_engine_says_what_its_cache_takes():
    recorder = Recorder()
    bytes_of = {}
    for kind in ("auto", *KINDS):
        llm = make(kind, dtype="bfloat16", num_gpu_blocks_override=None, kv_cache_memory_bytes=10**6)
        executor = llm.engine.executor
        bytes_of[kind] = executor.storage.bytes_per_token
        assert llm.engine.config.num_blocks == 10**6 // (16 * bytes_of[kind])
        assert executor.model_shape.kv_bytes_per_token == bytes_of[kind]
    shape = executor.model_shape
    heads = 2 * shape.num_layers * shape.num_kv_heads
    assert [bytes_of[kind] for kind in ("auto", *KINDS)] == [
        heads * bytes for bytes in (2 * shape.head_dim, shape.head_dim + 4, shape.head_dim)
    ]
    make("fp8_e4m3", trace=recorder)
    (header,) = (event for event in recorder.events if isinstance(event, TraceHeader))
    assert header.config["kv_cache_dtype"] == "fp8"


def test_what_cannot_be_is_refused_by_name():
    listed = r"kv_cache_dtype must be one of 'auto', 'int8_per_token_head', 'fp8', 'fp8_e4m3', got 'int4'"
    with pytest.raises(ValueError, match=listed):
        make("int4")
    with pytest.raises(ValueError, match="must be 'auto' where allocator is 'virtual_memory', got 'fp8'"):
        make("fp8", allocator="virtual_memory")
