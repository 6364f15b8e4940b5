"""How each sample is made: by the commands of the command line.

The pages read traces and nothing else of the engine, so it is other processes that record them: `minivllm`
`demo`, `microscope`, `compare precision` and `generate`, a lesson's judge, and what the page "Run" starts.
Requests arrive at steps, and seeds are fixed, so that a sample made anew shows the same, at another pace.

Read next: `viz/run_settings.py`.
"""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from minivllm.files import write_file
from minivllm.processes import ROOT, python_variables
from minivllm.scratch import ScratchFolder
from viz.run_process import PROGRAM
from viz.run_settings import RunSettings
from viz.samples import packed_path

LESSON, MUTANT = 5, "leaves_shared_blocks_alone"
Maker = Callable[[Path], Path]
"""Records a trace below a folder, and says where."""


def make(name: str) -> int:
    """Make a sample, and say how many bytes it has.

    Raises:
        subprocess.CalledProcessError: a command failed.
    """
    with ScratchFolder("samples") as folder:
        made = MAKERS[name](folder).read_bytes()
    content = made.replace(f"{ROOT}/".encode(), b"")  # other machines have other folders
    packed = gzip.compress(content, mtime=0)
    write_file(packed_path(name), packed, "samples")
    return len(packed)


def _python(*arguments: str, folder: Path, given: str | None = None, fails: bool = False) -> None:
    done = subprocess.run(
        [sys.executable, "-P", *arguments],
        cwd=folder,
        env=python_variables(MINIVLLM_WORK=str(folder / "work")),
        input=given,
        text=True,
        stdout=subprocess.DEVNULL,
        check=False,
    )
    if done.returncode and not fails:
        raise subprocess.CalledProcessError(done.returncode, arguments)


def _minivllm(*arguments: str) -> Maker:
    """A command that is told where to put its trace."""

    def maker(folder: Path) -> Path:
        path = folder / "made.jsonl"
        _python("-m", "minivllm", *arguments, "--trace", str(path), folder=folder)
        return path

    return maker


def _demo(scenario: str, file_name: str) -> Maker:
    def maker(folder: Path) -> Path:
        _python("-m", "minivllm", "demo", scenario, "--headless", "--out", str(folder), folder=folder)
        return folder / file_name

    return maker


def _run(settings: RunSettings) -> Maker:
    def maker(folder: Path) -> Path:
        path = folder / "made.jsonl"
        # Its stdin stays open until it has ended: the end of that would stop it.
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", PROGRAM],
            cwd=folder,
            env=python_variables(),
            stdin=subprocess.PIPE,
            text=True,
        )
        assert process.stdin is not None
        process.stdin.write(json.dumps(settings.job(str(path))) + "\n")
        process.stdin.flush()
        if code := process.wait():
            raise subprocess.CalledProcessError(code, PROGRAM)
        return path

    return maker


def _story(folder: Path) -> Path:
    """What the judge writes down when it is given a wrong solution of a lesson."""
    from lessons.catalogue import find_lesson
    from lessons.mutant import load_mutants
    from lessons.work import Desk

    lesson = find_lesson(str(LESSON))
    wrong = next(mutant for mutant in load_mutants(lesson).wrong if mutant.name == MUTANT)
    desk = Desk(folder / "work")
    desk.start(lesson)
    source = wrong.source(lesson.reference.read_text(encoding="utf-8"))
    desk.solution(lesson).write_text(source, encoding="utf-8")
    _python("-m", "lessons", "check", str(LESSON), folder=folder, fails=True)
    return desk.story(lesson)


BATCHES = RunSettings(arrive_every=6, num_gpu_blocks_override=64, max_num_seqs=4, max_num_batched_tokens=128)
SIZES = "tokens=64,head_dim=32,rows=8,warps=1"
PATTERN = '{"regex": "[A-Z][a-z]+ is (fast|slow), and [a-z ]{4,30}\\\\."}'
RANK_PROMPTS = ("Once upon a time,", "Question: What is paging?\nAnswer:", "从前，", "A block table is")
RANK_LIMITS = ("--max-tokens", "24", "--num-gpu-blocks-override", "40", "--max-num-batched-tokens", "64")
MAKERS: dict[str, Maker] = {
    "paging": _demo("paging", "trace.jsonl"),
    "sharing": _demo("sharing", "sharing.jsonl"),
    "continuous": _run(BATCHES),
    "static": _run(replace(BATCHES, scheduling_policy="static")),
    "structured": _minivllm(
        "generate", "Paging is", "Once upon a time,", "--structured-outputs", PATTERN,
        "--num-gpu-blocks-override", "24", "--attention-backend", "torch",
    ),
    "speculation": _run(
        RunSettings(
            ("Once upon a time,", "Question: What is paging?\nAnswer:", "从前，"), arrive_every=8,
            num_gpu_blocks_override=40, max_num_batched_tokens=64, max_tokens=80, speculation="draft_model",
        )
    ),
    "tensor-parallel": _minivllm("generate", *RANK_PROMPTS, *RANK_LIMITS, "--tensor-parallel-size", "2"),
    "pipeline-parallel": _minivllm("generate", *RANK_PROMPTS, *RANK_LIMITS, "--pipeline-parallel-size", "2"),
    "paged-attention": _minivllm("microscope", "paged-attention"),
    "naive-attention": _minivllm("microscope", "naive-attention", "--shape", "tokens=16,head_dim=32"),
    "flash-attention-1": _minivllm("microscope", "flash-attention-1", "--shape", SIZES),
    "flash-attention-2": _minivllm("microscope", "flash-attention-2", "--shape", SIZES),
    "story": _story,
    "precision": _minivllm(
        "compare", "precision", "--speed-model", "none", "--texts", "8", "--samples", "8", "--no-clipping",
        "--attention-backend", "torch", "--precisions", "float32,INT8,INT4 RTN,INT4 AWQ,INT4 GPTQ,KV INT8",
    ),
}  # fmt: skip
