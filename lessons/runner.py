"""The runner: has a solution judged in a process of its own, and knows an answer whatever happens to that.

    check ─► judge (a process) ─► verdicts, one by one ─► what failed, beside the reference ─► a story
                                                     └─► all passed: the judge's own trial

The process may hang where Python cannot interrupt it, or die; both are noticed here, and told as a sentence.
It may also have been tampered with; that is for `trial.py`. A story that failed is played again in a process
in which there was no other story: if it holds there, something is shared between the learner's objects.

Read next: `trial.py`; `report.py`, which prints what is found; `comparing.py`, which plays the reference.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lessons.catalogue import Lesson
from lessons.judge_process import JudgeProcess
from lessons.seal import edited_files
from lessons.shrinking import SHRINK_SECONDS
from lessons.trial import Trial, make_trial
from minivllm.scratch import ScratchFolder

PASSED, FAILED, NOT_STARTED, NOT_IMPORTABLE = 0, 1, 2, 3
SHARE = 1.0
"""Of a property's small stories that are told. A test that is about something else makes do with a part."""


def new_seed() -> int:
    """What stories are drawn from: others each time. Where few are told, it may be luck what they catch."""
    return random.SystemRandom().randrange(2**32)


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
    symptoms: list[str] = field(default_factory=list)
    """How it failed, the most telling first: words of `story.py`."""
    printed: str = ""
    kernels: str = ""
    holds_alone: bool = False
    """The story failed, but holds in a process in which no other was played before it."""
    unplayable: list[Any] = field(default_factory=list)
    """Cases kept from before that the right solution cannot play either: they mean nothing."""
    fault: str = ""
    """What stopped the right solution in this story. Then the judge is at fault."""


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
    tampering: str = ""
    """Why this pass is worth nothing, in a sentence."""
    scratch: ScratchFolder = field(default_factory=lambda: ScratchFolder("judge"), repr=False)
    """What the judge has written, as long as the result is held: kernels of a story."""

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
    if path.exists() and not path.is_file():
        raise ValueError(f"{path} is not a file")
    if not path.is_file():
        raise ValueError(f"there is no {path} yet: `minivllm lesson start {lesson.number}` makes it")
    need_test_extra()
    if not even_if_edited and (edited := edited_files(lesson)):
        raise ValueError(
            f"{', '.join(edited)} is not as it was released, and judging by it would mean nothing. "
            f"`git checkout -- lessons` brings it back; `--edited` judges by it all the same"
        )
    result = Result(lesson, path.resolve())
    wishes = {
        "earlier": earlier or {},
        "shrink": SHRINK_SECONDS if shrink else 0,
        "share": SHARE,
        "number_of_seed": new_seed(),
    }
    last: dict[str, Any] = {}
    with JudgeProcess(lesson, result.path, wishes, result.scratch.path) as judge:
        for message in judge.words():
            if message["event"] == "all passed":
                result.tampering = _try_judge(judge, make_trial(lesson))
                break
            _take(result, message, last)
            progress(result)
    if result.failed and result.failed.steps:
        result.failed.holds_alone = _holds_alone(result)
    result.code = _code(result)
    return result


def _try_judge(judge: JudgeProcess, trial: Trial) -> str:
    """What is wrong with the judge after it has passed a solution; "" if nothing is."""
    answers: list[bool] = []
    judge.tell(trial.to_data())
    for message in judge.words():
        if message["event"] == "tried":
            answers.append(message["passes"])
        elif message["event"] == "done":
            return trial.problem(answers, message["secret"])
        else:
            return "words were put into the judge's mouth"
    return trial.problem(answers, "")


def _holds_alone(result: Result) -> bool:
    """Does the story that failed hold in a process in which it is the first?"""
    assert result.failed is not None
    wishes = {"once": [result.failed.number, result.failed.case]}
    with JudgeProcess(result.lesson, result.path, wishes, result.scratch.path) as judge:
        return any(message["event"] == "once" and message["holds"] for message in judge.words())


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
        if outcome.status not in ("waiting", "playing"):
            result.tampering = "it judges a property that it has judged already"
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
    if result.missing or result.tampering or "failed" in statuses:
        return FAILED
    if all(status == "passed" for status in statuses):
        return PASSED
    return FAILED if "passed" in statuses else NOT_STARTED
