"""Precision by phase: which weights a token is computed with follows from its place in its own sequence.

`split_by_phase` is held to the rule on random plans; engines are held to it from outside: no schedule, cache
or company may change a text, and prompts must be exactly those of the model's own weights.
"""

import json
import shutil
from array import array

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minivllm import LLM, SamplingParams
from minivllm.executor.attention.choose import backend_factory
from minivllm.executor.attention.torch_backend import TorchAttention
from minivllm.executor.phases import split_by_phase
from minivllm.executor.torch_executor import TorchExecutor
from minivllm.model.quantization.names import ROUNDINGS
from minivllm.model.tiny import MODEL_PATH
from minivllm.scheduling.plan import ScheduledSequence, StepPlan

PROMPTS = ("Once upon a time there was a fox", "The little", "Lily went to the park and saw a dog. " * 3)
DECODED = SamplingParams(temperature=0, max_tokens=24, ignore_eos=True)


@st.composite
def plans(draw):
    scheduled = []
    for seq_id in range(draw(st.integers(0, 5))):
        start, count = draw(st.integers(0, 9)), draw(st.integers(1, 6))
        tokens = array("i", range(100 * seq_id + start, 100 * seq_id + start + count))
        prompt = draw(st.none() | st.integers(1, 16))
        wanted = draw(st.integers(0, count))
        scheduled.append(
            ScheduledSequence(seq_id, start, tokens, array("i", range(9)), wanted, num_prompt_tokens=prompt)
        )
    return StepPlan(3, tuple(scheduled), (), draw(st.integers(0, 4)))


def places(plan):
    """(sequence, position, token) of every token, and of those whose logits are wanted."""
    every = [
        (item.seq_id, item.start + index, token, index >= item.num_tokens - item.num_logits)
        for item in (plan.scheduled if plan else ())
        for index, token in enumerate(item.token_ids)
    ]
    return [place[:3] for place in every], [place[:3] for place in every if place[3]]


@given(plans())
def test_each_token_is_computed_once_by_the_weights_of_its_phase_and_logits_keep_their_order(plan):
    prompts, generated, order = split_by_phase(plan)
    end_of = {item.seq_id: item.num_prompt_tokens for item in plan.scheduled}
    first, first_wanted = places(prompts)
    second, second_wanted = places(generated)
    assert sorted(first + second) == sorted(places(plan)[0])
    assert all(end_of[seq] is None or position < end_of[seq] for seq, position, _ in first)
    assert all(end_of[seq] is not None and position >= end_of[seq] for seq, position, _ in second)
    both = first_wanted + second_wanted
    assert [both[row] for row in (range(len(both)) if order is None else order)] == places(plan)[1]
    padding = sum(part.num_padding_tokens for part in (prompts, generated) if part)
    assert padding == (plan.num_padding_tokens if plan.scheduled else 0)


@pytest.fixture(scope="module")
def alone():
    """Each prompt's text by an engine that serves nothing else, in one chunk, with memory to spare."""
    llm = LLM(MODEL_PATH, dtype="float64", attention_backend="torch", decode_weight_dtype="int4")
    return [llm.generate([prompt], DECODED, use_tqdm=False)[0].outputs[0].token_ids for prompt in PROMPTS]


@settings(max_examples=6)
@given(
    chunk=st.integers(3, 40),
    num_blocks=st.integers(20, 64),
    cache=st.sampled_from([None, "hash", "radix"]),
    swap=st.booleans(),
    order=st.permutations(PROMPTS * 2),
)
def test_no_company_chunk_cache_or_preemption_changes_a_token(alone, chunk, num_blocks, cache, swap, order):
    llm = LLM(
        MODEL_PATH, dtype="float64", attention_backend="torch", decode_weight_dtype="int4", block_size=4,
        num_gpu_blocks_override=num_blocks, max_num_batched_tokens=chunk, prefix_cache=cache,
        max_model_len=76, max_num_seqs=4, swap_space=0.01 if swap else 0,
    )  # fmt: skip
    for output, prompt in zip(llm.generate(list(order), DECODED, use_tqdm=False), order, strict=True):
        assert output.outputs[0].token_ids == alone[PROMPTS.index(prompt)]


def test_a_cache_in_8_bits_goes_with_it():
    """Two kinds of rounding, and still no token depends on company."""
    more = dict(dtype="float64", attention_backend="torch", kv_cache_dtype="int8_per_token_head")
    llm = LLM(MODEL_PATH, **more, decode_weight_dtype="int8", block_size=4, num_gpu_blocks_override=40,
              max_num_batched_tokens=16, max_model_len=80)  # fmt: skip
    together = [one.outputs[0].token_ids for one in llm.generate(list(PROMPTS), DECODED, use_tqdm=False)]
    alone = [llm.generate([prompt], DECODED, use_tqdm=False)[0].outputs[0].token_ids for prompt in PROMPTS]
    assert together == alone


def test_drafts_are_verified_by_the_weights_that_decode(alone):
    llm = LLM(
        MODEL_PATH, dtype="float64", attention_backend="torch", decode_weight_dtype="int4",
        speculative_config={"method": "ngram", "num_speculative_tokens": 3},
    )  # fmt: skip
    outputs = llm.generate(list(PROMPTS), DECODED, use_tqdm=False)
    assert [one.outputs[0].token_ids for one in outputs] == alone


def test_what_one_request_generated_is_no_cached_prefix_of_another(alone):
    """The second prompt is the first one with its answer: cached blocks would carry rounded keys into it."""
    common = dict(dtype="float64", attention_backend="torch", decode_weight_dtype="int4", block_size=4)
    plain, cached = LLM(MODEL_PATH, **common), LLM(MODEL_PATH, **common, prefix_cache="hash")
    ids = cached.get_tokenizer().encode(PROMPTS[0])
    follow_up = {"prompt_token_ids": ids + list(alone[0])}
    wanted = SamplingParams(temperature=0, max_tokens=1, logprobs=1)
    first = cached.generate([{"prompt_token_ids": ids}], DECODED, use_tqdm=False)[0]
    assert first.outputs[0].token_ids == alone[0]
    ours, theirs = (llm.generate([follow_up], wanted, use_tqdm=False)[0] for llm in (cached, plain))
    assert ours.num_cached_tokens == len(ids) // 4 * 4, "the prompt is found, and nothing after it"
    (mine,), (other,) = ours.outputs[0].logprobs, theirs.outputs[0].logprobs
    assert [v.logprob for v in mine.values()] == pytest.approx([v.logprob for v in other.values()], abs=1e-9)


@pytest.mark.parametrize("name", ROUNDINGS)
def test_prompts_are_exact_and_generated_tokens_are_those_of_the_rounded_model(name):
    full, rounded, phased = (
        TorchExecutor.from_folder(MODEL_PATH, dtype="float64", num_blocks=8, backend=TorchAttention, **more)
        for more in ({}, {"quantization": name}, {"decode_weight_dtype": name})
    )
    table, tokens = array("i", range(8)), array("i", range(5, 25))

    def run(executor, start, end, prompt):
        item = ScheduledSequence(0, start, tokens[start:end], table, end - start, num_prompt_tokens=prompt)
        return executor.execute(StepPlan(0, (item,)))

    assert torch.equal(run(phased, 0, 20, 20), run(full, 0, 20, 20))
    assert torch.allclose(run(phased, 0, 20, 0), run(rounded, 0, 20, 0), atol=1e-9)
    both = run(phased, 0, 20, 12)
    assert torch.allclose(both[:12], run(full, 0, 12, 12), atol=1e-9)
    run(full, 0, 20, 20)
    assert not torch.allclose(both[12:], run(full, 0, 20, 20)[12:], atol=1e-4)


def test_the_compiled_runners_follow_the_plain_ones():
    ways = [
        TorchExecutor.from_folder(
            MODEL_PATH,
            dtype="float32",
            num_blocks=8,
            backend=backend_factory(name),
            decode_weight_dtype="int8",
        )
        for name in ("torch", "numba-cpu")
    ]
    for start, end in ((0, 7), (7, 13), (13, 14), (14, 20)):  # prompt, both, and generated tokens
        item = ScheduledSequence(
            0,
            start,
            array("i", range(start + 5, end + 5)),
            array("i", range(8)),
            end - start,
            num_prompt_tokens=10,
        )
        plain, ours = (way.execute(StepPlan(0, (item,))) for way in ways)
        assert torch.allclose(ours, plain, atol=2e-4)


def test_both_copies_are_counted():
    plain, phased = (
        TorchExecutor.from_folder(MODEL_PATH, num_blocks=8, backend=TorchAttention, **more).decoder
        for more in ({}, {"decode_weight_dtype": "int8"})
    )
    copy = phased.decode_weights
    matrices = sum(linear.matrix.num_bytes for layer in copy.layers for linear in layer.linears)
    assert phased.num_bytes == plain.num_bytes + matrices + (0 if copy.tied else copy.head.num_bytes)
    assert copy.embedding is phased.embedding, "what is not rounded is there once"


def test_a_trace_says_which_weights_decoded(tmp_path):
    from minivllm.trace.reader import read_trace

    LLM(
        MODEL_PATH, attention_backend="torch", decode_weight_dtype="int8", trace=tmp_path / "t.jsonl"
    ).generate(["A"], SamplingParams(max_tokens=2), use_tqdm=False)
    config = read_trace(tmp_path / "t.jsonl").header.config
    assert config["decode_weight_dtype"] == "int8"
    assert config["cache_prompts_only"] is True
    assert 0 < config["decode_weight_bytes"] < config["weight_bytes"]


def test_what_does_not_go_together_is_refused_by_name(tmp_path):
    with pytest.raises(ValueError, match=r"decode_weight_dtype is 'int8'.*quantization='int4'"):
        LLM(MODEL_PATH, decode_weight_dtype="int8", quantization="int4")
    with pytest.raises(ValueError, match="decode_weight_dtype must be left out"):
        LLM(MODEL_PATH, decode_weight_dtype="int8", tensor_parallel_size=2)
    with pytest.raises(ValueError, match="decode_weight_dtype must be"):
        LLM(MODEL_PATH, decode_weight_dtype="int2")
    stored = {"quant_method": "fp8", "activation_scheme": "dynamic"}
    config = json.loads((MODEL_PATH / "config.json").read_text()) | {"quantization_config": stored}
    (tmp_path / "config.json").write_text(json.dumps(config))
    shutil.copy(MODEL_PATH / "model.safetensors", tmp_path)
    with pytest.raises(ValueError, match=r"decode_weight_dtype is 'int4'.*are quantised \(fp8\)"):
        TorchExecutor.from_folder(tmp_path, decode_weight_dtype="int4")
