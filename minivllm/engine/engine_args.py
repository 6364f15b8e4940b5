"""From what a user asks for to an engine that runs: vLLM's arguments, checked and resolved.

A user says "use 90 % of the memory" or nothing at all; the control plane wants numbers. `EngineArgs` holds
the wishes under vLLM's names and checks what can be checked without a model; `create_engine` loads the
model, fills in what was left open, and puts the parts together.

    EngineArgs ──► TorchExecutor (model, KV cache) + Sampler + Tokenizer ──► SchedulerConfig ──► Engine

Read next: `engine.py` for the loop, `config.py` for the limits it ends up with.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path

from minivllm.config import (
    ALLOCATORS,
    ATTENTION_BACKENDS,
    PREEMPTION_MODES,
    PREFIX_CACHES,
    SchedulerConfig,
)
from minivllm.decoding.sampler import Sampler
from minivllm.engine.engine import Engine
from minivllm.executor.attention.choose import backend_factory
from minivllm.executor.kv_storage import GIB
from minivllm.executor.torch_executor import DTYPES, TorchExecutor
from minivllm.executor.virtual_storage import VirtualKVStorage
from minivllm.memory.make_cache_manager import Pages
from minivllm.model.hub import resolve_model, resolve_tokenizer
from minivllm.model.tokenizer import Tokenizer
from minivllm.scheduling.choose_policy import make_policy
from minivllm.trace.recorder import Recorder
from minivllm.validation import check_boolean, check_choice, check_integer, check_number

DEFAULT_MAX_NUM_BATCHED_TOKENS = 2048


@dataclass
class EngineArgs:
    """Everything that can be set about an engine, under vLLM's names and with its defaults.

    Attributes:
        model: a Hugging Face folder, or an id on the hub.
        tokenizer: another folder or id to take the tokenizer from; the model's own if None.
        skip_tokenizer_init: load no tokenizer: prompts are token ids, and outputs have no text.
        dtype: "auto" (what the checkpoint says), "float32", "bfloat16", "float16" or "float64", or torch's
            own name for one of them.
        seed: requests without a seed of their own get one derived from this.
        max_model_len: most tokens of a sequence; the model's own limit if None.
        block_size: tokens per KV-cache block.
        gpu_memory_utilization: share of the device's memory that weights and cache may use together.
        kv_cache_memory_bytes: size of the KV cache instead of a share; overrides the former.
        num_gpu_blocks_override: number of KV-cache blocks; overrides both.
        max_num_seqs: most sequences in one step.
        max_num_batched_tokens: most tokens computed in one step; 2,048 if None, or `max_model_len`
            where chunked prefill is off and that is more.
        enable_chunked_prefill: a long prompt may be computed in several steps.
        long_prefill_token_threshold: most tokens of one prompt in one step; 0 sets no limit.
        watermark: share of the blocks kept free when a request is admitted.
        scheduling_policy: who goes first: "fcfs", "priority", "chunked", … (all are in
            `minivllm/scheduling/policies.py`), with settings if need be, as in "tail(tokens_left=8)"; or
            "module:Class" for one of your own.
        prefix_cache: find the blocks of known prefixes again: "hash" (chained blocks, as in vLLM), "radix"
            (a tree, as in SGLang), or None for not at all.
        enable_prefix_caching: vLLM's name for the same: True means "hash", False None.
        swap_space: GiB of the host's memory for the blocks of preempted requests.
        preemption_mode: "recompute" or "swap": what becomes of the blocks of a request that must step
            aside; "swap" if there is a swap space, if None.
        allocator: who manages the KV cache: "paged", or for comparison "contiguous", "oracle",
            "oracle_buddy", "buddy" or "virtual_memory".
        attention_backend: "auto" (the fastest there is for this device and type), "torch" (plain),
            "numba-cpu", "numba-cuda" (our kernels on a GPU), or "microscope" (those interpreted, anywhere).
        trace: a file to record every event in, or a `Recorder`.
        tensor_parallel_size, pipeline_parallel_size, quantization: known names of what this version cannot
            do yet; anything but "off" is refused.
        enforce_eager: compute every step anew; otherwise "numba-cuda" records decode steps as CUDA graphs.
        trust_remote_code: accepted for vLLM's sake and without effect: no code from a checkpoint is run.
    """

    model: str | Path
    tokenizer: str | Path | None = None
    skip_tokenizer_init: bool = False
    dtype: str = "auto"
    seed: int = 0
    max_model_len: int | None = None
    block_size: int = 16
    gpu_memory_utilization: float = 0.92
    kv_cache_memory_bytes: int | None = None
    num_gpu_blocks_override: int | None = None
    max_num_seqs: int = 128
    max_num_batched_tokens: int | None = None
    enable_chunked_prefill: bool = True
    long_prefill_token_threshold: int = 0
    watermark: float = 0.01
    scheduling_policy: str = "fcfs"
    prefix_cache: str | None = None
    enable_prefix_caching: bool | None = None
    swap_space: float = 0
    preemption_mode: str | None = None
    allocator: str = "paged"
    attention_backend: str = "auto"
    trace: str | Path | Recorder | None = None
    tensor_parallel_size: int = 1
    pipeline_parallel_size: int = 1
    quantization: str | None = None
    enforce_eager: bool = False
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.model, str | Path) or not str(self.model):
            raise ValueError(f"model must be a folder or a hub id, got {self.model!r}")
        self.dtype = str(self.dtype).removeprefix("torch.")
        check_choice("dtype", self.dtype, ("auto", *DTYPES))
        check_integer("seed", self.seed, at_least=0, at_most=2**63 - 1)
        for name in (
            "max_model_len",
            "kv_cache_memory_bytes",
            "num_gpu_blocks_override",
            "max_num_batched_tokens",
        ):
            if getattr(self, name) is not None:
                check_integer(name, getattr(self, name), at_least=1)
        for name in ("block_size", "max_num_seqs"):
            check_integer(name, getattr(self, name), at_least=1)
        check_integer("long_prefill_token_threshold", self.long_prefill_token_threshold, at_least=0)
        check_number("gpu_memory_utilization", self.gpu_memory_utilization, more_than=0, at_most=1)
        check_number("watermark", self.watermark, at_least=0, at_most=1)
        for name in ("skip_tokenizer_init", "enable_chunked_prefill", "enforce_eager", "trust_remote_code"):
            check_boolean(name, getattr(self, name))
        make_policy(self.scheduling_policy)  # before a model is loaded for nothing
        self._check_memory()
        self._refuse_what_is_not_built_yet()

    def _check_memory(self) -> None:
        if self.prefix_cache is not None:
            check_choice("prefix_cache", self.prefix_cache, PREFIX_CACHES)
        if self.enable_prefix_caching is not None:
            check_boolean("enable_prefix_caching", self.enable_prefix_caching)
            if self.prefix_cache is not None and not self.enable_prefix_caching:
                raise ValueError(
                    f"enable_prefix_caching must not be False where prefix_cache is {self.prefix_cache!r}"
                )
            if self.enable_prefix_caching and self.prefix_cache is None:
                self.prefix_cache = "hash"
        check_number("swap_space", self.swap_space, at_least=0)
        if self.preemption_mode is None:
            self.preemption_mode = "swap" if self.swap_space else "recompute"
        check_choice("preemption_mode", self.preemption_mode, PREEMPTION_MODES)
        if self.preemption_mode == "swap" and not self.swap_space:
            raise ValueError("preemption_mode must be 'recompute' where swap_space is 0, got 'swap'")
        check_choice("allocator", self.allocator, ALLOCATORS)
        check_choice("attention_backend", self.attention_backend, ATTENTION_BACKENDS)

    def _refuse_what_is_not_built_yet(self) -> None:
        allowed = {
            "tensor_parallel_size": (1,),
            "pipeline_parallel_size": (1,),
            "quantization": (None,),
        }
        for name, values in allowed.items():
            value = getattr(self, name)
            if value not in values or (isinstance(value, bool) and value not in (None, False)):
                raise ValueError(
                    f"{name} must be {values[-1]!r}: this version has nothing else yet; got {value!r}"
                )


def create_engine(args: EngineArgs) -> Engine:
    """Load the model and build an engine around it.

    Raises:
        ValueError: a model, file or number that cannot work, named, with what is allowed.
    """
    executor = TorchExecutor.from_folder(
        args.model,
        dtype=args.dtype,
        block_size=args.block_size,
        num_blocks=args.num_gpu_blocks_override,
        kv_cache_memory_bytes=args.kv_cache_memory_bytes,
        gpu_memory_utilization=args.gpu_memory_utilization,
        max_num_seqs=args.max_num_seqs,
        max_model_len=args.max_model_len,
        swap_space_bytes=int(args.swap_space * GIB),
        virtual_memory=args.allocator == "virtual_memory",
        backend=backend_factory(args.attention_backend),
        enforce_eager=args.enforce_eager,
    )
    tokenizer = load_tokenizer(args)
    shape = executor.model_shape
    recorder = args.trace if isinstance(args.trace, Recorder | None) else Recorder(args.trace)
    storage = executor.storage
    pages = None
    if isinstance(storage, VirtualKVStorage):
        pages = Pages(storage.blocks_per_commit, storage.decommit)
    return Engine(
        scheduler_config(
            args,
            executor.num_blocks,
            executor.config.max_position_embeddings,
            num_host_blocks=executor.num_host_blocks,
        ),
        executor,
        Sampler(executor.config.vocab_size),
        vocab_size=executor.config.vocab_size,
        tokenizer=tokenizer,
        eos_token_ids=executor.config.eos_token_ids,
        seed=args.seed,
        recorder=recorder,
        model_shape=shape,
        settings={
            "model": str(args.model),
            "dtype": shape.dtype,
            "seed": args.seed,
            "device": str(executor.device),
            "attention_backend": executor.attention.name,
        },
        pages=pages,
    )


def load_tokenizer(args: EngineArgs) -> Tokenizer | None:
    """The tokenizer that goes with the model, or the other one that was asked for.

    A model folder may come without one; then prompts are token ids and outputs have no text.
    """
    if args.skip_tokenizer_init:
        return None
    if args.tokenizer is None and not (resolve_model(args.model) / "tokenizer.json").is_file():
        warnings.warn(
            f"{args.model} has no tokenizer.json: prompts must be token ids, and outputs will have no text. "
            "Give `tokenizer` a folder that has one, or set skip_tokenizer_init=True if that is meant.",
            stacklevel=4,
        )
        return None
    return Tokenizer.from_folder(
        resolve_tokenizer(args.tokenizer if args.tokenizer is not None else args.model)
    )


def scheduler_config(
    args: EngineArgs, num_blocks: int, longest: int, *, num_host_blocks: int = 0
) -> SchedulerConfig:
    """The final limits, given the size of the pool and the model's own limit of tokens."""
    max_model_len = longest if args.max_model_len is None else args.max_model_len
    if max_model_len > longest:
        raise ValueError(
            f"max_model_len must be at most {longest} (the model's max_position_embeddings), "
            f"got {max_model_len}"
        )
    batched = args.max_num_batched_tokens
    if batched is None:
        whole_prompts = not args.enable_chunked_prefill
        batched = max(DEFAULT_MAX_NUM_BATCHED_TOKENS, max_model_len if whole_prompts else 0)
    return SchedulerConfig(
        num_blocks=num_blocks,
        block_size=args.block_size,
        max_num_seqs=args.max_num_seqs,
        max_num_batched_tokens=batched,
        max_model_len=max_model_len,
        enable_chunked_prefill=args.enable_chunked_prefill,
        long_prefill_token_threshold=args.long_prefill_token_threshold,
        watermark=args.watermark,
        scheduling_policy=args.scheduling_policy,
        prefix_cache=args.prefix_cache,
        preemption_mode=args.preemption_mode or "recompute",
        num_host_blocks=num_host_blocks,
        allocator=args.allocator,
    )
