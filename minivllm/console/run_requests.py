"""A reader's own requests through the shipped model: what the dashboard's page "Run" has done elsewhere.

It is a program, so that an engine that is stopped, or dies, leaves the dashboard as it was:

    stdin    one line of JSON, a `RunJob`; when stdin ends, so does the run, after the step that it is in
    trace    everything that happens, as it happens: a page that watches reads that file while it grows
    stderr   why the job was refused, in one sentence; the exit code is 2 then, and nothing was computed

A prompt arrives at a *step*, not at a second, so that the same happens on every machine; requests of a file
of one's own arrive when it says.

Read next: `viz/run_process.py`, which starts it.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from pathlib import Path
from time import perf_counter, sleep
from typing import Any, NamedTuple

import msgspec

IDLE_SECONDS = 0.002
REFUSED = 2


class RunJob(msgspec.Struct, forbid_unknown_fields=True):
    """What to run: `prompts`, or the requests of the file `workload`."""

    trace: str
    prompts: list[str] = []
    workload: str | None = None
    arrive_every: int = 0
    """Steps between two prompts; 0: all are there at once."""
    engine: dict[str, Any] = {}
    """Settings of the engine. A draft model that is not named is the shipped one."""
    sampling: dict[str, Any] = {}
    """`SamplingParams`."""


class Arrival(NamedTuple):
    """A request, and when it comes: at a step, or after so many seconds."""

    step: int
    seconds: float
    arguments: dict[str, Any]


def run_job(job: RunJob, is_stopped: Callable[[], bool] = lambda: False) -> None:
    """Run it to its end, or until it is stopped: then what is unfinished is aborted, and the trace is whole.

    Raises:
        ValueError: the engine refuses a setting or a request, in its words; nothing was computed.
    """
    from minivllm.engine.engine_args import EngineArgs
    from minivllm.model.tiny import DRAFT_MODEL_PATH, MODEL_PATH
    from minivllm.sampling_params import RequestOutputKind, SamplingParams
    from minivllm.validation import check_int64

    check_int64("arrive_every", job.arrive_every, at_least=0)
    sampling = {"output_kind": RequestOutputKind.FINAL_ONLY, **job.sampling}
    params = SamplingParams(**sampling)
    settings = dict(job.engine)
    guess = settings.get("speculative_config")
    if guess and guess.get("method") == "draft_model":
        settings["speculative_config"] = {"model": DRAFT_MODEL_PATH, **guess}
    EngineArgs(MODEL_PATH, **settings)  # refused before a file is made, and before a second of imports
    from minivllm.engine.create_engine import create_engine

    engine = create_engine(EngineArgs(MODEL_PATH, trace=job.trace, **settings))
    try:
        arrivals = _arrivals(job, engine, params)
        _check(engine, arrivals, "prompts[{}]" if job.workload is None else "request {}")
        _play(engine, arrivals, is_stopped)
        for request_id in list(engine.requests):
            engine.abort(request_id)
    finally:
        engine.close()


def _arrivals(job: RunJob, engine: Any, params: Any) -> list[Arrival]:
    from minivllm.engine.prompts import tokenize_prompt

    if job.workload is not None:
        return _arrivals_of_file(job.workload, engine, job)
    if not job.prompts:
        raise ValueError("prompts must hold at least one prompt, got none")
    found = []
    for number, text in enumerate(job.prompts):
        prompt = tokenize_prompt(text, f"prompts[{number}]", engine.tokenizer)
        arguments = {
            "request_id": str(number), "prompt_token_ids": prompt.token_ids, "params": params, "prompt": text
        }  # fmt: skip
        found.append(Arrival(number * job.arrive_every, 0.0, arguments))
    return found


def _arrivals_of_file(path: str, engine: Any, job: RunJob) -> list[Arrival]:
    """As the file says: when, and exactly how many tokens come out."""
    from minivllm.lab.workloads.jsonl import read_jsonl
    from minivllm.sampling_params import RequestOutputKind, SamplingParams

    workload = read_jsonl(
        path,
        vocab_size=engine.vocab_size,
        max_model_len=engine.config.max_model_len,
        encode=engine.tokenizer.encode,
        seed=engine.seed,
    )
    found = []
    for request in workload.arrivals():
        settings = {**job.sampling, "max_tokens": request.num_output_tokens, "ignore_eos": True}
        params = SamplingParams(output_kind=RequestOutputKind.FINAL_ONLY, **settings)
        arguments = {
            "request_id": request.request_id,
            "prompt_token_ids": request.prompt_token_ids.tolist(),
            "params": params,
            "prompt": request.prompt,
            "priority": request.priority,
        }
        found.append(Arrival(0, request.arrival_seconds, arguments))
    return found


def _check(engine: Any, arrivals: list[Arrival], name: str) -> None:
    """All requests are checked before any is queued; the first that is refused is named, as `LLM` does."""
    for arrival in arrivals:
        try:
            engine.make_request(**arrival.arguments)
        except ValueError as error:
            raise ValueError(f"{name.format(arrival.arguments['request_id'])}: {error}") from None


def _play(engine: Any, arrivals: list[Arrival], is_stopped: Callable[[], bool]) -> None:
    """Queue each request when it comes, and step until all are done."""
    coming = list(reversed(arrivals))
    began, step = perf_counter(), 0
    while (coming or engine.requests) and not is_stopped():
        seconds = perf_counter() - began
        while coming and coming[-1].step <= step and coming[-1].seconds <= seconds:
            engine.add_request(**coming.pop().arguments)
        if engine.requests:
            engine.step()
        elif coming[-1].seconds > seconds:
            sleep(IDLE_SECONDS)
        step += 1


def main() -> int:
    """Read the job, run it, and say what is wrong with it."""
    line = sys.stdin.readline()
    stopped = threading.Event()

    def wait_for_end() -> None:
        sys.stdin.read()
        stopped.set()

    threading.Thread(target=wait_for_end, name="waits for the end of stdin", daemon=True).start()
    try:
        job = msgspec.json.decode(line, type=RunJob)
        Path(job.trace).parent.mkdir(parents=True, exist_ok=True)
        run_job(job, stopped.is_set)
    except (ValueError, TypeError) as error:
        print(error, file=sys.stderr)
        return REFUSED
    return 0


if __name__ == "__main__":
    sys.exit(main())
