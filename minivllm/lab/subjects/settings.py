"""What can be set about a measurement, checked before anything is loaded.

Read next: `subject.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

from minivllm.executor.cpu_hazards import usable_cores as usable_cores
from minivllm.lab.subjects.workload import DEFAULT_SEED
from minivllm.validation import check_integer

MOST_THREADS = 1024
"""More than any machine has cores; of millions, OpenMP dies where it cannot start one."""
DTYPES = ("auto", "float32", "bfloat16", "float16", "float64")


@dataclass(frozen=True)
class Settings:
    """The settings that all measurements share.

    Attributes:
        model: "nano", "small" or "medium" (random weights), or a model folder; None is the shipped model.
        threads: threads of torch; None uses every core that this process may use.
        repeat: repetitions of each side; medians are reported.
        requests: requests in the workload.
        dtype: type of weights and cache; "auto" is what the checkpoint says (float32 for random ones).
        seed: of the workload: lengths and prompts.
        num_blocks: KV-cache blocks; None lets the engine decide, which is plenty.
    """

    model: str | None = None
    threads: int | None = None
    repeat: int = 3
    requests: int = 64
    dtype: str = "auto"
    seed: int = DEFAULT_SEED
    num_blocks: int | None = None

    def __post_init__(self) -> None:
        if self.threads is not None:
            check_threads(self.threads)
        if self.num_blocks is not None:
            check_integer("num_blocks", self.num_blocks, at_least=1)
        check_integer("repeat", self.repeat, at_least=1)
        check_integer("requests", self.requests, at_least=1)
        check_integer("seed", self.seed, at_least=0)
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {self.dtype!r}")

    @property
    def num_threads(self) -> int:
        """Threads that torch will be given."""
        return usable_cores() if self.threads is None else self.threads

    def warnings(self) -> list[str]:
        """What is allowed but will spoil the numbers."""
        cores = usable_cores()
        if self.num_threads > cores:
            return [
                f"threads is {self.num_threads}, but this process may use {cores} cores: threads will wait "
                "for each other, and the figures will say more about that than about the engine"
            ]
        return []


def check_threads(threads: object) -> int:
    """Threads of torch, or `ValueError`."""
    return check_integer("threads", threads, at_least=1, at_most=MOST_THREADS)
