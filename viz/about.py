"""What a page is about, folded away: the picture stands where the reader looks first.

Read next: `stage.py`.
"""

from __future__ import annotations

import streamlit as st

from viz.language import _


def about(text: str) -> None:
    """The page's words on what there is to see, and what to try, behind one line."""
    with st.expander(_("What am I looking at?"), icon=":material/help:"):
        st.markdown(text)
