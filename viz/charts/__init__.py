"""Charts: a whole run in one picture: distributions, numbers over time, bars.

A figure (`viz/figures/`) shows what is true at a step; a chart shows all steps at once, and each of its
points leads to its step. Both are scenes, so a page plays them together. A chart is a pure function of a
timeline.

Read next: `style.py`, `latencies.py`, `over_time.py`.
"""
