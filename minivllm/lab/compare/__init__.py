"""Comparisons: the same requests with and without one idea, side by side.

    minivllm compare cache       what a KV cache saves
    minivllm compare memory      what paging saves, and what sharing adds
    minivllm compare schedule    what each scheduling policy gives, and what it costs
    minivllm compare attention   what FlashAttention reads and writes, counted

A lesson is a comparison, so the baselines are real code on the same interfaces.
Read next: `memory.py`, `schedule.py`.
"""
