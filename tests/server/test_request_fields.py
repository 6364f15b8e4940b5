"""Each field of a request does what it does offline, and what it does in vLLM."""

import json

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minivllm import LLM, SamplingParams
from minivllm.model.tiny import MODEL_PATH
from tests import patience

PROMPT = "Once upon a time"
CHAT = {"messages": [{"role": "user", "content": "What is a block table?"}], "temperature": 0}


@pytest.fixture(scope="module")
def http(running):
    with httpx.Client(base_url=running.url, timeout=patience.SECONDS) as client:
        yield client


@pytest.fixture(scope="module")
def offline():
    return LLM(MODEL_PATH, attention_backend="torch", enforce_eager=True, num_gpu_blocks_override=256)


def complete(http, status=200, **body):
    response = http.post("/v1/completions", json={"prompt": PROMPT, "temperature": 0} | body)
    assert response.status_code == status, response.text
    return response.json() if status == 200 else response.json()["error"]


def chat(http, **body):
    response = http.post("/v1/chat/completions", json=CHAT | body)
    assert response.status_code == 200, response.text
    return response.json()


sampling = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 9),
        "max_tokens": st.integers(4, 12),
        "temperature": st.sampled_from([0, 0.7, 1.5]),
    },
    optional={
        "n": st.integers(1, 3),
        "top_p": st.sampled_from([0.3, 0.9]),
        "top_k": st.sampled_from([-1, 0, 1, 5]),
        "min_p": st.sampled_from([0.0, 0.2]),
        "presence_penalty": st.sampled_from([-1.5, 1.5]),
        "frequency_penalty": st.sampled_from([-0.5, 2.0]),
        "repetition_penalty": st.sampled_from([0.8, 1.3]),
        "stop": st.sampled_from(["e", [" a", "time"], [",", "."]]),
        "stop_token_ids": st.lists(st.integers(0, 3000), max_size=40),
        "ignore_eos": st.booleans(),
        "min_tokens": st.integers(0, 4),
        "logit_bias": st.dictionaries(
            st.integers(0, 3000).map(str), st.sampled_from([-100, 5.5]), max_size=3
        ),
        "allowed_token_ids": st.lists(st.integers(0, 3000), min_size=1, max_size=9),
        "bad_words": st.lists(st.sampled_from([" the", "a"]), max_size=2),
        "skip_special_tokens": st.booleans(),
        "include_stop_str_in_output": st.booleans(),
    },
)


@given(sampling)
@settings(max_examples=25)
def test_what_is_sampled_over_http_is_what_is_sampled_offline(http, offline, asked):
    [wanted] = offline.generate(PROMPT, SamplingParams(**asked), use_tqdm=False)
    answer = complete(http, **asked, return_token_ids=True)
    found = [(c["text"], c["token_ids"], c["finish_reason"], c["stop_reason"]) for c in answer["choices"]]
    assert found == [(o.text, list(o.token_ids), o.finish_reason, o.stop_reason) for o in wanted.outputs]


@given(
    st.integers(1, 6),
    st.sampled_from([-1.0, 0.5, 1.0]),
    st.sampled_from([False, True, "never"]),
    st.booleans(),
)
@settings(max_examples=6)
def test_a_beam_search_finds_what_it_finds_offline(http, offline, width, penalty, ending, ignore_eos):
    asked = dict(
        n=width, use_beam_search=True, length_penalty=penalty, early_stopping=ending, ignore_eos=ignore_eos
    )
    [wanted] = offline.generate(PROMPT, SamplingParams(temperature=0, max_tokens=6, **asked), use_tqdm=False)
    found = complete(http, max_tokens=6, **asked)["choices"]
    assert [choice["text"] for choice in found] == [output.text for output in wanted.outputs]
    assert chat(http, max_tokens=6, **asked)["choices"][0]["message"]["content"]


def test_the_end_of_a_prompt_is_what_truncation_keeps(http):
    tokens = http.post("/tokenize", json={"prompt": PROMPT}).json()["tokens"]
    for count in (1, 3, len(tokens), 100):
        answer = complete(http, truncate_prompt_tokens=count, return_token_ids=True, echo=True, max_tokens=1)
        assert answer["choices"][0]["prompt_token_ids"] == tokens[-count:]
        assert answer["usage"]["prompt_tokens"] == len(tokens[-count:])
    assert (
        complete(http, prompt=list(range(5, 900)), truncate_prompt_tokens=-1)["usage"]["prompt_tokens"] == 496
    )
    long = [{"role": "user", "content": "word " * 2000}]
    assert chat(http, messages=long, truncate_prompt_tokens=20, max_tokens=1)["usage"]["prompt_tokens"] == 20
    assert complete(http, 400, truncate_prompt_tokens=513)["param"] == "truncate_prompt_tokens"
    assert complete(http, 400, truncate_prompt_tokens=0)["param"] == "prompt"
    assert complete(http, 400, truncate_prompt_tokens=-2)["param"] == "body.truncate_prompt_tokens"


def test_log_probabilities_of_a_prompt_have_vllms_form_and_limit(http):
    [choice] = complete(http, prompt_logprobs=2, max_tokens=1, return_token_ids=True)["choices"]
    first, *rest = choice["prompt_logprobs"]
    assert first is None
    for token, entry in zip(choice["prompt_token_ids"][1:], rest, strict=True):
        assert entry[str(token)]["logprob"] <= 0 and len(entry) in (2, 3)
    answer = chat(http, prompt_logprobs=0, max_tokens=1, return_token_ids=True)
    assert [*map(int, *answer["prompt_logprobs"][1])] == answer["prompt_token_ids"][1:2]
    for count, status in ((21, 400), (-1, 400), (20, 200)):
        assert complete(http, status, prompt_logprobs=count, max_tokens=1)
    assert complete(http, 400, prompt_logprobs=1, stream=True)["param"] == "prompt_logprobs"


@pytest.mark.parametrize("stream", [False, True])
def test_a_prompt_may_be_scored_without_an_output(http, stream):
    """As evaluation harnesses ask: `echo` and no tokens."""
    asked = dict(prompt=[PROMPT, "A block"], echo=True, logprobs=1, return_token_ids=True, n=2)
    whole = complete(http, **asked, max_tokens=1)["choices"]
    if stream:
        body = {**asked, "temperature": 0, "max_tokens": 0, "stream": True}
        with http.stream("POST", "/v1/completions", json=body) as response:
            lines = [line.removeprefix("data: ") for line in response.iter_lines() if line]
        told = sorted((json.loads(line)["choices"][0] for line in lines[:-1]), key=lambda it: it["index"])
    else:
        answer = complete(http, **asked, max_tokens=0)
        assert answer["usage"]["completion_tokens"] == 0
        told = answer["choices"]
    assert [choice["text"] for choice in told] == [PROMPT, PROMPT, "A block", "A block"]
    for choice, longer in zip(told, whole, strict=True):
        assert choice["token_ids"] == [] and choice["finish_reason"] == "length"
        for name, values in choice["logprobs"].items():
            assert values == longer["logprobs"][name][:-1]
    assert complete(http, 400, max_tokens=0)["param"] == "max_tokens"


def test_null_is_the_same_as_nothing_where_openais_clients_send_it(http):
    nothing = dict(stream=None, echo=None, stream_options=None, n=None, stop=None, logprobs=None)
    more = dict(return_token_ids=None, return_tokens_as_token_ids=None)
    assert complete(http, **nothing, **more)["choices"] == complete(http)["choices"]
    assert chat(http, stream=None, logprobs=None, tools=None, **more)["choices"] == chat(http)["choices"]
    body = {"prompt": PROMPT, "stream": True, "stream_options": {"include_usage": None}}
    assert http.post("/v1/completions", json=body).text.endswith("data: [DONE]\n\n")


def test_a_chat_may_repeat_the_message_that_it_continues(http):
    begun = [*CHAT["messages"], {"role": "assistant", "content": "A block table"}]
    asked = dict(messages=begun, add_generation_prompt=False, continue_final_message=True, max_tokens=4)
    plain = chat(http, **asked)["choices"][0]["message"]["content"]
    assert chat(http, **asked, echo=True)["choices"][0]["message"]["content"] == "A block table" + plain


def test_tokens_may_be_named_by_their_ids(http):
    asked = dict(return_tokens_as_token_ids=True, return_token_ids=True, max_tokens=3)
    [choice] = complete(http, **asked, logprobs=1, echo=True)["choices"]
    ids = [f"token_id:{token}" for token in choice["prompt_token_ids"] + choice["token_ids"]]
    assert choice["logprobs"]["tokens"] == ids
    assert all(
        name in top for name, top in list(zip(ids, choice["logprobs"]["top_logprobs"], strict=True))[1:]
    )
    [choice] = chat(http, **asked, logprobs=True, top_logprobs=1)["choices"]
    assert [e["token"] for e in choice["logprobs"]["content"]] == [
        f"token_id:{t}" for t in choice["token_ids"]
    ]


def test_a_client_may_name_its_request(http):
    assert complete(http, request_id="mine")["id"] == "cmpl-mine"
    headers = {"X-Request-Id": "theirs"}
    assert http.post("/v1/chat/completions", json=CHAT, headers=headers).json()["id"] == "chatcmpl-theirs"
    assert complete(http, request_id="twice", prompt=["a", "b"], n=2)["id"] == "cmpl-twice"
    assert complete(http, 400, request_id="")["param"] == "body.request_id"


def test_special_tokens_are_added_as_asked(http):
    for added in (True, False):
        answer = complete(http, add_special_tokens=added, return_token_ids=True, max_tokens=1)
        assert (answer["choices"][0]["prompt_token_ids"][0] == 1) is added


def test_fields_that_nobody_knows_change_nothing(http, caplog):
    plain = complete(http, max_tokens=4)["choices"]
    assert complete(http, max_tokens=4, guided_regex="a+", surprise={"a": [1]}, user="me")["choices"] == plain
    assert "'guided_regex', 'surprise'" in caplog.text and "user" not in caplog.text
