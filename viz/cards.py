"""A card: a line of a path, with words on the left and a button on the right; on a phone, below them.

Read next: `views/start.py` and `views/lessons.py`, whose paths are made of cards.
"""

from __future__ import annotations

import streamlit as st
from streamlit.delta_generator import DeltaGenerator


def card(key: str) -> DeltaGenerator:
    """The frame; what is put into it comes from left to right."""
    return st.container(
        border=True,
        key=key,
        horizontal=True,
        horizontal_alignment="distribute",
        vertical_alignment="center",
    )
