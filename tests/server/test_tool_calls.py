"""Calls found in answers: the same wherever a stream is cut, complete, and nothing lost of the text."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minivllm.server.tool_calls import ToolCallParser
from minivllm.server.tool_formats import HERMES, LLAMA3_JSON, ToolCall, format_of_template
from tests.model.chat.chat_templates_for_tests import FAMILIES

FORMS = [HERMES, LLAMA3_JSON]
HEAD = "<|start_header_id|>ipython<|end_header_id|>"
LLAMA_TEMPLATE = (
    HEAD + """{{ 'Respond in the format {"name": function name, "parameters": dictionary of …}' }}"""
)


def told(form, *chunks):
    """Texts and calls, pieces of text put together."""
    parser = ToolCallParser(form)
    pieces = [piece for chunk in chunks for piece in parser.feed(chunk)] + parser.finish()
    joined = []
    for piece in pieces:
        if joined and isinstance(piece, str) and isinstance(joined[-1], str):
            piece = joined.pop() + piece
        joined.append(piece)
    return joined


names = st.text(st.characters(codec="utf-8"), min_size=1, max_size=6)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text(st.sampled_from('ab"\\{}</>\n;é'), max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
    max_leaves=6,
)
arguments = st.dictionaries(names, values, max_size=3)


@st.composite
def written(draw, form):
    """A call as a model writes it, and what it is."""
    name, own = draw(names), draw(arguments)
    indent = draw(st.sampled_from([None, 1]))
    text = json.dumps({"name": name, form.arguments[0]: own}, ensure_ascii=draw(st.booleans()), indent=indent)
    blank = draw(st.sampled_from(["", "\n"]))
    opening = form.openings[0] if form is HERMES else draw(st.sampled_from(["", form.openings[0]]))
    return f"{opening}{blank}{text}{blank if form is HERMES else ''}{form.closing}", (name, own)


MARKS = [
    "<tool_call>",
    "</tool_call>",
    "<tool",
    "<|python_tag|>",
    '{"name": "f", "arguments": {}}',
    '{"name": "g", "parameters": {"a": [1]}}',
    '{"name',
    "{",
    "}",
    '"',
    "\\",
    "\n",
    ";",
    "text",
]


@given(st.data(), st.sampled_from(FORMS))
def test_wherever_a_stream_is_cut_it_tells_what_the_whole_text_tells(data, form):
    parts = st.sampled_from(MARKS) | written(form).map(lambda pair: pair[0])
    text = "".join(data.draw(st.lists(parts, max_size=8)))
    cuts = sorted(data.draw(st.sets(st.integers(0, len(text)))))
    chunks = [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    assert told(form, *chunks) == told(form, *text) == told(form, text)


def test_blanks_between_a_call_and_what_follows_are_text_however_they_come():
    text = '{"name": "f", "parameters": {}}\n<tool_call>'
    assert told(LLAMA3_JSON, text) == told(LLAMA3_JSON, *text)
    assert told(LLAMA3_JSON, text)[-1] == "\n<tool_call>"


@given(st.data(), st.sampled_from(FORMS))
def test_each_call_is_found_with_its_name_and_arguments(data, form):
    pairs = data.draw(st.lists(written(form), min_size=1, max_size=3))
    before = data.draw(st.sampled_from(["", "\n", "I look: "]))
    between = data.draw(st.sampled_from(["", "\n"] if form is HERMES else ["; ", "\n"]))
    first, *calls = told(form, before + between.join(text for text, _ in pairs))
    if before.strip():
        assert first.rstrip() == before.rstrip()
    else:
        calls.insert(0, first)
    assert [(call.name, json.loads(call.arguments)) for call in calls] == [pair for _, pair in pairs]


@given(
    st.lists(st.sampled_from([mark for mark in MARKS if not mark.startswith('{"')])), st.sampled_from(FORMS)
)
def test_what_is_no_call_stays_text_to_the_last_character(parts, form):
    text = "".join(parts)
    assert told(form, text) == ([text] if text else [])


@pytest.mark.parametrize(
    "text",
    [
        '<tool_call>{"name": "f", "arguments": {"a": NaN}}</tool_call>',
        '<tool_call>{"name": "f", "arguments": [1]}</tool_call>',
        '<tool_call>{"name": "", "arguments": {}}</tool_call>',
        '<tool_call>{"name": 5, "arguments": {}}</tool_call>',
        '<tool_call>{"name": "f"}</tool_call>',
        '<tool_call>{"name": "f", "arguments": {}} and so on',
        '<tool_call>{"name": "f", "arguments": {"a": "one\nline"}}</tool_call>',
        '<tool_call>{"name": "f", "arguments": {"a": ' + "[" * 5000 + "]" * 5000 + "}}</tool_call>",
        '<tool_call>{"name": "f", "arguments": {"a',
        "<tool_call>f(1)</tool_call>",
    ],
)
def test_what_is_broken_stays_text(text):
    assert told(HERMES, text) == [text]


def test_a_call_may_lack_its_closing_tag_at_the_end():
    for end in ("", "\n", "</tool", "</tool_call>"):
        assert told(HERMES, '<tool_call>{"name": "f", "arguments": {}}' + end) == [ToolCall("f", "{}")]


def test_code_and_other_json_are_not_waited_for():
    parser = ToolCallParser(LLAMA3_JSON)
    assert parser.feed("int main() { return") == ["int main() { return"]
    assert parser.feed(' {"user": 1') == [' {"user": 1']
    assert parser.feed(' {"name": "Bob", ') == [" "]
    assert parser.feed('"age": 3}') == ['{"name": "Bob", "age": 3}']


def test_arguments_are_told_as_they_were_written():
    [call] = told(HERMES, '<tool_call>{"name": "f", "arguments": {"x":1.0,  "y": 1E3, "x": 2}}</tool_call>')
    assert call.arguments == '{"x":1.0,  "y": 1E3, "x": 2}'


def test_the_chat_template_says_how_calls_are_written():
    assert format_of_template(FAMILIES["qwen3"]) is HERMES
    assert format_of_template(LLAMA_TEMPLATE) is LLAMA3_JSON
    for other in (
        "<tool_call><function=f><parameter=a> arguments",
        "<tool_call>f <arg_key> arguments",
        "hi",
        None,
    ):
        assert format_of_template(other) is None
