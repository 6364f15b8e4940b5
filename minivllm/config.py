"""The limits that the control plane works within, checked once and never changed afterwards.

`SchedulerConfig` is what the scheduler obeys; its numbers are final. How a user's wishes ("use 90 % of the
memory", the model's own limit) become these numbers is said in `minivllm/engine/create_engine.py`.

Read next: `minivllm/scheduling/scheduler.py`, which obeys them.
"""

from __future__ import annotations

from dataclasses import dataclass

from minivllm.validation import check_boolean, check_choice, check_int64, check_number

DTYPES = ("half", "float16", "bfloat16", "float", "float32", "double", "float64")
KV_CACHE_DTYPES = ("auto", "int8_per_token_head", "fp8", "fp8_e4m3")
PREEMPTION_MODES = ("recompute", "swap")
ATTENTION_BACKENDS = ("auto", "torch", "numba-cpu", "numba-cuda", "microscope")
LEAST = {
    "num_blocks": 1,
    "block_size": 1,
    "max_num_seqs": 1,
    "max_num_batched_tokens": 1,
    "max_model_len": 1,
    "long_prefill_token_threshold": 0,
    "num_host_blocks": 0,
}
"""The least that a limit may be."""


@dataclass(frozen=True)
class SchedulerConfig:
    """Limits of a run (vLLM's names and defaults).

    Attributes:
        num_blocks: physical KV-cache blocks in the pool.
        block_size: tokens per block.
        max_num_seqs: most sequences in one step.
        max_num_batched_tokens: most tokens computed in one step, over all sequences.
        max_model_len: most tokens of one sequence, prompt and output together.
        enable_chunked_prefill: a prompt may be computed in several steps; otherwise always in one.
        long_prefill_token_threshold: most tokens of one prompt in one step, so that a long one leaves
            room for others; 0 sets no limit.
        watermark: share of the blocks kept free when a request is admitted, so that running
            sequences can grow for a while before one must be preempted.
        scheduling_policy: the order in which requests are scheduled: a name, perhaps with settings, as in
            "tail(tokens_left=8)", or "module:Class" (`minivllm/scheduling/choose_policy.py`).
        prefix_cache: how full blocks are found again by other requests, "hash" or "radix"; None does
            without.
        preemption_mode: what becomes of a preempted request's blocks: "recompute" or "swap".
        cache_prompts_only: the prefix cache remembers no block with a generated token in it, because such
            tokens are computed with other weights than prompts are (`minivllm/executor/phases.py`).
        num_host_blocks: blocks of the swap space.
        allocator: how memory is managed: "paged", or one of the ways of before (and after).
        copy_on_fork: a fork copies all its blocks at once, for comparison.
    """

    num_blocks: int
    block_size: int = 16
    max_num_seqs: int = 128
    max_num_batched_tokens: int = 2048
    max_model_len: int = 2048
    enable_chunked_prefill: bool = True
    long_prefill_token_threshold: int = 0
    watermark: float = 0.01
    scheduling_policy: str = "fcfs"
    prefix_cache: str | None = None
    preemption_mode: str = "recompute"
    num_host_blocks: int = 0
    allocator: str = "paged"
    copy_on_fork: bool = False
    cache_prompts_only: bool = False

    def __post_init__(self) -> None:
        for name, at_least in LEAST.items():  # kept as Python's own integers, which traces can express
            object.__setattr__(self, name, check_int64(name, getattr(self, name), at_least=at_least))
        check_boolean("enable_chunked_prefill", self.enable_chunked_prefill)
        check_number("watermark", self.watermark, at_least=0, at_most=1)
        for name in ("scheduling_policy", "allocator", "prefix_cache"):
            # Which names there are is known to the rooms above, `minivllm/scheduling/choose_policy.py` and
            # `minivllm/memory/make_cache_manager.py`, which refuse all others.
            value = getattr(self, name)
            if value is None and name == "prefix_cache":
                continue
            if not isinstance(value, str) or not value.strip():
                raise ValueError(f"{name} must be a name, got {value!r}")
        check_choice("preemption_mode", self.preemption_mode, PREEMPTION_MODES)
        check_boolean("copy_on_fork", self.copy_on_fork)
        check_boolean("cache_prompts_only", self.cache_prompts_only)
        self._check_combinations()

    def _check_combinations(self) -> None:
        if self.preemption_mode == "swap" and not self.num_host_blocks:
            raise ValueError(
                "preemption_mode is 'swap', but there is no swap space: set swap_space to some GiB"
            )
        if self.allocator != "paged" and (self.prefix_cache or self.num_host_blocks or self.copy_on_fork):
            raise ValueError(
                f"allocator must be 'paged' for a prefix cache or a swap space, got {self.allocator!r}"
            )
        if self.copy_on_fork and self.prefix_cache:
            raise ValueError("copy_on_fork must be False where prefix_cache shares blocks, got True")
        if not self.enable_chunked_prefill and self.max_num_batched_tokens < self.max_model_len:
            raise ValueError(
                f"max_num_batched_tokens must be at least max_model_len ({self.max_model_len}) when "
                f"enable_chunked_prefill is False, because every prompt must fit in one step; "
                f"got {self.max_num_batched_tokens}"
            )
