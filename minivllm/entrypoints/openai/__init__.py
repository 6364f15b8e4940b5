"""Module paths that vLLM's users type."""
