"""How long a step takes: a roofline for the linear layers, one for attention, and what the host adds.

    linear layers   max( FLOPs / compute,  bytes of weights / bandwidth ), for each copy of the weights
    attention       max( FLOPs / compute,  bytes of keys and values / bandwidth )
    exchange        two all-reduces a layer, if several devices share one (tensor parallel)
    moves           copies within the memory, swaps over the host's link
    overhead        of the step, of its sequences, of its tokens: the device waits for the host

Tensor parallel: each of t devices has a t-th of every matrix and of the cache; a ring all-reduce moves
2 (t - 1) / t times the activations, and has a latency.
Pipeline parallel: each of p stages has a p-th of the layers. The batch is cut into p micro-batches, which go
through the stages one behind the other: p + p - 1 times the time of a stage for one of them. Each stage reads
its weights for every micro-batch anew: so decoding gains nothing from p, as it should.

What it does not know: that small matrix products are less efficient than large ones, kernel by kernel; how
communication overlaps with computing; caches. The efficiencies on the card stand for all of that.

Source: the roofline as in `minivllm/trace/work.py`; all-reduce: Thakur, Rabenseifner, Gropp (2005).
Read next: `replica.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from minivllm.lab.simulation.cards import HardwareCard, ModelCard
from minivllm.trace.work import (
    BYTES_PER_ELEMENT,
    BatchShape,
    output_parameters,
    parameters_in_layers,
    stored_bytes,
)
from minivllm.validation import check_choice, check_integer


class StepTime(NamedTuple):
    """Where the time of a step goes, in seconds."""

    linear: float
    attention: float
    exchange: float
    moves: float
    overhead: float

    @property
    def total(self) -> float:
        return self.linear + self.attention + self.exchange + self.moves + self.overhead


@dataclass(frozen=True)
class CostModel:
    """Steps of one model on one kind of hardware.

    Attributes:
        tensor_parallel_size, pipeline_parallel_size: devices = their product.
        block_size: tokens per block, for copies and swaps.
        decode_weight_dtype: of the weights that generated tokens are computed with, if they are kept a second
            time in fewer bits (precision by phase), as the engine does it: a step with prompts and generated
            tokens is two passes, and reads both. None: they are computed with the same ones as prompts.
    """

    hardware: HardwareCard
    model: ModelCard
    tensor_parallel_size: int = 1
    pipeline_parallel_size: int = 1
    block_size: int = 16
    decode_weight_dtype: str | None = None

    def __post_init__(self) -> None:
        for name in ("tensor_parallel_size", "pipeline_parallel_size", "block_size"):
            check_integer(name, getattr(self, name), at_least=1)
        if self.decode_weight_dtype is not None:
            width = BYTES_PER_ELEMENT[self.model.dtype]
            narrower = tuple(name for name, size in BYTES_PER_ELEMENT.items() if size < width)
            check_choice("decode_weight_dtype", self.decode_weight_dtype, narrower)
            if self.model.layer_bytes:
                raise ValueError(
                    f"decode_weight_dtype is {self.decode_weight_dtype!r}, which leaves prompts weights of "
                    f"16 or 32 bits; those of {self.model.title} are quantised: leave one of the two out"
                )
        if self.model.num_heads % self.tensor_parallel_size:
            raise ValueError(
                f"tensor_parallel_size must divide the {self.model.num_heads} heads of {self.model.title}, "
                f"got {self.tensor_parallel_size}"
            )
        if self.pipeline_parallel_size > self.model.num_layers:
            raise ValueError(
                f"pipeline_parallel_size must be at most the {self.model.num_layers} layers of "
                f"{self.model.title}, got {self.pipeline_parallel_size}"
            )
        self._precompute()

    @property
    def second_weight_bytes(self) -> float:
        """Of the weights that are kept a second time, for decoding: the embedding is not."""
        if self.decode_weight_dtype is None:
            return 0.0
        shape, width = self.model.shape(), self._copied_output_width
        layers = parameters_in_layers(shape) * BYTES_PER_ELEMENT[self.decode_weight_dtype]
        return layers + (0.0 if width is None else output_parameters(shape) * width)

    @property
    def _copied_output_width(self) -> float | None:
        """Of the output matrix in the copy; None: both use one. As `quantization/rounding.py` has it."""
        dtype = self.decode_weight_dtype
        if dtype is None or dtype == "fp8" or self.model.is_tied:
            return None
        return BYTES_PER_ELEMENT["int8" if dtype == "int4" else dtype]

    @property
    def num_devices(self) -> int:
        return self.tensor_parallel_size * self.pipeline_parallel_size

    def _precompute(self) -> None:
        """Everything that is the same in every step: a simulation asks millions of times."""
        hardware, model, tensor = self.hardware, self.model, self.tensor_parallel_size
        shape = model.shape()
        width = BYTES_PER_ELEMENT[model.dtype]
        decode_width = BYTES_PER_ELEMENT[self.decode_weight_dtype or model.dtype]
        output_width = self._copied_output_width or width
        compute = hardware.peak_flops * hardware.compute_efficiency * tensor
        bandwidth = hardware.memory_bandwidth * hardware.bandwidth_efficiency * tensor
        kv_bandwidth = hardware.memory_bandwidth * hardware.attention_efficiency * tensor
        in_layers, in_output = parameters_in_layers(shape), output_parameters(shape)
        ring = 2 * (tensor - 1) / tensor * model.hidden_size * width / hardware.link_bandwidth
        exchanges = 2 * model.num_layers if tensor > 1 else 0
        block_bytes = self.block_size * model.kv_bytes_per_token
        constants = {
            "_flop_seconds": 2 * in_layers / compute,
            "_logit_seconds": 2 * in_output / compute,
            "_weight_seconds": sum(stored_bytes(shape)) / bandwidth,
            "_decode_weight_seconds": (in_layers * decode_width + in_output * output_width) / bandwidth,
            "_pair_seconds": 4 * model.num_layers * model.num_heads * model.head_dim / compute,
            "_kv_seconds": model.kv_bytes_per_token / kv_bandwidth,
            "_exchange_seconds": exchanges * hardware.link_latency_seconds,
            "_exchange_token_seconds": exchanges * ring,
            "_copy_seconds": 2 * block_bytes / bandwidth,
            # Keys and values of every layer are copied one by one: each is a transfer of its own.
            "_swap_seconds": block_bytes / (hardware.host_bandwidth * tensor)
            + 2 * model.num_layers * hardware.transfer_overhead_seconds,
        }
        for name, value in constants.items():
            object.__setattr__(self, name, value)

    _flop_seconds = _logit_seconds = _weight_seconds = _decode_weight_seconds = 0.0
    _pair_seconds = _kv_seconds = _exchange_seconds = _exchange_token_seconds = 0.0
    _copy_seconds = _swap_seconds = 0.0

    def step_seconds(
        self, shape: BatchShape, *, num_copied_blocks: int = 0, num_swapped_blocks: int = 0
    ) -> float:
        """Seconds of a step with a batch of this shape."""
        return sum(self.step_time(shape, num_copied_blocks, num_swapped_blocks))

    def step_time(
        self, shape: BatchShape, num_copied_blocks: int = 0, num_swapped_blocks: int = 0
    ) -> StepTime:
        """The same in parts."""
        hardware, stages = self.hardware, self.pipeline_parallel_size
        moves = num_copied_blocks * self._copy_seconds + num_swapped_blocks * self._swap_seconds
        overhead = (
            hardware.step_overhead_seconds
            + hardware.sequence_overhead_seconds * shape.num_sequences
            + hardware.token_overhead_seconds * (shape.num_tokens + shape.num_padding_tokens)
        )
        rows = shape.num_tokens + shape.num_padding_tokens
        if not rows:
            return StepTime(0.0, 0.0, 0.0, moves, overhead)
        # A stage has a p-th of the layers, a micro-batch a p-th of the rows: and 2 p - 1 such pieces of time.
        pieces = 2 * stages - 1
        generated = shape.num_generated_tokens if self.decode_weight_dtype is not None else 0
        generated_rows = shape.num_generated_rows if generated else 0
        linear = 0.0
        if rows > generated:
            logits = self._logit_seconds * (shape.num_logit_rows - generated_rows)
            computing = (self._flop_seconds * (rows - generated) + logits) / stages**2
            linear = pieces * max(computing, self._weight_seconds / stages)
        if generated:
            computing = self._flop_seconds * generated + self._logit_seconds * generated_rows
            linear += pieces * max(computing / stages**2, self._decode_weight_seconds / stages)
        pairs = self._pair_seconds * shape.num_attended / stages**2
        attention = pieces * max(pairs, self._kv_seconds * (shape.num_context_tokens + rows) / stages**2)
        exchange = pieces * (
            self._exchange_seconds / stages + self._exchange_token_seconds * rows / stages**2
        )
        if stages > 1:
            sent = rows / stages * self.model.hidden_size * BYTES_PER_ELEMENT[self.model.dtype]
            exchange += (pieces - 1) * (sent / hardware.link_bandwidth + hardware.link_latency_seconds)
        return StepTime(linear, attention, exchange, moves, overhead)
