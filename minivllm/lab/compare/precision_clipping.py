"""AWQ beside rounding, calibrated on little: whose clipping loses, and why the known tool lost.

AutoAWQ's checkpoint of the shipped model, calibrated on 2,048 tokens, was worse on held-out text than plain
rounding to the same grid. Clipping, fitted too well to so little text, was the suspect. Here, with as little:

    rounding                             to the nearest, asymmetric
    AWQ, no clipping / always / validated
    AWQ, first try never undone          what the tool does on a CPU

The last row plants the tool's mistake. Its search saves a module's weights by `.cpu()` and restores them
after each try; on a GPU that is a copy, on a CPU it is the same memory, which the first try multiplies in
place. So every input channel keeps a factor that no norm takes back, and all that follows is fitted to that.

Read next: `minivllm/model/quantization/algorithms/awq.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from minivllm.executor.attention.torch_backend import TorchAttention
from minivllm.executor.kv_storage import KVStorage
from minivllm.executor.torch_executor import TorchExecutor
from minivllm.lab.compare.precision_quality import BLOCK_SIZE, Scores, compare, num_blocks_needed, score
from minivllm.model.decoder import Decoder
from minivllm.model.layers import DenseMatrix
from minivllm.model.load import load_decoder
from minivllm.model.quantization.algorithms.awq import first_duo_scales
from minivllm.model.quantization.algorithms.rounding import Grid
from minivllm.model.quantization.quantize_layers import Run
from minivllm.quantize import Calibration, plan_quantization

LITTLE = 16
"""Samples, some 1,800 tokens of the built-in texts: what AutoAWQ's checkpoint was calibrated with."""
SPOILED = "AWQ, first try never undone"
ROUNDING = "rounding (RTN)"
WAYS: tuple[tuple[str, str, dict[str, Any]], ...] = (
    (ROUNDING, "rtn", {"symmetric": False}),
    ("AWQ, no clipping", "awq", {"clipping": "never"}),
    ("AWQ, clipping always", "awq", {"clipping": "always"}),
    ("AWQ, clipping validated", "awq", {"clipping": "validated"}),
    (SPOILED, "awq", {"clipping": "always", "duo_scaling": True}),
)


@dataclass(frozen=True)
class ClippingRow:
    """One way, calibrated on little: KL to float32 on the held-out text, nats a token."""

    name: str
    kl: float
    kept: float


def compare_clipping(
    reference: Scores, folder: Path, texts: Sequence[Sequence[int]], num_samples: int = LITTLE
) -> list[ClippingRow]:
    """All ways, on the same grid and the same samples."""
    return [_row(way, reference, folder, texts, num_samples) for way in WAYS]


def _row(
    way: tuple[str, str, dict[str, Any]],
    reference: Scores,
    folder: Path,
    texts: Sequence[Sequence[int]],
    num_samples: int,
) -> ClippingRow:
    name, method, options = way
    plan = plan_quantization(folder, method, Calibration(num_samples=num_samples), **options)
    plan.samples.held_out = ()
    decoder = load_decoder(folder, plan.config, torch.float32, torch.device("cpu"))
    if name == SPOILED:
        spoil(decoder, plan.settings.grid)
    for _ in Run(decoder, plan.settings, plan.samples):
        pass
    storage = KVStorage(plan.config, num_blocks_needed(texts), BLOCK_SIZE, decoder.dtype, torch.device("cpu"))
    found = compare(score(TorchExecutor(decoder, storage, TorchAttention), texts), reference)
    return ClippingRow(name, found.kl, found.kept)


def spoil(decoder: Decoder, grid: Grid) -> None:
    """Leave the first try's scales in the weights of all linears that are searched together."""
    with torch.inference_mode():
        for layer in decoder.layers:
            for linear in (layer.attention.qkv, layer.mlp.gate_up, layer.mlp.down):
                weight = linear.matrix.dense()
                linear.matrix = DenseMatrix(weight * first_duo_scales(weight, grid))
