"""What a checkpoint says about itself: `config.json` read into one typed, checked record.

Llama, Mistral, Qwen2 and Qwen3 are the same decoder with a few switches thrown differently, so the
families live here, as data, and nowhere else: the decoder has no subclass and asks no model's name.

                    QKV bias     output bias    norm on each q/k head    sliding window
    Llama        attention_bias  attention_bias          no                    no
    Mistral            no             no                 no             all layers, if set
    Qwen2             yes             no                 no             some layers, if used
    Qwen3        attention_bias  attention_bias         yes             some layers, if used

Keys that a file leaves out get the defaults of `transformers`, which differ between families too. A
value that this decoder would have to ignore is refused by name: wrong logits are worse than none.

Papers: Llama (arXiv 2302.13971), Mistral 7B (2310.06825), Qwen2 (2407.10671), Qwen3 (2505.09388).
Read next: `minivllm/model/rotary.py` for the positions, then `minivllm/model/decoder.py`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minivllm.trace.events import ModelShape
from minivllm.validation import check_boolean, check_choice, check_integer, check_number

ARCHITECTURES = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")
ROPE_TYPES = ("default", "linear", "llama3", "yarn")
ACTIVATIONS = ("silu", "swish", "gelu", "gelu_new", "gelu_pytorch_tanh")
BYTES_PER_ELEMENT = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}

_WINDOW_IF_ABSENT = 4096
_FULL_LAYERS_IF_ABSENT = 28  # Qwen's max_window_layers: layers below it see everything


@dataclass(frozen=True, slots=True)
class RopeConfig:
    """How positions rotate queries and keys; `minivllm/model/rotary.py` says what each number does."""

    rope_type: str = "default"
    theta: float = 10_000.0
    factor: float = 1.0
    original_max_position_embeddings: int = 0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """The numbers and switches of one decoder. Build it with `from_folder` or `from_dict`."""

    architecture: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_position_embeddings: int
    rms_norm_eps: float
    hidden_act: str
    tie_word_embeddings: bool
    qkv_bias: bool
    output_bias: bool
    mlp_bias: bool
    qk_norm: bool
    layer_windows: tuple[int | None, ...]
    """For each layer, how many tokens it sees, the current one included; None for all of them."""
    rope: RopeConfig
    dtype: str
    """What the weights were saved for: "float16", "bfloat16", "float32" or "float64"."""
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()

    @classmethod
    def from_folder(cls, folder: str | Path) -> ModelConfig:
        """Read `config.json` and, for the end-of-sequence ids, `generation_config.json` if it is there."""
        folder = Path(folder)
        raw = read_json_object(folder / "config.json")
        generation_path = folder / "generation_config.json"
        generation = read_json_object(generation_path) if generation_path.is_file() else {}
        try:
            return cls.from_dict(raw, generation)
        except ValueError as error:
            raise ValueError(f"{folder / 'config.json'}: {error}") from None

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any], generation: Mapping[str, Any] | None = None) -> ModelConfig:
        """Check `raw`, the contents of a `config.json`, or raise `ValueError` naming the key at fault."""
        architecture = _architecture(raw)
        if raw.get("quantization_config"):
            method = raw["quantization_config"].get("quant_method", "unknown")
            raise ValueError(
                f"quantization_config: weights quantised with {method!r} cannot be loaded; "
                f"use the unquantised checkpoint ({', '.join(BYTES_PER_ELEMENT)})"
            )
        qwen3 = architecture == "Qwen3ForCausalLM"
        has_attention_bias = architecture in ("LlamaForCausalLM", "Qwen3ForCausalLM") and _flag(
            raw, "attention_bias"
        )
        num_layers = _count(raw, "num_hidden_layers")
        max_positions = _count(raw, "max_position_embeddings", _MAX_POSITIONS_IF_ABSENT[architecture])
        config = cls(
            architecture=architecture,
            vocab_size=_count(raw, "vocab_size"),
            hidden_size=_count(raw, "hidden_size"),
            intermediate_size=_count(raw, "intermediate_size"),
            num_layers=num_layers,
            num_heads=_count(raw, "num_attention_heads"),
            num_kv_heads=_num_kv_heads(raw, architecture),
            head_dim=_head_dim(raw, architecture),
            max_position_embeddings=max_positions,
            rms_norm_eps=_number(raw, "rms_norm_eps", 1e-6),
            hidden_act=check_choice("hidden_act", raw.get("hidden_act", "silu"), ACTIVATIONS),
            tie_word_embeddings=_flag(raw, "tie_word_embeddings"),
            qkv_bias=has_attention_bias or architecture == "Qwen2ForCausalLM",
            output_bias=has_attention_bias,
            mlp_bias=architecture == "LlamaForCausalLM" and _flag(raw, "mlp_bias"),
            qk_norm=qwen3,
            layer_windows=_layer_windows(raw, architecture, num_layers),
            rope=_rope(raw, max_positions),
            dtype=_dtype(raw),
            bos_token_id=_optional_id("bos_token_id", raw.get("bos_token_id")),
            eos_token_ids=_eos_token_ids(raw, generation or {}),
        )
        config._check_heads()
        return config

    @property
    def kv_elements_per_token(self) -> int:
        """Numbers that one token leaves in the KV cache: a key and a value, for each layer and KV head."""
        return 2 * self.num_layers * self.num_kv_heads * self.head_dim

    @property
    def num_parameters(self) -> int:
        """Weights of the whole model, a tied output matrix counted once."""
        query, key_value = self.num_heads * self.head_dim, 2 * self.num_kv_heads * self.head_dim
        attention = self.hidden_size * (query + key_value) + query * self.hidden_size
        attention += self.qkv_bias * (query + key_value) + self.output_bias * self.hidden_size
        attention += self.qk_norm * 2 * self.head_dim
        mlp = 3 * self.hidden_size * self.intermediate_size
        mlp += self.mlp_bias * (2 * self.intermediate_size + self.hidden_size)
        norms = 2 * self.hidden_size
        embeddings = self.vocab_size * self.hidden_size * (1 if self.tie_word_embeddings else 2)
        return embeddings + self.num_layers * (attention + mlp + norms) + self.hidden_size

    def shape(self, name: str = "", dtype: str | None = None) -> ModelShape:
        """The few numbers that a trace file keeps, for weights and cache held in `dtype`."""
        dtype = check_choice("dtype", dtype or self.dtype, tuple(BYTES_PER_ELEMENT))
        return ModelShape(
            name=name or self.architecture,
            num_layers=self.num_layers,
            num_heads=self.num_heads,
            num_kv_heads=self.num_kv_heads,
            head_dim=self.head_dim,
            vocab_size=self.vocab_size,
            num_parameters=self.num_parameters,
            dtype=dtype,
            kv_bytes_per_token=self.kv_elements_per_token * BYTES_PER_ELEMENT[dtype],
            hidden_size=self.hidden_size,
            is_tied=self.tie_word_embeddings,
        )

    def _check_heads(self) -> None:
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_attention_heads ({self.num_heads}) must be a multiple of "
                f"num_key_value_heads ({self.num_kv_heads}): each KV head serves equally many query heads"
            )
        if self.head_dim % 2:
            raise ValueError(f"head_dim must be even for rotary positions, got {self.head_dim}")


def read_json_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file, or `ValueError` saying which file is missing or not what it should be."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file; a model folder needs a {path.name}") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path} must hold a JSON object, found a {type(value).__name__}")
    return value


# ---- the families' defaults, and keys that need more than a look -------------------------------------

_MAX_POSITIONS_IF_ABSENT = {
    "LlamaForCausalLM": 2048,
    "MistralForCausalLM": 131_072,
    "Qwen2ForCausalLM": 32_768,
    "Qwen3ForCausalLM": 32_768,
}


def _architecture(raw: Mapping[str, Any]) -> str:
    named = raw.get("architectures") or []
    for name in named:
        if name in ARCHITECTURES:
            return str(name)
    found = ", ".join(map(repr, named)) or f"none (model_type is {raw.get('model_type')!r})"
    raise ValueError(f"architectures: found {found}; supported are {', '.join(ARCHITECTURES)}")


def _num_kv_heads(raw: Mapping[str, Any], architecture: str) -> int:
    if raw.get("num_key_value_heads") is not None:
        return _count(raw, "num_key_value_heads")
    absent = "num_key_value_heads" not in raw
    if absent and architecture == "MistralForCausalLM":
        return 8
    if absent and architecture != "LlamaForCausalLM":
        return 32
    return _count(raw, "num_attention_heads")


def _head_dim(raw: Mapping[str, Any], architecture: str) -> int:
    if raw.get("head_dim") is not None:
        return _count(raw, "head_dim")
    if architecture == "Qwen3ForCausalLM":
        return 128
    hidden_size, num_heads = _count(raw, "hidden_size"), _count(raw, "num_attention_heads")
    if hidden_size % num_heads:
        raise ValueError(
            f"hidden_size ({hidden_size}) must be a multiple of num_attention_heads ({num_heads}) "
            "when head_dim is not given"
        )
    return hidden_size // num_heads


def _layer_windows(raw: Mapping[str, Any], architecture: str, num_layers: int) -> tuple[int | None, ...]:
    if architecture == "LlamaForCausalLM":
        return (None,) * num_layers
    window = raw.get("sliding_window", _WINDOW_IF_ABSENT)
    if architecture != "MistralForCausalLM" and not _flag(raw, "use_sliding_window"):
        window = None
    if window is not None:
        window = check_integer("sliding_window", window, at_least=1)
    if architecture == "MistralForCausalLM":
        return (window,) * num_layers
    types = raw.get("layer_types")
    if types is None:
        first = check_integer("max_window_layers", raw.get("max_window_layers", _FULL_LAYERS_IF_ABSENT))
        return tuple(window if layer >= first else None for layer in range(num_layers))
    if not isinstance(types, list) or len(types) != num_layers:
        raise ValueError(f"layer_types must list one type for each of the {num_layers} layers, got {types!r}")
    for layer, layer_type in enumerate(types):
        check_choice(f"layer_types[{layer}]", layer_type, ("full_attention", "sliding_attention"))
    if window is None and "sliding_attention" in types:
        raise ValueError("layer_types has 'sliding_attention', but there is no sliding_window in use")
    return tuple(window if layer_type == "sliding_attention" else None for layer_type in types)


def _rope(raw: Mapping[str, Any], max_positions: int) -> RopeConfig:
    """Old spelling: `rope_theta` beside `rope_scaling`. New one: both inside `rope_parameters`."""
    given = raw.get("rope_scaling") or raw.get("rope_parameters") or {}
    if not isinstance(given, dict) or any(isinstance(value, dict) for value in given.values()):
        raise ValueError(f"rope_parameters must be one flat object for all layers, got {given!r}")
    rope_type = given.get("rope_type") or given.get("type") or "default"
    check_choice("rope_type", rope_type, ROPE_TYPES)
    partial = given.get("partial_rotary_factor", raw.get("partial_rotary_factor"))
    if partial not in (None, 1, 1.0):
        raise ValueError(f"partial_rotary_factor must be 1 (whole heads are rotated), got {partial!r}")
    theta = check_number("rope_theta", given.get("rope_theta", raw.get("rope_theta", 1e4)), more_than=1)
    if rope_type == "default":
        return RopeConfig(theta=theta)

    def number(key: str, default: float | None = None) -> float:
        value = default if given.get(key) is None else given[key]
        return check_number(f"{key} of rope type {rope_type!r}", value, more_than=0)

    if rope_type == "linear":
        return RopeConfig("linear", theta, number("factor"))
    original = raw.get("original_max_position_embeddings") or given.get("original_max_position_embeddings")
    original = check_integer("original_max_position_embeddings", original or max_positions, at_least=1)
    if rope_type == "llama3":
        low, high = number("low_freq_factor"), number("high_freq_factor")
        if low >= high:
            raise ValueError(f"low_freq_factor ({low}) must be below high_freq_factor ({high})")
        return RopeConfig("llama3", theta, number("factor"), original, low, high)
    return RopeConfig(
        rope_type="yarn",
        theta=theta,
        factor=number("factor", max_positions / original),
        original_max_position_embeddings=original,
        beta_fast=number("beta_fast", 32),
        beta_slow=number("beta_slow", 1),
        attention_factor=given.get("attention_factor"),
        mscale=given.get("mscale"),
        mscale_all_dim=given.get("mscale_all_dim"),
        truncate=check_boolean("truncate", given.get("truncate", True)),
    )


def _dtype(raw: Mapping[str, Any]) -> str:
    value = raw.get("dtype") or raw.get("torch_dtype") or "float32"
    return check_choice("dtype", str(value).removeprefix("torch."), tuple(BYTES_PER_ELEMENT))


def _eos_token_ids(raw: Mapping[str, Any], generation: Mapping[str, Any]) -> tuple[int, ...]:
    """`generation_config.json` speaks first: chat models list their end-of-turn token only there."""
    value = generation.get("eos_token_id")
    value = raw.get("eos_token_id") if value is None else value
    if value is None:
        return ()
    values = value if isinstance(value, list) else [value]
    return tuple(check_integer("eos_token_id", token_id, at_least=0) for token_id in values)


def _optional_id(name: str, value: object) -> int | None:
    return None if value is None else check_integer(name, value, at_least=0)


def _count(raw: Mapping[str, Any], key: str, default: int | None = None) -> int:
    if key not in raw and default is None:
        raise ValueError(f"{key} is missing")
    return check_integer(key, raw.get(key, default), at_least=1)


def _number(raw: Mapping[str, Any], key: str, default: float) -> float:
    return check_number(key, raw.get(key, default), at_least=0)


def _flag(raw: Mapping[str, Any], key: str) -> bool:
    return check_boolean(key, raw.get(key) or False)
