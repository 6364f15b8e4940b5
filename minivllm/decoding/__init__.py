"""From logits to tokens to text, and when to stop.

Read in this order: `sampling_state` (what one sequence remembers), `sampler` (logits → token),
`logits_processors` (what is done to the logits before), `detokenizer` (tokens → text), `stop_criteria`,
and `generation`, which puts them together for one sequence.
"""
