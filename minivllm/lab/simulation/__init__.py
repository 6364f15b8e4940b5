"""The same scheduler and memory on hardware that is not here: a cost model and a virtual clock."""
