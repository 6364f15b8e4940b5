"""What must always hold of a scheduler, whatever arrives when.

The check is the engine here. It counts by itself what is computed, runs a model small enough to be worked
through by hand, and knows when each answer is complete. The scheduler's own books are never believed.
"""

from collections.abc import Collection, Iterator
from contextlib import suppress
from numbers import Integral
from random import Random
from typing import Any

import subject
from hypothesis import strategies as st

from lessons.story import (
    ACCEPTED,
    AFTER_REFUSAL,
    CRASH,
    EMPTY,
    ENDLESS,
    REFUSED,
    Story,
    cell,
    counted,
    judged,
    row,
)

NAMES = ("mia", "ali", "zoe", "ben", "eva", "kim", "dan", "ida")
"""Of requests, in order of arrival; that is not the order of the alphabet."""
MAX_MODEL_LEN = 40
VOCAB_SIZE = 97


def worlds(*, quiet: bool = False) -> st.SearchStrategy[Any]:
    """Limits, and requests that arrive over time.

    Each request: steps after the one before it; tokens of its prompt, and of its answer; after how many steps
    its user gives up (0: never); whether the same name asks again when it is done. `quiet`: neither happens.
    """
    never = st.just(0)
    leave, again = st.sampled_from((0, 0, 0, 1, 2, 3, 5)), st.sampled_from((0, 0, 0, 1))
    gap, prompt, answer = st.sampled_from((0, 0, 0, 1, 2, 3)), st.integers(1, 12), st.integers(1, 6)
    request = st.tuples(gap, prompt, answer, never if quiet else leave, never if quiet else again)
    requests = st.lists(request, min_size=1, max_size=len(NAMES))
    return st.fixed_dictionaries(
        {"max_num_seqs": st.integers(1, 4), "budget": st.integers(1, 9), "requests": requests}
    )


def large_world(dice: Random) -> Any:
    """Three hundred requests, as many as sixty-four at a time."""
    requests = []
    for _ in range(300):
        leave, again = dice.choice((0, 0, 0, 0, 3)), dice.choice((0, 0, 0, 0, 1))
        gap, prompt, answer = dice.choice((0, 0, 0, 1)), dice.randrange(1, 33), dice.randrange(1, 7)
        requests.append([gap, prompt, answer, leave, again])
    return {"max_num_seqs": 64, "budget": 300, "requests": requests}


def name_of(index: int) -> str:
    return NAMES[index] if index < len(NAMES) else f"{NAMES[index % len(NAMES)]}{index}"


# ── the model, and the engine around it ───────────────────────────────────────────────────────────────


def next_token(computed: list[int]) -> int:
    """What the toy model says after these tokens: it depends on each of them, and on its place."""
    return sum((place + 1) * (token + 1) ** 2 for place, token in enumerate(computed)) % VOCAB_SIZE


def alone(prompt: list[int], length: int) -> list[int]:
    """A request's answer if there is no other request."""
    tokens = list(prompt)
    for _ in range(length):
        tokens.append(next_token(tokens))
    return tokens[len(prompt) :]


class Live:
    """A request that waits or runs, in the check's own books."""

    def __init__(self, index: int, prompt: int, length: int, leave: int, again: int) -> None:
        self.name, self.index, self.leave, self.again = name_of(index), index, leave, again
        self.tokens = [(31 * index + 7 * place + place**2) % VOCAB_SIZE for place in range(prompt)]
        self.answer = alone(self.tokens, length)
        self.prompt, self.to_come = prompt, length
        self.computed = self.age = 0
        self.is_running = False

    @property
    def left(self) -> int:
        """Tokens that it has and that are not computed."""
        return len(self.tokens) - self.computed


def arrivals(case: Any) -> list[tuple[int, Live]]:
    """Which requests arrive, and in which step."""
    coming, time = [], 0
    for index, (gap, *numbers) in enumerate(case["requests"]):
        time += gap
        coming.append((time, Live(index, *numbers)))
    return coming


class Gantt:
    """A row per request, a cell per step: the tokens that it computed, or that it waited."""

    def __init__(self) -> None:
        self.rows: dict[int, list[Any]] = {}
        self.length = 0

    def add(self, live: list[Live], plan: dict[str, int], done: Collection[str] = ()) -> None:
        """One step more."""
        for request in live:
            cells = self.rows.setdefault(request.index, [])
            cells += [cell()] * (self.length - len(cells))
            if count := plan.get(request.name):
                cells.append(cell(count, request.index, "" if request.is_running else "new"))
            elif request.is_running:
                cells.append(cell("─" if request.name in done else "·", request.index, "waste"))
            else:
                cells.append(cell("…", mark="free"))
        self.length += 1

    def board(self, words: str = "") -> list[Any]:
        return [row(f"{name_of(index)}{words}", cells) for index, cells in sorted(self.rows.items())]


class Engine:
    """Adds each request when it arrives, and carries out every plan. `beside`: more rows for the board."""

    def __init__(self, case: Any, story: Story, beside: list[Any] | None = None) -> None:
        self.scheduler = subject.Scheduler(case["max_num_seqs"], case["budget"], MAX_MODEL_LEN)
        self.story, self.beside, self.coming = story, beside or [], arrivals(case)
        self.facts = {"limits": f"{case['max_num_seqs']} requests, {case['budget']} tokens"}
        self.live: list[Live] = []
        self.gantt = Gantt()
        lengths = (prompt + answer for _, prompt, answer, *_ in case["requests"])
        self.most_steps = self.coming[-1][0] + 2 * sum(lengths) + 2

    def run(self, *, is_strict: bool = False) -> Iterator[tuple[dict[str, int], list[Live]]]:
        """Step by step, until all are done: the plan, and the requests that wait or run, in order of arrival.

        Args:
            is_strict: say so where tokens are computed twice or too soon; otherwise end there, quietly.
        """
        for step in range(self.most_steps):
            if not self.coming and not self.live:
                return
            self.come_and_go(step)
            given = self.scheduler.schedule()
            plan = read(given, self.live, self.story)
            self.gantt.add(self.live, plan)
            self.facts |= {
                "computes": ", ".join(f"{r.name} {plan[r.name]}" for r in self.live if r.name in plan)
            }
            self.story.see(self.facts, [*self.gantt.board(), *self.beside])
            yield plan, self.live
            if not self.compute(plan, is_strict) or not self.sample(given, is_strict):
                return
            for request in [request for request in self.live if not request.to_come]:
                self.scheduler.finish(request.name)
                self.live.remove(request)
                if request.again:
                    twin = Live(request.index, request.prompt, len(request.answer), request.leave, 0)
                    self.coming.append((step + 1, twin))

    def come_and_go(self, step: int) -> None:
        leaving = [request for request in self.live if request.leave and request.age == request.leave]
        arriving = [request for due, request in self.coming if due <= step]
        words = [f"{request.name} gives up" for request in leaving]
        words += [f"{request.name} arrives (prompt: {request.prompt})" for request in arriving]
        self.story.step(f"step {step}" + (": " if words else "") + ", ".join(words))
        for request in leaving:
            self.scheduler.finish(request.name)
        for request in arriving:
            self.scheduler.add(request.name, request.prompt)
        self.coming = [item for item in self.coming if item[1] not in arriving]
        self.live = [request for request in self.live if request not in leaving] + arriving

    def compute(self, plan: dict[str, int], is_strict: bool) -> bool:
        for request in self.live:
            count, left = plan.get(request.name, 0), request.left
            wanted = f"at most {left} of {request.name}'s tokens: the others are computed"
            self.story.expect(count <= left or not is_strict, wanted, count)
            if count > left:
                return False
            request.computed += count
            request.is_running |= count > 0
            request.age += 1
        return True

    def sample(self, given: Any, is_strict: bool) -> bool:
        """The toy model's next token for all that `update` names, computed from what is in the cache."""
        due = [request.name for request in self.live if not request.left]
        named = self.scheduler.update(given)
        given.clear()  # the plan is carried out, and the engine's own
        if not is_strict and not same(named, due):
            return False
        here = {request.name: request for request in self.live}
        are_names = isinstance(named, list) and all(isinstance(name, str) and name in here for name in named)
        self.story.expect(are_names, "update to return a list of names that are in the plan", named)
        for request in [here[name] for name in named]:
            right, token = request.answer[-request.to_come], next_token(request.tokens[: request.computed])
            wanted = f"the next token of {request.name} to be {right}, as when it runs alone"
            after = f"{token}, when {request.computed} of its {len(request.tokens)} tokens are computed"
            self.story.expect(token == right and not request.left, wanted, after)
        missing = f"update to name {' and '.join(due) or 'no request'}: all tokens are computed"
        self.story.expect(same(named, due), missing, named)
        for name in due:
            here[name].tokens.append(here[name].answer[-here[name].to_come])
            here[name].to_come -= 1
        said = ", ".join(f"{name} {here[name].tokens[-1]}" for name in due) or "none"
        self.story.see(self.facts | {"next tokens": said}, [*self.gantt.board(), *self.beside])
        return True


def read(plan: Any, live: list[Live], story: Story) -> dict[str, int]:
    """A plan as tokens by name."""
    story.expect(isinstance(plan, list), "schedule to return a list of (request_id, num_tokens)", plan)
    names = [request.name for request in live]
    tokens: dict[str, int] = {}
    for entry in plan:
        is_pair = isinstance(entry, tuple | list) and len(entry) == 2
        story.expect(is_pair, "(request_id, num_tokens) for each entry of the plan", entry)
        name, count = entry
        is_here = isinstance(name, str) and name in names
        story.expect(is_here, f"a plan for requests that wait or run ({', '.join(names) or 'none'})", plan)
        story.expect(name not in tokens, f"one entry for {name}", plan)
        is_count = isinstance(count, Integral) and not isinstance(count, bool) and count >= 1
        story.expect(is_count, f"at least 1 token for {name}, as an int", count)
        tokens[name] = int(count)
    return tokens


def same(named: Any, names: list[str]) -> bool:
    return isinstance(named, list) and sorted(map(repr, named)) == sorted(map(repr, names))


# ── the properties ────────────────────────────────────────────────────────────────────────────────────

come_or_go = st.tuples(st.sampled_from(("add", "add", "finish")), st.integers(0, 1), st.integers(0, 14))
OPERATIONS = st.lists(come_or_go, min_size=1, max_size=8)
ARRIVALS = st.tuples(st.integers(1, 6), st.integers(2, 12), st.integers(0, 4), OPERATIONS)


@judged(
    "P1",
    "A request that could never be served is refused, which changes nothing; all others are accepted.",
    ARRIVALS,
    examples=400,
    hints=(
        "Which prompts can never be answered? One that is longer than the budget can: it is cut.",
        "At least one token, and room for one more within max_model_len. And no two of one name at a time.",
        "`if not 1 <= num_prompt_tokens < self.max_model_len: raise ValueError(...)`; then the name.",
    ),
    when={
        EMPTY: "A prompt without a token: after which token should the next one come? It can never be "
        "answered.",
        REFUSED: "It could be served. A prompt may be longer than the budget, prompt and one token may be "
        "exactly `max_model_len`, and a name is free again once its request has finished.",
        ACCEPTED: "It can never be served, or its name is taken: by a request that waits, or by one that "
        "runs?",
        AFTER_REFUSAL: "What was refused must leave nothing behind: is its name kept somewhere before you "
        "raise?",
        CRASH: "A request can give up while it waits, and is not among the running ones then. Where do you "
        "look?",
    },
)
def which_requests_are_accepted(case: Any, story: Story) -> None:
    budget, longest, planned, operations = case
    scheduler = subject.Scheduler(2, budget, longest)
    here: list[str] = []
    for number, (what, index, count) in enumerate(operations):
        name = NAMES[index]
        if here and number == planned:
            story.step("a step is computed: the requests that waited may run now")
            with suppress(NotImplementedError):  # `add` may be judged before there are steps
                scheduler.update(scheduler.schedule())
        if what == "finish" and name in here:
            story.step(f"{name} gives up")
            scheduler.finish(name)
            here.remove(name)
            story.see({"here": ", ".join(here) or "none"})
        if what != "add":
            continue
        story.step(f"{name} arrives (prompt: {count}; with the answer at most {longest})", empty=count == 0)
        why = "a prompt of this length leaves no room for an answer" if count >= longest else ""
        why = why or ("the prompt is empty" if not count else f"{name} is here" if name in here else "")
        with story.allowing(ValueError) as answer:
            scheduler.add(name, count)
        refused = answer.is_refused
        here += [] if why else [name]
        story.see({"answer": "refused" if refused else "accepted", "here": ", ".join(here) or "none"})
        story.expect(refused or not why, f"ValueError: {why}", f"{name} is accepted", ACCEPTED)
        story.expect(why or not refused, f"{name} to be accepted", "ValueError", REFUSED)


@judged(
    "P2",
    "No step computes more tokens than the budget, and never do more than max_num_seqs requests run.",
    worlds(),
    hints=(
        "Two numbers per step: the tokens of the whole plan, and the requests that run. What uses them up?",
        "Each step has the whole budget. A request has a slot from its first token until `finish`.",
        "`num_tokens = min(left, budget)` for each, and for newcomers "
        "`while self.waiting and len(self.running) < self.max_num_seqs and budget > 0:`",
    ),
    large=large_world,
)
def limits_hold(case: Any, story: Story) -> None:
    for plan, live in Engine(case, story).run():
        total = sum(plan.values())
        story.expect(total <= case["budget"], f"at most {counted(case['budget'], 'token')} in a step", total)
        run = [request.name for request in live if request.is_running or request.name in plan]
        most = case["max_num_seqs"]
        story.expect(len(run) <= most, f"at most {most} to run", f"{', '.join(run)} run")


@judged(
    "P3",
    "Every token is computed exactly once, in order; so each answer is the one that the request gets alone.",
    worlds(),
    hints=(
        "Is there a next token after each chunk of a prompt? When is there one?",
        "Two counts per request: a plan covers at most their difference, `update` adds to the computed. "
        "Only when both are equal is the next token known.",
        "`request.num_computed_tokens += num_tokens`; then, if it equals `request.num_tokens`: "
        "`request.num_tokens += 1`, and the name goes into the list.",
    ),
    when={
        CRASH: "Which request came, ended or gave up just before? It may wait, or run with only a part of "
        "its prompt computed. And the plan is the engine's once it is given: it is emptied after `update`.",
    },
    large=large_world,
)
def same_as_alone(case: Any, story: Story) -> None:
    for _ in Engine(case, story).run(is_strict=True):
        pass


@judged(
    "P4",
    "No budget is left over that a running request could use, or a waiting one while a slot is free.",
    worlds(),
    hints=(
        "Find the step in which a request waits (…) though a slot is free, or gets less than is left. Why?",
        "Every step may admit requests, several of them, and with a part of their prompt. A running request "
        "may compute all it has left, not only one token. A finished request needs no slot.",
        "After the running requests: `while` one waits, a slot is free and budget is left, the first that "
        "waits gets `min(left, budget)`. And `finish` takes a request off `running` at once.",
    ),
    when={
        ENDLESS: "What changes in each round of your loop? It must end when the budget is used up, too.",
    },
    large=large_world,
)
def nothing_is_idle(case: Any, story: Story) -> None:
    for plan, live in Engine(case, story).run():
        spare = case["budget"] - sum(plan.values())
        free = case["max_num_seqs"] - sum(r.is_running or r.name in plan for r in live)
        for request in live if spare > 0 else ():
            name, count = request.name, plan.get(request.name, 0)
            if request.is_running or count:
                could = min(request.left, count + spare)
                wanted = f"{name} to compute {could} of the {request.left} that it has left"
                story.expect(count >= could, wanted, f"{count}; budget left over: {spare}")
            else:
                wanted = f"{name} to be admitted: {free} more may run, and {spare} tokens of budget are left"
                story.expect(free <= 0, wanted, f"{name} waits")


@judged(
    "P5",
    "First come, first served: an admitted request gets only what earlier requests leave over.",
    worlds(),
    hints=(
        "A request was admitted. Had an earlier one tokens left to compute?",
        "The order is that of arrival: first the running requests, then the waiting ones, the one that has "
        "waited longest first. No request is skipped because another fits better.",
        "`for request in self.running: …`, then `self.waiting.pop(0)`; newcomers go to the end of `running`.",
    ),
)
def first_come_first_served(case: Any, story: Story) -> None:
    for plan, live in Engine(case, story).run():
        for place, request in enumerate(live):
            if request.is_running or request.name not in plan:
                continue
            for other in live[:place]:
                count = plan.get(other.name, 0)
                wanted = (
                    f"{other.name}, which came before {request.name}, to get all it can use ({other.left})"
                )
                does = f"gets {count}" if other.is_running or count else "waits"
                story.expect(count >= other.left, wanted, f"{request.name} is admitted, {other.name} {does}")


@judged(
    "P6",
    "No answer is complete later than under static batching with the same limits.",
    worlds(quiet=True),
    examples=400,
    hints=(
        "Compare the two pictures. In which step does a request fall behind, and which one got the tokens?",
        "A running request gets its tokens in every step, before later ones. Is one held up by a prompt?",
        "`for request in self.running:` in the order of admission, each `min(left, budget)`: "
        "no request is moved forward because much, or little, is left of it.",
    ),
)
def never_later_than_static(case: Any, story: Story) -> None:
    done, rows = static_batching(case)
    for step, (plan, live) in enumerate(Engine(case, story, rows).run()):
        for request in live:
            count, by = plan.get(request.name, 0), done[request.name]
            is_last = request.to_come == 1 and count >= request.left
            wanted = f"{request.name} to be done with step {by}, as under static batching"
            got = f"tokens for it in this step: {count}; of its answer still to come: {request.to_come}"
            story.expect(is_last or step < by, wanted, got)


def static_batching(case: Any) -> tuple[dict[str, int], list[Any]]:
    """In which step each answer is complete if a batch begins and ends together; and a picture of it.

    A batch is the requests that have arrived, in order of arrival, at most `max_num_seqs`. In it, the budget
    goes to one after another, in the same order.
    """
    coming, batch = arrivals(case), list[Live]()
    done: dict[str, int] = {}
    gantt = Gantt()
    while coming or any(request.name not in done for request in batch):
        if all(request.name in done for request in batch):
            batch = [request for due, request in coming if due <= gantt.length][: case["max_num_seqs"]]
            coming = [item for item in coming if item[1] not in batch]
        plan: dict[str, int] = {}
        for request in batch:
            if request.name not in done:
                spare = case["budget"] - sum(plan.values())
                plan |= {request.name: min(request.left, spare)} if spare else {}
        gantt.add(batch + [request for due, request in coming if due <= gantt.length], plan, done)
        for request in batch:
            request.computed += plan.get(request.name, 0)
            request.is_running = True
            if not request.left and request.name not in done:
                request.tokens.append(0)
                request.to_come -= 1
                done |= {} if request.to_come else {request.name: gantt.length - 1}
    return done, gantt.board(" (static)")
