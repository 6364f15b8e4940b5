"""The same scheduler and memory on hardware that is not here: a cost model and a virtual clock.

Read in this order: `cards` (hardware and models as data), `cost_model`, `replica`, `cluster`,
`metrics`, `setting`, `command`; `fit` makes a card from measured steps.
"""
