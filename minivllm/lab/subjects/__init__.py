"""What is measured: a model around which engines are made, and the requests that each of them serves.

Read in this order: `settings` (what can be chosen), `shapes` (random models of known sizes), `subject` (a
loaded model), `workload` (the same 64 requests for every engine), `real_time` (requests that arrive over
time).
"""
