"""`python -m minivllm.entrypoints.openai.api_server --model …`: `minivllm serve`, as vLLM's users type it."""

import sys

from minivllm.console.cli import main

if __name__ == "__main__":
    sys.argv.insert(1, "serve")
    main()
