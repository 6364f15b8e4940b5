"""The comparison as a trace for the dashboard's page "Precision": its rows, and matrices looked at closely.

Of each matrix a corner is recorded, around the input channel that sees the largest inputs, and beside it what
becomes of the corner on every grid: 2, 3, 4 and 8 bits × groups of 32, 64, 128 and whole rows. A page that
plays them needs no model and no tensors.

Read next: `minivllm/trace/precision_events.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec
import torch
from torch import Tensor

from minivllm.lab.compare.precision import (
    PrecisionComparison,
    PrecisionRow,
    PrecisionSettings,
    held_out_texts,
)
from minivllm.model.config import ModelConfig
from minivllm.model.hub import resolve_model
from minivllm.model.load import load_decoder
from minivllm.model.quantization.algorithms.rounding import Grid, round_to_nearest
from minivllm.model.quantization.calibration import InputStatistics, LayerRunner, watched
from minivllm.trace.precision_events import (
    PRECISION_VERSION,
    GridTried,
    MatrixOnGrids,
    MatrixSampled,
    PrecisionHeader,
    PrecisionTrace,
    VariantMeasured,
    write_precision,
)
from minivllm.trace.recorder import timestamp

BITS = (8, 4, 3, 2)
GROUP_SIZES = (32, 64, 128, 0)
ROWS, COLUMNS = 16, 64


def record(path: Path, result: PrecisionComparison, settings: PrecisionSettings) -> None:
    """Write the trace of a comparison that was made with these settings.

    Raises:
        CannotWrite: and a file that was there before is still there.
    """
    folder = resolve_model(settings.model)
    texts = held_out_texts(settings, folder, ModelConfig.from_folder(folder))
    write_precision(path, make_trace(result, folder, texts))


def make_trace(result: PrecisionComparison, folder: Path, texts: Sequence[Sequence[int]]) -> PrecisionTrace:
    """The rows, and two matrices of the model in `folder` with their inputs on `texts`."""
    return PrecisionTrace(
        PrecisionHeader(
            version=PRECISION_VERSION,
            created=timestamp(),
            model=result.model,
            text=result.text,
            speed_model=result.speed_model if any(row.speed for row in result.rows) else "",
        ),
        [_measured(row) for row in result.rows],
        sample_matrices(folder, texts),
    )


def sample_matrices(folder: Path, texts: Sequence[Sequence[int]]) -> list[MatrixOnGrids]:
    """The last layer's way down, whose inputs differ most, and the first layer's queries, keys and values."""
    config = ModelConfig.from_folder(folder)
    decoder = load_decoder(folder, config, torch.float32, torch.device("cpu"))
    last = config.num_layers - 1
    chosen = {
        f"layer {last}: down": decoder.layers[last].mlp.down,
        "layer 0: q, k, v": decoder.layers[0].attention.qkv,
    }
    seen = {linear: InputStatistics(linear.in_size) for linear in chosen.values()}
    runner = LayerRunner(decoder)
    with torch.inference_mode(), watched({linear: found.observe for linear, found in seen.items()}):
        for text in texts:
            hidden = runner.embed(text)
            for layer in decoder.layers:
                hidden = runner.layer(layer, hidden)
    return [on_grids(name, linear.matrix.dense(), seen[linear]) for name, linear in chosen.items()]


def on_grids(name: str, weight: Tensor, inputs: InputStatistics) -> MatrixOnGrids:
    """One matrix [out, in], with every grid whose groups divide its inputs."""
    num_outputs, num_inputs = weight.shape
    salient = int(inputs.mean.argmax())
    rows, columns = min(ROWS, num_outputs), min(COLUMNS, num_inputs)
    left = min(salient // columns * columns, num_inputs - columns)
    top = min(int(weight[:, salient].abs().argmax()) // rows * rows, num_outputs - rows)
    row = int(weight[top : top + rows, salient].abs().argmax())
    sampled = MatrixSampled(
        name=name,
        num_outputs=num_outputs,
        num_inputs=num_inputs,
        first_output=top,
        first_input=left,
        weights=tuple(_numbers(line) for line in weight[top : top + rows, left : left + columns]),
        row=row,
        row_weights=_numbers(weight[top + row]),
        mean_inputs=_numbers(inputs.mean),
    )
    sizes = [size for size in GROUP_SIZES if size < num_inputs and (not size or num_inputs % size == 0)]
    return MatrixOnGrids(
        sampled, [_tried(weight, inputs, sampled, bits, size) for bits in BITS for size in sizes]
    )


def _tried(
    weight: Tensor, inputs: InputStatistics, sampled: MatrixSampled, bits: int, size: int
) -> GridTried:
    rounded = round_to_nearest(weight, Grid(bits, size or -1, symmetric=False))
    wrong = rounded.dense() - weight
    group = size or weight.shape[1]
    rows = slice(sampled.first_output, sampled.first_output + len(sampled.weights))
    end = sampled.first_input + len(sampled.weights[0])
    groups = slice(sampled.first_input // group, (end - 1) // group + 1)
    row = sampled.first_output + sampled.row
    return GridTried(
        bits=bits,
        group_size=size,
        codes=tuple(tuple(line.tolist()) for line in rounded.codes[rows, sampled.first_input : end]),
        scales=tuple(_numbers(line) for line in rounded.scales[rows, groups]),
        zeros=tuple(tuple(line.tolist()) for line in rounded.zeros[rows, groups]),
        row_codes=tuple(rounded.codes[row].tolist()),
        row_scales=_numbers(rounded.scales[row]),
        row_zeros=tuple(rounded.zeros[row].tolist()),
        channel_errors=_numbers(wrong.square().mean(0).sqrt()),
        weight_error=float(wrong.norm() / weight.norm()),
        output_error=_output_error(wrong, weight, inputs.moments),
    )


def _output_error(wrong: Tensor, weight: Tensor, moments: Tensor) -> float:
    """√(Σ ‖ΔW x‖² / Σ ‖W x‖²), from Σ x xᵀ."""

    def squared(matrix: Tensor) -> float:
        return float(((matrix @ moments) * matrix).sum().clamp(min=0))

    whole = squared(weight)
    return (squared(wrong) / whole) ** 0.5 if whole else 0.0


def _numbers(values: Tensor) -> tuple[float, ...]:
    """Five digits: more than a picture can show."""
    return tuple(float(f"{value:.5g}") for value in values.tolist())


def _measured(row: PrecisionRow) -> VariantMeasured:
    found = VariantMeasured(
        name=row.variant.name,
        skipped=row.skipped,
        weight_bytes=row.weight_bytes,
        cache_bytes_per_token=row.cache_bytes_per_token,
    )
    if (quality := row.quality) is not None:
        found = msgspec.structs.replace(
            found,
            perplexity=quality.perplexity,
            kl_prompts=quality.kl_prompts,
            kl_decoding=quality.kl_decoding,
            kept=quality.kept,
        )
    if (speed := row.speed) is not None:
        found = msgspec.structs.replace(
            found,
            prompt_tokens_per_second=speed.prompt,
            one_stream_tokens_per_second=speed.one_stream,
            batch_tokens_per_second=speed.batch,
        )
    return found
