"""The judge: plays stories with the learner's code until a property breaks, and tells what it sees.

It is a process of its own, `python -m lessons.judge LESSON FILE`, and says what happens as lines of JSON,
because the learner's code may do anything to the process that it runs in:

    loaded ─► case of P1 … ─► judged: P1 passed ─► case of P2 … ─► judged: P2 failed, steps, expected …

Stories are drawn by Hypothesis, from another seed each time; those that failed before come first. Shrinking
stops after a few seconds with the shortest story so far: an answer soon is worth more than the shortest ever.

Read next: `runner.py`, which starts and watches it.
"""

from __future__ import annotations

import io
import json
import os
import random
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from types import ModuleType
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.errors import HypothesisException

from lessons import guard
from lessons.catalogue import Lesson, find_lesson
from lessons.guard import Printed, TooLong, guarded
from lessons.loading import SUBJECT, load_module, load_properties
from lessons.shape import missing_parts
from lessons.story import Broken, Property, Story

SHRINK_SECONDS = 4.0
IMPORT_SECONDS = 10.0
PASSED, FAILED, UNWRITTEN = "passed", "failed", "unwritten"

Tell = Callable[[dict[str, Any]], None]


class Enough(BaseException):
    """Stop playing: the answer is known. Hypothesis lets it through."""


@dataclass
class Verdict:
    """What came of one property."""

    number: str
    status: str
    stories: int = 0
    missing: str = ""
    """The function that is still to be written."""
    case: Any = None
    story: Story | None = None
    expected: str = ""
    got: str = ""
    where: str = ""
    printed: str = ""
    size: tuple[int, int] = field(default=(0, 0), repr=False)

    def to_data(self) -> dict[str, Any]:
        """For the runner."""
        return {name: value for name, value in vars(self).items() if name not in ("story", "size")}


def judge_property(
    prop: Property,
    file: str,
    *,
    earlier: Sequence[Any] = (),
    number_of_seed: int = 0,
    shrink: bool = True,
    playing: Callable[[Any], None] = lambda case: None,
) -> Verdict:
    """Play stories until one breaks the property or all are told.

    Args:
        file: of the code that is judged; an error there is the learner's.
        earlier: cases that failed before, to be tried first.
        playing: told of each case before it is played.
    """
    counted = 0
    best: Verdict | None = None
    give_up = float("inf")

    def play(case: Any) -> None:
        nonlocal counted, best, give_up
        counted += 1
        playing(case)
        found = play_once(prop, case, file)
        if found is None:
            if monotonic() > give_up:
                raise Enough
            return
        if found.status == UNWRITTEN:
            best = found
            raise Enough
        if best is None or found.size <= best.size:
            best = found
        give_up = min(give_up, monotonic() + SHRINK_SECONDS)
        if not shrink or monotonic() > give_up:
            raise Enough
        raise Broken(found.expected, found.got)

    @seed(number_of_seed)
    @settings(
        max_examples=prop.examples,
        deadline=None,
        database=None,
        report_multiple_bugs=False,
        print_blob=False,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )
    @given(prop.cases)
    def run(case: Any) -> None:
        play(json.loads(json.dumps(case)))

    try:
        for case in earlier:
            try:
                play(case)
            except Broken:
                raise Enough from None
        run()
    except (Enough, Broken):
        pass
    except HypothesisException:
        # A solution may fail one time and not another; but a property that plays nothing must not pass.
        if best is None:
            raise
    if best is None:
        return Verdict(prop.number, PASSED, counted)
    best.stories = counted
    return best


def play_once(prop: Property, case: Any, file: str) -> Verdict | None:
    """Play one story; None if the property held."""
    story, printed = Story(), Printed()
    verdict = Verdict(prop.number, FAILED, case=case, story=story)
    try:
        with guarded(prop.seconds, printed):
            prop.play(case, story)
        return None
    except Broken as broken:
        verdict.expected, verdict.got = broken.expected, broken.got
    except NotImplementedError as error:
        verdict.missing = _function_of(error, file)
        if verdict.missing:
            verdict.status = UNWRITTEN
        verdict.expected, verdict.got = "an answer", "NotImplementedError"
    except TooLong as error:
        verdict.expected = "an answer"
        verdict.got = f"none within {prop.seconds:g} seconds: does a loop never end?"
        verdict.where = _line_of(error, file)
    except SystemExit as error:
        verdict.expected, verdict.got = "an answer", f"a call of sys.exit({error.code!r})"
        verdict.where = _line_of(error, file)
    except (Exception, KeyboardInterrupt) as error:
        verdict.where = _line_of(error, file)
        blame = "" if verdict.where else ", when the check used what your code gave back"
        verdict.expected, verdict.got = "an answer", f"{type(error).__name__}: {_words(error)}{blame}"
    story.stopped(f"expected {verdict.expected}, got {verdict.got}")
    verdict.printed = printed.getvalue()
    verdict.size = (len(story.steps), len(json.dumps(case)))
    return verdict


def _words(error: BaseException) -> str:
    try:
        return str(error)[:300] or "without a word"
    except Exception:
        return "without a word that can be read"


def _frames(error: BaseException, file: str) -> list[traceback.FrameSummary]:
    return [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]


def _line_of(error: BaseException, file: str) -> str:
    """Where in the learner's file it came from, in words; "" if it did not."""
    frames = _frames(error, file)
    if not frames:
        return ""
    last = frames[-1]
    return f"line {last.lineno}, in {last.name}: {last.line}"


def _function_of(error: BaseException, file: str) -> str:
    """The function that raised it, if it is the learner's."""
    trace = error.__traceback__
    while trace and trace.tb_next:
        trace = trace.tb_next
    code = trace.tb_frame.f_code if trace else None
    return code.co_qualname if code and code.co_filename == file else ""


# ── the process ───────────────────────────────────────────────────────────────────────────────────────


def load_subject(path: Path, source: str) -> ModuleType:
    """The learner's file as a module; raises whatever it raises, or `TooLong`."""
    with guarded(IMPORT_SECONDS, Printed()):
        return load_module(path, SUBJECT, source)


def judge(lesson: Lesson, path: Path, tell: Tell, earlier: Mapping[str, Sequence[Any]], shrink: bool) -> None:
    """Judge a file, property by property, up to the first that fails."""
    guard.WORK[:] = [str(path)]
    try:
        source = path.read_text(encoding="utf-8")
        for line, name in guard.refused_imports(source):
            raise guard.Refused(f"the solution must be your own: it may not import {name} (line {line})")
        subject = load_subject(path, source)
    except BaseException as error:
        tell({"event": "not importable", "error": import_problem(error, path), "raw": traceback.format_exc()})
        return
    missing = missing_parts(lesson.exercise.read_text(encoding="utf-8"), subject)
    properties = load_properties(lesson, subject)
    told = [(prop.number, prop.name, prop.sentence) for prop in properties]
    tell({"event": "loaded", "missing": missing, "properties": told})
    if missing:
        return
    number_of_seed = random.SystemRandom().randrange(2**32)
    for prop in properties:

        def playing(case: Any, number: str = prop.number) -> None:
            tell({"event": "case", "number": number, "case": case})

        verdict = judge_property(
            prop,
            str(path),
            earlier=earlier.get(prop.name, ()),
            number_of_seed=number_of_seed,
            shrink=shrink,
            playing=playing,
        )
        tell({"event": "judged", **verdict.to_data(), "steps": _steps(verdict), "kernels": _kernels(verdict)})
        if verdict.status == FAILED:
            return


def _steps(verdict: Verdict) -> list[Any]:
    import msgspec

    return msgspec.to_builtins(verdict.story.steps) if verdict.story else []


def _kernels(verdict: Verdict) -> str:
    """The learner's kernel under the microscope, in a file that the runner takes over."""
    if not verdict.story or not verdict.story.kernels:
        return ""
    from lessons.kernels import keep_kernels

    return keep_kernels(verdict.story)


def import_problem(error: BaseException, path: Path) -> str:
    """Why a file cannot be judged, in a sentence."""
    if isinstance(error, SyntaxError):
        line = f"line {error.lineno}" if error.lineno else "somewhere"
        return f"Python cannot read it: {error.msg} ({line}: {(error.text or '').strip()})"
    if isinstance(error, UnicodeDecodeError):
        return f"it is not a text in UTF-8: {error.reason} at byte {error.start}"
    if isinstance(error, OSError) and not isinstance(error, ImportError) and not _frames(error, str(path)):
        return f"it cannot be read: {error.strerror}"
    where = _line_of(error, str(path))
    at = f" ({where})" if where else ""
    if isinstance(error, guard.Refused):
        return f"{_words(error)}{at}"
    if isinstance(error, TooLong):
        return f"importing it took more than {IMPORT_SECONDS:g} seconds: does a loop never end?{at}"
    if isinstance(error, SystemExit):
        return f"it calls sys.exit({error.code!r}) when it is imported{at}"
    return f"importing it raised {type(error).__name__}: {_words(error)}{at}"


def main(arguments: Sequence[str]) -> None:
    """`LESSON FILE`, and on standard input `{"earlier": …, "shrink": …}`."""
    lesson, path = find_lesson(arguments[0]), Path(arguments[1])
    wishes = json.loads(sys.stdin.readline() or "{}")
    # Our words go to the real standard output; whatever the learner's code writes there goes nowhere.
    channel = os.fdopen(os.dup(1), "wb", buffering=0)
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, *(() if os.environ.get("MINIVLLM_DEBUG") else (2,))):
        os.dup2(nowhere, stream)
    sys.stdin = io.StringIO()
    guard.forbid_reading()

    def tell(message: dict[str, Any]) -> None:
        channel.write(json.dumps(message).encode() + b"\n")

    judge(lesson, path, tell, wishes.get("earlier", {}), wishes.get("shrink", True))
    tell({"event": "done"})


if __name__ == "__main__":
    main(sys.argv[1:])
