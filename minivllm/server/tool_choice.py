"""Which functions a client lets the model call: `tools` and `tool_choice` of a chat.

    none       no tools in the prompt, and what looks like a call stays text
    auto       the model decides; calls are looked for in its answer (the default, where there are tools)
    required   the answer is calls, at least one. Structured output sees to it: the functions' parameters
               become the schema of the answer, `[{"name": …, "parameters": …}, …]`, whatever form the model
               is used to. Where `parallel_tool_calls` is false it is one call, without brackets
    a name     one call, of this function

Source: the OpenAI API; the array is vLLM's. Read next: `tool_calls.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from minivllm.decoding.structured.expressions import StructureError
from minivllm.decoding.structured.json_schema import schema_rules
from minivllm.server.errors import ApiError
from minivllm.structured_outputs import StructuredOutputsParams

if TYPE_CHECKING:
    from minivllm.server.protocol import ChatCompletionRequest


def check_tools(request: ChatCompletionRequest) -> None:
    """Raise `ApiError` for tools that are none, and for a choice among them that cannot be made."""
    names = [_name_of(tool, f"tools[{index}]") for index, tool in enumerate(request.tools or [])]
    for index, name in enumerate(names):
        if (first := names.index(name)) < index:
            raise ApiError(
                f"tools[{index}] is named {name!r:.100}, as tools[{first}] is: a call could not say which.",
                f"tools[{index}].function.name",
            )
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
    """What the answer must be then: calls in the form `ENFORCED`, with arguments by the functions' schemas.

    The tools have been checked (`check_tools`).

    Raises:
        ApiError: parameters are no schema, or two functions define the same name in their schemas, each in
            its way.
    """
    definitions: dict[str, Any] = {}
    one_call = {"anyOf": [_schema_of_call(*tool, definitions) for tool in _callable(request)]}
    is_single = isinstance(request.tool_choice, dict) or request.parallel_tool_calls is False
    calls = one_call if is_single else {"type": "array", "items": one_call, "minItems": 1}
    try:
        return StructuredOutputsParams(json=calls | {"$defs": definitions})
    except ValueError as error:
        raise ApiError(f"tools: their schemas cannot be followed: {error}", "tools") from None


def refused_schema(request: ChatCompletionRequest, error: StructureError) -> ApiError:
    """Whose parameters are to blame that what `enforced_call` makes cannot be followed."""
    for index, function in _callable(request):
        place = f"tools[{index}].function.parameters"
        try:
            schema_rules(_parameters(place, function))
        except StructureError as own:
            return ApiError(f"{place}: {own.problem.removeprefix('json, ')}", place)
    return ApiError(f"tools: {error.problem.removeprefix('json, ')}", "tools")


def _callable(request: ChatCompletionRequest) -> list[tuple[int, dict[str, Any]]]:
    """The functions that may be called, each with the number of its tool."""
    wanted = _name_of(request.tool_choice, "tool_choice") if isinstance(request.tool_choice, dict) else None
    functions = [(index, tool["function"]) for index, tool in enumerate(request.tools or [])]
    return [found for found in functions if wanted is None or found[1]["name"] == wanted]


def _parameters(place: str, function: dict[str, Any]) -> dict[str, Any]:
    parameters = function.get("parameters") or {"type": "object", "properties": {}}
    if not isinstance(parameters, dict):
        raise ApiError(f"{place} must be a JSON schema, that is an object, got {parameters!r:.60}.", place)
    if "properties" in parameters:  # a function without parameters has none, and not any
        parameters = {"additionalProperties": False, **parameters}
    return dict(parameters)


def _schema_of_call(index: int, function: dict[str, Any], definitions: dict[str, Any]) -> dict[str, Any]:
    """Its definitions move to the whole schema's, because references begin at the root."""
    place = f"tools[{index}].function.parameters"
    parameters = _parameters(place, function)
    own = parameters.pop("$defs", None) or {}
    if not isinstance(own, dict):
        raise ApiError(f"{place}: $defs must be an object, got {own!r:.60}.", place)
    for name, definition in own.items():
        if definitions.setdefault(name, definition) != definition:
            raise ApiError(f"{place}: another function defines {name!r:.100}, too, in another way.", place)
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
        raise ApiError(f"{place} must be {form}.", place)
    return name
