"""Page "Glossary": what every word means, in a line, and where it lives in the code. It needs no trace.

    ?term=block table   what to search for at first
    &lang=zh            the Chinese file

Read next: `viz/glossary.py`.
"""

from __future__ import annotations

import streamlit as st

from viz import glossary_table
from viz.glossary import FILES, read_glossary
from viz.language import N_, _, current
from viz.lesson_words import say

TITLE = N_("Glossary")
URL = "glossary"
TEASER = N_("What every word means, in one line, and where it lives in the code.")

TEXT_WIDTH = 820


def page(run: object = None) -> None:
    """Title, and the terms; the open trace, if there is one, plays no part in it."""
    st.title(_(TITLE))
    glossary = read_glossary(current())
    if glossary is None:
        st.info(say("no glossary", file=FILES[current()]))
        return
    if glossary.introduction:
        st.markdown(glossary.introduction, width=TEXT_WIDTH)
    glossary_table.show(
        glossary.groups,
        say("find a term"),
        say("terms shown", shown="{shown}", all="{all}"),
        st.query_params.get("term", ""),
    )
