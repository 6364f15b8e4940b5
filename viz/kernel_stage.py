"""The stage for traces of kernels: the same player, and a font for code in pictures of a source.

Read next: `stage.py`, which tells how step and link are kept in agreement; `views/microscope.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import streamlit as st

from viz import player, stage
from viz.figures.kernel_source import TITLE
from viz.language import in_all_languages
from viz.player import Jump
from viz.scene import Scene

# Columns of code are places only where all characters are equally wide.
CODE = ",".join(f'svg[aria-label^="{title}"] text' for title in in_all_languages(TITLE))
CODE += "{font-family:var(--st-code-font,monospace)}"

PLAYER = st.components.v2.component(
    "minivllm_kernel_player",
    html=player.html(),
    css=player.css() + stage.THEME + CODE,
    js=player.javascript(),
)


def show(
    fingerprint: str,
    name: str,
    make_scenes: Callable[[], Sequence[Scene]],
    jumps: Sequence[Jump],
    steps: Sequence[int],
) -> None:
    """Play the scenes of a page.

    Args:
        fingerprint: of one kernel of a file: pages with the same one stand at the same place.
        name: tells these pictures from others of the same kernel.
        make_scenes: called only if this session's server has not made them before.
        steps: the number of the event at each step of the scenes.
    """
    stage.show_scenes(fingerprint, name, make_scenes, jumps, steps, component=PLAYER)
