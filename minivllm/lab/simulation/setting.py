"""What is simulated: a model on hardware, so many replicas of it, and how each is configured.

    Setting ──► CostModel + SchedulerConfig ──► Replica × n ──► Cluster

Read next: `command.py`, which puts it on the command line.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from minivllm.config import SchedulerConfig
from minivllm.executor.simulated_executor import VirtualClock
from minivllm.lab.simulation.cards import hardware_card, model_card, num_kv_blocks
from minivllm.lab.simulation.cluster import Cluster
from minivllm.lab.simulation.cost_model import CostModel
from minivllm.lab.simulation.metrics import Metrics
from minivllm.lab.simulation.replica import Replica
from minivllm.lab.simulation.speculative import Guesses, Speculative
from minivllm.scheduling.choose_policy import make_policy
from minivllm.scheduling.router import make_router
from minivllm.trace.recorder import Recorder
from minivllm.validation import check_integer, check_number

MOST_SWAP_SPACE = 1e9
"""GiB: an exbibyte, and more than any host has."""


@dataclass(frozen=True)
class Setting:
    """A data centre in words and numbers; names are those of `EngineArgs`, where it has them.

    Attributes:
        hardware, model: cards (`cards.py`).
        replicas: engines with a copy of the model each, behind one router.
        router: "round-robin", "least-loaded" or "prefix-aware".
        decode_weight_dtype: "int8", say, to keep the weights a second time, in fewer bits, for steps in which
            all sequences decode (precision by phase); None for one copy.
        speculative: "acceptance=0.7,tokens=4", say, to guess ahead (`speculative.py`); None guesses nothing.
        num_gpu_blocks_override: KV-cache blocks of a replica; as many as fit beside the weights, if None.
        swap_space: GiB of the host's memory for each replica.
        max_model_len: the model's own, if None.
    """

    hardware: str = "a100-40gb"
    model: str = "opt-13b"
    replicas: int = 1
    router: str = "round-robin"
    tensor_parallel_size: int = 1
    pipeline_parallel_size: int = 1
    scheduling_policy: str = "fcfs"
    max_num_seqs: int = 256
    max_num_batched_tokens: int = 2048
    max_model_len: int | None = None
    enable_chunked_prefill: bool = True
    block_size: int = 16
    gpu_memory_utilization: float = 0.9
    num_gpu_blocks_override: int | None = None
    allocator: str = "paged"
    prefix_cache: str | None = None
    swap_space: float = 0.0
    preemption_mode: str | None = None
    watermark: float = 0.01
    decode_weight_dtype: str | None = None
    speculative: str | None = None

    def __post_init__(self) -> None:
        check_integer("replicas", self.replicas, at_least=1)
        check_number("gpu_memory_utilization", self.gpu_memory_utilization, more_than=0, at_most=1)
        check_number("swap_space", self.swap_space, at_least=0, at_most=MOST_SWAP_SPACE)
        check_integer("block_size", self.block_size, at_least=1)
        make_router(self.router)
        make_policy(self.scheduling_policy)
        if self.speculative is not None:
            Speculative.of(self.speculative)
        self.scheduler_config()

    def cost_model(self) -> CostModel:
        """How long its steps take."""
        return CostModel(
            hardware_card(self.hardware),
            model_card(self.model),
            tensor_parallel_size=self.tensor_parallel_size,
            pipeline_parallel_size=self.pipeline_parallel_size,
            block_size=self.block_size,
            decode_weight_dtype=self.decode_weight_dtype,
        )

    def scheduler_config(self) -> SchedulerConfig:
        """The limits of one replica."""
        cost = self.cost_model()
        num_blocks = self.num_gpu_blocks_override
        if num_blocks is None:
            num_blocks = num_kv_blocks(
                cost.hardware,
                cost.model,
                block_size=self.block_size,
                utilization=self.gpu_memory_utilization,
                num_devices=cost.num_devices,
                second_weight_bytes=cost.second_weight_bytes,
            )
        longest = cost.model.max_position
        max_model_len = longest if self.max_model_len is None else self.max_model_len
        check_integer("max_model_len", max_model_len, at_least=1, at_most=longest)
        block_bytes = self.block_size * cost.model.kv_bytes_per_token
        mode = self.preemption_mode or ("swap" if self.swap_space else "recompute")
        batched = self.max_num_batched_tokens
        return SchedulerConfig(
            num_blocks=num_blocks,
            block_size=self.block_size,
            max_num_seqs=self.max_num_seqs,
            max_num_batched_tokens=batched if self.enable_chunked_prefill else max(batched, max_model_len),
            max_model_len=max_model_len,
            enable_chunked_prefill=self.enable_chunked_prefill,
            watermark=self.watermark,
            scheduling_policy=self.scheduling_policy,
            prefix_cache=self.prefix_cache,
            preemption_mode=mode,
            num_host_blocks=int(self.swap_space * 2**30 // block_bytes),
            allocator=self.allocator,
        )

    def make_cluster(self, recorder: Recorder | None = None) -> tuple[Cluster, Metrics]:
        """The replicas behind their router, and what they count together; the recorder sees the first."""
        metrics, cost, config = Metrics(), self.cost_model(), self.scheduler_config()
        clocks = [VirtualClock() for _ in range(self.replicas)]
        if recorder is not None:
            recorder.use_clock(clocks[0])
        how = None if self.speculative is None else Speculative.of(self.speculative)
        replicas = [
            Replica(
                config,
                cost,
                metrics,
                recorder=recorder if index == 0 else None,
                clock=clock,
                guesses=Guesses(how, index) if how else None,
                model_shape=cost.model.shape(),
                hardware=cost.hardware.shape(cost.num_devices),
            )
            for index, clock in enumerate(clocks)
        ]
        return Cluster(replicas, make_router(self.router)), metrics

    def facts(self) -> list[tuple[str, str]]:
        """For tables: what differs from the defaults, and what is always worth saying."""
        always = ("hardware", "model", "replicas", "scheduling_policy")
        defaults = Setting.__dataclass_fields__
        return [
            (field.name, str(getattr(self, field.name)))
            for field in fields(self)
            if field.name in always or getattr(self, field.name) != defaults[field.name].default
        ]
