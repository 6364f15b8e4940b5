"""What a test run leaves when it is killed is ended and removed: `python left_behind.py PROCESS FOLDER`.

A pytest that is killed runs no clean-up of its own. So this program waits for its end, ends what it had
started (servers, browsers: whatever has the run's folder for temporary files), and removes that folder.
"""

import os
import shutil
import signal
import sys
import time
from contextlib import suppress
from glob import glob

LOOK_SECONDS = 0.5


def end_all(folder):
    """Kill every process whose temporary files lie in this folder; returns whether there was one."""
    mark, found = f"\0TMPDIR={folder}".encode(), False
    for path in glob("/proc/[0-9]*/environ"):
        with suppress(OSError):  # another user's, or it has ended
            process = int(path.split("/")[2])
            with open(path, "rb") as file:
                is_ours = mark in b"\0" + file.read()
            if is_ours and process != os.getpid():
                os.kill(process, signal.SIGKILL)
                found = True
    return found


def main(parent, folder):
    while os.getppid() == parent:
        time.sleep(LOOK_SECONDS)
    for _ in range(10):  # some may be starting others at this moment
        if not end_all(folder):
            break
        time.sleep(LOOK_SECONDS)
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
