"""Conversations become prompts as in `transformers` and vLLM."""

import json
import warnings
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from minivllm.model.chat_messages import normalise_messages, read_messages
from minivllm.model.chat_template import ChatTemplateError, ChatTemplates, load_chat_template, render_chat
from minivllm.model.content_format import detect_content_format
from tests.decoding.tokenizers_for_tests import byte_level
from tests.model.chat_templates_for_tests import CHATML, FAMILIES, FORMATS, HERMES, PARTS_ONLY, QWEN3

NAMES = {"bos_token": "<s>", "eos_token": "</s>"}
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": 'of a <place> & "time" 天气',
        "parameters": {
            "type": "object",
            "properties": {"days": {"type": "array", "items": {"type": "string"}}},
        },
    },
}
CALL = {
    "id": "call_1",
    "type": "function",
    "function": {"name": "weather", "arguments": '{"days": ["今天"]}'},
}
HELLO = [{"role": "user", "content": "hi"}]


def as_parts(text):
    return [{"type": "text", "text": text}]


@pytest.fixture(scope="module")
def oracle():
    return PreTrainedTokenizerFast(tokenizer_object=byte_level(), **NAMES)


texts = st.sampled_from(
    [
        "",
        " hi ",
        "two\nlines\n",
        "键值",
        "<think>\nwhy\n</think>\n\nso",
        "<|im_end|>",
        "{{ x }}",
        "%s 'q' \"d\"",
    ]
)
contents = st.one_of(
    texts, st.none(), st.lists(texts.map(lambda text: {"type": "text", "text": text}), max_size=3)
)
messages_of_users = st.builds(
    lambda role, text: {"role": role, "content": text}, st.sampled_from(["user", "system"]), contents
)
answers = st.fixed_dictionaries(
    {"role": st.just("assistant"), "content": contents},
    optional={
        "tool_calls": st.sampled_from([None, [], [CALL], [CALL, CALL]]),
        "reasoning_content": texts,
        "reasoning": st.none() | texts,
        "name": st.just("bot"),
    },
)
results = st.fixed_dictionaries(
    {"role": st.just("tool"), "content": contents},
    optional={"tool_call_id": st.just("call_1"), "name": st.just("weather")},
)
conversations = st.lists(messages_of_users | answers | results, min_size=1, max_size=5)
options = st.fixed_dictionaries(
    {},
    optional={
        "tools": st.sampled_from([None, [], [WEATHER], [WEATHER, WEATHER]]),
        "documents": st.sampled_from([None, [{"title": "one", "text": "See é"}]]),
        "add_generation_prompt": st.booleans(),
        "continue_final_message": st.booleans(),
    },
)
variables = st.fixed_dictionaries(
    {},
    optional={"enable_thinking": st.booleans(), "date_string": st.just("1 May"), "bos_token": st.just("<b>")},
)


def outcome(action):
    """What comes of it: a text, or that there is none."""
    try:
        return action()
    except Exception:
        return "refused"


@given(conversation=conversations, family=st.sampled_from(sorted(FAMILIES)), given=options, more=variables)
def test_a_conversation_becomes_the_prompt_that_transformers_makes_of_it(
    oracle, conversation, family, given, more
):
    ours = ChatTemplates(FAMILIES[family], NAMES)
    made = outcome(
        lambda: ours.render_template(conversation, variables={"date_string": "x", **more}, **given)
    )
    expected = outcome(
        lambda: oracle.apply_chat_template(
            conversation,
            chat_template=FAMILIES[family],
            tokenize=False,
            **{"date_string": "x", **more},
            **given,
        )
    )
    assert made == expected


@given(conversation=conversations, family=st.sampled_from(sorted(FAMILIES)))
def test_text_and_parts_mean_the_same_whatever_the_template_expects(conversation, family):
    ours = ChatTemplates(FAMILIES[family], NAMES)
    more = {"chat_template_kwargs": {"date_string": "x"}}

    def in_the_other_form(message):
        if isinstance(message["content"], str):
            return {**message, "content": as_parts(message["content"])}
        if message["content"] and len(message["content"]) == 1:
            return {**message, "content": message["content"][0]["text"]}
        return message

    other = [in_the_other_form(message) for message in conversation]
    assert outcome(lambda: render_chat(ours, conversation, **more)) == outcome(
        lambda: render_chat(ours, other, **more)
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_a_plain_conversation_is_understood_in_every_form_by_every_family(family):
    ours = ChatTemplates(FAMILIES[family], NAMES)
    talk = [HELLO[0], {"role": "assistant", "content": "yes"}, {"role": "user", "content": "go on"}]
    parts = [{**message, "content": as_parts(message["content"])} for message in talk]
    prompt = render_chat(ours, talk, add_generation_prompt=True)
    assert prompt == render_chat(ours, parts, add_generation_prompt=True)
    assert prompt.index("hi") < prompt.index("yes") < prompt.index("go on")
    assert "type" not in prompt, "parts are not printed as they are"


@pytest.mark.parametrize("family", FAMILIES)
def test_what_the_template_expects_is_found_out(family):
    assert detect_content_format(FAMILIES[family]) == FORMATS[family]


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{% for m in messages %}{{ m.content }}{% endfor %}", "string"),
        ("{% for m in messages %}{% for c in m.content %}{% endfor %}{% endfor %}", "openai"),
        (
            "{% for m in messages[1:] | list %}{% for c in m['content'] | list %}{% endfor %}{% endfor %}",
            "openai",
        ),
        (
            "{% set ms = messages[1:] %}{% set ns = ms %}{% for m in ns %}{% for c in m['content'] %}{% endfor %}{% endfor %}",
            "openai",
        ),
        ("{% set messages = messages[1:] %}{% for m in messages %}{{ m.content }}{% endfor %}", "string"),
        ("{% for m in messages %}{% for c in m.parts %}{% endfor %}{% endfor %}", "string"),
        ("{% for m in tools %}{% for c in m.content %}{% endfor %}{% endfor %}", "string"),
        (
            "{% for i, m in messages %}{% for c in m.content %}{% endfor %}{% endfor %}",
            "string",
        ),  # not followed
        (
            "{% set ns.m = messages %}{% for m in messages %}{% for c in m.content %}{% endfor %}{% endfor %}",
            "string",
        ),
    ],
)
def test_the_detection_answers_as_that_of_vllm(template, expected):
    assert detect_content_format(template) == expected


def test_parts_keep_what_they_have_besides_and_text_parts_of_all_kinds_are_text():
    content = [
        "a",
        *as_parts("b"),
        {"type": "input_text", "text": "c"},
        {"type": "output_text", "text": "d"},
        {"type": "refusal", "refusal": "e"},
        {"type": "thinking", "thinking": "f"},
        {"type": "text", "text": None},
    ]
    messages = read_messages([{"role": "user", "content": content}])
    assert normalise_messages(messages, "string")[0]["content"] == "a\nb\nc\nd\ne\nf"
    kept = read_messages([{"role": "user", "content": [{"type": "text", "text": "a", "cache_control": "x"}]}])
    assert normalise_messages(kept, "openai")[0]["content"] == [
        {"type": "text", "text": "a", "cache_control": "x"}
    ]
    tool = read_messages([{"role": "tool", "content": as_parts("42")}])
    assert normalise_messages(tool, "openai")[0]["content"] == "42", "results of tools are text everywhere"


def test_the_format_can_be_said_instead_of_found_out():
    ours = ChatTemplates("{% for m in messages %}{{ m.content }}{% endfor %}")
    assert render_chat(ours, HELLO) == "hi"
    assert "'type': 'text'" in render_chat(ours, HELLO, chat_template_content_format="openai")
    with pytest.raises(
        ValueError, match="chat_template_content_format must be one of 'auto', 'string', 'openai'"
    ):
        render_chat(ours, HELLO, chat_template_content_format="json")


@pytest.mark.parametrize("content", [{}, {"content": None}], ids=["absent", "null"])
def test_a_call_of_a_tool_needs_no_content_and_its_arguments_are_parsed(content):
    conversation = [*HELLO, {"role": "assistant", "tool_calls": [CALL], **content}]
    prompt = render_chat(ChatTemplates(QWEN3), conversation)
    assert '<tool_call>\n{"name": "weather", "arguments": {"days": ["今天"]}}\n</tool_call>' in prompt
    assert "None" not in prompt
    assert CALL["function"]["arguments"] == '{"days": ["今天"]}', "the caller's messages are left alone"


@pytest.mark.parametrize("arguments", ["{", "[1]", "5", 7])
def test_arguments_that_are_no_object_are_an_empty_one_and_a_warning(arguments):
    call = {"function": {"name": "f", "arguments": arguments}}
    messages = read_messages([{"role": "assistant", "tool_calls": [call]}])
    with pytest.warns(UserWarning, match=r"messages\[0\]\['tool_calls'\]\[0\]\['function'\]\['arguments'\]"):
        assert normalise_messages(messages, "string")[0]["tool_calls"][0]["function"]["arguments"] == {}


def test_absent_arguments_and_calls_are_nothing_to_warn_about():
    calls = [{"function": {"name": "f", "arguments": nothing}} for nothing in (None, "", {})]
    messages = read_messages(
        [{"role": "assistant", "tool_calls": calls}, {"role": "assistant", "tool_calls": []}]
    )
    with warnings.catch_warnings(action="error"):
        some, none = normalise_messages(messages, "string")
    assert [call["function"]["arguments"] for call in some["tool_calls"]] == [{}, {}, {}]
    assert "tool_calls" not in none


def test_messages_of_a_client_library_are_taken_as_dictionaries():
    class Message(SimpleNamespace):
        def model_dump(self):
            return {"role": "user", "content": "hi", "refusal": None}

    assert render_chat(ChatTemplates(CHATML), [Message()]) == render_chat(ChatTemplates(CHATML), HELLO)


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        ([], "messages must be a list of messages that is not empty"),
        ("hi", "messages must be a list"),
        (HELLO[0], "messages must be a list"),
        ([HELLO[0], "hi"], r"messages\[1\] must be"),
        ([{"content": "hi"}], r"messages\[0\] must have a 'role'"),
        ([{"role": 3, "content": "x"}], r"messages\[0\] must have a 'role' that is a string"),
        ([{"role": "user", "content": 5}], r"messages\[0\]\['content'\] must be a string or a list of parts, got 5"),
        ([{"role": "user", "content": [5]}], r"messages\[0\]\['content'\]\[0\] must be"),
        ([{"role": "user", "content": [{"text": "x"}]}], r"messages\[0\]\['content'\]\[0\] must be"),
        ([{"role": "user", "content": [{"type": "text", "text": 5}]}], r"\['content'\]\[0\]\['text'\] must be a string"),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}], "'image_url', and this engine reads text only"),
        ([{"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}], "'input_audio', and this engine reads text only"),
        ([{"role": "user", "content": {1, 2}}], r"messages\[0\]\['content'\] must be plain data"),
        ([{"role": "assistant", "tool_calls": "f"}], r"messages\[0\]\['tool_calls'\] must be a list"),
        ([{"role": "assistant", "tool_calls": [{"function": "f"}]}], r"messages\[0\]\['tool_calls'\]\[0\] must be"),
        ([{"role": "assistant", "tool_calls": [{"type": "custom", "function": {}}]}], r"\['tool_calls'\]\[0\] must be"),
    ],
)  # fmt: skip
def test_messages_of_another_form_are_refused_by_their_place(messages, words):
    with pytest.raises(ValueError, match=words):
        render_chat(ChatTemplates(PARTS_ONLY), messages)


def test_data_that_is_nested_too_deeply_is_refused_by_its_place():
    deep: list = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(ValueError, match=r"messages\[0\] is nested too deeply"):
        render_chat(ChatTemplates(CHATML), [{"role": "user", "content": deep}])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"add_generation_prompt": True, "continue_final_message": True}, "cannot both be True"),
        ({"add_generation_prompt": "yes"}, "add_generation_prompt must be True or False, got 'yes'"),
        ({"continue_final_message": "content"}, "continue_final_message must be True or False"),
        ({"tools": {"name": "f"}}, "tools must be a list of dictionaries"),
        ({"tools": [json.dumps]}, r"tools\[0\] is a function, and must be a dictionary with its JSON schema"),
        ({"documents": ["text"]}, r"documents\[0\] must be a dictionary, got 'text'"),
        ({"chat_template": 5}, "chat_template must be a string, got 5"),
        ({"chat_template_kwargs": [1]}, "chat_template_kwargs must be a dictionary"),
        (
            {"chat_template_kwargs": {"tools": []}},
            "chat_template_kwargs cannot have 'tools', which is an argument",
        ),
        ({"chat_template_kwargs": {"x": object()}}, r"chat_template_kwargs\['x'\] must be plain data"),
    ],
)
def test_arguments_of_another_form_are_refused_by_name(arguments, words):
    with pytest.raises(ValueError, match=words):
        render_chat(ChatTemplates(CHATML), HELLO, **arguments)


def test_the_last_message_can_be_continued_and_only_if_it_is_there():
    begun = [*HELLO, {"role": "assistant", "content": "It is "}]
    prompt = render_chat(ChatTemplates(CHATML), begun, continue_final_message=True)
    assert prompt.endswith("<|im_start|>assistant\nIt is ")
    parts = [*HELLO, {"role": "assistant", "content": as_parts("It is ")}]
    assert render_chat(ChatTemplates(CHATML), parts, continue_final_message=True) == prompt
    with pytest.raises(ChatTemplateError, match="otherwise than it is"):
        render_chat(ChatTemplates("nothing of it"), begun, continue_final_message=True)


NAMED = {"default": "plain", "tool_use": "with tools", "rag": "with documents"}


@pytest.mark.parametrize(
    ("wanted", "tools", "expected"),
    [
        (None, None, "plain"),
        (None, [WEATHER], "with tools"),
        ("rag", None, "with documents"),
        ("rag", [WEATHER], "with documents"),
        ("{{ 'own' }}", [WEATHER], "own"),
    ],
)
def test_a_named_template_is_chosen_as_in_transformers(oracle, wanted, tools, expected):
    ours = ChatTemplates(NAMED)
    assert render_chat(ours, HELLO, chat_template=wanted, tools=tools) == expected
    oracle.chat_template = NAMED
    assert ours.choose(wanted, tools) == oracle.get_chat_template(wanted, tools)


def test_without_a_default_the_names_are_listed():
    with pytest.raises(ChatTemplateError, match="no default: give chat_template one of 'rag', 'tool_use'"):
        ChatTemplates({"tool_use": "", "rag": ""}, source="it").choose()
    with pytest.raises(ChatTemplateError, match="it has no chat template"):
        ChatTemplates(None, source="it").choose()


def test_a_template_is_given_as_text_or_as_a_file(tmp_path):
    file = tmp_path / "mine.jinja"
    file.write_text("{{ messages[0].content }}!", encoding="utf-8")
    for given_as in (file, str(file)):
        assert load_chat_template(given_as) == "{{ messages[0].content }}!"
    assert load_chat_template("{{ 1 }}") == "{{ 1 }}"
    assert load_chat_template(None) is None
    for wrong in ("no-such-file.jinja", tmp_path, 5):
        with pytest.raises(ValueError, match="chat_template must be a template's text or"):
            load_chat_template(wrong)


def test_what_a_template_does_not_know_changes_nothing():
    plain = render_chat(ChatTemplates(CHATML), HELLO)
    assert render_chat(ChatTemplates(CHATML), HELLO, chat_template_kwargs={"enable_thinking": False}) == plain


def test_reasoning_reaches_the_template_under_every_name():
    template = "{% for m in messages %}{{ m.reasoning_content }},{{ m.thinking }};{% endfor %}"
    for name in ("reasoning", "reasoning_content", "thinking"):
        assert (
            render_chat(ChatTemplates(template), [{"role": "assistant", "content": "", name: "why"}])
            == "why,why;"
        )


def test_documents_and_names_reach_the_template():
    conversation = [*HELLO, {"role": "tool", "name": "weather", "content": "42"}]
    prompt = render_chat(
        ChatTemplates(HERMES, NAMES), conversation, documents=[{"title": "one", "text": "See"}]
    )
    assert "<tool_response name=weather>42" in prompt
    assert prompt.endswith("1. one: S€€")
