"""What the server asks of an engine, wherever that is: in a thread of this process, or in others.

    routes ── EngineClient ──┬── AsyncLLM    one engine, in a thread       (`async_llm.py`)
                             └── Replicas    several, each in a process    (`replicas.py`)

The name is vLLM's. Read next: `async_llm.py`.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable
from typing import Protocol

from minivllm.engine.prompts import Prompt
from minivllm.model.tokenizer import Tokenizer
from minivllm.outputs import RequestOutput
from minivllm.sampling_params import BeamSearchParams, SamplingParams
from minivllm.server.stream import Take


class EngineClient(Protocol):
    """Many callers' way to an engine. The methods mean what those of `AsyncLLM` do."""

    def generate(
        self,
        prompt: Prompt,
        sampling_params: SamplingParams | BeamSearchParams,
        request_id: str,
        *,
        priority: int = 0,
        take: Take | None = None,
    ) -> AsyncGenerator[RequestOutput]: ...

    async def abort(self, request_id: str | Iterable[str]) -> None: ...

    async def reset_prefix_cache(self) -> bool: ...

    async def check_health(self) -> None: ...

    @property
    def tokenizer(self) -> Tokenizer | None: ...

    @property
    def default_params(self) -> SamplingParams: ...

    @property
    def max_model_len(self) -> int: ...

    @property
    def is_running(self) -> bool: ...

    @property
    def num_unfinished_requests(self) -> int: ...

    @property
    def num_waiting_requests(self) -> int: ...

    def end_requests(self, reason: str) -> None: ...

    def shutdown(self) -> None: ...
