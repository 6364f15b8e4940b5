"""The switch on every page: English or 中文, kept in the link (`?lang=zh`) from page to page.

    ?lang=… in the link  ►  what was chosen in this session  ►  what the browser prefers  ►  English

Read next: `language.py`.
"""

from __future__ import annotations

import streamlit as st

from viz import links
from viz.language import LANGUAGES, current, speak

NAME = "lang"
LABEL = "Language · 语言"
"""For screen readers: the reader may not know the language of the page."""


def speak_as_chosen() -> None:
    """Called first in each run of the script: all that follows speaks the reader's language."""
    chosen = st.query_params.get(NAME) or st.session_state.get(f"kept {NAME}") or ""
    if chosen in LANGUAGES:
        links.keep(NAME, chosen)
        speak(chosen)
    else:
        speak(_preferred())


def switch() -> None:
    """The two buttons, and the page's own word for its language, which screen readers go by."""
    with st.container(key="language-switch", width="content"):
        links.choice(NAME, tuple(LANGUAGES), current(), LABEL, LANGUAGES)
    st.html(f"<script>document.documentElement.lang = '{current()}'</script>", unsafe_allow_javascript=True)


def _preferred() -> str:
    """What the browser asks for, if we speak it."""
    code = (st.context.locale or "").split("-")[0].lower()
    return code if code in LANGUAGES else "en"
