"""A second trace beside the first: opened if one was chosen, asked for if not.

Read next: `loading.py`, which knows what was chosen; `views/compare.py` and `views/flash_attention.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import streamlit as st

from minivllm.trace.reader import TraceError
from viz import loading
from viz.engine_words import in_words_of_the_reader
from viz.language import _
from viz.loading import KernelRun, Run
from viz.plain import plain

AnyRun = TypeVar("AnyRun", Run, KernelRun)


def second_trace(
    first: AnyRun, open_trace: Callable[[Path], AnyRun], ask: Callable[[], object]
) -> AnyRun | None:
    """The second trace, of the same kind as the first; while there is none, the page offers to choose one.

    Args:
        ask: says on the page what a second trace would be good for.
    """
    path, other = loading.chosen_other(), None
    if path is not None:
        try:
            other = open_trace(path)
            st.query_params["with"] = str(path)
        except TraceError as error:
            st.error(plain(in_words_of_the_reader(str(error))))
    if other is None:
        ask()
        _choose(first)
    else:
        with st.popover(
            _("Beside it: {name}").format(name=plain(other.path.name)), help=_("Choose another second trace")
        ):
            _choose(first)
    return other


def _choose(first: Run | KernelRun) -> None:
    is_kernel = isinstance(first, KernelRun)
    key = "kernel neighbour" if is_kernel else "neighbour"
    found = loading.neighbours(first.path, kernels=is_kernel)
    if found:
        chosen = st.selectbox(
            _("A trace from the same folder"),
            found,
            None,
            format_func=lambda path: path.name,
            placeholder=_("Choose one"),
            key=key,
            width=360,
        )
        if chosen is not None and chosen != st.session_state.get(f"{key} taken"):
            st.session_state[f"{key} taken"] = chosen
            loading.choose_other(chosen)
            st.rerun()
    loading.chooser(loading.choose_other, "open-other-kernel" if is_kernel else "open-other")
