"""What all answers have in common: a name, a date, the requests behind them, and what they have used.

One request of a client may have several prompts, and each of them several outputs: a choice for each.

    prompt 0 ── generate ──► outputs 0, 1 ──┐ choices 0, 1
                                            ├──► one answer, or one stream of chunks
    prompt 1 ── generate ──► outputs 0, 1 ──┘ choices 2, 3

Read next: `completions.py`.
"""

from __future__ import annotations

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from uuid import uuid4

import msgspec

from minivllm import __version__
from minivllm.decoding.structured.expressions import StructureError
from minivllm.engine.prompts import Prompt
from minivllm.outputs import RequestOutput
from minivllm.sampling_params import SamplingParams
from minivllm.server.engine_client import EngineClient
from minivllm.server.protocol import SampledRequest
from minivllm.server.served_model import ServedModel
from minivllm.server.stream import Take

FINGERPRINT = f"minivllm-{__version__}"
WriteNow = Callable[[Callable[[], bytes]], bool]
"""Writes what the function returns, and says True; or, if it cannot now, calls nothing and says False."""
DONE = b"data: [DONE]\n\n"
encode = msgspec.json.Encoder().encode


@dataclass
class Answer:
    """One answer in the making.

    Attributes:
        prefix: of its name: `cmpl`, `chatcmpl`.
        kind: the `object` that it is.
        model: the name under which the client asked for it.
        wanted: the client's own name for it.
    """

    prefix: str
    kind: str
    model: str
    wanted: str | None = None
    created: int = field(default_factory=lambda: int(time.time()))
    prompt_tokens: dict[int, int] = field(default_factory=dict)
    cached_tokens: dict[int, int] = field(default_factory=dict)
    completion_tokens: dict[int, int] = field(default_factory=dict)
    """By prompt, by prompt, by choice."""

    def __post_init__(self) -> None:
        self.name = f"{self.prefix}-{self.wanted or uuid4().hex[:16]}"
        # What clients call theirs need not be unique.
        self.engine_name = f"{self.name}-{uuid4().hex[:8]}" if self.wanted else self.name

    def head(self) -> dict[str, Any]:
        return {"id": self.name, "object": self.kind, "created": self.created, "model": self.model}

    def count(self, prompt: int, output: RequestOutput, choices: Sequence[tuple[int, int]]) -> None:
        """Note what an output has used; `choices` are pairs of (choice, new tokens)."""
        self.prompt_tokens[prompt] = len(output.prompt_token_ids)
        self.cached_tokens[prompt] = output.num_cached_tokens or 0
        for choice, new in choices:
            self.completion_tokens[choice] = self.completion_tokens.get(choice, 0) + new

    def usage(self) -> dict[str, Any]:
        """What everything has used."""
        usage = _usage(sum(self.prompt_tokens.values()), sum(self.completion_tokens.values()))
        return usage | {"prompt_tokens_details": {"cached_tokens": sum(self.cached_tokens.values())}}

    def usage_of(self, prompt: int, choice: int) -> dict[str, Any]:
        """What one choice has used so far."""
        return _usage(self.prompt_tokens.get(prompt, 0), self.completion_tokens.get(choice, 0))


class Answering(ABC):
    """A request of a client, and how it is answered: in one piece, or in chunks as the tokens come.

    Attributes:
        prompts: for the engine, checked and with their tokens.
        params: what the engine is asked for; the same for all prompts.
    """

    def __init__(
        self,
        request: SampledRequest,
        model: ServedModel,
        answer: Answer,
        prompts: Sequence[Prompt],
        params: SamplingParams,
    ) -> None:
        self.model = model
        self.answer = answer
        self.prompts = prompts
        self.params = params
        self._request = request
        # What each chunk of a stream begins with is encoded once.
        self._head = b"data: " + encode(answer.head())[:-1] + b',"choices":['

    @abstractmethod
    def choices(self, prompt: int, output: RequestOutput) -> list[dict[str, Any]]:
        """What an output says, choice by choice: in a stream what is new, else everything."""

    def about_prompt(self, output: RequestOutput) -> dict[str, Any]:
        """What an answer, or the first chunk of a stream, tells of the prompt beside its choices."""
        return {}

    def request_ids(self) -> list[str]:
        """What the engine calls the requests behind it, one for each prompt."""
        return request_ids(self.answer.engine_name, len(self.prompts))

    async def whole(self) -> dict[str, Any]:
        """The answer in one piece."""
        choices: dict[int, dict[str, Any]] = {}
        about_prompt: dict[str, Any] = {}
        with self._naming_fields():
            async with aclosing(self._outputs()) as outputs:
                async for prompt, output in outputs:
                    if output.finished:
                        choices |= {choice["index"]: choice for choice in self.choices(prompt, output)}
                        about_prompt = self.about_prompt(output)
        return {
            **self.answer.head(),
            "choices": [choices[index] for index in sorted(choices)],
            "service_tier": None,
            "system_fingerprint": FINGERPRINT,
            "usage": self.answer.usage() | {"completion_tokens_details": None},
            **about_prompt,
        }

    async def stream(self, write: WriteNow | None = None) -> AsyncGenerator[bytes]:
        """The answer in chunks, as server-sent events.

        Args:
            write: a short way to the client. What goes that way is not yielded; the first and the last
                chunk are.
        """
        options = self._request.stream_options
        is_first = True
        with self._naming_fields():
            async with aclosing(self._outputs(write)) as outputs:
                async for prompt, output in outputs:
                    about = self.about_prompt(output) if is_first else None
                    if chunks := self._chunks_of(prompt, output, about):
                        is_first = False
                        yield chunks
        if options and options.include_usage:
            usage = self.answer.usage()
            yield event(
                {**self.answer.head(), "choices": [], "usage": usage, "system_fingerprint": FINGERPRINT}
            )
        yield DONE

    def _chunks_of(self, prompt: int, output: RequestOutput, about: dict[str, Any] | None = None) -> bytes:
        """One write for all that a step brings. `about`: what its first chunk tells beside its choice."""
        choices = self.choices(prompt, output)
        return b"".join(
            [self._chunk(prompt, choice, None if number else about) for number, choice in enumerate(choices)]
        )

    def _chunk(self, prompt: int, choice: dict[str, Any], about: dict[str, Any] | None) -> bytes:
        """The event that tells this, and no other, choice."""
        options, more = self._request.stream_options, about
        if options and options.continuous_usage_stats:
            more = {**(about or {}), "usage": self.answer.usage_of(prompt, choice["index"])}
        return self._head + encode(choice) + (b"]," + encode(more)[1:] if more else b"]}") + b"\n\n"

    def _outputs(self, write: WriteNow | None = None) -> AsyncGenerator[tuple[int, RequestOutput]]:
        priority = self._request.priority
        take = None if write is None or len(self.prompts) > 1 else partial(self._take, write)
        return outputs_of(self.model.llm, self.prompts, self.params, self.answer.engine_name, priority, take)

    @contextmanager
    def _naming_fields(self) -> Iterator[None]:
        """The engine knows one argument for all structures; clients have several fields that ask for one."""
        try:
            yield
        except StructureError as error:
            raise self._request.refused_structure(error) from None

    def _take(self, write: WriteNow, output: RequestOutput) -> bool:
        """Tell an output of the only prompt, if the client can take it now."""
        return write(partial(self._chunks_of, 0, output))


def _usage(prompt: int, completion: int) -> dict[str, Any]:
    return {"prompt_tokens": prompt, "total_tokens": prompt + completion, "completion_tokens": completion}


def request_ids(name: str, num_prompts: int) -> list[str]:
    """The names of the requests of an answer."""
    return [name] if num_prompts == 1 else [f"{name}-{number}" for number in range(num_prompts)]


def event(data: dict[str, Any]) -> bytes:
    """One server-sent event."""
    return b"data: " + encode(data) + b"\n\n"


async def outputs_of(
    llm: EngineClient,
    prompts: Sequence[Prompt],
    params: SamplingParams,
    name: str,
    priority: int,
    take: Take | None = None,
) -> AsyncGenerator[tuple[int, RequestOutput]]:
    """The outputs of several prompts as they come, with the number of their prompt.

    One that is refused, or fails, ends all; and so does a caller who leaves.

    Args:
        take: of a single prompt's outputs, see `AsyncLLM.generate`.
    """
    if len(prompts) == 1:
        async with aclosing(llm.generate(prompts[0], params, name, priority=priority, take=take)) as outputs:
            async for output in outputs:
                yield 0, output
        return
    # One place: what a slow client does not fetch is joined in the streams, and not kept here.
    inbox: asyncio.Queue[tuple[int, RequestOutput | Exception]] = asyncio.Queue(maxsize=1)
    names = request_ids(name, len(prompts))

    async def forward(number: int) -> None:
        try:
            async with aclosing(
                llm.generate(prompts[number], params, names[number], priority=priority)
            ) as outputs:
                async for output in outputs:
                    await inbox.put((number, output))
        except Exception as error:
            await inbox.put((number, error))

    tasks = [asyncio.create_task(forward(number)) for number in range(len(prompts))]
    try:
        num_unfinished = len(prompts)
        while num_unfinished:
            number, found = await inbox.get()
            if isinstance(found, Exception):
                raise found
            num_unfinished -= found.finished
            yield number, found
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
