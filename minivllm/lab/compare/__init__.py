"""Comparisons: the same requests with and without one idea, side by side.

    minivllm compare cache     what a KV cache saves
    minivllm compare memory    what paging saves, and what sharing adds

A lesson is a comparison, so the baselines are real code on the same interfaces.
"""
