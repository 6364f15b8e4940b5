"""What the engine says of a run, in the reader's language.

The summary of a trace, its warnings, and why one cannot be read (`trace_words.py`) come from the
engine, which speaks English only: its words are for terminals and files, too. Here their forms are listed
once, with braces for what differs from run to run:

    "396 in prompts, 591 generated"   ─ {prompts} in prompts, {outputs} generated ─►   "提示词 396，生成 591"

A sentence of another form stays English; a test holds the list to what the engine says.

Read next: `minivllm/trace/run_summary.py`, which says it; `judge_words.py`, the same for the judge.
"""

from __future__ import annotations

import re
from functools import cache

from viz import trace_words
from viz.language import N_, _, current

NAMES = (
    N_("requests"), N_("steps"), N_("tokens"), N_("throughput"), N_("time to first token"),
    N_("time per output token"), N_("inter-token latency"), N_("end-to-end latency"), N_("queue time"),
    N_("preemptions"), N_("blocks in use"), N_("saved by sharing"), N_("forks"), N_("prefix cache"),
    N_("evicted"), N_("swapped"), N_("speculation"), N_("failed steps"), N_("interrupts"), N_("wasted slots"),
    N_("ranks"), N_("token budget used"), N_("time goes to"),
)  # fmt: skip
FORMS = (
    N_("none"),
    N_("{all} ({ended}); {refused} refused at the door"),
    N_("{all} ({finished} finished, {rest})"),
    N_("{all} ({finished} finished)"),
    N_("{finished} finished, {rest}"),
    N_("{finished} finished"),
    N_("{unfinished} unfinished, {rest}"),
    N_("{unfinished} unfinished"),
    N_("{aborted} aborted, {rest}"),
    N_("{aborted} aborted"),
    N_("{failed} failed"),
    N_("{prompts} in prompts, {outputs} generated"),
    N_("{steps} in {duration}, after {before} before the trace"),
    N_("{steps} in {duration}"),
    N_("{outputs} output tokens/s ({computed} tokens/s computed, prompts included)"),
    N_("{count} ({swapped} swapped out, {recomputed} recomputed: {again} tokens to be computed again)"),
    N_("{count} ({again} tokens to be computed again)"),
    N_("peak {peak} of {all} ({share}), mean {mean}"),
    N_("{share} of the slots of used blocks, on average"),
    N_("{share} of max_num_batched_tokens, on average"),
    N_("{mean} blocks on average ({share} of what would be needed otherwise), at most {most}"),
    N_("{forks}, after which {copies} blocks had to be copied"),
    N_(
        "{hits} tokens found and not computed ({share} of what had to be in the cache before a token could "
        "be chosen)"
    ),
    N_("{count} cached blocks"),
    N_("{out} blocks out, {back} back in; at most {most} in the swap space"),
    N_("{accepted} of {drafted} drafts accepted ({share}); {tokens} tokens a step with drafts"),
    N_(
        "{count}, which compute {computing} of the time, exchange data {exchanging}, wait for others "
        "{waiting} and have no plan {idle}"
    ),
    N_("{count}; their requests started again"),
    N_("{count}; after each, every request waited with nothing computed"),
    N_("{parts} (attention alone {share})"),
    *trace_words.ERRORS,
    *trace_words.WARNINGS,
    *trace_words.PARTS,
    *trace_words.DAMAGE,
)


Kinds = dict[str, str]
"""Names in braces that stand for less than any text: name → what matches it."""


def in_words_of_the_reader(text: str) -> str:
    """What the engine said, as the reader speaks."""
    return said_in(text, (*NAMES, *FORMS))


def as_named(text: str) -> str:
    """What a trace calls a device, a text or a matrix, as the reader speaks."""
    return said_in(text, trace_words.NAMED, {"count": r"\d+"})


def said_in(text: str, forms: tuple[str, ...], kinds: Kinds | None = None) -> str:
    """A text in the current language, if it is of one of these forms; else as it is."""
    if current() == "en":
        return text
    for form, pattern in patterns(forms, tuple((kinds or {}).items())):
        if match := pattern.fullmatch(text):
            values = {name: said_in(value, forms, kinds) for name, value in match.groupdict().items()}
            return _(form).format(**values)
    return text


@cache
def patterns(forms: tuple[str, ...], kinds: tuple[tuple[str, str], ...]) -> list[tuple[str, re.Pattern[str]]]:
    """What matches each form. Those with most words of their own first: "{steps} in {duration}" fits many."""
    in_order = sorted(forms, key=lambda form: -len(re.sub(r"{\w+}", "", form)))
    return [(form, _pattern(form, dict(kinds))) for form in in_order]


def _pattern(form: str, kinds: Kinds) -> re.Pattern[str]:
    """What matches a form: `{name}` stands for any text, or for what its kind says."""
    parts = re.split(r"{(\w+)}", form)
    return re.compile(
        "".join(
            f"(?P<{part}>{kinds.get(part, '.+?')})" if index % 2 else re.escape(part)
            for index, part in enumerate(parts)
        )
    )
