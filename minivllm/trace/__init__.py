"""The trace: everything that happens, as typed events; the ground floor that all else stands on.

Read in this order: `events` (the vocabulary), `tee` and `recorder` (events → file), `reader` (file → events),
`replay` and `blocks` (events → the engine's state), `timeline` (what happened, step by step), `summary` and
`perfetto` (numbers, and other tools).
"""
