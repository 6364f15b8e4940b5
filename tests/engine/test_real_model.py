"""The shipped model, end to end: the same tokens as `transformers`, whatever the engine's settings.

In float64, so that a near tie can never be blamed: any difference is a bug.
"""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from minivllm.config import SchedulerConfig
from minivllm.decoding.sampler import Sampler
from minivllm.engine.engine import Engine
from minivllm.executor.torch_executor import TorchExecutor
from minivllm.memory import blocks_needed
from minivllm.model.tiny import MODEL_PATH
from minivllm.model.tokenizer import Tokenizer
from minivllm.sampling_params import SamplingParams
from tests.engine.fakes import POLICIES

TEXTS = [
    "Question: What is a KV cache?\nAnswer:",
    "Once upon a time,",
    "问：什么是KV缓存？\n答：",
    "The scheduler hands out a token budget at every step. " * 4,
    "从前，",
    "x",
]
COUNT = 12


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.from_folder(MODEL_PATH)


@pytest.fixture(scope="module")
def prompts(tokenizer):
    return [tokenizer.encode(text) for text in TEXTS]


@pytest.fixture(scope="module")
def expected(prompts):
    """What `transformers` generates for each prompt alone, greedily."""
    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(MODEL_PATH, dtype=torch.float64)
    outputs = []
    for prompt in prompts:
        ids = model.generate(
            torch.tensor([prompt]),
            max_new_tokens=COUNT,
            min_new_tokens=COUNT,
            do_sample=False,
            eos_token_id=None,
        )
        outputs.append(ids[0, len(prompt) :].tolist())
    return outputs


def make_engine(block_size=16, num_blocks=256, **limits):
    executor = TorchExecutor.from_folder(
        MODEL_PATH, dtype="float64", block_size=block_size, num_blocks=num_blocks, device="cpu"
    )
    config = SchedulerConfig(num_blocks=num_blocks, block_size=block_size, **limits)
    vocab_size = executor.config.vocab_size
    return Engine(config, executor, Sampler(vocab_size), vocab_size=vocab_size)


def generate(engine, prompts, params, order=None):
    for number in order or range(len(prompts)):
        engine.add_request(str(number), prompts[number], params[number])
    outputs = {}
    while engine.has_unfinished_requests():
        outputs |= {output.request_id: output.outputs[0].token_ids for output in engine.step()}
    engine.check_invariants()
    return [outputs[str(number)] for number in range(len(prompts))]


def greedy(**more):
    return SamplingParams(temperature=0, max_tokens=COUNT, ignore_eos=True, **more)


@st.composite
def engines(draw):
    """Random settings, some with a pool in which hardly two requests fit at once."""
    block_size = draw(st.sampled_from([1, 7, 16]))
    least = blocks_needed(100 + COUNT, block_size)
    return {
        "block_size": block_size,
        "num_blocks": least + draw(st.integers(0, least)),
        "max_num_seqs": draw(st.integers(1, 6)),
        "scheduling_policy": draw(st.sampled_from(POLICIES)),
        "max_num_batched_tokens": draw(st.sampled_from([3, 17, 64, 2048])),
        "long_prefill_token_threshold": draw(st.sampled_from([0, 5])),
    }


@settings(max_examples=settings.default.max_examples // 5)
@given(settings_=engines(), order=st.permutations(range(len(TEXTS))))
def test_greedy_tokens_are_those_of_transformers_whatever_the_settings(prompts, expected, settings_, order):
    assert max(map(len, prompts)) <= 100
    engine = make_engine(**settings_)
    assert generate(engine, prompts, [greedy()] * len(prompts), order) == expected


@settings(max_examples=settings.default.max_examples // 8)
@given(settings_=engines(), order=st.permutations(range(len(TEXTS))))
def test_sampled_tokens_depend_on_the_seed_and_not_on_company_or_memory(prompts, settings_, order):
    params = [
        SamplingParams(temperature=0.9, top_p=0.95, seed=number, max_tokens=COUNT, ignore_eos=True)
        for number in range(len(prompts))
    ]
    alone = [generate(make_engine(), [prompt], [one])[0] for prompt, one in zip(prompts, params, strict=True)]
    assert generate(make_engine(**settings_), prompts, params, order) == alone


def test_prompt_logprobs_are_those_of_transformers(prompts):
    model = AutoModelForCausalLM.from_pretrained(MODEL_PATH, dtype=torch.float64)
    prompt = prompts[3]
    engine = make_engine(max_num_batched_tokens=7)
    engine.add_request("it", prompt, greedy(prompt_logprobs=2))
    while engine.has_unfinished_requests():
        (output, *_) = engine.step() or [None]
    with torch.inference_mode():
        logprobs = model(torch.tensor([prompt])).logits[0].log_softmax(dim=-1)
    for position in range(1, len(prompt)):
        entry = output.prompt_logprobs[position]
        assert entry[prompt[position]].logprob == pytest.approx(
            float(logprobs[position - 1, prompt[position]])
        )
        best = int(logprobs[position - 1].argmax())
        assert entry[best].rank == 1
