"""The document at `/openapi.json` says what may be sent and what comes back. Schemathesis makes up requests
from it, wrong ones too, and holds every answer to it."""

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)

from minivllm.server.answer_forms import ChatAnswer, CompletionAnswer, ErrorAnswer
from tests import patience, profiles

IS_NIGHT = profiles.is_night()
EXAMPLES = 250 if IS_NIGHT else 8
"""For each of the operations."""
LENIENT = {"suppress_health_check": list(HealthCheck), "deadline": None}
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    unsupported_method,
]


@pytest.fixture(scope="module")
def document(running):
    return schemathesis.openapi.from_url(f"{running.url}/openapi.json")


WITH_BODY = ("/v1/completions", "/v1/chat/completions", "/tokenize", "/detokenize")
WITHOUT = ("GET /v1/models", "GET /v1/models/{name}", "GET /load", "GET /version", "POST /reset_prefix_cache")
OPERATIONS = [("POST", path, mode) for path in WITH_BODY for mode in GenerationMode]
OPERATIONS += [(*operation.split(), GenerationMode.POSITIVE) for operation in WITHOUT]


def quick(body):
    """The same request, without what takes long."""
    if isinstance(body, dict):
        for name, most in (("max_tokens", 2), ("max_completion_tokens", 2), ("n", 4), ("best_of", 4)):
            if isinstance(body.get(name), int | None):
                body[name] = min(body.get(name) or most, most)


@pytest.mark.parametrize(("method", "path", "mode"), OPERATIONS)
def test_whatever_is_sent_is_answered_as_the_document_says(running, document, method, path, mode):
    operation = document[path][method]

    @given(operation.as_strategy(generation_mode=mode))
    @settings(max_examples=EXAMPLES if path in WITH_BODY else 2, **LENIENT)
    def every_case(case):
        quick(case.body)
        case.call_and_validate(base_url=running.url, checks=CHECKS, timeout=patience.SECONDS)

    every_case()


ALL = {"n": 2, "max_tokens": 3, "return_token_ids": True, "prompt_logprobs": 1, "temperature": 0.5}


def test_a_whole_answer_has_the_documented_form(http):
    body = {"prompt": ["a", "b"], "logprobs": 2, "echo": True} | ALL
    assert CompletionAnswer.model_validate(http.post("/v1/completions", json=body).json()).choices[3].logprobs
    body = {"messages": [{"role": "user", "content": "a"}], "logprobs": True, "top_logprobs": 2} | ALL
    assert ChatAnswer.model_validate(http.post("/v1/chat/completions", json=body).json()).choices[1].logprobs
    refused = http.post("/v1/completions", json={})
    assert ErrorAnswer.model_validate(refused.json()).error.code == 400


def test_every_field_and_status_is_explained(http):
    document = http.get("/openapi.json").json()
    for name in ("CompletionRequest", "ChatCompletionRequest", "CompletionAnswer", "ErrorAnswer"):
        form = document["components"]["schemas"][name]
        assert form["description"] and "Attributes" not in form["description"]
        if name.endswith("Request"):
            untold = {key for key, value in form["properties"].items() if "description" not in value}
            assert untold <= {"response_format", "structured_outputs"}
    for path in document["paths"].values():
        for operation in path.values():
            assert operation["summary"] and "422" not in operation["responses"]
    chat = document["paths"]["/v1/chat/completions"]["post"]["responses"]
    assert {"200", "400", "404", "408", "413", "500", "503"} <= chat.keys()
    assert "text/event-stream" in chat["200"]["content"]
