"""From what a user asked for to an engine that runs.

A user says "use 90 % of the memory" or nothing at all; the control plane wants numbers. `create_engine` loads
the model, fills in what was left open, and puts the parts together.

    EngineArgs ──► TorchExecutor (model, KV cache) + Sampler + Tokenizer ──► SchedulerConfig ──► Engine

Small files are read first: what is wrong with them is said before weights are loaded for nothing.

Read next: `minivllm/engine/engine.py` for the loop, `minivllm/config.py` for the limits it ends up with.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

from minivllm.config import SchedulerConfig
from minivllm.decoding.sampler import Sampler
from minivllm.decoding.speculation.draft_length import DraftLength
from minivllm.decoding.speculation.ngram import NgramProposer
from minivllm.decoding.speculation.proposer import Proposer
from minivllm.engine.engine import Engine
from minivllm.engine.engine_args import EngineArgs
from minivllm.engine.progress import ProgressBar
from minivllm.engine.speculation import Speculation
from minivllm.executor.attention.choose import backend_factory
from minivllm.executor.batch_invariance import is_wanted
from minivllm.executor.draft_model import DraftModel, check_draft_model
from minivllm.executor.kv_storage import GIB
from minivllm.executor.own_hardware import own_hardware
from minivllm.executor.torch_executor import TorchExecutor
from minivllm.executor.virtual_storage import VirtualKVStorage
from minivllm.memory.make_cache_manager import Pages
from minivllm.model.config import ModelConfig
from minivllm.model.generation_config import GENERATION_FILE, GenerationConfig
from minivllm.model.hub import resolve_model, resolve_tokenizer
from minivllm.model.json_file import read_json_object
from minivllm.model.quantization.names import ALIASES, CALIBRATED
from minivllm.model.tokenizer import Tokenizer
from minivllm.sampling_params import SamplingParams
from minivllm.speculative_config import SpeculativeConfig
from minivllm.structured_outputs_config import OWN, StructuredOutputsConfig
from minivllm.trace.events import HardwareShape
from minivllm.trace.recorder import Recorder
from minivllm.trace.tee import Sink
from minivllm.validation import shown

if TYPE_CHECKING:
    from minivllm.executor.distributed.distributed_executor import DistributedExecutor
    from minivllm.model.quantization.quantize_layers import LayerResult

DEFAULT_MAX_NUM_BATCHED_TOKENS = 2048


def create_engine(args: EngineArgs, sinks: Iterable[Sink] = ()) -> Engine:
    """Load the model and build an engine around it; `sinks` take every event, beside the trace.

    Raises:
        ValueError: a model, file or number that cannot work, named, with what is allowed.
    """
    if args.data_parallel_size != 1:
        raise ValueError(
            f"data_parallel_size must be 1, got {shown(args.data_parallel_size)}: only `minivllm serve` has "
            "several copies of a model, each in a process of its own"
        )
    tokenizer = load_tokenizer(args)
    generation = load_generation_config(args)
    default_params = default_sampling_params(args, generation)
    executor = load_executor(args)
    model = executor.config
    structures_backend = StructuredOutputsConfig.of(args.structured_outputs_config).backend
    recorder = args.trace if isinstance(args.trace, Recorder | None) else Recorder(args.trace)
    max_model_len = model.check_max_model_len(args.max_model_len)
    config = scheduler_config(
        args, executor.num_blocks, max_model_len, num_host_blocks=executor.num_host_blocks
    )
    return Engine(
        config,
        executor,
        Sampler(model.vocab_size),
        vocab_size=model.vocab_size,
        tokenizer=tokenizer,
        eos_token_ids=end_token_ids(tokenizer, generation, model),
        default_params=default_params,
        seed=args.seed,
        recorder=recorder,
        sinks=sinks,
        model_shape=executor.model_shape,
        settings={
            "model": os.fsencode(args.model).decode(errors="replace"),  # a folder may be named in any bytes
            "dtype": executor.model_shape.dtype,
            "seed": args.seed,
            **executor.settings_told,
            **_speculation_words(args),
            **({} if structures_backend == OWN else {"structured_outputs_backend": structures_backend}),
        },
        hardware=_hardware(executor) if recorder is not None else None,
        pages=pages_of(executor),
        speculation=make_speculation(args, executor),
        async_scheduling=args.async_scheduling,
        structures_backend=structures_backend,
    )


def _hardware(executor: TorchExecutor | DistributedExecutor) -> HardwareShape | None:
    """On what it computes; None for ranks, which share one machine or have several."""
    if not isinstance(executor, TorchExecutor):
        return None
    return own_hardware(executor.device.type, executor.model_shape.dtype)


def make_speculation(args: EngineArgs, executor: TorchExecutor | DistributedExecutor) -> Speculation | None:
    """What proposes drafts, if that was asked for."""
    config = SpeculativeConfig.of(args.speculative_config)
    if config is None:
        return None
    proposer: Proposer
    if config.method == "draft_model":
        assert isinstance(executor, TorchExecutor) and config.model is not None, "the settings were checked"
        proposer = DraftModel.beside(
            executor,
            config.model,
            backend_factory(args.attention_backend),
            enforce_eager=args.enforce_eager,
            max_num_seqs=args.max_num_seqs,
            max_model_len=args.max_model_len,
            batch_invariant=is_wanted(args.batch_invariant),
        )
    else:
        assert config.prompt_lookup_min is not None and config.prompt_lookup_max is not None
        proposer = NgramProposer(config.prompt_lookup_min, config.prompt_lookup_max)
    most = config.disable_by_batch_size
    return Speculation(proposer, config.num_speculative_tokens, most, DraftLength() if most is None else None)


def load_executor(args: EngineArgs) -> TorchExecutor | DistributedExecutor:
    """The model with its weights, and the KV cache in the memory that is left."""
    return load_distributed(args) if args.is_parallel else load_torch_executor(args)


def load_torch_executor(args: EngineArgs) -> TorchExecutor:
    """The same in this process."""
    model, draft_config = calibrated_model(args), None
    speculative = SpeculativeConfig.of(args.speculative_config)
    if speculative and speculative.model is not None:
        target = ModelConfig.from_folder(resolve_model(model))
        draft_config = check_draft_model(speculative.model, target, args.max_model_len)
    return TorchExecutor.from_folder(
        model,
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
        kv_cache_dtype=args.kv_cache_dtype,
        quantization=args.quantization,
        draft_config=draft_config,
        decode_weight_dtype=args.decode_weight_dtype,
        batch_invariant=is_wanted(args.batch_invariant),
    )


def load_distributed(args: EngineArgs) -> DistributedExecutor:
    """The same on several ranks; those above 0 do not return from here (`executor/distributed/launch.py`)."""
    from minivllm.executor.distributed.cache_limits import CacheLimits
    from minivllm.executor.distributed.create import create_distributed_executor

    return create_distributed_executor(
        args.model,
        dtype=args.dtype,
        block_size=args.block_size,
        attention_backend=args.attention_backend,
        tensor_parallel_size=args.tensor_parallel_size,
        pipeline_parallel_size=args.pipeline_parallel_size,
        reduction_parts=args.reduction_parts,
        launcher=args.distributed_executor_backend,
        timeout_seconds=args.distributed_timeout_seconds,
        quantization=args.quantization,
        kv_cache_dtype=args.kv_cache_dtype,
        record_spans=args.trace is not None,
        batch_invariant=is_wanted(args.batch_invariant),
        limits=CacheLimits(
            max_num_seqs=args.max_num_seqs,
            max_model_len=args.max_model_len,
            gpu_memory_utilization=args.gpu_memory_utilization,
            num_gpu_blocks_override=args.num_gpu_blocks_override,
            kv_cache_memory_bytes=args.kv_cache_memory_bytes,
            swap_space_bytes=int(args.swap_space * GIB),
        ),
    )


def calibrated_model(args: EngineArgs) -> str | Path:
    """The model, or its quantised checkpoint where AWQ or GPTQ was asked for and it is plain.

    That one is calibrated now, which takes a while, and kept for the next time.
    """
    method = ALIASES.get(args.quantization or "", args.quantization)
    if method not in CALIBRATED or is_quantized(resolve_model(args.model)):
        return args.model
    from minivllm.quantize import quantized_folder  # a second of imports, for those who ask for it

    with ProgressBar(desc=f"{method}: calibrating, once", unit=" layers") as bar:

        def progress(result: LayerResult, num_layers: int) -> None:
            bar.total = num_layers
            bar.set_postfix_str(f"layer error {result.error:.2%}", refresh=False)
            bar.update()

        return quantized_folder(args.model, method, progress)


def is_quantized(folder: Path) -> bool:
    return bool(read_json_object(folder / "config.json").get("quantization_config"))


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
            stacklevel=5,
        )
        return None
    return Tokenizer.from_folder(
        resolve_tokenizer(args.tokenizer if args.tokenizer is not None else args.model)
    )


def load_generation_config(args: EngineArgs) -> GenerationConfig:
    """The model's own `generation_config.json`, or that of the folder which was asked for."""
    if args.generation_config in ("auto", "vllm"):
        return GenerationConfig.from_folder(resolve_model(args.model))
    folder = Path(os.path.expanduser(args.generation_config))
    if not os.path.exists(folder / GENERATION_FILE):
        raise ValueError(
            f"generation_config must be 'auto', 'vllm', or a folder with a {GENERATION_FILE}, got "
            f"{shown(str(folder))}"
        )
    return GenerationConfig.from_folder(folder)


def default_sampling_params(args: EngineArgs, generation: GenerationConfig) -> SamplingParams:
    """What `generate` uses where no parameters are given: the model's recommendation, or vLLM's defaults."""
    if args.generation_config == "vllm":
        return SamplingParams()
    try:
        return SamplingParams(**generation.sampling)
    except ValueError as error:
        raise ValueError(
            f"{generation.path}: {error}; generation_config='vllm' leaves its sampling defaults alone"
        ) from None


def end_token_ids(
    tokenizer: Tokenizer | None, generation: GenerationConfig, model: ModelConfig
) -> tuple[int, ...]:
    """The tokens that end a text, the tokenizer's own first (`minivllm/model/generation_config.py`)."""
    own = tokenizer.eos_token_id if tokenizer else None
    named = generation.eos_token_ids or model.eos_token_ids
    found = dict.fromkeys(named if own is None else (own, *named))
    # A token beyond the vocabulary never comes, and has no logit that could be held back.
    return tuple(token_id for token_id in found if token_id < model.vocab_size)


def scheduler_config(
    args: EngineArgs, num_blocks: int, max_model_len: int, *, num_host_blocks: int = 0
) -> SchedulerConfig:
    """The final limits, given the size of the pool and the most tokens of a sequence."""
    batched = args.max_num_batched_tokens
    if batched is None:
        whole_prompts = not args.enable_chunked_prefill
        batched = max(DEFAULT_MAX_NUM_BATCHED_TOKENS, max_model_len if whole_prompts else 0)
    same_name = {
        field.name: getattr(args, field.name)
        for field in fields(SchedulerConfig)
        if hasattr(args, field.name)
    }
    resolved = {
        "num_blocks": num_blocks,
        "num_host_blocks": num_host_blocks,
        "max_model_len": max_model_len,
        "max_num_batched_tokens": batched,
        "cache_prompts_only": args.decode_weight_dtype is not None,
    }
    return SchedulerConfig(**(same_name | resolved))


def pages_of(executor: TorchExecutor | DistributedExecutor) -> Pages | None:
    """How a KV cache in virtual memory gives pages back; None for any other."""
    storage = executor.storage if isinstance(executor, TorchExecutor) else None
    if isinstance(storage, VirtualKVStorage):
        return Pages(storage.blocks_per_commit, storage.decommit)
    return None


def _speculation_words(args: EngineArgs) -> dict[str, str]:
    """How drafts are made, for the trace's header."""
    config = SpeculativeConfig.of(args.speculative_config)
    return (
        {} if config is None else {"speculation": f"{config.method}, {config.num_speculative_tokens} tokens"}
    )
