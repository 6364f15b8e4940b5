"""`minivllm bench serve`: load for a server, ours or another, and what its clients see.

    minivllm bench serve                                         the shipped model, 64 requests at once
    minivllm bench serve --max-concurrency 8                     closed loop
    minivllm bench serve --request-rates 1,2,4,8 --plot rates.svg
    minivllm bench serve --base-url http://127.0.0.1:8000 --request-rate 4 --goodput ttft:100 tpot:20
    minivllm bench serve --against-offline --streams 1,8,64      what HTTP costs beside the engine alone
    minivllm bench serve --watchers 0,1,10 --streams 64          what being watched costs
    minivllm bench serve --peer llama-cpp --python llama-cpp=/envs/lc/bin/python --streams 1,8,64

Only parsing and printing. Read next: `session.py`.
"""

from __future__ import annotations

import asyncio
import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import typer

from minivllm.lab.bench.serve.backends import ALIASES, BACKENDS
from minivllm.lab.bench.serve.doubts import MOST_LATE_MS
from minivllm.lab.bench.serve.options import (
    Against,
    ApiKey,
    Arrivals,
    Backend,
    BaseUrl,
    Bounds,
    Burstiness,
    Concurrency,
    Detailed,
    Flags,
    Goodput,
    IgnoreEos,
    Json,
    Lag,
    Model,
    ModelLen,
    OutputTokens,
    Peers,
    Plot,
    Pythons,
    Rate,
    Rates,
    Repeat,
    Requests,
    SaveResult,
    Seed,
    SendText,
    Streams,
    Temperature,
    Threads,
    Timeout,
    Tokenizer,
    VocabSize,
    Warmups,
    Watchers,
    Workload,
)
from minivllm.scratch import ScratchFolder
from minivllm.terminal import Console
from minivllm.validation import check_choice, check_number, check_output_files


def serve(
    context: typer.Context,
    bounds: Bounds = None,
    base_url: BaseUrl = None,
    backend: Backend = "openai",
    model: Model = None,
    api_key: ApiKey = None,
    tokenizer: Tokenizer = None,
    vocab_size: VocabSize = None,
    max_model_len: ModelLen = None,
    threads: Threads = None,
    server_flags: Flags = "",
    workload: Workload = "fixed:128,64",
    requests: Requests = 64,
    request_rate: Rate = None,
    request_rates: Rates = None,
    burstiness: Burstiness = 1.0,
    arrivals: Arrivals = "poisson",
    max_concurrency: Concurrency = None,
    seed: Seed = 0,
    output_tokens: OutputTokens = None,
    temperature: Temperature = 0.0,
    ignore_eos: IgnoreEos = True,
    send_text: SendText = False,
    num_warmups: Warmups = 4,
    timeout: Timeout = 3600.0,
    goodput: Goodput = None,
    max_lag: Lag = MOST_LATE_MS,
    json: Json = None,
    save_result: SaveResult = False,
    save_detailed: Detailed = False,
    plot: Plot = None,
    against_offline: Against = False,
    watchers: Watchers = None,
    streams: Streams = "64",
    repeat: Repeat = 3,
    peer: Peers = None,
    python: Pythons = None,
) -> None:
    """A server under load: throughput, TTFT, TPOT, ITL, goodput, in an open or a closed loop."""
    options = context.params
    if against_offline:
        _refuse_others(context, OFFLINE_OPTIONS, "--against-offline")
        _compare(options)
    elif watchers is not None:
        _refuse_others(context, WATCHED_OPTIONS, "--watchers")
        _compare_watched(options)
    elif peer or python:
        _refuse_others(context, PEER_OPTIONS, "--peer")
        _compare_servers(options)
    else:
        if is_given := next((name for name in ("streams", "repeat") if _is_given(context, name)), None):
            raise ValueError(f"--{is_given} has no meaning without --against-offline or --peer")
        _measure(options)


COMPARISON = {"streams", "repeat", "model", "threads", "server_flags", "requests", "seed", "json"}
OFFLINE_OPTIONS = COMPARISON | {"against_offline"}
WATCHED_OPTIONS = COMPARISON | {"watchers"}
PEER_OPTIONS = COMPARISON | {"peer", "python", "timeout"}


def _refuse_others(context: typer.Context, known: set[str], what: str) -> None:
    """The comparison has a workload of its own: an option that would change nothing is refused."""
    for name in context.params.keys() - known:
        if _is_given(context, name):
            raise ValueError(
                f"--{name.replace('_', '-')} has no meaning with {what}, which sends fixed requests to "
                "servers of its own"
            )


def _is_given(context: typer.Context, name: str) -> bool:
    """Was this option typed?"""
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def _flags(options: dict[str, Any]) -> list[str]:
    """The words of `--server-flags`. Raises `ValueError` if a quote is open."""
    try:
        return shlex.split(options["server_flags"])
    except ValueError as error:
        raise ValueError(f"server_flags cannot be cut into words: {error}") from None


def _measure(options: dict[str, Any]) -> None:
    from minivllm.lab.bench.serve.client import import_aiohttp
    from minivllm.lab.bench.serve.goodput import parse_goodput
    from minivllm.lab.bench.serve.probe import check_url
    from minivllm.lab.bench.serve.progress import Bar
    from minivllm.lab.bench.serve.report import print_rates, print_result, write_fields
    from minivllm.lab.bench.serve.session import measure_server

    import_aiohttp()
    plan = _plan(options)
    goodput = _goodput(options["goodput"] or [], options["bounds"] or [], parse_goodput)
    result_file, plot = _files(options, plan)
    base_url = None if options["base_url"] is None else check_url(options["base_url"])
    console = Console()
    with _server(base_url, options, console) as url, Bar(console) as told:
        card, outcomes = asyncio.run(measure_server(url, plan, goodput, told))
    results = [outcome.result for outcome in outcomes]
    console.print(
        f"{card.model} at {url}, {plan.path}, workload {plan.workload}, seed {plan.seed}", soft_wrap=True
    )
    for result in results:
        print_result(result, plan, console)
    if len(results) > 1:
        print_rates(results, console)
    if result_file is not None:
        write_fields(outcomes, plan, card.model, result_file, "json", detailed=options["save_detailed"])
        console.print(f"Wrote {result_file}.", soft_wrap=True)
    if plot is not None:
        from minivllm.lab.bench.serve.plot import save_plot

        save_plot(results, f"{card.model}, {plan.workload}, {plan.num_requests} requests a run", plot)
        console.print(f"Drew {plot}.", soft_wrap=True)
    if not any(result.completed for result in results):
        raise ValueError(f"no request was answered: {next(iter(results[0].errors), 'none was sent')}")


SAME_NAMES = (
    *("workload", "num_warmups", "burstiness", "arrivals", "max_concurrency", "seed", "tokenizer"),
    *("vocab_size", "max_model_len", "output_tokens", "temperature", "ignore_eos", "send_text", "timeout"),
)
"""Options that a plan calls the same."""


def _plan(options: dict[str, Any]) -> Any:
    """The options as a plan, checked. Raises `ValueError`."""
    from minivllm.lab.bench.serve.own_server import api_key
    from minivllm.lab.bench.serve.session import Plan

    backend = ALIASES.get(options["backend"], options["backend"])
    check_choice("backend", backend, tuple(BACKENDS))
    is_ours = options["base_url"] is None
    if not is_ours and (options["threads"] is not None or options["server_flags"]):
        raise ValueError("threads and server_flags are for a server of our own: leave out base_url, or them")
    return Plan(
        backend=backend,
        model=None if is_ours else options["model"],
        num_requests=options["requests"],
        rates=parse_rates(options["request_rate"], options["request_rates"]),
        max_lag_ms=options["max_lag"],
        api_key=api_key(options["api_key"]),
        wants_text=options["save_detailed"],
        **{name: options[name] for name in SAME_NAMES},
    )


def parse_rates(rate: float | None, rates: str | None) -> tuple[float, ...]:
    """The rates of all runs: of "1,2,4" three. Infinity is no rate, but all at once.

    Raises:
        ValueError: one is no number above 0, or rates are given in two ways.
    """
    if rates is None:
        return (
            () if rate is None or rate == float("inf") else (check_number("request_rate", rate, more_than=0),)
        )
    if rate is not None:
        raise ValueError("give either request_rate or request_rates, not both")
    found = []
    for word in rates.split(","):
        try:
            number = float(word)
        except ValueError:
            raise ValueError(f"request_rates must be numbers such as 1,2,4,8, got {rates!r}") from None
        found.append(check_number("request_rates", number, more_than=0))
    return tuple(found)


def _goodput(given: list[str], more: list[str], parse: Any) -> dict[str, float]:
    if more and not given:
        raise ValueError(f"unexpected argument {more[0]!r}: only --goodput is followed by more than one word")
    bounds: dict[str, float] = parse([*given, *more])
    return bounds


def _files(options: dict[str, Any], plan: Any) -> tuple[Path | None, Path | None]:
    """Where results go: refused now, and not after minutes of measuring."""
    from datetime import datetime

    path, plot = options["json"], options["plot"]
    if options["save_result"] and path is None:
        rate = f"{plan.rates[0]:g}" if len(plan.rates) == 1 else "rates" if plan.rates else "inf"
        path = Path(f"{plan.backend}-{rate}qps-{datetime.now():%Y%m%d-%H%M%S}.json")
    if options["save_detailed"] and path is None:
        raise ValueError("save_detailed needs a file to write to: --json FILE or --save-result")
    check_output_files(json=path, plot=plot)
    if plot is not None:
        from minivllm.lab.drawing import check_picture

        check_picture(plot)
        if not plan.rates:
            raise ValueError("plot draws latency against rate: give --request-rates")
    return path, plot


@contextmanager
def _server(base_url: str | None, options: dict[str, Any], console: Console) -> Iterator[str]:
    """The server's address; ours runs until the block ends."""
    if base_url is not None:
        yield base_url
        return
    from minivllm.lab.bench.serve.own_server import own_server
    from minivllm.lab.subjects.settings import Settings
    from minivllm.lab.subjects.subject import find_model

    threads = Settings(threads=options["threads"]).num_threads
    with ScratchFolder("bench") as scratch:
        name, folder = find_model(options["model"], scratch)
        console.print(f"Starting a server for the model {name} on {threads} thread{'s' * (threads > 1)} …")
        flags = ["--served-model-name", name, *_flags(options)]
        if options["api_key"] is not None:
            flags += ["--api-key", options["api_key"]]
        with own_server(folder, threads, flags) as server:
            yield server.url


def _compare_servers(options: dict[str, Any]) -> None:
    from minivllm.lab.bench.field.settings import parse_pythons
    from minivllm.lab.bench.serve.beside import BesideSettings, compare_servers

    pythons = parse_pythons(options["python"] or [])
    settings = BesideSettings(
        **_comparison(options),
        peers=tuple(dict.fromkeys(options["peer"] or pythons)),
        pythons=pythons,
        timeout=options["timeout"],
    )
    _print_and_write(lambda: compare_servers(settings), options["json"])


def _comparison(options: dict[str, Any]) -> dict[str, Any]:
    """What all comparisons are told: the model, the requests, and how the servers are started."""
    names = ("model", "threads", "repeat", "requests", "seed")
    return {
        **{name: options[name] for name in names},
        "streams": parse_numbers("streams", options["streams"]),
        "flags": tuple(_flags(options)),
    }


def _print_and_write(measure: Callable[[], Any], path: Path | None) -> None:
    from minivllm.lab.bench.report import check_writable, print_result, write_json

    if path is not None:
        check_writable(path)
    result: Any = measure()
    print_result(result)
    if path is not None:
        write_json(result, path)
        Console().print(f"Wrote {path}.")


def _compare(options: dict[str, Any]) -> None:
    from minivllm.lab.bench.serve.against_offline import OfflineSettings, compare

    settings = OfflineSettings(**_comparison(options))
    _print_and_write(lambda: compare(settings), options["json"])


def _compare_watched(options: dict[str, Any]) -> None:
    from minivllm.lab.bench.serve.watched import WatchedSettings, compare_watched

    settings = WatchedSettings(
        **_comparison(options),
        watchers=parse_numbers("watchers", options["watchers"], at_least=0),
    )
    _print_and_write(lambda: compare_watched(settings), options["json"])


def parse_numbers(name: str, text: str, at_least: int = 1) -> tuple[int, ...]:
    """The numbers of "1,8,64". Raises `ValueError` for what is none."""
    from minivllm.validation import check_integer

    try:
        found = tuple(int(word) for word in text.split(","))
    except ValueError:
        raise ValueError(f"{name} must be numbers such as 1,8,64, got {text!r}") from None
    return tuple(check_integer(name, number, at_least=at_least) for number in found)
