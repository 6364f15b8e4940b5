"""Which tests failed, one a line, in the file that `MINIVLLM_FAILED` names: for a second look at them alone.

MINIVLLM_FAILED=failed pytest -p tests.what_failed; pytest -n 0 @failed
"""

import os
from pathlib import Path


def pytest_terminal_summary(terminalreporter):
    if path := os.environ.get("MINIVLLM_FAILED"):
        reports = [*terminalreporter.stats.get("failed", ()), *terminalreporter.stats.get("error", ())]
        names = dict.fromkeys(report.nodeid for report in reports)
        Path(path).write_text("".join(f"{name}\n" for name in names), encoding="utf-8")
