"""Hardware and models as data: the few numbers that the cost of a step depends on.

`cards.json` has what vendors and papers publish. A card of one's own is a JSON file with the same fields;
`minivllm calibrate` writes one for the machine that it runs on, and any Hugging Face folder is a model's
card, too.

    hardware_card("h100")          model_card("llama-3-8b")
    hardware_card("my-card.json")  model_card("my-model/")

What is published and what is judged are kept apart: peak and bandwidth are the vendor's, the efficiencies
say what share of them real kernels reach (`JUDGED` tells why), and the overheads are time in which the device
waits for the host.

Read next: `cost_model.py`.
"""

from __future__ import annotations

import json
from dataclasses import MISSING, dataclass, fields
from functools import cache
from os.path import isdir
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from minivllm.trace.events import HardwareShape, ModelShape
from minivllm.trace.work import BYTES_PER_ELEMENT
from minivllm.validation import check_boolean, check_choice, check_input_file, check_integer, check_number

if TYPE_CHECKING:
    from minivllm.model.config import ModelConfig

CARDS_FILE = Path(__file__).parent / "cards.json"
MOST_CHARACTERS = 2**20
"""That are read of a card."""
MOST = 10**15
"""Of anything that a model card counts: beyond it, products of counts are too large for a float."""

JUDGED = {
    "compute_efficiency": "large matrix products reach 55 to 70 % of the peak on A100 and H100 with cuBLAS",
    "bandwidth_efficiency": "a kernel that only streams weights reaches about 80 % of the data sheet",
    "attention_efficiency": (
        "paged attention gathers blocks; the vLLM paper's kernel is 20 to 26 % slower than one that streams "
        "(section 7.1), which leaves 0.6 of the data sheet's figure"
    ),
    "step_overhead_seconds": (
        "scheduling, preparing inputs and launching kernels, while the device waits: about 5 ms a step in "
        "the engines of 2023 (Python, one process, no CUDA graphs), 2 ms in today's"
    ),
    "sequence_overhead_seconds": "the same for each sequence: sampling, detokenising, bookkeeping in Python",
    "link_latency_seconds": (
        "a small all-reduce takes some ten microseconds over NVLink, and about twice that over PCI Express"
    ),
    "token_overhead_seconds": "none on a GPU; on a CPU, measured by `minivllm calibrate`",
    "transfer_overhead_seconds": "launching one copy over the host's link: why small blocks swap slowly",
}
"""Every number on a card that is not a vendor's, and the reason for its value."""


@dataclass(frozen=True)
class HardwareCard:
    """One device.

    Attributes:
        title: its name in full.
        peak_flops: FLOP/s of dense matrix products in 16 bits (on a CPU: in the dtype that was measured).
        memory_bandwidth: bytes/s of the memory that holds weights and KV cache.
        memory_bytes: size of that memory.
        link_bandwidth: bytes/s to a neighbour, one way.
        link_latency_seconds: of one exchange with all neighbours.
        host_bandwidth: bytes/s to the host's memory, one way, as achieved.
        compute_efficiency: share of `peak_flops` that matrix products reach.
        bandwidth_efficiency: share of `memory_bandwidth` that reading weights reaches.
        attention_efficiency: share of `memory_bandwidth` that reading the KV cache reaches.
        step_overhead_seconds: of every step.
        sequence_overhead_seconds: of every sequence in a step.
        token_overhead_seconds: of every token in a step.
        transfer_overhead_seconds: of every copy over the host's link.
        source: where the numbers come from.
    """

    title: str
    peak_flops: float
    memory_bandwidth: float
    memory_bytes: float
    link_bandwidth: float
    link_latency_seconds: float
    host_bandwidth: float
    compute_efficiency: float
    bandwidth_efficiency: float
    attention_efficiency: float
    step_overhead_seconds: float
    sequence_overhead_seconds: float
    token_overhead_seconds: float
    transfer_overhead_seconds: float
    source: str

    def __post_init__(self) -> None:
        for name in ("title", "source"):
            if not isinstance(getattr(self, name), str):
                raise ValueError(f"{name} must be a text, got {getattr(self, name)!r}")
        for name in ("peak_flops", "memory_bandwidth", "memory_bytes", "link_bandwidth", "host_bandwidth"):
            check_number(name, getattr(self, name), more_than=0)
        for name in ("compute_efficiency", "bandwidth_efficiency", "attention_efficiency"):
            check_number(name, getattr(self, name), more_than=0, at_most=1)
        for field in fields(self):
            if field.name.endswith("_seconds"):
                check_number(field.name, getattr(self, field.name), at_least=0)

    def shape(self, num_devices: int = 1) -> HardwareShape:
        """What the header of a trace says about it."""
        return HardwareShape(self.title, self.peak_flops, self.memory_bandwidth, num_devices)


@dataclass(frozen=True)
class ModelCard:
    """One model: what its weights and its cache weigh.

    Attributes:
        dtype: of the weights, unless they are quantised, and of the cache.
        layer_bytes, output_bytes: of quantised weights in the layers, and in the output matrix, as they are
            stored, scales included; 0, both, if all are of `dtype`.
    """

    title: str
    num_layers: int
    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    num_parameters: int
    is_tied: bool
    max_position: int
    dtype: str
    layer_bytes: int = 0
    output_bytes: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.title, str):
            raise ValueError(f"title must be a text, got {self.title!r}")
        for field in fields(self):
            if field.type == "int":
                least = 1 if field.default is MISSING else 0
                check_integer(field.name, getattr(self, field.name), at_least=least, at_most=MOST)
        check_boolean("is_tied", self.is_tied)
        check_choice("dtype", self.dtype, tuple(BYTES_PER_ELEMENT))
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_kv_heads must divide the {self.num_heads} heads (num_heads), got {self.num_kv_heads}"
            )
        # Fewer, and the layers would have less than no weights: steps would take less than no time.
        matrices = self.vocab_size * self.hidden_size * (1 if self.is_tied else 2)
        if self.num_parameters <= matrices:
            raise ValueError(
                f"num_parameters must be more than the {matrices:,} of embedding and output matrix "
                f"(vocab_size · hidden_size, twice unless is_tied), got {self.num_parameters:,}"
            )

    @property
    def kv_bytes_per_token(self) -> int:
        elements = 2 * self.num_layers * self.num_kv_heads * self.head_dim
        return int(elements * BYTES_PER_ELEMENT[self.dtype])

    @property
    def weight_bytes(self) -> float:
        width = BYTES_PER_ELEMENT[self.dtype]
        if not self.layer_bytes:
            return self.num_parameters * width
        embedding = 0 if self.is_tied else self.vocab_size * self.hidden_size * width
        return self.layer_bytes + self.output_bytes + embedding

    def shape(self) -> ModelShape:
        """What the header of a trace says about it."""
        return ModelShape(
            name=self.title,
            num_layers=self.num_layers,
            num_heads=self.num_heads,
            num_kv_heads=self.num_kv_heads,
            head_dim=self.head_dim,
            vocab_size=self.vocab_size,
            num_parameters=self.num_parameters,
            dtype=self.dtype,
            kv_bytes_per_token=self.kv_bytes_per_token,
            hidden_size=self.hidden_size,
            is_tied=self.is_tied,
            layer_bytes=self.layer_bytes,
            output_bytes=self.output_bytes,
        )


def hardware_card(name: str) -> HardwareCard:
    """One of ours, or a JSON file. Raises `ValueError`, naming the card and the field that is wrong."""
    if name.lower() in _ours()["hardware"]:
        return read_card(HardwareCard, _ours()["hardware"][name.lower()], f"hardware {name}")
    if name.endswith(".json"):
        return read_card(HardwareCard, _from_file(name, "hardware"), name)
    known = ", ".join(_ours()["hardware"])
    raise ValueError(f"hardware must be one of {known}, or a card of your own (a .json file), got {name!r}")


def model_card(name: str) -> ModelCard:
    """One of ours, "tiny" (the shipped model), a Hugging Face folder, or a JSON file."""
    if name.lower() in _ours()["models"]:
        return read_card(ModelCard, _ours()["models"][name.lower()], f"model {name}")
    if name.lower() == "tiny":
        from minivllm.model.tiny import MODEL_PATH

        return _from_folder(MODEL_PATH, "the shipped model")
    if name.endswith(".json"):
        return read_card(ModelCard, _from_file(name, "model"), name)
    if isdir(name):  # and not Path.is_dir, which raises where a name is too long to be one
        return _from_folder(Path(name), name)
    known = ", ".join(_ours()["models"])
    raise ValueError(
        f"model must be one of {known}, tiny, a Hugging Face folder, or a card of your own (a .json file), "
        f"got {name!r}"
    )


Card = TypeVar("Card", HardwareCard, ModelCard)


def read_card(kind: type[Card], data: Any, where: str) -> Card:
    """A card from what a JSON file holds."""
    if not isinstance(data, dict):
        raise ValueError(f"{where}: a card must be an object with named fields, got {data!r}")
    names = [field.name for field in fields(kind)]
    for name in (field.name for field in fields(kind) if field.default is MISSING):
        if name not in data:
            raise ValueError(f"{where}: the field {name!r} is missing; a card has {', '.join(names)}")
    for name in data:
        if name not in names:
            raise ValueError(f"{where}: there is no field {name!r}; a card has {', '.join(names)}")
    try:
        return kind(**data)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


@cache
def _ours() -> dict[str, dict[str, Any]]:
    cards: dict[str, dict[str, Any]] = json.loads(CARDS_FILE.read_text(encoding="utf-8"))
    return cards


def _from_file(name: str, what: str) -> Any:
    path = check_input_file(f"{what} card", name)
    try:
        with path.open(encoding="utf-8-sig") as file:
            return json.loads(file.read(MOST_CHARACTERS))
    except OSError as error:
        raise ValueError(f"{what} card {name!r} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:  # the latter: brackets within brackets, thousands deep
        raise ValueError(f"{what} card {name!r} is not JSON: {error}") from error


def _from_folder(folder: Path, title: str) -> ModelCard:
    from minivllm.model.config import ModelConfig

    config = ModelConfig.from_folder(folder)
    shape = config.shape(title)
    layers, output = _bytes_in_files(folder, config) if config.quantization else (0, 0)
    return ModelCard(
        title=title,
        num_layers=shape.num_layers,
        hidden_size=shape.hidden_size,
        num_heads=shape.num_heads,
        num_kv_heads=shape.num_kv_heads,
        head_dim=shape.head_dim,
        vocab_size=shape.vocab_size,
        num_parameters=shape.num_parameters,
        is_tied=shape.is_tied,
        max_position=config.max_position_embeddings,
        dtype=shape.dtype,
        layer_bytes=layers,
        output_bytes=output,
    )


def _bytes_in_files(folder: Path, config: ModelConfig) -> tuple[int, int]:
    """Of the weights in the layers, and of the output matrix, as the files have them: by their headers."""
    from minivllm.model.weights import Checkpoint

    checkpoint = Checkpoint(folder)
    sizes = checkpoint.num_bytes()
    is_tied = checkpoint.is_tied(config.tie_word_embeddings)
    head = "model.embed_tokens." if is_tied else "lm_head."
    layers = sum(size for name, size in sizes.items() if name.startswith(("model.layers.", "model.norm.")))
    return layers, sum(size for name, size in sizes.items() if name.startswith(head))


def num_kv_blocks(
    hardware: HardwareCard,
    model: ModelCard,
    *,
    block_size: int = 16,
    utilization: float = 0.9,
    num_devices: int = 1,
    second_weight_bytes: float = 0.0,
) -> int:
    """Blocks that fit beside the weights, on all devices together.

    Args:
        second_weight_bytes: of a second copy of the weights, in fewer bits.

    Raises:
        ValueError: the weights alone do not fit.
    """
    check_integer("block_size", block_size, at_least=1)
    check_integer("num_devices", num_devices, at_least=1)
    check_number("utilization", utilization, more_than=0, at_most=1)
    weight_bytes = model.weight_bytes + second_weight_bytes
    left = hardware.memory_bytes * num_devices * utilization - weight_bytes
    num_blocks = int(left // (block_size * model.kv_bytes_per_token))
    if num_blocks < 1:
        raise ValueError(
            f"{model.title} does not fit: {weight_bytes / 1e9:,.1f} GB of weights, and {num_devices} × "
            f"{hardware.title} leave {hardware.memory_bytes * num_devices * utilization / 1e9:,.1f} GB "
            f"({utilization:.0%} of their memory); use more devices (tensor_parallel_size)"
        )
    return num_blocks
