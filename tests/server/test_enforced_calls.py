"""An answer that must be a call of a function is one, whatever the model would have said."""

import json

import openai
import pytest

from tests import patience, profiles

CITY = {"$defs": {"city": {"enum": ["Rome", "Oslo"]}}, "type": "object"}
WEATHER = CITY | {"properties": {"city": {"$ref": "#/$defs/city"}}, "required": ["city"]}
ADD = {
    "type": "object",
    "properties": {"a": {"enum": [1, 22]}, "b": {"type": "boolean"}},
    "required": ["a", "b"],
}
TOOLS = [
    {"type": "function", "function": {"name": "weather", "parameters": WEATHER}},
    {"type": "function", "function": {"name": "add", "parameters": ADD}},
    {"type": "function", "function": {"name": "now"}},
]
NAMED = {"type": "function", "function": {"name": "add"}}


@pytest.fixture(scope="module")
def ask(running):
    client = openai.OpenAI(base_url=f"{running.url}/v1", api_key="none", timeout=patience.SECONDS)

    def ask(**asked):
        messages = [{"role": "user", "content": "Once upon a time"}]
        given = {"model": "tiny", "messages": messages, "tools": TOOLS, "max_tokens": 120, **asked}
        template = "{% for m in messages %}{{ m.content }} {% endfor %}"
        return client.chat.completions.create(**given, extra_body={"chat_template": template})

    yield ask
    client.close()


def check(name, arguments):
    given = json.loads(arguments)
    match name:
        case "weather":
            assert given["city"] in ("Rome", "Oslo")
        case "add":
            assert given["a"] in (1, 22) and isinstance(given["b"], bool)
        case "now":
            assert given == {}
        case _:
            raise AssertionError(name)


@pytest.mark.parametrize("seed", profiles.by_day(range(2), range(6)))
def test_a_call_is_made_if_one_is_required(ask, seed):
    for choice in ask(tool_choice="required", seed=seed, temperature=1.5, n=2).choices:
        for call in choice.message.tool_calls:
            check(call.function.name, call.function.arguments)
        if choice.finish_reason == "length":  # the list was cut off, and what is left of it is text
            assert choice.message.content is None or choice.message.content.startswith((",", "{"))
        else:
            assert choice.message.content is None and choice.finish_reason == "tool_calls"


@pytest.mark.parametrize("seed", profiles.by_day(range(1), range(3)))
def test_one_call_is_made_if_several_are_not_wanted(ask, seed):
    [choice] = ask(tool_choice="required", parallel_tool_calls=False, seed=seed, temperature=1.5).choices
    [call] = choice.message.tool_calls
    check(call.function.name, call.function.arguments)
    assert choice.message.content is None and choice.finish_reason == "tool_calls"


def test_a_stream_tells_the_calls_of_the_whole_answer(ask):
    def told(call):
        return call.function.name, call.function.arguments

    asked = dict(tool_choice="required", temperature=1.5, max_tokens=150)
    seeds = profiles.by_day(range(2), range(4))  # one is cut off, one comes to its end
    wholes = [ask(**asked, seed=seed).choices[0] for seed in seeds]
    assert {whole.finish_reason for whole in wholes} == {"length", "tool_calls"}
    assert max(len(whole.message.tool_calls) for whole in wholes) > 1
    for seed, whole in zip(seeds, wholes, strict=True):
        chunks = [chunk.choices[0] for chunk in ask(**asked, seed=seed, stream=True)]
        deltas = [call for choice in chunks for call in choice.delta.tool_calls or []]
        named, filled = deltas[::2], deltas[1::2]
        assert [delta.index for delta in named] == list(range(len(named)))
        assert [delta.index for delta in filled] == list(range(len(named)))
        calls = [
            (one.function.name, other.function.arguments) for one, other in zip(named, filled, strict=True)
        ]
        assert calls == [told(call) for call in whole.message.tool_calls]
        content = "".join(choice.delta.content or "" for choice in chunks)
        assert content == (whole.message.content or "") and chunks[-1].finish_reason == whole.finish_reason


def test_the_function_that_was_named_is_called(ask):
    [choice] = ask(tool_choice=NAMED).choices
    [call] = choice.message.tool_calls
    assert call.function.name == "add" and choice.finish_reason == "stop"
    check("add", call.function.arguments)


def test_a_stream_tells_the_call(ask):
    chunks = [chunk.choices[0] for chunk in ask(tool_choice=NAMED, stream=True)]
    deltas = [call for choice in chunks for call in choice.delta.tool_calls or []]
    assert [delta.index for delta in deltas] == [0, 0] and deltas[0].id
    check(deltas[0].function.name, deltas[1].function.arguments)
    assert not any(choice.delta.content for choice in chunks) and chunks[-1].finish_reason == "stop"


def test_two_demands_on_one_answer_are_refused(ask):
    with pytest.raises(openai.BadRequestError, match="something else") as refused:
        ask(tool_choice="required", response_format={"type": "json_object"})
    assert refused.value.param == "tool_choice"
    other = {"$defs": {"city": {"enum": ["Bern"]}}, "$ref": "#/$defs/city"}
    with pytest.raises(openai.BadRequestError, match="another function defines 'city'"):
        ask(
            tool_choice="required",
            tools=[*TOOLS, {"type": "function", "function": {"name": "x", "parameters": other}}],
        )


@pytest.mark.parametrize(
    ("tool", "words"),
    [
        ({"type": "function"}, r"tools\[3\] must be"),
        ({"type": "other", "function": {"name": "x"}}, r"tools\[3\] must be"),
        (
            {"type": "function", "function": {"name": "x", "parameters": [1]}},
            r"tools\[3\].function.parameters must be",
        ),
        (
            {"type": "function", "function": {"name": "x", "parameters": {"$defs": 5}}},
            r"parameters: \$defs must",
        ),
        (TOOLS[1], r"tools\[3\] is named 'add', as tools\[1\] is"),
    ],
)
def test_tools_that_are_none_are_refused_by_name(ask, tool, words):
    with pytest.raises(openai.BadRequestError, match=words) as refused:
        ask(tool_choice="required", tools=[*TOOLS, tool])
    assert refused.value.param.startswith("tools[3]")


def test_a_schema_that_is_not_understood_is_refused_by_its_keyword(ask):
    odd = {"type": "object", "properties": {"a": {"not": {}}}}
    words = r"tools\[3\].function.parameters: at #/properties/a: the keyword 'not'"
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError, match=words) as refused:
            ask(
                tool_choice="required",
                stream=stream,
                tools=[*TOOLS, {"type": "function", "function": {"name": "x", "parameters": odd}}],
            )
        assert refused.value.param == "tools[3].function.parameters"
