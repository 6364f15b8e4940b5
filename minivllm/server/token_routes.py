"""`/tokenize` and `/detokenize`: texts as tokens, and back.

Source: vLLM's API. Read next: `app.py`.
"""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI

from minivllm.server.answer_forms import Detokenized, Tokenized
from minivllm.server.errors import ApiError
from minivllm.server.openapi import answers
from minivllm.server.protocol import DetokenizeRequest, TokenizeRequest
from minivllm.server.served_model import ServedModel


def add_token_routes(app: FastAPI, model: ServedModel) -> None:
    """Let the app show the model's tokens."""

    @app.post("/tokenize", responses=answers(Tokenized))
    def tokenize(asked: TokenizeRequest) -> dict[str, Any]:
        """A prompt, or a conversation, as tokens."""
        model.name_for(asked.model)
        if (asked.prompt is None) == (asked.messages is None):
            raise ApiError("Give either a prompt or messages.", "prompt")
        text = asked.prompt if asked.prompt is not None else _rendered(model, asked)
        special = asked.add_special_tokens
        special = asked.messages is None if special is None else special
        tokens = model.encode(text, add_special_tokens=special)
        texts = [model.tokenizer.token_text(token) for token in tokens] if asked.return_token_strs else None
        return {
            "count": len(tokens),
            "max_model_len": model.max_model_len,
            "tokens": tokens,
            "token_strs": texts,
        }

    @app.post("/detokenize", responses=answers(Detokenized))
    def detokenize(asked: DetokenizeRequest) -> dict[str, str]:
        """Tokens as text."""
        model.name_for(asked.model)
        size = model.num_token_ids
        for index, token in enumerate(asked.tokens):
            if not 0 <= token < size:
                raise ApiError(
                    f"tokens[{index}] must be from 0 to {size - 1}, the vocabulary's size", "tokens", token
                )
        return {"prompt": model.tokenizer.decode(asked.tokens)}


def _rendered(model: ServedModel, asked: TokenizeRequest) -> str:
    return model.render(
        asked.messages or (),
        tools=asked.tools,
        chat_template=asked.chat_template,
        chat_template_kwargs=asked.chat_template_kwargs,
        add_generation_prompt=asked.add_generation_prompt,
        continue_final_message=asked.continue_final_message,
    )
