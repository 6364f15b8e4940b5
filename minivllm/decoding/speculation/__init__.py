"""Speculative decoding: several tokens of a sequence in one step, and the same outputs as without it."""
