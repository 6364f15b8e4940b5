"""Speculation from the outside: the same outputs in fewer steps, whatever else is asked for.

On the plain backend in float64, so that a near tie can never be blamed on the number of rows.
"""

import re

import pytest

from minivllm import LLM, BeamSearchParams, SamplingParams
from minivllm.model.tiny import DRAFT_MODEL_PATH, MODEL_PATH
from minivllm.structured_outputs import StructuredOutputsParams

ALWAYS = {"num_speculative_tokens": 4, "disable_by_batch_size": 1000}
"""As many drafts as there may be, whatever measured times say."""
NGRAM = {"method": "ngram", "prompt_lookup_min": 1, "prompt_lookup_max": 3, **ALWAYS}
DRAFT = {"model": DRAFT_MODEL_PATH, **ALWAYS}
QUESTION = "Question: What is a KV cache?\nAnswer:"
PROMPTS = [QUESTION, "Once upon a time", "1, 2, 3, 4, 1, 2, 3, 4, 1, 2, 3, 4, 1, 2,"]
PATTERN = "(block|page)( (block|page)){5}"
CHOICES = StructuredOutputsParams(regex=PATTERN)


def make(speculative_config=None, **more):
    return LLM(
        MODEL_PATH,
        dtype="float64",
        attention_backend="torch",
        num_gpu_blocks_override=80,
        speculative_config=speculative_config,
        **more,
    )


@pytest.fixture(scope="module")
def llms():
    return {
        "plain": make(),
        "ngram": make(NGRAM),
        "draft": make(DRAFT, prefix_cache="radix", swap_space=0.01),
    }


def outputs_of(llm, params):
    return [
        [(o.text, list(o.token_ids), o.finish_reason, o.stop_reason) for o in output.outputs]
        for output in llm.generate(PROMPTS, params, use_tqdm=False)
    ]


GREEDY = {
    "plain": {"max_tokens": 40},
    "stop string": {"max_tokens": 40, "stop": ["ache", " day"]},
    "penalties": {"max_tokens": 20, "repetition_penalty": 1.2, "frequency_penalty": 0.2, "min_tokens": 15},
    "bad words": {"max_tokens": 20, "bad_words": ["cache", "time"], "logit_bias": {17: 3.0}},
    "log-probabilities": {"max_tokens": 12, "logprobs": 2, "prompt_logprobs": 1},
    "structured": {"max_tokens": 30, "structured_outputs": CHOICES},
}


@pytest.mark.parametrize("method", ["ngram", "draft"])
@pytest.mark.parametrize("case", GREEDY)
def test_greedy_outputs_are_the_very_same(llms, method, case):
    params = SamplingParams(temperature=0, **GREEDY[case])
    assert outputs_of(llms[method], params) == outputs_of(llms["plain"], params)


@pytest.mark.parametrize(
    "more", [{"n": 2}, {"top_p": 0.9, "top_k": 30, "structured_outputs": CHOICES}], ids=str
)
def test_with_n_grams_even_what_is_drawn_is_the_same(llms, more):
    params = SamplingParams(temperature=0.9, seed=7, max_tokens=24, **more)
    assert outputs_of(llms["ngram"], params) == outputs_of(llms["plain"], params)


def test_what_is_drawn_with_a_draft_model_has_its_structure_and_depends_on_its_seed_alone(llms):
    params = SamplingParams(temperature=0.9, seed=7, max_tokens=30, structured_outputs=CHOICES)
    first = outputs_of(llms["draft"], params)
    assert first == outputs_of(llms["draft"], params)
    assert all(re.fullmatch(PATTERN, text) for ((text, *_),) in first)


def test_drafts_save_steps(llms):
    params = SamplingParams(temperature=0, max_tokens=40)
    steps = {}
    for name, llm in llms.items():
        before = llm.engine.num_steps
        llm.generate(QUESTION, params, use_tqdm=False)
        steps[name] = llm.engine.num_steps - before
    assert steps["draft"] < 0.6 * steps["plain"] and steps["ngram"] <= steps["plain"]


def test_a_beam_search_is_refused_by_name(llms):
    with pytest.raises(ValueError, match="use_beam_search must be False where speculative_config is set"):
        llms["ngram"].generate(
            QUESTION, SamplingParams(n=2, use_beam_search=True, max_tokens=4), use_tqdm=False
        )
    with pytest.raises(ValueError, match="beam_search cannot be used where speculative_config is set"):
        llms["ngram"].beam_search(QUESTION, BeamSearchParams(beam_width=2, max_tokens=4))
