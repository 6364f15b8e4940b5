"""The last task of each lesson: write the property that catches this one.

The learner's property is judged by what it says of solutions that we know: it must pass the reference and
right solutions that are written otherwise, and fail the wrong one.

    python -m lessons.catching LESSON FILE        one line of JSON; started by the runner

Read next: `mutant.py`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import unittest
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from lessons.catalogue import Lesson, find_lesson
from lessons.judge_process import written_in
from minivllm.processes import child_command, python_variables
from minivllm.scratch import ScratchFolder

MOST_SECONDS = 300.0
"""A busy machine may need many times as long as one that is alone."""
EXAMPLES = 200
UNTOUCHED, CAUGHT, MISSED, TOO_STRICT, BROKEN = "untouched", "caught", "missed", "too strict", "broken"


@dataclass(frozen=True)
class Catch:
    """What came of the learner's property."""

    status: str
    words: str = ""

    @property
    def is_good(self) -> bool:
        return self.status in (UNTOUCHED, CAUGHT)


def template(lesson: Lesson) -> str:
    """The file to begin with."""
    from lessons.mutant import load_mutants

    wrong = load_mutants(lesson).to_catch
    slyness = "It passes every example that its author thought of.\n" if wrong.sly else ""
    return f'''"""Lesson {lesson.heading()}: write the property that catches this one.

One solution is wrong: {wrong.tells}
{slyness}
Write a test that every right solution passes and this one fails. `subject` is whatever solution is judged.
Then: minivllm lesson check {lesson.number}
"""

from hypothesis import given
from hypothesis import strategies as st

import subject


@given(st.integers(1, 8))
def test_what_must_always_hold(size):
    raise NotImplementedError
'''


def judge_own_property(lesson: Lesson, path: Path) -> Catch:
    """Judge the learner's property, in a process of its own."""
    command = child_command("-m", "lessons.catching", lesson.name, str(path))
    try:
        with ScratchFolder("judge") as scratch:
            done = subprocess.run(
                command,
                env=python_variables(OMP_NUM_THREADS="1", **written_in(scratch)),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=MOST_SECONDS,
                check=False,
                start_new_session=True,
            )
        return Catch(**json.loads(done.stdout.splitlines()[-1]))
    except subprocess.TimeoutExpired:
        return Catch(BROKEN, f"it gave no answer within {MOST_SECONDS:g} seconds")
    except (IndexError, ValueError, TypeError):
        return Catch(BROKEN, f"Python ended with exit code {done.returncode}, without an answer")


def judge_here(lesson: Lesson, path: Path) -> Catch:
    """The same in this process."""
    from lessons.loading import SUBJECT, load_module
    from lessons.mutant import load_mutants
    from lessons.verdict import import_problem

    mutants = load_mutants(lesson)
    reference = lesson.reference.read_text(encoding="utf-8")
    right = [("the reference", reference)]
    right += [(f"a right solution ({variant.name})", variant.source(reference)) for variant in mutants.right]
    for name, source in [*right, ("the wrong one", mutants.to_catch.source(reference))]:
        sys.modules[SUBJECT] = load_module(lesson.reference, SUBJECT, source)
        try:
            tests = list(_tests(load_module(path, "own_property")))
        except BaseException as error:
            return Catch(BROKEN, import_problem(error, path))
        if not tests:
            return Catch(BROKEN, "no test was found: its name begins with test_")
        problem = _first_problem(tests)
        if isinstance(problem, NotImplementedError):
            return Catch(UNTOUCHED)
        if name == "the wrong one":
            return (
                Catch(CAUGHT, _said(problem)) if problem else Catch(MISSED, "the wrong solution passes, too")
            )
        if problem:
            return Catch(TOO_STRICT, f"{name} fails: {_said(problem)}")
    raise AssertionError("the last of them is the wrong one")


def _tests(module: ModuleType) -> Iterator[Callable[[], Any]]:
    for name, thing in vars(module).items():
        if (
            isinstance(thing, type)
            and issubclass(thing, unittest.TestCase)
            and thing.__module__ != "unittest"
        ):
            yield _as_function(thing)
        elif name.startswith("test") and callable(thing):
            yield thing


def _as_function(case: type[unittest.TestCase]) -> Callable[[], None]:
    """Hypothesis offers state machines as test cases."""

    def run() -> None:
        for test in unittest.defaultTestLoader.loadTestsFromTestCase(case):
            test.debug()

    return run


def _first_problem(tests: list[Callable[[], Any]]) -> BaseException | None:
    for test in tests:
        try:
            test()
        except BaseException as error:  # sys.exit, too
            return error
    return None


def _said(error: BaseException | None) -> str:
    lines = str(error).splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__


def main(arguments: list[str]) -> None:
    from hypothesis import HealthCheck, settings

    settings.register_profile(
        "lesson",
        deadline=None,
        database=None,
        max_examples=EXAMPLES,
        print_blob=False,
        suppress_health_check=list(HealthCheck),
    )
    settings.load_profile("lesson")
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_RDWR), 1)
    catch = judge_here(find_lesson(arguments[0]), Path(arguments[1]).resolve())
    channel.write(json.dumps(vars(catch)) + "\n")
    channel.flush()


if __name__ == "__main__":
    main(sys.argv[1:])
