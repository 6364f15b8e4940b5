"""Comparisons of precisions for tests: small matrices on all grids that fit, and rows of a table."""

import torch

from minivllm.lab.compare.precision_trace import on_grids
from minivllm.model.quantization.calibration import InputStatistics
from minivllm.trace.precision_events import (
    PRECISION_VERSION,
    PrecisionHeader,
    PrecisionTrace,
    VariantMeasured,
)

ROWS = (
    VariantMeasured(name="float32", weight_bytes=4096, cache_bytes_per_token=64, perplexity=2.5,
                    kl_prompts=0.0, kl_decoding=0.0, kept=1.0, prompt_tokens_per_second=100.0,
                    one_stream_tokens_per_second=10.0, batch_tokens_per_second=50.0),
    VariantMeasured(name="INT4", weight_bytes=512, cache_bytes_per_token=64, perplexity=2.6,
                    kl_prompts=0.001, kl_decoding=0.002, kept=0.875),
    VariantMeasured(name="KV INT8", skipped="there is no such setting"),
)  # fmt: skip


def header(**news):
    usual = {
        "version": PRECISION_VERSION,
        "created": "2026-01-01T00:00:00Z",
        "model": "tiny",
        "text": "a text",
    }
    return PrecisionHeader(**(usual | news))


def matrix(name="layer 0: down", num_outputs=40, num_inputs=128, seed=0):
    """A random matrix, one of whose inputs is much larger than all others, on its grids."""
    random = torch.Generator().manual_seed(seed)
    inputs = InputStatistics(num_inputs)
    sizes = torch.ones(num_inputs)
    sizes[num_inputs // 3] = 30.0
    inputs.observe(torch.randn(64, num_inputs, generator=random) * sizes)
    return on_grids(name, torch.randn(num_outputs, num_inputs, generator=random) / 9, inputs)


def trace(*matrices, rows=ROWS, **news):
    return PrecisionTrace(header(**news), list(rows), list(matrices or [matrix()]))
