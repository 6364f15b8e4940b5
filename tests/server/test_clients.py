"""Real clients, as their users use them, against the real server.

What takes long to import runs in a process of its own, and LangChain not by day. `litellm` and `llm` run at
night, and where they are installed: beside us (`pip install 'minivllm[clients]'`), or in an environment whose
Python is named by `MINIVLLM_CLIENTS_PYTHON`.
"""

import asyncio
import json
import os
import subprocess
import sys
from textwrap import dedent

import openai
import pytest

from tests import event_loops, patience, profiles
from tests.model.chat.chat_templates_for_tests import FAMILIES
from tests.server.conftest import RunningServer
from tests.server.test_tools_over_http import ROME, ScriptedExecutor

IS_NIGHT = profiles.is_night()
QUESTION = [{"role": "user", "content": "What is a block table?"}]
ANSWER = "A block table maps the logical"
OTHER_PYTHON = os.environ.get("MINIVLLM_CLIENTS_PYTHON", sys.executable)
at_night = pytest.mark.skipif(not IS_NIGHT, reason="takes long to import: runs at night")


def result_of(code, *arguments, python=sys.executable, environment=(), needs=None):
    """The JSON that this program prints. It knows nothing of ours."""
    if needs:
        look = f"import importlib.util, sys; sys.exit(not importlib.util.find_spec({needs!r}))"
        if subprocess.run([python, "-c", look], check=False, timeout=patience.SECONDS).returncode:
            pytest.skip(f"{needs} is not installed: pip install 'minivllm[clients]'")
    own = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [python, "-c", dedent(code), *arguments]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=patience.SECONDS,
        check=False,
        env=own | dict(environment),
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


async def many(url):
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="-", timeout=patience.SECONDS) as client:

        async def streamed(count):
            stream = await client.chat.completions.create(
                model="tiny", messages=QUESTION, temperature=0, max_tokens=count, stream=True
            )
            return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

        async def left(count):
            stream = await client.completions.create(
                model="tiny", prompt="Once", stream=True, max_tokens=400, extra_body={"ignore_eos": True}
            )
            async for chunk in stream:
                count -= 1
                if not count:
                    await stream.close()
                    return chunk.choices[0].finish_reason

        whole = client.chat.completions.create(
            model="tiny", messages=QUESTION, n=3, max_tokens=6, temperature=0, logprobs=True, top_logprobs=2
        )
        found = await asyncio.gather(*map(streamed, (3, 4, 5, 6)), *map(left, (1, 2, 3)), whole)
        assert (await client.models.retrieve("tiny")).id == "tiny"
        return found


def test_openais_library_asks_many_things_at_once(running):
    *texts, _, _, _, whole = event_loops.run(many(running.url))
    assert all(ANSWER.startswith(text) for text in texts) and texts[-1] == ANSWER
    assert [choice.message.content for choice in whole.choices] == [ANSWER] * 3
    for choice in whole.choices:
        assert "".join(entry.token for entry in choice.logprobs.content) == ANSWER
        assert all(len(entry.top_logprobs) == 2 for entry in choice.logprobs.content)
    assert whole.usage.completion_tokens == 18


@pytest.fixture(scope="module")
def calling():
    """A server whose model calls a function."""
    server = RunningServer()
    server.model.chat_template = FAMILIES["qwen3"]
    server.model.tool_format = server.model.format_of_template()
    server.engine.executor = ScriptedExecutor(server.engine)
    server.engine.executor.text = f"I look. {ROME}"
    yield server
    server.stop()


LANGCHAIN = """
    import json, sys
    from langchain_core.messages import AIMessageChunk
    from langchain_openai import ChatOpenAI, OpenAI
    url, calling = sys.argv[1:]
    asked = dict(model="tiny", base_url=url + "/v1", api_key="-", temperature=0)
    chat = ChatOpenAI(**asked, max_tokens=6)
    question = "What is a block table?"
    def weather(city: str) -> str:
        "The weather in a city."
    tools = ChatOpenAI(**asked | {"base_url": calling + "/v1"}).bind_tools([weather])
    whole = tools.invoke("How is it in Rome?")
    streamed = None
    for chunk in tools.stream("How is it in Rome?"):
        streamed = chunk if streamed is None else streamed + chunk
    print(json.dumps({
        "whole": chat.invoke(question).content,
        "usage": chat.invoke(question).usage_metadata["output_tokens"],
        "streamed": "".join(chunk.content for chunk in chat.stream(question)),
        "completed": OpenAI(**asked, max_tokens=2).invoke("Once upon"),
        "calls": [[call["name"], call["args"]] for call in whole.tool_calls],
        "streamed calls": [[call["name"], call["args"]] for call in streamed.tool_calls],
        "content": [whole.content, streamed.content],
    }))
"""


@pytest.mark.skipif(profiles.is_day(), reason="takes long to import")
def test_langchain_invokes_streams_and_calls_functions(running, calling):
    pytest.importorskip("langchain_openai")
    found = result_of(LANGCHAIN, running.url, calling.url)
    assert found["whole"] == found["streamed"] == ANSWER and found["usage"] == 6
    assert found["completed"] == " a time"
    assert found["calls"] == found["streamed calls"] == [["weather", {"city": "Rome"}]]
    assert found["content"] == ["I look. "] * 2


LITELLM = """
    import json, sys
    import litellm
    url, calling = sys.argv[1:]
    question = [{"role": "user", "content": "What is a block table?"}]
    tool = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
    asked = dict(messages=question, api_base=url + "/v1", api_key="-", temperature=0, max_tokens=6)
    found = {}
    for kind in ("hosted_vllm", "openai"):
        whole = litellm.completion(model=kind + "/tiny", **asked)
        stream = litellm.completion(model=kind + "/tiny", **asked, stream=True)
        found[kind] = [
            whole.choices[0].message.content,
            "".join(chunk.choices[0].delta.content or "" for chunk in stream),
            whole.usage.completion_tokens,
        ]
    asked |= {"api_base": calling + "/v1", "max_tokens": 200}
    called = litellm.completion(model="hosted_vllm/tiny", **asked, tools=[tool])
    function = called.choices[0].message.tool_calls[0].function
    found["call"] = [function.name, function.arguments, called.choices[0].finish_reason]
    try:
        litellm.completion(model="hosted_vllm/nope", **asked)
    except litellm.exceptions.NotFoundError as error:
        found["refused"] = error.status_code
    print(json.dumps(found))
"""


@at_night
def test_litellm_completes_streams_and_calls_functions(running, calling):
    environment = {"LITELLM_LOCAL_MODEL_COST_MAP": "True"}  # else it fetches a table of prices
    found = result_of(
        LITELLM, running.url, calling.url, python=OTHER_PYTHON, environment=environment, needs="litellm"
    )
    assert found["hosted_vllm"] == found["openai"] == [ANSWER, ANSWER, 6]
    assert found["call"] == ["weather", '{"city": "Rome"}', "tool_calls"] and found["refused"] == 404


LLM_TOOL = """
    import json, sys
    from click.testing import CliRunner
    from llm.cli import cli
    asked = "-m ours --key - -o temperature 0 -o max_tokens 6".split() + ["What is a block table?"]
    def output(*more):
        return CliRunner().invoke(cli, [*asked, *more], catch_exceptions=False).output.strip()
    print(json.dumps([output(), output("--no-stream")]))
"""


@at_night
def test_the_llm_command_prompts(running, tmp_path):
    config = f"- model_id: ours\n  model_name: tiny\n  api_base: {running.url}/v1\n"
    (tmp_path / "extra-openai-models.yaml").write_text(config)
    environment = {"LLM_USER_PATH": str(tmp_path)}
    found = result_of(LLM_TOOL, python=OTHER_PYTHON, environment=environment, needs="llm")
    assert found == [ANSWER, ANSWER]
