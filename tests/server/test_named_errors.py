"""An error names the field that the client has sent, not what the server made of it."""

import json

import pytest

from tests.server.test_structured import MESSAGES, SCHEMA

ODD = {"type": "object", "properties": {"a": {"not": {}}}}
LONE = b'"\\ud83d"'


def refused(http, path="chat/completions", body=None, **fields):
    """The error that a request gets."""
    if body is None:
        body = json.dumps({"model": "tiny", "max_tokens": 2, **fields}).encode()
    answer = http.post(f"/v1/{path}", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 400, answer.text
    return answer.json()["error"]


@pytest.mark.parametrize("stream", [False, True])
def test_a_schema_of_a_response_format_is_named_so(http, stream):
    wanted = {"type": "json_schema", "json_schema": {"name": "it", "schema": ODD}}
    error = refused(http, messages=MESSAGES, response_format=wanted, stream=stream)
    assert error["param"] == "response_format" and "structured_outputs" not in error["message"]
    assert error["message"].startswith("response_format: at #/properties/a: the keyword 'not'")


def test_a_schema_of_structured_outputs_is_named_so(http):
    error = refused(http, messages=MESSAGES, structured_outputs={"json": ODD})
    assert error["param"] == "structured_outputs" and error["message"].startswith("structured_outputs (json)")
    error = refused(http, messages=MESSAGES, structured_outputs={"regexp": "a"})
    assert error["param"] == "structured_outputs" and error["message"].startswith("structured_outputs: ")


@pytest.mark.parametrize("template", ["{% for", "{{ raise_exception('no') }}", "{{ 1 + messages }}"])
def test_a_template_of_the_request_is_to_blame_for_itself(http, running, template):
    error = refused(http, messages=MESSAGES, chat_template=template)
    assert error["param"] == "chat_template" and error["message"].startswith(
        "the chat template of this request"
    )
    answer = http.post("/tokenize", json={"messages": MESSAGES, "chat_template": template})
    assert answer.status_code == 400 and answer.json()["error"]["param"] == "chat_template"
    assert running.model.root not in answer.text


def test_half_a_character_is_named_where_it_stands(http):
    for body, name in (
        (b'{"prompt": %s}' % LONE, "prompt"),
        (b'{"prompt": ["A", %s]}' % LONE, "prompt"),
    ):
        error = refused(http, "completions", body)
        assert error["param"] == name and error["message"].startswith(f"{name} must be text")
    body = b'{"messages": [{"role": "user", "content": %s}]}' % LONE
    assert refused(http, body=body)["param"] == "messages"


def test_a_schema_that_json_cannot_express_is_the_fields(http):
    wanted = b'{"type": "json_schema", "json_schema": {"schema": {"const": %s}}}' % LONE
    error = refused(http, "completions", b'{"prompt": "A", "response_format": %s}' % wanted)
    assert error["param"] == "response_format"
    assert refused(http, "completions", prompt="A", structured_outputs={"json": SCHEMA, "regex": "a"})[
        "param"
    ]
