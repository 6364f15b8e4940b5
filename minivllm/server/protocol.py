"""What clients may ask for, field by field: the OpenAI API, with vLLM's additions.

A field that a client leaves out has the model's default (`generation_config.json`), or else vLLM's. A field
that is unknown is accepted and ignored, as in vLLM; the log names it.

Read next: `completions.py` and `chat.py`, which answer.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from functools import cached_property
from itertools import islice
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from minivllm.decoding.structured.expressions import StructureError
from minivllm.sampling_params import RequestOutputKind, SamplingParams
from minivllm.server.errors import ApiError
from minivllm.server.request_limits import (
    MAX_LOGPROBS,
    MAX_NAME_CHARACTERS,
    MAX_SALT_CHARACTERS,
    MOST_PROMPTS,
    Biases,
    FewTexts,
    FewTokens,
    ManyTokens,
    Messages,
    ShortText,
    Texts,
    Tokens,
    Tools,
)
from minivllm.server.tool_choice import check_tools, enforced_call, is_enforced, refused_schema
from minivllm.structured_outputs import StructuredOutputsParams, from_response_format

logger = logging.getLogger(__name__)

MOST_NAMES = 10
"""Of unknown fields, in the log."""
OF_THE_ENGINE = (
    "n",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "seed",
    "stop",
    "stop_token_ids",
    "ignore_eos",
    "min_tokens",
    "logit_bias",
    "allowed_token_ids",
    "bad_words",
    "skip_special_tokens",
    "spaces_between_special_tokens",
    "include_stop_str_in_output",
    "prompt_logprobs",
    "best_of",
    "use_beam_search",
    "length_penalty",
    "early_stopping",
)
"""Fields that are `SamplingParams`' own, by name and meaning."""


class ApiModel(BaseModel):
    model_config = ConfigDict(extra="allow")

    @model_validator(mode="after")
    def _tell_of_unknown_fields(self) -> ApiModel:
        if self.model_extra:
            names = ", ".join(repr(name[:50]) for name in islice(self.model_extra, MOST_NAMES))
            logger.warning("fields that are not known are ignored (%d): %s", len(self.model_extra), names)
        return self


class StreamOptions(ApiModel):
    """What a stream tells beside its choices.

    Attributes:
        include_usage: one more chunk at the end, with what everything has used.
        continuous_usage_stats: in each chunk, what its choice has used so far.
    """

    include_usage: bool | None = False
    continuous_usage_stats: bool | None = False


class SampledRequest(ApiModel):
    """What completions and chats have in common.

    Attributes:
        model: one of the names of `/v1/models`; the first one if none is given.
        logprobs: report so many likeliest tokens at each step, and the chosen one; in chats: whether to.
        prompt_logprobs: the same for each token of the prompt, at most 20; not in streams.
        stream: answer in server-sent events, as the tokens come.
        stream_options: what a stream tells of tokens used.
        truncate_prompt_tokens: use only so many tokens of the prompt's end; −1: as many as the model takes.
        priority: smaller numbers go first, under `--scheduling-policy priority`.
        cache_salt: cached prefixes are shared only among requests with the same one.
        return_token_ids: tell the tokens of the prompt and of the output.
        return_tokens_as_token_ids: name tokens in log-probabilities by their ids, as `token_id:5`.
        request_id: the client's name for the request, which its answer bears; also the header X-Request-Id.
        user: accepted, and makes no difference.
        add_special_tokens: begin the prompt as the model's tokenizer does. Chat templates do that themselves.
        echo: repeat the prompt before the output; in chats, the assistant's message that is continued.
    """

    model: str | None = None
    n: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    seed: int | None = None
    stop: ShortText | FewTexts | None = None
    stop_token_ids: FewTokens | None = None
    ignore_eos: bool | None = None
    min_tokens: int | None = None
    logit_bias: Biases | None = None
    allowed_token_ids: FewTokens | None = None
    bad_words: FewTexts | None = None
    skip_special_tokens: bool | None = None
    spaces_between_special_tokens: bool | None = None
    include_stop_str_in_output: bool | None = None
    prompt_logprobs: int | None = None
    best_of: int | None = None
    use_beam_search: bool | None = None
    length_penalty: float | None = None
    early_stopping: bool | str | None = None
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    truncate_prompt_tokens: int | None = Field(None, ge=-1)
    priority: int = 0
    cache_salt: str | None = Field(None, max_length=MAX_SALT_CHARACTERS)
    return_token_ids: bool | None = False
    return_tokens_as_token_ids: bool | None = False
    request_id: str | None = Field(None, min_length=1, max_length=MAX_NAME_CHARACTERS)
    user: str | None = None
    response_format: dict[str, Any] | None = None
    structured_outputs: dict[str, Any] | None = None

    def sampling_params(
        self, defaults: SamplingParams, max_tokens: int | None, logprobs: int | None
    ) -> SamplingParams:
        """What the engine is asked for. Raises `ValueError` as `SamplingParams` does."""
        asked = {name: getattr(self, name) for name in OF_THE_ENGINE if getattr(self, name) is not None}
        if self.structure:
            asked["structured_outputs"] = self.structure
        kind = RequestOutputKind.DELTA if self.stream else RequestOutputKind.FINAL_ONLY
        if asked.get("use_beam_search"):
            defaults = SamplingParams()
        if asked.get("use_beam_search") or (self.best_of or 1) > (self.n or 1):
            kind = RequestOutputKind.FINAL_ONLY  # which are the best is known at the end
        return replace(defaults, **asked, max_tokens=max_tokens, logprobs=logprobs, output_kind=kind)

    @cached_property
    def structure(self) -> StructuredOutputsParams | None:
        """What shape the output must have. Raises `ApiError` for one that cannot be understood."""
        name = "response_format" if self.structured_outputs is None else "structured_outputs"
        try:
            if self.structured_outputs is not None:
                return StructuredOutputsParams(**self.structured_outputs)
            return from_response_format(self.response_format) if self.response_format else None
        except (TypeError, ValueError) as error:
            words = str(error)
            raise ApiError(words if words.startswith(name) else f"{name}: {words}", name) from None

    def refused_structure(self, error: StructureError) -> Exception:
        """The error of a structure that cannot be followed, by the name of the field that asked for it."""
        if self.structured_outputs is not None:
            return error
        name = "response_format"
        return ApiError(f"{name}: {error.problem.removeprefix('json, ')}", name)

    def check(self) -> None:
        """Raise `ApiError` for fields that contradict each other."""
        if self.stream_options is not None and not self.stream:
            raise ApiError("Stream options can only be defined when `stream=True`.", "stream_options")
        if self.stream and self.prompt_logprobs is not None:
            raise ApiError("`prompt_logprobs` are not available when `stream=True`.", "prompt_logprobs")
        check_logprobs("prompt_logprobs", self.prompt_logprobs, "prompt")
        if self.structured_outputs is not None and (self.response_format or {}).get("type", "text") != "text":
            raise ApiError(
                "response_format and structured_outputs cannot be given together.", "structured_outputs"
            )
        _ = self.structure


class CompletionRequest(SampledRequest):
    """Prompts to be continued.

    Attributes:
        prompt: a text, token ids, or a list of either.
        max_tokens: most tokens of an output; 0, with `echo`, tells only the prompt and its log-probabilities.
        suffix: refused.
    """

    prompt: str | Texts | Tokens | ManyTokens | None = None
    echo: bool | None = False
    suffix: str | None = None
    max_tokens: int | None = 16
    logprobs: int | None = None
    add_special_tokens: bool = True

    def check(self) -> None:
        super().check()
        if self.prompt is None or self.prompt == []:
            raise ApiError("Either prompt or prompt_embeds must be provided and non-empty.", "prompt")
        if not isinstance(self.prompt, str) and len(self.prompt) > MOST_PROMPTS and not self._is_one():
            raise ApiError(
                f"prompt must have at most {MOST_PROMPTS} prompts, got {len(self.prompt)}.", "prompt"
            )
        if self.suffix:
            raise ApiError("suffix is not currently supported", "suffix")
        check_logprobs("logprobs", self.logprobs)

    @property
    def is_only_echo(self) -> bool:
        """Is nothing but the prompt asked for? So evaluation harnesses score texts."""
        return bool(self.echo) and self.max_tokens == 0

    def prompts(self) -> list[str | list[int]]:
        """One prompt, or several."""
        prompt: Any = self.prompt
        return [prompt] if self._is_one() else list(prompt)

    def _is_one(self) -> bool:
        prompt: Any = self.prompt
        return isinstance(prompt, str) or isinstance(prompt[0], int)


class ChatCompletionRequest(SampledRequest):
    """A conversation to be answered.

    Attributes:
        messages: `{"role": …, "content": …}` each; contents are texts, or lists of parts that are texts.
        max_completion_tokens: OpenAI's newer name for `max_tokens`.
        top_logprobs: so many likeliest tokens at each step, at most 20; needs `logprobs`.
        tools: functions that the model may call, as JSON schemas; the chat template shows them to it.
        tool_choice: "none": leave calls as text; "auto": look for them; "required", or one of the tools: the
            answer must be calls.
        parallel_tool_calls: false: one call at most.
        documents: for templates that know them.
        chat_template: another template than the model's.
        chat_template_kwargs: what else the template may read, such as `enable_thinking`.
        add_generation_prompt: end the prompt where the assistant's answer begins.
        continue_final_message: end it within the last message, which is then continued.
    """

    messages: Messages
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    logprobs: bool | None = False
    top_logprobs: int | None = None
    tools: Tools | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = True
    documents: Tools | None = None
    chat_template: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    add_special_tokens: bool = False
    echo: bool = False

    @cached_property
    def structure(self) -> StructuredOutputsParams | None:
        return enforced_call(self) if is_enforced(self) else super().structure

    def refused_structure(self, error: StructureError) -> Exception:
        return refused_schema(self, error) if is_enforced(self) else super().refused_structure(error)

    def check(self) -> None:
        check_tools(self)
        super().check()
        if not self.messages:
            raise ApiError(
                "Cannot apply chat template to an empty conversation. Provide at least one message."
            )
        if self.top_logprobs is not None and not self.logprobs:
            raise ApiError("when using `top_logprobs`, `logprobs` must be set to true.", "top_logprobs")
        check_logprobs("top_logprobs", self.top_logprobs)


class TokenizeRequest(ApiModel):
    """A prompt, or a conversation, to be shown as tokens.

    Attributes:
        return_token_strs: tell each token's text, too.
        add_special_tokens: begin as the model's tokenizer does; conversations do not.
    """

    model: str | None = None
    prompt: str | None = None
    messages: Messages | None = None
    tools: Tools | None = None
    chat_template: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    add_special_tokens: bool | None = None
    return_token_strs: bool = False


class DetokenizeRequest(ApiModel):
    """Tokens to be shown as text."""

    model: str | None = None
    tokens: Tokens


def check_logprobs(name: str, count: int | None, of: str = "sample") -> None:
    """Raise `ApiError` for more than are told of a token."""
    if count is not None and count > MAX_LOGPROBS:
        raise ApiError(
            f"Requested {of} logprobs of {count}, which is greater than max allowed: {MAX_LOGPROBS}",
            name,
            count,
        )
    if count is not None and count < 0:
        raise ApiError(f"`{name}` must be a non-negative value.", name, count)
