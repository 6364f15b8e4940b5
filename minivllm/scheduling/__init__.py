"""Which requests advance in the next step, and by how many tokens: plain Python, no tensors, no clock.

Read in this order: `plan.py` (what a step is), `batch_state.py` (which requests wait and run), `scheduler.py`
(how a step is filled), `preemption.py`, `policy.py`; beside them `router.py` (which of several engines gets a
request).
"""
