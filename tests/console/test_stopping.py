"""Programs of ours that are stopped: one line, an exit code, no traceback; and no child of theirs stays."""

import ast
import os
import random
import signal
import subprocess
import sys
import time

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from minivllm import guard, processes
from minivllm.processes import ROOT
from tests import patience

OTHER_PYTHON = "minivllm/lab/bench/field/"  # runs where minivllm is not installed
STOP_AT = """
import os, signal, sys

class Stop:
    def find_spec(self, name, path=None, target=None):
        if name == os.environ.get("STOP_AT"):
            for number in os.environ["STOP_BY"].split():
                signal.raise_signal(int(number))
            if os.environ.get("SAY_SO"):
                print(flush=True)

sys.meta_path.insert(0, Stop())
"""
OURS = """
import sys
sys.argv[0], sys.orig_argv = "-m", ["python", "-m", "minivllm.test"]
import minivllm
import os, signal, time
{}
"""


@pytest.fixture(scope="module")
def stopping(tmp_path_factory):
    """An environment in which Python meets signals at the import of a module."""
    folder = tmp_path_factory.mktemp("stopping")
    (folder / "sitecustomize.py").write_text(STOP_AT)

    def variables(module, *numbers, **more):
        path = os.pathsep.join([str(folder), str(ROOT)])
        return {
            **os.environ,
            "PYTHONPATH": path,
            "STOP_AT": module,
            "STOP_BY": " ".join(map(str, numbers)),
            **more,
        }

    return variables


def start(*arguments, **options):
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, *arguments], **pipes, **options)


def end_of(process):
    """Exit code and standard error."""
    with patience.speaking(process):
        _, said = process.communicate()
    return process.returncode, said


def our_program(code):
    """A program that is told to be one of ours, and runs this code."""
    return start("-c", OURS.format(code), env=processes.python_variables(PYTHONUNBUFFERED=""))


INTERRUPTED, TERMINATED = (130, "interrupted\n"), (143, "terminated\n")
WALKTHROUGH = str(ROOT / "lessons" / "04_paging" / "walkthrough.py")
STOPS = [
    (("-m", "minivllm", "generate", "x"), "minivllm.console.commands", [signal.SIGINT], INTERRUPTED),
    (
        ("-m", "minivllm", "generate", "x"),
        "minivllm.console.generate_command",
        [signal.SIGINT, signal.SIGINT],
        INTERRUPTED,
    ),
    (("-m", "minivllm"), "typer", [signal.SIGTERM], TERMINATED),
    (("-m", "minivllm"), "rich", [signal.SIGHUP], TERMINATED),
    (("-m", "lessons", "list"), "typer", [signal.SIGINT], INTERRUPTED),
    (("-m", "viz.serve"), "minivllm.trace", [signal.SIGINT], INTERRUPTED),
    (("-m", "kernels_numba.list_kernels"), "numpy", [signal.SIGINT], INTERRUPTED),
    ((WALKTHROUGH,), "minivllm.llm", [signal.SIGINT], INTERRUPTED),
]


def test_a_program_that_is_stopped_while_it_imports_says_one_line(stopping):
    started = [start(*words, env=stopping(module, *numbers)) for words, module, numbers, _ in STOPS]
    for process, (words, module, _, wanted) in zip(started, STOPS, strict=True):
        assert end_of(process) == wanted, (words, module)


def test_a_program_that_is_stopped_at_any_moment_twice_prints_no_traceback(stopping):
    """Bounded, and whatever the machine is doing: a program that has ended by then has ended well."""
    chance = random.Random(0)
    started = [start("-m", "minivllm", "doctor", env=stopping("typer", SAY_SO="1")) for _ in range(3)]
    for process in started:
        with patience.speaking(process):
            process.stdout.readline()  # it has begun
        for _ in range(2):
            time.sleep(chance.uniform(0, 0.5))
            process.send_signal(signal.SIGINT)
    for process in started:
        code, said = end_of(process)
        if code in (130, -signal.SIGINT):  # the latter once Python is taken down, which no shell can tell
            assert said in ("interrupted\n", "")  # a second signal may come before the line
        else:
            assert code in (0, 1) and "Traceback" not in said


def main_modules():
    for package in guard.PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            text = path.read_text(encoding="utf-8")
            name = path.relative_to(ROOT).as_posix()
            if (
                path.name == "__main__.py" or '\nif __name__ == "__main__":' in text
            ) and OTHER_PYTHON not in name:
                yield name


def test_every_program_is_guarded_by_the_package_that_is_imported_before_it():
    programs = list(main_modules())
    assert len(programs) > 10
    for package in {name.split("/")[0] for name in programs}:
        tree = ast.parse((ROOT / package / "__init__.py").read_text(encoding="utf-8"))
        imports = {
            name
            for node in tree.body
            for name in (
                [node.module]
                if isinstance(node, ast.ImportFrom)
                else [a.name for a in getattr(node, "names", [])]
            )
        }
        assert "minivllm.guard" in imports, f"{package} imports it before anything else"


words = st.sampled_from(
    ["-m", "-P", "-Pm", "-X", "dev", "minivllm", "viz.serve", "pytest", "x.py", "--model"]
)


@given(st.lists(words, max_size=5), st.sampled_from(["minivllm", "minivllm.lab.x", "viz.serve", "lessons"]))
@example(["-m", "viz"], "minivllm")
def test_our_modules_are_ours_and_a_strangers_program_is_not(more, module):
    assert guard.is_ours(["-m"], ["python", "-P", "-m", module, *more])
    assert guard.is_ours(["-m"], ["python", "-Pm", module, *more])
    assert not guard.is_ours(["-m"], ["python", "-m", "their_server", *more])
    assert not guard.is_ours(["/home/x.py", *more], ["python", "/home/x.py", *more])
    assert not guard.is_ours(["-c", *more], ["python", "-c", "import minivllm", *more])
    script = str(ROOT / "lessons" / "04" / "walkthrough.py")
    assert guard.is_ours([script, *more], ["python", script, *more])
    assert not guard.is_ours([script, *more], ["python", "-c", "from multiprocessing.spawn import …"])
    assert guard.is_ours(["/bin/minivllm", *more], ["python", "/bin/minivllm", *more])
    assert not guard.is_ours([str(ROOT / "x.py")], ["python", str(ROOT / "x.py")])
    assert not guard.is_ours([], ["python"])


CODES = {
    "uncaught": ("raise KeyboardInterrupt", INTERRUPTED),
    "unwinds": (
        "try: signal.raise_signal(2)\nfinally: os.write(2, b'closed ')",
        (130, "closed interrupted\n"),
    ),
    "twice": (
        "try: signal.raise_signal(2)\nfinally: signal.raise_signal(2); os.write(2, b'no')",
        INTERRUPTED,
    ),
    "in a destructor": (
        "class A:\n  def __del__(self): signal.raise_signal(2)\nA()\nos.write(2, b'lost')",
        INTERRUPTED,
    ),
    "swallowed, then again": (
        "try: signal.raise_signal(2)\nexcept BaseException: 0\nsignal.raise_signal(15); os.write(2, b'no')",
        TERMINATED,
    ),
    "in a fork": (
        "if not os.fork(): signal.raise_signal(2)\nassert os.waitstatus_to_exitcode(os.wait()[1]) == 130",
        (0, ""),
    ),
    "at the very end": ("import atexit\natexit.register(lambda: signal.raise_signal(2))", INTERRUPTED),
    "no reader": ("os.close(0); r, w = os.pipe(); os.close(r); os.dup2(w, 1); print('x' * 99999)", (1, "")),
    "no reader at the end": ("r, w = os.pipe(); os.close(r); os.dup2(w, 1); print('x')", (0, "")),
}


def test_a_stop_is_one_line_wherever_it_is_met():
    started = {name: our_program(code) for name, (code, _) in CODES.items()}
    for name, process in started.items():
        assert end_of(process) == CODES[name][1], name


def test_what_is_ignored_stays_ignored():
    """`nohup minivllm bench`, or a job in the background of a script."""
    code = "import sys; print(signal.getsignal(1), signal.getsignal(2), file=sys.stderr)"
    ignoring = {"preexec_fn": lambda: [signal.signal(number, signal.SIG_IGN) for number in (1, 2)]}
    program = start("-c", OURS.format(code), env=processes.python_variables(), **ignoring)
    assert end_of(program) == (0, "1 1\n")


FULL = "os.dup2(os.open('/dev/full', os.O_WRONLY), {})\n"
LOST = (1, "error: the output cannot be written: No space left on device\n")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no device that is always full")
def test_what_cannot_be_written_is_said_and_messages_that_cannot_be_end_nothing():
    codes = {
        FULL.format(1) + "print('x', flush=True)": LOST,
        FULL.format(1) + "print('x')": LOST,
        FULL.format(2) + "for _ in range(9): print('x' * 9999, file=sys.stderr, flush=True)\nos._exit(7)": (
            7,
            "",
        ),
    }
    started = [our_program(code) for code in codes]
    assert list(map(end_of, started)) == list(codes.values())


def test_a_folder_that_is_gone_is_said_before_anything_is_looked_for_in_it(tmp_path):
    gone = tmp_path / "gone"
    gone.mkdir()
    removing = {"cwd": gone, "preexec_fn": gone.rmdir}
    program = start("-c", OURS.format("print('no')"), env=processes.python_variables(), **removing)
    assert end_of(program) == (2, "error: the folder in which this runs is gone: cd to another one\n")


def test_a_stream_that_is_closed_leads_nowhere_and_is_no_other_file():
    """`minivllm serve >&- 2>&-`: else our last words would be written into a client's connection."""
    code = "print('lost', flush=True); os.write(2, b'%d' % (open(os.devnull).fileno() > 2))"
    closing = {"preexec_fn": lambda: [os.close(number) for number in (0, 1)]}
    program = start("-c", OURS.format(code), env=processes.python_variables(), **closing)
    assert end_of(program) == (0, "1")


# ---- what we start -------------------------------------------------------------------------------------

CHILD = "import os, subprocess, sys, time; print(os.getpid(), subprocess.Popen([sys.executable, '-c', \
'import time; time.sleep(600)']).pid, flush=True); time.sleep(600)"
PARENT = """
import subprocess, sys, time
from minivllm.processes import child_command, python_variables
subprocess.Popen(child_command(sys.argv[1]), env=python_variables(), start_new_session=True)
time.sleep(600)
"""
POOL = """
from minivllm.processes import map_in_processes
def nap(_):
    print(os.getpid(), flush=True); time.sleep(600)
map_in_processes(nap, [1, 2], 2)
"""


def all_end(pids):
    deadline = time.monotonic() + patience.SECONDS / 2
    while any(map(patience.is_alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not any(map(patience.is_alive, pids))


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="processes are looked at in /proc")
def test_a_child_and_what_it_has_started_end_with_a_parent_that_is_killed(tmp_path):
    (tmp_path / "child.py").write_text(CHILD)
    with (
        start("-c", PARENT, str(tmp_path / "child.py"), env=processes.python_variables()) as parent,
        patience.speaking(parent),
    ):
        pids = [int(word) for word in parent.stdout.readline().split()]
        assert len(pids) == 2 and all(map(patience.is_alive, pids))
        parent.kill()
        assert all_end(pids)


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="processes are looked at in /proc")
def test_the_workers_of_a_pool_end_with_a_program_that_is_stopped():
    ends = {signal.SIGTERM: TERMINATED, signal.SIGKILL: (-9, "")}
    programs = {number: our_program(POOL) for number in ends}
    for number, program in programs.items():
        with patience.speaking(program):
            pids = [int(program.stdout.readline()) for _ in range(2)]
        program.send_signal(number)
        assert all_end(pids)
        assert end_of(program) == ends[number]


def test_a_command_that_becomes_another_program_loses_no_signal(monkeypatch):
    seen = {}

    def execve(program, command, variables):
        seen.update(blocked=signal.pthread_sigmask(signal.SIG_BLOCK, []), command=command)
        raise SystemExit

    monkeypatch.setattr(os, "execve", execve)
    try:
        with pytest.raises(SystemExit):
            processes.become("lessons", "list")
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, guard.SIGNALS)
    assert set(guard.SIGNALS) <= seen["blocked"]
    assert seen["command"][1:] == ["-P", "-m", "lessons", "list"]
    code = "signal.pthread_sigmask(signal.SIG_BLOCK, [2]); signal.raise_signal(2)\n"
    program = start("-c", "import signal\n" + code + OURS.format(""), env=processes.python_variables())
    assert end_of(program) == INTERRUPTED, "it waits for the guard"


def test_a_page_that_is_drawn_in_a_thread_is_let_be():
    """`streamlit run viz/app.py` is a server of its own, which has handlers of its own."""
    code = (
        "import sys, threading; sys.argv = sys.orig_argv = ['/minivllm']\n"
        "thread = threading.Thread(target=lambda: __import__('minivllm')); thread.start(); thread.join()\n"
        "from minivllm import guard; assert not guard._owner"
    )
    assert end_of(start("-c", code, env=processes.python_variables())) == (0, "")
