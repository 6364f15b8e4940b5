"""What a guarded block leaves behind: nothing, not even for those who trace."""

import subprocess
import sys

from minivllm.processes import ROOT
from tests import patience

PROGRAM = """
import faulthandler, sys
from lessons.guard import Printed, TooLong, guarded

faulthandler.dump_traceback_later(300, exit=True)

def call(value=1):
    return lambda: value

def traced():
    seen = []
    sys.settrace(lambda frame, event, argument: seen.append(event))
    call()
    sys.settrace(None)
    return seen

before = traced()
with guarded(5.0, Printed()):
    pass
assert traced() == before
try:
    with guarded(0.1, Printed()):
        while True:
            pass
except TooLong:
    print("too long")
assert traced() == before
with guarded(5.0, Printed()):
    call()
print("all is well")
"""


def test_after_a_guarded_block_a_tracer_still_works_and_nothing_more_is_thrown():
    """Python's mark that an exception has come was left behind once: a traced call then never began."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=patience.SECONDS,
        check=False,
    )
    assert done.stdout.split("\n")[:2] == ["too long", "all is well"], done.stderr[-2000:]
