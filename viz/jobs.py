"""Jobs: work that takes longer than a click, done once, in a thread, and looked at while it runs.

A page that waits for a judge cannot be read meanwhile, and an impatient second click would start a second
judge. So the work gets a name and a thread; the page asks, by that name, how far it is. Names are the
server's: two windows on one machine see the same work.

Read next: `lesson_desk.py`, which has solutions judged so.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from contextvars import copy_context
from dataclasses import dataclass, field
from time import monotonic, sleep
from typing import Any

import streamlit as st

from viz.language import current, speaking

LOOK_SECONDS = 0.5
"""Time between two looks at work that goes on."""


@dataclass
class Job:
    """Some work, and how far it is."""

    told: Any = None
    """What it said last of its progress."""
    result: Any = None
    problem: str = ""
    """Why there is no result, in a sentence."""
    is_running: bool = True
    began: float = field(default_factory=monotonic)
    is_settled: bool = False
    """Does no browser ask for a look at it any more?"""

    @property
    def seconds(self) -> float:
        return monotonic() - self.began

    def tell(self, progress: Any) -> None:
        self.told = progress


_jobs: dict[Hashable, Job] = {}
_lock = threading.Lock()


def start(name: Hashable, work: Callable[[Job], Any], told: Any = None) -> Job:
    """Have the work done, unless it is being done already; what it returns is the job's result.

    `told` is what it says before it has said anything.

    A `ValueError` is told as it is: that is how everything here says what is wrong.
    """
    with _lock:
        known = _jobs.get(name)
        if known and known.is_running:
            return known
        job = _jobs[name] = Job(told)
    speaking_alike = copy_context().run  # as the page that asked
    threading.Thread(target=speaking_alike, args=(_do, job, work), daemon=True).start()
    return job


def find(name: Hashable) -> Job | None:
    """The work of this name that runs, or ran last."""
    return _jobs.get(name)


def forget(name: Hashable) -> None:
    """Its result means nothing any more."""
    with _lock:
        if (job := _jobs.get(name)) and not job.is_running:
            del _jobs[name]


def watch(job: Job, show: Callable[[Job], None], look_seconds: float = LOOK_SECONDS) -> None:
    """Show the progress of a job again and again; when it is done, run the page once more."""
    language = current()

    @st.fragment(run_every=look_seconds)
    def look() -> None:
        if job.is_running:
            with speaking(language):  # a fragment runs without the script that chose it
                show(job)
        else:
            st.rerun()

    look()


def settle(job: Job, look_seconds: float = LOOK_SECONDS) -> None:
    """To be said before another page is opened than the one on which a job was watched.

    A browser that is busy may still have a look under way, and Streamlit would answer it after the other page
    is there: with the page that was left, and empty. So the page is run once more, which drops such looks.
    """
    if not job.is_settled:
        job.is_settled = True
        sleep(look_seconds)
        st.rerun()


def _do(job: Job, work: Callable[[Job], Any]) -> None:
    try:
        job.result = work(job)
    except ValueError as error:
        job.problem = str(error)
    except Exception as error:  # a page shows sentences, whatever happens
        job.problem = f"{type(error).__name__}: {str(error) or 'without a word'}"
    finally:
        job.is_running = False
