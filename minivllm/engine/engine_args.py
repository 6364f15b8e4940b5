"""What can be set about an engine: the only list, under vLLM's names and with its defaults.

`EngineArgs` holds what a user asked for and checks what can be checked without a model. The keyword
arguments of `LLM`, the flags of the command line and the text of `help(LLM)` are derived from it
(`settings.py` says how), so a new setting is one field here, and one place that obeys it.

No tensor library is needed to read this list: `minivllm generate --help` answers at once.

Read next: `minivllm/engine/create_engine.py`, which turns it into an engine.
"""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Annotated, Any

from minivllm.config import (
    ATTENTION_BACKENDS,
    DTYPES,
    KV_CACHE_DTYPES,
    PREEMPTION_MODES,
)
from minivllm.engine.settings import Setting, check_settings, documented, settings_of
from minivllm.memory.allocators import ALLOCATORS
from minivllm.memory.make_cache_manager import PREFIX_CACHES
from minivllm.model.quantization.names import ROUNDINGS
from minivllm.model.quantization.names import SETTINGS as QUANTIZATIONS
from minivllm.scheduling.choose_policy import POLICIES, make_policy
from minivllm.speculative_config import SpeculativeConfig
from minivllm.structured_outputs_config import StructuredOutputsConfig
from minivllm.trace.recorder import Recorder
from minivllm.validation import shown

INT8 = "int8"
WITH_RANKS = frozenset(
    ["model", "tokenizer", "skip_tokenizer_init", "dtype", "generation_config", "seed",
     "max_model_len", "block_size", "gpu_memory_utilization", "kv_cache_memory_bytes",
     "num_gpu_blocks_override", "max_num_seqs", "max_num_batched_tokens", "enable_chunked_prefill",
     "long_prefill_token_threshold", "watermark", "scheduling_policy", "async_scheduling", "prefix_cache",
     "enable_prefix_caching", "swap_space", "preemption_mode", "allocator", "attention_backend",
     "trace", "tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size",
     "reduction_parts", "distributed_executor_backend", "distributed_timeout_seconds", "enforce_eager",
     "trust_remote_code", "quantization", "speculative_config", "kv_cache_dtype", "batch_invariant",
     "structured_outputs_config"]
)  # fmt: skip
"""Settings that several ranks obey, too. A new one is refused there until it is tried and named here."""


@dataclass
class EngineArgs:
    """Everything that can be set about an engine.

    Raises:
        ValueError: a setting that cannot work, named, with its value and what is allowed.
    """

    model: Annotated[
        str | Path,
        Setting(
            "A Hugging Face folder, or an id on the hub; the command line takes the shipped model if none "
            "is given."
        ),
    ]
    _: KW_ONLY
    tokenizer: Annotated[
        str | Path | None,
        Setting("Another folder or id to take the tokenizer from; the model's own if left out."),
    ] = None
    skip_tokenizer_init: Annotated[
        bool, Setting("Load no tokenizer: prompts are token ids, and outputs have no text.")
    ] = False
    dtype: Annotated[
        str,
        Setting(
            "Type of weights and KV cache; 'auto' is what the checkpoint says. 'int8' is another word for "
            "quantization='int8': weights of 8 bits, everything else as with 'auto'.",
            ("auto", *DTYPES, INT8),
        ),
    ] = "auto"
    generation_config: Annotated[
        str | Path,
        Setting(
            "Where the defaults for sampling come from: 'auto' (the model's generation_config.json), 'vllm' "
            "(vLLM's own), or a folder with such a file. It also names tokens that end a text, in any case."
        ),
    ] = "auto"
    seed: Annotated[
        int,
        Setting(
            "Requests without a seed of their own get one derived from this.", at_least=0, at_most=2**63 - 1
        ),
    ] = 0
    max_model_len: Annotated[
        int | None, Setting("Most tokens of a sequence; the model's own limit if left out.", at_least=1)
    ] = None
    block_size: Annotated[int, Setting("Tokens per KV-cache block.", at_least=1)] = 16
    gpu_memory_utilization: Annotated[
        float,
        Setting(
            "Share of the device's memory that weights and KV cache may use together.",
            more_than=0,
            at_most=1,
        ),
    ] = 0.92
    kv_cache_memory_bytes: Annotated[
        int | None,
        Setting("Size of the KV cache, instead of gpu_memory_utilization.", at_least=1),
    ] = None
    num_gpu_blocks_override: Annotated[
        int | None,
        Setting(
            "Number of KV-cache blocks, instead of kv_cache_memory_bytes and gpu_memory_utilization.",
            at_least=1,
        ),
    ] = None
    kv_cache_dtype: Annotated[
        str,
        Setting(
            "What keys and values are kept in: 'auto' (dtype), 'int8_per_token_head' (whole numbers, each "
            "head of each token with a scale of its own: no calibration), or 'fp8' (8-bit floats, with the "
            "checkpoint's k_scale and v_scale; 'fp8_e4m3' is the same).",
            KV_CACHE_DTYPES,
        ),
    ] = "auto"
    max_num_seqs: Annotated[int, Setting("Most sequences in one step.", at_least=1)] = 128
    max_num_batched_tokens: Annotated[
        int | None,
        Setting(
            "Most tokens computed in one step; 2,048 if left out, or max_model_len where chunked prefill "
            "is off and that is more.",
            at_least=1,
        ),
    ] = None
    enable_chunked_prefill: Annotated[bool, Setting("Compute a long prompt in several steps.")] = True
    long_prefill_token_threshold: Annotated[
        int, Setting("Most tokens of one prompt in one step; 0 sets no limit.", at_least=0)
    ] = 0
    watermark: Annotated[
        float, Setting("Share of the blocks kept free when a request is admitted.", at_least=0, at_most=1)
    ] = 0.01
    scheduling_policy: Annotated[
        str,
        Setting(
            f"Order in which requests are scheduled: {', '.join(POLICIES)}; with settings if need be, as in "
            "'tail(tokens_left=8)'; or 'module:Class' for one of your own."
        ),
    ] = "fcfs"
    async_scheduling: Annotated[
        bool,
        Setting(
            "Plan each step while the one before it is computed, and tell what came out of that one while "
            "the next is. The tokens are the same; what needs a step's tokens to be planned (beam search, "
            "drafts, static batches, preemption) waits for them."
        ),
    ] = False
    prefix_cache: Annotated[
        str | None,
        Setting(
            "Find the blocks of known prefixes again: 'hash' (chained blocks, as in vLLM) or 'radix' (a "
            "tree, as in SGLang); not at all if left out.",
            tuple(PREFIX_CACHES),
        ),
    ] = None
    enable_prefix_caching: Annotated[
        bool | None, Setting("vLLM's name for prefix_cache: True means 'hash', False none.")
    ] = None
    swap_space: Annotated[
        float,
        Setting("GiB of the host's memory for the blocks of preempted requests.", at_least=0, at_most=10**6),
    ] = 0
    preemption_mode: Annotated[
        str | None,
        Setting(
            "What becomes of the blocks of a preempted request: freed and computed again, or swapped out; "
            "'swap' if there is a swap space and this is left out.",
            PREEMPTION_MODES,
        ),
    ] = None
    allocator: Annotated[
        str,
        Setting("How KV-cache memory is managed: 'paged', or another one for comparison.", ALLOCATORS),
    ] = "paged"
    attention_backend: Annotated[
        str,
        Setting(
            "'auto' (the fastest there is for this device and type), 'torch' (plain), 'numba-cpu', "
            "'numba-cuda' (our kernels on a GPU), or 'microscope' (those interpreted, on any machine).",
            ATTENTION_BACKENDS,
        ),
    ] = "auto"
    trace: Annotated[
        str | Path | Recorder | None, Setting("Record every event in this file; `LLM` takes a Recorder, too.")
    ] = None
    tensor_parallel_size: Annotated[
        int, Setting("Ranks (processes, each with a device) that share every layer.", at_least=1)
    ] = 1
    pipeline_parallel_size: Annotated[
        int, Setting("Stages that share the layers, each of tensor_parallel_size ranks.", at_least=1)
    ] = 1
    data_parallel_size: Annotated[
        int,
        Setting(
            "Copies of the model behind one `minivllm serve`, each a process with a KV cache of its own.",
            at_least=1,
        ),
    ] = 1
    reduction_parts: Annotated[
        int | None,
        Setting(
            "Parts that every layer is computed in, each alone, and added in order: with the same number of "
            "them 1, 2 and 4 ranks give the same bits. If left out, 4 (or what the heads allow) with several "
            "ranks; one rank alone then computes whole layers, by its fastest runner.",
            at_least=1,
        ),
    ] = None
    distributed_executor_backend: Annotated[
        str | None,
        Setting(
            "How the ranks are started: 'mp' (processes of this engine's own), 'external_launcher' (by "
            "torchrun, with this same program), or 'ray' (actors of a Ray cluster: the one that is there, "
            "or one begun for them); 'mp' or torchrun, whichever fits, if left out.",
            ("mp", "external_launcher", "ray"),
        ),
    ] = None
    distributed_timeout_seconds: Annotated[
        float,
        Setting(
            "Longest that no rank may get on within a step, nor one of a server's several engines with a "
            "step, before it counts as hanging: the error then says which, and at what. One that gives no "
            "sign of life at all is noticed after 30 seconds, or after this if it is less.",
            at_least=5,
        ),
    ] = 300
    quantization: Annotated[
        str | None,
        Setting(
            "How weights are stored. A quantised checkpoint says so itself, and may be named: 'gptq', 'awq', "
            "'compressed-tensors', 'fp8'. A plain one is rounded while it is loaded by 'int8', 'int4' or "
            "'fp8', calibrated once and kept by 'awq' or 'gptq', and left alone if this is left out.",
            QUANTIZATIONS,
        ),
    ] = None
    speculative_config: Annotated[
        dict[str, Any] | str | SpeculativeConfig | None,
        Setting(
            "Guess several tokens ahead and verify them in one step, without changing what comes out: a "
            "dictionary (on the command line its JSON) with 'method' ('ngram' or 'draft_model'), "
            "'num_speculative_tokens', and 'prompt_lookup_min', 'prompt_lookup_max' or 'model', and "
            "'disable_by_batch_size'."
        ),
    ] = None
    structured_outputs_config: Annotated[
        dict[str, Any] | str | StructuredOutputsConfig | None,
        Setting(
            "What follows structured outputs: a dictionary (on the command line its JSON) whose 'backend' is "
            "'auto' or 'minivllm' (our own automata), or 'guidance' (llguidance: pip install "
            "minivllm[structured]); also --structured-outputs-config.backend."
        ),
    ] = None
    decode_weight_dtype: Annotated[
        str | None,
        Setting(
            "Compute generated tokens with a rounded copy of the weights, 'int8', 'int4' or 'fp8', and "
            "prompts with the model's own: decoding reads fewer bytes, prompts stay exact, and both copies "
            "take memory. The model's own for all if left out.",
            ROUNDINGS,
        ),
    ] = None
    enforce_eager: Annotated[
        bool,
        Setting("Compute every step anew; otherwise 'numba-cuda' records decode steps as CUDA graphs."),
    ] = False
    batch_invariant: Annotated[
        bool,
        Setting(
            "The same logits for a request, bit for bit, whatever is computed beside it, or a refusal. "
            "'numba-cpu' keeps to it anyway in float32 and bfloat16 without matrix units; others only if "
            "asked, and take longer. VLLM_BATCH_INVARIANT=1 asks for it, too."
        ),
    ] = False
    trust_remote_code: Annotated[
        bool, Setting("Accepted as in vLLM, without effect: no code from a checkpoint is run.")
    ] = False

    def __post_init__(self) -> None:
        if type(self.dtype).__module__ == "torch":  # its own name for a type will do
            self.dtype = str(self.dtype).removeprefix("torch.")
        check_settings(self)
        for name in ("model", "tokenizer"):
            if getattr(self, name) == "":
                raise ValueError(f"{name} must be a folder or a hub id, got ''")
        self.speculative_config = SpeculativeConfig.of(self.speculative_config)
        if self.structured_outputs_config is not None:
            self.structured_outputs_config = StructuredOutputsConfig.of(self.structured_outputs_config)
        has_draft_model = self.speculative_config is not None and self.speculative_config.model is not None
        if has_draft_model and self.allocator == "virtual_memory":
            raise ValueError(
                "allocator must not be 'virtual_memory' where speculative_config has a draft model: its keys "
                "and values lie in blocks"
            )
        make_policy(self.scheduling_policy)  # before a model is loaded for nothing
        self._resolve_prefix_cache()
        self._resolve_preemption_mode()
        self._resolve_dtype()
        self._check_kv_cache_dtype()
        self._check_parallel()
        self._check_decode_weights()

    def _resolve_prefix_cache(self) -> None:
        if self.prefix_cache is not None and self.enable_prefix_caching is False:
            raise ValueError(
                f"enable_prefix_caching must not be False where prefix_cache is {self.prefix_cache!r}"
            )
        if self.enable_prefix_caching and self.prefix_cache is None:
            self.prefix_cache = "hash"

    def _resolve_preemption_mode(self) -> None:
        if self.preemption_mode is None:
            self.preemption_mode = "swap" if self.swap_space else "recompute"
        if self.preemption_mode == "swap" and not self.swap_space:
            raise ValueError("preemption_mode must be 'recompute' where swap_space is 0, got 'swap'")

    def _resolve_dtype(self) -> None:
        """`dtype` is what is computed in, and that is no integer; a user who says so means the weights."""
        if self.dtype != INT8:
            return
        if self.quantization not in (None, INT8):
            raise ValueError(
                f"dtype 'int8' means weights of 8 bits, which quantization={INT8!r} makes of a plain "
                f"checkpoint; with quantization={self.quantization!r} weights have as many bits as the "
                "checkpoint says. Leave dtype out, or set quantization='int8' and dtype='auto'"
            )
        self.quantization, self.dtype = INT8, "auto"

    def _check_decode_weights(self) -> None:
        if self.decode_weight_dtype is None:
            return
        if self.quantization is not None:
            raise ValueError(
                f"decode_weight_dtype is {self.decode_weight_dtype!r}, which leaves prompts the model's own "
                f"weights of 16 or 32 bits; quantization={self.quantization!r} takes those away: leave one "
                "of the two out"
            )

    def _check_kv_cache_dtype(self) -> None:
        """Scales lie beside the pages of virtual memory, and would not come and go with them."""
        if self.kv_cache_dtype != "auto" and self.allocator == "virtual_memory":
            raise ValueError(
                f"kv_cache_dtype must be 'auto' where allocator is 'virtual_memory', got "
                f"{self.kv_cache_dtype!r}; every other allocator has it"
            )

    @property
    def is_parallel(self) -> bool:
        """Is the model computed in parts, by one rank or several?"""
        return self.tensor_parallel_size * self.pipeline_parallel_size > 1 or self.reduction_parts is not None

    def _check_parallel(self) -> None:
        """Refuse what is not built yet. What the model must allow is checked with the model."""
        if not self.is_parallel:
            return
        if self.data_parallel_size != 1:
            raise ValueError(
                "data_parallel_size must be 1 with tensor_parallel_size or pipeline_parallel_size above 1, "
                f"or reduction_parts: a copy of a model has one rank; got {shown(self.data_parallel_size)}"
            )
        if self.async_scheduling and self.pipeline_parallel_size > 1:
            raise ValueError(
                "async_scheduling must be False where pipeline_parallel_size is "
                f"{self.pipeline_parallel_size}: there each stage has a plan of its own in flight already"
            )
        several = "with tensor_parallel_size or pipeline_parallel_size above 1, or reduction_parts"
        if self.allocator == "virtual_memory":
            raise ValueError(
                f"allocator must not be 'virtual_memory' {several}: memory is given back by one process only"
            )
        speculative = self.speculative_config
        assert isinstance(speculative, SpeculativeConfig | None), "it was resolved"
        if speculative and speculative.method != "ngram":
            raise ValueError(
                f"speculative_config['method'] must be 'ngram' {several}: a draft model is not shared among "
                f"ranks yet; got {speculative.method!r}"
            )
        for name, setting in settings_of(EngineArgs).items():
            value = getattr(self, name)
            if name not in WITH_RANKS and value != setting.default:
                raise ValueError(
                    f"{name} must be left out {several}: ranks do not know it yet; got {shown(value)}"
                )


EngineArgs.__doc__ = documented(EngineArgs.__doc__, EngineArgs)
