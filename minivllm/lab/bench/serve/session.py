"""A whole measurement of one server: find it, warm it up, one run for each rate.

    find_model ──► data set ──► one request as a test ──► warm-up ──► run, run, …    (these are measured)

Read next: `report.py`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minivllm.lab.bench.serve.backends import BACKENDS
from minivllm.lab.bench.serve.client import Client
from minivllm.lab.bench.serve.doubts import MOST_LATE_MS, with_doubts
from minivllm.lab.bench.serve.load import Progress, mode_of, run_load
from minivllm.lab.bench.serve.probe import ServedCard, find_model
from minivllm.lab.bench.serve.record import Record, Run
from minivllm.lab.bench.serve.requests import DataSet, Writer, make_process, warm_ups
from minivllm.lab.bench.serve.results import ServeResult, details, measure
from minivllm.lab.workloads.chats import Chats
from minivllm.lab.workloads.parse import parse_mix
from minivllm.lab.workloads.workload import WorkloadRequest
from minivllm.validation import check_input_file, check_integer, check_number

if TYPE_CHECKING:
    from minivllm.model.tokenizer import Tokenizer

DEFAULT_MODEL_LEN = 2048
ANY_VOCABULARY = 2**16
"""To find out whether a word is a workload, before there is a model."""


@dataclass(frozen=True)
class Plan:
    """What is to be measured; checked before a server is started.

    Attributes:
        backend: "openai" or "openai-chat".
        model: the server's name for it; None takes the first.
        workload: see `minivllm/lab/workloads/parse.py`, or a file of ShareGPT's form (.json).
        rates: requests a second, a run for each; none: as fast as `max_concurrency` lets, or all at once.
        tokenizer: a folder; None: that of the served model, if the server says where it is.
        vocab_size: for prompts as token ids, where there is no tokenizer.
        num_warmups: requests before the first run that are not measured.
        max_lag_ms: see `doubts.py`.
    """

    backend: str = "openai"
    model: str | None = None
    workload: str = "fixed:128,64"
    num_requests: int = 64
    rates: tuple[float, ...] = ()
    burstiness: float = 1.0
    arrivals: str = "poisson"
    max_concurrency: int | None = None
    seed: int = 0
    tokenizer: str | None = None
    vocab_size: int | None = None
    max_model_len: int | None = None
    output_tokens: int | None = None
    temperature: float = 0.0
    ignore_eos: bool = True
    send_text: bool = False
    num_warmups: int = 4
    timeout: float = 3600.0
    max_lag_ms: float = MOST_LATE_MS
    api_key: str | None = None
    wants_text: bool = False

    def __post_init__(self) -> None:
        check_integer("num_prompts", self.num_requests, at_least=1)
        check_integer("num_warmups", self.num_warmups, at_least=0)
        check_integer("seed", self.seed, at_least=0)
        check_number("temperature", self.temperature, at_least=0)
        check_number("timeout", self.timeout, more_than=0)
        check_number("max_lag", self.max_lag_ms, more_than=0)
        for name in ("max_concurrency", "vocab_size", "max_model_len", "output_tokens"):
            value = getattr(self, name)
            if value is not None:
                check_integer(name, value, at_least=4 if name == "vocab_size" else 1)
        for rate in self.rates or (None,):
            make_process(rate, self.burstiness, self.arrivals)
        if self.workload.endswith((".json", ".jsonl")):
            check_input_file("workload", self.workload)
        else:
            parse_mix(self.workload, vocab_size=ANY_VOCABULARY)
        if self.output_tokens is not None and not self.workload.endswith(".json"):
            raise ValueError(
                "output_tokens is for files of ShareGPT's form (.json): other workloads say it themselves"
            )

    @property
    def path(self) -> str:
        return BACKENDS[self.backend]


@dataclass(frozen=True)
class Outcome:
    """One run: its numbers, and its requests one by one."""

    result: ServeResult
    run: Run

    def details(self) -> dict[str, list[Any]]:
        return details(self.run)


@dataclass(frozen=True)
class Told:
    """What a session says while it goes on."""

    note: Callable[[str], None] = lambda _: None
    begin: Callable[[int, str], Progress | None] = lambda count, words: None


async def measure_server(
    base_url: str, plan: Plan, goodput: dict[str, float], told: Told | None = None
) -> tuple[ServedCard, list[Outcome]]:
    """All runs of a plan.

    Raises:
        ValueError: there is no such server or model, the workload cannot be made for it, or the test request
            is not answered.
    """
    told = told or Told()
    async with Client(
        base_url, plan.path, api_key=plan.api_key, timeout=plan.timeout, wants_text=plan.wants_text
    ) as client:
        card = await find_model(client, plan.model)
        data, writer = prepare(plan, card)
        await _warm_up(client, plan, data, writer, told)
        outcomes = []
        for index, rate in enumerate(plan.rates or (None,)):
            outcomes.append(await _one_run(client, plan, data, writer, rate, index, goodput, told))
        return card, outcomes


def prepare(plan: Plan, card: ServedCard) -> tuple[DataSet, Writer]:
    """The data set for this model, and what writes its requests.

    Raises:
        ValueError: prompts cannot be made without knowing the model's vocabulary.
    """
    tokenizer = _tokenizer(plan, card)
    vocab_size = plan.vocab_size or (tokenizer.vocab_size if tokenizer else _vocab_size(card.folder))
    sends_text = plan.send_text or plan.backend == "openai-chat"
    is_file = plan.workload.endswith((".json", ".jsonl"))
    if sends_text and tokenizer is None and not is_file:
        raise ValueError(
            f"workload {plan.workload!r} has lengths in tokens, and texts of such lengths need the model's "
            "tokenizer: give its folder (--tokenizer), or a file with texts (--workload FILE.jsonl)"
        )
    if vocab_size is None and not is_file:
        raise ValueError(
            f"workload {plan.workload!r} is made of token ids, and nothing here says how many the model has: "
            "give --tokenizer FOLDER or --vocab-size N"
        )
    data = DataSet(
        plan.workload,
        plan.num_requests,
        vocab_size or 2**31 - 1,
        plan.max_model_len or card.max_model_len or DEFAULT_MODEL_LEN,
        plan.seed,
        tokenizer.encode if tokenizer else None,
        plan.output_tokens,
    )
    decode = (lambda ids: tokenizer.decode(list(ids))) if sends_text and tokenizer else None
    writer = Writer(
        plan.backend, card.model, decode, plan.temperature, plan.ignore_eos, plan.workload == "chat"
    )
    return data, writer


async def _warm_up(client: Client, plan: Plan, data: DataSet, writer: Writer, told: Told) -> None:
    """One request that must be answered, and then some that fill its pools. None of them is measured."""
    workload = data.workload()  # a mistake in it is said before the first request
    if data.is_file and (there := sum(1 for _ in workload.arrivals())) < plan.num_requests:
        told.note(f"{plan.workload} has {there} requests that can be used, and not {plan.num_requests}.")
    requests = warm_ups(data, max(1, plan.num_warmups))
    test = Record(requests[0].request_id, 0.0, requests[0].num_output_tokens)
    await client.ask(writer.body(requests[0]), test, 0.0)
    if test.error:
        raise ValueError(f"{client.base_url}{plan.path}: the test request failed: {test.error}")
    if plan.num_warmups > 1:
        await run_load(client, _Only(requests[1:]), writer, limit=plan.max_concurrency, has_times=False)
    told.note(f"Warm-up: {len(requests)} request{'s' * (len(requests) > 1)}, not measured.")


async def _one_run(
    client: Client, plan: Plan, data: DataSet, writer: Writer, rate: float | None, index: int,
    goodput: dict[str, float], told: Told,
) -> Outcome:  # fmt: skip
    process = make_process(rate, plan.burstiness, plan.arrivals)
    has_times = rate is not None or (data.has_own_times and plan.max_concurrency is None)
    workload = data.workload(process, index)
    total, what = plan.num_requests, "requests"
    if isinstance(workload, Chats):  # about as many as were asked for
        total, what = workload.num_requests, f"turns of {workload.num_chats} chats"
    words = f"{what}, {rate:g} a second" if rate is not None else what
    run = await run_load(
        client,
        workload,
        writer,
        limit=plan.max_concurrency,
        has_times=has_times,
        on_answer=told.begin(total, words),
    )
    mode = mode_of(has_times, plan.max_concurrency)
    result = measure(
        run, mode, request_rate=rate, max_concurrency=plan.max_concurrency, goodput=goodput
    )  # fmt: skip
    return Outcome(with_doubts(result, plan.max_lag_ms), run)


@dataclass(frozen=True)
class _Only:
    """These requests, all at once."""

    requests: Sequence[WorkloadRequest]

    def arrivals(self) -> Any:
        return iter(self.requests)

    def after(self, request: Any, finished_seconds: float, output_token_ids: Any) -> None:
        """Nothing follows."""


def _tokenizer(plan: Plan, card: ServedCard) -> Tokenizer | None:
    from minivllm.model.tokenizer import Tokenizer

    if plan.tokenizer is not None:
        return Tokenizer.from_folder(Path(os.path.expanduser(plan.tokenizer)))
    if card.folder is not None and (card.folder / "tokenizer.json").is_file():
        return Tokenizer.from_folder(card.folder)
    return None


def _vocab_size(folder: Path | None) -> int | None:
    if folder is None:
        return None
    try:
        size = json.loads((folder / "config.json").read_text(encoding="utf-8"))["vocab_size"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return size if isinstance(size, int) and size >= 4 else None
