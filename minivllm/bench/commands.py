"""`minivllm bench …`: measurements on the command line.

    minivllm bench                                      throughput on the shipped model
    minivllm bench --model nano                         throughput of another one
    minivllm bench throughput --model small --threads 2
    minivllm bench peers --model nano --repeat 5 --json peers.json

Only parsing and printing; what is measured lives in the module of each measurement's name.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from minivllm.bench.workload import DEFAULT_SEED

if TYPE_CHECKING:
    from minivllm.bench.settings import Settings

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Measure this engine: throughput and latencies, peers, the cost of tracing, the control plane.",
)

Model = Annotated[
    str | None,
    typer.Option(help="nano, small, medium (random), or a model folder; the shipped model if left out."),
]
Threads = Annotated[int | None, typer.Option(help="Threads of torch; all usable cores if left out.")]
Repeat = Annotated[int, typer.Option(help="Repetitions of each side; medians are reported.")]
Requests = Annotated[int, typer.Option(help="Requests in the workload.")]
Dtype = Annotated[str, typer.Option(help="auto, float32, bfloat16, float16 or float64.")]
Blocks = Annotated[int | None, typer.Option(help="KV-cache blocks; few of them show preemption.")]
Json = Annotated[Path | None, typer.Option("--json", help="Also write the whole result to this file.")]
Seed = Annotated[int, typer.Option(help="Seed of the workload.")]


@app.callback(invoke_without_command=True)
def throughput_by_default(
    context: typer.Context,
    model: Model = None,
    threads: Threads = None,
    repeat: Repeat = 3,
    requests: Requests = 64,
    dtype: Dtype = "auto",
    blocks: Blocks = None,
    json: Json = None,
    seed: Seed = DEFAULT_SEED,
) -> None:
    """Measure this engine; without a command, its throughput."""
    if context.invoked_subcommand is None:
        throughput(model, threads, repeat, requests, dtype, blocks, json, seed)
        return
    for name in context.params:  # given here, an option would be silently ignored
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            command = context.invoked_subcommand
            raise ValueError(f"put --{name} after the command: minivllm bench {command} --{name} …")


@app.command()
def throughput(
    model: Model = None,
    threads: Threads = None,
    repeat: Repeat = 3,
    requests: Requests = 64,
    dtype: Dtype = "auto",
    blocks: Blocks = None,
    json: Json = None,
    seed: Seed = DEFAULT_SEED,
) -> None:
    """Tokens a second, each user's waiting, and where the time of a step goes."""
    _measure("throughput", json, _settings(model, threads, repeat, requests, dtype, blocks, seed))


@app.command()
def peers(
    model: Model = None,
    threads: Threads = None,
    repeat: Repeat = 3,
    requests: Requests = 64,
    dtype: Dtype = "auto",
    blocks: Blocks = None,
    json: Json = None,
    seed: Seed = DEFAULT_SEED,
) -> None:
    """The same requests through Hugging Face `generate` in static batches, in turns with ours."""
    _measure("peers", json, _settings(model, threads, repeat, requests, dtype, blocks, seed))


@app.command()
def trace(
    model: Model = None,
    threads: Threads = None,
    repeat: Repeat = 5,
    requests: Requests = 64,
    dtype: Dtype = "auto",
    blocks: Blocks = None,
    json: Json = None,
    seed: Seed = DEFAULT_SEED,
) -> None:
    """What recording a trace costs."""
    _measure("trace", json, _settings(model, threads, repeat, requests, dtype, blocks, seed))


@app.command("control-plane")
def control_plane(
    model: Model = None,
    threads: Threads = None,
    repeat: Repeat = 3,
    requests: Requests = 64,
    dtype: Dtype = "auto",
    blocks: Blocks = None,
    json: Json = None,
    seed: Seed = DEFAULT_SEED,
) -> None:
    """What blocks, scheduling and aborts cost, however large the pool and the queue."""
    _measure("control-plane", json, _settings(model, threads, repeat, requests, dtype, blocks, seed))


@app.command()
def beams(
    model: Model = None,
    threads: Threads = None,
    repeat: Repeat = 3,
    requests: Requests = 8,
    dtype: Dtype = "auto",
    json: Json = None,
    seed: Seed = DEFAULT_SEED,
) -> None:
    """What sharing blocks is worth to a beam search, against a full copy at each fork."""
    _measure("beams", json, _settings(model, threads, repeat, requests, dtype, None, seed))


@app.command("prefix-cache")
def prefix_cache(repeat: Repeat = 3, json: Json = None, seed: Seed = DEFAULT_SEED) -> None:
    """What looking up, holding and replacing a prefix costs, however many are known."""
    _measure("prefix-cache", json, _settings(None, None, repeat, 1, "auto", None, seed))


@app.command()
def kernels(repeat: Repeat = 20, json: Json = None) -> None:
    """Our kernels on a GPU, beside the bandwidth of a copy and torch's flash attention."""
    _measure("kernels", json, _settings(None, None, repeat, 1, "auto", None, DEFAULT_SEED))


def _settings(
    model: str | None,
    threads: int | None,
    repeat: int,
    requests: int,
    dtype: str,
    blocks: int | None,
    seed: int,
) -> Settings:
    from minivllm.bench.settings import Settings

    return Settings(model, threads, repeat, requests, dtype, seed, blocks)


def _measure(kind: str, json: Path | None, settings: Settings) -> None:
    """Run one measurement, print it, and write it to a file if one is wanted."""
    from minivllm.bench import run
    from minivllm.bench.report import check_writable, print_result, write_json

    if json is not None:
        check_writable(json)  # before the minutes of measuring, not after
    result = run(kind, settings)
    print_result(result)
    if json is not None:
        write_json(result, json)
        typer.echo(f"Wrote {json}.")
