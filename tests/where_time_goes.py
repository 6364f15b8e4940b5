"""Where the suite's processor time goes, by file and test: `pytest -p tests.where_time_goes`.

Seconds of processors, those of children included: on a busy machine they say more than a clock. What is
shared (a server, a model, compiled kernels) is paid by the file that asks first.
"""

import os
from collections import Counter

import pytest

PROPERTY = "processor seconds"
seconds_of_files, seconds_of_tests = Counter(), Counter()
_counted = 0.0


def _since_last_time():
    global _counted
    before, _counted = _counted, sum(os.times()[:4])
    return _counted - before


def pytest_runtest_logstart():
    _since_last_time()


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport():
    outcome = yield
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
