"""Charts: still pictures of a whole run, drawn by matplotlib: distributions, and numbers over time.

A figure (`viz/figures/`) has a step cursor and is played; a chart has none and is looked at. Each is a pure
function of a timeline and a theme.

Read next: `style.py`, `latencies.py`, `over_time.py`.
"""
