"""What the judge says of a story, in the reader's language.

The judge (`lessons/`) tells a story in English: operations, facts, what was expected and what came. The forms
of what it says most often are listed here, as those of the engine are (`engine_words.py`), the others in
`judge_forms.py`; what fits none of them stays as it is. Names in braces stand for whatever the story has
there: numbers, names of sequences, or a part that is a form itself ("1 block"). A text of several parts, such
as "A waits, B waits", is said part by part, if all of them can be said.

Read next: `figures/story.py`, which draws it; `lessons/*/checks.py`, which says it.
"""

from __future__ import annotations

import re
from functools import lru_cache

import msgspec

from minivllm.trace.story_events import Cell, Row, StoryStep, StoryTrace
from viz.engine_words import Kinds, patterns
from viz.judge_forms import EVERY_LESSON, KERNELS, OF_FILES, OF_LESSONS
from viz.language import N_, _, current

FORMS = (
    # every lesson
    N_("a refusal"),
    N_("nothing was raised"),
    N_("no error"),
    N_("nothing"),
    N_("none"),
    N_("no request"),
    N_("no sequence"),
    N_("no room"),
    N_("an answer"),
    N_("before the first step"),
    N_("expected {expected}, got {got}"),
    N_("none within {count} seconds: does a loop never end?"),
    N_(
        "but the right solution cannot play this story: the judge is at fault, not your code. Please "
        "report it"
    ),
    N_("{value}, as before"),
    N_("{value}, as before the refusal"),
    N_("step {count}"),
    N_("{one} and {other}"),
    # counts
    N_("1 block"),
    N_("{count} blocks"),
    N_("1 token"),
    N_("{count} tokens"),
    N_("1 slot"),
    N_("{count} slots"),
    N_("1 step"),
    N_("{count} steps"),
    N_("1 page"),
    N_("{count} pages"),
    N_("1 free block"),
    N_("{count} free blocks"),
    N_("{count} free"),
    N_("1 missing block"),
    N_("{count} missing blocks"),
    N_("1 reader"),
    N_("{count} readers"),
    N_("1 beam"),
    N_("{count} beams"),
    N_("1 wasted byte"),
    N_("{count} wasted bytes"),
    N_("1 free page"),
    N_("{count} free pages"),
    N_("slot {count}"),
    N_("slots {first} to {last}"),
    N_("tokens {first} to {last}"),
    N_("block {count}"),
    N_("page {count}"),
    # names of what is seen
    N_("free"),
    N_("tokens"),
    N_("mapped"),
    N_("bytes"),
    N_("here"),
    N_("computes"),
    N_("splits with keys"),
    N_("seconds"),
    N_("refused"),
    N_("pages"),
    N_("moves"),
    N_("keys"),
    N_("evicted"),
    N_("cached"),
    N_("attention"),
    N_("device"),
    N_("host"),
    N_("blocks"),
    N_("references"),
    N_("logits"),
    N_("layer {count}"),
    N_("query head {count}, KV head {last}"),
    N_("{name} of rows 0 …"),
    N_("answer"),
    N_("blocks 0 …"),
    N_("slots 0 …"),
    N_("pages 0 …"),
    N_("table of {who}"),
    N_("blocks of {who}"),
    N_("readers({who})"),
    N_("free blocks"),
    N_("free pages"),
    N_("wasted bytes"),
    N_("next tokens"),
    N_("on the device"),
    N_("on the host"),
    N_("beam {count}"),
    N_("finished {count}"),
    N_("scores of row {count}"),
    N_("query {count}, expected"),
    N_("query {count}, got"),
    N_("{name}, expected"),
    N_("{name}, got"),
    N_("logits of tokens"),
    N_("right rows"),
    N_("plan"),
    N_("budget"),
    N_("running"),
    N_("waiting"),
    N_("queue"),
    N_("finished"),
    N_("preempted"),
    N_("the peak"),
    N_("what memory allows"),
    # roofline (01)
    N_("a step computes {what}"),
    N_("{count} sequences decode, each after {last} tokens"),
    N_("{first} new after {last}"),
    N_("the ridge point of a device with {peak} FLOP/s and {bandwidth} bytes/s"),
    N_("{count} FLOP for each byte"),
    N_("{count} seconds"),
    # KV cache (02)
    N_("what is in the cache now?"),
    N_("the full cache is read once more"),
    N_("cache {name} is read once more"),
    N_("append {what}: {first} of {last}"),
    N_("append what still fits, {what}"),
    N_("layer {count} is full"),
    N_("the cache"),
    # one strip of memory (03)
    N_("{who} takes {what}"),
    N_("{who} gives {what} back, from slot {first}"),
    N_("{who} holds {what} from slot {first}: {count} tokens now, {last} in the end"),
    N_("take all {what}"),
    N_("give back slot {first}, {what}"),
    N_("where no strip begins"),
    N_("slot {first} for a strip of {count}"),
    N_("None: the longest gap is {count}"),
    N_("no request waits"),
    # paging (04)
    N_("{who} frees its {what}"),
    N_("{who} grows by {count} to {what}"),
    N_("{who} finishes"),
    N_("take one block more than the {count} of a new pool"),
    N_("take all of {what}"),
    N_("take all of them"),
    N_("take all blocks"),
    N_("free {count} of them"),
    N_("free all that are held, and take all blocks"),
    N_("free {what}"),
    N_("no free block"),
    N_("all blocks"),
    N_("every block, once"),
    N_("every block once"),
    N_("a block that is free"),
    N_("a held block, named twice"),
    N_("block {count}, which there is not"),
    N_("blocks that no sequence holds, each once"),
    N_("{value}; held already: {held}"),
    N_("a refusal: {count} are free"),
    N_("{what}: {free} are free"),
    N_("{count} blocks for {last} tokens"),
    N_("token {count} of {who}"),
    N_("slot {first} for {name} (blocks {blocks})"),
    N_("a slot of its own for {name}"),
    # copy-on-write (05)
    N_("{who} is added and writes {what}"),
    N_("{who} writes {what} at position {first}"),
    N_("{who} forks to {other}"),
    N_("{who} is freed"),
    N_("take all free blocks"),
    N_("take the blocks {what}"),
    N_("readers of the blocks of {who}: {what}"),
    N_("{who} to read {what}"),
    N_("{who} to map {what}"),
    N_("references {what}"),
    N_("blocks for the {count} tokens of {who}"),
    N_("{count} blocks in the table of {who}"),
    N_("a block of its own for each"),
    N_("room: it takes {what}, and {free} are free"),
    N_("{who}, which is not there, is freed"),
    N_("{who}, which is not there, writes"),
    N_("{who}, which is not there, forks"),
    N_("{who} forks to {other}, which is there"),
    N_("{who}, which is there, is added"),
    N_("{who} writes at {first}, behind a gap"),
    # beam search (06)
    N_("a prompt of {count} tokens, width {last}, eos {eos}"),
    N_("step {count}: {what} and their candidates"),
    N_("{who} forks to {count} more"),
    N_("{who} appends {what} from {first} on"),
    N_("the best of {what}"),
    N_("at most {what}"),
    N_("{who} to be a list of blocks"),
    # continuous batching (07)
    N_("{who} arrives (prompt: {count})"),
    N_("{who} arrives (prompt: {count}; with the answer at most {last})"),
    N_("{who} gives up"),
    N_("{who} is here"),
    N_("{who} is accepted"),
    N_("{who} to be accepted"),
    N_("a step is computed: the requests that waited may run now"),
    N_("{who} to be admitted: {first} more may run, and {last} tokens of budget are left"),
    N_("{who} to compute {what} of the {count} that it has left"),
    N_("{count}; budget left over: {last}"),
    N_("{who} waits"),
    N_("at most {what} in a step"),
    N_("at most {count} to run"),
    N_("{what} run"),
    N_("the prompt is empty"),
    N_("one entry for {who}"),
    N_("{who} twice"),
    # preemption (08)
    N_("a device with {device}, a host with {host}; a block has room for {what}"),
    N_("{who} grows to {what}"),
    N_("{who} is forked from {other}"),
    N_("swap out {what}"),
    N_("swap in {what}"),
    N_("free everything"),
    N_("{who} arrives (prompt: {count}, at most {last})"),
    N_("{who} to be preempted"),
    N_("{what} to move to the host"),
    N_("{what} on the device"),
    N_("{what} on the host"),
    N_("only {who} to compute"),
    N_("no request to compute"),
    N_("everything as it was before the refusal"),
    # chunked prefill (09)
    N_("budget {first}, slots {last}, threshold {value}"),
    N_("{who} is preempted"),
    N_("{who} arrives (prompt: {what})"),
    N_("one chunk of {who}"),
    N_("a chunk of {who} that begins at {first}: {what}"),
    N_("a token of {who} in this step: it runs, and has one left"),
    N_("{what}; nothing of {who}"),
    N_("plan to change no request"),
    N_("another list"),
    # prefix caching (10)
    N_("{who} begins"),
    N_("{who} ends, and its {count} blocks are freed"),
    N_("{who} is inserted, in the blocks {what}"),
    N_("{count} blocks are evicted"),
    N_("a prompt takes all blocks"),
    N_("the path {what} is pinned"),
    N_("the path {what} is unpinned"),
    N_("the keys of {who}"),
    N_("{who} finds"),
    N_("{first} cached blocks, {last} evictable"),
    N_("the blocks {what} for {who}"),
    N_("the blocks {what} to be found"),
    N_("evicted: {what}"),
    N_("no cached block"),
    N_("room: it takes {count} new blocks"),
    # attention (11 to 13)
    N_("scores {what}"),
    N_("keys {first} … {last} come"),
    N_("key {count} comes"),
    N_("A, B and C see scores {what}"),
    N_("a kernel that runs to its end"),
    N_("a kernel without faults"),
    N_("out of bounds"),
    N_("not a number"),
    N_("indices inside of the arrays"),
    N_("all threads of a block at every barrier"),
    N_("a kernel that ends"),
    N_("a kernel that the microscope understands"),
    N_("a barrier between two threads that touch one cell, one of them to write"),
    N_("no read of shared memory before it is written"),
    N_("no read of a cell that holds nothing"),
    N_("each cell of out to be written once"),
    N_("writes to out alone"),
    N_("reads of this sequence's tokens alone"),
    N_("{who} to be loaded once"),
    N_("{count} times"),
    # vAttention (14)
    N_("{who} comes"),
    N_("{who} is done"),
    N_("{who} has {what}, and grows to {last}"),
    N_("pages missing: {first}, pages free: {last}"),
    N_("no page to be mapped"),
    N_("no page to be mapped before a token comes"),
    N_("every slot, once"),
    N_("None when all slots are taken"),
    N_("a slot that no request has"),
)
NUMBER, NAME = r"-?[\d,.]+(?:e[+-]?\d+)?", r"\S+(?: \([^)]*\))?"
KINDS: Kinds = dict.fromkeys(("count", "first", "last", "free", "peak", "bandwidth"), NUMBER) | dict.fromkeys(
    ("who", "other", "name", "one"), NAME
)
"""What some names stand for; the others stand for any text."""


PARTS = ((" · ", " · "), ("; ", "；"), (": ", "："), (", ", "，"))
"""What parts of a text lie between, in English and in Chinese."""
WORD = re.compile(r"[a-z]{3,}")
VERDICT = re.compile("expected (?P<expected>.+), got (?P<got>.+)", re.DOTALL)
RAISED = re.compile(r"\w+(?:Error|Exception|Interrupt): ")


def as_judged(text: str, lesson: str = "") -> str:
    """A text of the judge, as the reader speaks. `lesson`: its name or number, if it is of one."""
    return _said(text, lesson[:2], current()) if text and current() != "en" else text


@lru_cache(maxsize=4096)
def _said(text: str, lesson: str, language: str) -> str:
    """Of one form; or part by part; or as it is. `language` is the current one: what is kept is of one."""
    if match := VERDICT.fullmatch(text):
        values = {name: _said(value, lesson, language) for name, value in match.groupdict().items()}
        return _("expected {expected}, got {got}").format(**values)
    raised = RAISED.match(text)  # the rest is the learner's
    if ", " in text and not raised:
        parts = text.split(", ")
        told = [_said(part, lesson, language) for part in parts]
        if all(new != old for new, old in zip(told, parts, strict=True)):
            return "，".join(told)  # several sentences: no form may reach from one into the next
    forms = (*FORMS, *EVERY_LESSON, *OF_LESSONS.get(lesson, ()), *KERNELS, *OF_FILES)
    for form, pattern in patterns(forms, tuple(KINDS.items())):
        if (not raised or form.startswith(raised[0])) and (match := pattern.fullmatch(text)):
            values = {name: _said(value, lesson, language) for name, value in match.groupdict().items()}
            return _(form).format(**values)
    for between, in_chinese in () if raised else PARTS:
        if between in text:
            parts = text.split(between)
            told = [_said(part, lesson, language) for part in parts]
            if all(new != old or not WORD.search(old) for new, old in zip(told, parts, strict=True)):
                return in_chinese.join(told)
    return text


def judged_in_words(story: StoryTrace) -> StoryTrace:
    """The whole story, as the reader speaks."""
    if current() == "en":
        return story

    def say(text: str) -> str:
        return as_judged(text, story.header.lesson)

    def in_cell(cell: Cell) -> Cell:
        return replace(cell, text=say(cell.text))

    def said(step: StoryStep) -> StoryStep:
        facts = {say(name): say(value) for name, value in step.facts.items()}
        if len(facts) < len(step.facts):  # two names became one
            facts = step.facts
        board = tuple(Row(say(row.label), tuple(map(in_cell, row.cells))) for row in step.board)
        return replace(step, text=say(step.text), facts=facts, board=board, error=say(step.error))

    replace = msgspec.structs.replace
    header = replace(
        story.header,
        expected=say(story.header.expected),
        got=say(story.header.got),
        where=say(story.header.where),
    )
    yours, reference = ([said(step) for step in lane] for lane in (story.yours, story.reference))
    return StoryTrace(header, yours, reference, story.is_whole)
