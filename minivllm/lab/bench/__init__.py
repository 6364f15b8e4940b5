"""Benchmarks: what this engine costs, and where the time goes, measured rather than claimed.

Each module is one question, asked of a run of the same 64 requests (`minivllm/lab/subjects/workload.py`)
over a model that is either a real folder or a random one of a known shape (`shapes.py` beside it):

    throughput      how many tokens a second, how long each user waits, which part of a step takes the time
    field           the same requests through every other engine that can be installed, in turns with ours
    profile         the parts of a step, each beside its floor: the least time that this machine needs for it
    trace           the same run with and without a trace file
    control-plane   what a block, a scheduling decision and an abort cost, however large the pool and
                    the queue, and what structured output adds to a step
    beams           beam search with shared blocks, and with a full copy at each fork
    prefix-cache    looking up, acquiring and replacing prefixes, however many are known
    kv-cache        decode attention over a KV cache in 32, 16 and 8 bits
    scaling         how cost grows with batch, context, pool, queue and requests, drawn
    overlap         plans in flight: asynchronous scheduling, and the stages of a pipeline
    parallel        the simulator's terms for ranks, beside what ranks take here
    quantized       weights of 8 and 4 bits, beside the engine's own 16
    invariance      the same bits for a request in any company: what that costs, by backend and type
    speculation     drafts by a model and by n-grams, beside plain decoding
    kernels         our kernels on a GPU, beside what the device can do
    serve           a server under load, ours or another, as its clients see it (`serve/`)

Three habits keep the numbers honest. Sides that are compared alternate (A B, B A, A B …), so that a slow
minute hits both; medians are reported, and ratios rather than seconds; and each table says on which
machine, with how many threads, and how many cores *other* programs used meanwhile (`timing.py`).

    from minivllm.lab.bench import Settings, run
    result = run("throughput", Settings(model="nano", repeat=3))

On the command line: `minivllm bench`, see `commands.py`. Read next: `throughput.py`.
"""

from __future__ import annotations

from importlib import import_module

from minivllm.lab.bench.report import Result
from minivllm.lab.subjects.settings import Settings
from minivllm.validation import check_choice

MEASUREMENTS = {
    "throughput": "throughput",
    "field": "field",
    "profile": "step_profile",
    "trace": "trace_overhead",
    "control-plane": "control_plane",
    "overlap": "overlap",
    "parallel": "parallel",
    "beams": "beams",
    "prefix-cache": "prefix_lookup",
    "kv-cache": "kv_cache_reading",
    "scaling": "scaling",
    "quantized": "quantized",
    "invariance": "invariance",
    "speculation": "speculation",
    "kernels": "kernels",
}
"""Name on the command line → module, which has a function `run(settings)`."""

__all__ = ["MEASUREMENTS", "Result", "Settings", "run"]


def run(kind: str, settings: Settings | None = None) -> Result:
    """Carry out one measurement.

    Raises:
        ValueError: an unknown measurement, or a setting that cannot work, named, with what is allowed.
    """
    check_choice("kind", kind, tuple(MEASUREMENTS))
    module = import_module(f"minivllm.lab.bench.{MEASUREMENTS[kind]}")
    result: Result = module.run(settings or Settings())
    return result
