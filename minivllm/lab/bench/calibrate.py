"""Measure this machine, so that the simulator can take its place: `minivllm calibrate`.

    workloads of every kind ──► the real engine ──► traces ──► fit ──► a hardware card
    a workload of another kind ──► the real engine ──► a trace ──► how wrong is the card?

The steps that the card is judged by are never those that it was made from. Prompts are computed whole and in
chunks, alone and beside decodes; batches go from one sequence to all that fit; contexts from a few tokens to
the model's longest.

Read next: `minivllm/lab/simulation/fit.py`.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import NamedTuple

from minivllm.files import write_file
from minivllm.lab.simulation.cards import HardwareCard, ModelCard, model_card
from minivllm.lab.simulation.fit import Sample, fit_card, relative_errors, samples_of
from minivllm.lab.subjects.real_time import play
from minivllm.lab.subjects.settings import Settings
from minivllm.lab.subjects.subject import Subject, open_subject
from minivllm.lab.workloads.parse import parse_workload
from minivllm.trace.reader import make_trace
from minivllm.trace.recorder import Recorder
from minivllm.trace.summary import percentiles
from minivllm.trace.timeline import make_timeline


class Run(NamedTuple):
    """One workload to be measured."""

    workload: str
    num_requests: int
    num_users: int
    """Of a closed loop: as many sequences in a batch."""
    max_num_batched_tokens: int


FITTED = (
    Run("uniform:8-120,8-40", 12, 1, 2048),
    Run("uniform:8-300,16-60", 16, 3, 2048),
    Run("uniform:100-700,16-60", 16, 6, 128),
    Run("uniform:8-300,16-60", 40, 12, 64),
    Run("uniform:8-200,16-60", 60, 24, 512),
    Run("uniform:8-300,16-60", 100, 48, 2048),
    Run("fixed:600,24", 16, 8, 2048),
    Run("uniform:4-40,40-80", 100, 64, 256),
)
JUDGED = (
    Run("alpaca", 60, 10, 256),
    Run("sharegpt", 24, 16, 512),
    Run("uniform:16-500,8-50", 60, 32, 1024),
    Run("uniform:30-90,10-90", 16, 2, 2048),
)


@dataclass(frozen=True)
class Calibration:
    """The result: a card, and by how much its steps differ from real ones that it has not seen."""

    card: HardwareCard
    model: ModelCard
    num_fitted: int
    num_judged: int
    errors: dict[str, tuple[int, float, float]]
    """Kind of step → (steps, median, p90) of |simulated - real| / real."""

    @property
    def median_error(self) -> float:
        return self.errors["all steps"][1]

    def write(self, path: Path) -> None:
        """Write the card, for `hardware_card(path)`. Raises `CannotWrite` if that cannot be."""
        write_file(path, json.dumps(asdict(self.card), indent=1) + "\n", "out")


def calibrate(settings: Settings, progress: Callable[[str], None] = lambda what: None) -> Calibration:
    """Measure this machine with the model that the settings name."""
    with open_subject(settings) as subject:
        card_of_model = model_card(str(subject.folder))
        measure(subject, Run("fixed:50,10", 4, 4, 2048), 0)  # the first steps of a model are slower
        fitted: list[Sample] = []
        for number, run in enumerate(FITTED):
            progress(f"measuring {run.workload}, {run.num_users} at a time")
            fitted += measure(subject, run, settings.seed + number)
        judged: list[Sample] = []
        for number, run in enumerate(JUDGED):
            progress(f"checking {run.workload}, {run.num_users} at a time")
            judged += measure(subject, run, settings.seed + 100 + number)
        progress("fitting")
        storage = subject.executor.storage
        card = fit_card(
            fitted,
            card_of_model,
            title=f"this CPU, {settings.num_threads} threads, {subject.name}",
            memory_bytes=float(
                storage.num_blocks * storage.block_size * card_of_model.kv_bytes_per_token
                + card_of_model.weight_bytes
            )
            / 0.9,
        )
    return Calibration(card, card_of_model, len(fitted), len(judged), judge(card, card_of_model, judged))


def measure(subject: Subject, run: Run, seed: int) -> list[Sample]:
    """Play one workload on a fresh engine; returns its steps."""
    limits = subject.limits
    config = replace(limits, max_num_batched_tokens=run.max_num_batched_tokens)
    workload = parse_workload(
        run.workload,
        vocab_size=subject.executor.config.vocab_size,
        num_requests=run.num_requests,
        num_users=run.num_users,
        seed=seed,
        max_model_len=limits.max_model_len,
    )
    recorder = Recorder()
    play(replace(subject, limits=config).engine(recorder), workload)
    recorder.close()
    header, *events = recorder.events
    return samples_of(make_timeline(make_trace(header, events)))  # type: ignore[arg-type]


def judge(card: HardwareCard, model: ModelCard, samples: list[Sample]) -> dict[str, tuple[int, float, float]]:
    """How far the card is off, by kind of step."""
    kinds: dict[str, list[float]] = {"all steps": [], "decodes only": [], "with prompts": []}
    for sample, error in zip(samples, relative_errors(card, model, samples), strict=True):
        decodes_only = sample.shape.num_tokens == sample.shape.num_sequences
        kinds["all steps"].append(abs(error))
        kinds["decodes only" if decodes_only else "with prompts"].append(abs(error))
    return {
        kind: (len(errors), median(errors), percentiles(errors).p90 or 0.0)
        for kind, errors in kinds.items()
        if errors
    }
