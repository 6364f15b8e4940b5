"""A test run that is killed leaves no process and no temporary file behind."""

import subprocess
import sys

from tests import left_behind, patience

RUN = f"""
import os, subprocess, sys

folder = sys.argv[1]
subprocess.Popen([sys.executable, {left_behind.__file__!r}, str(os.getpid()), folder], start_new_session=True)
sleeps = [sys.executable, "-c", "import time; time.sleep(1000)"]
ours = subprocess.Popen(sleeps, env=os.environ | {{"TMPDIR": folder}}, start_new_session=True)
below = subprocess.Popen(sleeps, env=os.environ | {{"TMPDIR": folder + "/judge"}}, start_new_session=True)
other = subprocess.Popen(sleeps, start_new_session=True)
print(ours.pid, below.pid, other.pid, flush=True)
sys.stdin.read()
"""


def test_what_a_killed_run_has_started_is_ended_its_files_are_removed_and_nothing_else(tmp_path):
    folder, pipes = tmp_path / "t", {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    (folder / "profile").mkdir(parents=True)
    with patience.running([sys.executable, "-c", RUN, str(folder)], **pipes) as run:
        with patience.speaking(run):
            ours, below, other = map(int, run.stdout.readline().split())
        assert all(map(patience.is_alive, (ours, below, other))) and folder.exists()
    try:
        patience.until(lambda: not folder.exists())
        patience.until(lambda: not patience.is_alive(ours) and not patience.is_alive(below))
        assert patience.is_alive(other)
    finally:
        subprocess.run(["kill", "-9", str(other)], check=False, timeout=patience.SECONDS)
