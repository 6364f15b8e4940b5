"""Work in the background: done once, and whatever happens to it is told."""

import threading
from time import monotonic, sleep

import pytest

from tests import patience
from viz import jobs


def finished(job):
    deadline = monotonic() + patience.SECONDS
    while job.is_running:
        assert monotonic() < deadline
        sleep(0.01)
    return job


def test_the_same_work_is_not_done_twice_at_once(request):
    go, calls = threading.Event(), []

    def work(job):
        calls.append(job)
        job.tell("half")
        assert go.wait(patience.SECONDS)
        return "done"

    first, second = (jobs.start(request.node.name, work) for _ in range(2))
    assert first is second is jobs.find(request.node.name) and first.is_running
    jobs.forget(request.node.name)
    assert jobs.find(request.node.name) is first, "what runs is not forgotten"
    go.set()
    assert (finished(first).result, first.told, len(calls)) == ("done", "half", 1)
    again = finished(jobs.start(request.node.name, work))
    assert again is not first and len(calls) == 2
    jobs.forget(request.node.name)
    assert jobs.find(request.node.name) is None


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (ValueError("no room"), "no room"),
        (KeyError("x"), "KeyError: 'x'"),
        (RuntimeError(), "RuntimeError: without a word"),
    ],
)
def test_work_that_fails_is_told_in_a_sentence(request, error, told):
    def work(job):
        raise error

    job = finished(jobs.start(request.node.name, work))
    assert (job.problem, job.result) == (told, None)
