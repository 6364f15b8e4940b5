"""The trace: everything that happens, as typed events; the ground floor that all else stands on.

Read in this order: `events` (the vocabulary), `recorder` (events → file), `reader` (file → events),
`replay` (events → the engine's state), `summary` and `perfetto` (events → numbers, and other tools).
"""
