"""`python -m minivllm` is the command `minivllm`: see `minivllm/console/cli.py`."""

from minivllm.console.cli import main

if __name__ == "__main__":
    main()
