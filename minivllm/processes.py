"""The programs that we start: Python finds our packages in them, and they end when we do, however we end.

A child that lives on keeps its port, its memory and a core. `finally` blocks cannot prevent that: a process
that is killed runs none. So it is the child that looks after its parent, and ends with everything that it has
started itself:

    become("viz.serve", …)              this command turns into that program: one process, no child at all
    Popen(child_command("-m", …), …)    a Python that ends with its parent, and that Ctrl-C does not reach
    start_server(arguments, …)          the same for `minivllm serve`; returns when it says where it is
    map_in_processes(f, tasks, n)       workers that do the same

Read next: `minivllm/guard.py`, for how a program of ours itself ends.
"""

from __future__ import annotations

import os
import re
import runpy
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, TypeVar

from minivllm import guard
from minivllm.scratch import ScratchFolder
from minivllm.text import printable

ROOT = Path(__file__).resolve().parent.parent
"""The folder of our packages."""
LOOK_SECONDS = 0.2
"""Time between two looks at the parent."""
MOST_FILES = 65_535
"""That the process may have open: each connection is one. Many systems begin with 1,024."""
START_SECONDS = 600.0
"""That a server may take: the first start on a machine compiles the kernels."""
STOP_SECONDS = 10.0
SERVED = re.compile(r"is served at (http://\S+)")
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


class Server(NamedTuple):
    """A server that we have started."""

    process: subprocess.Popen[bytes]
    url: str

    def end(self) -> None:
        """End it, and return when it has ended: in order, and if that takes too long, at once."""
        end_in_order(self.process)


def start_server(
    arguments: Sequence[str],
    tell: Callable[[list[str]], None] = lambda lines: None,
    *,
    variables: dict[str, str],
) -> Server:
    """`minivllm serve` at a free port of this machine, once it listens; told meanwhile what it says.

    Raises:
        ValueError: it did not start, and its own words why.
    """
    with ScratchFolder("serve") as scratch, (scratch / "log").open("wb") as log:
        process = subprocess.Popen(
            child_command("-m", "minivllm", "serve", *arguments, "--port", "0"),
            env=python_variables(PYTHONUNBUFFERED="1", PYTHONIOENCODING="utf-8", **variables),
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=log, start_new_session=True,
        )  # fmt: skip
        try:
            return Server(process, _wait_for_url(process, Path(log.name), tell))
        except BaseException:
            end_in_order(process)
            raise


def _wait_for_url(process: subprocess.Popen[bytes], log: Path, tell: Callable[[list[str]], None]) -> str:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        has_ended = process.poll() is not None
        said = log.read_text(encoding="utf-8", errors="replace")
        if found := SERVED.search(said):
            return found[1]
        lines = [printable(line) for line in said.splitlines() if line.strip()]
        tell(lines)
        if has_ended:
            last = (lines or ["it ended without a word"])[-1]
            raise ValueError(f"the server did not start: {last.removeprefix('error: ')}")
        time.sleep(LOOK_SECONDS / 2)
    raise ValueError(f"the server did not start within {START_SECONDS:g} seconds")


def end_in_order(process: subprocess.Popen[Any]) -> None:
    """SIGTERM, and if that takes too long, the end of it and of everything that it has started."""
    if process.poll() is None:
        with suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(STOP_SECONDS)
    if process.poll() is None:
        end_group(process.pid)
        process.wait()


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


def end_group(leader: int) -> None:
    """Kill the leader of a group and everything that it has started; a process that leads none is let be."""
    try:
        if os.getpgid(leader) == leader:
            os.killpg(leader, signal.SIGKILL)
    except (AttributeError, ProcessLookupError, PermissionError):  # Windows has no groups; it has ended
        pass


def allow_many_files() -> None:
    """Raise the limit of open files as far as the system lets us. As in vLLM."""
    try:
        import resource
    except ModuleNotFoundError:  # Windows has no such limit
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, MOST_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
