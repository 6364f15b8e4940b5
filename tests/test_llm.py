"""`LLM` as vLLM's users know it, on the shipped model."""

import errno
import inspect
import json
import sys

import numpy as np
import pytest
import torch

import minivllm
from minivllm import LLM, SamplingParams
from minivllm.engine.engine_args import EngineArgs
from minivllm.engine.settings import settings_of
from minivllm.model.tiny import MODEL_PATH
from minivllm.trace.reader import read_trace

PROMPT = "Question: What is a KV cache?\nAnswer:"


@pytest.fixture(scope="module")
def llm():
    return LLM(MODEL_PATH, max_model_len=256, num_gpu_blocks_override=64)


def greedy(**more):
    return SamplingParams(**{"temperature": 0, "max_tokens": 8, **more})


def test_one_prompt_many_prompts_and_every_form_of_a_prompt_agree(llm):
    tokens = llm.get_tokenizer().encode(PROMPT)
    (first,) = llm.generate(PROMPT, greedy(), use_tqdm=False)
    forms = [PROMPT, {"prompt": PROMPT}, {"prompt_token_ids": tokens}, tokens, torch.tensor(tokens)]
    forms.append({"prompt_token_ids": np.array(tokens)})
    for output in llm.generate(forms, greedy(), use_tqdm=False):
        assert output.outputs[0].token_ids == first.outputs[0].token_ids
        assert output.prompt_token_ids == tokens
    (alone,) = llm.generate(tokens, greedy(), use_tqdm=False)
    assert alone.outputs[0].text == first.outputs[0].text
    assert (first.prompt, alone.prompt) == (PROMPT, None)


def test_outputs_come_in_the_order_of_the_prompts(llm):
    counts = [9, 1, 5, 3]
    outputs = llm.generate(
        [PROMPT] * 4, [greedy(max_tokens=n, ignore_eos=True) for n in counts], use_tqdm=False
    )
    assert [len(output.outputs[0].token_ids) for output in outputs] == counts
    assert [int(output.request_id) for output in outputs] == sorted(int(o.request_id) for o in outputs)


def test_an_output_has_vllms_fields(llm):
    (output,) = llm.generate(PROMPT, greedy(logprobs=2, prompt_logprobs=1), use_tqdm=False)
    completion = output.outputs[0]
    assert output.finished and completion.finished()
    assert output.prompt_logprobs[0] is None and len(output.prompt_logprobs) == len(output.prompt_token_ids)
    assert len(completion.logprobs) == len(completion.token_ids)
    chosen = [entry[token] for entry, token in zip(completion.logprobs, completion.token_ids, strict=True)]
    assert completion.cumulative_logprob == pytest.approx(sum(logprob.logprob for logprob in chosen))
    assert all(logprob.rank == 1 and logprob.decoded_token is not None for logprob in chosen)
    metrics = output.metrics
    assert metrics.arrival_time <= metrics.first_scheduled_time <= metrics.first_token_time
    assert metrics.first_token_time <= metrics.last_token_time <= metrics.finished_time
    assert (output.num_cached_tokens, completion.index) == (0, 0)


def test_no_text_at_all_is_what_the_tokenizer_makes_of_it(llm):
    """Most tokenizers begin every text with a token of its own: then there is something to continue."""
    beginning = llm.get_tokenizer().encode("")
    (output,) = llm.generate("", greedy(), use_tqdm=False)
    (same,) = llm.generate([beginning], greedy(), use_tqdm=False)
    assert len(beginning) == 1 and output.prompt_token_ids == beginning
    assert output.outputs[0].token_ids == same.outputs[0].token_ids


def test_chat_puts_the_models_template_around_the_messages(llm):
    messages = [{"role": "user", "content": "What is a KV cache?"}]
    one, two = llm.chat([messages, messages], greedy(), use_tqdm=False)
    assert one.outputs[0].text == two.outputs[0].text
    assert "What is a KV cache?" in one.prompt
    bos = llm.get_tokenizer().encode("")[0]
    assert one.prompt_token_ids.count(bos) == 1, "the beginning-of-sequence token is not written twice"
    (single,) = llm.chat(messages, greedy(), use_tqdm=False)
    assert single.outputs[0].text == one.outputs[0].text
    parts = [{"role": "user", "content": [{"type": "text", "text": "What is a KV cache?"}]}]
    assert llm.chat(parts, greedy(), use_tqdm=False)[0].prompt == one.prompt


def test_the_pitfalls_are_as_they_are_documented(llm):
    tokenizer, messages = llm.get_tokenizer(), [{"role": "user", "content": "What is a KV cache?"}]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    rendered = llm.generate(text, greedy(max_tokens=1), use_tqdm=False)[0].prompt_token_ids
    assert rendered.count(tokenizer.bos_token_id) == 2, "one of the template's, one of the tokenizer's"
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
    (by_ids,) = llm.generate([ids], greedy(), use_tqdm=False)
    assert by_ids.outputs[0].text == llm.chat(messages, greedy(), use_tqdm=False)[0].outputs[0].text
    (same,) = llm.generate(PROMPT, greedy(n=3), use_tqdm=False)
    assert len({output.text for output in same.outputs}) == 1, "n times the same at temperature 0"


def test_chat_obeys_every_argument_of_vllms(llm, tmp_path):
    """Each of them reaches a template that prints all that it is given."""
    template = tmp_path / "all.jinja"
    template.write_text(
        "{{ messages|tojson }}{{ tools|tojson }}{{ documents|tojson }}"
        "{{ enable_thinking }}{{ add_generation_prompt }}"
    )
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "It is"}]
    given = {
        "tools": [{"name": "f"}],
        "documents": [{"title": "one"}],
        "chat_template_kwargs": {"enable_thinking": False},
        "chat_template": template,
        "add_generation_prompt": False,
    }
    (output,) = llm.chat(messages, greedy(max_tokens=1), use_tqdm=False, **given)
    assert output.prompt == json.dumps(messages) + '[{"name": "f"}][{"title": "one"}]FalseFalse'
    (output,) = llm.chat(
        messages,
        greedy(max_tokens=1),
        use_tqdm=False,
        chat_template_content_format="openai",
        **{**given, "continue_final_message": True},
    )
    assert output.prompt.endswith('{"type": "text", "text": "It is')
    with pytest.raises(ValueError, match="cannot both be True"):
        llm.chat(messages, continue_final_message=True)


@pytest.mark.parametrize(
    ("prompts", "params", "message"),
    [
        ([PROMPT, "\ud800"], {}, r"prompts\[1\] must be text, but its character 0 is none"),
        (
            [PROMPT, {"prompt": PROMPT, "image": 5}],
            {},
            r"prompts\[1\] may have the keys prompt, .* got 'image'",
        ),
        (b"text", {}, "prompts must be a string, a dictionary, or a list of those; got b'text'"),
        ([PROMPT, []], {}, r"prompts\[1\]: the prompt is empty"),
        ([PROMPT, [10**6]], {}, r"prompts\[1\]: prompt_token_ids\[0\] must be an integer from 0 to"),
        ([[1] * 300], {}, r"prompts\[0\]: the prompt has 300 tokens; with max_model_len 256"),
        ([PROMPT, 3.5], {}, r"prompts\[1\] must be a string, a list of token ids"),
        (5, {}, "prompts must be a string, a dictionary, or a list"),
        ([{"text": "x"}], {}, r"prompts\[0\] may have the keys prompt, .* got 'text'"),
    ],
)
def test_a_prompt_that_cannot_be_served_is_named_and_nothing_is_computed(llm, prompts, params, message):
    steps = llm.engine.num_steps
    with pytest.raises(ValueError, match=message):
        llm.generate(prompts, greedy(**params), use_tqdm=False)
    assert llm.engine.num_steps == steps and not llm.engine.has_unfinished_requests()
    assert llm.generate(PROMPT, greedy(), use_tqdm=False)[0].finished, "the engine keeps serving"


def test_as_many_params_as_prompts_or_one_for_all(llm):
    with pytest.raises(ValueError, match="sampling_params has 1 entries for 2 prompts"):
        llm.generate([PROMPT] * 2, [greedy()], use_tqdm=False)
    with pytest.raises(ValueError, match="sampling_params must be a SamplingParams or a list of them"):
        llm.generate([PROMPT], {"temperature": 0}, use_tqdm=False)
    assert llm.generate([], greedy(), use_tqdm=False) == []


class Full:
    """A stream on a disk that is full."""

    def write(self, *text):
        raise OSError(errno.ENOSPC, "No space left on device")

    flush = write


@pytest.mark.parametrize("stream", [None, Full()], ids=["closed", "full"])
def test_a_progress_bar_that_cannot_be_written_costs_no_output(llm, monkeypatch, stream):
    monkeypatch.setattr(sys, "stderr", stream)
    [output] = llm.generate(["Once upon"], SamplingParams(max_tokens=2, temperature=0))
    assert output.outputs[0].text == " a time"


def test_an_interrupted_generate_leaves_nothing_behind(llm, monkeypatch):
    calls = 0
    execute = llm.engine.executor.execute

    def interrupted(plan):
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        return execute(plan)

    monkeypatch.setattr(llm.engine.executor, "execute", interrupted)
    with pytest.raises(KeyboardInterrupt):
        llm.generate([PROMPT] * 3, greedy(), use_tqdm=False)
    assert not llm.engine.has_unfinished_requests()
    assert llm.engine.cache.num_free_blocks == llm.engine.config.num_blocks


def test_a_trace_of_everything_is_written_on_request(tmp_path):
    path = tmp_path / "run.jsonl"
    with LLM(MODEL_PATH, num_gpu_blocks_override=64, trace=path) as llm:
        (output,) = llm.generate(PROMPT, greedy(), use_tqdm=False)
    trace = read_trace(path)
    assert trace.warnings == [] and trace.num_steps == len(output.outputs[0].token_ids)
    assert trace.header.model.num_kv_heads < trace.header.model.num_heads


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dtype": "int7"}, "dtype must be one of"),
        ({"seed": -1}, "seed must be an integer of at least 0"),
        ({"block_size": 0}, "block_size must be an integer of at least 1, got 0"),
        (
            {"gpu_memory_utilization": 1.5},
            "gpu_memory_utilization must be a finite number above 0 and at most 1",
        ),
        ({"num_gpu_blocks_override": 0}, "num_gpu_blocks_override must be an integer of at least 1"),
        ({"max_model_len": 10**6}, "max_model_len must be at most 2048"),
        ({"max_num_seqs": 0}, "max_num_seqs"),
        ({"max_num_batched_tokens": True}, "max_num_batched_tokens"),
        ({"enable_chunked_prefill": 1}, "enable_chunked_prefill must be True or False"),
        (
            {"enable_chunked_prefill": False, "max_num_batched_tokens": 9},
            "max_num_batched_tokens must be at least",
        ),
        ({"enable_prefix_caching": 1}, "enable_prefix_caching must be True or False"),
        ({"enable_prefix_caching": False, "prefix_cache": "hash"}, "must not be False where prefix_cache"),
        ({"prefix_cache": "trie"}, "prefix_cache must be one of"),
        ({"swap_space": -1}, "swap_space must be a finite number"),
        ({"swap_space": 10**6}, "swap_space .* but only .* are free on cpu"),
        ({"swap_space": 1e-9}, "one block of 16 tokens needs"),
        ({"preemption_mode": "swap"}, "preemption_mode must be 'recompute' where swap_space is 0"),
        ({"preemption_mode": "wait", "swap_space": 1}, "preemption_mode must be one of"),
        ({"allocator": "malloc"}, "allocator must be one of"),
        ({"allocator": "oracle", "prefix_cache": "hash"}, "allocator must be 'paged'"),
        ({"tensor_parallel_size": 5}, "tensor_parallel_size must be one of 1, 2, 6 .* got 5"),
        ({"tensor_parallel_size": 0}, "tensor_parallel_size must be an integer of at least 1"),
        ({"pipeline_parallel_size": 9}, "pipeline_parallel_size must be at most 5"),
        ({"reduction_parts": 4}, "reduction_parts must be one of 1, 2, 6"),
        ({"data_parallel_size": 2}, "data_parallel_size must be 1, got 2"),
        ({"reduction_parts": 2, "quantization": "awq"}, "quantization is 'awq', but the checkpoint is not"),
        (
            {"reduction_parts": 2, "decode_weight_dtype": "int8"},
            "decode_weight_dtype must be left out with tensor_parallel_size .* got 'int8'",
        ),
        (
            {"reduction_parts": 2, "speculative_config": {"num_speculative_tokens": 2, "model": "x"}},
            r"speculative_config\['method'\] must be 'ngram' with tensor_parallel_size .* got 'draft_model'",
        ),
        ({"reduction_parts": 2, "allocator": "virtual_memory"}, "allocator must not be 'virtual_memory'"),
        (
            {"quantization": "compressed-tensors"},
            "quantization is 'compressed-tensors', but the checkpoint is not quantised",
        ),
        ({"quantization": "squeezellm"}, "quantization must be one of 'gptq', 'awq', .* got 'squeezellm'"),
        ({"quantization": "awq", "dtype": "int8"}, "dtype 'int8' means .* quantization='int8'"),
        ({"scheduling_policy": "lifo"}, "scheduling_policy must be one of"),
        ({"tokenizer": "./nowhere"}, "nowhere"),
        ({"tokenizer": 5}, "tokenizer must be a string or a path, got 5"),
        ({"trace": 5}, "trace must be a string or a path or a Recorder, got 5"),
        ({"scheduling_policy": None}, "scheduling_policy must be a string, got None"),
        ({"model": "./nowhere"}, "model: there is no folder './nowhere'"),
        ({"model": ""}, "model must be a folder or a hub id"),
    ],
)
def test_an_argument_that_cannot_work_is_refused_by_name(arguments, message):
    with pytest.raises(ValueError, match=message):
        LLM(**{"model": MODEL_PATH, **arguments})


def test_an_unknown_argument_is_named():
    with pytest.raises(TypeError, match="LLM has no argument 'blok_size'"):
        LLM(MODEL_PATH, blok_size=4)


def test_the_known_arguments_are_listed_and_the_most_similar_comes_first():
    with pytest.raises(TypeError) as caught:
        LLM(MODEL_PATH, blok_size=4)
    known = str(caught.value).partition("it has ")[2].split(", ")
    assert known[0] == "block_size"
    assert sorted(known) == sorted(settings_of(EngineArgs))


def test_the_signature_and_the_help_show_every_setting_with_type_and_default():
    parameters = inspect.signature(LLM).parameters
    assert list(parameters) == list(settings_of(EngineArgs))
    assert parameters["block_size"].default == 16 and parameters["block_size"].annotation is int
    assert parameters["max_model_len"].annotation == int | None
    for name, declared in settings_of(EngineArgs).items():
        assert parameters[name].default == (inspect.Parameter.empty if name == "model" else declared.default)
        text = f"{name}: {declared.setting.help}"
        for described in (LLM, EngineArgs):
            assert text in " ".join(described.__doc__.split())
    with pytest.raises(TypeError, match="positional"):
        LLM(MODEL_PATH, None)


@pytest.mark.parametrize("name", minivllm.__all__)
def test_every_public_name_can_be_imported(name):
    assert getattr(minivllm, name).__name__ == name


def test_a_model_without_a_tokenizer_serves_token_ids(tmp_path):
    for file in MODEL_PATH.iterdir():
        if not file.name.startswith("tokenizer"):
            (tmp_path / file.name).symlink_to(file)
    with pytest.warns(UserWarning, match="has no tokenizer.json"):
        bare = LLM(tmp_path, num_gpu_blocks_override=16)
    quiet = LLM(MODEL_PATH, skip_tokenizer_init=True, num_gpu_blocks_override=16)
    for llm in (bare, quiet):
        (output,) = llm.generate({"prompt_token_ids": [5, 6, 7]}, greedy(ignore_eos=True), use_tqdm=False)
        assert (len(output.outputs[0].token_ids), output.outputs[0].text) == (8, "")
        with pytest.raises(ValueError, match="this model has no tokenizer"):
            llm.generate("text", greedy(), use_tqdm=False)
    lent = LLM(tmp_path, tokenizer=MODEL_PATH, num_gpu_blocks_override=16)
    assert lent.generate(PROMPT, greedy(), use_tqdm=False)[0].outputs[0].text


def test_a_type_may_be_given_as_torch_writes_it():
    llm = LLM(MODEL_PATH, dtype=torch.float64, num_gpu_blocks_override=4)
    assert llm.engine.executor.model_shape.dtype == "float64"
