"""viz: a trace goes in, pictures that can be stepped through come out. Reads `minivllm.trace`, nothing else.

Read in this order: `scene` (a picture with a step cursor, as data), `palette`, `figures/` (trace → scene),
`player/` (the browser plays a scene), `backends/` (stills, pages, films), `app` and `views/` (the dashboard).
"""

from typing import TYPE_CHECKING

import minivllm.guard  # noqa: F401  # Ctrl-C finds it ready, whatever is imported afterwards

if TYPE_CHECKING:
    from viz.notebook import show as show

__all__ = ["show"]


def __getattr__(name: str) -> object:
    """`from viz import show` loads figures and player; `import viz` alone loads nothing."""
    if name == "show":
        from viz.notebook import show

        return show
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
