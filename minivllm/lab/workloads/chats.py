"""Chats: conversations of several turns, each of which sends the whole conversation so far.

    turn 0   [ question ]                                       ──► answer
    turn 1   [ question ][ answer ][ question ]                 ──► answer
    turn 2   [ question ][ answer ][ question ][ answer ][ … ]  ──► answer

Conversations begin by an arrival process; within one, the next turn waits for the answer and for its user to
think. So prompts grow, and all but the end of each has been computed before: what a prefix cache is for, and
a reason to send a conversation to the replica that has served it already (`WorkloadRequest.user`).

A conversation ends after its number of turns, or when its next turn would not fit the model. It remembers
nothing here: a turn is made from the last one and its answer.

Read next: `jsonl.py`.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from minivllm.lab.workloads.arrivals import ArrivalProcess
from minivllm.lab.workloads.draws import exponential, uniforms
from minivllm.lab.workloads.lengths import LengthDistribution
from minivllm.lab.workloads.mix import RequestMix
from minivllm.lab.workloads.workload import WorkloadRequest
from minivllm.validation import check_integer, check_number


@dataclass(frozen=True)
class Chats:
    """`num_chats` conversations.

    Attributes:
        mix: of a turn: the question, and its answer.
        process: when conversations begin.
        turns: how many of them a conversation has.
        think_seconds: between an answer and the next question: the mean of an exponential distribution.
    """

    mix: RequestMix
    process: ArrivalProcess
    num_chats: int
    turns: LengthDistribution
    think_seconds: float = 0.0

    def __post_init__(self) -> None:
        check_integer("num_chats", self.num_chats, at_least=1)
        check_number("think_seconds", self.think_seconds, at_least=0)

    def arrivals(self) -> Iterator[WorkloadRequest]:
        """The first turn of each conversation."""
        times = self.process.times(self.mix.seed)
        for index, arrival_seconds in zip(range(self.num_chats), times, strict=False):
            yield self.mix.request(f"chat-{index}-0", arrival_seconds, f"chat-{index}")

    def after(
        self, request: WorkloadRequest, finished_seconds: float, output_token_ids: Sequence[int]
    ) -> WorkloadRequest | None:
        """The next turn, whose prompt begins with the last one's prompt and answer."""
        chat, _, turn = request.request_id.rpartition("-")
        following = int(turn) + 1
        if following >= self.num_turns(chat):
            return None
        name = f"{chat}-{following}"
        question, answer = self.mix.lengths(name)
        so_far = len(request.prompt_token_ids) + len(output_token_ids)
        longest = self.mix.max_model_len
        if longest is not None and so_far + question + answer > longest:
            return None
        prompt = request.prompt_token_ids + array("i", output_token_ids)
        prompt += self.mix.prompts.own_tokens(self.mix.key(name), question)
        think = exponential(f"{self.mix.seed}:{name}:think", self.think_seconds)
        limit = self.mix.max_tokens or answer
        return WorkloadRequest(name, finished_seconds + think, prompt, answer, limit, user=request.user)

    @property
    def num_requests(self) -> int:
        """Turns of all conversations, if all of them fit the model."""
        return sum(self.num_turns(f"chat-{index}") for index in range(self.num_chats))

    def num_turns(self, chat: str) -> int:
        """Of the conversation of that name, if all of them fit the model."""
        return self.turns.at(uniforms(f"{self.mix.seed}:{chat}:turns", 1)[0])
