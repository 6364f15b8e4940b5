"""Kernels in lessons: run under the microscope, judged by what it saw, and kept as traces for the dashboard.

A check runs the learner's kernel by `run_kernel`. What goes wrong in it becomes a sentence of the story, with
the threads and the learner's line; what was seen goes to the story, and from there into a file beside it, so
that `minivllm lesson see` can show every access. A kernel that broke off has left nothing to be seen.

Read next: `kernels_numba/microscope/observation.py`.
"""

from __future__ import annotations

import inspect
import linecache
import re
import tempfile
import traceback
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from shutil import copyfile
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernels_numba.microscope import (
    BarrierMismatch,
    KernelFault,
    NotUnderstood,
    Observation,
    OutOfBounds,
    TooLong,
    observe,
)
from kernels_numba.microscope.accesses import READ
from lessons.device_rules import not_for_a_device
from lessons.story import CRASH, ENDLESS, Story
from minivllm.lab.microscope.record import kernel_trace
from minivllm.trace.kernel_events import KernelTrace, write_kernel_traces

MOST_ACCESSES = 500_000
"""Of a kernel in a check: a hundred times what its small arrays need, and a second or two."""
RACE, UNWRITTEN, POISON = "race", "unwritten", "poison"
BARRIER, OUT_OF_BOUNDS = "barrier", "out of bounds"
"""Symptoms of kernels, beside those of `story.py`."""
SYMPTOMS = {OutOfBounds: OUT_OF_BOUNDS, BarrierMismatch: BARRIER, TooLong: ENDLESS, NotUnderstood: CRASH}
RIGHT = {
    OutOfBounds: "indices inside of the arrays",
    BarrierMismatch: "all threads of a block at every barrier",
    TooLong: "a kernel that ends",
    NotUnderstood: "a kernel that the microscope understands",
    RACE: "a barrier between two threads that touch one cell, one of them to write",
    UNWRITTEN: "no read of shared memory before it is written",
    POISON: "no read of a cell that holds nothing",
}
"""What should have been, by what went wrong."""


def run_kernel(
    story: Story,
    kernel: Any,
    grid: Sequence[int],
    block: Sequence[int],
    arguments: Mapping[str, Any],
    poison: Mapping[str, Any] | None = None,
    count: bool = False,
) -> Observation:
    """Run the kernel that is judged, thread by thread, on any machine.

    Args:
        arguments: by the names of the exercise, in its order; a learner may have renamed them.
        poison: by the same names, True for each cell that must not be read before it is written.
        count: count its floating-point operations, too.

    Raises:
        Broken: it was broken off, or cannot be run; what it raises itself goes through.
    """
    plain = getattr(kernel, "py_func", kernel)
    story.expect(inspect.isfunction(plain), "a kernel: a function under @cuda.jit", plain)
    too_much = not_for_a_device(plain)
    story.expect(not too_much, "a kernel that a GPU can run", too_much)
    names = list(inspect.signature(plain).parameters)
    wanted = ", ".join(arguments)
    story.expect(len(names) == len(arguments), f"a kernel that takes ({wanted})", f"({', '.join(names)})")
    own_names = dict(zip(arguments, names, strict=True))
    marked = {own_names[name]: cells for name, cells in (poison or {}).items()}
    given = arguments.values()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # 0 / 0 is a number here, as on a GPU
            most = MOST_ACCESSES
            seen = observe(kernel, grid, block, *given, poison=marked, max_accesses=most, count=count)
    except KernelFault as fault:
        words = with_lines(_with_place(fault, plain.__code__.co_filename), plain.__code__.co_filename)
        right, symptom = RIGHT.get(type(fault)), SYMPTOMS.get(type(fault), CRASH)
        story.expect(False, right or "a kernel that runs to its end", words, symptom)
        raise
    story.kernels.append(seen)
    return seen


def expect_no_fault(story: Story, seen: Observation) -> None:
    """Go on only if the microscope saw no race, and no read of unwritten or poisoned cells.

    Raises:
        Broken: with the first fault.
    """
    for fault in seen.faults:
        words = with_lines(fault.message, fault.places[0].file)
        story.expect(False, RIGHT.get(fault.kind, "a kernel without faults"), words, fault.kind)


def first_fault(seen: Observation) -> str:
    """What may be the reason for a wrong answer, in words; "" if the microscope saw nothing."""
    return next((f"; {with_lines(fault.message, fault.places[0].file)}" for fault in seen.faults), "")


def times_written(seen: Observation, array: int) -> NDArray[np.int64]:
    """How often each cell of an array was written; arguments that are arrays are numbered from 0."""
    columns, shape = seen.columns, seen.arrays[array].shape
    chosen = (columns["array"] == array) & (columns["kind"] != READ)
    ends = columns["first"][chosen] + columns["count"][chosen]
    times = np.zeros(int(np.prod(shape)) + 1, np.int64)
    np.add.at(times, columns["first"][chosen], 1)
    np.add.at(times, ends, -1)
    return np.cumsum(times)[:-1].reshape(shape)


def describe_access(seen: Observation, access: int, words: str) -> str:
    """An access as a sentence: the thread, what it does (`words`), and the line."""
    place = seen.places[int(seen.columns["position"][access])]
    block, thread = (int(seen.columns[name][access]) for name in ("block", "thread"))
    return with_lines(f"thread {thread} of block {block} {words} ({place})", place.file)


def with_lines(message: str, file: str) -> str:
    """A message that speaks of lines, and what stands in them."""
    lines = dict.fromkeys(int(number) for number in re.findall(r"\bline (\d+)", message))
    texts = {number: linecache.getline(file, number).strip() for number in lines}
    quoted = [f"line {number}: {text}" for number, text in texts.items() if text]
    return " · ".join([message, *quoted])


def _with_place(fault: KernelFault, file: str) -> str:
    """What a fault says, and in which line of the kernel if it does not say that itself."""
    frames = [frame.lineno for frame in traceback.extract_tb(fault.__traceback__) if frame.filename == file]
    says_it = re.search(r"\bline \d", str(fault))
    return str(fault) if says_it or not frames else f"{fault} (line {frames[-1]})"


# ── traces beside a story ─────────────────────────────────────────────────────────────────────────────


def keep_kernels(story: Story) -> str:
    """Write the kernels of a story to a temporary file, and say which. It goes with the runner's result."""
    folder = Path(tempfile.mkdtemp())
    write_kernel_traces(folder / "kernels.jsonl", _traces(story.kernels, "your kernel"))
    return str(folder / "kernels.jsonl")


def write_kernels(path: Path, kept: str, twin: Story) -> tuple[str, str]:
    """Put the learner's kernels and the reference's beside the story; returns the files' names."""
    stem = path.name.removesuffix(".story.jsonl")
    yours, reference = path.with_name(f"{stem}.yours.jsonl"), path.with_name(f"{stem}.reference.jsonl")
    yours.parent.mkdir(parents=True, exist_ok=True)
    copyfile(kept, yours)
    write_kernel_traces(reference, _traces(twin.kernels, "the reference"))
    return yours.name, reference.name


def _traces(observations: Sequence[Observation], title: str) -> list[KernelTrace]:
    return [kernel_trace(seen, title, number) for number, seen in enumerate(observations)]
