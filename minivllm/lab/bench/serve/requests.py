"""What is sent: a workload's requests as bodies, ready before the run begins.

    a word or a file ──► workload (arrivals, follow-ups) ──► Ask(due, body) …

Lengths, prompts and arrivals come from `minivllm/lab/workloads/`. A prompt goes out as token ids where the
server takes them, because then its length is exactly the one that was drawn; as a text otherwise, made
with the model's tokenizer, and then the server's own count is what the result says.

Runs at several rates must not send the same prompts: a prefix cache would answer the second run from what
the first has left. So each run draws other tokens, of the same lengths (`Fresh`).

Read next: `load.py`.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from minivllm.lab.bench.serve.backends import make_body
from minivllm.lab.workloads import (
    AllAtOnce,
    ArrivalProcess,
    Bursty,
    Chats,
    EvenlySpaced,
    FileWorkload,
    OpenWorkload,
    Poisson,
    RequestMix,
    SharedPrefixes,
    Workload,
    WorkloadRequest,
    parse_workload,
)
from minivllm.lab.workloads.prompts import Prompts
from minivllm.lab.workloads.sharegpt import read_sharegpt
from minivllm.validation import check_choice, check_number

ARRIVALS = ("poisson", "constant")
LEAST_SHAPE, MOST_SHAPE = 1e-4, 1e4

Encode = Callable[[str], Sequence[int]]
Decode = Callable[[Sequence[int]], str]


@dataclass(frozen=True)
class Fresh:
    """The same prompts in length, with other tokens in each run."""

    prompts: Prompts
    run: int

    @property
    def num_prefix_tokens(self) -> int:
        return self.prompts.num_prefix_tokens

    def own_tokens(self, key: str, count: int) -> array[int]:
        return self.prompts.own_tokens(f"{key}:run {self.run}", count)

    def prompt(self, key: str, num_own_tokens: int) -> array[int]:
        return self.prompts.prompt(f"{key}:run {self.run}", num_own_tokens)


@dataclass(frozen=True)
class Writer:
    """Turns requests into bodies.

    Attributes:
        decode: from token ids to text; None where prompts go out as token ids.
        wants_ids: ask for the answer's token ids, which a conversation needs for its next turn.
        more: other fields of each request.
    """

    backend: str
    model: str
    decode: Decode | None = None
    temperature: float = 0.0
    ignore_eos: bool = True
    wants_ids: bool = False
    more: Mapping[str, Any] = field(default_factory=dict)

    def body(self, request: WorkloadRequest) -> bytes:
        prompt: str | Sequence[int] = request.prompt_token_ids
        if request.prompt is not None:
            prompt = request.prompt
        elif self.decode is not None:
            prompt = self.decode(request.prompt_token_ids)
        return make_body(
            self.backend,
            self.model,
            prompt,
            request.num_output_tokens,
            temperature=self.temperature,
            ignore_eos=self.ignore_eos,
            wants_ids=self.wants_ids,
            more=self.more,
        )


@dataclass(frozen=True)
class DataSet:
    """Which requests, and what is known about the model that they are for.

    Attributes:
        spec: as on the command line.
        encode: from text to token ids; None without a tokenizer: then texts go out as they are, and the
            server counts their tokens.
        output_tokens: of each request of a ShareGPT file, instead of what its answers have.
    """

    spec: str
    num_requests: int
    vocab_size: int
    max_model_len: int
    seed: int = 0
    encode: Encode | None = None
    output_tokens: int | None = None

    def workload(self, process: ArrivalProcess | None = None, run: int = 0) -> Workload:
        """The requests of a run, arriving by `process`.

        Args:
            process: None: as a file says, and else all at once.
            run: each has prompts of its own (those of a file are always the same).

        Raises:
            ValueError: no such workload, or a file that cannot be read or has nothing in it.
        """
        if self.spec.endswith(".json"):
            pairs = read_sharegpt(
                self.spec,
                num_requests=self.num_requests,
                max_model_len=self.max_model_len,
                encode=self.encode,
                output_tokens=self.output_tokens,
                seed=self.seed,
            )
            return _at_times(Listed(tuple(pairs)), process or AllAtOnce(), self.seed)
        found = parse_workload(
            self.spec,
            vocab_size=self.vocab_size,
            num_requests=self.num_requests,
            max_model_len=self.max_model_len,
            seed=self.seed,
            encode=self.encode or _unknown_tokens,
        )
        if isinstance(found, FileWorkload):
            return found if process is None else _at_times(found, process, self.seed)
        if isinstance(found, Chats):
            return replace(found, mix=_fresh(found.mix, run), process=process or AllAtOnce())
        assert isinstance(found, OpenWorkload)
        return replace(found, mix=_fresh(found.mix, run), process=process or AllAtOnce())

    @property
    def has_own_times(self) -> bool:
        return self.spec.endswith(".jsonl")

    @property
    def is_file(self) -> bool:
        return self.spec.endswith((".jsonl", ".json"))


@dataclass(frozen=True)
class Listed:
    """Requests that are there already, in order of time."""

    requests: tuple[WorkloadRequest, ...] = field(repr=False)

    def arrivals(self) -> Iterator[WorkloadRequest]:
        return iter(self.requests)

    def after(
        self, request: WorkloadRequest, finished_seconds: float, output_token_ids: Sequence[int]
    ) -> None:
        """Nothing follows."""


def make_process(
    rate: float | None, burstiness: float = 1.0, arrivals: str = "poisson"
) -> ArrivalProcess | None:
    """When requests arrive; None: no rate was asked for.

    Args:
        burstiness: vLLM's: the shape of the gamma distribution of gaps. 1 is Poisson, less comes in bursts,
            more is more even.
        arrivals: "poisson", or "constant": one every 1 / rate seconds.

    Raises:
        ValueError: a number that is not allowed, or one that would change nothing.
    """
    check_choice("arrivals", arrivals, ARRIVALS)
    check_number("burstiness", burstiness, at_least=LEAST_SHAPE, at_most=MOST_SHAPE)
    if rate is None:
        if burstiness != 1 or arrivals != "poisson":
            raise ValueError("burstiness and arrivals need a rate: --request-rate or --request-rates")
        return None
    check_number("request_rate", rate, more_than=0)
    if arrivals == "constant":
        if burstiness != 1:
            raise ValueError(f"burstiness {burstiness:g} must be left out with constant arrivals")
        return EvenlySpaced(rate)
    return Poisson(rate) if burstiness == 1 else Bursty(rate, burstiness**-0.5)


def warm_ups(data: DataSet, count: int) -> list[WorkloadRequest]:
    """Requests to warm up with: like those of the run, but none that a prefix cache would know again."""
    if data.is_file:
        texts = data.workload().arrivals()
        return [
            replace(request, request_id=f"warm-up-{index}", prompt=f"({index}) {request.prompt}")
            if request.prompt is not None
            else replace(request, request_id=f"warm-up-{index}", prompt_token_ids=turned(request))
            for index, request in enumerate(first(texts, count))
        ]
    other = replace(data, num_requests=max(1, count), spec="alpaca" if data.spec == "chat" else data.spec)
    requests = other.workload(run=-1).arrivals()
    return [
        replace(request, request_id=f"warm-up-{index}")
        for index, request in enumerate(first(requests, count))
    ]


def turned(request: WorkloadRequest) -> array[int]:
    """The prompt's tokens from the last to the first."""
    return array("i", reversed(request.prompt_token_ids))


def first(requests: Iterable[WorkloadRequest], count: int) -> list[WorkloadRequest]:
    return [request for request, _ in zip(requests, range(count), strict=False)]


def _fresh(mix: RequestMix, run: int) -> RequestMix:
    if run == 0:
        return mix
    prompts = mix.prompts
    if isinstance(prompts, SharedPrefixes):
        prompts = replace(prompts, seed=prompts.seed + 1_000_003 * run)
    return replace(mix, prompts=Fresh(prompts, run))


def _at_times(workload: Workload, process: ArrivalProcess, seed: int) -> Listed:
    """The same requests, in their order, at other times."""
    pairs = zip(workload.arrivals(), process.times(seed), strict=False)
    return Listed(tuple(replace(request, arrival_seconds=seconds) for request, seconds in pairs))


def _unknown_tokens(text: str) -> list[int]:
    """One token, whatever the text: it goes out as a text, and the server counts."""
    return [0] if text else []
