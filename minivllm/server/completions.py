"""`/v1/completions`: prompts are continued, at once or as a stream of chunks.

Source: the OpenAI API, with vLLM's additions. Read next: `chat.py`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from minivllm.outputs import CompletionOutput, RequestOutput
from minivllm.server.answers import Answer, Answering
from minivllm.server.logprobs import of_completion, of_prompt, prompt_with_logprobs, tokens_with_logprobs
from minivllm.server.protocol import CompletionRequest
from minivllm.server.served_model import ServedModel


class Completion(Answering):
    """One request for completions, and its answer."""

    def __init__(self, request: CompletionRequest, model: ServedModel) -> None:
        request.check()
        answer = Answer("cmpl", "text_completion", model.name_for(request.model), request.request_id)
        most = 1 if request.is_only_echo else request.max_tokens  # the engine computes no prompt for nothing
        params = request.sampling_params(model.defaults, most, request.logprobs)
        if request.echo and request.logprobs is not None and params.prompt_logprobs is None:
            params.prompt_logprobs = request.logprobs
        prompts = [
            model.prompt(
                prompt,
                most,
                request.cache_salt,
                add_special_tokens=request.add_special_tokens,
                truncate_to=request.truncate_prompt_tokens,
            )
            for prompt in request.prompts()
        ]
        super().__init__(request, model, answer, prompts, params)
        self.request = request
        self._lengths: dict[int, int] = {}  # characters that a choice has told

    def choices(self, prompt: int, output: RequestOutput) -> list[dict[str, Any]]:
        told = map(_without_tokens, output.outputs) if self.request.is_only_echo else output.outputs
        choices = [(prompt * self.params.n + one.index, one) for one in told]
        self.answer.count(prompt, output, [(index, len(one.token_ids)) for index, one in choices])
        return [self._choice(index, one, output) for index, one in choices]

    def _choice(self, index: int, one: CompletionOutput, output: RequestOutput) -> dict[str, Any]:
        is_first = index not in self._lengths
        before = self._lengths.get(index, 0)
        echoed = self._prompt_text(output) if self.request.echo and is_first else ""
        text = echoed + one.text
        self._lengths[index] = before + len(text)
        choice = {
            "index": index,
            "text": text,
            "logprobs": self._logprobs(one, output, before, with_prompt=bool(echoed)),
            "finish_reason": one.finish_reason,
            "stop_reason": one.stop_reason,
            "token_ids": list(one.token_ids) if self.request.return_token_ids else None,
            "prompt_token_ids": list(output.prompt_token_ids)
            if self.request.return_token_ids and is_first
            else None,
        }
        if not self.request.stream:
            choice["prompt_logprobs"] = of_prompt(output.prompt_logprobs)
        return choice

    def _prompt_text(self, output: RequestOutput) -> str:
        if output.prompt is not None or self.model.llm.tokenizer is None:
            return output.prompt or ""
        return self.model.tokenizer.decode(output.prompt_token_ids, skip_special_tokens=True)

    def _logprobs(
        self, one: CompletionOutput, output: RequestOutput, offset: int, with_prompt: bool
    ) -> dict[str, Any] | None:
        if self.request.logprobs is None or one.logprobs is None:
            return None
        as_ids = bool(self.request.return_tokens_as_token_ids)
        tokens = tokens_with_logprobs(one.token_ids, one.logprobs, as_ids)
        if with_prompt and output.prompt_logprobs:
            ids = output.prompt_token_ids
            first = self.model.tokenizer.decode(ids[:1]) if self.model.llm.tokenizer else ""
            tokens = [*prompt_with_logprobs(ids, output.prompt_logprobs, first, as_ids), *tokens]
        return of_completion(tokens, self.request.logprobs, offset)


def _without_tokens(one: CompletionOutput) -> CompletionOutput:
    """The output as if it had ended before its first token."""
    return replace(one, text="", token_ids=[], logprobs=None if one.logprobs is None else [])
