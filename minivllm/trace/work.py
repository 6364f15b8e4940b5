"""The arithmetic of a step: how many operations, how many bytes, and which of the two is the limit.

One multiply and one add are two floating-point operations. Every token goes through every weight matrix once,
so it costs 2 FLOPs for each parameter that multiplies. Weights are read from memory once a step, however many
tokens share them, in as many bytes as they are stored in; keys and values are read once for every sequence
that looks at them. In 16 bits:

    one token, decoded alone      2 · P FLOPs    2 · P bytes        1 FLOP a byte: waits for memory
    a prompt of 1,000 tokens  2,000 · P FLOPs    2 · P bytes    1,000 FLOPs a byte: waits for arithmetic

Where generated tokens have a copy of the weights of their own (precision by phase), a step with prompts and
generated tokens reads both.

What a device can do at a given intensity (FLOPs for each byte) is its *roofline*: bandwidth · intensity, but
never more than its peak. The two meet at the ridge.

Source: Williams, Waterman, Patterson, "Roofline" (CACM 2009); the counts are those of Kaplan et al. (2020),
appendix, with attention written out. Read next:
`minivllm/lab/simulation/cost_model.py`, where work takes time.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from minivllm.trace.events import ModelShape

if TYPE_CHECKING:
    from minivllm.trace.timeline import BatchItem, Phase, StepRecord

BYTES_PER_ELEMENT = {
    "float64": 8, "float32": 4, "bfloat16": 2, "float16": 2, "int8": 1, "fp8": 1, "int4": 0.5
}  # fmt: skip


class BatchShape(NamedTuple):
    """All that the cost of a step depends on."""

    num_tokens: int
    """Tokens that are computed."""
    num_sequences: int
    num_logit_rows: int
    """Tokens after which logits are wanted: only those go through the output matrix."""
    num_context_tokens: int
    """Keys and values that are read: the context lengths of all sequences, added up."""
    num_attended: int
    """Pairs of a token and a token that it looks at: those before it, and itself."""
    num_padding_tokens: int = 0
    """Tokens that are computed and thrown away."""
    num_generated_tokens: int = 0
    """Of `num_tokens`, those that the model has written itself; the others are prompts."""
    num_generated_rows: int = 0
    """Of `num_logit_rows`, those after such tokens."""


def batch_shape(
    items: Iterable[tuple[int, int]],
    num_logit_rows: int | None = None,
    num_padding_tokens: int = 0,
    num_generated_tokens: int = 0,
    num_generated_rows: int = 0,
) -> BatchShape:
    """The shape of a batch of `(start, num_tokens)`; a row of logits for each, unless said otherwise."""
    num_items = num_tokens = context = attended = 0
    for start, count in items:
        end = start + count
        num_items += 1
        num_tokens += count
        context += end
        # The token at position p looks at p + 1 tokens: start + 1, … end, added up.
        attended += end if count == 1 else count * (start + end + 1) // 2
    rows = num_items if num_logit_rows is None else num_logit_rows
    return BatchShape(
        num_tokens, num_items, rows, context, attended, num_padding_tokens,
        num_generated_tokens, num_generated_rows,
    )  # fmt: skip


class StepWork(NamedTuple):
    """What a step has to do."""

    linear_flops: float
    """In the weight matrices, padding and logits included."""
    attention_flops: float
    """Scores, and the weighted sum of values."""
    weight_bytes: float
    """Weights, read once; once each, where there are two copies and tokens of both kinds."""
    kv_read_bytes: float
    kv_written_bytes: float

    @property
    def flops(self) -> float:
        return self.linear_flops + self.attention_flops

    @property
    def kv_bytes(self) -> float:
        return self.kv_read_bytes + self.kv_written_bytes

    @property
    def num_bytes(self) -> float:
        return self.weight_bytes + self.kv_read_bytes + self.kv_written_bytes

    @property
    def intensity(self) -> float:
        """FLOPs for each byte that moves."""
        return self.flops / self.num_bytes if self.num_bytes else 0.0


def parameters_in_layers(model: ModelShape) -> int:
    """Parameters that every token is multiplied with: all but embedding and output matrix."""
    return model.num_parameters - output_parameters(model) * (1 if model.is_tied else 2)


def output_parameters(model: ModelShape) -> int:
    """Parameters of the matrix that makes logits; it multiplies only the rows that want some."""
    return model.vocab_size * hidden_size(model)


def hidden_size(model: ModelShape) -> int:
    """Width of the stream between layers; where a trace does not say, heads times their size."""
    return model.hidden_size or model.num_heads * model.head_dim


def stored_bytes(model: ModelShape) -> tuple[float, float]:
    """Of the weights in the layers, and of the output matrix."""
    if model.layer_bytes:
        return model.layer_bytes, model.output_bytes
    bytes_per_element = BYTES_PER_ELEMENT.get(model.dtype, 2)
    return bytes_per_element * parameters_in_layers(model), bytes_per_element * output_parameters(model)


def weight_bytes_read(model: ModelShape, shape: BatchShape) -> float:
    """What a step reads of the weights: of each copy, if it computes tokens with it."""
    layers, output = stored_bytes(model)
    has_prompts, prompt_rows = True, shape.num_logit_rows
    read = 0.0
    if model.decode_layer_bytes and shape.num_generated_tokens:
        has_prompts = shape.num_tokens > shape.num_generated_tokens
        prompt_rows -= shape.num_generated_rows
        read = model.decode_layer_bytes + (model.decode_output_bytes if shape.num_generated_rows else 0)
    return read + (layers if has_prompts else 0) + (output if prompt_rows else 0)


def work_of(model: ModelShape, shape: BatchShape) -> StepWork:
    """The work of one step."""
    rows = shape.num_tokens + shape.num_padding_tokens
    in_layers, in_output = parameters_in_layers(model), output_parameters(model)
    return StepWork(
        linear_flops=2.0 * (in_layers * rows + in_output * shape.num_logit_rows),
        attention_flops=4.0 * model.num_layers * model.num_heads * model.head_dim * shape.num_attended,
        weight_bytes=weight_bytes_read(model, shape),
        kv_read_bytes=float(model.kv_bytes_per_token * shape.num_context_tokens),
        kv_written_bytes=float(model.kv_bytes_per_token * shape.num_tokens),
    )


def work_by_phase(model: ModelShape, record: StepRecord) -> Mapping[Phase, StepWork]:
    """The work of a recorded step, prefill and decode apart, each as if it read the weights alone."""
    parts: dict[Phase, list[BatchItem]] = {}
    for item in record.batch:
        parts.setdefault(item.phase, []).append(item)
    return {phase: work_of(model, shape_of_items(items)) for phase, items in parts.items()}


def shape_of_items(
    items: Sequence[BatchItem], num_logit_rows: int | None = None, num_padding_tokens: int = 0
) -> BatchShape:
    """The shape of a recorded batch, or of a part of it."""
    return batch_shape(
        ((item.start, item.num_tokens) for item in items),
        num_logit_rows,
        num_padding_tokens,
        sum(item.num_generated for item in items),
        sum(item.num_generated > 0 for item in items),
    )


# ── the roofline ──────────────────────────────────────────────────────────────────────────────────────────


def ridge(peak_flops: float, memory_bandwidth: float) -> float:
    """Intensity (FLOPs a byte) from which on arithmetic is the limit, and no longer memory."""
    return peak_flops / memory_bandwidth


def attainable(intensity: float, peak_flops: float, memory_bandwidth: float) -> float:
    """Most FLOP/s at this intensity: the lower of the two lines of the roof."""
    return min(peak_flops, intensity * memory_bandwidth)
