"""A rank's weights out of a checkpoint: it reads its own rows and columns, and nothing else.

    name in the checkpoint                       what a part takes
    ───────────────────────────────────────────  ─────────────────────────────────────────────────────────
    q_proj · k_proj, v_proj                      rows of its heads · of its KV heads
    gate_proj, up_proj                           rows of its share of the MLP
    o_proj · down_proj                           columns of its heads · of its share of the MLP
    biases of these                              the same rows; of o_proj and down_proj all, and part 0 only
    embed_tokens, lm_head                        rows of its share of the vocabulary
    norms                                        all

Safetensors files are mapped into memory, so what is not read costs nothing. A quantised matrix is read whole,
one at a time, and what is not this rank's is dropped (`Matrix.shard`). All ranks check the headers of
the whole checkpoint first: what does not fit is refused by each of them in the same words.

Read next: `layout.py`, `minivllm/model/weights.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from minivllm.model.config import ModelConfig
from minivllm.model.decoder import Decoder
from minivllm.model.parallel.layout import Part, Share
from minivllm.model.parallel.peers import Peers
from minivllm.model.parallel.sharded_decoder import ShardedDecoder, linears_of
from minivllm.model.quantization.choose import choose_method
from minivllm.model.quantization.kv_scales import read_kv_scales
from minivllm.model.quantization.load import plan_matrices
from minivllm.model.quantization.method import QuantizationMethod
from minivllm.model.quantization.stacked_matrix import stack
from minivllm.model.weights import Checkpoint, TensorSlice

ROWS = {"q_proj": "heads", "k_proj": "kv_heads", "v_proj": "kv_heads",
        "gate_proj": "intermediate", "up_proj": "intermediate"}  # fmt: skip
COLUMNS = {"o_proj": "heads", "down_proj": "intermediate"}
"""Which of a part's ranges says what it takes of a matrix."""


def load_share(
    folder: Path,
    share: Share,
    dtype: torch.dtype,
    device: torch.device,
    peers: Peers,
    quantization: str | None = None,
) -> ShardedDecoder:
    """One rank's decoder, with its weights; `quantization` is how they are, or shall be, stored.

    Raises:
        ValueError: `quantization` and the checkpoint's own do not go together, or cannot be shared.
        CheckpointError: a tensor is not what the config promises.
    """
    config = share.config
    checkpoint = Checkpoint(folder)
    tied = checkpoint.is_tied(config.tie_word_embeddings)
    method = choose_method(config.quantization, quantization)
    if method is not None:
        return _load_quantized(checkpoint, share, method, dtype, device, peers, tied=tied)
    whole = dict(Decoder(config, dtype, torch.device("meta"), tied=tied).views())
    checkpoint.check(whole.items(), config.summary)
    decoder = ShardedDecoder(share, dtype, device, peers, tied=tied)
    checkpoint.load_slices(slices_of(decoder))
    if not any(share.place):  # said once, and not by every rank
        checkpoint.warn_of_unused(whole)
    return decoder


def _load_quantized(
    checkpoint: Checkpoint,
    share: Share,
    method: QuantizationMethod,
    dtype: torch.dtype,
    device: torch.device,
    peers: Peers,
    *,
    tied: bool,
) -> ShardedDecoder:
    """As `quantization/load.py` does it, but for one rank."""
    config, meta = share.config, torch.device("meta")
    plan = plan_matrices(checkpoint, config, method, dtype, tied=tied)
    decoder = ShardedDecoder(share, dtype, device, peers, tied=tied, matrix_device=meta)
    decoder.quantization = method.name
    scales = read_kv_scales(checkpoint, config.num_layers)[share.layers.start : share.layers.stop]
    decoder.kv_scales = scales * len(share.kv_slots)
    checkpoint.load_slices(item for item in slices_of(decoder, matrices=False) if item.name in plan.plain)
    with torch.inference_mode():
        for number, layer in zip(share.layers, decoder.layers, strict=True):
            linears = [linears_of(attention, mlp) for _, attention, mlp in decoder.parts_of(layer)]
            for place, of_parts in enumerate(zip(*linears, strict=True)):
                stored = plan.groups[number * len(linears[0]) + place]
                wholes = [(matrix.layer.name, matrix.read(checkpoint, dtype, device)) for matrix in stored]
                for part, linear in zip(share.parts, of_parts, strict=True):
                    own = [whole.shard(*place_of(f"{name}.weight", part, config)) for name, whole in wholes]
                    linear.matrix = stack(own, [*linear.rows.values()])
        if plan.head and share.is_last:
            head = plan.head.read(checkpoint, dtype, device)
            rows = [slice(part.vocabulary.start, part.vocabulary.stop) for part in share.parts]
            decoder.heads = [head.shard(own, slice(None)) for own in rows]
    if not any(share.place):
        checkpoint.warn_of_unused(plan.plain, plan.others)
    return decoder


def slices_of(decoder: ShardedDecoder, *, matrices: bool = True) -> Iterator[TensorSlice]:
    """Every weight of a rank: its name in the checkpoint, its place, and which part of it goes there.

    Without `matrices` those of linear layers are left out.
    """
    share = decoder.share
    if len(decoder.embedding):
        tables = decoder.embedding.view(len(share.parts), share.padded_vocabulary, -1)
        yield from _vocabulary("model.embed_tokens.weight", share, tables)
    for number, layer in zip(share.layers, decoder.layers, strict=True):
        prefix = f"model.layers.{number}"
        yield from _whole(layer.input_norm.views(f"{prefix}.input_layernorm"))
        yield from _whole(layer.post_attention_norm.views(f"{prefix}.post_attention_layernorm"))
        for part, attention, mlp in decoder.parts_of(layer):
            for views in (attention.views(f"{prefix}.self_attn"), mlp.views(f"{prefix}.mlp")):
                for name, view in views:
                    if not matrices and name.endswith("_proj.weight"):
                        continue
                    yield TensorSlice(name, view, *place_of(name, part, share.config))
    if share.is_last:
        yield from _whole(decoder.norm.views("model.norm"))
        if matrices and not decoder.tied:
            yield from _vocabulary("lm_head.weight", share, [head.dense() for head in decoder.heads])


def place_of(name: str, part: Part, config: ModelConfig) -> tuple[slice, slice]:
    """The rows and columns of a stored tensor of a layer that belong to a part."""
    *_, owner, kind = name.split(".")
    everything = slice(None)
    if owner in ROWS:
        return _features(ROWS[owner], part, config), everything
    if owner in COLUMNS and kind == "weight":
        return everything, _features(COLUMNS[owner], part, config)
    return everything, everything


def _features(what: str, part: Part, config: ModelConfig) -> slice:
    own: range = getattr(part, what)
    each = 1 if what == "intermediate" else config.head_dim
    return slice(own.start * each, own.stop * each)


def _whole(views: Iterator[tuple[str, Tensor]]) -> Iterator[TensorSlice]:
    for name, view in views:
        yield TensorSlice(name, view)


def _vocabulary(name: str, share: Share, tables: Iterable[Tensor]) -> Iterator[TensorSlice]:
    """Rows of each own part; those behind the end of the vocabulary stay zero."""
    for part, table in zip(share.parts, tables, strict=True):
        own = part.vocabulary
        if own:
            yield TensorSlice(name, table[: len(own)], slice(own.start, own.stop))
