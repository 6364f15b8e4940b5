"""What a checkpoint says about itself: `config.json` read into one typed, checked record.

Llama, Mistral, Qwen2 and Qwen3 are the same decoder with a few switches thrown differently, so the
families live here, as data, and nowhere else: the decoder has no subclass and asks no model's name.

                    QKV bias     output bias    norm on each q/k head    sliding window
    Llama        attention_bias  attention_bias          no                    no
    Mistral            no             no                 no             all layers, if set
    Qwen2             yes             no                 no             some layers, if used
    Qwen3        attention_bias  attention_bias         yes             some layers, if used

Keys that a file leaves out get the defaults of `transformers`, which differ between families too. A
value that this decoder would have to ignore is refused by name: wrong logits are worse than none. So is a
size that no model has, before any memory is asked for (`MOST`).

Papers: Llama (arXiv 2302.13971), Mistral 7B (2310.06825), Qwen2 (2407.10671), Qwen3 (2505.09388).
Read next: `minivllm/model/rope_config.py` for the positions, then `minivllm/model/decoder.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from minivllm.model.json_file import read_json_object
from minivllm.model.quantization.names import method_name
from minivllm.model.rope_config import MAX_POSITIONS, RopeConfig, read_rope
from minivllm.trace.events import ModelShape
from minivllm.validation import check_boolean, check_choice, check_integer, check_number, shown

ARCHITECTURES = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")
ACTIVATIONS = ("silu", "swish", "gelu", "gelu_new", "gelu_pytorch_tanh")
BYTES_PER_ELEMENT = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}

MOST = {
    "num_hidden_layers": 1000,
    "num_attention_heads": 2**16,
    "num_key_value_heads": 2**16,
    "head_dim": 2**16,
    "vocab_size": 2**24,
    "hidden_size": 2**24,
    "intermediate_size": 2**24,
    "max_position_embeddings": MAX_POSITIONS,
}
"""Several times as much as any model has."""

_LENGTHS = ("n_positions", "max_seq_len", "seq_length", "model_max_length", "max_sequence_length",
            "max_seq_length", "seq_len")  # fmt: skip
"""Other names for `max_position_embeddings`; where a file has several, vLLM takes the smallest."""

_WINDOW_IF_ABSENT = 4096
_FULL_LAYERS_IF_ABSENT = 28  # Qwen's max_window_layers: layers below it see everything


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
    max_model_len: int
    """Most tokens of a sequence, prompt and output together."""
    max_model_len_source: str
    """The keys that `max_model_len` was derived from, for messages."""
    dtype: str
    """What the weights were saved for: "float16", "bfloat16", "float32" or "float64"."""
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()
    """What `config.json` says; `minivllm/model/generation_config.py` reads the rest."""
    quantization: Mapping[str, Any] | None = field(default=None, hash=False)
    """Its `quantization_config`, if weights are quantised: `minivllm/model/quantization/` reads it."""

    @classmethod
    def from_folder(cls, folder: str | Path) -> ModelConfig:
        """Read `config.json`, or raise `ValueError` naming the file and the key at fault."""
        path = Path(folder) / "config.json"
        raw = read_json_object(path)
        try:
            return cls.from_dict(_with_quantization_file(raw, path))
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> ModelConfig:
        """Check `raw`, the contents of a `config.json`, or raise `ValueError` naming the key at fault."""
        raw = _text_part(raw)
        architecture = _architecture(raw)
        quantization = _quantization(raw)
        qwen3 = architecture == "Qwen3ForCausalLM"
        has_attention_bias = architecture in ("LlamaForCausalLM", "Qwen3ForCausalLM") and _flag(
            raw, "attention_bias"
        )
        num_layers = _count(raw, "num_hidden_layers")
        max_positions = _count(raw, "max_position_embeddings", _MAX_POSITIONS_IF_ABSENT[architecture])
        head_dim = _head_dim(raw, architecture)
        rope = read_rope(raw, max_positions, head_dim)
        max_model_len, source = _max_model_len(raw, rope, max_positions)
        config = cls(
            architecture=architecture,
            vocab_size=_count(raw, "vocab_size"),
            hidden_size=_count(raw, "hidden_size"),
            intermediate_size=_count(raw, "intermediate_size"),
            num_layers=num_layers,
            num_heads=_count(raw, "num_attention_heads"),
            num_kv_heads=_num_kv_heads(raw, architecture),
            head_dim=head_dim,
            max_position_embeddings=max_positions,
            rms_norm_eps=check_number("rms_norm_eps", raw.get("rms_norm_eps", 1e-6), at_least=0, at_most=1),
            hidden_act=check_choice("hidden_act", raw.get("hidden_act", "silu"), ACTIVATIONS),
            tie_word_embeddings=_flag(raw, "tie_word_embeddings"),
            qkv_bias=has_attention_bias or architecture == "Qwen2ForCausalLM",
            output_bias=has_attention_bias,
            mlp_bias=architecture == "LlamaForCausalLM" and _flag(raw, "mlp_bias"),
            qk_norm=qwen3,
            layer_windows=_layer_windows(raw, architecture, num_layers),
            rope=rope,
            max_model_len=max_model_len,
            max_model_len_source=source,
            dtype=_dtype(raw),
            bos_token_id=_optional_id("bos_token_id", raw.get("bos_token_id")),
            eos_token_ids=read_eos_token_ids(raw),
            quantization=quantization,
        )
        config._check_heads()
        return config

    def check_max_model_len(self, wanted: int | None) -> int:
        """The limit that an engine gets: `wanted`, or the model's own if None.

        Raises:
            ValueError: the model cannot serve texts as long as that, and why.
        """
        if wanted is not None and wanted > self.max_model_len:
            raise ValueError(
                f"max_model_len must be at most {self.max_model_len} (derived from the model's config.json: "
                f"{self.max_model_len_source}), got {wanted}"
            )
        return self.max_model_len if wanted is None else wanted

    @property
    def summary(self) -> str:
        """Every key that decides which weights there are, for a message about those that do not fit."""
        sizes = {
            "architectures": self.architecture,
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.num_layers,
            "num_attention_heads": self.num_heads,
            "num_key_value_heads": self.num_kv_heads,
            "head_dim": self.head_dim,
            "attention_bias": self.output_bias,
            "mlp_bias": self.mlp_bias,
            "tie_word_embeddings": self.tie_word_embeddings,
        }
        return ", ".join(f"{key} {value}" for key, value in sizes.items())

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


# ---- the families' defaults, and keys that need more than a look -------------------------------------

_MAX_POSITIONS_IF_ABSENT = {
    "LlamaForCausalLM": 2048,
    "MistralForCausalLM": 131_072,
    "Qwen2ForCausalLM": 32_768,
    "Qwen3ForCausalLM": 32_768,
}


def _text_part(raw: Mapping[str, Any]) -> Mapping[str, Any]:
    """A file with parts for several senses keeps the decoder's numbers in `text_config`."""
    part = raw.get("text_config")
    if not isinstance(part, dict | None):
        raise ValueError(f"text_config must be an object, got {shown(part)}")
    own = {key: value for key, value in (part or {}).items() if value is not None}
    return {**raw, **own, "architectures": raw.get("architectures")}


def _architecture(raw: Mapping[str, Any]) -> str:
    named = raw.get("architectures")
    if not isinstance(named, list | None):
        raise ValueError(f"architectures must be a list of names, got {shown(named)}")
    for name in named or ():
        if name in ARCHITECTURES:
            return str(name)
    found = shown(named) if named else f"none (model_type is {shown(raw.get('model_type'))})"
    raise ValueError(f"architectures: found {found}; supported are {', '.join(ARCHITECTURES)}")


def _quantization(raw: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """How weights are quantised, None if they are not; only the method is looked at here."""
    keys = ("quantization_config", "compression_config")
    key = next((name for name in keys if raw.get(name) not in (None, {})), None)
    if key is None:
        return None
    settings = raw[key]
    if not isinstance(settings, Mapping):
        raise ValueError(f"{key} must be an object, got {shown(settings)}")
    method_name(settings)
    return settings


def _with_quantization_file(raw: dict[str, Any], path: Path) -> dict[str, Any]:
    """Older tools wrote what is now `quantization_config` into a file of its own."""
    if raw.get("quantization_config") is not None:
        return raw
    for name, method in (("quantize_config.json", "gptq"), ("quant_config.json", "awq")):
        if (path.parent / name).is_file():
            settings = read_json_object(path.parent / name)
            return {**raw, "quantization_config": {"quant_method": method, **settings}}
    return raw


def _max_model_len(raw: Mapping[str, Any], rope: RopeConfig, max_positions: int) -> tuple[int, str]:
    """The longest text, and the keys that say so."""
    named = {"max_position_embeddings": max_positions}
    named |= {key: check_integer(key, raw[key], at_least=1) for key in _LENGTHS if raw.get(key) is not None}
    key = min(named, key=lambda name: named[name])
    return rope.longest_text(key, min(named[key], MAX_POSITIONS))


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
        window = check_integer("sliding_window", window, at_least=1, at_most=MAX_POSITIONS)
    if architecture == "MistralForCausalLM":
        return (window,) * num_layers
    types = raw.get("layer_types")
    if types is None:
        first = check_integer("max_window_layers", raw.get("max_window_layers", _FULL_LAYERS_IF_ABSENT))
        return tuple(window if layer >= first else None for layer in range(num_layers))
    if not isinstance(types, list) or len(types) != num_layers:
        every = f"each of the {num_layers} layers (num_hidden_layers)"
        raise ValueError(f"layer_types must list one type for {every}, got {shown(types)}")
    for layer, layer_type in enumerate(types):
        check_choice(f"layer_types[{layer}]", layer_type, ("full_attention", "sliding_attention"))
    if window is None and "sliding_attention" in types:
        raise ValueError("layer_types has 'sliding_attention', but there is no sliding_window in use")
    return tuple(window if layer_type == "sliding_attention" else None for layer_type in types)


def _dtype(raw: Mapping[str, Any]) -> str:
    key = "torch_dtype" if raw.get("dtype") is None else "dtype"
    value = "float32" if raw.get(key) is None else raw[key]
    if isinstance(value, str):
        value = value.removeprefix("torch.")
    return check_choice(key, value, tuple(BYTES_PER_ELEMENT))


def read_eos_token_ids(raw: Mapping[str, Any]) -> tuple[int, ...]:
    """What `eos_token_id` names: one token, several, or none.

    Raises:
        ValueError: something in it is no token id.
    """
    key = "eos_token_id"
    value = raw.get(key)
    if isinstance(value, list):
        return tuple(check_integer(f"{key}[{index}]", item, at_least=0) for index, item in enumerate(value))
    return () if value is None else (check_integer(key, value, at_least=0),)


def _optional_id(name: str, value: object) -> int | None:
    return None if value is None else check_integer(name, value, at_least=0)


def _count(raw: Mapping[str, Any], key: str, default: int | None = None) -> int:
    if key not in raw and default is None:
        raise ValueError(f"{key} is missing")
    return check_integer(key, raw.get(key, default), at_least=1, at_most=MOST[key])


def _flag(raw: Mapping[str, Any], key: str) -> bool:
    return raw.get(key) is not None and check_boolean(key, raw[key])
