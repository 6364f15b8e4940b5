"""No test waits for ever, and what was waited for is printed. Three bounds, each for where the last fails:

    a test           that takes longer than `timeout` (pyproject.toml) is failed by pytest-timeout, with
                     the stacks of all threads. C code and clean-up that hangs let no exception through;
    a process        is ended a minute later, its stacks shown; pytest-xdist names the test and goes on;
    the whole suite  ends with SIGTERM, as `.ci/run` sends it when its time is over: the tests that ran are
                     named, the stacks of all workers printed, and the usual summary follows.

And children of tests begin with the signals that a terminal would give them. A script starts what it runs in
the background with SIGINT ignored, `nohup` with SIGHUP: children that inherit that cannot be interrupted.
"""

import faulthandler
import os
import signal

import pytest

GRACE_SECONDS = 60
"""Between the end of a test's time and the end of its process."""
STACK_SECONDS = 60
"""Longest that a worker takes to show its stacks and end, when the whole suite ends."""
_running: set[str] = set()
_stderr = 2


def pytest_configure(config):
    global _stderr
    _stderr = os.dup(2)  # what is written there is not captured
    for name in ("SIGINT", "SIGHUP"):
        number = getattr(signal, name, None)
        if number and signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, _ignore)  # unlike SIG_IGN, children do not inherit it


def _ignore(number, frame):
    """Do nothing."""


# ---- one test ----------------------------------------------------------------------------------------


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item):
    if seconds := seconds_of(item):
        faulthandler.dump_traceback_later(seconds + GRACE_SECONDS, exit=True, file=_stderr)
    try:
        return (yield)
    finally:
        faulthandler.cancel_dump_traceback_later()


def seconds_of(item):
    """The time of a test; 0 if it has as much as it likes."""
    if mark := item.get_closest_marker("timeout"):
        return float(mark.args[0])
    given = item.config.getoption("timeout", default=None)
    return float(item.config.getini("timeout") or 0 if given is None else given)


def pytest_enter_pdb():
    faulthandler.cancel_dump_traceback_later()


# ---- all tests ---------------------------------------------------------------------------------------


def pytest_sessionstart(session):
    if session.config.pluginmanager.hasplugin("dsession"):
        signal.signal(signal.SIGTERM, lambda *_: _end(session.config))
    else:
        faulthandler.register(signal.SIGTERM, file=_stderr, all_threads=True, chain=True)


def pytest_runtest_logstart(nodeid):
    _running.add(nodeid)


def pytest_runtest_logfinish(nodeid):
    _running.discard(nodeid)


def _end(config):
    """Say what runs, let each worker show its stacks and end, and end with the summary."""
    names = "".join(f"\n    {name}" for name in sorted(_running)) or " nothing"
    os.write(_stderr, f"\nSIGTERM while there ran:{names}\n".encode())
    for node in config.pluginmanager.getplugin("dsession").nodemanager.group:
        node._io.popen.terminate()
        node._io.popen.wait(timeout=STACK_SECONDS)  # one stack after the other
    pytest.exit("SIGTERM")
