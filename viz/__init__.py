"""viz: a trace goes in, pictures that can be stepped through come out. Reads `minivllm.trace`, nothing else.

Read in this order: `scene` (a picture with a step cursor, as data), `palette`, `figures/` (trace → scene),
`player/` (the browser plays a scene), `backends/` (stills, pages, films), `app` and `views/` (the dashboard).
"""

import minivllm.guard  # noqa: F401  # Ctrl-C finds it ready, whatever is imported afterwards
