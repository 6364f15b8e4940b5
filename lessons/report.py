"""The report: what `check` says, so that one knows what to do next.

    05 Copy-on-write            judging: work/05_copy_on_write.py
     ✔ P1 free + live = total                 200 stories
     ✘ P3 a live block is never free          smallest failing story, 3 steps
         1 allocate s0                        refs=1
         …
       expected: …

Read next: `commands.py`.
"""

from __future__ import annotations

from rich.text import Text

from lessons.catalogue import relative
from lessons.catching import BROKEN, CAUGHT, MISSED, TOO_STRICT, Catch
from lessons.language import in_language
from lessons.runner import FAILED, NOT_STARTED, PASSED, Outcome, Result
from minivllm.terminal import Console

MOST_STEPS = 14
HOLDS_ALONE = "it fails only after other stories: is something shared between your objects?"
WIDTH = 60
CHECK, CROSS, DASH = (" ✔ ", "green"), (" ✘ ", "red"), (" – ", "dim")


def print_head(console: Console, result_title: str, path: str) -> None:
    console.print(Text.assemble((result_title, "bold"), f"   judging: {path}"))


def print_result(
    console: Console, result: Result, raw: bool = False, hint: str = "", language: str = "en"
) -> None:
    """Everything that was found; the path comes first. `hint` says how many there are."""
    print_head(console, result.lesson.heading(language), relative(result.path))
    if result.problem:
        _say(console, CROSS, f"your file could not be judged: {result.problem}")
        if raw and result.raw:
            _say(console, result.raw)
        elif result.raw:
            _say(console, f"   all that Python says: minivllm lesson check {result.lesson.number} --raw")
        return
    for words in result.missing:
        _say(console, CROSS, f"{words}, which the exercise asks for")
    for outcome in result.outcomes:
        _print_outcome(console, result, outcome, hint, language)
    if not result.missing:
        _say(console, f"   {result.num_passed}/{len(result.outcomes)} properties")
    if result.tampering:
        _say(console, CROSS, f"this counts for nothing, the judge was tampered with: {result.tampering}")
    if result.code == NOT_STARTED:
        _say(console, f"   Not started: write {_unwritten(result)} in {relative(result.path)}.")


def print_catch(console: Console, catch: Catch, path: str, hint: str) -> None:
    """What came of the learner's own property."""
    words = catch.words
    if catch.status == CAUGHT:
        _say(console, CHECK, f"your own property catches the wrong solution: {words}")
    elif catch.status in (MISSED, TOO_STRICT):
        _say(console, CROSS, f"your own property ({path}): {words}")
    elif catch.status == BROKEN:
        _say(console, CROSS, f"your own property ({path}) could not be judged: {words}")
    else:
        _say(console, DASH, f"one task is left: in {path}, write the property that catches {hint}")


def _print_outcome(console: Console, result: Result, outcome: Outcome, hint: str, language: str) -> None:
    name = f"{outcome.number} {in_language(result.lesson, outcome.sentence, language)}"
    if outcome.status == "passed":
        _say(console, CHECK, f"{name}   ", (f"{outcome.stories} stories", "dim"))
    elif outcome.status == "unwritten":
        _say(console, DASH, f"{name}   ", (f"`{outcome.missing}` is still to be written", "dim"))
    elif outcome.status == "failed":
        _print_failure(console, result, outcome, name, hint)
    elif result.failed:
        _say(console, DASH, f"{name}   ", (f"waits for {result.failed.number}", "dim"))
    else:
        _say(console, DASH, name)


def _print_failure(console: Console, result: Result, outcome: Outcome, name: str, hint: str) -> None:
    steps = outcome.steps
    length = f"{len(steps)} step{'s' * (len(steps) != 1)}"
    how = f"smallest failing story, {length}" if steps else "failed"
    _say(console, CROSS, f"{name}   ", (how, "bold"))
    before: dict[str, str] = {}
    left_out = len(steps) - MOST_STEPS
    for number, step in enumerate(steps, 1):
        changed = {key: value for key, value in step["facts"].items() if before.get(key) != value}
        before = step["facts"]
        if left_out > 0 and 3 < number <= 3 + left_out:
            if number == 4:
                _say(console, f"     … {left_out} more steps …", style="dim")
            continue
        facts = "  ".join(f"{key}={value}" for key, value in changed.items())
        text = step["text"] + ("," if facts and len(step["text"]) >= WIDTH - 8 else "")
        _say(console, f"     {number} {text:<{WIDTH - 8}} ", (facts, "dim"))
    if not steps and outcome.case is not None:
        _say(console, f"     in this story: {str(outcome.case)[:500]}")
    _say(console, f"   expected: {outcome.expected}")
    _say(console, f"   got     : {outcome.got}")
    if outcome.where:
        _say(console, f"   where   : {outcome.where}")
    if outcome.holds_alone:
        _say(console, f"   but     : {HOLDS_ALONE}")
    if outcome.printed:
        lines = outcome.printed.rstrip().splitlines()
        _say(console, f"   your code printed meanwhile ({len(lines)} line{'s' * (len(lines) != 1)}):")
        for line in lines[:10]:
            _say(console, f"     | {line[:160]}", style="dim")
    lesson = result.lesson.number
    _say(console, f"   see it  : minivllm lesson see {lesson}   (here: --text)")
    _say(console, f"   hint    : minivllm lesson hint {lesson}   {hint}".rstrip())


def _unwritten(result: Result) -> str:
    names = list(dict.fromkeys(outcome.missing for outcome in result.outcomes if outcome.missing))
    return ", ".join(f"`{name}`" for name in names) or "it"


def next_step(result: Result) -> str:
    """What to do now, in a sentence."""
    number = result.lesson.number
    if result.code == PASSED:
        return f"Passed. `minivllm lesson diff {number}` puts your solution beside the reference."
    if result.code == FAILED and result.failed:
        return f"Change {relative(result.path)}, and check again."
    return ""


def _say(console: Console, *parts: str | tuple[str, str], style: str | None = None) -> None:
    """A line, however long, of texts and of texts with a style."""
    console.print(Text.assemble(*parts), soft_wrap=True, style=style)
