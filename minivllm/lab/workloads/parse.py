"""One word on the command line makes a workload.

    sharegpt | alpaca              lengths like those of the vLLM paper's data sets
    fixed:IN,OUT                   every request has IN prompt tokens and OUT output tokens
    uniform:A-B,C-D                prompts of A to B tokens, answers of C to D
    shared:PREFIX[,K]              one of K (1) system prompts of PREFIX tokens, then as sharegpt
    chat                           conversations of two to eight turns, each turn as alpaca
    FILE.jsonl                     a file of one's own

When requests arrive is said beside it: at `rate` requests a second, or from `num_users` users, and each
waits for the answer; with neither, all at once.

Read next: `minivllm/lab/subjects/workload.py`, the fixed workload that engines are compared with.
"""

from __future__ import annotations

import re
from dataclasses import replace

from minivllm.lab.workloads.arrivals import AllAtOnce, ArrivalProcess, Bursty, Poisson
from minivllm.lab.workloads.chats import Chats
from minivllm.lab.workloads.closed_loop import ClosedLoop
from minivllm.lab.workloads.jsonl import read_jsonl
from minivllm.lab.workloads.jsonl_line import Encode
from minivllm.lab.workloads.lengths import DATA_SETS, Fixed, LengthDistribution, Uniform, like
from minivllm.lab.workloads.mix import RequestMix
from minivllm.lab.workloads.open_workload import OpenWorkload
from minivllm.lab.workloads.prompts import Prompts, RandomPrompts, SharedPrefixes, check_vocabulary
from minivllm.lab.workloads.workload import Workload
from minivllm.validation import check_integer, check_number

KNOWN = (
    "sharegpt, alpaca, fixed:IN,OUT, uniform:A-B,C-D, shared:PREFIX[,K], chat, or the path of a .jsonl file"
)
DEFAULT_NUM_REQUESTS = 1000
CHAT_TURNS = Uniform(2, 8)
CHAT_THINK_SECONDS = 10.0
"""Reading an answer of some 58 tokens and writing 19: an assumption."""


def parse_workload(
    spec: str,
    *,
    vocab_size: int,
    num_requests: int | None = None,
    rate: float | None = None,
    seed: int = 0,
    max_model_len: int,
    burstiness: float = 1.0,
    num_users: int | None = None,
    think_seconds: float | None = None,
    encode: Encode | None = None,
) -> Workload:
    """The workload that `spec` names.

    Args:
        num_requests: 1,000 by default. Of a file, the first so many; all by default. Of chats, about
            as many turns.
        rate: requests a second; of chats, turns a second, if none ends early. None: all at once.
        max_model_len: generated requests are shortened to it, those of a file are refused beyond it.
        burstiness: see `Bursty`; 1 is Poisson.
        num_users: a closed loop of so many.
        think_seconds: between an answer and the same user's next request; 0 in a closed loop and 10 in
            chats by default.
        encode: from text to token ids, for a file with texts.

    Raises:
        ValueError: the spec is unknown, a number is not allowed, or two arguments exclude each other.
    """
    check_vocabulary(vocab_size)
    check_integer("max_model_len", max_model_len, at_least=2)
    check_integer("seed", seed)
    if num_requests is not None:
        check_integer("num_requests", num_requests, at_least=1)
    if rate is not None:
        check_number("rate", rate, more_than=0)
    if think_seconds is not None:
        check_number("think_seconds", think_seconds, at_least=0)
    _check_what_goes_together(spec, rate, burstiness, num_users, think_seconds)
    if _is_file(spec):
        file = read_jsonl(spec, vocab_size=vocab_size, max_model_len=max_model_len, encode=encode, seed=seed)
        return file if num_requests is None else replace(file, lines=file.lines[:num_requests])
    mix = parse_mix(spec, vocab_size=vocab_size, seed=seed, max_model_len=max_model_len)
    count = DEFAULT_NUM_REQUESTS if num_requests is None else num_requests
    if spec == "chat":
        think = CHAT_THINK_SECONDS if think_seconds is None else think_seconds
        process = _process(None if rate is None else rate / CHAT_TURNS.mean, burstiness)
        return Chats(mix, process, max(1, round(count / CHAT_TURNS.mean)), CHAT_TURNS, think)
    if num_users is not None:
        return ClosedLoop(mix, num_users, count, think_seconds or 0.0)
    return OpenWorkload(mix, _process(rate, burstiness), count)


def parse_mix(spec: str, *, vocab_size: int, seed: int = 0, max_model_len: int | None = None) -> RequestMix:
    """What the requests are like that `spec` names (not a file): lengths and prompts.

    Raises:
        ValueError: the spec is unknown, or its numbers are not allowed.
    """
    prompts: Prompts = RandomPrompts(vocab_size)
    lengths: tuple[LengthDistribution, LengthDistribution]
    kind, _, numbers = spec.partition(":") if isinstance(spec, str) else ("", "", "")
    try:
        if spec in DATA_SETS:
            lengths = like(spec)
        elif spec == "chat":
            lengths = like("alpaca")
        elif kind == "fixed" and (found := _integers(r"(\d+),(\d+)", numbers)):
            lengths = Fixed(found[0]), Fixed(found[1])
        elif kind == "uniform" and (found := _integers(r"(\d+)-(\d+),(\d+)-(\d+)", numbers)):
            lengths = Uniform(found[0], found[1]), Uniform(found[2], found[3])
        elif kind == "shared" and (found := _integers(r"(\d+)(?:,(\d+))?", numbers)):
            lengths = like("sharegpt")
            prompts = SharedPrefixes(vocab_size, found[0], found[-1] if len(found) > 1 else 1, seed)
        else:
            raise ValueError(f"there are {KNOWN}")
        return RequestMix(lengths[0], lengths[1], prompts, seed, max_model_len=max_model_len)
    except ValueError as error:
        raise ValueError(f"workload {spec!r}: {error}") from error


def _integers(pattern: str, text: str) -> list[int]:
    """The numbers of a text that looks like the pattern; none if it does not."""
    match = re.fullmatch(pattern, text, re.ASCII)
    return [int(group) for group in match.groups() if group is not None] if match else []


def _process(rate: float | None, burstiness: float) -> ArrivalProcess:
    if rate is None:
        return AllAtOnce()
    return Poisson(rate) if burstiness == 1 else Bursty(rate, burstiness)


def _is_file(spec: object) -> bool:
    return isinstance(spec, str) and spec.endswith(".jsonl")


def _check_what_goes_together(
    spec: str, rate: float | None, burstiness: float, num_users: int | None, think_seconds: float | None
) -> None:
    """Raise `ValueError` for an argument that would change nothing, or contradict another."""
    if num_users is not None and (rate is not None or spec == "chat" or _is_file(spec)):
        raise ValueError(
            f"num_users {num_users} must be left out for chats and files, and where a rate is given: "
            "these users do nothing but wait for their answers and ask again"
        )
    if rate is not None and _is_file(spec):
        raise ValueError(f"rate {rate} must be left out: {spec} says itself when requests arrive")
    if burstiness != 1 and rate is None:
        raise ValueError(f"burstiness {burstiness} needs a rate")
    if think_seconds is not None and num_users is None and spec != "chat":
        raise ValueError(
            f"think_seconds {think_seconds} needs num_users or chats: in no other workload does a user wait"
        )
