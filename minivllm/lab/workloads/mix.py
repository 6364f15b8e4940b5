"""What the requests of a workload are like: how long, which tokens, and what fits the model.

A request is a function of its name and the seed (`draws.py`), so that a mix can be asked for any request at
any time. Arrivals have no part in it: the same mix at twice the rate is the same requests in half the time.

A request that does not fit the model is shortened, its prompt and its answer in the same proportion. Means
are then smaller than the distributions say, as they are in any test of a short model.

Read next: `open_workload.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

from minivllm.lab.workloads.draws import uniforms
from minivllm.lab.workloads.lengths import LengthDistribution, Lengths
from minivllm.lab.workloads.prompts import Prompts
from minivllm.lab.workloads.workload import WorkloadRequest
from minivllm.validation import check_integer


@dataclass(frozen=True)
class RequestMix:
    """Makes requests.

    Attributes:
        prompt_lengths: of a prompt's own tokens, without the prefix that it may share.
        max_tokens: the limit that every sender sets, which cuts longer answers off; None: each sets exactly
            what comes out, as if it knew.
        max_model_len: most tokens of a prompt and its answer together; None: no limit.
    """

    prompt_lengths: LengthDistribution
    output_lengths: LengthDistribution
    prompts: Prompts
    seed: int = 0
    max_tokens: int | None = None
    max_model_len: int | None = None

    def __post_init__(self) -> None:
        check_integer("seed", self.seed)
        if self.max_tokens is not None:
            check_integer("max_tokens", self.max_tokens, at_least=1)
        if self.max_model_len is not None:
            # Room for one token of the prompt's own, and one of the answer.
            check_integer("max_model_len", self.max_model_len, at_least=self.prompts.num_prefix_tokens + 2)

    def lengths(self, name: str) -> Lengths:
        """A prompt's own tokens, and the answer's, as they are drawn: not yet cut to fit the model."""
        first, second = uniforms(f"{self.seed}:{name}:lengths", 2)
        output = self.output_lengths.at(second)
        return Lengths(
            self.prompt_lengths.at(first),
            output if self.max_tokens is None else min(output, self.max_tokens),
        )

    def request(self, name: str, arrival_seconds: float, user: str | None = None) -> WorkloadRequest:
        """The request of that name, which becomes its id."""
        prompt, output = lengths = self.lengths(name)
        if self.max_model_len is not None:
            prompt, output = shortened(lengths, self.max_model_len - self.prompts.num_prefix_tokens)
        return WorkloadRequest(
            name,
            arrival_seconds,
            self.prompts.prompt(self.key(name), prompt),
            output,
            self.max_tokens or output,
            user=user,
        )

    def key(self, name: str) -> str:
        """What the tokens of that name are drawn by."""
        return f"{self.seed}:{name}:tokens"


def shortened(lengths: Lengths, room: int) -> Lengths:
    """Both in the same proportion, at least one token each, until their sum is at most `room`."""
    prompt, output = lengths
    if prompt + output <= room:
        return lengths
    prompt = max(1, room * prompt // (prompt + output))
    return Lengths(prompt, min(output, room - prompt))
