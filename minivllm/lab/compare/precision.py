"""Precisions side by side: what each takes, how fast it is, what it loses; and are the articles right?

    a model that can talk ──► each variant ──► KL to float32, perplexity, greedy tokens kept    (quality)
    a model that is large ──► each variant ──► prompt, one stream, batch: tokens a second       (speed)

Two models, because quality needs one that was trained, and the shipped one is so small that its weights fit
into the processor's cache, where fewer bytes save no time. Quality is judged on text that was in no
calibration; for the built-in calibration these are documents that the shipped model never saw, either.

Run it: `minivllm compare precision`. Read next: `precision_variants.py`, then `precision_report.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from minivllm.engine.create_engine import load_torch_executor
from minivllm.engine.engine_args import EngineArgs
from minivllm.executor.torch_executor import TorchExecutor
from minivllm.executor.warm_up import compiling_first
from minivllm.lab.compare.precision_clipping import ClippingRow, compare_clipping
from minivllm.lab.compare.precision_quality import (
    BLOCK_SIZE,
    Quality,
    Scores,
    compare,
    most_texts,
    num_blocks_needed,
    score,
)
from minivllm.lab.compare.precision_speed import Speed, base_dtype, matrix_bytes, measure_speed
from minivllm.lab.compare.precision_variants import REFERENCE, Variant, choose_variants
from minivllm.lab.subjects.settings import check_threads, usable_cores
from minivllm.lab.subjects.shapes import SHAPES, write_checkpoint
from minivllm.model.config import ModelConfig
from minivllm.model.hub import resolve_model
from minivllm.model.quantization.texts import BUILTIN, HELD_OUT, read_samples, read_texts
from minivllm.model.tokenizer import Tokenizer
from minivllm.quantize import Calibration, plan_quantization, quantize
from minivllm.scratch import ScratchFolder
from minivllm.validation import check_choice, check_input_file, check_integer

Progress = Callable[[str, float], None]
USUAL_TEXTS = 48
NO_SPEED = "none"
SPEED_MODELS = (*SHAPES, NO_SPEED)


@dataclass(frozen=True)
class PrecisionSettings:
    """What is compared, and on what.

    Attributes:
        model: a folder or a hub id, that can talk.
        speed_model: the random shape whose speed is measured; "none" leaves speed out.
        variants: names with commas; all if "".
        text: a file that quality is judged on; None: the built-in held-out documents.
        num_texts: how many texts of it; None: `USUAL_TEXTS`, or all if there are fewer.
        num_samples: of the calibration of AWQ, GPTQ and SmoothQuant.
        with_clipping: also compare AWQ's clippings, calibrated on little.
    """

    model: str | Path
    speed_model: str = "medium"
    variants: str = ""
    text: Path | None = None
    num_texts: int | None = None
    num_samples: int = 128
    backend: str = "auto"
    threads: int | None = None
    seed: int = 0
    with_clipping: bool = True

    def __post_init__(self) -> None:
        check_choice("speed_model", self.speed_model, SPEED_MODELS)
        if self.num_texts is not None:
            check_integer("texts", self.num_texts, at_least=1)
        check_integer("samples", self.num_samples, at_least=2)
        check_integer("seed", self.seed, at_least=0)
        if self.threads is not None:
            check_threads(self.threads)
        choose_variants(self.variants)
        if self.text is not None:
            check_input_file("text", self.text)


@dataclass(frozen=True)
class PrecisionRow:
    """One variant: what it takes, what it loses, how fast it is.

    Attributes:
        weight_bytes, matrix_bytes: of the model that quality is judged on: in memory as it computes, and of
            this the layers' matrices.
        skipped: why it was left out; then all numbers are None.
    """

    variant: Variant
    weight_bytes: int | None = None
    matrix_bytes: int | None = None
    cache_bytes_per_token: int | None = None
    quality: Quality | None = None
    speed: Speed | None = None
    skipped: str = ""


@dataclass(frozen=True)
class PrecisionComparison:
    """Everything, with the names of the models and of the text.

    Attributes:
        base_dtype: what is not rounded where speed is measured, and what speeds are compared with.
    """

    model: str
    speed_model: str
    text: str
    num_texts: int
    num_tokens: int
    num_threads: int
    base_dtype: str
    rows: list[PrecisionRow]
    clipping: list[ClippingRow]

    def row(self, name: str) -> PrecisionRow | None:
        """The row of that name, if it was measured."""
        found = (row for row in self.rows if row.variant.name == name and not row.skipped)
        return next(found, None)


def compare_precision(
    settings: PrecisionSettings, progress: Progress = lambda what, done: None
) -> PrecisionComparison:
    """Measure every variant.

    Raises:
        ValueError: the model or the text cannot be read, or the model is quantised already.
    """
    folder = resolve_model(settings.model)
    config = ModelConfig.from_folder(folder)
    if config.quantization:
        raise ValueError(f"model {folder} is quantised already; compare the original checkpoint's precisions")
    texts = held_out_texts(settings, folder, config)
    chosen = choose_variants(settings.variants)
    threads_before = torch.get_num_threads()
    torch.set_num_threads(settings.threads or usable_cores())
    try:
        with compiling_first(), ScratchFolder("precision") as scratch:
            work = _Work(settings, folder, scratch, texts)
            rows = [_row(work, variant, progress, n / len(chosen)) for n, variant in enumerate(chosen)]
            clipping = compare_clipping(work.reference, folder, texts) if settings.with_clipping else []
        num_threads = torch.get_num_threads()
    finally:
        torch.set_num_threads(threads_before)
    return PrecisionComparison(
        folder.name, settings.speed_model, _name_of_text(settings), len(texts), sum(map(len, texts)),
        num_threads, base_dtype(), rows, clipping,
    )  # fmt: skip


def held_out_texts(settings: PrecisionSettings, folder: Path, config: ModelConfig) -> list[list[int]]:
    """What quality is judged on, as token ids.

    Raises:
        ValueError: there is no tokenizer, or no text; or it is the one that calibration uses.
    """
    if not (folder / "tokenizer.json").is_file():
        raise ValueError(f"{folder} has no tokenizer.json, and quality is judged on text")
    encode = Tokenizer.from_folder(folder).encode
    source = settings.text or HELD_OUT
    if settings.text is not None and set(read_texts(Path(source), "text")) & set(read_texts(BUILTIN)):
        raise ValueError(f"text: {source} has documents that the built-in calibration uses: take others")
    samples = read_samples(
        source,
        encode,
        num_samples=settings.num_texts or USUAL_TEXTS,
        seq_len=config.max_model_len,
        seed=settings.seed,
        name="text",
    )
    if settings.num_texts is not None and settings.num_texts > len(samples):
        raise ValueError(
            f"texts must be at most the {len(samples)} that {source} has, got {settings.num_texts}"
        )
    texts = most_texts(samples, config.vocab_size)
    if not texts:
        raise ValueError(f"text: {source} has no text of four tokens or more")
    return texts


class _Work:
    """What the variants have in common: folders, texts, the reference's scores, speeds measured so far."""

    def __init__(
        self, settings: PrecisionSettings, folder: Path, scratch: Path, texts: list[list[int]]
    ) -> None:
        self.settings, self.folder, self.scratch, self.texts = settings, folder, scratch, texts
        self.speeds: dict[str, Speed] = {}
        self.reference: Scores = score(self.executor(folder, {"dtype": "float32"}), texts)
        self.speed_folder = None
        if settings.speed_model != NO_SPEED:
            self.speed_folder = write_checkpoint(settings.speed_model, scratch / settings.speed_model)

    def executor(self, folder: Path, settings: dict[str, object]) -> TorchExecutor:
        return load_torch_executor(
            EngineArgs(
                folder,
                block_size=BLOCK_SIZE,
                num_gpu_blocks_override=num_blocks_needed(self.texts),
                attention_backend=self.settings.backend,
                **settings,  # type: ignore[arg-type]  # names and values are those of the variants
            )
        )


def _row(work: _Work, variant: Variant, progress: Progress, done: float) -> PrecisionRow:
    if variant.lacking:
        return PrecisionRow(variant, skipped=f"this version has no {variant.lacking}")
    progress(f"{variant.name}: quality", done)
    folder = work.folder
    if variant.method is not None:
        method, options = variant.method
        num_samples = 2 if method == "rtn" else work.settings.num_samples  # rounding looks at none
        calibration = Calibration(num_samples=num_samples, seed=work.settings.seed)
        plan = plan_quantization(work.folder, method, calibration, **options)
        folder = quantize(plan, work.scratch / variant.name.replace(" ", "-")).folder
    executor = work.executor(folder, {"dtype": "float32", **variant.settings})
    own = work.reference if variant.name == REFERENCE else score(executor, work.texts)
    row = PrecisionRow(
        variant,
        executor.decoder.num_bytes,
        matrix_bytes(executor.decoder),
        executor.storage.bytes_per_token,
        compare(own, work.reference),
    )
    del executor
    progress(f"{variant.name}: speed", done)
    return _with_speed(work, row)


def _with_speed(work: _Work, row: PrecisionRow) -> PrecisionRow:
    if work.speed_folder is None:
        return row
    measured = row.variant.speed_of or row.variant.name
    if measured not in work.speeds:
        variant = next(one for one in choose_variants("") if one.name == measured)
        work.speeds[measured] = measure_speed(work.speed_folder, variant, work.settings.backend)
    return PrecisionRow(
        row.variant, row.weight_bytes, row.matrix_bytes, row.cache_bytes_per_token, row.quality,
        work.speeds[measured],
    )  # fmt: skip


def _name_of_text(settings: PrecisionSettings) -> str:
    return "the built-in held-out documents" if settings.text is None else str(settings.text)
