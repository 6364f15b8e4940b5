"""Dashboards in processes of their own, for tests that speak to one."""

import os
import re
import subprocess
import sys
from contextlib import contextmanager

from minivllm.processes import ROOT
from tests import patience


@contextmanager
def dashboard(*arguments, **variables):
    """A dashboard that was started with these arguments: where it answers."""
    command = [sys.executable, "-m", "viz.serve", "--port", "0", "--no-browser", *map(str, arguments)]
    with answering(command, **variables) as address:
        yield address


@contextmanager
def answering(command, **variables):
    """A program that says where it answers once it does."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
    with patience.running(command, cwd=ROOT, env={**os.environ, **variables}, **pipes) as process:
        with patience.speaking(process):
            said = process.stdout.readline()
        found = re.search(r"http://[^/\s]+", said)
        assert found, f"it did not start: {said!r}"
        yield found.group()
