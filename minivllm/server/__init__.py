"""Many users at once: an engine in a thread of its own, and what speaks for it over HTTP."""
