"""Which functions a client lets the model call: `tools` and `tool_choice` of a chat.

    none       no tools in the prompt, and what looks like a call stays text
    auto       the model decides; calls are looked for in its answer (the default, where there are tools)
    required   and a named function: the answer must be a call. Only a grammar can promise that, so these are
               refused until structured output is here: `enforced_call` is the one place that knows of them.

Source: the OpenAI API. Read next: `tool_calls.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from minivllm.server.errors import ApiError

if TYPE_CHECKING:
    from minivllm.server.protocol import ChatCompletionRequest


def check_tools(request: ChatCompletionRequest) -> None:
    """Raise `ApiError` for tools that are none, and for a choice among them that cannot be made."""
    names = [_name_of(tool, f"tools[{index}]") for index, tool in enumerate(request.tools or [])]
    choice = request.tool_choice
    if choice in (None, "none"):
        return
    if not names:
        raise ApiError("When using `tool_choice`, `tools` must be set.", "tool_choice")
    if isinstance(choice, dict):
        name = _name_of(choice, "tool_choice")
        if name not in names:
            raise ApiError(f"tool_choice names {name!r:.100}, which is not among the tools.", "tool_choice")
    elif choice not in ("auto", "required"):
        raise ApiError(
            f"tool_choice must be 'none', 'auto', 'required' or one of the tools, got {choice!r:.100}.",
            "tool_choice",
        )
    enforced_call(request)


def wants_calls(request: ChatCompletionRequest) -> bool:
    """May the model call functions, so that calls are looked for in its answer?"""
    return bool(request.tools) and request.tool_choice != "none"


def enforced_call(request: ChatCompletionRequest) -> None:
    """Refuse what needs a grammar: an answer that must be a call, of any function or of a certain one.

    With structured output, this is where the functions' parameters become the schema of the answer.
    """
    if request.tool_choice not in (None, "none", "auto"):
        raise ApiError(
            "tool_choice must be 'none' or 'auto': calls cannot be enforced without structured output.",
            "tool_choice",
        )


def _name_of(tool: dict[str, Any], place: str) -> str:
    function = tool.get("function") if tool.get("type", "function") == "function" else None
    name = function.get("name") if isinstance(function, dict) else None
    if not isinstance(name, str) or not name:
        form = '{"type": "function", "function": {"name": …}}'
        raise ApiError(f"{place} must be {form}.", place.split("[")[0])
    return name
