"""`minivllm simulate`: the engine's scheduler and memory, on a data centre that is not here.

Read next: `minivllm/lab/figures/serving.py`.
"""

from __future__ import annotations

import json as json_module
from dataclasses import asdict
from os.path import isdir
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from minivllm.engine.engine_flags import with_engine_flags
from minivllm.files import write_file
from minivllm.lab.tables import print_table
from minivllm.terminal import Console
from minivllm.trace.summary import format_seconds
from minivllm.validation import check_integer

if TYPE_CHECKING:
    from minivllm.config import SchedulerConfig
    from minivllm.lab.simulation.metrics import LatencyHistogram, Metrics
    from minivllm.lab.simulation.setting import Setting
    from minivllm.lab.workloads.workload import Workload
    from minivllm.trace.recorder import Recorder

SHARES = (0.5, 0.9, 0.99)

SHARED_SETTINGS = {
    "scheduling_policy",
    "max_num_seqs",
    "max_num_batched_tokens",
    "max_model_len",
    "enable_chunked_prefill",
    "block_size",
    "gpu_memory_utilization",
    "num_gpu_blocks_override",
    "allocator",
    "prefix_cache",
    "swap_space",
    "preemption_mode",
    "watermark",
}
"""What a data centre and an engine have in common: flags with the same names and help."""
DEFAULTS = {"max_num_seqs": 256, "max_num_batched_tokens": 2048, "gpu_memory_utilization": 0.9}
"""Those of `Setting` that are not those of `EngineArgs`; a test compares them."""


HARDWARE_HELP = "a100-40gb, a100-80gb, h100, h200, l4, cpu, or a card (.json)."
MODEL_HELP = "opt-13b|66b|175b, llama-2-7b|13b|70b, llama-3-8b|70b, tiny, a folder, or a card (.json)."
WORKLOAD_HELP = "sharegpt, alpaca, fixed:IN,OUT, uniform:A-B,C-D, shared:PREFIX, chat, FILE.jsonl."
USERS_HELP = "A closed loop of so many users, each with one request at a time."
SPECULATIVE_HELP = "Guess ahead: acceptance=0.7,tokens=4; cost=0.05: of a draft, in steps without drafts."
DECODE_HELP = "int8 or int4: weights kept a second time, for steps that only decode."


@with_engine_flags(SHARED_SETTINGS, DEFAULTS)
def simulate(
    hardware: Annotated[str, typer.Option(help=HARDWARE_HELP)] = "a100-40gb",
    model: Annotated[str, typer.Option(help=MODEL_HELP)] = "opt-13b",
    workload: Annotated[str, typer.Option(help=WORKLOAD_HELP)] = "sharegpt",
    requests: Annotated[int | None, typer.Option(help="1,000, or a whole file, if left out.")] = None,
    rate: Annotated[float | None, typer.Option(help="Requests a second; all at once if left out.")] = None,
    burstiness: Annotated[float, typer.Option(help="1 is Poisson, more comes in bursts.")] = 1.0,
    users: Annotated[int | None, typer.Option(help=USERS_HELP)] = None,
    seed: Annotated[int, typer.Option(help="Of the workload.")] = 0,
    replicas: Annotated[int, typer.Option(help="Engines behind one router.")] = 1,
    router: Annotated[str, typer.Option(help="round-robin, least-loaded or prefix-aware.")] = "round-robin",
    tensor_parallel_size: Annotated[int, typer.Option(help="Devices that share each layer.")] = 1,
    pipeline_parallel_size: Annotated[int, typer.Option(help="Devices that share the layers.")] = 1,
    decode_weight_dtype: Annotated[str | None, typer.Option(help=DECODE_HELP)] = None,
    speculative: Annotated[str | None, typer.Option(help=SPECULATIVE_HELP)] = None,
    trace: Annotated[Path | None, typer.Option(help="Record the first replica in this file.")] = None,
    trace_steps: Annotated[int, typer.Option(help="Record so many steps of it.")] = 5000,
    json: Annotated[Path | None, typer.Option("--json", help="Also write everything to this file.")] = None,
    *,
    engine_settings: dict[str, Any],
) -> None:
    """Serve a workload in virtual time: the real scheduler and memory, a cost model instead of a model."""
    from minivllm.lab.simulation.setting import Setting
    from minivllm.lab.workloads.parse import parse_workload
    from minivllm.trace.recorder import Recorder

    check_integer("trace_steps", trace_steps, at_least=1)
    if json is not None and (isdir(json) or not isdir(json.absolute().parent)):
        raise ValueError(f"json must be a file in a folder that exists, got {str(json)!r}")
    setting = Setting(
        hardware=hardware,
        model=model,
        replicas=replicas,
        router=router,
        tensor_parallel_size=tensor_parallel_size,
        pipeline_parallel_size=pipeline_parallel_size,
        decode_weight_dtype=decode_weight_dtype,
        speculative=speculative,
        **engine_settings,
    )
    config = setting.scheduler_config()
    load = parse_workload(
        workload,
        vocab_size=setting.cost_model().model.vocab_size,
        num_requests=requests,
        rate=rate,
        burstiness=burstiness,
        num_users=users,
        seed=seed,
        max_model_len=config.max_model_len,
    )
    recorder = Recorder(trace, max_steps=trace_steps) if trace else None
    metrics, real_seconds = play(setting, load, recorder, console := Console())
    _check_served(metrics, workload)
    print_run(setting, config, metrics, real_seconds, console)
    if json is not None:
        write_json(json, as_data(setting, metrics, real_seconds), console)
    if trace:
        console.point_to(trace)


def _check_served(metrics: Metrics, workload: str) -> None:
    if not metrics.num_finished:
        raise ValueError(
            f"no request of the workload {workload!r} can ever be served: {metrics.first_refusal}"
        )


def play(
    setting: Setting, load: Workload, recorder: Recorder | None, console: Console
) -> tuple[Metrics, float]:
    """Serve the workload; returns what was counted, and the seconds that the simulation took."""
    cluster, metrics = setting.make_cluster(recorder)
    began = perf_counter()
    with console.status("") as status:
        cluster.run(load, progress=lambda count: status.update(f"{count:,} requests have arrived"))
    real_seconds = perf_counter() - began
    if recorder and metrics.num_finished:
        recorder.close()
    return metrics, real_seconds


def print_run(
    setting: Setting, config: SchedulerConfig, metrics: Metrics, real_seconds: float, console: Console
) -> None:
    """The setting, what came of it, and how fast the simulation was, as a table and a sentence."""
    table = Table(show_header=False, box=None, pad_edge=False)
    for name, value in (
        *setting.facts(),
        ("KV cache", _pool(config)),
        *facts(metrics),
    ):
        table.add_row(name.replace("_", " "), value)
    print_table(table, console, highlight=False)
    speed = metrics.computed_tokens / real_seconds if real_seconds else 0.0
    console.print(
        f"Simulated {format_seconds(metrics.duration_seconds)} in {format_seconds(real_seconds)}: "
        f"{speed:,.0f} scheduled tokens for each real second.",
        highlight=False,
    )


def write_json(file: Path, data: dict[str, Any], console: Console) -> None:
    """Everything, into a file."""
    write_file(file, json_module.dumps(data, indent=1), "json")
    console.print(f"Everything is in {file}.")


def _pool(config: SchedulerConfig) -> str:
    num_tokens = config.num_blocks * config.block_size
    return f"{config.num_blocks:,} blocks of {config.block_size} for each replica ({num_tokens:,} tokens)"


def facts(metrics: Metrics) -> list[tuple[str, str]]:
    """The results, in words."""
    refused = f", {metrics.num_refused:,} refused: they could never fit" if metrics.num_refused else ""
    rows = [
        ("requests", f"{metrics.num_finished:,} of {metrics.num_arrived:,} served{refused}"),
        (
            "throughput",
            f"{metrics.requests_per_second:,.2f} requests/s, {metrics.output_tokens_per_second:,.0f} "
            "output tokens/s",
        ),
        ("time to first token", _percentiles(metrics.ttft)),
        ("between tokens", _percentiles(metrics.inter_token)),
        ("end to end", _percentiles(metrics.end_to_end)),
        ("normalized latency", f"mean {format_seconds(metrics.normalized.mean)} for each output token"),
        (
            "batch",
            f"{metrics.mean_batch_size:.1f} requests on average, {metrics.mean_scheduled:.1f} are computed",
        ),
        ("KV cache in use", f"{metrics.mean_kv_usage:.0%} on average"),
        ("preemptions", f"{metrics.num_preemptions:,}"),
    ]
    if metrics.cached_tokens:
        share = metrics.cached_tokens / metrics.prompt_tokens
        rows.append(("found in the prefix cache", f"{share:.0%} of all prompt tokens"))
    if metrics.draft_tokens:
        share = metrics.accepted_tokens / metrics.draft_tokens
        rows.append(("drafts", f"{metrics.draft_tokens:,}, of which {share:.0%} were accepted"))
    if metrics.padding_tokens:
        rows.append(("padding", f"{metrics.padding_share:.0%} of all tokens that were computed"))
    return rows


def _percentiles(latency: LatencyHistogram) -> str:
    if not latency.count:
        return "–"
    names = (f"p{share * 100:.0f} {format_seconds(latency.percentile(share))}" for share in SHARES)
    return ", ".join(names)


def as_data(setting: Setting, metrics: Metrics, real_seconds: float) -> dict[str, Any]:
    """Everything, for a file."""
    from minivllm.lab.simulation.metrics import LatencyHistogram

    counts = {name: value for name, value in vars(metrics).items() if not isinstance(value, LatencyHistogram)}
    latencies = {
        name: {
            "count": value.count,
            "mean": value.mean,
            "largest": value.largest,
            **{f"p{share * 100:.0f}": value.percentile(share) for share in SHARES},
        }
        for name, value in vars(metrics).items()
        if isinstance(value, LatencyHistogram)
    }
    derived = {
        name: getattr(metrics, name)
        for name in ("requests_per_second", "output_tokens_per_second", "mean_batch_size", "mean_scheduled")
    }
    return {
        "setting": asdict(setting),
        "counts": counts,
        "derived": derived,
        "latencies_seconds": latencies,
        "real_seconds": real_seconds,
    }
