"""Comparisons: the same requests with and without one idea, side by side.

    minivllm compare cache     what a KV cache saves

A lesson is a comparison, so the baselines are real code on the same interfaces.
"""
