"""What a checkpoint says of keys and values in 8 bits: a number that each is divided by before it is kept.

    model.layers.0.self_attn.k_scale, v_scale       one number each; older files: kv_scale, one for both
    model.layers.0.self_attn.k_proj.output_scale    the name of early compressed-tensors

They are kept in `Decoder.kv_scales`, for a KV cache in 8 bits; a cache in the model's type needs none.

Source: vLLM `model_executor/layers/quantization/kv_cache.py`, `model_loader/weight_utils.py`.
"""

from __future__ import annotations

from collections.abc import Container
from math import isfinite

from minivllm.model.decoder import KVScales
from minivllm.model.quantization.scheme import FLOATS
from minivllm.model.weights import Checkpoint, CheckpointError, StoredTensor

_KEY = ("k_scale", "k_proj.k_scale", "k_proj.output_scale", "kv_scale")
_VALUE = ("v_scale", "v_proj.v_scale", "v_proj.output_scale", "kv_scale")


def find_kv_scales(names: Container[str], num_layers: int) -> dict[str, StoredTensor]:
    """The scales that are among `names`, and what they must be like."""
    found = {}
    for layer in range(num_layers):
        for name in (_first(_KEY, names, layer), _first(_VALUE, names, layer)):
            if name is not None:
                found[name] = StoredTensor((1,), FLOATS, "a scale of the KV cache", is_single=True)
    return found


def read_kv_scales(checkpoint: Checkpoint, num_layers: int) -> tuple[KVScales | None, ...]:
    """For each layer its scales. One alone serves keys and values; none at all is None.

    Raises:
        CheckpointError: a scale is no finite number above 0.
    """
    scales: list[KVScales | None] = []
    for layer in range(num_layers):
        key, value = (_first(kinds, checkpoint.file_of, layer) for kinds in (_KEY, _VALUE))
        if key is None and value is None:
            scales.append(None)
            continue
        both = _read(checkpoint, key or value), _read(checkpoint, value or key)
        scales.append(KVScales(*both))
    return tuple(scales)


def _first(kinds: tuple[str, ...], names: Container[str], layer: int) -> str | None:
    full = (f"model.layers.{layer}.self_attn.{kind}" for kind in kinds)
    return next((name for name in full if name in names), None)


def _read(checkpoint: Checkpoint, name: str | None) -> float:
    assert name is not None
    scale = float(checkpoint.read([name])[name])
    if not (isfinite(scale) and scale > 0):
        raise CheckpointError(f"{name} must be a finite number above 0, got {scale}")
    return scale
