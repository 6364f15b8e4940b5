"""Beam search through the whole engine, against transformers: the same sequences, the same scores.

Forked block tables, blocks copied before a write, pruned beams whose blocks are used again: if one of them
went wrong, some beam would read another one's past, and its scores would differ. The models compute in
float64, so that only a bug can make a difference; cases are fixed, so that no near tie comes by chance.
"""

import random

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen3Config

from minivllm import LLM, SamplingParams
from minivllm.model.tiny import MODEL_PATH
from minivllm.sampling_params import BeamSearchParams
from tests import profiles
from tests.decoding.test_beam_search import PENALTIES, their_search

TEXTS = ["Once upon a time,", "Question: What is a KV cache?\nAnswer:", "从前，", "The"]
VOCAB_SIZE = 96


@pytest.fixture(scope="module")
def shipped():
    model = AutoModelForCausalLM.from_pretrained(MODEL_PATH, dtype=torch.float64).eval()
    with LLM(MODEL_PATH, dtype="float64", block_size=4, num_gpu_blocks_override=512) as llm:
        yield llm, model


@pytest.fixture(scope="module", params=profiles.by_day(["qwen3"], ["llama", "qwen3"]))
def checkpoint(request, tmp_path_factory):
    """A random checkpoint in which an eighth of the vocabulary ends a sequence: (folder, model, endings)."""
    endings = random.Random(0).sample(range(VOCAB_SIZE), VOCAB_SIZE // 8)
    config = {"llama": LlamaConfig, "qwen3": Qwen3Config}[request.param](
        vocab_size=VOCAB_SIZE,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=128,
        initializer_range=0.3,
        bos_token_id=None,
        eos_token_id=endings,
        pad_token_id=None,
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).double().eval()
    model.config.dtype = torch.float64
    folder = tmp_path_factory.mktemp(request.param)
    model.save_pretrained(folder)
    return folder, model, endings


def open_llm(folder, **settings):
    return LLM(folder, dtype="float64", skip_tokenizer_init=True, **settings)


def random_requests(count, endings, seed=0):
    """Prompts, and the search that each of them asks for. Some begin alike."""
    rng = random.Random(seed)
    start = [rng.randrange(VOCAB_SIZE) for _ in range(9)]
    prompts, searches = [], []
    for _ in range(count):
        own = [rng.randrange(VOCAB_SIZE) for _ in range(rng.randint(1, 12))]
        prompts.append(start[: rng.choice([0, 5, 9])] + own)
        searches.append(
            dict(
                beam_width=rng.randint(1, 8),
                max_tokens=rng.randint(1, 14),
                length_penalty=rng.choice(PENALTIES),
                early_stopping=rng.choice([False, True, "never"]),
                eos_token_ids=endings,
            )
        )
    return prompts, searches


def as_sampling_params(search):
    """The older spelling, which knows `early_stopping` as well."""
    return SamplingParams(
        use_beam_search=True,
        best_of=search["beam_width"],
        n=search["beam_width"],
        temperature=0,
        max_tokens=search["max_tokens"],
        length_penalty=search["length_penalty"],
        early_stopping=search["early_stopping"],
    )


@torch.inference_mode()
def logprob_of(model, prompt, tokens):
    """What the tokens' log-probabilities sum up to if all is computed from nothing, without a cache."""
    logits = model(torch.tensor([[*prompt, *tokens]]), use_cache=False).logits[0, len(prompt) - 1 : -1]
    return float(logits.log_softmax(dim=-1).gather(1, torch.tensor(tokens).unsqueeze(1)).sum())


def assert_found_as_transformers(model, prompt, search, found, tolerance=1e-9):
    """`found` are (generated tokens, sum of log-probabilities, score), best first."""
    expected = their_search(model, prompt, **search)
    assert [tokens for tokens, _, _ in found] == [tokens for tokens, _ in expected]
    # It adds up in float32, which is coarse where the sum is near 0; the model itself tells precisely.
    theirs = [score for _, score in expected]
    assert [score for _, _, score in found] == pytest.approx(theirs, rel=1e-5, abs=1e-3)
    for tokens, cum_logprob, score in found:
        assert cum_logprob == pytest.approx(logprob_of(model, prompt, tokens), rel=tolerance, abs=tolerance)
        assert score == pytest.approx(cum_logprob / len(tokens) ** search["length_penalty"])


def as_found(output):
    return [(tuple(item.token_ids), item.cumulative_logprob, item.score) for item in output.outputs]


def assert_generates_as_transformers(llm, model, prompts, searches):
    """Serve all at once; returns what came back."""
    given = [{"prompt_token_ids": prompt} for prompt in prompts]
    outputs = llm.generate(given, list(map(as_sampling_params, searches)), use_tqdm=False)
    for prompt, search, output in zip(prompts, searches, outputs, strict=True):
        assert_found_as_transformers(model, prompt, search, as_found(output))
    return outputs


def beam_search(llm, prompts, beam_width, max_tokens, length_penalty=1.0):
    """(prompt, search, what `LLM.beam_search` found) for each prompt."""
    params = BeamSearchParams(beam_width=beam_width, max_tokens=max_tokens, length_penalty=length_penalty)
    search = dict(
        beam_width=beam_width,
        max_tokens=max_tokens,
        length_penalty=length_penalty,
        early_stopping=False,
        eos_token_ids=[2],
    )
    outputs = llm.beam_search([{"prompt_token_ids": prompt} for prompt in prompts], params)
    return [(prompt, search, output.sequences) for prompt, output in zip(prompts, outputs, strict=True)]


def as_generated(sequences, prompt):
    for item in sequences:
        assert item.tokens[: len(prompt)] == prompt
    return [(tuple(item.tokens[len(prompt) :]), item.cum_logprob, item.score) for item in sequences]


@pytest.mark.parametrize("beam_width", profiles.by_day([1, 3, 8], range(1, 9)))
def test_the_shipped_model_finds_the_same_sequences(shipped, beam_width):
    llm, model = shipped
    tokenizer = llm.get_tokenizer()
    prompts = [tokenizer.encode(text) for text in TEXTS]
    length_penalty = PENALTIES[beam_width % len(PENALTIES)]
    for prompt, search, sequences in beam_search(llm, prompts, beam_width, 16, length_penalty):
        assert_found_as_transformers(model, prompt, search, as_generated(sequences, prompt))
        assert [item.text for item in sequences] == [
            tokenizer.decode(item.tokens, skip_special_tokens=True) for item in sequences
        ]


@pytest.mark.parametrize("beam_width", profiles.by_day([5], [2, 5, 8]))
def test_in_single_precision_too(beam_width):
    model = AutoModelForCausalLM.from_pretrained(MODEL_PATH, dtype=torch.float32).eval()
    with LLM(MODEL_PATH, dtype="float32", num_gpu_blocks_override=64) as llm:
        prompts = [llm.get_tokenizer().encode(TEXTS[1])]
        for prompt, search, sequences in beam_search(llm, prompts, beam_width, 12):
            found = as_generated(sequences, prompt)
            assert_found_as_transformers(model, prompt, search, found, tolerance=1e-4)


@pytest.mark.parametrize("block_size", profiles.by_day([3], [1, 3, 16]))
def test_random_models_find_the_same_whatever_the_search(checkpoint, block_size):
    folder, model, endings = checkpoint
    prompts, searches = random_requests(20, endings, seed=block_size)
    with open_llm(folder, block_size=block_size, num_gpu_blocks_override=2000) as llm:
        assert_generates_as_transformers(llm, model, prompts, searches)


@pytest.mark.parametrize("prefix_cache", ["hash", "radix"])
def test_a_prefix_cache_changes_nothing(checkpoint, prefix_cache):
    folder, model, endings = checkpoint
    prompts, searches = random_requests(12, endings, seed=5)
    with open_llm(folder, block_size=2, num_gpu_blocks_override=1000, prefix_cache=prefix_cache) as llm:
        assert_generates_as_transformers(llm, model, prompts, searches)
        again = assert_generates_as_transformers(llm, model, prompts, searches)
    assert any(output.num_cached_tokens for output in again), "the second time something was in the cache"


@pytest.mark.parametrize("swap_space", [0, 0.01], ids=["recompute", "swap"])
def test_preemption_changes_nothing(checkpoint, swap_space):
    folder, model, endings = checkpoint
    prompts, searches = random_requests(12, endings, seed=7)
    searches = [{**search, "beam_width": 4, "max_tokens": 14} for search in searches]
    # One search can need the prompt's blocks and 4 × 7 more; two of them never have room at once.
    with open_llm(folder, block_size=2, num_gpu_blocks_override=44, swap_space=swap_space) as llm:
        outputs = assert_generates_as_transformers(llm, model, prompts, searches)
    assert any(output.metrics and output.metrics.num_preemptions for output in outputs)


def test_other_requests_in_the_batch_change_nothing(checkpoint):
    folder, model, endings = checkpoint
    prompts, searches = random_requests(8, endings, seed=11)
    greedy = SamplingParams(temperature=0, max_tokens=10, ignore_eos=True)
    sampling = SamplingParams(n=3, seed=1, max_tokens=10, ignore_eos=True)
    given = [{"prompt_token_ids": prompt} for prompt in prompts]
    with open_llm(folder, block_size=4, num_gpu_blocks_override=1000, max_num_batched_tokens=48) as llm:
        alone = [
            [list(item.token_ids) for item in llm.generate(given[0], params, use_tqdm=False)[0].outputs]
            for params in (greedy, sampling)
        ]
        outputs = llm.generate(
            [given[0], *given, given[0]],
            [greedy, *map(as_sampling_params, searches), sampling],
            use_tqdm=False,
        )
    assert [
        [list(item.token_ids) for item in output.outputs] for output in (outputs[0], outputs[-1])
    ] == alone
    for prompt, search, output in zip(prompts, searches, outputs[1:-1], strict=True):
        assert_found_as_transformers(model, prompt, search, as_found(output))
