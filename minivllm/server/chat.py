"""`/v1/chat/completions`: conversations are answered, at once or as a stream of chunks.

Source: the OpenAI API, with vLLM's additions. Read next: `app.py`.
"""

from __future__ import annotations

from typing import Any

from minivllm.outputs import CompletionOutput, RequestOutput
from minivllm.server.answers import Answer, Answering
from minivllm.server.logprobs import of_chat, tokens_with_logprobs
from minivllm.server.protocol import ChatCompletionRequest
from minivllm.server.served_model import ServedModel


class Chat(Answering):
    """One conversation, and the answer to it."""

    def __init__(self, request: ChatCompletionRequest, model: ServedModel) -> None:
        request.check()
        kind = "chat.completion.chunk" if request.stream else "chat.completion"
        answer = Answer("chatcmpl", kind, model.name_for(request.model))
        max_tokens = request.max_tokens
        if request.max_completion_tokens is not None:
            max_tokens = request.max_completion_tokens
        logprobs = (request.top_logprobs or 0) if request.logprobs else None
        params = request.sampling_params(model.defaults, max_tokens, logprobs)
        text = model.render(
            request.messages,
            tools=request.tools if request.tool_choice != "none" else None,
            documents=request.documents,
            chat_template=request.chat_template,
            chat_template_kwargs=request.chat_template_kwargs,
            add_generation_prompt=request.add_generation_prompt,
            continue_final_message=request.continue_final_message,
        )
        prompt = model.prompt(text, max_tokens, request.cache_salt, is_rendered=True)
        super().__init__(request, model, answer, [prompt], params)
        self.request = request
        self._begun: set[int] = set()

    def choices(self, prompt: int, output: RequestOutput) -> list[dict[str, Any]]:
        """The first chunk of each choice says who speaks."""
        self.answer.count(prompt, output, [(one.index, len(one.token_ids)) for one in output.outputs])
        return self._chunks(output) if self.request.stream else [self._choice(one) for one in output.outputs]

    def _chunks(self, output: RequestOutput) -> list[dict[str, Any]]:
        chunks = []
        for one in output.outputs:
            if one.index not in self._begun:
                self._begun.add(one.index)
                begin = {"role": "assistant", "content": ""}
                chunks.append({"index": one.index, "delta": begin, "logprobs": None, "finish_reason": None})
            chunks.append(
                {
                    "index": one.index,
                    "delta": {"content": one.text},
                    "logprobs": self._logprobs(one),
                    "finish_reason": one.finish_reason,
                    "token_ids": list(one.token_ids) if self.request.return_token_ids else None,
                }
            )
            if one.finish_reason:
                chunks[-1]["stop_reason"] = one.stop_reason
        return chunks

    def _choice(self, one: CompletionOutput) -> dict[str, Any]:
        return {
            "index": one.index,
            "message": {"role": "assistant", "content": one.text, "refusal": None, "reasoning": None},
            "logprobs": self._logprobs(one),
            "finish_reason": one.finish_reason,
            "stop_reason": one.stop_reason,
            "token_ids": list(one.token_ids) if self.request.return_token_ids else None,
        }

    def _logprobs(self, one: CompletionOutput) -> dict[str, Any] | None:
        if not self.request.logprobs or one.logprobs is None:
            return None
        return of_chat(tokens_with_logprobs(one.token_ids, one.logprobs), self.request.top_logprobs or 0)
