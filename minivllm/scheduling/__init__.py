"""Which requests advance in the next step, and by how many tokens: plain Python, no tensors, no clock.

Read in this order: `plan` (what a step is), `queue` (who waits and who runs), `scheduler` (the loop body).
"""
