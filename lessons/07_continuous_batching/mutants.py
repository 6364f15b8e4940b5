"""Wrong solutions of lesson 07, and right ones written otherwise."""

from typing import Any

from lessons.mutant import Mutant

RUNNING = """        for request in self.running:
            budget -= _plan(request, budget, plan)
"""
WAITING = """        while self.waiting and len(self.running) < self.max_num_seqs and budget > 0:
            request = self.waiting.pop(0)
            self.running.append(request)
            budget -= _plan(request, budget, plan)
"""

MUTANTS = (
    Mutant(
        "prompts_must_fit_the_budget",
        "if not 1 <= num_prompt_tokens < self.max_model_len:",
        "if not 1 <= num_prompt_tokens < min(self.max_model_len, self.max_num_batched_tokens + 1):",
        caught_by="P1",
        tells="it turns requests away that it could serve.",
    ),
    Mutant(
        "waiting_requests_cannot_give_up",
        "self.waiting = [request for request in self.waiting if request.request_id != request_id]",
        "pass",
        caught_by="P1",
        tells="a request that gives up before it ever ran is not forgotten.",
        sly=True,
    ),
    Mutant(
        "one_slot_too_many",
        "len(self.running) < self.max_num_seqs and budget > 0:",
        "len(self.running) <= self.max_num_seqs and budget > 0:",
        caught_by="P2",
        tells="more requests run than the batch has slots.",
    ),
    Mutant(
        "each_chunk_has_a_next_token",
        "if request.num_computed_tokens == request.num_tokens:",
        "if num_tokens > 0:",
        caught_by="P3",
        tells="some answers are not those that the same requests get alone.",
    ),
    Mutant(
        "two_phases",
        RUNNING,
        """        for request in self.running:
            budget -= _plan(request, min(1, budget), plan)
""",
        caught_by="P4",
        tells="every running request is taken for one that decodes.",
        sly=True,
    ),
    Mutant(
        "a_batch_begins_together",
        WAITING,
        """        is_empty = not self.running
        while is_empty and self.waiting and len(self.running) < self.max_num_seqs and budget > 0:
            request = self.waiting.pop(0)
            self.running.append(request)
            budget -= _plan(request, budget, plan)
""",
        caught_by="P4",
        tells="this is static batching: slots in the batch stay empty while requests wait.",
    ),
    Mutant(
        "newcomers_first",
        RUNNING + WAITING,
        """        before = list(self.running)
        while self.waiting and len(self.running) < self.max_num_seqs and budget > 0:
            request = self.waiting.pop(0)
            self.running.append(request)
            budget -= _plan(request, budget, plan)
        for request in before:
            if budget > 0:
                budget -= _plan(request, budget, plan)
""",
        caught_by="P5",
        tells="in a step that admits a request, an answer that has begun may come to a standstill.",
        sly=True,
    ),
    Mutant(
        "shortest_prompt_first",
        "request = self.waiting.pop(0)",
        "request = self.waiting.pop(min(range(len(self.waiting)), key=lambda i: self.waiting[i].num_tokens))",
        caught_by="P5",
        tells="a request with a long prompt may wait for ever, while others come and go.",
        sly=True,
    ),
    Mutant(
        "prompts_first",
        RUNNING,
        """        def most_left(request: Request) -> int:
            return request.num_computed_tokens - request.num_tokens

        for request in sorted(self.running, key=most_left):
            if budget > 0:
                budget -= _plan(request, budget, plan)
""",
        caught_by="P6",
        tells="an answer that has begun may come to a standstill while a long prompt is computed.",
        sly=True,
    ),
    Mutant(
        "at_most_four_seats",
        "        self.max_num_seqs = max_num_seqs\n",
        "        self.max_num_seqs = min(max_num_seqs, 4)\n",
        caught_by="P4",
        tells="however many slots the batch has, four requests run.",
        sly=True,
    ),
)

VARIANTS = (
    Mutant(
        "one_line_for_all",
        RUNNING + WAITING,
        """        line = self.running + self.waiting
        for place, request in enumerate(line):
            if budget <= 0 or place >= self.max_num_seqs:
                break
            budget -= _plan(request, budget, plan)
        self.running, self.waiting = line[: len(plan)], line[len(plan) :]
""",
    ),
    Mutant(
        "asks_first_plans_later",
        RUNNING + WAITING,
        """        free = self.max_num_seqs - len(self.running)
        spare = budget - sum(request.num_tokens - request.num_computed_tokens for request in self.running)
        while self.waiting and free > 0 and spare > 0:
            spare -= self.waiting[0].num_tokens
            self.running.append(self.waiting.pop(0))
            free -= 1
        for request in self.running:
            budget -= _plan(request, budget, plan)
""",
    ),
    Mutant(
        "looks_at_all_running_requests",
        """        running = {request.request_id: request for request in self.running}
        for request_id, num_tokens in plan:
            request = running[request_id]
            request.num_computed_tokens += num_tokens
            if request.num_computed_tokens == request.num_tokens:
                request.num_tokens += 1
                caught_up.append(request_id)
        return caught_up
""",
        """        planned = dict(plan)
        for request in reversed(self.running):
            request.num_computed_tokens += planned.get(request.request_id, 0)
            if request.num_computed_tokens >= request.num_tokens:
                request.num_tokens = request.num_computed_tokens + 1
                caught_up.append(request.request_id)
        return caught_up
""",
    ),
    Mutant(
        "plan_in_reverse",
        "    return num_tokens\n",
        "    plan.sort(reverse=True)\n    return num_tokens\n",
    ),
)

TO_CATCH = "newcomers_first"

EQUIVALENT: dict[str, str] = {}


def examples(subject: Any) -> None:
    """The tests that one would write first."""
    scheduler = subject.Scheduler(2, 8, 100)
    for length in (0, 100):
        try:
            scheduler.add("x", length)
            raise AssertionError("no error")
        except ValueError:
            pass
    for name, length in (("a", 3), ("b", 4), ("c", 5)):
        scheduler.add(name, length)
    plan = scheduler.schedule()
    assert sorted(plan) == [("a", 3), ("b", 4)]
    assert sorted(scheduler.update(plan)) == ["a", "b"]
    plan = scheduler.schedule()
    assert sorted(plan) == [("a", 1), ("b", 1)]
    assert sorted(scheduler.update(plan)) == ["a", "b"]
    scheduler.finish("a")
    plan = scheduler.schedule()
    assert sorted(plan) == [("b", 1), ("c", 5)]
    scheduler.update(plan)
    scheduler.finish("b")
    scheduler.finish("c")
    assert scheduler.schedule() == []
    scheduler.add("long", 12)
    plan = scheduler.schedule()
    assert plan == [("long", 8)]
    assert scheduler.update(plan) == []
