"""Several outputs, beams, prefix caches and swapping, as users of `LLM` meet them, on the shipped model.

In float64, so that a near tie can never be blamed for a difference.
"""

import pytest

from minivllm import LLM, BeamSearchParams, SamplingParams
from minivllm.model.tiny import MODEL_PATH
from minivllm.trace.events import BlocksShared, BlocksSwappedIn, RequestPreempted
from minivllm.trace.recorder import Recorder

STORY = "Once upon a time,"
SHARED = "The scheduler hands out a token budget at every step, and nobody overtakes in the queue. " * 2
QUESTIONS = [SHARED + "\nQuestion: What is " + what for what in ("a block?", "a block table?", "paging?")]


def make(**more):
    return LLM(MODEL_PATH, **{"dtype": "float64", "num_gpu_blocks_override": 128, **more})


def texts(outputs):
    return [[completion.text for completion in output.outputs] for output in outputs]


@pytest.fixture(scope="module")
def llm():
    return make()


def test_n_outputs_are_what_n_requests_with_their_seeds_say(llm):
    params = SamplingParams(n=4, seed=11, temperature=1.2, max_tokens=20)
    (output,) = llm.generate(STORY, params, use_tqdm=False)
    assert [completion.index for completion in output.outputs] == [0, 1, 2, 3]
    for index, completion in enumerate(output.outputs):
        alone = SamplingParams(seed=11 + index, temperature=1.2, max_tokens=20)
        (single,) = llm.generate(STORY, alone, use_tqdm=False)
        assert (completion.text, completion.token_ids) == (
            single.outputs[0].text,
            single.outputs[0].token_ids,
        )
        assert completion.finish_reason == single.outputs[0].finish_reason
    assert len({completion.text for completion in output.outputs}) > 1, "seeds differ, so outputs do"


def test_without_a_seed_the_outputs_differ_too_and_repeat_with_the_engine(llm):
    params = SamplingParams(n=3, temperature=1.5, max_tokens=12)
    first, second = (texts(make(seed=5).generate(STORY, params, use_tqdm=False)) for _ in range(2))
    assert first == second and len(set(first[0])) == 3


def test_the_best_of_several_come_first(llm):
    params = SamplingParams(n=2, best_of=5, seed=3, temperature=1.5, max_tokens=10)
    (best,) = llm.generate(STORY, params, use_tqdm=False)
    everything = SamplingParams(n=5, seed=3, temperature=1.5, max_tokens=10, logprobs=0)
    (full,) = llm.generate(STORY, everything, use_tqdm=False)
    likeliest = sorted(full.outputs, key=lambda item: -item.cumulative_logprob)[:2]
    assert texts([best])[0] == [completion.text for completion in likeliest]
    assert all(completion.logprobs is None for completion in best.outputs)


def test_beam_search_has_vllms_shape(llm):
    first, second = llm.beam_search([STORY, {"prompt": "从前，"}], BeamSearchParams(3, max_tokens=12))
    assert len(first.sequences) == len(second.sequences) == 3
    prompt = llm.get_tokenizer().encode(STORY)
    for sequence in first.sequences:
        assert sequence.tokens[: len(prompt)] == prompt
        assert sequence.text.startswith(STORY)
    assert [s.score for s in first.sequences] == sorted((s.score for s in first.sequences), reverse=True)


def test_the_older_spelling_searches_too(llm):
    params = SamplingParams(use_beam_search=True, best_of=4, n=2, temperature=0, max_tokens=12)
    (old,) = llm.generate(STORY, params, use_tqdm=False)
    (new,) = llm.beam_search(STORY, BeamSearchParams(4, max_tokens=12))
    prompt = llm.get_tokenizer().encode(STORY)
    assert [[*prompt, *c.token_ids] for c in old.outputs] == [s.tokens for s in new.sequences[:2]]
    assert [c.score for c in old.outputs] == [s.score for s in new.sequences[:2]]


def test_temperature_sharpens_or_flattens_a_beam_search(llm):
    plain, same, flat = (
        llm.beam_search(STORY, BeamSearchParams(2, max_tokens=6, temperature=t))[0].sequences[0].cum_logprob
        for t in (0.0, 1.0, 3.0)
    )
    assert plain == same and flat < plain


@pytest.mark.parametrize("cache", ["hash", "radix"])
def test_a_prefix_is_computed_once_and_changes_no_token(llm, cache):
    params = SamplingParams(temperature=0, max_tokens=10)
    caching = make(prefix_cache=cache)
    outputs = caching.generate([*QUESTIONS, QUESTIONS[0], QUESTIONS[0]], params, use_tqdm=False)
    expected = llm.generate([*QUESTIONS, QUESTIONS[0], QUESTIONS[0]], params, use_tqdm=False)
    assert texts(outputs) == texts(expected)
    found = [output.num_cached_tokens for output in outputs]
    assert found[0] == 0 and all(count >= 32 for count in found[1:]), "in the same step, already"
    (again,) = caching.generate(QUESTIONS[1], params, use_tqdm=False)
    assert again.num_cached_tokens == (len(again.prompt_token_ids) - 1) // 16 * 16
    assert caching.reset_prefix_cache()
    (fresh,) = caching.generate(QUESTIONS[1], params, use_tqdm=False)
    assert fresh.num_cached_tokens == 0


def test_vllms_flag_turns_the_hash_cache_on():
    assert make(enable_prefix_caching=True).engine.config.prefix_cache == "hash"
    assert make(enable_prefix_caching=False).engine.config.prefix_cache is None


@pytest.mark.parametrize("cache", ["hash", "radix"])
def test_beams_share_a_prefix_hit(llm, cache):
    recorder = Recorder()
    caching = make(prefix_cache=cache, trace=recorder)
    params = BeamSearchParams(4, max_tokens=10)
    found = [caching.beam_search(QUESTIONS[0], params)[0] for _ in range(2)]
    (expected,) = llm.beam_search(QUESTIONS[0], params)
    for output in found:
        assert [s.tokens for s in output.sequences] == [s.tokens for s in expected.sequences]
    assert any(isinstance(event, BlocksShared) and event.source == "cache" for event in recorder.events)


@pytest.mark.parametrize("mode", ["recompute", "swap"])
@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(temperature=0, max_tokens=40, ignore_eos=True),
        SamplingParams(n=3, seed=1, temperature=1.2, max_tokens=40, ignore_eos=True),
        SamplingParams(n=3, use_beam_search=True, max_tokens=30, ignore_eos=True),
    ],
    ids=["greedy", "sampled", "beams"],
)
def test_pressure_changes_no_text(llm, params, mode):
    recorder = Recorder()
    prompts = [STORY, *QUESTIONS]
    tight = make(
        num_gpu_blocks_override=16,
        swap_space=0.01 if mode == "swap" else 0,
        preemption_mode=mode,
        trace=recorder,
        watermark=0,
    )
    outputs = tight.generate(prompts, params, use_tqdm=False)
    assert texts(outputs) == texts(llm.generate(prompts, params, use_tqdm=False))
    modes = {event.mode for event in recorder.events if isinstance(event, RequestPreempted)}
    assert modes == {mode}
    assert any(isinstance(event, BlocksSwappedIn) for event in recorder.events) == (mode == "swap")
    tight.engine.check_invariants()
    assert tight.engine.cache.num_free_blocks == 16


@pytest.mark.parametrize(
    ("prompt", "params", "message"),
    [
        (STORY, {"n": 200}, r"n \(best_of\) must be at most max_num_seqs \(128\).* got 200"),
        (STORY, {"n": 40, "max_tokens": 2000}, "40 sequences need .* blocks of 16 tokens, the pool has 128"),
        (STORY, {"use_beam_search": True, "best_of": 5000}, r"must be at most 4096, the vocabulary's size"),
        ({"prompt": STORY, "cache_salt": 7}, {}, "cache_salt must be a string that is not empty, got 7"),
    ],
)
def test_what_can_never_be_served_is_refused_and_the_engine_serves_on(llm, prompt, params, message):
    with pytest.raises(ValueError, match=message):
        llm.generate([STORY, prompt], SamplingParams(**params), use_tqdm=False)
    assert not llm.engine.has_unfinished_requests()
    assert llm.generate(STORY, SamplingParams(max_tokens=2), use_tqdm=False)[0].finished


def test_beam_search_wants_its_own_params(llm):
    with pytest.raises(ValueError, match="params must be a BeamSearchParams"):
        llm.beam_search(STORY, SamplingParams())
