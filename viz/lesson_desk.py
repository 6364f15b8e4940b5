"""The part "Write" of a lesson: the learner's file, the judge's verdict on it, hints, and the last task.

The learner writes with an editor of their own; this page starts the exercise, has it judged, and tells what
was found: property by property, and the smallest story in which one of them fails.

    Start ─► work/04_paging.py ─► Check my work ─► ✘ P3, in 3 steps ─► See it · Next hint ─► ✔ ─► the diff

Read next: `lesson_verdict.py`, which draws what was found.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import streamlit as st

from lessons import desk_work
from lessons.catalogue import Lesson, relative
from lessons.catching import CAUGHT, UNTOUCHED, Catch
from lessons.runner import PASSED, Result, check
from lessons.work import Desk
from viz import jobs, lesson_verdict, links
from viz.jobs import Job
from viz.judge_words import as_judged
from viz.language import current
from viz.lesson_words import say
from viz.plain import plain

STORY_PAGE = "story"


class Judged(NamedTuple):
    """What was found."""

    result: Result
    catch: Catch | None
    """Of the learner's own property, if it was judged."""
    changed: int
    """When the file had been written that was judged."""


def show(lesson: Lesson) -> None:
    """Start it, check it, be told why, be helped."""
    desk = Desk()
    solution = desk.solution(lesson)
    if not solution.exists():
        st.markdown(say("about start", file=relative(solution)))
        _start(desk, lesson)
        return
    st.markdown(say("your file", file=relative(solution)))
    _check(desk, lesson)
    _last_task(desk, lesson)
    _code(solution)
    if desk.state(lesson) == "passed":
        _diff(desk, lesson)


def name_of_job(path: Path) -> tuple[str, str]:
    """One judge for a file, however many windows show it."""
    return ("check", str(path.resolve()))


def _start(desk: Desk, lesson: Lesson) -> None:
    if st.button(say("start"), key=f"start-{lesson.name}", type="primary"):
        try:
            desk.start(lesson)
        except (ValueError, OSError) as error:
            st.error(plain(as_judged(str(error))))
            return
        jobs.forget(name_of_job(desk.solution(lesson)))
        st.rerun()


# ── judging ───────────────────────────────────────────────────────────────────────────────────────────


def _check(desk: Desk, lesson: Lesson) -> None:
    name = name_of_job(desk.solution(lesson))
    job = jobs.find(name)
    is_running = job is not None and job.is_running
    if st.button(
        say("check"), key=f"check-{lesson.name}", type="primary", disabled=is_running
    ):  # a second click finds the judge at work, and changes nothing
        jobs.start(name, lambda job: judge(desk, lesson, job))
        st.rerun()
    if job is not None and is_running:
        jobs.watch(job, lambda job: lesson_verdict.show_progress(job.told, job.seconds))
    elif job is not None and job.problem:
        st.error(plain(as_judged(job.problem)))
    elif job is not None:
        _found(desk, job.result)
    else:
        _last_time(desk, lesson)


def judge(desk: Desk, lesson: Lesson, job: Job) -> Judged:
    """The judge's work, in a thread: the solution, and once that has passed, the learner's own property."""
    path = desk.solution(lesson)
    changed = path.stat().st_mtime_ns if path.exists() else 0
    earlier = desk.stories(lesson)
    result = check(lesson, path, earlier=earlier, progress=job.tell)
    desk_work.keep(desk, result)
    catch = desk_work.keep_catch(desk, lesson) if result.code == PASSED else None
    return Judged(result, catch, changed)


def _found(desk: Desk, judged: Judged) -> None:
    result = judged.result
    if result.path.stat().st_mtime_ns != judged.changed:
        st.warning(say("changed since"))
    lesson_verdict.show_result(result)
    if result.failed:
        _see_it(desk, result.lesson)
        _hints(desk, result.lesson)


def _last_time(desk: Desk, lesson: Lesson) -> None:
    """What is known from before this server was started, or from the command line."""
    known = desk.progress(lesson)
    if not known.get("of"):
        return
    failing = known.get("failing")
    words = say("last failing", number=failing) if failing else ""
    st.info(say("last time", passed=known.get("passed", 0), all=known["of"], failing=words))
    if failing:
        _see_it(desk, lesson)
        _hints(desk, lesson)


def _see_it(desk: Desk, lesson: Lesson) -> None:
    path = desk.story(lesson)
    if not path.is_file():
        return
    if not links.has_page(STORY_PAGE):
        st.markdown(say("see it by hand"))
        st.code(f"minivllm lesson see {lesson.number}", language="shell")
    elif st.button(say("see it"), key=f"see-{lesson.name}"):
        links.go(STORY_PAGE, trace=path.resolve())


def _hints(desk: Desk, lesson: Lesson) -> None:
    """The ladder: what was read stays, and a button for the next rung."""
    try:
        ladder = desk_work.ladder(desk, lesson, current())
    except ValueError as error:
        st.error(plain(as_judged(str(error))))
        return
    count = len(ladder.hints)
    with st.container(border=True):
        st.markdown(f"**{say('hints', number=ladder.property.split()[0])}**")
        for number, words in enumerate(ladder.hints[: ladder.num_read], 1):
            st.markdown(f"{number}. {words}")
        if ladder.num_read == count:
            st.caption(say("last hint"))
            return
        label = say("next hint", number=ladder.num_read + 1, count=count)
        if st.button(label, key=f"hint-{lesson.name}"):
            try:
                desk_work.next_hint(desk, lesson)
            except ValueError as error:
                st.error(plain(as_judged(str(error))))
                return
            st.rerun()


# ── the last task, the code, the diff ─────────────────────────────────────────────────────────────────


def _last_task(desk: Desk, lesson: Lesson) -> None:
    path = desk.own_property(lesson)
    if not path.is_file():
        return
    catch = _known_catch(desk, lesson)
    title = say("last task", name=desk_work.wrong_solution(lesson))
    with st.expander(title, icon="✔" if catch and catch.status == CAUGHT else None):
        st.markdown(say("about last task", file=relative(path)))
        if catch is not None:
            name = catch.status.replace(" ", "_")
            tell = {CAUGHT: st.success, UNTOUCHED: st.info}.get(catch.status, st.error)
            tell(say(name.replace("_", " "), words=plain(as_judged(catch.words))))
        _quoted(path)


def _known_catch(desk: Desk, lesson: Lesson) -> Catch | None:
    job = jobs.find(name_of_job(desk.solution(lesson)))
    if job is not None and job.result is not None:
        found: Catch | None = job.result.catch
        return found
    status = desk.progress(lesson).get("own_property")
    return Catch(status) if status else None


def _code(path: Path) -> None:
    with st.expander(say("your code")):
        _quoted(path)


def _quoted(path: Path) -> None:
    try:
        st.code(desk_work.read_text(path), language="python", line_numbers=True)
    except ValueError as error:
        st.error(plain(as_judged(str(error))))


def _diff(desk: Desk, lesson: Lesson) -> None:
    with st.expander(say("diff")):
        try:
            lines = desk_work.diff_lines(desk, lesson)
        except ValueError as error:
            st.error(plain(as_judged(str(error))))
            return
        if lines:
            st.code("\n".join(lines), language="diff")
        else:
            st.markdown(say("same"))
