"""The real world of `schedule.py`: a model on this machine, and a fresh engine around it for every run.

Read next: `minivllm/lab/subjects/real_time.py`.
"""

from __future__ import annotations

from dataclasses import replace
from time import perf_counter
from typing import TYPE_CHECKING

from minivllm.config import SchedulerConfig
from minivllm.lab.compare.schedule import World
from minivllm.lab.subjects.real_time import play
from minivllm.lab.subjects.settings import Settings
from minivllm.lab.subjects.subject import Subject
from minivllm.lab.workloads.workload import Workload
from minivllm.trace.recorder import Recorder

if TYPE_CHECKING:
    from minivllm.engine.engine import Engine


class EngineWorld(World):
    """A loaded model, and a fresh engine for every run."""

    def __init__(self, subject: Subject, settings: Settings, config: SchedulerConfig) -> None:
        self.subject = subject
        self.config = config
        self.title = f"{subject.name}, this machine, {settings.num_threads} threads"

    def run(self, config: SchedulerConfig, workload: Workload, recorder: Recorder) -> dict[str, list[int]]:
        recorder.use_clock(perf_counter)
        outputs = play(self._engine(config, recorder), workload)
        return {name: list(output.outputs[0].token_ids) for name, output in outputs.items()}

    def _engine(self, config: SchedulerConfig, recorder: Recorder) -> Engine:
        return replace(self.subject, limits=config, tokenizer=None).engine(recorder)


def limits(subject: Subject, *, max_num_seqs: int, num_blocks: int | None) -> SchedulerConfig:
    """The subject's limits, with a smaller batch and perhaps a smaller pool."""
    changes: dict[str, int] = {"max_num_seqs": max_num_seqs}
    if num_blocks is not None:
        changes["num_blocks"] = num_blocks
    return replace(subject.limits, **changes)  # type: ignore[arg-type]
