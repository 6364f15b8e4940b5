"""Which runner an engine gets: the fastest there is for its attention backend, its model and its settings.

    attention      runner
    ────────────   ────────────────────────────────────────────────────────────────────────────────────────
    numba-cpu      compiled, all steps, quantised or not
                   compiled for small steps, fused for large ones: a processor with matrix units
                   fused, all steps: a model that there is no compiled step for
    numba-cuda     graphs for decode steps, eager for the others; with `enforce_eager`, eager
    all others     eager

With `batch_invariant`, all but `numba-cpu` compute in groups of rows (`row_groups.py`). Where kernels of a
GPU attend, they also multiply by quantised matrices (`kernel_matrix.py`).

Compilers are imported only where they are used. Read next: `model_runner.py`, `compiled.py`.
"""

from __future__ import annotations

from minivllm.executor.attention.backend import AttentionBackend
from minivllm.executor.cpu_hazards import FUSED, QUANTIZED, STEP
from minivllm.executor.runners.eager import EagerRunner
from minivllm.executor.runners.model_runner import FirstSupporting, ModelRunner
from minivllm.executor.runners.row_groups import RowGroupRunner
from minivllm.model.config import ModelConfig
from minivllm.model.decoder import Decoder


def choose_runner(
    decoder: Decoder,
    attention: AttentionBackend,
    *,
    enforce_eager: bool = False,
    max_num_seqs: int = 128,
    max_model_len: int | None = None,
    batch_invariant: bool = False,
) -> ModelRunner:
    """The table above. The limits are those of the engine: graphs are made for steps within them.

    With `batch_invariant` a row of logits does not depend on the others, bit for bit; see
    `minivllm/executor/batch_invariance.py` for where that can be had.
    """
    if attention.name == "numba-cpu":
        return _choose_cpu_runner(decoder, attention, batch_invariant)
    if attention.name in ("numba-cuda", "microscope") and decoder.is_quantized:
        _multiply_by_kernels(decoder, attention)
    if batch_invariant:
        return RowGroupRunner(decoder, attention)
    eager = EagerRunner(decoder, attention)
    if attention.name != "numba-cuda" or enforce_eager:
        return eager
    from minivllm.executor.attention.kernel_backend import KernelAttention
    from minivllm.executor.runners.graphs import GraphRunner

    assert isinstance(attention, KernelAttention)
    max_model_len = max_model_len or decoder.config.max_model_len
    max_blocks = -(-max_model_len // attention.storage.block_size)
    graphs = GraphRunner(decoder, attention, max_blocks=max_blocks, max_sequences=max_num_seqs)
    return FirstSupporting(graphs, eager)


def _multiply_by_kernels(decoder: Decoder, attention: AttentionBackend) -> None:
    from minivllm.executor.attention.kernel_backend import KernelAttention
    from minivllm.executor.runners.kernel_matrix import by_kernels

    assert isinstance(attention, KernelAttention)
    decoder.replace(lambda matrix: by_kernels(matrix, attention))


def has_compiled_step(config: ModelConfig) -> bool:
    """Is there a compiled step for models like this one?"""
    return config.hidden_act in ("silu", "swish") and len(set(config.layer_windows)) == 1


def quantized_runners(decoder: Decoder) -> tuple[str, ...]:
    """Which compiled code a quantised decoder needs on a CPU: as `choose_runner` will decide."""
    from minivllm.executor.runners.compiled import can_be_packed

    is_whole = has_compiled_step(decoder.config) and can_be_packed(decoder)
    return STEP if is_whole else FUSED, QUANTIZED


def _choose_cpu_runner(decoder: Decoder, attention: AttentionBackend, batch_invariant: bool) -> ModelRunner:
    from minivllm.executor.attention.numba_cpu_backend import NumbaCpuAttention, has_matrix_units
    from minivllm.executor.runners.compiled import MAX_COPY_BYTES, CompiledRunner, can_be_packed
    from minivllm.executor.runners.fused import FusedRunner

    assert isinstance(attention, NumbaCpuAttention)
    is_copy = has_matrix_units(decoder.dtype) and not decoder.is_quantized and not batch_invariant
    if (
        not has_compiled_step(decoder.config)
        or not can_be_packed(decoder)
        or (is_copy and decoder.num_bytes > MAX_COPY_BYTES)
    ):
        return FusedRunner(decoder, attention, batch_invariant=batch_invariant)
    compiled = CompiledRunner(decoder, attention.storage, is_copy=is_copy)
    return FirstSupporting(compiled, FusedRunner(decoder, attention)) if is_copy else compiled
