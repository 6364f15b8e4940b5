"""Wrong solutions of lesson 09, and right ones written otherwise."""

from typing import Any

from lessons.mutant import Mutant

LINE = "for request in decodes + prompts + waiting[:num_free_slots]:"
MOST = """        most = limits.long_prefill_token_threshold or budget
        num_tokens = min(_left(request), most, budget)
"""
LISTS = """    given = list(requests)
    running = [request for request in given if request.num_computed_tokens > 0]
    waiting = [request for request in given if request.num_computed_tokens == 0]
"""
LOOP = """    chunks: list[Chunk] = []
    budget = limits.max_num_batched_tokens
    for request in decodes + prompts + waiting[:num_free_slots]:
        most = limits.long_prefill_token_threshold or budget
        num_tokens = min(_left(request), most, budget)
        if num_tokens > 0:
            start = request.num_computed_tokens
            chunks.append(Chunk(request.request_id, start, start + num_tokens))
            budget -= num_tokens
    return chunks
"""

MUTANTS = (
    Mutant(
        "any_number_of_slots",
        "if not 1 <= self.max_num_seqs <= self.max_num_batched_tokens:",
        "if self.max_num_seqs < 1 or self.max_num_batched_tokens < 1:",
        caught_by="P1",
        tells="it accepts limits under which some answers get no token in some steps.",
        sly=True,
    ),
    Mutant(
        "budget_beyond_the_slots",
        "<= self.max_num_batched_tokens:",
        "< self.max_num_batched_tokens:",
        caught_by="P1",
        tells="it refuses a budget that has exactly one token for each slot.",
        sly=True,
    ),
    Mutant(
        "any_threshold",
        "if self.long_prefill_token_threshold < 0:",
        "if self.long_prefill_token_threshold == -1:",
        caught_by="P1",
        tells="it accepts thresholds that allow a request fewer than no tokens.",
        sly=True,
    ),
    Mutant(
        "one_slot_too_many",
        "waiting[:num_free_slots]:",
        "waiting[: num_free_slots + 1]:",
        caught_by="P2",
        tells="more requests run than the batch has slots.",
    ),
    Mutant(
        "short_prompts_are_answers",
        """    waiting = [request for request in given if request.num_computed_tokens == 0]
    num_free_slots = limits.max_num_seqs - len(running)
    decodes = [request for request in running if _left(request) == 1]
""",
        """    waiting = [one for one in given if one.num_computed_tokens == 0 and _left(one) > 1]
    num_free_slots = limits.max_num_seqs - len(running)
    decodes = [request for request in given if _left(request) == 1]
""",
        caught_by="P2",
        tells="it may admit a request though all slots are taken.",
        sly=True,
    ),
    Mutant(
        "decodes_are_free",
        "            budget -= num_tokens\n",
        "            budget -= num_tokens if _left(request) > 1 else 0\n",
        caught_by="P2",
        tells="it takes the one token of an answer for no work at all.",
    ),
    Mutant(
        "threshold_for_newcomers_only",
        "most = limits.long_prefill_token_threshold or budget",
        "most = (limits.long_prefill_token_threshold if request in waiting else 0) or budget",
        caught_by="P2",
        tells="the first chunk of a prompt keeps the threshold, and the later ones need not.",
        sly=True,
    ),
    Mutant(
        "every_chunk_begins_at_zero",
        "start = request.num_computed_tokens",
        "start = 0",
        caught_by="P3",
        tells="it computes the beginning of a prompt again and again.",
    ),
    Mutant(
        "whole_budget_or_nothing",
        "        if num_tokens > 0:",
        "        if num_tokens == min(_left(request), limits.long_prefill_token_threshold or 9**9):",
        caught_by="P4",
        tells="a prompt that is longer than what is left of a budget waits for a step that has room for it.",
    ),
    Mutant(
        "looks_at_requests_twice",
        LISTS,
        """    running = [request for request in requests if request.num_computed_tokens > 0]
    waiting = [request for request in requests if request.num_computed_tokens == 0]
""",
        caught_by="P4",
        tells="some callers' requests are never computed, depending on how they are handed over.",
        sly=True,
    ),
    Mutant(
        "prompts_first",
        LINE,
        "for request in prompts + decodes + waiting[:num_free_slots]:",
        caught_by="P5",
        tells="an answer that has begun may come to a standstill while a long prompt is computed.",
    ),
    Mutant(
        "in_order_of_arrival",
        LINE,
        "for request in running + waiting[:num_free_slots]:",
        caught_by="P5",
        tells="an answer may come to a standstill behind a request that was preempted and is computed again.",
        sly=True,
    ),
    Mutant(
        "last_tokens_of_answers_first",
        "decodes = [request for request in running if _left(request) == 1]",
        "decodes = [request for request in running[:8] if _left(request) == 1]",
        caught_by="P5",
        tells="with many answers under way, some of them get no token in some steps.",
        sly=True,
    ),
    Mutant(
        "one_prompt_per_step",
        "            budget -= num_tokens\n",
        "            budget -= num_tokens\n"
        "            if num_tokens < _left(request):\n"
        "                break\n",
        caught_by="P6",
        tells="after a prompt that is cut, no other request gets a part of the step.",
        sly=True,
    ),
    Mutant(
        "chunks_of_one_byte",
        "num_tokens = min(_left(request), most, budget)",
        "num_tokens = min(_left(request), most, budget, 255)",
        caught_by="P6",
        tells="no chunk has more than 255 tokens, however large the budget is.",
        sly=True,
    ),
    Mutant(
        "newcomers_before_begun_prompts",
        LINE,
        "for request in decodes + waiting[:num_free_slots] + prompts:",
        caught_by="P7",
        tells="a prompt that is half computed may wait for ever, while others come.",
    ),
    Mutant(
        "shortest_prompt_first",
        LINE,
        "for request in decodes + prompts + sorted(waiting, key=_left)[:num_free_slots]:",
        caught_by="P7",
        tells="a request with a long prompt may wait for ever, while short ones come and go.",
        sly=True,
    ),
)

VARIANTS = (
    Mutant(
        "one_sort",
        LINE,
        "place = lambda one: (one.num_computed_tokens == 0, _left(one) != 1 and one in running)\n"
        "    for request in sorted(running + waiting[:num_free_slots], key=place):",
    ),
    Mutant(
        "a_queue_that_is_emptied",
        LOOP,
        """    line = decodes + prompts + waiting[:num_free_slots]
    budget, chunks = limits.max_num_batched_tokens, []
    while line and budget:
        request = line.pop(0)
        end = min(request.num_tokens, request.num_computed_tokens + budget)
        if limits.long_prefill_token_threshold:
            end = min(end, request.num_computed_tokens + limits.long_prefill_token_threshold)
        chunks.append((request.request_id, request.num_computed_tokens, end))
        budget -= end - request.num_computed_tokens
    return chunks
""",
    ),
    Mutant(
        "from_the_last_to_the_first",
        "    return chunks\n",
        "    return [Chunk(*chunk) for chunk in sorted(chunks, reverse=True)]\n",
    ),
    Mutant(
        "recursion",
        LOOP,
        """    def share(line: list[Request], budget: int) -> list[Chunk]:
        if not line or not budget:
            return []
        first, *rest = line
        num_tokens = min(_left(first), limits.long_prefill_token_threshold or budget, budget)
        end = first.num_computed_tokens + num_tokens
        return [Chunk(first.request_id, first.num_computed_tokens, end), *share(rest, budget - num_tokens)]

    return share(decodes + prompts + waiting[:num_free_slots], limits.max_num_batched_tokens)
""",
    ),
)

TO_CATCH = "in_order_of_arrival"

EQUIVALENT: dict[str, str] = {}


def examples(subject: Any) -> None:
    """The tests that one would write first."""
    for slots, threshold in ((0, 0), (4, -1)):
        try:
            subject.Limits(8, slots, threshold)
            raise AssertionError("no error")
        except ValueError:
            pass
    request, limits = subject.Request, subject.Limits(8, 3)
    assert subject.plan([], limits) == []
    assert sorted(subject.plan([request("a", 3), request("b", 4)], limits)) == [("a", 0, 3), ("b", 0, 4)]
    assert subject.plan([request("long", 20)], limits) == [("long", 0, 8)]
    assert subject.plan([request("long", 20, 8)], limits) == [("long", 8, 16)]
    beside = [request("a", 6, 5), request("b", 20, 3), request("c", 5)]
    assert sorted(subject.plan(beside, limits)) == [("a", 5, 6), ("b", 3, 10)]
    other_order = [request("a", 6, 5), request("b", 9, 5), request("c", 12, 8), request("d", 3)]
    assert sorted(subject.plan(other_order, limits)) == [("a", 5, 6), ("b", 5, 9), ("c", 8, 11)]
    most_three = subject.Limits(8, 3, 3)
    assert subject.plan([request("long", 20)], most_three) == [("long", 0, 3)]
    many = [request("a", 6, 5), request("b", 7, 6), request("c", 8, 7), request("d", 3)]
    assert sorted(subject.plan(many, limits)) == [("a", 5, 6), ("b", 6, 7), ("c", 7, 8)]
