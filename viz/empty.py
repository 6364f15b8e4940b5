"""A page that has nothing to show says so, and opens a sample that has.

    "Nothing was guessed in this run."   [Open a sample: …]   how to make such a run

Read next: `viz/samples/__init__.py`.
"""

from __future__ import annotations

import streamlit as st

from viz import links, loading
from viz.language import _
from viz.plain import plain
from viz.samples import Sample, samples_for

MOST = 3


def tell(page: str, words: str, how: str, language: str = "shell") -> None:
    """What is missing, a sample at once, and how to make a run that has it.

    Args:
        page: its name in links.
        how: commands or a program.
    """
    st.info(words)
    offer(page)
    st.code(how, language=language)


def offer(page: str) -> None:
    """Samples that this page has something to show for; a press opens one here."""
    with st.container(horizontal=True, gap="small"):
        for sample in samples_for(page)[:MOST]:
            label = _("Open a sample: {title}").format(title=_(sample.title))
            if st.button(label, key=f"sample-{sample.names[0]}"):
                open_sample(sample, page)


def open_sample(sample: Sample, page: str) -> None:
    """Look at it on this page."""
    try:
        paths = sample.unpacked()
    except ValueError as error:
        st.error(plain(error))
        return
    loading.choose_other(paths[1] if len(paths) > 1 else None)
    loading.choose(paths[0])
    if links.has_page(page):
        links.go(page)
    st.rerun()
