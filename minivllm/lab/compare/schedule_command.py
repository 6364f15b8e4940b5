"""From the settings of a comparison to the worlds and workloads of `schedule.py`.

Read next: `schedule_engine.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from minivllm.lab.compare.schedule import (
    LOAD,
    PolicyRun,
    Prioritised,
    SimulatedWorld,
    World,
    compare_policies,
    sustainable_rate,
)
from minivllm.lab.simulation.setting import Setting
from minivllm.lab.subjects.settings import Settings
from minivllm.lab.subjects.subject import open_subject
from minivllm.lab.workloads.parse import parse_workload
from minivllm.lab.workloads.workload import Workload
from minivllm.validation import check_integer

REAL_WORKLOAD, REAL_REQUESTS = "uniform:16-160,16-96", 96
SIMULATED_WORKLOAD, SIMULATED_REQUESTS = "sharegpt", 400


@dataclass(frozen=True)
class ScheduleSettings:
    """What can be set about a comparison of policies."""

    model: str | None = None
    hardware: str | None = None
    workload: str | None = None
    requests: int | None = None
    rate: float | None = None
    max_num_seqs: int = 16
    max_num_batched_tokens: int = 2048
    num_blocks: int | None = None
    threads: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        check_integer("max_num_seqs", self.max_num_seqs, at_least=1)
        check_integer("max_num_batched_tokens", self.max_num_batched_tokens, at_least=1)
        if self.num_blocks is not None:
            check_integer("blocks", self.num_blocks, at_least=1)

    def make_workload(self, rate: float | None, vocab_size: int, max_model_len: int) -> Workload:
        """The requests, arriving at `rate`."""
        simulated = self.hardware is not None
        spec = self.workload or (SIMULATED_WORKLOAD if simulated else REAL_WORKLOAD)
        from_file = spec.endswith(".jsonl")
        default = None if from_file else SIMULATED_REQUESTS if simulated else REAL_REQUESTS
        return Prioritised(
            parse_workload(
                spec,
                vocab_size=vocab_size,
                num_requests=default if self.requests is None else self.requests,
                rate=None if from_file else rate,
                seed=self.seed,
                max_model_len=max_model_len,
            )
        )


def run(
    asked: ScheduleSettings, policies: Sequence[str], folder: Path, progress: Callable[[str], None]
) -> tuple[str, list[PolicyRun]]:
    """Compare; returns what was compared, in words, and the runs in the order of the policies."""
    if not (asked.workload or "").endswith(".jsonl"):
        asked.make_workload(asked.rate, 1000, 1_000_000)  # a mistake is told before a model is loaded
    with _open_world(asked) as (world, vocab_size):
        rate = asked.rate
        if rate is None and not (asked.workload or "").endswith(".jsonl"):
            progress("how many requests a second can fcfs sustain?")
            everything = asked.make_workload(None, vocab_size, world.config.max_model_len)
            rate = LOAD * sustainable_rate(world, everything)
        workload = asked.make_workload(rate, vocab_size, world.config.max_model_len)
        runs = compare_policies(world, policies, workload, folder, progress=progress)
    arrivals = f"{rate:,.2f} requests/s" if rate else "arrivals from the file"
    config = world.config
    title = (
        f"{world.title}: {runs[0].num_requests} requests, {arrivals}, batches of {config.max_num_seqs}, "
        f"{config.num_blocks:,} blocks of {config.block_size}, seed {asked.seed}"
    )
    return title, runs


@contextmanager
def _open_world(asked: ScheduleSettings) -> Iterator[tuple[World, int]]:
    """Where requests are served, and the size of its vocabulary."""
    if asked.hardware is not None:
        setting = Setting(
            hardware=asked.hardware,
            model=asked.model or "opt-13b",
            max_num_seqs=asked.max_num_seqs,
            max_num_batched_tokens=asked.max_num_batched_tokens,
            num_gpu_blocks_override=asked.num_blocks,
        )
        cost = setting.cost_model()
        title = f"{cost.model.title} on {cost.hardware.title}, simulated"
        yield (
            SimulatedWorld(
                title, setting.scheduler_config(), cost, cost.model.shape(), cost.hardware.shape()
            ),
            cost.model.vocab_size,
        )
        return
    from dataclasses import replace

    import torch

    from minivllm.lab.compare.schedule_engine import EngineWorld, limits

    settings = Settings(model=asked.model, threads=asked.threads, num_blocks=asked.num_blocks)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(settings.num_threads)
        with open_subject(settings) as subject:
            config = replace(
                limits(subject, max_num_seqs=asked.max_num_seqs, num_blocks=asked.num_blocks),
                max_num_batched_tokens=asked.max_num_batched_tokens,
            )
            yield EngineWorld(subject, settings, config), subject.executor.config.vocab_size
    finally:
        torch.set_num_threads(before)
