"""Which functions a client lets the model call: `tools` and `tool_choice` of a chat.

    none       no tools in the prompt, and what looks like a call stays text
    auto       the model decides; calls are looked for in its answer (the default, where there are tools)
    required   the answer is a call. Structured output sees to it: the functions' parameters become the schema
               of the answer, `{"name": …, "parameters": …}`, whatever form the model is used to
    a name     the same, of this function

Source: the OpenAI API. Read next: `tool_calls.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from minivllm.server.errors import ApiError
from minivllm.structured_outputs import StructuredOutputsParams

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
    wants_other_form = request.structured_outputs is not None or (
        (request.response_format or {}).get("type", "text") != "text"
    )
    if is_enforced(request) and wants_other_form:
        raise ApiError(
            "tool_choice asks for a call, and response_format or structured_outputs for something else.",
            "tool_choice",
        )


def wants_calls(request: ChatCompletionRequest) -> bool:
    """May the model call functions, so that calls are looked for in its answer?"""
    return bool(request.tools) and request.tool_choice != "none"


def is_enforced(request: ChatCompletionRequest) -> bool:
    """Must the answer be a call, of any function or of a certain one?"""
    return request.tool_choice not in (None, "none", "auto")


def enforced_call(request: ChatCompletionRequest) -> StructuredOutputsParams:
    """What the answer must be then: one call in the form `ENFORCED`, with arguments by the function's schema.

    The tools have been checked (`check_tools`).

    Raises:
        ApiError: parameters are no schema, or two functions define the same name in their schemas, each in
            its way.
    """
    wanted = _name_of(request.tool_choice, "tool_choice") if isinstance(request.tool_choice, dict) else None
    functions = [tool["function"] for tool in request.tools or []]
    definitions: dict[str, Any] = {}
    calls = [
        _schema_of_call(function, definitions)
        for function in functions
        if wanted is None or function["name"] == wanted
    ]
    return StructuredOutputsParams(json={"anyOf": calls, "$defs": definitions})


def _schema_of_call(function: dict[str, Any], definitions: dict[str, Any]) -> dict[str, Any]:
    """Its definitions move to the whole schema's, because references begin at the root."""
    parameters = function.get("parameters") or {"type": "object", "properties": {}}
    if not isinstance(parameters, dict):
        raise ApiError(f"tools: parameters of {function['name']!r:.100} must be a JSON schema.", "tools")
    parameters = dict(parameters)
    if "properties" in parameters:  # a function without parameters has none, and not any
        parameters.setdefault("additionalProperties", False)
    own = parameters.pop("$defs", None) or {}
    if not isinstance(own, dict):
        raise ApiError(f"tools: $defs of {function['name']!r:.100} must be an object.", "tools")
    for name, definition in own.items():
        if definitions.setdefault(name, definition) != definition:
            raise ApiError(f"tools: two functions define {name!r:.100}, each in its way.", "tools")
    return {
        "type": "object",
        "properties": {"name": {"const": function["name"]}, "parameters": parameters},
        "required": ["name", "parameters"],
        "additionalProperties": False,
    }


def _name_of(tool: dict[str, Any], place: str) -> str:
    function = tool.get("function") if tool.get("type", "function") == "function" else None
    name = function.get("name") if isinstance(function, dict) else None
    if not isinstance(name, str) or not name:
        form = '{"type": "function", "function": {"name": …}}'
        raise ApiError(f"{place} must be {form}.", place.split("[")[0])
    return name
