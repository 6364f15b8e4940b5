"""Tools through the whole server: the model is real, but its tokens are those of a script."""

import json

import openai
import pytest
import torch

from minivllm.console.serve_command import TOOL_CALL_PARSERS
from minivllm.engine.engine_args import EngineArgs
from minivllm.model.tiny import DRAFT_MODEL_PATH, MODEL_PATH
from minivllm.server.serve import ServeOptions, _served
from minivllm.server.tool_formats import HERMES, LLAMA3_JSON, TOOL_FORMATS
from tests import patience
from tests.model.chat.chat_templates_for_tests import FAMILIES
from tests.server.conftest import RunningServer

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "The weather in a city",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
        },
    }
]
ROME = '<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}\n</tool_call>'
OSLO = ROME.replace("Rome", "Oslo")
BROKEN = ROME.replace("}}", "}")
QUESTION = [{"role": "user", "content": "How is it in Rome?"}]


class ScriptedExecutor:
    """Computes everything, and then lets the next token of a text be the only one that is possible."""

    def __init__(self, engine):
        self._engine = engine
        self._real = engine.executor
        self.text = ""

    def __getattr__(self, name):
        return getattr(self._real, name)

    def execute(self, plan):
        logits, row = self._real.execute(plan).clone(), 0
        tokens = self._engine.tokenizer.encode(self.text, add_special_tokens=False)
        for item in plan.scheduled:
            row += item.num_logits
            said = self._engine.core.state.sequences[item.seq_id].num_output_tokens
            end = self._engine.tokenizer.eos_token_id
            forced = tokens[said] if said < len(tokens) else end
            if item.num_logits:
                logits[row - 1] = torch.where(torch.arange(logits.shape[1]) == forced, 0.0, -50.0)
        return logits


@pytest.fixture(scope="module")
def served():
    server = RunningServer(model_path=DRAFT_MODEL_PATH)  # a small one: what it would say, nobody hears
    server.model.chat_template = FAMILIES["qwen3"]
    server.model.tool_format = server.model.format_of_template()
    assert server.model.tool_format is HERMES
    server.engine.executor = ScriptedExecutor(server.engine)
    yield server
    server.stop()


@pytest.fixture(scope="module")
def client(served):
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="-", timeout=patience.SECONDS) as found:
        yield found


@pytest.fixture
def say(served, client):
    """Let the model say this, and ask it."""

    def ask(text, **asked):
        served.engine.executor.text = text
        asked = {"model": "tiny", "messages": QUESTION, "tools": TOOLS, "temperature": 0} | asked
        return client.chat.completions.create(**asked)

    return ask


def gathered(stream):
    """What a stream says, choice by choice: text, calls, reason of the end, number of deltas with a call."""
    choices = {}
    for chunk in stream:
        for choice in chunk.choices:
            told = choices.setdefault(
                choice.index, {"content": "", "calls": {}, "reason": None, "deltas": []}
            )
            told["content"] += choice.delta.content or ""
            told["reason"] = choice.finish_reason or told["reason"]
            for delta in choice.delta.tool_calls or []:
                call = told["calls"].setdefault(delta.index, {"id": "", "name": "", "arguments": ""})
                call["id"] += delta.id or ""
                call["name"] += delta.function.name or ""
                call["arguments"] += delta.function.arguments or ""
                told["deltas"].append(delta)
    return choices


def calls(message):
    return [(call.function.name, json.loads(call.function.arguments)) for call in message.tool_calls or []]


@pytest.mark.parametrize(
    ("text", "content", "cities"),
    [
        (ROME, None, ["Rome"]),
        (f"I will look.\n{ROME}", "I will look.\n", ["Rome"]),
        (f"{ROME}\n{OSLO}", None, ["Rome", "Oslo"]),
        (f"Both: {ROME}{OSLO} at once", "Both:  at once", ["Rome", "Oslo"]),
        (BROKEN, BROKEN, []),
        (BROKEN + ROME, BROKEN, ["Rome"]),
        ("It is <tool", "It is <tool", []),
        ("It is warm.", "It is warm.", []),
    ],
)
def test_calls_are_told_whole_and_in_streams(say, text, content, cities):
    [choice] = say(text).choices
    assert choice.message.content == content
    assert calls(choice.message) == [("weather", {"city": city}) for city in cities]
    assert choice.finish_reason == ("tool_calls" if cities else "stop")
    assert all(call.type == "function" and call.id for call in choice.message.tool_calls or [])
    told = gathered(say(text, stream=True))[0]
    assert told["content"] == (content or "") and told["reason"] == choice.finish_reason
    streamed = [(call["name"], json.loads(call["arguments"])) for _, call in sorted(told["calls"].items())]
    assert streamed == calls(choice.message)
    for named, arguments in zip(told["deltas"][::2], told["deltas"][1::2], strict=True):
        assert (named.type, named.function.name, named.function.arguments) == ("function", "weather", None)
        assert arguments.index == named.index and arguments.id is None and arguments.function.name is None


def test_the_openai_librarys_own_gatherer_finds_the_calls(say, client):
    asked = {"model": "tiny", "messages": QUESTION, "tools": TOOLS}
    say(f"I look. {ROME}{OSLO}")
    with client.chat.completions.stream(**asked) as stream:
        arguments = [
            event.arguments for event in stream if event.type == "tool_calls.function.arguments.done"
        ]
        [choice] = stream.get_final_completion().choices
    assert [json.loads(one)["city"] for one in arguments] == ["Rome", "Oslo"]
    assert choice.message.content == "I look. " and len(choice.message.tool_calls) == 2
    assert choice.finish_reason == "tool_calls"


def test_each_choice_has_its_calls(say):
    whole = say(ROME, n=2, temperature=1)
    assert [calls(choice.message) for choice in whole.choices] == [[("weather", {"city": "Rome"})]] * 2
    told = gathered(say(ROME, n=2, temperature=1, stream=True))
    assert [told[index]["calls"][0]["name"] for index in (0, 1)] == ["weather"] * 2
    assert told[0]["calls"][0]["id"] != told[1]["calls"][0]["id"]


def test_tokens_and_their_logprobs_are_told_with_calls_too(say):
    asked = dict(logprobs=True, top_logprobs=0, extra_body={"return_token_ids": True})
    whole = say(f"Yes. {ROME}", **asked).choices[0]
    chunks = list(say(f"Yes. {ROME}", **asked, stream=True))
    told = [choice for chunk in chunks for choice in chunk.choices]
    assert "".join(entry.token for entry in whole.logprobs.content).startswith(f"Yes. {ROME}")
    entries = [entry for choice in told if choice.logprobs for entry in choice.logprobs.content]
    assert entries == whole.logprobs.content
    assert [token for choice in told for token in getattr(choice, "token_ids", None) or []] == whole.token_ids
    assert chunks[0].prompt_token_ids and not hasattr(chunks[1], "prompt_token_ids")


def test_who_wants_no_calls_or_one_gets_none_or_one(say, served):
    for asked in ({"tool_choice": "none"}, {"tools": openai.NOT_GIVEN}):
        [choice] = say(ROME, **asked).choices
        assert (choice.message.content, choice.message.tool_calls, choice.finish_reason) == (
            ROME,
            None,
            "stop",
        )
    [choice] = say(f"{ROME}{OSLO}", parallel_tool_calls=False).choices
    assert calls(choice.message) == [("weather", {"city": "Rome"})]
    form, served.model.tool_format = served.model.tool_format, None
    try:
        assert say(ROME).choices[0].message.content == ROME
    finally:
        served.model.tool_format = form


def test_flags_and_the_template_say_how_calls_are_written(served):
    def form(**options):
        return _served(served.llm, EngineArgs(MODEL_PATH), ServeOptions(**options)).tool_format

    assert form() is None, "the shipped model knows no tools"
    assert form(chat_template=FAMILIES["qwen3"]) is form(tool_call_parser="hermes") is HERMES
    assert form(chat_template=FAMILIES["qwen3"], tool_call_parser="llama3_json") is LLAMA3_JSON
    assert form(tool_call_parser="hermes", enable_auto_tool_choice=False) is None
    assert tuple(TOOL_FORMATS) == TOOL_CALL_PARSERS


def test_a_choice_that_cannot_be_made_is_refused(say):
    for asked, words in (
        ({"tool_choice": {"type": "function", "function": {"name": "other"}}}, "not among the tools"),
        ({"tool_choice": "auto", "tools": openai.NOT_GIVEN}, "`tools` must be set"),
        ({"tool_choice": "maybe"}, "tool_choice must be"),
    ):
        with pytest.raises(openai.BadRequestError, match=words) as refused:
            say(ROME, **asked)
        assert refused.value.param == "tool_choice"
    with pytest.raises(openai.BadRequestError, match=r"tools\[0\] must be") as refused:
        say(ROME, tools=[{"type": "function"}])
    assert refused.value.param == "tools[0]"


def test_a_conversation_goes_on_after_a_call(say, served):
    """What the client sends back reaches the template: the call as the model wrote it, and its result."""
    message = say(f"I look. {ROME}").choices[0].message
    result = {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "21 degrees"}
    second = say("Warm.", messages=[*QUESTION, message, result], extra_body={"return_token_ids": True})
    assert second.choices[0].message.content == "Warm."
    prompt = served.engine.tokenizer.decode(second.prompt_token_ids)
    assert f"I look. \n{ROME}<|im_end|>" in prompt
    assert (
        "<tool_response>\n21 degrees\n</tool_response>" in prompt and '"description": "The weather' in prompt
    )


def test_a_call_that_is_cut_off_is_text(say):
    [choice] = say(ROME, max_tokens=8).choices
    assert choice.finish_reason == "length" and choice.message.tool_calls is None
    assert ROME.startswith(choice.message.content)
