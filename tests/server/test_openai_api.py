"""The server as clients know it: what they send and what they get, errors included, as vLLM answers."""

import json
import time
from types import SimpleNamespace

import httpx
import openai
import pytest
import tokenizers
from fastapi import FastAPI
from fastapi.testclient import TestClient
from hypothesis import given, settings
from hypothesis import strategies as st

from minivllm import LLM, SamplingParams
from minivllm.model.tiny import MODEL_PATH
from minivllm.model.tokenizer import Tokenizer
from minivllm.server.served_model import ServedModel
from minivllm.server.token_routes import add_token_routes
from tests import patience

PROMPT = "Once upon"
IS_JSON = {"Content-Type": "application/json"}


@pytest.fixture(scope="module")
def client(running):
    with openai.OpenAI(base_url=f"{running.url}/v1", api_key="none", timeout=patience.SECONDS) as found:
        yield found


@pytest.fixture(scope="module")
def offline():
    """The same model without a server."""
    return LLM(MODEL_PATH, attention_backend="torch", enforce_eager=True, num_gpu_blocks_override=256)


def ask(http, path="/v1/completions", **body):
    return http.post(path, json={"prompt": PROMPT, "max_tokens": 5, "temperature": 0} | body)


def choices(response):
    assert response.status_code == 200, response.text
    return response.json()["choices"]


def events(response):
    assert response.status_code == 200, response.text
    lines = [line for line in response.text.split("\n\n") if line]
    assert all(line.startswith("data: ") for line in lines) and lines[-1] == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]


def texts(chunks):
    """What the chunks of a stream say, choice by choice."""
    told = {}
    for chunk in chunks:
        for choice in chunk["choices"]:
            piece = choice["delta"]["content"] if "delta" in choice else choice["text"]
            told[choice["index"]] = told.get(choice["index"], "") + piece
    return told


# ── completions ───────────────────────────────────────────────────────────────────────────────────────────


def test_a_completion_is_what_the_engine_says_offline(http, offline):
    [wanted] = offline.generate(PROMPT, SamplingParams(temperature=0, max_tokens=20), use_tqdm=False)
    answer = ask(http, max_tokens=20).json()
    assert answer["choices"][0]["text"] == wanted.outputs[0].text
    assert answer["choices"][0]["finish_reason"] == wanted.outputs[0].finish_reason
    assert answer["object"] == "text_completion" and answer["id"].startswith("cmpl-")
    assert answer["usage"]["prompt_tokens"] == len(wanted.prompt_token_ids)
    assert answer["usage"]["completion_tokens"] == len(wanted.outputs[0].token_ids)
    assert answer["usage"]["total_tokens"] == sum(
        answer["usage"][name] for name in ("prompt_tokens", "completion_tokens")
    )


@given(st.data())
@settings(max_examples=15)
def test_a_stream_says_what_the_whole_answer_says(http, data):
    body = dict(
        prompt=data.draw(st.sampled_from([PROMPT, [PROMPT, "The block"], [1, 2313, 2117], [[1, 2313], [5]]])),
        n=data.draw(st.integers(1, 3)),
        seed=data.draw(st.integers(0, 100)),
        temperature=data.draw(st.sampled_from([0, 0.8])),
        echo=data.draw(st.booleans()),
        logprobs=data.draw(st.sampled_from([None, 0, 2])),
        stop=data.draw(st.sampled_from([None, "e", [" a", "block"]])),
        max_tokens=data.draw(st.integers(1, 12)),
    )
    whole = choices(ask(http, **body))
    chunks = events(ask(http, **body, stream=True))
    assert texts(chunks) == {choice["index"]: choice["text"] for choice in whole}
    for choice in whole:
        own = [c for chunk in chunks for c in chunk["choices"] if c["index"] == choice["index"]]
        assert [c["finish_reason"] for c in own[:-1]] == [None] * (len(own) - 1)
        assert own[-1]["finish_reason"] == choice["finish_reason"]
        assert own[-1]["stop_reason"] == choice["stop_reason"]
        if body["logprobs"] is not None:
            for name in ("tokens", "token_logprobs", "top_logprobs"):
                joined = [item for c in own for item in (c["logprobs"] or {}).get(name, [])]
                for told, item in zip(joined, choice["logprobs"][name], strict=True):
                    # A prompt computed in other company has the same numbers but for their last bits.
                    assert told == (item if name == "tokens" else pytest.approx(item, abs=1e-3))


def test_logprobs_have_vllms_form(http):
    [choice] = choices(ask(http, logprobs=2, echo=True, prompt="Once upon a"))
    told = choice["logprobs"]
    assert told["tokens"][:4] == ["<s>", "Once", " upon", " a"] and told["text_offset"][:4] == [0, 3, 7, 12]
    assert told["token_logprobs"][0] is told["top_logprobs"][0] is None
    assert all(2 <= len(top) <= 3 for top in told["top_logprobs"][1:])
    for token, logprob, top in list(
        zip(told["tokens"], told["token_logprobs"], told["top_logprobs"], strict=True)
    )[1:]:
        assert top[token] == logprob <= 0


def test_usage_is_told_as_asked(http):
    asked = {"include_usage": True, "continuous_usage_stats": True}
    chunks = events(ask(http, stream=True, stream_options=asked, prompt=[PROMPT, "The block table"]))
    assert all(chunk["usage"]["completion_tokens"] >= 1 for chunk in chunks)
    assert chunks[-1]["choices"] == [] and chunks[-1]["usage"]["completion_tokens"] == 10
    assert all("usage" not in chunk for chunk in events(ask(http, stream=True)))


def test_a_beam_search_is_asked_for_by_its_name(http):
    found = choices(ask(http, use_beam_search=True, n=3))
    assert [choice["index"] for choice in found] == [0, 1, 2] and len({c["text"] for c in found}) == 3
    assert texts(events(ask(http, use_beam_search=True, n=3, stream=True))) == {
        choice["index"]: choice["text"] for choice in found
    }


def test_what_a_prefix_cache_saves_is_told(http):
    prompt = "A long prompt that fills some blocks of the cache, so that the next one finds it. " * 2
    ask(http, prompt=prompt)
    details = ask(http, prompt=prompt).json()["usage"]["prompt_tokens_details"]
    assert details["cached_tokens"] >= 16
    assert (
        ask(http, prompt=prompt, cache_salt="other").json()["usage"]["prompt_tokens_details"]["cached_tokens"]
        == 0
    )


# ── chats ─────────────────────────────────────────────────────────────────────────────────────────────────

QUESTION = [{"role": "user", "content": "What is a block table?"}]


def test_a_chat_is_what_the_engine_says_offline(http, offline):
    [wanted] = offline.chat(QUESTION, SamplingParams(temperature=0, max_tokens=15), use_tqdm=False)
    body = dict(messages=QUESTION, max_tokens=15, temperature=0)
    answer = http.post("/v1/chat/completions", json=body).json()
    assert answer["object"] == "chat.completion" and answer["id"].startswith("chatcmpl-")
    message = answer["choices"][0]["message"]
    assert (message["role"], message["content"]) == ("assistant", wanted.outputs[0].text)
    parts = [{"role": "user", "content": [{"type": "text", "text": "What is a block table?"}]}]
    again = http.post("/v1/chat/completions", json=body | {"messages": parts}).json()
    assert again["choices"][0]["message"] == message
    chunks = events(http.post("/v1/chat/completions", json=body | {"stream": True}))
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert all("role" not in chunk["choices"][0]["delta"] for chunk in chunks[1:])
    assert texts(chunks) == {0: message["content"]}


def test_a_chat_without_a_limit_goes_on_to_its_end(http):
    answer = http.post("/v1/chat/completions", json={"messages": QUESTION, "temperature": 0}).json()
    assert answer["choices"][0]["finish_reason"] == "stop"


def test_logprobs_of_a_chat_have_openais_form(http):
    body = dict(messages=QUESTION, max_tokens=3, temperature=0, logprobs=True, top_logprobs=2)
    [choice] = http.post("/v1/chat/completions", json=body).json()["choices"]
    for entry in choice["logprobs"]["content"]:
        assert entry["bytes"] == list(entry["token"].encode()) and len(entry["top_logprobs"]) == 2
        assert entry["top_logprobs"][0]["token"] == entry["token"]


# ── the openai library ────────────────────────────────────────────────────────────────────────────────────


def test_the_openai_library_completes_chats_streams_and_counts(client):
    assert [model.id for model in client.models.list()] == ["tiny", "minivllm-tiny"]
    whole = client.chat.completions.create(model="tiny", messages=QUESTION, max_tokens=8, temperature=0)
    stream = client.chat.completions.create(
        model="tiny",
        messages=QUESTION,
        max_tokens=8,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    told = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert told == whole.choices[0].message.content
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens == 8
    completion = client.completions.create(
        model="tiny",
        prompt=PROMPT,
        max_tokens=4,
        extra_body={"top_k": 1, "ignore_eos": True},
    )
    assert completion.usage.completion_tokens == 4


def test_the_openai_library_raises_its_own_errors(client):
    with pytest.raises(openai.NotFoundError) as refused:
        client.completions.create(model="nope", prompt="a")
    assert refused.value.param == "model" and refused.value.status_code == 404
    with pytest.raises(openai.BadRequestError) as refused:
        client.completions.create(model="tiny", prompt="a", temperature=-1)
    assert refused.value.param == "temperature" and refused.value.type == "BadRequestError"


def test_a_client_that_leaves_a_stream_is_aborted(client, running):
    stream = client.completions.create(
        model="tiny", prompt=PROMPT, max_tokens=500, stream=True, extra_body={"ignore_eos": True}
    )
    next(iter(stream))
    stream.close()
    gone(running)


def test_a_client_that_does_not_wait_for_its_answer_is_aborted(running):
    with pytest.raises(httpx.TimeoutException):
        httpx.post(
            f"{running.url}/v1/completions",
            json={"prompt": PROMPT, "max_tokens": 500, "ignore_eos": True, "n": 8},
            timeout=0.05,
        )
    gone(running)


def gone(running):
    """Wait until nobody's request is left."""
    deadline = time.monotonic() + patience.SECONDS
    while running.llm.num_unfinished_requests or running.engine.requests:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    assert running.engine.cache.pool.num_used_blocks == 0


# ── errors ────────────────────────────────────────────────────────────────────────────────────────────────

ERRORS = [
    ({"model": "nope"}, 404, "NotFoundError", "model", "The model `nope` does not exist."),
    ({"prompt": []}, 400, "BadRequestError", "prompt", "Either prompt or prompt_embeds must be provided"),
    ({"prompt": ""}, 200, "", "", ""),
    (
        {"max_tokens": "many"},
        400,
        "Bad Request",
        "body.max_tokens",
        "1 validation error:\n  {'type': ",
    ),
    ({"temperature": -1}, 400, "BadRequestError", "temperature", "temperature must be"),
    (
        {"prompt": [3] * 513},
        400,
        "BadRequestError",
        "input_tokens",
        "This model's maximum context length is 512 tokens. However, your prompt contains at least 513 input "
        "tokens, which exceeds this limit even without any output tokens.",
    ),
    (
        {"max_tokens": 100_000},
        400,
        "BadRequestError",
        "max_tokens",
        "max_tokens=100000 cannot be greater than max_model_len=512. Please request fewer output tokens. "
        "(parameter=max_tokens, value=100000)",
    ),
    ({"n": 0}, 400, "BadRequestError", "n", "n must be"),
    (
        {"logprobs": 100},
        400,
        "BadRequestError",
        "logprobs",
        "Requested sample logprobs of 100, which is greater than max allowed: 20",
    ),
    (
        {"stream_options": {"include_usage": True}},
        400,
        "BadRequestError",
        "stream_options",
        "Stream options can only be defined when `stream=True`. (parameter=stream_options)",
    ),
    ({"max_tokens": 0}, 400, "BadRequestError", "max_tokens", "max_tokens must be"),
    (
        {"stop_token_ids": [99_999]},
        400,
        "BadRequestError",
        "stop_token_ids",
        "stop_token_ids must name",
    ),
    ({"cache_salt": "x" * 2000}, 400, "Bad Request", "body.cache_salt", "1 validation error"),
    ({"prompt": [[1], [99_999]]}, 400, "BadRequestError", "prompt_token_ids", "prompt_token_ids[0] must be"),
]


@pytest.mark.parametrize(("body", "status", "kind", "param", "words"), ERRORS)
def test_errors_have_vllms_status_form_and_words(http, body, status, kind, param, words):
    response = ask(http, **body)
    assert response.status_code == status
    if status != 200:
        error = response.json()["error"]
        assert (error["type"], error["param"], error["code"]) == (kind, param, status)
        assert error["message"].startswith(words)


def test_errors_of_chats_have_vllms_form(http):
    for body, words in (
        ({"messages": []}, "Cannot apply chat template to an empty conversation."),
        (
            {"messages": QUESTION, "top_logprobs": 2},
            "when using `top_logprobs`, `logprobs` must be",
        ),
    ):
        error = http.post("/v1/chat/completions", json=body)
        assert error.status_code == 400 and error.json()["error"]["message"].startswith(words)


def test_what_the_engine_refuses_has_its_status_in_a_stream_too(http):
    response = ask(http, prompt=[99_999], stream=True)
    assert response.status_code == 400 and "prompt_token_ids[0]" in response.json()["error"]["message"]


def test_an_error_in_a_running_stream_is_an_event_of_its_own(http, running):
    body = {"prompt": PROMPT, "max_tokens": 500, "ignore_eos": True, "stream": True}
    with http.stream("POST", "/v1/completions", json=body) as response:
        lines = response.iter_lines()
        next(lines)
        running.server_loop_call(running.llm.end_requests, "enough")
        *_, error, done = filter(None, lines)
    told = json.loads(error.removeprefix("data: "))
    assert told["error"]["code"] == 503 and told["error"]["message"] == "enough" and done == "data: [DONE]"


def test_which_candidates_are_the_best_is_known_at_the_end(http):
    body = dict(best_of=4, n=2, seed=5, temperature=1, max_tokens=20)
    whole = choices(ask(http, **body))
    assert texts(events(ask(http, **body, stream=True))) == {c["index"]: c["text"] for c in whole}


def test_a_body_that_is_wrong_everywhere_is_refused_in_a_few_lines(http):
    for path, body in (
        ("/v1/completions", {"prompt": [None] * 10_000}),
        ("/detokenize", {"tokens": ["x"] * 10_000}),
        ("/v1/completions", {"prompt": "a", "model": "m" * 100_000}),
        ("/v1/completions", {"prompt": "ab" * 60_000}),
    ):
        response = http.post(path, json=body)
        assert response.status_code in (400, 404) and len(response.content) < 4000
    words = http.post("/v1/completions", json={"prompt": "a", "bad_words": ["x"] * 5000})
    assert words.status_code == 400 and words.json()["error"]["param"] == "body.bad_words"


def test_what_cannot_be_obeyed_is_refused(http):
    assert ask(http, response_format={"type": "yaml"}).json()["error"]["param"] == "response_format"
    chat = {"messages": QUESTION, "max_tokens": 2}
    refused = http.post("/v1/chat/completions", json=chat | {"tool_choice": "required"})  # without tools
    assert refused.status_code == 400 and refused.json()["error"]["param"] == "tool_choice"
    surrogate = http.post("/v1/completions", content=b'{"prompt": "a", "model": "\\ud800"}', headers=IS_JSON)
    assert surrogate.status_code == 404 and "\\ud800" in surrogate.json()["error"]["message"]
    assert ask(http, n=1000).json()["error"]["param"] == "n"


def test_paths_methods_and_bodies_that_are_none(http):
    assert http.get("/nope").json() == {"detail": "Not Found"}
    assert http.get("/v1/completions").status_code == 405
    assert http.post("/v1/completions", content=b"{", headers=IS_JSON).json()["error"]["param"] == "body.1"
    huge = http.post("/v1/completions", json={"prompt": "x" * 300_000})
    assert huge.status_code == 413 and "200,000 bytes" in huge.json()["error"]["message"]

    def pieces():
        for _ in range(100):
            yield b"x" * 10_000

    assert http.post("/v1/completions", content=pieces(), headers=IS_JSON).status_code == 413
    assert http.options("/v1/completions", headers={"Origin": "http://evil"}).status_code == 405


# ── what is not OpenAI's ──────────────────────────────────────────────────────────────────────────────────


def test_tokens_there_and_back(http):
    told = http.post("/tokenize", json={"prompt": "Once upon", "return_token_strs": True}).json()
    assert told["tokens"] == [1, 2313, 2117] and told["count"] == 3 and told["max_model_len"] == 512
    assert len(told["token_strs"]) == 3
    assert "Once upon" in http.post("/detokenize", json={"tokens": told["tokens"]}).json()["prompt"]
    chat = http.post("/tokenize", json={"messages": QUESTION}).json()
    assert chat["count"] == 12
    assert http.post("/detokenize", json={"tokens": [-1]}).status_code == 400
    assert http.post("/tokenize", json={}).status_code == 400


def test_tokens_that_were_added_to_a_vocabulary_can_be_shown_too():
    """As `<|im_end|>` in Qwen's: its id is above those of the vocabulary itself."""
    backend = tokenizers.Tokenizer.from_file(f"{MODEL_PATH}/tokenizer.json")
    backend.add_tokens([tokenizers.AddedToken("<|added|>", special=True)])
    model = ServedModel(SimpleNamespace(tokenizer=Tokenizer(backend)), ["it"], "", 512)
    app = FastAPI()
    add_token_routes(app, model)
    with TestClient(app) as client:
        tokens = client.post("/tokenize", json={"prompt": "a<|added|>"}).json()["tokens"]
        assert tokens[-1] == model.tokenizer.vocab_size
        assert "<|added|>" in client.post("/detokenize", json={"tokens": tokens}).json()["prompt"]


def test_health_version_load_and_documentation(http):
    assert http.get("/health").status_code == http.get("/ping").status_code == 200
    assert http.get("/version").json()["version"]
    patience.until(lambda: http.get("/load").json() == {"server_load": 0})  # who has left is gone soon
    assert "/v1/chat/completions" in http.get("/openapi.json").json()["paths"]
    assert http.get("/docs").status_code == 200
    assert http.post("/reset_prefix_cache").json() == {"success": True}
    assert "vllm:generation_tokens_total" in http.get("/metrics").text
