"""Which attention backend: by name, or the best that there is for this device and type.

    "auto"          "numba-cpu" on a CPU in float32 or bfloat16, as soon as it is compiled; otherwise "torch"
    "torch"         plain: works on every device and in every type
    "numba-cpu"     our kernel for decoding on a CPU
    "numba-cuda"    our kernels on an NVIDIA GPU
    "microscope"    those kernels, interpreted: on any machine, and slowly

Read next: `backend.py`, and `minivllm/executor/warm_up.py` for how it is compiled meanwhile.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from functools import partial

from minivllm.executor.attention.backend import AttentionBackend
from minivllm.executor.attention.torch_backend import TorchAttention
from minivllm.executor.cpu_hazards import warn_of_dtype
from minivllm.executor.kv_storage import KVStorage
from minivllm.executor.warm_up import can_start_compiled
from minivllm.model.config import ModelConfig
from minivllm.model.decoder import Decoder
from minivllm.model.packed import DTYPES
from minivllm.validation import error_words

BackendFactory = Callable[[ModelConfig, KVStorage], AttentionBackend]


def backend_factory(name: str) -> BackendFactory:
    """By its name; compilers are imported only where they are used."""
    if name == "auto":
        return automatic
    if name == "torch":
        return TorchAttention
    if name == "numba-cpu":
        from minivllm.executor.attention.numba_cpu_backend import NumbaCpuAttention

        return NumbaCpuAttention
    from minivllm.executor.attention.kernel_backend import MicroscopeAttention, NumbaCudaAttention

    return NumbaCudaAttention if name == "numba-cuda" else MicroscopeAttention


def automatic(
    config: ModelConfig, storage: KVStorage, runners: Sequence[str] = (), further: Sequence[str] = ()
) -> AttentionBackend:
    """As `fastest`, but without waiting for a compiler: torch until that is done, in another process.

    `runners`: which compiled code a quantised model needs; others are known by their config. `further`: what
    a rounded copy of its weights needs besides.
    """
    is_ours = storage.device.type == "cpu" and storage.dtype in DTYPES
    if is_ours and not can_start_compiled(config, storage.dtype, runners, storage.kv_cache_dtype, further):
        return TorchAttention(config, storage)
    return fastest(config, storage)


def factory_for(decoder: Decoder, factory: BackendFactory) -> BackendFactory:
    """The same, which knows what this decoder's weights need to be compiled."""
    copy = decoder.decode_weights
    if factory is not automatic or not (decoder.is_quantized or copy):
        return factory
    from minivllm.executor.runners.choose import quantized_runners

    return partial(
        automatic,
        runners=quantized_runners(decoder) if decoder.is_quantized else (),
        further=() if copy is None else quantized_runners(copy),
    )


def fastest(config: ModelConfig, storage: KVStorage) -> AttentionBackend:
    """Our kernel if there is one for this cache and it can be compiled here; torch otherwise."""
    if storage.device.type != "cpu":
        return TorchAttention(config, storage)
    if storage.dtype not in DTYPES:
        warn_of_dtype(storage.dtype)
        return TorchAttention(config, storage)
    try:
        from minivllm.executor.attention.numba_cpu_backend import NumbaCpuAttention

        return NumbaCpuAttention(config, storage)
    except Exception as error:  # a compiler that does not work here must not keep the engine from working
        warnings.warn(
            f"attention cannot be compiled here ({error_words(error)}); torch is used instead, "
            "which gives the same and takes longer. `minivllm doctor` may know more.",
            stacklevel=2,
        )
        return TorchAttention(config, storage)
