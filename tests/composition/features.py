"""What can be asked of an engine or for a request, one line a feature: the rows of `docs/composition.md`.

A new feature is one more line here, then `python -m tests.composition.make_table`. Two features that set the
same thing to different values cannot be asked for together; all others are tried in pairs (`pairs.py`).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any

from minivllm.memory.allocators import ALLOCATORS
from minivllm.model.quantization.names import ROUNDINGS
from minivllm.scheduling.choose_policy import POLICIES
from minivllm.structured_outputs import StructuredOutputsParams


@dataclass(frozen=True)
class Feature:
    """A name, engine settings (`EngineArgs`) and parameters of requests (`SamplingParams`)."""

    name: str
    settings: dict[str, Any] = field(default_factory=dict)
    params: dict[str, Any] = field(default_factory=dict)


SMALL_POOL = {"num_gpu_blocks_override": 18}
"""Of blocks of 8 tokens: requests of a run do not fit at once, and some are preempted."""
SPECS = {"static": "static(timeout_seconds=0)"}
"""No run waits for company that does not come."""

NGRAM = {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_min": 1, "prompt_lookup_max": 3}
DRAFT = {"method": "draft_model", "num_speculative_tokens": 3, "model": "draft"}
CHECKPOINTS = {"gptq": "gptq", "awq": "awq", "pack-quantized": "rtn", "int-quantized": "smoothquant",
               "float-quantized": "fp8"}  # fmt: skip
"""Quantised checkpoints, by format, and what `minivllm quantize` makes each with."""

PATTERN = StructuredOutputsParams(regex="[a-z ]{6}[0-9]{2}")

FEATURES = (
    Feature("n > 1", params={"n": 3, "temperature": 1.0, "seed": 11}),
    Feature("beam search", params={"n": 3, "use_beam_search": True}),
    Feature("structured output", params={"structured_outputs": PATTERN}),
    Feature("log-probabilities", params={"logprobs": 3, "prompt_logprobs": 1}),
    Feature("hash cache", {"prefix_cache": "hash"}),
    Feature("radix cache", {"prefix_cache": "radix"}),
    Feature("recompute", {"preemption_mode": "recompute", **SMALL_POOL}),
    Feature("swap", {"preemption_mode": "swap", "swap_space": 0.01, **SMALL_POOL}),
    Feature("small chunks", {"max_num_batched_tokens": 16}),
    Feature("async scheduling", {"async_scheduling": True}),
    Feature("chunks off", {"enable_chunked_prefill": False, "max_num_batched_tokens": 256}),
    *(Feature(name, {"scheduling_policy": SPECS.get(name, name)}) for name in POLICIES if name != "fcfs"),
    *(Feature(name, {"allocator": name}) for name in ALLOCATORS if name != "paged"),
    Feature("int8", {"quantization": "int8"}),
    Feature("int4", {"quantization": "int4"}),
    Feature("fp8", {"quantization": "fp8", "batch_invariant": True}),
    Feature("bfloat16", {"dtype": "bfloat16", "attention_backend": "numba-cpu"}),
    Feature("torch", {"attention_backend": "torch", "batch_invariant": True}),
    Feature("torch float64", {"attention_backend": "torch", "dtype": "float64"}),
    *(Feature(f"{name} checkpoint", {"model": name}) for name in CHECKPOINTS),
    *(Feature(f"decoding in {name}", {"decode_weight_dtype": name}) for name in ROUNDINGS),
    Feature("int8 KV cache", {"kv_cache_dtype": "int8_per_token_head"}),
    Feature("fp8 KV cache", {"kv_cache_dtype": "fp8"}),
    Feature("n-gram drafts", {"speculative_config": NGRAM}),
    Feature("draft model", {"speculative_config": DRAFT}),
    Feature("batch-invariant", {"batch_invariant": True}),
    Feature("2 tensor-parallel ranks", {"tensor_parallel_size": 2}),
    Feature("2 pipeline stages", {"pipeline_parallel_size": 2}),
)
BASE = {
    "attention_backend": "numba-cpu",
    "dtype": "float32",
    "block_size": 8,
    "max_model_len": 128,
    "num_gpu_blocks_override": 128,
}
"""Settings of every run, unless a feature has others."""
ARITHMETIC = ("model", "attention_backend", "dtype", "quantization", "batch_invariant", "kv_cache_dtype",
              "decode_weight_dtype")  # fmt: skip
"""Settings that may change a token: the solo run has them, and no others."""


def digest() -> str:
    """Of the table above: a page that was made from another one is out of date."""
    return hashlib.sha256(repr((FEATURES, BASE)).encode()).hexdigest()[:16]
