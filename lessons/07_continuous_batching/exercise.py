"""Continuous batching: the batch is decided anew before every step, as requests arrive and finish.

There is no prefill phase and no decode phase. A request has tokens, and some of them are computed (their keys
and values are in the cache); a step lets the computed ones catch up:

    tokens        t t t t t t        num_tokens = 6                 of a prompt, at first
    computed      c c c c            num_computed_tokens = 4        2 are left to compute

A prompt has many left (prefill), an answer in the making always one, its newest (decode), and a prompt that
is cut has what is left of it (a chunk). All three are this rule, with other numbers.

The scheduler only plans: it never sees a token, only counts. The engine drives it, step by step:

    scheduler.add(...)                     for each request that has arrived
    plan = scheduler.schedule()            ►  [("a", 1), ("b", 7)]: compute 1 token of a, 7 of b
    caught_up = scheduler.update(plan)     ►  ["a"]: all of a's tokens are computed, so its next is known
    scheduler.finish("a")                  if that token was its last

Source: Yu et al., "Orca: A Distributed Serving System for Transformer-Based Generative Models" (OSDI 2022),
section 3. In the engine: minivllm/scheduling/scheduler.py.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Request:
    """One request, as the scheduler knows it.

    Attributes:
        request_id: its name.
        num_tokens: of its prompt and, as far as it is known, of its answer.
        num_computed_tokens: so many of them, from the first, are in the cache; never more than `num_tokens`.
    """

    request_id: str
    num_tokens: int
    num_computed_tokens: int = 0


class Scheduler:
    """Which requests wait, which run, and what the next step computes."""

    def __init__(self, max_num_seqs: int, max_num_batched_tokens: int, max_model_len: int) -> None:
        """No request waits, and none runs.

        Args:
            max_num_seqs: slots in the batch: most requests that run at a time.
            max_num_batched_tokens: budget: most tokens that one step computes, of all requests together.
            max_model_len: most tokens that a request may have, prompt and answer together.
        """
        raise NotImplementedError

    def add(self, request_id: str, num_prompt_tokens: int) -> None:
        """A request has arrived, and waits behind all others that wait.

        A prompt may be longer than `max_num_batched_tokens`: it is computed in several steps.

        Raises:
            ValueError: the prompt is empty; or so long that not one token of an answer would fit within
                `max_model_len`; or a request of this name waits or runs. Nothing has changed.
        """
        raise NotImplementedError

    def schedule(self) -> list[tuple[str, int]]:
        """What the next step computes.

        The requests get the budget one after another, each all that it can use of what is left:

        1. The running requests, in order of arrival.
        2. The waiting requests, in order of arrival, while a slot in the batch is free and some budget is
           left. A request that gets tokens is admitted: it runs, and keeps its slot until it finishes.

        A request can use as many tokens as it has left to compute. If the budget is less, the request is cut:
        it gets what there is, and the rest in later steps.

        It is called again only after `update` has been called with its plan; in between nothing is added, and
        nothing finishes.

        Returns:
            `(request_id, num_tokens)` of each request that computes something, at least one token each.
        """
        raise NotImplementedError

    def update(self, plan: list[tuple[str, int]]) -> list[str]:
        """The plan has been carried out: its tokens are computed.

        A request without a token left to compute has caught up: the model's last output says its next token.
        So it has one token more from now on, which is not computed yet.

        Args:
            plan: what `schedule` has just returned.

        Returns:
            The names of the requests that have caught up, each of which has got one token.
        """
        raise NotImplementedError

    def finish(self, request_id: str) -> None:
        """A request leaves: its answer is complete, or its user gave up.

        It may run or still wait. If it ran, its slot in the batch is free in the very next step.

        Args:
            request_id: of a request that waits or runs.
        """
        raise NotImplementedError
