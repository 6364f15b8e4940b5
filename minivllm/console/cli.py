"""The entry of the command line. Importing the commands takes time: that waits until the program is guarded.

Read next: `minivllm/guard.py`, for what Ctrl-C does from here on; then `minivllm/console/commands.py`.
"""

from __future__ import annotations

import sys


def main() -> None:
    """Entry point of the `minivllm` command."""
    from minivllm.console.commands import run

    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
