"""The page of speculation: what was guessed ahead, what was accepted and what was struck out.

Read next: `viz/figures/speculation.py`.
"""

from __future__ import annotations

from collections.abc import Callable

from viz import empty, figures, stage
from viz.about import about
from viz.figures.common import NARROW, PHONE
from viz.language import N_, _
from viz.loading import Run
from viz.player import Jump

TITLE = N_("Speculation")
URL = "speculation"
TEASER = N_("Several tokens in one step: guess them, verify them all at once, keep what is right.")

INTRODUCTION = N_(
    "A step of a large model costs nearly the same for one token as for five, so it pays to **guess**: a "
    "small model, or a look at what followed the same words before, proposes **drafts**. One step computes "
    "what the model itself would say after each of them. Drafts are **accepted** as far as they agree, the "
    "rest is struck out, and the outputs are those of the model alone."
)
LEGEND = N_(
    "Each row is a sequence: its drafts from left to right, and behind ► what the model said after the last "
    "one that was right. Bars: how often drafts are accepted, by position, in the whole run. A draft behind "
    "a wrong one is never accepted, so bars fall from left to right, and longer guesses pay less and less."
)
WITHOUT = N_("Nothing was guessed in this run. Make a run that guesses:")
HOW = """# in the shell:
minivllm generate "Once upon a time" --trace speculation.jsonl \\
    --speculative-config '{"method": "ngram", "num_speculative_tokens": 4, "prompt_lookup_max": 3}'
minivllm dashboard speculation.jsonl

# or in Python, with a draft model:
from minivllm.model.tiny import DRAFT_MODEL_PATH, MODEL_PATH

drafts = {"model": DRAFT_MODEL_PATH, "num_speculative_tokens": 4}
with LLM(MODEL_PATH, trace="speculation.jsonl", speculative_config=drafts) as llm:
    llm.generate("Once upon a time", SamplingParams(temperature=0, max_tokens=100))"""


def page(run: Run) -> None:
    about(_(INTRODUCTION))
    drafted = [record for record in run.timeline.records if record.drafts]
    if not drafted:
        empty.tell(URL, _(WITHOUT), HOW, "python")
        return
    stage.show(
        run,
        "speculation",
        lambda: [
            figures.speculation(run.timeline, width, screen)
            for width, screen in ((NARROW, "wide"), (PHONE, "narrow"))
        ],
        [
            Jump(_("first drafts"), drafted[0].step),
            Jump(_("all are right"), _first(run, lambda drafts, right: drafts == right)),
            Jump(_("none is right"), _first(run, lambda drafts, right: not right)),
            Jump(_("last drafts"), drafted[-1].step),
        ],
        start=drafted[0].step,
        legend=[_(LEGEND)],
    )


def _first(run: Run, is_it: Callable[[int, int], bool]) -> int | None:
    """The first step with a sequence of so many drafts, so many of which were right."""
    for record in run.timeline.records:
        if any(is_it(len(item.token_ids), item.num_accepted) for item in record.drafts):
            return record.step
    return None
