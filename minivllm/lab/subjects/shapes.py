"""Three Llama shapes with random weights: real checkpoints, written without any other library.

            layers   hidden   heads / KV heads   vocabulary   parameters   read in every step
    nano         4      128        4 / 2             2,048        1.1 M          0.9 M
    small        8      512        8 / 4             8,192         27 M           23 M
    medium      12      768       12 / 4            32,000        111 M           86 M

Nano is almost pure overhead; medium has to come from memory. A step reads every weight but the embedding
matrix, of which it takes a few rows.

Speed depends on shapes and not on what the numbers say, with one trap: at the usual spread (0.02) greedy
decoding of a random model falls into a fixed point after a few tokens, and every comparison of outputs
succeeds for the wrong reason. A spread of 0.1 (nano) or 0.08 keeps it talking.

A folder written here is what any Llama checkpoint is, `config.json` and `model.safetensors`, so our loader
and every other reads it alike. Read next: `minivllm/model/weights.py`, which reads it back.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minivllm.validation import check_choice

if TYPE_CHECKING:
    from torch import Tensor

WEIGHT_SEED = 1234
MAX_POSITIONS = 2048


@dataclass(frozen=True)
class Shape:
    """The numbers that make a Llama; `spread` is the standard deviation of its random weights."""

    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    vocab_size: int
    spread: float

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_heads

    def config(self) -> dict[str, Any]:
        """The contents of its `config.json`."""
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.num_layers,
            "num_attention_heads": self.num_heads,
            "num_key_value_heads": self.num_kv_heads,
            "head_dim": self.head_dim,
            "vocab_size": self.vocab_size,
            "max_position_embeddings": MAX_POSITIONS,
            "rms_norm_eps": 1e-5,
            "rope_theta": 10_000.0,
            "hidden_act": "silu",
            "initializer_range": self.spread,
            "tie_word_embeddings": False,
            "torch_dtype": "float32",
            "bos_token_id": 0,
            "eos_token_id": 1,
            "pad_token_id": 2,
        }

    def tensor_shapes(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Every weight's name in a checkpoint, and its shape."""
        hidden, inner = self.hidden_size, self.intermediate_size
        key_value = self.num_kv_heads * self.head_dim
        yield "model.embed_tokens.weight", (self.vocab_size, hidden)
        for layer in range(self.num_layers):
            prefix = f"model.layers.{layer}"
            yield f"{prefix}.input_layernorm.weight", (hidden,)
            yield f"{prefix}.self_attn.q_proj.weight", (hidden, hidden)
            yield f"{prefix}.self_attn.k_proj.weight", (key_value, hidden)
            yield f"{prefix}.self_attn.v_proj.weight", (key_value, hidden)
            yield f"{prefix}.self_attn.o_proj.weight", (hidden, hidden)
            yield f"{prefix}.post_attention_layernorm.weight", (hidden,)
            yield f"{prefix}.mlp.gate_proj.weight", (inner, hidden)
            yield f"{prefix}.mlp.up_proj.weight", (inner, hidden)
            yield f"{prefix}.mlp.down_proj.weight", (hidden, inner)
        yield "model.norm.weight", (hidden,)
        yield "lm_head.weight", (self.vocab_size, hidden)


SHAPES = {
    "nano": Shape(128, 256, 4, 4, 2, 2_048, spread=0.1),
    "small": Shape(512, 1_024, 8, 8, 4, 8_192, spread=0.08),
    "medium": Shape(768, 1_536, 12, 12, 4, 32_000, spread=0.08),
}


def write_checkpoint(name: str, folder: str | Path) -> Path:
    """Write the random model `name` into `folder`, or leave it alone if it is there already.

    The weights depend on the shape alone: written twice, they are the same.

    Raises:
        ValueError: there is no such shape, or the folder cannot be written.
    """
    check_choice("shape", name, tuple(SHAPES))
    shape, folder = SHAPES[name], Path(folder)
    weights, config = folder / "model.safetensors", folder / "config.json"
    text = json.dumps(shape.config(), indent=2) + "\n"
    if weights.is_file() and config.is_file() and config.read_text(encoding="utf-8") == text:
        return folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _save(dict(_random_weights(shape)), weights)
        config.write_text(text, encoding="utf-8")  # last: a folder with a config is complete
    except OSError as error:
        reason = error.strerror or str(error)
        raise ValueError(f"the random model cannot be written to {folder}: {reason}") from error
    return folder


def _random_weights(shape: Shape) -> Iterator[tuple[str, Tensor]]:
    import torch

    generator = torch.Generator().manual_seed(WEIGHT_SEED)
    for name, size in shape.tensor_shapes():
        if len(size) == 1:  # norms start at 1, or the layers fall silent
            yield name, torch.ones(size)
        else:
            yield name, torch.empty(size).normal_(0.0, shape.spread, generator=generator)


def _save(tensors: dict[str, Tensor], path: Path) -> None:
    """Write under another name first, so that an interrupted write is not taken for a checkpoint."""
    from safetensors.torch import save_file

    unfinished = path.with_suffix(".unfinished")
    save_file(tensors, unfinished, metadata={"format": "pt"})
    os.replace(unfinished, path)
