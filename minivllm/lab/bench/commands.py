"""`minivllm bench …`: measurements on the command line.

    minivllm bench                                      throughput on the shipped model
    minivllm bench --model nano                         throughput of another one
    minivllm bench --profile --model small              where the time of a step goes, beside its floors
    minivllm bench throughput --model small --threads 2
    minivllm bench field --model nano --peer transformers --repeat 5 --json field.json
    minivllm bench field --model small --python vllm=/envs/vllm/bin/python
    minivllm bench scaling --model nano --out scaling.svg
    minivllm bench serve --request-rates 1,2,4,8        a server under load (`serve/command.py`)

Only parsing and printing; what is measured lives in the module of each measurement's name.
Read next: `throughput.py`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from minivllm.lab.bench.serve.command import serve
from minivllm.lab.subjects.workload import DEFAULT_SEED
from minivllm.terminal import Console

if TYPE_CHECKING:
    from minivllm.lab.subjects.settings import Settings

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Measure this engine: throughput, latencies, other engines, the cost of tracing, the control plane.",
    rich_markup_mode=None,
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
Pythons = Annotated[
    list[str] | None,
    typer.Option(
        "--python", help="NAME=PATH: the Python of a peer's environment, e.g. vllm=/envs/vllm/bin/python."
    ),
]
Peers = Annotated[
    list[str] | None, typer.Option("--peer", help="Only this peer; may be given several times.")
]
Measures = Annotated[list[str] | None, typer.Option("--measure", help="Only batch, decode or prefill.")]
Cache = Annotated[
    Path | None, typer.Option(help="Keep converted models and compiled code of the peers in this folder.")
]
Timeout = Annotated[int, typer.Option(help="Seconds that a peer may take for one answer.")]
Weights = Annotated[
    str | None, typer.Option(help="int8 or int4: weights rounded on all sides, each in its own format.")
]

Only = Annotated[
    str, typer.Option(help="Of batch, context, pool, waiting and requests only these, separated by commas.")
]


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
    with_profile: Annotated[
        bool, typer.Option("--profile", help="The parts of a step, each beside its floor.")
    ] = False,
) -> None:
    """Measure this engine; without a command, its throughput."""
    if context.invoked_subcommand is None:
        kind = "profile" if with_profile else "throughput"
        _measure(kind, json, _settings(model, threads, repeat, requests, dtype, blocks, seed))
        return
    for name in context.params:  # given here, an option would be silently ignored
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            command = context.invoked_subcommand
            raise ValueError(f"put --{name} after the command: minivllm bench {command} --{name} …")


def _add_usual(kind: str, sentence: str, repeat: int = 3) -> None:
    """A command with the usual options, for a measurement that needs no others."""

    def command(
        model: Model = None,
        threads: Threads = None,
        repeat: Repeat = repeat,
        requests: Requests = 64,
        dtype: Dtype = "auto",
        blocks: Blocks = None,
        json: Json = None,
        seed: Seed = DEFAULT_SEED,
    ) -> None:
        _measure(kind, json, _settings(model, threads, repeat, requests, dtype, blocks, seed))

    app.command(kind, help=sentence)(command)


_add_usual("throughput", "Tokens a second, the latency of each request, and where the time of a step goes.")


@app.command()
def field(
    model: Model = None,
    threads: Threads = None,
    repeat: Repeat = 3,
    requests: Requests = 64,
    dtype: Dtype = "auto",
    blocks: Blocks = None,
    json: Json = None,
    seed: Seed = DEFAULT_SEED,
    python: Pythons = None,
    peer: Peers = None,
    measure: Measures = None,
    cache: Cache = None,
    timeout: Timeout = 900,
    weights: Weights = None,
) -> None:
    """The same requests through every peer that can be installed here, each in its own process, in turns."""
    from minivllm.lab.bench.field.settings import FieldSettings, parse_pythons

    chosen: dict[str, Any] = {}
    if peer:
        chosen["peers"] = tuple(dict.fromkeys(peer))
    if measure:
        chosen["measures"] = tuple(dict.fromkeys(measure))
    settings = FieldSettings(
        *(model, threads, repeat, requests, dtype, seed, blocks),
        pythons=parse_pythons(python or []),
        cache=None if cache is None else str(cache),
        timeout=timeout,
        weights=weights,
        **chosen,
    )
    _measure("field", json, settings)


_add_usual("trace", "What recording a trace costs.", repeat=5)
_add_usual("profile", "The parts of a step, each beside its floor: the least time that this machine needs.")
_add_usual(
    "control-plane",
    "What blocks, scheduling and aborts cost, however large the pool and the queue; and structured output.",
)

_add_usual("quantized", "What weights of 8 and 4 bits are worth, beside the engine's own 16.", repeat=5)
_add_usual(
    "invariance", "What batch invariance costs, by backend and type, and whose bits it keeps.", repeat=5
)


_add_usual(
    "overlap", "What plans in flight are worth: asynchronous scheduling, and the stages of a pipeline."
)


_add_usual(
    "parallel", "Ranks: what the simulator predicts for this machine, and what they take on it.", repeat=1
)

_add_usual(
    "speculation", "What drafts of a model and of n-grams are worth: the same tokens, in turns.", repeat=5
)


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
    """What looking up, acquiring and replacing a prefix costs, however many are known."""
    _measure("prefix-cache", json, _settings(None, None, repeat, 1, "auto", None, seed))


@app.command("kv-cache")
def kv_cache(
    threads: Threads = None, repeat: Repeat = 3, json: Json = None, seed: Seed = DEFAULT_SEED
) -> None:
    """Decode attention on a CPU over a KV cache in 32, 16 and 8 bits, in turns."""
    _measure("kv-cache", json, _settings(None, threads, repeat, 1, "auto", None, seed))


@app.command()
def scaling(
    model: Model = None,
    threads: Threads = None,
    repeat: Repeat = 3,
    dtype: Dtype = "auto",
    json: Json = None,
    seed: Seed = DEFAULT_SEED,
    only: Only = "batch,context,pool,waiting,requests",
    quick: Annotated[
        bool, typer.Option("--quick", help="Smaller sizes: seconds instead of minutes.")
    ] = False,
    out: Annotated[Path, typer.Option(help="The figure: .svg, .png or .pdf.")] = Path("scaling.svg"),
) -> None:
    """How cost grows with batch, context, pool, queue and requests: tables, exponents and a figure."""
    from minivllm.lab.bench.scaling import ScalingSettings, parse_only
    from minivllm.lab.bench.scaling_figure import check_picture, save_picture

    settings = ScalingSettings(
        model, threads, repeat, dtype=dtype, seed=seed, only=parse_only(only), quick=quick
    )
    check_picture(out)  # before the minutes of measuring, not after
    save_picture(_measure("scaling", json, settings), out)
    Console().print(f"Drew {out}.")


app.command("serve")(serve)


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
    from minivllm.lab.subjects.settings import Settings

    return Settings(model, threads, repeat, requests, dtype, seed, blocks)


def _measure(kind: str, json: Path | None, settings: Settings) -> Any:
    """Run one measurement, print it, and write it to a file if one is wanted; returns the result."""
    from minivllm.lab.bench import run
    from minivllm.lab.bench.report import check_writable, print_result, write_json

    if json is not None:
        check_writable(json)  # before the minutes of measuring, not after
    result = run(kind, settings)
    print_result(result)
    if json is not None:
        write_json(result, json)
        Console().print(f"Wrote {json}.")
    return result
