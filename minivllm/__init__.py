"""minivllm: a small, true, readable implementation of PagedAttention and continuous batching.

Requests go in, a plan comes out of the scheduler, an executor carries the plan out, tokens come back, and
everything that happens is an event. Read `llm.py` first, then `engine/engine.py`, then
`scheduling/scheduler.py`.
"""

from __future__ import annotations

from minivllm.environment import set_environment
from minivllm.guard import guard_our_program

guard_our_program()  # before anything that takes time
set_environment()  # before anything loads torch

__version__ = "0.1.0"

TYPE_CHECKING = False
if TYPE_CHECKING:  # `typing` itself takes longer than all of this
    from typing import Any

    from minivllm.engine.engine import Engine
    from minivllm.engine.engine_args import EngineArgs
    from minivllm.llm import LLM
    from minivllm.outputs import (
        BeamSearchOutput,
        BeamSearchSequence,
        CompletionOutput,
        Logprob,
        RequestOutput,
    )
    from minivllm.sampling_params import BeamSearchParams, RequestOutputKind, SamplingParams
    from minivllm.structured_outputs import StructuredOutputsParams

_HOMES = {
    "LLM": "llm",
    "Engine": "engine.engine",
    "EngineArgs": "engine.engine_args",
    "BeamSearchOutput": "outputs",
    "BeamSearchParams": "sampling_params",
    "BeamSearchSequence": "outputs",
    "CompletionOutput": "outputs",
    "Logprob": "outputs",
    "RequestOutput": "outputs",
    "RequestOutputKind": "sampling_params",
    "SamplingParams": "sampling_params",
    "StructuredOutputsParams": "structured_outputs",
}

__all__ = [  # noqa: RUF022 (in the order in which a reader meets them)
    "LLM",
    "SamplingParams",
    "BeamSearchParams",
    "StructuredOutputsParams",
    "RequestOutput",
    "CompletionOutput",
    "Logprob",
    "RequestOutputKind",
    "BeamSearchOutput",
    "BeamSearchSequence",
    "EngineArgs",
    "Engine",
]


def __getattr__(name: str) -> Any:
    """Import on first use: reading a trace, or `minivllm --help`, must not wait for torch."""
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(f"minivllm.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'minivllm' has no attribute {name!r}")
