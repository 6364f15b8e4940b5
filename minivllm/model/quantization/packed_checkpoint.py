"""A quantised model as files: the tensors of each layer by name, and what config.json says about them.

    method        quant_method         tensors of a matrix
    ───────────   ──────────────────   ────────────────────────────────────────────
    gptq          gptq                 qweight, qzeros, scales, g_idx       `gptq.py`
    awq           awq                  qweight, qzeros, scales              `awq.py`
    rtn           compressed-tensors   weight_packed, weight_scale, …       `pack_quantized.py`
    smoothquant   compressed-tensors   weight (int8), weight_scale          `int_quantized.py`
    fp8           compressed-tensors   weight (e4m3), weight_scale          `float8_weights.py`

Asymmetric GPTQ is written as v2: v1 stores zeros less 1, where a zero of 0 has no place, and tools disagree
on what becomes of it. Matrices that are no layer's (embedding, head, tied or not) stay as they were.

Read next: `minivllm/quantize.py`, which writes the folder.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor

from minivllm.model.config import ModelConfig
from minivllm.model.layers import DecoderLayer, StackedLinear
from minivllm.model.quantization import awq, float8_weights, gptq, int_quantized, pack_quantized
from minivllm.model.quantization.bit_packing import pack_bits
from minivllm.model.quantization.float8_weights import Float8Weights
from minivllm.model.quantization.integer_weights import IntegerWeights
from minivllm.model.quantization.quantize_layers import LayerResult
from minivllm.model.quantization.quantize_one_layer import QuantizedWeights
from minivllm.model.quantization.settings import QuantizationSettings, matrix_inputs

WORD_BITS = 32
UNQUANTIZED = ["lm_head"]


def packed_tensors(
    layer: DecoderLayer, result: LayerResult, settings: QuantizationSettings
) -> dict[str, Tensor]:
    """The tensors of a layer's matrices by their names in the checkpoint, without norms and biases."""
    tensors: dict[str, Tensor] = {}
    for prefix, linear in _named_linears(layer, result.index):
        start = 0
        for name, size in linear.rows.items():
            rows = _rows(result.weights[linear], start, start + size)
            start += size
            for kind, tensor in _pack(rows, settings).items():
                tensors[f"{prefix}.{name}.{kind}"] = tensor.contiguous().clone()
    return tensors


def check_layout(settings: QuantizationSettings, config: ModelConfig) -> None:
    """Raises `ValueError` naming the first matrix whose codes do not fill the words of the format."""
    if settings.method not in ("gptq", "awq"):
        return
    heads = config.head_dim * config.num_heads
    outputs = dict.fromkeys(("gate_proj", "up_proj"), config.intermediate_size)
    outputs |= {"q_proj": heads, "o_proj": config.hidden_size, "down_proj": config.hidden_size}
    outputs |= dict.fromkeys(("k_proj", "v_proj"), config.head_dim * config.num_kv_heads)
    inputs, bits = matrix_inputs(config), settings.grid.bits
    for name, num_outputs in outputs.items():
        counts = {"outputs": num_outputs} | ({"inputs": inputs[name]} if settings.method == "gptq" else {})
        for what, count in counts.items():
            if count * bits % WORD_BITS:
                raise ValueError(
                    f"the {count} {what} of {name} at {bits} bits do not fill words of {WORD_BITS} bits, as "
                    f"the files of the method {settings.method!r} have them; those of 'rtn' may have gaps"
                )


def quantization_config(settings: QuantizationSettings) -> dict[str, Any]:
    """What `config.json` says under `quantization_config`."""
    grid = settings.grid
    if settings.method == "gptq":
        return {
            "quant_method": "gptq",
            "bits": grid.bits,
            "group_size": grid.group_size,
            "desc_act": settings.gptq.act_order and not settings.gptq.static_groups,
            "static_groups": settings.gptq.static_groups,
            "sym": grid.symmetric,
            "true_sequential": settings.true_sequential,
            "damp_percent": settings.gptq.damping,
            "lm_head": False,
            "checkpoint_format": _gptq_version(settings),
            "pack_dtype": "int32",
            "meta": {"quantizer": ["minivllm"]},
        }
    if settings.method == "awq":
        return {
            "quant_method": "awq",
            "bits": grid.bits,
            "group_size": grid.group_size,
            "zero_point": True,  # what is written has zeros, in the middle if it is symmetric
            "version": "gemm",
            "modules_to_not_convert": UNQUANTIZED,
        }
    return _compressed_tensors_config(settings)


def _compressed_tensors_config(settings: QuantizationSettings) -> dict[str, Any]:
    grid, is_float = settings.grid, settings.method == "fp8"
    formats = {"rtn": "pack-quantized", "smoothquant": "int-quantized", "fp8": "float-quantized"}
    by_group = grid.group_size != -1
    weights: dict[str, Any] = {
        "num_bits": grid.bits,
        "type": "float" if is_float else "int",
        "symmetric": grid.symmetric,
        "strategy": "group" if by_group else "channel",
        "group_size": grid.group_size if by_group else None,
        "dynamic": False,
        "actorder": None,
        "block_structure": None,
        "observer": "minmax",
        "observer_kwargs": {},
    }
    activations = None
    if settings.rounds_activations:
        activations = weights | {"strategy": "token", "dynamic": True, "symmetric": True, "observer": None}
    group = {
        "targets": ["Linear"],
        "weights": weights,
        "input_activations": activations,
        "output_activations": None,
        "format": formats[settings.method],
    }
    return {
        "quant_method": "compressed-tensors",
        "format": formats[settings.method],
        "config_groups": {"group_0": group},
        "ignore": UNQUANTIZED,
        "kv_cache_scheme": None,
        "quantization_status": "compressed",
        "global_compression_ratio": None,
    }


def _gptq_version(settings: QuantizationSettings) -> str:
    return gptq.V1 if settings.grid.symmetric else gptq.V2


def _pack(weights: QuantizedWeights, settings: QuantizationSettings) -> dict[str, Tensor]:
    if isinstance(weights, Float8Weights):
        return float8_weights.pack(weights)
    scale_dtype = settings.grid.scale_dtype
    match settings.method:
        case "gptq":
            return gptq.pack(weights, version=_gptq_version(settings), scale_dtype=scale_dtype)
        case "awq":
            return awq.pack(weights, scale_dtype=scale_dtype)
        case "smoothquant":
            return int_quantized.pack(weights, scale_dtype=scale_dtype)
    tensors = pack_quantized.pack(weights, scale_dtype=scale_dtype)
    if not settings.grid.symmetric and "weight_zero_point" not in tensors:  # by chance all in the middle
        tensors["weight_zero_point"] = pack_bits(weights.zeros.T, weights.bits).T.contiguous()
    return tensors


def _rows(weights: QuantizedWeights, start: int, end: int) -> QuantizedWeights:
    """Some outputs of a stack of matrices."""
    if isinstance(weights, Float8Weights):
        return Float8Weights(weights.numbers[start:end], weights.scales[start:end], weights.block)
    codes, scales, zeros = weights.codes[start:end], weights.scales[start:end], weights.zeros[start:end]
    return IntegerWeights(codes, scales, zeros, weights.group_of, weights.bits)


def _named_linears(layer: DecoderLayer, index: int) -> Iterator[tuple[str, StackedLinear]]:
    prefix = f"model.layers.{index}"
    yield f"{prefix}.self_attn", layer.attention.qkv
    yield f"{prefix}.self_attn", layer.attention.output
    yield f"{prefix}.mlp", layer.mlp.gate_up
    yield f"{prefix}.mlp", layer.mlp.down
