"""Requests go in, outputs come out: the core is the loop body, the engine brings text, clock and callers."""
