"""What must always hold of a plan, whatever arrives when.

The check is the engine here: it counts by itself what is computed, preempts some requests, runs a model small
enough to be worked through by hand, and knows when each answer is complete. It asks for each plan twice.
"""

from collections.abc import Iterator
from numbers import Integral
from random import Random
from typing import Any

import subject
from hypothesis import strategies as st

from lessons.story import ACCEPTED, CRASH, EMPTY, REFUSED, Story, cell, counted, given_as, judged, row

NAMES = ("mia", "ali", "zoe", "ben", "eva", "kim", "dan", "ida")
"""Of requests, in order of arrival; that is not the order of the alphabet."""
MODULUS = 9973
VOCAB_SIZE = 97
MOST_BARS, WIDEST_BAR = 12, 24

extra = st.sampled_from((0, 0, 1, 2, 3, 5, 8, 60))
LIMITS = st.tuples(extra, st.integers(1, 4), st.sampled_from((0, 0, 0, 1, 2, 3, 5)))
"""Budget beyond one token for each slot; slots; threshold."""


def requests(longest: int = 14) -> st.SearchStrategy[Any]:
    """Each: steps after the one before it; tokens of its prompt, and of its answer; after how many steps it
    is preempted, for once (0: never)."""
    gap, preempted = st.sampled_from((0, 0, 1, 2, 3)), st.sampled_from((0, 0, 0, 2, 3, 4))
    request = st.tuples(gap, st.integers(1, longest), st.integers(1, 5), preempted)
    return st.lists(request, min_size=1, max_size=len(NAMES))


WORLDS = st.fixed_dictionaries({"limits": st.tuples(LIMITS), "requests": requests()})
MANY_LIMITS = st.fixed_dictionaries({"limits": st.tuples(LIMITS, LIMITS), "requests": requests()})


def large_world(dice: Random) -> Any:
    """Three hundred requests, as many as sixty-four at a time; some prompts of hundreds of tokens."""
    requests = []
    for _ in range(300):
        prompt = dice.choice((dice.randrange(1, 40), dice.randrange(1, 40), dice.randrange(300, 900)))
        requests.append([dice.choice((0, 0, 1)), prompt, dice.randrange(1, 9), dice.choice((0, 0, 0, 0, 5))])
    return {"limits": [[960, 64, 400]], "requests": requests}


def name_of(index: int) -> str:
    return NAMES[index] if index < len(NAMES) else f"{NAMES[index % len(NAMES)]}{index}"


# ── the model, and the engine around it ───────────────────────────────────────────────────────────────


def entry(before: int, place: int, token: int) -> int:
    """What the toy model keeps of a token: it depends on the token, its place, and all that came before."""
    return (31 * before + (place + 1) * (token + 1) ** 2 + 1) % MODULUS


def alone(prompt: list[int], length: int) -> list[int]:
    """A request's answer if there is no other request, and every prompt is computed whole."""
    tokens, last = list(prompt), 0
    for place in range(len(prompt) + length):
        if place == len(tokens):
            tokens.append(last % VOCAB_SIZE)
        last = entry(last, place, tokens[place])
    return tokens[len(prompt) :]


class Live:
    """A request that waits or runs, in the check's own books."""

    def __init__(self, index: int, prompt: int, length: int, preempted: int) -> None:
        self.name, self.index, self.preempted = name_of(index), index, preempted
        self.tokens = [(31 * index + 7 * place + place**2) % VOCAB_SIZE for place in range(prompt)]
        self.right, self.num_prompt = alone(self.tokens, length), prompt
        self.cache: list[int] = []
        self.age = self.computed = 0
        self.work: int | None = None
        """Of all requests, in tokens, since it got its last one; None before the first, or once preempted."""

    @property
    def left(self) -> int:
        """Tokens that it has and that are not computed."""
        return len(self.tokens) - self.computed

    def as_given(self) -> Any:
        """As `plan` gets it; 0 computed tokens are the default."""
        computed = (self.computed,) if self.computed else ()
        return subject.Request(self.name, len(self.tokens), *computed)

    @property
    def runs(self) -> bool:
        return self.computed > 0

    @property
    def answer(self) -> list[int]:
        return self.tokens[self.num_prompt :]

    def compute(self, start: int, end: int) -> None:
        """The toy model: what it kept of the token before, if it did, and what it keeps of each of these."""
        self.cache += [0] * (len(self.tokens) - len(self.cache))
        for place in range(start, end):
            self.cache[place] = entry(self.cache[place - 1] if place else 0, place, self.tokens[place])
        self.computed += end - start


class Engine:
    """Makes each request when it arrives, and carries out every plan."""

    def __init__(self, case: Any, story: Story, which: int = 0) -> None:
        more, self.slots, self.threshold = case["limits"][which]
        self.budget = self.slots + more
        given = (self.threshold,) if self.threshold else ()  # 0 is the default
        self.limits = subject.Limits(self.budget, self.slots, *given)
        self.story, self.step, self.coming = story, 0, []
        for index, (gap, *numbers) in enumerate(case["requests"]):
            due = gap + (self.coming[-1][0] if self.coming else 0)
            self.coming.append((due, Live(index, *numbers)))
        threshold = f", {self.threshold} of one request" if self.threshold else ""
        self.said = f"{counted(self.budget, 'token')}{threshold}, {counted(self.slots, 'slot')}"
        self.live: list[Live] = []
        self.done: list[Live] = []
        self.bars: list[Any] = []
        self.most_steps = (
            (self.coming[-1][0] if self.coming else 0)
            + 2
            + 2 * sum(prompt + answer for _, prompt, answer, _ in case["requests"])
        )

    def run(self, *, strictly: bool = False) -> Iterator[dict[str, tuple[int, int]]]:
        """Step by step, until all are done: the plan, as `(start, end)` by name; `live` has the requests.

        Args:
            strictly: say so where a chunk is not the next tokens of its request; otherwise end there.
        """
        while (self.coming or self.live) and self.step < self.most_steps:
            self.come_and_go()
            chunks = self.planned()
            self.show(chunks)
            yield chunks
            for request in self.live:
                if request.name not in chunks:
                    continue
                start, end = chunks[request.name]
                have = f"tokens {request.computed} to {len(request.tokens) - 1} are left"
                is_next = start == request.computed and end <= len(request.tokens)
                wanted = f"a chunk of {request.name} that begins at {request.computed}: {have}"
                self.story.expect(is_next or not strictly, wanted, f"tokens {start} to {end - 1}")
                if start > len(request.tokens) or end > len(request.tokens):
                    return
            self.compute(chunks)
            self.step += 1

    def come_and_go(self) -> None:
        words = []
        for request in self.live:
            request.age += request.runs
            if request.preempted and request.age > request.preempted:
                request.preempted = request.computed = 0
                request.work = None
                request.cache.clear()
                words.append(f"{request.name} is preempted")
        for request in [request for due, request in self.coming if due <= self.step]:
            self.live.append(request)
            words.append(f"{request.name} arrives (prompt: {request.num_prompt})")
        self.coming = [item for item in self.coming if item[0] > self.step]
        text = f"step {self.step}" + (": " if words else "") + ", ".join(words)
        self.story.step(text, empty=not self.live)

    def planned(self) -> dict[str, tuple[int, int]]:
        """What `plan` says, asked twice, with the requests given in one form and then in another."""
        answers = []
        for form in (self.step, self.step + 1):
            here = [one.as_given() for one in self.live]
            given = given_as(form, here)
            answers.append(read(subject.plan(given, self.limits), self.live, self.story))
            before = [(one.name, len(one.tokens), one.computed) for one in self.live]
            after = [(one.request_id, one.num_tokens, one.num_computed_tokens) for one in here]
            self.story.expect(after == before, "plan to change no request", after)
            if isinstance(given, list):
                whole = [one.request_id for one in given] == [one.name for one in self.live]
                self.story.expect(whole, "plan to leave the caller's list as it is", "another list")
        same = answers[0] == answers[1]
        self.story.expect(
            same, f"the same plan when asked again: {in_words(answers[0])}", in_words(answers[1])
        )
        return answers[0]

    def show(self, chunks: dict[str, tuple[int, int]]) -> None:
        """A bar per step: its budget, and which requests' tokens fill it."""
        cells = []
        for request in self.live:
            start, end = chunks.get(request.name, (0, 0))
            mark = "new" if not request.runs else ""
            count = max(0, end - start)
            if self.budget <= WIDEST_BAR:
                cells += [cell(request.name, request.index, mark)] * min(count, WIDEST_BAR)
            elif count:
                cells.append(cell(f"{request.name} {count}", request.index, mark))
        spare = self.budget - sum(end - start for start, end in chunks.values())
        if spare > 0:
            free = cell("", mark="free")
            cells += [free] * spare if self.budget <= WIDEST_BAR else [cell(f"{spare} left", mark="free")]
        self.bars = [*self.bars[-MOST_BARS + 1 :], row(f"step {self.step}", cells)]
        waits = ", ".join(f"{one.name} {one.left}" for one in self.live) or "none"
        facts = {"limits": self.said, "left": waits}
        self.story.see(facts | {"computes": in_words(dict(sorted(chunks.items())))}, self.bars)

    def compute(self, chunks: dict[str, tuple[int, int]]) -> None:
        work = sum(end - start for start, end in chunks.values())
        for request in list(self.live):
            if request.work is not None:
                request.work += work
            if request.name not in chunks:
                continue
            request.compute(*chunks[request.name])
            if request.left <= 0:
                request.tokens.append(request.cache[len(request.tokens) - 1] % VOCAB_SIZE)
                request.work = 0
            if len(request.answer) == len(request.right):
                self.live.remove(request)
                self.done.append(request)


def in_words(chunks: dict[str, tuple[int, int]]) -> str:
    words = [
        f"{name} {start}" if end == start + 1 else f"{name} {start}–{end - 1}"
        for name, (start, end) in chunks.items()
    ]
    return ", ".join(words) or "nothing"


def read(chunks: Any, live: list[Live], story: Story) -> dict[str, tuple[int, int]]:
    """A plan as `(start, end)` by name, in order of arrival."""
    story.expect(isinstance(chunks, list | tuple), "plan to return a list of chunks", chunks)
    names = {request.name for request in live}
    found: dict[str, tuple[int, int]] = {}
    for chunk in chunks:
        is_chunk = isinstance(chunk, tuple | list) and len(chunk) == 3
        story.expect(is_chunk, "each entry of the plan to be a Chunk(request_id, start, end)", chunk)
        name, start, end = chunk
        is_here = isinstance(name, str) and name in names
        story.expect(is_here, f"chunks of requests that were given ({', '.join(sorted(names))})", chunk)
        story.expect(name not in found, f"one chunk of {name}", f"{name} twice")
        is_range = all(isinstance(n, Integral) and not isinstance(n, bool) for n in (start, end))
        holds = is_range and 0 <= start < end
        story.expect(holds, f"at least one token of {name}: ints, start before end", chunk)
        found[name] = (int(start), int(end))
    return {one.name: found[one.name] for one in live if one.name in found}


def size(chunks: dict[str, tuple[int, int]], request: Live) -> int:
    start, end = chunks.get(request.name, (0, 0))
    return end - start


# ── the properties ────────────────────────────────────────────────────────────────────────────────────

THRESHOLDS = st.sampled_from((-40, -2, -1, 0, 0, 1, 2, 40))
SOME_LIMITS = st.tuples(st.integers(-1, 40), st.integers(-1, 40), THRESHOLDS)
NEAR = st.tuples(st.integers(1, 300), st.sampled_from((-1, 0, 1)), THRESHOLDS).map(
    lambda drawn: [drawn[0], drawn[0] + drawn[1], drawn[2]]
)


@judged(
    "P1",
    "Limits under which an answer could come to a standstill are refused; all others are accepted.",
    SOME_LIMITS | NEAR,
    hints=(
        "How many answers may be under way at a time? How many tokens must a step have for them all?",
        "At least one slot, and at least as many tokens as slots. A threshold of 0 means that there is none.",
        "`if not 1 <= self.max_num_seqs <= self.max_num_batched_tokens: raise ValueError(...)`",
    ),
    when={
        REFUSED: "These limits promise something: as many tokens as slots are enough, and a threshold may "
        "be 0, or larger than the budget.",
        ACCEPTED: "Which of the three was it: no slot, more slots than tokens, or a threshold below 0?",
    },
)
def which_limits_are_accepted(case: Any, story: Story) -> None:
    budget, slots, threshold = case
    story.step(f"budget {budget}, slots {slots}, threshold {threshold}")
    why = "there is no slot" if slots < 1 else ""
    why = why or ("a token for each slot is more than the budget" if slots > budget else "")
    why = why or ("the threshold is negative" if threshold < 0 else "")
    limits: Any = None
    with story.allowing(ValueError) as answer:
        limits = subject.Limits(budget, slots, threshold)
    story.see({"answer": "refused" if answer.is_refused else "accepted"})
    story.expect(answer.is_refused or not why, f"ValueError: {why}", "accepted", ACCEPTED)
    story.expect(why or not answer.is_refused, "these limits to be accepted", "ValueError", REFUSED)
    if not answer.is_refused:
        kept = (limits.max_num_batched_tokens, limits.max_num_seqs, limits.long_prefill_token_threshold)
        story.expect(kept == (budget, slots, threshold), "the limits as they were given", kept)


@judged(
    "P2",
    "A step keeps its limits: the budget, the slots in the batch, and the threshold of each request.",
    WORLDS,
    hints=(
        "Three numbers per step: all its tokens, the requests that run after it, and its longest chunk.",
        "Decodes use up budget, too. A request that has begun holds a slot whether it gets tokens or not.",
        "`min(left, threshold or budget, budget)` for each, and `waiting[: max_num_seqs - len(running)]`.",
    ),
    when={
        EMPTY: "No request is there: the plan is an empty list.",
        CRASH: "The requests may come as an iterator, which has no length and can be walked only once: "
        "first of all, `given = list(requests)`. And perhaps none of them runs, or none waits.",
    },
    large=large_world,
)
def limits_hold(case: Any, story: Story) -> None:
    engine = Engine(case, story)
    for chunks in engine.run():
        total = sum(end - start for start, end in chunks.values())
        story.expect(total <= engine.budget, f"at most {counted(engine.budget, 'token')} in a step", total)
        run = [one.name for one in engine.live if one.runs or one.name in chunks]
        story.expect(len(run) <= engine.slots, f"at most {engine.slots} to run", f"{', '.join(run)} run")
        for one in engine.live if engine.threshold else ():
            wanted = f"no more than {engine.threshold} of {one.name}'s tokens in a step"
            story.expect(size(chunks, one) <= engine.threshold, wanted, size(chunks, one))


@judged(
    "P3",
    "The chunks of a request cover its tokens exactly once, in order.",
    WORLDS,
    hints=(
        "Where does a chunk begin, if some of its request's tokens are computed? Where must it end at most?",
        "A chunk of n tokens that begins at `num_computed_tokens` ends n later, at most at `num_tokens`.",
        "`start = request.num_computed_tokens`, and `Chunk(request.request_id, start, start + num_tokens)`",
    ),
    large=large_world,
)
def every_token_once(case: Any, story: Story) -> None:
    for _ in Engine(case, story).run(strictly=True):
        pass


@judged(
    "P4",
    "Each answer is the one that the request gets alone, and complete, under any limits.",
    MANY_LIMITS,
    hints=(
        "The same requests, two budgets. Which request says something else, or never ends?",
        "A prompt longer than the budget must end, too: each step gives it what there is, however little.",
        "No `if left <= budget`: a chunk has `min(left, threshold or budget, budget)` tokens.",
    ),
    large=large_world,
)
def chunks_change_no_answer(case: Any, story: Story) -> None:
    for which in range(len(case["limits"])):
        engine = Engine(case, story, which)
        for _ in engine.run():
            pass
        for request in engine.live + [request for _, request in engine.coming]:
            wanted = f"{request.name} to be complete after {counted(engine.step, 'step')}, with {engine.said}"
            story.expect(False, wanted, f"{request.left} of its {len(request.tokens)} tokens are left")
        for request in engine.done:
            wanted = f"the answer of {request.name} to be {request.right}, with {engine.said}"
            story.expect(request.answer == request.right, wanted, request.answer)


@judged(
    "P5",
    "A running answer gets a token in every step: between two of its tokens lies at most one budget of work.",
    WORLDS,
    hints=(
        "In which step does an answer that has begun get nothing? Which request got the budget in its place?",
        "First all running requests that have one token left, wherever they stand in line; then all others.",
        "`decodes = [r for r in running if r.num_tokens - r.num_computed_tokens == 1]` come first.",
    ),
    large=large_world,
)
def answers_never_stall(case: Any, story: Story) -> None:
    engine = Engine(case, story)
    for chunks in engine.run():
        work = sum(end - start for start, end in chunks.values())
        for one in engine.live:
            if not one.runs or one.left != 1:
                continue
            wanted = f"a token of {one.name} in this step: it runs, and has one left"
            story.expect(one.name in chunks, wanted, f"{in_words(chunks)}; nothing of {one.name}")
            if one.work is not None:
                most, waited = engine.budget, one.work + work
                wanted = f"at most {most} tokens of work between two tokens of {one.name}'s answer"
                story.expect(waited <= most, wanted, waited)


@judged(
    "P6",
    "No budget is left over that a request could use; if there is enough, every prompt is computed whole.",
    WORLDS,
    hints=(
        "Find a step whose bar has an empty end, and a request that could use it. Why does it get less?",
        "Every step goes on to the next request until the budget is gone, past one that its threshold stops.",
        "One loop over all in line, `min(left, threshold or budget, budget)` each; no `break` after a cut.",
    ),
    large=large_world,
)
def nothing_is_idle(case: Any, story: Story) -> None:
    engine = Engine(case, story)
    for chunks in engine.run():
        spare = engine.budget - sum(end - start for start, end in chunks.values())
        free = engine.slots - sum(one.runs or one.name in chunks for one in engine.live)
        for one in engine.live if spare > 0 else ():
            count = size(chunks, one)
            if not one.runs and not count:
                wanted = f"{one.name} to be admitted: {free} slots are free, and {spare} tokens are left over"
                story.expect(free <= 0, wanted, f"{one.name} waits")
                continue
            could = min(one.left, engine.threshold or one.left, count + spare)
            wanted = f"{one.name} to compute {could} of the {one.left} that it has left"
            story.expect(count >= could, wanted, f"{count}, and {spare} tokens are left over")


@judged(
    "P7",
    "No prompt overtakes: begun ones before waiting ones, in order of arrival, each all that it can use.",
    WORLDS,
    hints=(
        "Which request got tokens although one before it in line could have used them?",
        "In line: running requests in the order given, then waiting ones likewise. Nothing is sorted.",
        "`decodes + prompts + waiting[:num_free_slots]`, each list in the order in which it was given.",
    ),
    large=large_world,
)
def first_come_first_served(case: Any, story: Story) -> None:
    engine = Engine(case, story)
    for chunks in engine.run():
        prompts = [one for one in engine.live if one.runs and one.left > 1]
        line = prompts + [one for one in engine.live if not one.runs]
        last = max((place for place, one in enumerate(line) if one.name in chunks), default=0)
        for one in line[:last]:
            could = min(one.left, engine.threshold or one.left)
            wanted = f"{one.name} to get all that it can use ({could}) before {line[last].name} gets any"
            got = f"{size(chunks, one)} for {one.name}, {size(chunks, line[last])} for {line[last].name}"
            story.expect(size(chunks, one) >= could, wanted, got)
