"""The entry of the command line, and so short that Ctrl-C finds it ready from the first moment.

Importing the commands takes time, so it happens inside the `try`: an interrupt ends the program with exit
code 130 and without a traceback, whether it comes during imports or during the work.

Read next: `minivllm/console/commands.py`.
"""

from __future__ import annotations

import sys


def main() -> None:
    """Entry point of the `minivllm` command."""
    try:
        from minivllm.console.commands import run

        code = run(sys.argv[1:])
    except KeyboardInterrupt:
        code = 130
    sys.exit(code)


if __name__ == "__main__":
    main()
