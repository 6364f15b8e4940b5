"""The dashboard: `streamlit run viz/app.py`, or better `minivllm dashboard [TRACE]`.

Python reads the trace, builds scenes, and is done; the browser plays them (`stage.py` tells why). A page is a
module in `views/` with a `page(run)`; to add one, write it and name it below. Pages to learn from need no
trace, and draw their own title. Each page ends with a link to the next, and the tour ends in the lessons.

Read next: `loading.py`.
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from types import ModuleType

import streamlit as st
from PIL import Image

# Streamlit puts this folder on the path, not the one that `import viz` needs.
if (root := str(Path(__file__).resolve().parent.parent)) not in sys.path:
    sys.path.insert(0, root)

from minivllm.trace.reader import TraceError
from viz import empty, language_switch, links, loading, long_runs, presenting
from viz.engine_words import in_words_of_the_reader
from viz.language import N_, _
from viz.loading import AnyRun, KernelRun, PrecisionRun, Run, StoryRun
from viz.pages import ENGINE_PAGES, KERNEL_PAGES
from viz.palette import FAMILIES
from viz.plain import plain
from viz.views import compare, glossary, lessons, live, microscope, overview, precision, start, story
from viz.views import run as own_run

LEARN_PAGES = (start, own_run, lessons, glossary, live)
RUN_PAGES = (*ENGINE_PAGES, compare)
# All in one row: Streamlit's sections would hide which page is open, and every page would be two clicks away.
PAGES = (*LEARN_PAGES, story, *RUN_PAGES, *KERNEL_PAGES, precision)
TOUR = (start, own_run, *RUN_PAGES, *KERNEL_PAGES, precision, lessons)

# What is opened, in words, and the page that shows it.
KINDS: dict[type, tuple[str, str, ModuleType]] = {
    Run: (N_("a run of the engine"), N_("runs of the engine"), overview),
    KernelRun: (N_("one of a kernel"), N_("kernels"), microscope),
    StoryRun: (N_("a failing story of a lesson"), N_("failing stories of lessons"), story),
    PrecisionRun: (N_("a comparison of precisions"), N_("comparisons of precisions"), precision),
}

# The pictures want the width that Streamlit leaves empty; nine numbers fit into one line if they are modest,
# and so do the names of all pages on a screen of 1280 pixels.
STYLE = """
<style>
.stMainBlockContainer { padding: 3.4rem clamp(1rem, 3vw, 3.5rem) 3rem; max-width: 100rem; }
[data-testid="stMetricValue"] { font-size: 1.45rem; }
h1 { padding: 0.2rem 0 0.6rem !important; }
.stMain h1 { font-size: 2.2rem; }
.stMain h2 { font-size: 1.75rem; }
.stMain button:has(> div p) { height: auto; }
.stMain button p { white-space: normal; overflow-wrap: anywhere; }
.stMain [data-testid="stCaptionContainer"], .stMain [data-testid="stCaptionContainer"] p { opacity: 1;
  color: light-dark(#63625F, #A9A8A3); }
.stMain button[data-selected="true"] p { color: light-dark(#A3283A, #FF8B96); }
.stMain code .token.string { color: light-dark(#0B6B2E, #5FD08A); }
.stMain code .token.parameter { color: light-dark(#006C91, #55C8F0); }
.stMain code .token.comment { color: light-dark(#5F6368, #A9A8A3); }
.st-key-lesson-text h2 { font-size: 1.6rem; }
.stMain code { overflow-wrap: anywhere; }
[data-testid="stTopNavLinkContainer"] { margin: 0 -2px; }
[data-testid="stTopNavLink"], [data-testid="stTopNavLink"] * { font-size: 13px; }
[data-testid="stTopNavLink"] { padding: 0 3px; }
.stMainBlockContainer > [data-testid="stVerticalBlock"] { position: relative; }
[data-testid="stLayoutWrapper"]:has(> .st-key-language-switch) {
  position: absolute; top: 1.77rem; right: 0; width: auto; z-index: 1;
}
.st-key-language-switch button { min-height: 1.9rem; padding: 0 0.6rem; }
.st-key-language-switch button p { font-size: 13px; }
@media (min-width: 768px) { /* what is chosen above a picture takes one line */
  .stMainBlockContainer > .stVerticalBlock > .stElementContainer > .stSelectbox, .st-key-chosen .stSelectbox {
    display: flex; align-items: center; gap: 0.8rem; width: auto !important;
    label { margin: 0; white-space: nowrap; }
    > div { width: 20rem; }
  }
  .st-key-chosen > .stElementContainer:has([data-testid="stCaptionContainer"]) {
    flex: 1 1 20rem; width: auto !important; min-width: 0;
  }
}
@media (prefers-reduced-motion: reduce) {
  *, *::before, *::after { animation-duration: 1ms !important; animation-iteration-count: 1 !important;
    transition-duration: 1ms !important; }
}
.stMain [class*="st-key-title-row"], .stMain h1 { padding-right: 7.6rem !important; }
.stMain [class*="st-key-title-row"] h1 { padding-right: 0 !important; }
@media (max-width: 767px) {
  [data-testid="stMarkdownContainer"] :is(th, td) { padding: 0.3rem 0.35rem !important; font-size: 0.8rem; }
  [data-testid="stLayoutWrapper"]:has(> .st-key-language-switch) {
    position: fixed; top: 0.9rem; right: 1rem; z-index: 999991;
  }
  .stMain [class*="st-key-title-row"], .stMain h1 { padding-right: 0 !important; }
}
</style>
"""


def main() -> None:
    st.set_page_config(page_title="minivllm", page_icon=_icon(), layout="wide")
    st.html(STYLE)
    language_switch.speak_as_chosen()
    language_switch.switch()
    run, problem = _open()
    pages = {
        page.URL: st.Page(
            partial(_page, page, run, problem),
            title=_(page.TITLE),
            url_path=page.URL,
            default=page is overview,
        )
        for page in PAGES
    }
    st.session_state.pages = pages  # by the end of their links
    st.navigation(list(pages.values()), position="top").run()


def _open() -> tuple[AnyRun | None, str]:
    """The run to show; if there is none, the reason in a sentence ("" if nothing was chosen yet)."""
    path = loading.chosen_path()
    if path is None:
        return None, ""
    try:
        with st.spinner(_("Reading the trace …")):
            run = loading.open_any(path)
    except TraceError as error:
        return None, str(error)
    loading.note(path)
    st.query_params["trace"] = str(path)  # Streamlit drops it when the page changes
    return run, ""


def _page(page: ModuleType, run: AnyRun | None, problem: str) -> None:
    st.set_page_config(
        page_title=f"{_(page.TITLE)} · minivllm"
    )  # tells tabs, and places in the history, apart
    if page in LEARN_PAGES:
        presenting.begin(may_present=False)
        page.page(run)
    else:
        _page_of_a_trace(page, run, problem)
    if page is not lessons:  # which leads from lesson to lesson
        _next(page)


def _next(page: ModuleType) -> None:
    """Links to what the words mean, and to the next page: from a page beside the tour to the lessons."""
    following = TOUR[TOUR.index(page) + 1] if page in TOUR else lessons
    if page not in LEARN_PAGES:
        links.page_link(glossary.URL, _("Glossary: what the words on this page mean"))
    links.page_link(following.URL, _("Next: {page}").format(page=_(following.TITLE)))
    st.caption(_(following.TEASER))


def _page_of_a_trace(page: ModuleType, run: AnyRun | None, problem: str) -> None:
    own = {story: StoryRun, precision: PrecisionRun, **dict.fromkeys(KERNEL_PAGES, KernelRun)}
    kind = own.get(page, Run)
    if run is None:
        st.title("minivllm" if page is overview else _(page.TITLE))
        _welcome(page, problem, kind)
        return
    can_show = isinstance(run, kind)
    if presenting.begin(may_present=can_show):
        presenting.bar(_(page.TITLE))
    with st.container(
        key="title-row", horizontal=True, horizontal_alignment="distribute", vertical_alignment="center"
    ):
        st.title(_(page.TITLE), width="content")
        with st.container(horizontal=True, width="content"):
            if can_show:
                presenting.button()
            name = _("Trace: {file}").format(file=plain(run.path.name))
            with st.popover(name, help=_("Open another trace")):
                loading.chooser()
    if not isinstance(run, kind):
        _other_kind(page, run, kind)
        return
    if warnings := loading.warnings_of(run):  # in one box, which leaves the picture in sight
        st.warning("  \n".join(plain(in_words_of_the_reader(warning)) for warning in warnings))
    if isinstance(run, Run):
        long_runs.chooser(run.path, *run.part)
    page.page(run)


def _other_kind(page: ModuleType, run: AnyRun, wanted: type) -> None:
    """This page cannot show this trace; another one can."""
    words, _several, place = KINDS[type(run)]
    _one, shown, own = KINDS[wanted]
    told = _("The open trace is {this}; this page shows {other}.")
    st.info(told.format(this=_(words), other=_(shown)))
    empty.offer(page.URL)
    if wanted is not Run:
        st.markdown(_("To get one:"))
        st.code(own.HOW, language="shell")
    links.page_link(place.URL, _("Go to: {page}").format(page=_(place.TITLE)))


def _welcome(page: ModuleType, problem: str, kind: type) -> None:
    if problem:
        st.error(plain(in_words_of_the_reader(problem)))
    if kind is not Run:
        own = KINDS[kind][2]
        st.markdown(_(own.WITHOUT))
        empty.offer(page.URL)
        st.code(own.HOW, language="shell")
        loading.chooser()
        return
    if page is not overview:
        st.caption(_(page.TEASER))
    st.markdown(
        _(
            "A **trace** is a file in which a run of the engine has written down everything that happened. "
            '`minivllm demo` makes one in a minute; so does `LLM(..., trace="run.jsonl")` in your own '
            "program. Open it here, and step through it."
        )
    )
    empty.offer(page.URL)
    loading.chooser()
    st.markdown(_("Without a trace, too:"))
    for other in LEARN_PAGES:
        links.page_link(other.URL, _(other.TITLE))
        st.caption(_(other.TEASER))


def _icon() -> Image.Image:
    """Four blocks; drawn here because Streamlit would fetch a named icon from the network."""
    icon = Image.new("RGB", (32, 32), "white")
    for index, fill in enumerate(FAMILIES[:4]):
        x, y = 2 + 15 * (index % 2), 2 + 15 * (index // 2)
        icon.paste(fill, (x, y, x + 13, y + 13))
    return icon


main()
