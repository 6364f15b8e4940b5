"""`python -m lessons`: see `commands.py`."""

from lessons.commands import main

main()
