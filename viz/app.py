"""The dashboard: `streamlit run viz/app.py`, or better `minivllm dashboard [TRACE]`.

Python reads the trace, builds scenes, and is done; the browser plays them (`stage.py` tells why). A page is a
module in `views/` with a `page(run)`; to add one, write it and name it below.

Read next: `loading.py`.
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import streamlit as st
from PIL import Image

# Streamlit puts this folder on the path, not the one that `import viz` needs.
if (root := str(Path(__file__).resolve().parent.parent)) not in sys.path:
    sys.path.insert(0, root)

from minivllm.trace.reader import TraceError
from viz import loading
from viz.loading import KernelRun, Run
from viz.palette import FAMILIES
from viz.views import (
    beam_tree,
    compare,
    flash_attention,
    kv_pool,
    metrics,
    microscope,
    overview,
    prefix_tree,
    roofline,
    scheduler,
)

KERNEL_PAGES = (microscope, flash_attention)
PAGES = (overview, kv_pool, scheduler, beam_tree, prefix_tree, roofline, metrics, compare, *KERNEL_PAGES)

# The pictures want the width that Streamlit leaves empty; nine numbers fit into one line if they are modest.
STYLE = """
<style>
.stMainBlockContainer { padding: 4.2rem clamp(1rem, 3vw, 3.5rem) 3rem; max-width: 100rem; }
[data-testid="stMetricValue"] { font-size: 1.45rem; }
h1 { padding: 0.4rem 0 !important; }
</style>
"""


def main() -> None:
    st.set_page_config(page_title="minivllm", page_icon=_icon(), layout="wide")
    st.html(STYLE)
    run, problem = _open()
    pages = [
        st.Page(partial(_page, index, run, problem), title=page.TITLE, url_path=page.URL, default=not index)
        for index, page in enumerate(PAGES)
    ]
    st.session_state.pages = pages
    st.navigation(pages, position="top").run()


def _open() -> tuple[Run | KernelRun | None, str]:
    """The run to show; if there is none, the reason in a sentence ("" if nothing was chosen yet)."""
    path = loading.chosen_path()
    if path is None:
        return None, ""
    try:
        run = loading.open_any(path)
    except TraceError as error:
        return None, str(error)
    # Streamlit drops the link's parameters when the page changes.
    st.query_params["trace"] = str(path)
    if "step" in st.session_state:
        st.query_params["step"] = str(st.session_state.step)
    return run, ""


def _page(index: int, run: Run | KernelRun | None, problem: str) -> None:
    is_kernel_page = PAGES[index] in KERNEL_PAGES
    if run is None:
        st.title(PAGES[index].TITLE if is_kernel_page else "minivllm")
        _welcome(problem, is_kernel_page)
        return
    with st.container(horizontal=True, horizontal_alignment="distribute", vertical_alignment="bottom"):
        st.title(PAGES[index].TITLE, width="content")
        with st.popover(f"Trace: {run.path.name}", help="Open another trace"):
            loading.chooser()
    if isinstance(run, KernelRun) != is_kernel_page:
        _other_kind(run)
        return
    for warning in loading.warnings_of(run):
        st.warning(warning)
    PAGES[index].page(run)
    if index + 1 < len(PAGES):
        following = PAGES[index + 1]
        st.page_link(st.session_state.pages[index + 1], label=f"Next: {following.TITLE}")
        st.caption(following.TEASER)


def _other_kind(run: Run | KernelRun) -> None:
    """This page cannot show this trace; another one can."""
    if isinstance(run, KernelRun):
        st.info("The open trace is one of a kernel; this page shows runs of the engine.")
        place = PAGES.index(microscope)
    else:
        st.info("The open trace is a run of the engine; this page shows kernels. To record one:")
        st.code(microscope.HOW, language="shell")
        place = 0
    st.page_link(st.session_state.pages[place], label=f"Go to: {PAGES[place].TITLE}")


def _welcome(problem: str, is_kernel_page: bool = False) -> None:
    if problem:
        st.error(problem)
    if is_kernel_page:
        st.markdown(microscope.WITHOUT)
        st.code(microscope.HOW, language="shell")
        loading.chooser()
        return
    st.markdown(
        "A **trace** is a file in which a run of the engine has written down everything that happened. "
        '`minivllm demo` makes one in a minute; so does `LLM(..., trace="run.jsonl")` in your own program. '
        "Open it here, and step through it."
    )
    loading.chooser()


def _icon() -> Image.Image:
    """Four blocks; drawn here because Streamlit would fetch a named icon from the network."""
    icon = Image.new("RGB", (32, 32), "white")
    for index, fill in enumerate(FAMILIES[:4]):
        x, y = 2 + 15 * (index % 2), 2 + 15 * (index // 2)
        icon.paste(fill, (x, y, x + 13, y + 13))
    return icon


main()
