"""The runner: has a solution judged in a process of its own, and knows an answer whatever happens to that.

    check ─► judge (a process) ─► verdicts, one by one ─► what failed, beside the reference ─► a story

The process may hang where Python cannot interrupt it, or die; both are noticed here, and told as a sentence.

Read next: `report.py`, which prints what is found; `comparing.py`, which plays the reference.
"""

from __future__ import annotations

import json
import queue
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lessons.catalogue import Lesson
from lessons.seal import edited_files
from minivllm.processes import child_command, end_group, python_variables

SILENCE_SECONDS = 20.0
"""Longest time without a word from the judge; the longest story and an import take less."""

PASSED, FAILED, NOT_STARTED, NOT_IMPORTABLE = 0, 1, 2, 3


@dataclass
class Outcome:
    """One property: "passed", "failed", "unwritten" or "waiting", and how it failed."""

    number: str
    name: str
    sentence: str
    status: str = "waiting"
    stories: int = 0
    missing: str = ""
    case: Any = None
    steps: list[dict[str, Any]] = field(default_factory=list)
    expected: str = ""
    got: str = ""
    where: str = ""
    printed: str = ""
    kernels: str = ""


@dataclass
class Result:
    """What `check` found."""

    lesson: Lesson
    path: Path
    outcomes: list[Outcome] = field(default_factory=list)
    """Of all properties, in their order; none if the solution could not be imported."""
    code: int = NOT_IMPORTABLE
    problem: str = ""
    """Why it could not be judged (to its end), in a sentence."""
    raw: str = ""
    missing: list[str] = field(default_factory=list)

    @property
    def failed(self) -> Outcome | None:
        return next((outcome for outcome in self.outcomes if outcome.status == "failed"), None)

    @property
    def num_passed(self) -> int:
        return sum(outcome.status == "passed" for outcome in self.outcomes)


Progress = Callable[[Result], None]


def check(
    lesson: Lesson,
    path: Path,
    *,
    earlier: dict[str, Any] | None = None,
    shrink: bool = True,
    progress: Progress = lambda result: None,
    even_if_edited: bool = False,
) -> Result:
    """Judge the solution in `path`.

    Args:
        earlier: cases to try first, by the name of the property.
        shrink: look for the shortest failing story.
        progress: told after each word of the judge.
        even_if_edited: judge by changed checks, too.

    Raises:
        ValueError: there is no such file, the checks were changed, or what they need is not installed.
    """
    if not path.is_file():
        raise ValueError(f"there is no {path} yet: `minivllm lesson start {lesson.number}` makes it")
    need_test_extra()
    if not even_if_edited and (edited := edited_files(lesson)):
        raise ValueError(
            f"{', '.join(edited)} is not as it was released, and judging by it would mean nothing. "
            f"`git checkout -- lessons` brings it back; `--edited` judges by it all the same"
        )
    result = Result(lesson, path.resolve())
    wishes = {"earlier": earlier or {}, "shrink": shrink}
    last: dict[str, Any] = {}
    for message in _words_of_judge(lesson, result.path, wishes):
        _take(result, message, last)
        progress(result)
    result.code = _code(result)
    return result


def need_test_extra() -> None:
    """Properties need Hypothesis, which the engine itself does not.

    Raises:
        ValueError: it is not installed.
    """
    if find_spec("hypothesis") is None:
        raise ValueError(
            'lessons are judged with Hypothesis, which is not installed here: pip install -e ".[test]"'
        )


def _take(result: Result, message: dict[str, Any], last: dict[str, Any]) -> None:
    """One word of the judge."""
    kind = message.pop("event")
    if kind == "not importable":
        result.problem, result.raw = message["error"], message["raw"]
    elif kind == "loaded":
        result.missing = message["missing"]
        result.outcomes = [Outcome(*words) for words in message["properties"]]
    elif kind == "case":
        last.update(message)
        outcome = next(one for one in result.outcomes if one.number == message["number"])
        outcome.status, outcome.stories = "playing", outcome.stories + 1
    elif kind == "judged":
        outcome = next(one for one in result.outcomes if one.number == message["number"])
        for name, value in message.items():
            if hasattr(outcome, name):
                setattr(outcome, name, value)
    elif kind == "lost":
        playing = next((one for one in result.outcomes if one.status == "playing"), None)
        if playing is None:
            result.problem = f"while it was imported, {message['what']}"
        else:
            playing.status, playing.case = "failed", last.get("case")
            playing.expected, playing.got = "an answer", message["what"]


def _code(result: Result) -> int:
    statuses = [outcome.status for outcome in result.outcomes]
    if result.problem:
        return NOT_IMPORTABLE
    if result.missing or "failed" in statuses:
        return FAILED
    if all(status == "passed" for status in statuses):
        return PASSED
    return FAILED if "passed" in statuses else NOT_STARTED


def _words_of_judge(lesson: Lesson, path: Path, wishes: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Run the judge; its words, and a last one of ours if it was lost."""
    environment = python_variables(PYTHONHASHSEED="0", OMP_NUM_THREADS="1", PYTHONDONTWRITEBYTECODE="1")
    command = child_command("-m", "lessons.judge", lesson.name, str(path))
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, start_new_session=True
    ) as process:
        try:
            assert process.stdin is not None and process.stdout is not None
            process.stdin.write(json.dumps(wishes).encode() + b"\n")
            process.stdin.close()
            lines: queue.Queue[bytes] = queue.Queue()
            threading.Thread(target=_read, args=(process.stdout, lines), daemon=True).start()
            yield from _listen(process, lines)
        finally:
            end_group(process.pid)
            process.kill()


def _listen(process: subprocess.Popen[bytes], lines: queue.Queue[bytes]) -> Iterator[dict[str, Any]]:
    while True:
        try:
            line = lines.get(timeout=SILENCE_SECONDS)
        except queue.Empty:
            yield {
                "event": "lost",
                "what": f"none within {SILENCE_SECONDS:g} seconds, uninterruptible: does it sleep, or wait?",
            }
            return
        if not line:
            code = process.wait()
            how = f"signal {-code}" if code < 0 else f"exit code {code}"
            yield {"event": "lost", "what": f"the end of the whole Python process ({how})"}
            return
        message = json.loads(line)
        if message["event"] == "done":
            return
        yield message


def _read(stream: Any, lines: queue.Queue[bytes]) -> None:
    for line in stream:
        lines.put(line)
    lines.put(b"")
