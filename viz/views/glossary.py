"""Page "Glossary": what every word means, in a line, and where it lives in the code. It needs no trace.

    ?term=block table   what to search for at first
    &language=zh        the Chinese file, and this page in Chinese

Read next: `viz/glossary.py`.
"""

from __future__ import annotations

import streamlit as st

from viz import glossary_table, links
from viz.glossary import FILES, read_glossary
from viz.language import N_
from viz.lesson_words import LANGUAGES, say

TITLE = N_("Glossary")
URL = "glossary"
TEASER = N_("What every word means, in one line, and where it lives in the code.")

TEXT_WIDTH = 820


def page(run: object = None) -> None:
    """Title, language, and the terms; the open trace, if there is one, plays no part in it."""
    language = links.kept("language", LANGUAGES, "en")
    with st.container(horizontal=True, horizontal_alignment="distribute", vertical_alignment="bottom"):
        st.title(say(language, "glossary"), width="content")
        links.choice("language", tuple(LANGUAGES), language, say(language, "language"), LANGUAGES)
    glossary = read_glossary(language)
    if glossary is None:
        st.info(say(language, "no glossary", file=FILES[language]))
        return
    if glossary.introduction:
        st.markdown(glossary.introduction, width=TEXT_WIDTH)
    glossary_table.show(
        glossary.groups,
        say(language, "find a term"),
        say(language, "terms shown", shown="{shown}", all="{all}"),
        st.query_params.get("term", ""),
    )
