"""`minivllm bench serve`: load for a server, ours or another, and what its clients see.

    minivllm bench serve                                         the shipped model, 64 requests at once
    minivllm bench serve --max-concurrency 8                     closed loop
    minivllm bench serve --request-rates 1,2,4,8 --plot rates.svg
    minivllm bench serve --base-url http://127.0.0.1:8000 --request-rate 4 --goodput ttft:100 tpot:20
    minivllm bench serve --against-offline --streams 1,8,64      what HTTP costs beside the engine alone

Only parsing and printing. Read next: `session.py`.
"""

from __future__ import annotations

import asyncio
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import typer

from minivllm.lab.bench.serve.backends import ALIASES, BACKENDS
from minivllm.lab.bench.serve.doubts import MOST_LATE_MS
from minivllm.terminal import Console
from minivllm.validation import check_choice, check_number, check_output_file


def _option(words: str, *names: str, panel: str) -> Any:
    return typer.Option(*names, help=words, rich_help_panel=panel)


SERVER, LOAD, RESULT, OFFLINE = "Server", "Load", "Result", "Beside the engine alone"

Bounds = Annotated[list[str] | None, typer.Argument(metavar="[NAME:MS]...", help="More bounds of --goodput.")]
BaseUrl = Annotated[str | None, _option("Of any OpenAI server; ours is started if left out.", panel=SERVER)]
Backend = Annotated[
    str, _option("openai (completions) or openai-chat.", "--backend", "--endpoint-type", panel=SERVER)
]
Model = Annotated[
    str | None,
    _option("The server's name for it; for our own: nano, small, medium or a folder.", panel=SERVER),
]
ApiKey = Annotated[str | None, _option("Bearer token; also OPENAI_API_KEY.", panel=SERVER)]
Tokenizer = Annotated[str | None, _option("Folder of the model's tokenizer.", panel=SERVER)]
VocabSize = Annotated[int | None, _option("Token ids that prompts may have.", panel=SERVER)]
ModelLen = Annotated[int | None, _option("Longest prompt and answer together.", panel=SERVER)]
Threads = Annotated[int | None, _option("Of our own server.", panel=SERVER)]
Flags = Annotated[str, _option("More flags for our own server, in quotes.", panel=SERVER)]

Workload = Annotated[
    str,
    _option(
        "sharegpt, alpaca, fixed:IN,OUT, uniform:A-B,C-D, shared:PREFIX[,K], chat, FILE.jsonl, or FILE.json "
        "of ShareGPT's form.",
        "--workload",
        "--dataset-path",
        panel=LOAD,
    ),
]
Requests = Annotated[int, _option("Requests of a run.", "--num-prompts", "--requests", panel=LOAD)]
Rate = Annotated[float | None, _option("Open loop: requests a second.", panel=LOAD)]
Rates = Annotated[str | None, _option("A run for each: 1,2,4,8.", panel=LOAD)]
Burstiness = Annotated[float, _option("1: Poisson; less: bursts; more: more even.", panel=LOAD)]
Arrivals = Annotated[str, _option("poisson or constant.", panel=LOAD)]
Concurrency = Annotated[int | None, _option("Closed loop: most requests at once.", panel=LOAD)]
Seed = Annotated[int, _option("Of lengths, prompts and arrivals.", panel=LOAD)]
OutputTokens = Annotated[
    int | None,
    _option("Of each answer, for FILE.json.", "--output-tokens", "--sharegpt-output-len", panel=LOAD),
]
Temperature = Annotated[float, _option("Of sampling; 0 is greedy.", panel=LOAD)]
IgnoreEos = Annotated[bool, _option("Exactly as many tokens as asked for.", panel=LOAD)]
SendText = Annotated[bool, _option("Prompts as texts, not as token ids.", panel=LOAD)]
Warmups = Annotated[int, _option("Requests before the first run, not measured.", panel=LOAD)]
Timeout = Annotated[float, _option("Seconds for one answer.", panel=LOAD)]

Goodput = Annotated[list[str] | None, _option("ttft:100 tpot:20 e2el:2000, in ms.", panel=RESULT)]
Lag = Annotated[float, _option("Milliseconds of lateness beyond which a run is doubtful.", panel=RESULT)]
Json = Annotated[
    Path | None, _option("Write vLLM's fields to this file.", "--json", "--result-filename", panel=RESULT)
]
SaveResult = Annotated[bool, _option("The same, to a file named by date and rate.", panel=RESULT)]
Detailed = Annotated[bool, _option("Every request, too.", "--save-detailed", panel=RESULT)]
Plot = Annotated[Path | None, _option("Latency against rate: .svg, .png or .pdf.", panel=RESULT)]

Against = Annotated[bool, _option("What HTTP costs: the same requests served and offline.", panel=OFFLINE)]
Streams = Annotated[str, _option("Streams at once, a comparison for each.", panel=OFFLINE)]
Repeat = Annotated[int, _option("Rounds, in which both sides take turns.", panel=OFFLINE)]


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
    streams: Streams = "64",
    repeat: Repeat = 3,
) -> None:
    """A server under load: throughput, TTFT, TPOT, ITL, goodput, in an open or a closed loop."""
    options = context.params
    if against_offline:
        _refuse_others(context)
        _compare(options)
    else:
        _measure(options)


OFFLINE_OPTIONS = {
    *("against_offline", "streams", "repeat", "model", "threads", "server_flags", "requests", "seed", "json"),
}


def _refuse_others(context: typer.Context) -> None:
    """The comparison has a workload of its own: an option that would change nothing is refused."""
    for name in context.params.keys() - OFFLINE_OPTIONS:
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            raise ValueError(
                f"--{name.replace('_', '-')} has no meaning with --against-offline, which sends fixed "
                "requests to a server of its own"
            )


def _measure(options: dict[str, Any]) -> None:
    from minivllm.lab.bench.serve.client import import_aiohttp
    from minivllm.lab.bench.serve.goodput import parse_goodput
    from minivllm.lab.bench.serve.probe import check_url
    from minivllm.lab.bench.serve.report import print_rates, print_result, write_fields
    from minivllm.lab.bench.serve.session import measure_server

    import_aiohttp()
    plan = _plan(options)
    goodput = _goodput(options["goodput"] or [], options["bounds"] or [], parse_goodput)
    result_file, plot = _files(options, plan)
    base_url = None if options["base_url"] is None else check_url(options["base_url"])
    console = Console()
    with _server(base_url, options, console) as url, _Bar(console) as told:
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
    check_output_file("json", path)
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
    with TemporaryDirectory(prefix="minivllm-bench-") as scratch:
        name, folder = find_model(options["model"], Path(scratch))
        console.print(f"Starting a server for the model {name} on {threads} thread{'s' * (threads > 1)} …")
        flags = ["--served-model-name", name, *shlex.split(options["server_flags"])]
        if options["api_key"] is not None:
            flags += ["--api-key", options["api_key"]]
        with own_server(folder, threads, flags) as server:
            yield server.url


class _Bar:
    """Progress: how many answers have come, how many are errors. Silent where there is no terminal."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bar: Any = None

    def __enter__(self) -> Any:
        from minivllm.lab.bench.serve.session import Told

        return Told(self._note, self._begin)

    def __exit__(self, *error: object) -> None:
        self._close()

    def _note(self, sentence: str) -> None:
        self._console.print(sentence)

    def _begin(self, total: int, words: str) -> Any:
        from tqdm import tqdm

        self._close()
        self._bar = bar = tqdm(total=total, desc=words, unit="req", disable=None, leave=False)
        failed = 0

        def on_answer(record: Any) -> None:
            nonlocal failed
            failed += not record.is_complete
            bar.update()
            if failed:
                bar.set_postfix(failed=failed, refresh=False)

        return on_answer

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def _compare(options: dict[str, Any]) -> None:
    from minivllm.lab.bench.report import check_writable, print_result, write_json
    from minivllm.lab.bench.serve.against_offline import OfflineSettings, compare

    settings = OfflineSettings(
        options["model"],
        options["threads"],
        options["repeat"],
        options["requests"],
        seed=options["seed"],
        streams=parse_streams(options["streams"]),
        flags=tuple(shlex.split(options["server_flags"])),
    )
    path = options["json"]
    if path is not None:
        check_writable(path)
    result: Any = compare(settings)
    print_result(result)
    if path is not None:
        write_json(result, path)
        Console().print(f"Wrote {path}.")


def parse_streams(text: str) -> tuple[int, ...]:
    """The numbers of "1,8,64". Raises `ValueError` for what is none."""
    from minivllm.validation import check_integer

    try:
        found = tuple(int(word) for word in text.split(","))
    except ValueError:
        raise ValueError(f"streams must be numbers such as 1,8,64, got {text!r}") from None
    return tuple(check_integer("streams", number, at_least=1) for number in found)
