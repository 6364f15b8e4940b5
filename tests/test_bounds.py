"""The bounds hold: what hangs is ended and named, whatever it hangs in, and no test waits without an end."""

import ast
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from minivllm.processes import ROOT
from tests import conftest, patience, trees

HANG = """
import os, signal, time
from pathlib import Path

signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGALRM])  # as in code of C: no exception comes through

def sleeps_for_ever():
    Path("began").touch()
    time.sleep(1000)

def test_that_hangs():
    sleeps_for_ever()
"""
# How long a test takes until it hangs, or its name to reach the first process, is the machine's affair.
CONFTEST = """
import faulthandler, os, threading
from pathlib import Path
import pytest
from tests import bounds, patience
bounds.GRACE_SECONDS = 0.1
dump_later = faulthandler.dump_traceback_later

def dump_once_it_hangs(seconds, **how):
    def wait():
        patience.until(Path("began").exists)
        dump_later(seconds, **how)
    threading.Thread(target=wait, daemon=True).start()

faulthandler.dump_traceback_later = dump_once_it_hangs

def pytest_configure(config):
    config.pluginmanager.register(bounds)

@pytest.hookimpl(trylast=True)
def pytest_runtest_logstart():
    if "PYTEST_XDIST_WORKER" not in os.environ:
        Path("told").touch()
"""
SILENT = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTHONPATH": str(ROOT)}


@pytest.fixture
def suite(tmp_path):
    """A suite of one test that hangs."""
    (tmp_path / "pytest.ini").write_text("[pytest]\naddopts = -p xdist -p pytest_timeout -n 1\n")
    (tmp_path / "conftest.py").write_text(CONFTEST)
    (tmp_path / "test_hang.py").write_text(HANG)

    def start(*arguments):
        command = [sys.executable, "-m", "pytest", *arguments]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        ours = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_XDIST")}
        return patience.running(command, cwd=tmp_path, env=ours | SILENT, **pipes)

    return start


def test_a_test_that_no_exception_ends_is_ended_with_its_process_shown_and_named(suite):
    with suite("--timeout", "0.1") as process, patience.speaking(process):
        said = process.stdout.read()
    assert process.wait(patience.SECONDS) == 1
    assert "in sleeps_for_ever" in said and "crashed while running 'test_hang.py::test_that_hangs'" in said


def test_a_suite_that_is_terminated_says_what_ran_and_where_it_stood(suite, tmp_path):
    with suite() as process, patience.speaking(process):
        for sign in ("began", "told"):
            patience.until((tmp_path / sign).exists)
        process.send_signal(signal.SIGTERM)
        said = process.stdout.read()
    assert process.wait(patience.SECONDS) == 2
    assert "SIGTERM while there ran:\n    test_hang.py::test_that_hangs\n" in said
    assert "in sleeps_for_ever" in said and "no tests ran in" in said


def test_children_can_be_interrupted_even_if_we_cannot(tmp_path):
    """As in a job in the background of a script, under `nohup`."""
    code = "from tests import bounds; import subprocess, sys; bounds.pytest_configure(None); "
    code += (
        "subprocess.run([sys.executable, '-c', 'import signal as s; print(s.getsignal(2), s.getsignal(1))'])"
    )
    ignoring = {"preexec_fn": lambda: [signal.signal(number, signal.SIG_IGN) for number in (1, 2)]}
    pipes = {"stdout": subprocess.PIPE, "text": True, "env": os.environ | SILENT}
    with patience.running([sys.executable, "-c", code], **pipes, **ignoring) as process:
        said, _ = process.communicate(timeout=patience.SECONDS)
    assert said.split()[-1] == "0" and "default_int_handler" in said


def test_files_that_begin_first_exist():
    assert all((Path(__file__).parent / name).is_file() for name in conftest.FIRST)


# ---- nothing waits without an end --------------------------------------------------------------------

WAITS = {"acquire", "communicate", "get", "join", "result", "wait"}
RUNS = {"subprocess.call", "subprocess.check_call", "subprocess.check_output", "subprocess.run"}
ASKS = {"httpx.Client", "httpx.get", "httpx.post", "httpx.stream"}  # which wait five seconds, and no longer
NO_WAIT = {  # of this name, and yet no wait, or one that is bounded elsewhere
    "tests/console/test_stopping.py: subprocess.Popen([sys.executable, *arguments], **pipes, **options)",
    "tests/console/test_stopping.py: process.communicate()",  # patience.speaking
    "tests/server/test_live.py: live.join()",
    "tests/executor/distributed/thread_ranks.py: super().wait()",  # bounded in what it calls
    "tests/viz/live_server.py: queue.get()",  # in a thread that ends with its process
    "tests/patience.py: subprocess.Popen(command, **options)",
}


MAY_WAIT = re.compile(rf"\.({'|'.join(WAITS)})\(\s*\)|\bsubprocess\.|\bhttpx\.")
"""Stands in every file with such a call, and in few others: those need not be parsed."""


def waits_in(path):
    """Calls that wait for another thread or process for as long as that may take."""
    if not MAY_WAIT.search(path.read_text(encoding="utf-8")):
        return
    tree = trees.of(path)
    awaited = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Await)}
    for call in ast.walk(tree):
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and id(call) not in awaited:
            named = {keyword.arg for keyword in call.keywords}  # None: `**options`, in which it may be
            name = ast.unparse(call.func)
            if (
                (name in RUNS and not named & {"timeout", None})
                or (call.func.attr in WAITS and not call.args and not named)
                or name == "subprocess.Popen"
                or (name in ASKS and not named & {"timeout", None})
            ):
                yield f"{path.relative_to(ROOT).as_posix()}: {ast.unparse(call)}"


def test_no_test_waits_without_an_end():
    found = {wait for path in Path(__file__).parent.rglob("*.py") for wait in waits_in(path)}
    assert found - NO_WAIT == set()
    assert NO_WAIT - found == set(), "no longer there"
