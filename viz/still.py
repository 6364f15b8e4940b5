"""A picture that stands still: an SVG on a page, with words for those who cannot see it.

`st.image` has no place for such words. Read next: `viz/views/lessons.py`, which shows the map of the course.
"""

from __future__ import annotations

from base64 import b64encode
from html import escape

import streamlit as st


def still(svg: str, words: str) -> None:
    """Show a picture as wide as there is room; its own caption, if it has one, is the caller's."""
    address = f"data:image/svg+xml;base64,{b64encode(svg.encode()).decode()}"
    st.html(f'<img style="width:100%" alt="{escape(words, quote=True)}" src="{address}">')
