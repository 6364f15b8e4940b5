"""How fast a precision is: prompts, one stream, a batch; on a model whose weights do not fit into a cache.

Real engines around random weights: speed depends on shapes, not on what the numbers say. A prompt's tokens a
second are those of one step; decoding's are the sequences of a step over the seconds of the fastest one, for
whatever else a machine does only makes steps slower; sampling is included. Variants that lie in memory alike
are measured once.

What is rounded stands beside 16 bits, as in checkpoints; beside 32 where a processor has no products of
bfloat16 (`base_dtype`).

Read next: `precision.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import torch

from kernels_numba.cpu.vectors import FEATURES
from minivllm.config import SchedulerConfig
from minivllm.engine.create_engine import load_torch_executor
from minivllm.engine.engine import Engine
from minivllm.engine.engine_args import EngineArgs
from minivllm.executor.attention.choose import backend_factory
from minivllm.executor.kv_storage import KVStorage
from minivllm.executor.torch_executor import TorchExecutor
from minivllm.lab.compare.precision_variants import Variant
from minivllm.lab.subjects.subject import Subject
from minivllm.model.config import ModelConfig
from minivllm.model.decoder import Decoder
from minivllm.model.load import load_decoder
from minivllm.model.quantization.algorithms.rounding import round_to_nearest
from minivllm.model.quantization.integer_matrix import IntegerMatrix
from minivllm.sampling_params import SamplingParams

BATCH = 16
PROMPT_TOKENS = 192
SHORT_PROMPT = 16
STEPS = 24
MOST_SECONDS = 2.5
"""Of one measurement of decoding: slow formats are measured for fewer steps, at least `FEWEST`."""
FEWEST = 5
BLOCKS = 96


@dataclass(frozen=True)
class Speed:
    """Tokens a second, and bytes in memory: of the weights and, for each token, of the cache."""

    prompt: float
    one_stream: float
    batch: float
    weight_bytes: int
    matrix_bytes: int
    """Of these, the matrices of the decoder's layers: the part that is rounded."""
    cache_bytes_per_token: int


def measure_speed(folder: Path, variant: Variant, backend: str) -> Speed:
    """Measure one variant of the model in `folder`."""
    executor = speed_executor(folder, variant, backend)
    one = _run(executor, 1, PROMPT_TOKENS)
    many = _run(executor, BATCH, SHORT_PROMPT)
    decoder, storage = executor.decoder, executor.storage
    return Speed(
        prompt=PROMPT_TOKENS / one[0],
        one_stream=1 / one[1],
        batch=BATCH / many[1],
        weight_bytes=decoder.num_bytes,
        matrix_bytes=matrix_bytes(decoder),
        cache_bytes_per_token=storage.bytes_per_token,
    )


def matrix_bytes(decoder: Decoder) -> int:
    """Of the layers' matrices, both copies counted."""
    both = [decoder] if decoder.decode_weights is None else [decoder, decoder.decode_weights]
    return sum(linear.matrix.num_bytes for one in both for layer in one.layers for linear in layer.linears)


def base_dtype() -> str:
    """What quantised models compute in, and are compared with: bfloat16 if the processor multiplies it."""
    return "bfloat16" if any(FEATURES.get(name) for name in ("avx512bf16", "amx-bf16")) else "float32"


def speed_executor(folder: Path, variant: Variant, backend: str) -> TorchExecutor:
    """The model as the variant says, its grid put on the weights where no setting does that."""
    if variant.grid is None:
        settings = {"dtype": base_dtype() if variant.what else "float32", **variant.settings}
        return load_torch_executor(
            EngineArgs(folder, num_gpu_blocks_override=BLOCKS, attention_backend=backend, **settings)
        )
    cpu, dtype = torch.device("cpu"), getattr(torch, base_dtype())
    config = ModelConfig.from_folder(folder)
    decoder = load_decoder(folder, config, dtype, cpu)
    with torch.inference_mode():
        for layer in decoder.layers:
            for linear in layer.linears:
                rounded = round_to_nearest(linear.matrix.dense().float(), variant.grid)
                linear.matrix = IntegerMatrix(rounded, dtype, cpu, variant.activations)
    return TorchExecutor(
        decoder, KVStorage(config, BLOCKS, 16, dtype, cpu), backend_factory(backend), folder.name
    )


def _run(executor: TorchExecutor, num_sequences: int, prompt_tokens: int) -> tuple[float, float]:
    """Seconds of the prompts' step, and of the fastest decoding step."""
    for is_warm_up in (True, False):
        engine = _engine(executor, num_sequences)
        vocab_size = executor.config.vocab_size
        for number in range(num_sequences):
            prompt = [(7 * number + 31 * place) % (vocab_size - 8) + 4 for place in range(prompt_tokens)]
            params = SamplingParams(temperature=0, max_tokens=STEPS + 1, ignore_eos=True)
            engine.add_request(str(number), prompt, params)
        seconds: list[float] = []
        while engine.has_unfinished_requests() and _goes_on(seconds, is_warm_up):
            began = perf_counter()
            engine.step()
            seconds.append(perf_counter() - began)
    return seconds[0], min(seconds[1:])


def _goes_on(seconds: list[float], is_warm_up: bool) -> bool:
    if is_warm_up:  # one step of each kind: what is compiled or packed at the first call
        return len(seconds) < 2
    return len(seconds) < FEWEST or sum(seconds[1:]) < MOST_SECONDS


def _engine(executor: TorchExecutor, num_sequences: int) -> Engine:
    limits = SchedulerConfig(
        num_blocks=executor.num_blocks,
        block_size=executor.block_size,
        max_num_seqs=num_sequences,
        max_model_len=executor.config.max_model_len,
    )
    return Subject(executor.name, Path(), executor, None, limits).engine()
