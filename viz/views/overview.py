"""Page 1: the run in numbers, and what every request says, step by step.

Read next: `viz/figures/overview.py`.
"""

from __future__ import annotations

import streamlit as st

from minivllm.trace.summary import RunSummary, format_seconds
from viz import figures, links, stage
from viz.about import about
from viz.engine_words import in_words_of_the_reader
from viz.language import N_, _
from viz.loading import Run
from viz.plain import plain

TITLE = N_("Overview")
URL = "overview"
TEASER = N_("What the run was like, in numbers and in words.")

INTRODUCTION = N_(
    "A **request** brings a prompt; the engine adds one **token** (a piece of a word) at a time. In every "
    "**step** all requests of the batch advance together. Press **Play**, or step with the ← and → keys, and "
    "watch the answers grow: some prompts still *prefill* while others *decode*. "
    "Jump to the first wait and read the sentence above the pictures: why is no other request admitted?"
)


def page(run: Run) -> None:
    about(f"{_(INTRODUCTION)}\n\n{_setting(run)}")
    stage.show(run, "overview", lambda: figures.overview(run.timeline))
    _facts(run.summary)
    _new_here()
    most, count = figures.MOST_OVERVIEW_ROWS, len(run.timeline.spans)
    if count > most:
        st.caption(_("The first {most} of {count:,} requests are shown.").format(most=most, count=count))
    with st.expander(_("All numbers of this run")):
        st.table(
            {
                in_words_of_the_reader(name): plain(in_words_of_the_reader(value))
                for name, value in run.summary.facts()
            },
            border="horizontal",
        )


def _new_here() -> None:
    """The way in, until it is closed."""
    if st.session_state.get("not new here") or not links.has_page("start"):
        return
    with st.container(border=True, horizontal=True, vertical_alignment="center"):
        st.markdown(_("**New here?** What this is, and a path through it:"), width="content")
        links.page_link("start", _("Start here"))
        if st.button(_("Close"), key="not-new-here", type="tertiary"):
            st.session_state["not new here"] = True
            st.rerun()


def _setting(run: Run) -> str:
    """Model and limits in one paragraph."""
    header = run.timeline.trace.header
    parts = []
    if model := header.model:
        parts.append(
            _(
                "Model **{name}**: {parameters:,.3g} million parameters, {layers} layers, {heads} "
                "attention heads sharing {kv_heads} KV heads of {head_dim} numbers, {dtype}. A token's "
                "keys and values take {kv_bytes_per_token:,} bytes."
            ).format(
                name=plain(model.name),
                parameters=model.num_parameters / 1e6,
                layers=model.num_layers,
                heads=model.num_heads,
                kv_heads=model.num_kv_heads,
                head_dim=model.head_dim,
                dtype=model.dtype,
                kv_bytes_per_token=model.kv_bytes_per_token,
            )
        )
    parts.append(
        _(
            "The **KV cache** is a pool of {blocks:,} blocks of {block_size} tokens. A step computes "
            "at most {max_num_batched_tokens:,} tokens, of at most {max_num_seqs:,} sequences."
        ).format(
            blocks=header.num_blocks,
            block_size=header.block_size,
            max_num_batched_tokens=header.max_num_batched_tokens,
            max_num_seqs=header.max_num_seqs,
        )
    )
    if header.clock != "wall":
        parts.append(_("Times are those of a simulated clock."))
    return " ".join(parts)


def _facts(summary: RunSummary) -> None:
    """The numbers that are looked at first."""
    speed = summary.output_tokens_per_second
    share = summary.peak_used_blocks / summary.num_blocks
    requests = _("{finished} of {requests}").format(
        finished=summary.num_finished, requests=summary.num_requests
    )
    facts = [
        (
            _("Finished"),
            requests,
            _("Requests finished, of all that were accepted. Refused ones are counted apart."),
        ),
        (
            _("Tokens / s"),
            f"{speed:,.1f}" if speed else "–",
            _("Throughput: output tokens of all requests together, in a second."),
        ),
        (
            _("TTFT p50"),
            format_seconds(summary.ttft.p50),
            _("Time to first token, from arrival; half are faster."),
        ),
        (_("TTFT p95"), format_seconds(summary.ttft.p95), _("One request in twenty waits longer than this.")),
        (
            _("TPOT p50"),
            format_seconds(summary.tpot.p50),
            _("Time per output token after the first; half are faster."),
        ),
        (
            _("Peak blocks"),
            f"{summary.peak_used_blocks:,}",
            _("Most blocks in use after a step: {share:.0%} of the pool.").format(share=share),
        ),
        (_("Waste"), f"{summary.mean_waste:.1%}", _("Slots of used blocks that hold no token, on average.")),
        (
            _("Preempted"),
            f"{summary.num_preemptions:,}",
            _("Times that a request was preempted because blocks or slots in the batch were short."),
        ),
        (_("Refused"), f"{summary.num_refused:,}", _("Requests that could never fit, told so at once.")),
        *_sharing_facts(summary),
    ]
    with st.container(horizontal=True, gap="xsmall"):  # nine of them fit into a line of 1280 pixels
        for label, value, explanation in facts:
            st.metric(label, value, help=explanation, border=True, width=124)


def _sharing_facts(summary: RunSummary) -> list[tuple[str, str, str]]:
    """The same for sharing: only what happened."""
    facts = [
        (
            summary.peak_saved_blocks,
            _("Saved"),
            f"{summary.mean_saved_share:.1%}",
            _("Blocks that sharing saves, of those that would be needed otherwise, on average."),
        ),
        (
            summary.num_copies,
            _("Copied"),
            f"{summary.num_copies:,}",
            _("Copies on write: a sequence was about to write to a shared block."),
        ),
        (
            summary.hit_tokens,
            _("Cache hits"),
            f"{summary.hit_rate:.1%}",
            _(
                "{hit_tokens:,} tokens that the prefix cache had, of all that had to be in the cache "
                "before a token could be chosen."
            ).format(hit_tokens=summary.hit_tokens),
        ),
        (
            summary.num_evicted_blocks,
            _("Evicted"),
            f"{summary.num_evicted_blocks:,}",
            _("Evictable blocks that the prefix cache removed, mostly to make room for other tokens."),
        ),
        (
            summary.num_swaps,
            _("Swapped"),
            f"{summary.num_swaps:,}",
            _("Preemptions whose blocks went to the swap space instead of being computed again."),
        ),
        (
            summary.num_drafts,
            _("Drafts right"),
            f"{summary.num_accepted_tokens / max(1, summary.num_draft_tokens):.0%}",
            _("Guesses that were accepted. A step with guesses gave {tokens:.2f} tokens on average.").format(
                tokens=1 + summary.num_accepted_tokens / max(1, summary.num_drafts)
            ),
        ),
    ]
    return [(label, value, explanation) for count, label, value, explanation in facts if count]
