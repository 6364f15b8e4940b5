"""The forms of answers, field by field, for those who read `/docs` or make a client from `/openapi.json`.

Answers are made as plain dictionaries, which is quick; `tests/server/test_openapi.py` holds them to these.

Source: the OpenAI API, with vLLM's additions. Read next: `openapi.py`, which puts them into the document.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

FinishReason = Literal["stop", "length", "tool_calls", "abort", "error"]


class Form(BaseModel):
    model_config = ConfigDict(extra="forbid")


class CachedTokens(Form):
    cached_tokens: int


class Usage(Form):
    """Tokens of all prompts and choices together.

    Attributes:
        prompt_tokens_details: how many of the prompt's tokens a prefix cache has saved.
    """

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: CachedTokens
    completion_tokens_details: None = None


class PromptLogprob(Form):
    """One candidate for a token of the prompt."""

    logprob: float
    rank: int | None
    decoded_token: str | None


PromptLogprobs = list[dict[str, PromptLogprob] | None] | None


class CompletionLogprobs(Form):
    """Lists beside each other, an entry for each token.

    Attributes:
        text_offset: where the token begins in the text.
        top_logprobs: the likeliest tokens, and the chosen one.
    """

    text_offset: list[int]
    token_logprobs: list[float | None]
    tokens: list[str]
    top_logprobs: list[dict[str, float] | None]


class CompletionChoice(Form):
    """One continuation of one prompt.

    Attributes:
        index: all outputs of the first prompt, then those of the second.
        stop_reason: the stop string, or the stop token's id; null at the end of sequence.
        token_ids, prompt_token_ids: with `return_token_ids`.
        prompt_logprobs: by position, and by token id.
    """

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: FinishReason
    stop_reason: int | str | None
    token_ids: list[int] | None
    prompt_token_ids: list[int] | None
    prompt_logprobs: PromptLogprobs


class Answered(Form):
    id: str
    created: int
    model: str
    service_tier: None
    system_fingerprint: str
    usage: Usage


class CompletionAnswer(Answered):
    """What `/v1/completions` answers."""

    object: Literal["text_completion"]
    choices: list[CompletionChoice]


class Function(Form):
    """A function that the model wants called.

    Attributes:
        arguments: a JSON object, as the model wrote it.
    """

    name: str
    arguments: str


class ToolCallAnswer(Form):
    id: str
    type: Literal["function"]
    function: Function


class Message(Form):
    """What the assistant says.

    Attributes:
        content: null if it says nothing beside its calls.
        tool_calls: only where there are any.
    """

    role: Literal["assistant"]
    content: str | None
    refusal: None
    reasoning: None
    tool_calls: list[ToolCallAnswer] = []


class Candidate(Form):
    """A token that could have stood here."""

    token: str
    logprob: float
    bytes: list[int]


class ChatLogprob(Candidate):
    """A token of the answer, and the likeliest candidates for its place."""

    top_logprobs: list[Candidate]


class ChatLogprobs(Form):
    content: list[ChatLogprob]


class ChatAnswerChoice(Form):
    """One answer to the conversation."""

    index: int
    message: Message
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason
    stop_reason: int | str | None
    token_ids: list[int] | None


class ChatAnswer(Answered):
    """What `/v1/chat/completions` answers."""

    object: Literal["chat.completion"]
    choices: list[ChatAnswerChoice]
    prompt_logprobs: PromptLogprobs
    prompt_token_ids: list[int] | None


class ModelCard(Form):
    """A name of the model.

    Attributes:
        root: the folder that was loaded.
        max_model_len: most tokens of a prompt and its output together.
    """

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    root: str
    parent: None
    max_model_len: int


class ModelList(Form):
    object: Literal["list"]
    data: list[ModelCard]


class Tokenized(Form):
    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None


class Detokenized(Form):
    prompt: str


class Version(Form):
    version: str


class Load(Form):
    server_load: int


class Reset(Form):
    success: bool


class Refusal(Form):
    """What is wrong.

    Attributes:
        param: the field that is wrong, if it is one.
        code: the status.
    """

    message: str
    type: str
    param: str | None
    code: int


class ErrorAnswer(Form):
    """A request that is not served."""

    error: Refusal


class Unauthorized(Form):
    error: str


class PathError(Form):
    """No such path, or method."""

    detail: str


def error(words: str) -> dict[str, Any]:
    """A status that says what is wrong, for a route's `responses`."""
    return {"model": ErrorAnswer, "description": words}
