"""The programs that we start: Python finds our packages in them, and they end when we do, however we end.

A child that lives on keeps its port, its memory and a core. `finally` blocks cannot prevent that: a process
that is killed runs none. So it is the child that looks after its parent, and ends with everything that it has
started itself:

    become("viz.serve", …)              this command turns into that program: one process, no child at all
    Popen(child_command("-m", …), …)    a Python that ends with its parent, and that Ctrl-C does not reach
    map_in_processes(f, tasks, n)       workers that do the same

Read next: `minivllm/guard.py`, for how a program of ours itself ends.
"""

from __future__ import annotations

import os
import runpy
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from minivllm import guard

ROOT = Path(__file__).resolve().parent.parent
"""The folder of our packages."""
LOOK_SECONDS = 0.2
"""Time between two looks at the parent."""
Task = TypeVar("Task")
Result = TypeVar("Result")
RUN_CHILD = "from minivllm.processes import run_child; run_child()"


def python_variables(**more: str) -> dict[str, str]:
    """This process's environment, with our packages on the path, and what is given besides."""
    # An empty entry would be the folder in which the child runs: only what is there is handed on.
    inherited = os.environ.get("PYTHONPATH")
    path = os.pathsep.join([str(ROOT), *([inherited] if inherited else [])])
    return {**os.environ, "PYTHONPATH": path, **more}


def become(module: str, *arguments: str) -> NoReturn:
    """Turn this process into `python -m module`.

    A signal that comes in between is not lost: it waits until the new program can answer it.
    """
    # -P: nothing in the folder in which the user happens to be hides one of Python's own modules.
    command = [sys.executable, "-P", "-m", module, *arguments]
    sys.stdout.flush()
    sys.stderr.flush()
    if sys.platform == "win32":  # which cannot replace a process
        sys.exit(subprocess.call(command, env=python_variables()))
    signal.pthread_sigmask(signal.SIG_BLOCK, guard.SIGNALS)
    os.execve(sys.executable, command, python_variables())


def child_command(*arguments: str) -> list[str]:
    """The command of a Python that ends with this process: `child_command("-m", module, …)` or `(script, …)`.

    To be started with `env=python_variables()` and `start_new_session=True`: in a group of its own the
    terminal does not interrupt it (we end it), and everything that it starts can be ended with it.
    """
    return [sys.executable, "-P", "-c", RUN_CHILD, str(os.getpid()), *arguments]


def run_child() -> None:
    """What `child_command` starts: watch the parent, and run the module or the script as the main program."""
    parent, *arguments = sys.argv[1:]
    end_with_parent(int(parent))
    if arguments[0] == "-m":
        sys.argv = arguments[1:]
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = arguments
        runpy.run_path(arguments[0], run_name="__main__")


def map_in_processes(function: Callable[[Task], Result], tasks: Sequence[Task], workers: int) -> list[Result]:
    """`function` of every task, each in one of so many processes; in this one if one is enough."""
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import active_children

    workers = min(workers, len(tasks))
    if workers <= 1:
        return [function(task) for task in tasks]
    with ProcessPoolExecutor(workers, initializer=end_with_parent, initargs=(os.getpid(),)) as pool:
        try:
            return list(pool.map(function, tasks))
        except BaseException:  # a program that is stopped does not wait for what goes on
            for worker in active_children():
                worker.kill()
            raise


def end_with_parent(parent: int) -> None:
    """End this process, and its group if it has one of its own, once `parent` is not its parent any more."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(LOOK_SECONDS)
        end_group(os.getpid())
        os._exit(1)

    threading.Thread(target=watch, name="watches the parent", daemon=True).start()


def end_child(process: subprocess.Popen[Any], patience_seconds: float) -> None:
    """End a child and all that it has started; returns when it has ended. It may say goodbye first."""
    if process.poll() is None:
        with suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(patience_seconds)
    if process.poll() is None:
        end_group(process.pid)
        process.wait()


def end_group(leader: int) -> None:
    """Kill the leader of a group and everything that it has started; a process that leads none is let be."""
    try:
        if os.getpgid(leader) == leader:
            os.killpg(leader, signal.SIGKILL)
    except (AttributeError, ProcessLookupError, PermissionError):  # Windows has no groups; it has ended
        pass
