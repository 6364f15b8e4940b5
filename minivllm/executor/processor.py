"""What the processor says of itself. No torch is needed: `minivllm doctor` asks where nothing else works.

Read next: `own_hardware.py` for what it can do; `cpu_hazards.py` for how many of its cores are ours.
"""

from __future__ import annotations

import platform
from pathlib import Path

CPU_INFO = Path("/proc/cpuinfo")


def cpu_name() -> str:
    """What the processor calls itself; its architecture, if it has no name."""
    return _field("model name") or platform.processor() or platform.machine()


def cpu_flags() -> frozenset[str]:
    """What instructions it has, as Linux names them; empty where that is not known."""
    return frozenset(_field("flags").split())


def _field(key: str) -> str:
    """The value of the first `key : value` line; empty if there is none."""
    text = CPU_INFO.read_text(errors="replace") if CPU_INFO.is_file() else ""
    for line in text.splitlines():
        name, _, value = line.partition(":")
        if name.strip() == key:
            return value.strip()
    return ""
