"""Where the suite's processor time goes, by file and test: `pytest -p tests.where_time_goes`.

Seconds of processors, those of children included, while these run: on a busy machine they say more than a
clock. What is shared (a server, a model, compiled kernels) is paid by the file that asks first. A browser
goes on drawing a little after its test; that is paid by the next one.
"""

import os
from collections import Counter
from contextlib import suppress

import pytest

PROPERTY = "processor seconds"
TICKS = os.sysconf("SC_CLK_TCK")
seconds_of_files, seconds_of_tests = Counter(), Counter()
_before = {}


def _since_last_time():
    """Seconds that this process and all below it have used."""
    global _before
    before, _before = _before, _times_of(str(os.getpid()))
    own, of_ended = (
        sum(times[kind] - before.get(process, (0, 0))[kind] for process, times in _before.items())
        for kind in (0, 1)
    )
    # What ended was counted while it ran, and its parent may count all of it now, or not.
    counted = sum(sum(times) for process, times in before.items() if process not in _before)
    return (own + max(0, of_ended - counted)) / TICKS


def _times_of(process):
    """{process: ticks of its own, and of children whose end it has seen}, with all that live below it."""
    found = {}
    if fields := _text(f"/proc/{process}/stat").rpartition(")")[2].split():
        found[process] = sum(map(int, fields[11:13])), sum(map(int, fields[13:15]))
        with suppress(OSError):
            for thread in os.listdir(f"/proc/{process}/task"):
                for child in _text(f"/proc/{process}/task/{thread}/children").split():
                    found |= _times_of(child)
    return found


def _text(path):
    """Empty if the process or thread has ended, or the system does not say."""
    with suppress(OSError), open(path) as file:
        return file.read()
    return ""


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol():
    _since_last_time()  # here, where the test runs: not in the first process, below which all others are


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(call):
    outcome = yield
    if call.when == "teardown":
        outcome.get_result().user_properties.append((PROPERTY, _since_last_time()))


def pytest_runtest_logreport(report):
    for name, value in report.user_properties:
        if name == PROPERTY:
            seconds_of_files[report.location[0]] += value
            seconds_of_tests[report.nodeid] += value


def pytest_terminal_summary(terminalreporter):
    for title, seconds_of, most in (("test", seconds_of_tests, 40), ("file", seconds_of_files, None)):
        terminalreporter.section(f"processor seconds by {title}")
        for name, seconds in [*seconds_of.most_common(most), ("in all", seconds_of.total())]:
            if seconds >= 1:
                terminalreporter.write_line(f"{seconds:8.1f}  {name}")
