"""`minivllm lesson list | start | check | hint | see | diff | reset`.

Exit codes of `check`: 0 passed, 1 failed, 2 not started, 3 could not be imported. A mistake in the command
itself is a sentence on stderr and exit code 2.

Titles, properties and hints are said in the language of `--lang`, or of the system's locale; what is expected
in a story, and what came, is quoted from the checks, in English.

Read next: `runner.py`, then `judge.py`.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from lessons import desk_work
from lessons.catalogue import LANGUAGES, Lesson, find_lesson, lessons, relative
from lessons.desk_work import diff_lines, keep, keep_catch, ladder, wrong_solution
from lessons.language import checked, language_of_locale
from lessons.report import next_step, print_catch, print_result
from lessons.runner import NOT_STARTED, PASSED, Result, check
from lessons.story_text import print_story
from lessons.work import Desk
from minivllm.lab.tables import print_table
from minivllm.processes import become
from minivllm.terminal import Console
from minivllm.trace.reader import TraceError
from minivllm.trace.story_events import read_story
from minivllm.usage import print_mistake, usage_mistake

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Learn it by building it: read, step through a run, write it yourself, be judged by properties.",
)
console = Console()

Number = Annotated[str, typer.Argument(help="Of the lesson, such as 4, or its name.", metavar="LESSON")]
Work = Annotated[Path, typer.Option(help="Folder of your solutions.", envvar="MINIVLLM_WORK")]
WORK = Path("work")
Language = Annotated[
    str,
    typer.Option(
        "--lang",
        help="Of titles, properties and hints: en or zh; the system's if left out.",
        envvar="MINIVLLM_LANG",
    ),
]


@app.command("list")
def list_lessons(work: Work = WORK, lang: Language = "") -> None:
    """All lessons, and how far you are."""
    desk, language = Desk(work), _spoken(lang)
    table = Table(box=None, pad_edge=False, show_header=False)
    for lesson in lessons():
        table.add_row(Text(lesson.heading(language), "bold"), lesson.about(language), desk.state(lesson))
    print_table(table, console)
    following = next((one for one in lessons() if desk.state(one) != "passed"), None)
    if following:
        text = relative(following.folder / LANGUAGES[language])
        _say(f"Next: minivllm lesson start {following.number}   (text: {text})")


@app.command()
def start(lesson: Number, work: Work = WORK) -> None:
    """Put the exercise into your work folder. Nothing is ever overwritten."""
    chosen, desk = find_lesson(lesson), Desk(work)
    fresh = desk.start(chosen)
    solution = relative(desk.solution(chosen))
    _say((chosen.heading(), "bold"), f"   {chosen.about()}")
    _say(f"  read  : {relative(chosen.folder / 'lesson.md')}   (中文: lesson.zh.md)")
    _say(f"  step  : python {relative(chosen.walkthrough)}   or: {relative(desk.notebook(chosen))}")
    _say("          or, with its pictures: minivllm dashboard, page Lessons")
    _say(f"  write : {solution}" + ("" if fresh else "   (was there already, and is as you left it)"))
    _say(f"  check : minivllm lesson check {chosen.number}")


@app.command("check")
def check_lesson(
    lesson: Number,
    file: Annotated[Path | None, typer.Argument(help="Another file to judge.")] = None,
    raw: Annotated[bool, typer.Option("--raw", help="Show Python's own words, too.")] = False,
    edited: Annotated[bool, typer.Option("--edited", help="Judge by changed checks, too.")] = False,
    work: Work = WORK,
    lang: Language = "",
) -> None:
    """Judge your solution by properties; a failing story is made as short as it can be."""
    chosen, desk, language = find_lesson(lesson), Desk(work), _spoken(lang)
    path = file or desk.solution(chosen)
    if raw:
        os.environ["MINIVLLM_DEBUG"] = "1"
    result = _watched_check(chosen, path, desk, edited)
    keep(desk, result)
    found = ladder(desk, chosen) if result.failed else None
    next_hint = f"({found.next_number()}/{len(found.hints)})" if found else ""
    print_result(console, result, raw, next_hint, language)
    code = result.code
    if file is None and code == PASSED:
        code = max(code, _check_own_property(desk, chosen))
    if words := next_step(result):
        _say(words)
    raise typer.Exit(code)


def _watched_check(lesson: Lesson, path: Path, desk: Desk, edited: bool) -> Result:
    """Judge, and say meanwhile what is being played."""
    with console.status(f"Judging {relative(path)} …") as status:

        def progress(result: Result) -> None:
            playing = next((one for one in result.outcomes if one.status == "playing"), None)
            if playing and playing.stories % 10 == 1:
                status.update(f"{playing.number} {playing.sentence}  {playing.stories} stories")

        earlier = desk.stories(lesson)
        return check(lesson, path, earlier=earlier, progress=progress, even_if_edited=edited)


def _check_own_property(desk: Desk, lesson: Lesson) -> int:
    with console.status("Judging your own property …"):
        catch = keep_catch(desk, lesson)
    if catch is None:
        return PASSED
    print_catch(console, catch, relative(desk.own_property(lesson)), wrong_solution(lesson))
    return 0 if catch.is_good else 1


@app.command()
def hint(lesson: Number, work: Work = WORK, lang: Language = "") -> None:
    """The next hint for the property that failed; the first may be about how it failed."""
    chosen, desk, language = find_lesson(lesson), Desk(work), _spoken(lang)
    words, number, count, name = desk_work.next_hint(desk, chosen, language)
    _say(f"{name}   hint {number} of {count}")
    _say(f"  {words}")


@app.command()
def see(
    lesson: Number,
    trace: Annotated[Path | None, typer.Option(help="Another story of this lesson.")] = None,
    port: Annotated[int, typer.Option(min=1, max=65535)] = 8501,
    browser: Annotated[bool, typer.Option(help="Open a browser window.")] = True,
    text: Annotated[bool, typer.Option("--text", help="Tell it here, in the terminal.")] = False,
    work: Work = WORK,
    lang: Language = "",
) -> None:
    """Watch your own bug: your run and the reference's, at the first step where they part."""
    chosen, desk, language = find_lesson(lesson), Desk(work), _spoken(lang)
    path = trace or desk.story(chosen)
    if not path.exists():
        raise ValueError(
            f"there is no {relative(path)}: "
            f"`minivllm lesson check {chosen.number}` writes it when a property fails"
        )
    story = read_story(path)
    if story.header.lesson != chosen.name:
        raise TraceError(
            f"{relative(path)} is a story of lesson {story.header.title}, not of {chosen.heading()}: "
            f"minivllm lesson see {story.header.lesson[:2]} --trace {relative(path)}"
        )
    if text:
        print_story(console, story, language)
        return
    become("viz.serve", str(path), "--port", str(port), *([] if browser else ["--no-browser"]))


@app.command()
def diff(lesson: Number, work: Work = WORK) -> None:
    """Your solution beside the reference; once you have passed."""
    lines = diff_lines(Desk(work), find_lesson(lesson))
    colours = {"+": "green", "-": "red", "@": "cyan"}
    for line in lines:
        console.print(line, style=colours.get(line[:1]), soft_wrap=True)


@app.command()
def reset(lesson: Number, work: Work = WORK) -> None:
    """Begin a lesson anew; your solution is put aside, not thrown away."""
    chosen = find_lesson(lesson)
    aside = Desk(work).reset(chosen)
    _say(f"{chosen.heading()} begins anew" + (f"; your solution is now {relative(aside)}" if aside else ""))


def _spoken(lang: str) -> str:
    """The language that was asked for, or the system's."""
    return checked(lang) if lang else language_of_locale()


def _say(*parts: str | tuple[str, str]) -> None:
    """A line, however long, of texts and of texts with a style."""
    console.print(Text.assemble(*parts), soft_wrap=True)


def main() -> None:
    """Entry point of `python -m lessons`."""
    arguments = sys.argv[1:]
    try:
        code = app(arguments, prog_name="minivllm lesson", standalone_mode=False)
    except typer.Abort:
        code = 1
    except Exception as error:
        message = str(error) if isinstance(error, ValueError) else usage_mistake(error, arguments)
        if message is None or os.environ.get("MINIVLLM_DEBUG"):
            raise
        if message:
            print_mistake(message)
        code = NOT_STARTED
    sys.exit(code)
