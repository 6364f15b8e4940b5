"""A folder's weights into a decoder, plain or quantised.

Read next: `weights.py` for plain files, `quantization/load.py` for the others.
"""

from __future__ import annotations

from pathlib import Path

import torch

from minivllm.model.config import ModelConfig
from minivllm.model.decoder import Decoder
from minivllm.model.quantization.choose import choose_method
from minivllm.model.quantization.decode_weights import make_decode_weights
from minivllm.model.quantization.load import load_quantized
from minivllm.model.weights import Checkpoint


def load_decoder(
    folder: Path,
    config: ModelConfig,
    dtype: torch.dtype,
    device: torch.device,
    quantization: str | None = None,
    decode_weight_dtype: str | None = None,
) -> Decoder:
    """A decoder with the folder's weights, for computing in `dtype`; with `decode_weight_dtype`, and a copy
    of them for generated tokens. What does not fit is known before any memory is taken.

    Raises:
        ValueError: `quantization` and the checkpoint's own do not go together, or the latter cannot be read.
        CheckpointError: a tensor is not what the config promises.
    """
    try:
        method = choose_method(config.quantization, quantization)
    except ValueError as error:
        raise ValueError(f"{folder / 'config.json'}: {error}") from None
    if method is not None and decode_weight_dtype is not None:
        raise ValueError(
            f"decode_weight_dtype is {decode_weight_dtype!r}, which leaves prompts weights of 16 or 32 bits; "
            f"those of {folder} are quantised ({method.name}): leave it out, and they serve both phases"
        )
    checkpoint = Checkpoint(folder)
    tied = checkpoint.is_tied(config.tie_word_embeddings)
    if method is not None:
        return load_quantized(checkpoint, config, method, dtype, device, tied=tied)
    checkpoint.check(Decoder(config, dtype, torch.device("meta"), tied=tied).views(), config.summary)
    decoder = Decoder(config, dtype, device, tied=tied)
    checkpoint.load_into(decoder.views())
    if decode_weight_dtype is not None:
        decoder.decode_weights = make_decode_weights(decoder, decode_weight_dtype)
    return decoder
