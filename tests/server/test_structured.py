"""Structured output over HTTP: `response_format`, and `structured_outputs` under the names of vLLM."""

import json
import logging
import re

import openai
import pytest

from tests import patience

SCHEMA = {
    "type": "object",
    "properties": {"word": {"type": "string", "maxLength": 8}, "count": {"type": "integer", "maximum": 99}},
    "required": ["word", "count"],
    "additionalProperties": False,
}
FORMAT = {"type": "json_schema", "json_schema": {"name": "it", "schema": SCHEMA, "strict": True}}
MESSAGES = [{"role": "user", "content": "What is paging?"}]


@pytest.fixture(scope="module")
def client(running):
    with openai.OpenAI(base_url=f"{running.url}/v1", api_key="none", timeout=patience.SECONDS) as found:
        yield found


def test_a_chat_answers_by_its_schema_at_once_and_in_chunks(client):
    asked = dict(model="tiny", messages=MESSAGES, response_format=FORMAT, max_tokens=80, seed=3)
    whole = client.chat.completions.create(**asked).choices[0]
    assert set(json.loads(whole.message.content)) == {"word", "count"} and whole.finish_reason == "stop"
    chunks = client.chat.completions.create(**asked, stream=True)
    assert "".join(chunk.choices[0].delta.content for chunk in chunks) == whole.message.content


def test_a_completion_follows_each_kind_of_structure(client):
    def ask(**structure):
        body = {"structured_outputs": structure}
        made = client.completions.create(model="tiny", prompt="A", max_tokens=60, seed=1, extra_body=body)
        return made.choices[0].text

    assert ask(choice=["yes", "no"]) in ("yes", "no")
    assert re.fullmatch(r"\d{2}-[ab]{3}", ask(regex=r"\d{2}-[ab]{3}"))
    assert re.fullmatch(r"\([xy]{3}\)", ask(grammar='root ::= "(" [xy]{3} ")"'))
    assert set(json.loads(ask(json=SCHEMA))) == {"word", "count"}
    assert ask(json_object=True).startswith("{")


def test_plain_text_and_an_object_are_formats_too(client):
    asked = dict(model="tiny", messages=MESSAGES, max_tokens=3, temperature=0)
    plain = client.chat.completions.create(**asked)
    said = client.chat.completions.create(**asked, response_format={"type": "text"})
    assert said.choices[0].message.content == plain.choices[0].message.content
    said = client.chat.completions.create(**asked, response_format={"type": "json_object"})
    assert said.choices[0].message.content.startswith("{")


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        ({"structured_outputs": {}}, "exactly one of json, regex"),
        ({"structured_outputs": {"regexp": "a"}}, "has no argument 'regexp'"),
        ({"structured_outputs": {"regex": "(?=a)"}}, "a lookahead"),
        ({"structured_outputs": {"json": {"not": {}}}}, "keyword 'not' is not supported"),
        ({"structured_outputs": {"grammar": "start: x"}}, "must be GBNF"),
        (
            {"response_format": {"type": "json_schema"}},
            "json_schema must be an object with a name and a schema",
        ),
        ({"response_format": {"type": "yaml"}}, "type must be one of 'text'"),
        ({"response_format": FORMAT, "structured_outputs": {"regex": "a"}}, "cannot be given together"),
    ],
)
def test_what_cannot_be_followed_is_a_bad_request(client, body, problem):
    with pytest.raises(openai.BadRequestError, match=re.escape(problem)):
        client.completions.create(model="tiny", prompt="A", max_tokens=2, temperature=0, extra_body=body)


def test_fields_of_old_are_ignored_and_the_log_names_them(client, caplog):
    with caplog.at_level(logging.WARNING, logger="minivllm.server.protocol"):
        body = {"guided_regex": "[0-9]{3}", "guided_json": SCHEMA}
        made = client.completions.create(
            model="tiny", prompt="A", max_tokens=3, temperature=0, extra_body=body
        )
    assert not made.choices[0].text.isdigit()
    assert "guided_regex" in caplog.text and "guided_json" in caplog.text


def test_text_with_tags_in_it_is_a_format(client):
    content = {"type": "json_schema", "json_schema": SCHEMA}
    tags = [{"begin": "<call>", "content": content, "end": "</call>"}]
    wanted = {"type": "triggered_tags", "triggers": ["<call>"], "tags": tags, "at_least_one": True}
    asked = dict(model="tiny", messages=MESSAGES, max_tokens=120, seed=3)
    for body in (
        {"response_format": {"type": "structural_tag", "format": wanted}},
        {"structured_outputs": {"structural_tag": json.dumps({"format": wanted})}},
    ):
        answer = client.chat.completions.create(**asked, extra_body=body).choices[0].message.content
        call, end, _ = answer.removeprefix("<call>").partition("</call>")
        assert answer.startswith("<call>") and end and set(json.loads(call)) == {"word", "count"}


def test_tags_that_cannot_be_followed_are_named_by_their_place(client):
    wanted = {"type": "structural_tag", "format": {"type": "sequence", "elements": [{"type": "token"}]}}
    with pytest.raises(
        openai.BadRequestError, match="response_format: structural_tag, at #/format/elements/0"
    ):
        client.chat.completions.create(model="tiny", messages=MESSAGES, response_format=wanted)
