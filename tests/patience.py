"""How long a test waits for what must come: far longer than it takes, for a busy machine is no failure."""

import subprocess
import threading
import time
from contextlib import contextmanager, suppress

import psutil

SECONDS = 400
"""Less than a test has (pyproject.toml), so that what did not come is what is said."""
MILLISECONDS = 1000 * SECONDS


@contextmanager
def running(command, **options):
    """A process that ends with the block, however that ends."""
    with subprocess.Popen(command, **options) as process:
        try:
            yield process
        finally:
            process.kill()


@contextmanager
def speaking(process):
    """Within the block its pipes can be read: if it is silent for too long it is killed, and they end."""
    end = threading.Timer(SECONDS, process.kill)
    end.daemon = True
    end.start()
    try:
        yield process
    finally:
        end.cancel()


def join(thread):
    """Wait for the end of a thread."""
    thread.join(SECONDS)
    assert not thread.is_alive(), f"{thread.name} does not end"


def until(happens):
    """Wait for what another thread or process does."""
    deadline = time.monotonic() + SECONDS
    while not happens():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.005)


def children(word):
    """Processes below this one that have this word in their command; one that ends meanwhile has none."""
    found = []
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            found += [child] if word in " ".join(child.cmdline()) else []
    return found


def is_alive(pid):
    """Does this process run? One that has ended and waits for its parent does not."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
