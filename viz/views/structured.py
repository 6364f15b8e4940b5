"""The page of structured output: at each token, what was allowed and what was struck out.

Read next: `viz/figures/allowed_tokens.py`.
"""

from __future__ import annotations

from viz import empty, figures, links, stage
from viz.about import about
from viz.figures.common import NARROW, PHONE, names_of
from viz.language import N_, _
from viz.loading import Run
from viz.player import Jump

TITLE = N_("Structured output")
URL = "structured_output"
TEASER = N_("How an output comes to parse: what may not come next is struck out.")

INTRODUCTION = N_(
    "An output that must follow a **schema**, a pattern, a list of choices or a grammar always parses, "
    "because no token is allowed that could keep it from doing so. An automaton reads the output so far, and "
    "knows which **tokens** can still lead to its end: a **mask** over the vocabulary. Step, and see what "
    "the model would have liked to say at each place, and what it was left."
)
LEGEND = N_(
    "The longer the bar, the likelier the model found the token, before anything was struck out. Below: how "
    "many tokens were allowed at each step, on a logarithmic scale. Within a string nearly all are; where a "
    "number must begin, few are. Where the bars of struck-out tokens are long, the structure leads the model "
    "away from what it would have said."
)
WITHOUT = N_("No request of this run had structured output. Make a run that has one:")
HOW = """# in the shell:
minivllm generate "Paging is" --trace structured.jsonl --structured-outputs '{"regex": "[a-z]+"}'
minivllm dashboard structured.jsonl

# or in Python:
with LLM("path/to/model", trace="structured.jsonl") as llm:
    wanted = StructuredOutputsParams(json={"type": "object", "properties": {"name": {"type": "string"}}})
    llm.generate("Paging is", SamplingParams(structured_outputs=wanted, max_tokens=60))"""


def page(run: Run) -> None:
    about(_(INTRODUCTION))
    requests = figures.structured_requests(run.timeline)
    if not requests:
        empty.tell(URL, _(WITHOUT), HOW, "python")
        return
    names = names_of(run.timeline)
    words = {request: names[request].full for request in requests}
    request = links.select("output", words, _("Show the output of request"))
    stage.show(
        run,
        f"structured-{request}",
        lambda: [
            figures.allowed_tokens(run.timeline, request, width, screen)
            for width, screen in ((NARROW, "wide"), (PHONE, "narrow"))
        ],
        _jumps(run, request),
        legend=[_(LEGEND)],
    )


def _jumps(run: Run, request: str) -> list[Jump]:
    """The places worth seeing in one output."""
    choices = figures.choices_of(run.timeline, request)
    led = [choice.step for choice in choices if choice.told.candidates and not choice.told.candidates[0][3]]
    narrow = [choice.step for choice in choices if choice.told.num_allowed == 1]
    return [
        Jump(_("first token"), choices[0].step),
        Jump(_("the model wanted something else"), led[0] if led else None),
        Jump(_("only one token is left"), narrow[0] if narrow else None),
        Jump(_("last token"), choices[-1].step),
    ]
