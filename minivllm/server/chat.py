"""`/v1/chat/completions`: conversations are answered, at once or as a stream of chunks.

Source: the OpenAI API, with vLLM's additions. Read next: `chat_choice.py`, what the assistant says.
"""

from __future__ import annotations

from typing import Any

from minivllm.outputs import CompletionOutput, RequestOutput
from minivllm.server.answers import Answer, Answering
from minivllm.server.chat_choice import ChatChoice
from minivllm.server.logprobs import of_chat, of_prompt, tokens_with_logprobs
from minivllm.server.protocol import ChatCompletionRequest
from minivllm.server.served_model import ServedModel
from minivllm.server.tool_choice import is_enforced, wants_calls
from minivllm.server.tool_formats import ENFORCED


class Chat(Answering):
    """One conversation, and the answer to it."""

    def __init__(self, request: ChatCompletionRequest, model: ServedModel) -> None:
        request.check()
        kind = "chat.completion.chunk" if request.stream else "chat.completion"
        answer = Answer("chatcmpl", kind, model.name_for(request.model), request.request_id)
        max_tokens = request.max_tokens
        if request.max_completion_tokens is not None:
            max_tokens = request.max_completion_tokens
        logprobs = (request.top_logprobs or 0) if request.logprobs else None
        self._form = model.tool_format if wants_calls(request) else None
        if is_enforced(request):
            self._form = ENFORCED
        elif self._form and request.skip_special_tokens is None and model.has_special(self._form.tags):
            request.skip_special_tokens = False  # without its tags no call would be found
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
        prompt = model.prompt(
            text,
            max_tokens,
            request.cache_salt,
            add_special_tokens=request.add_special_tokens,  # the template has written them
            truncate_to=request.truncate_prompt_tokens,
        )
        super().__init__(request, model, answer, [prompt], params)
        self.request = request
        self._choices: dict[int, ChatChoice] = {}

    def choices(self, prompt: int, output: RequestOutput) -> list[dict[str, Any]]:
        """What an output says: whole choices, or the next deltas of each."""
        self.answer.count(prompt, output, [(one.index, len(one.token_ids)) for one in output.outputs])
        if self.request.stream:
            return [chunk for one in output.outputs for chunk in self._chunks(one)]
        return [self._choice(one) for one in output.outputs]

    def about_prompt(self, output: RequestOutput) -> dict[str, Any]:
        ids = list(output.prompt_token_ids) if self.request.return_token_ids else None
        if self.request.stream:
            return {"prompt_token_ids": ids}
        return {"prompt_logprobs": of_prompt(output.prompt_logprobs), "prompt_token_ids": ids}

    def _said(self, index: int) -> ChatChoice:
        """The state of this choice."""
        if index not in self._choices:
            most_calls = 1 if self.request.parallel_tool_calls is False else None
            self._choices[index] = ChatChoice(self._form, most_calls, self._before())
        return self._choices[index]

    def _before(self) -> str:
        """The text that the answer continues, if the client wants it repeated."""
        last = self.request.messages[-1]
        content = last.get("content") if last.get("role") == "assistant" else None
        return content if self.request.echo and isinstance(content, str) else ""

    def _chunks(self, one: CompletionOutput) -> list[dict[str, Any]]:
        """A chunk for each delta: the tokens are told with the first of them, the end with the last."""
        said = self._said(one.index)
        begin, deltas = said.begin(), said.deltas(one.text, one.finish_reason is not None)
        logprobs = self._logprobs(one)
        token_ids = list(one.token_ids) if self.request.return_token_ids else None
        if not deltas and (logprobs or token_ids or one.finish_reason):
            deltas = [{}]
        chunks = [_chunk(one.index, delta) for delta in begin] + [
            _chunk(one.index, delta, token_ids=None) for delta in deltas
        ]
        if deltas:
            chunks[len(begin)] |= {"logprobs": logprobs, "token_ids": token_ids}
        if one.finish_reason:
            reason = self._reason(said, one)
            chunks[-1] |= {"finish_reason": reason, "stop_reason": one.stop_reason}
        return chunks

    def _choice(self, one: CompletionOutput) -> dict[str, Any]:
        said = self._said(one.index)
        return {
            "index": one.index,
            "message": said.message(one.text),
            "logprobs": self._logprobs(one),
            "finish_reason": self._reason(said, one),
            "stop_reason": one.stop_reason,
            "token_ids": list(one.token_ids) if self.request.return_token_ids else None,
        }

    def _reason(self, said: ChatChoice, one: CompletionOutput) -> str | None:
        """The engine's, or that functions are to be called.

        A function that was named is no surprise: then the engine's reason stands, as in OpenAI's API. So does
        it where calls were required and their list was cut off.
        """
        is_named = isinstance(self.request.tool_choice, dict)
        if is_named or (is_enforced(self.request) and one.finish_reason != "stop"):
            return one.finish_reason
        return said.finish_reason(one.finish_reason)

    def _logprobs(self, one: CompletionOutput) -> dict[str, Any] | None:
        if not self.request.logprobs or one.logprobs is None:
            return None
        tokens = tokens_with_logprobs(
            one.token_ids, one.logprobs, bool(self.request.return_tokens_as_token_ids)
        )
        return of_chat(tokens, self.request.top_logprobs or 0)


def _chunk(index: int, delta: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"index": index, "delta": delta, "logprobs": None, "finish_reason": None, **more}
