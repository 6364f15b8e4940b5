"""The peer's side: one peer in a process and an environment of its own, told when to compute.

Run by path under the Python of that environment (`python serve.py openvino_peer.py job.json`), where
minivllm need not be installed: nothing here imports it, nor anything else outside the standard library. One
JSON line comes in, one goes out; `child.py` is at the other end.

    in                      out
                            {"ready": {"version": …, "how": …}}  or  {"error": why not}
    {"warm_up": "batch"}    {"done": "batch"}
    {"go": "batch"}         {"seconds": …, "cpu_seconds": …, "token_ids": [[…], …]}

A peer's script has two functions:

    load(job)             facts about the peer, and a function from prompts and exact output lengths to
                          token ids; with "batch_size" among the facts it is given that many at a time,
                          and with "is_padded" each batch is padded to its longest prompt and answer
    convert(job, folder)  only where the peer reads a format of its own: writes the model into `folder`

Conversion happens once, in another process: it loads torch, whose threads would disturb this one.
What a library prints goes to standard error: between lines of JSON it would break the conversation.

Read next: `transformers_peer.py`, the shortest script.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from threading import Thread
from time import perf_counter, sleep
from typing import Any, TextIO

WARM_UP_TOKENS = 4


def main() -> None:
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # from here on, whatever a library prints, from C as well, is no answer
    here = os.path.dirname(os.path.realpath(__file__))
    # This folder comes first in the search path of a script; none of its names may hide a library's.
    sys.path[:] = [entry for entry in sys.path if os.path.realpath(entry or ".") != here]
    Thread(target=end_with, args=(os.getppid(),), daemon=True).start()
    path, job_path, *convert_into = sys.argv[1:]
    with open(job_path, encoding="utf-8") as file:
        job = json.load(file)
    try:
        script = load_script(path)
        if convert_into:
            script.convert(job, *convert_into)
            return
        if hasattr(script, "convert"):
            job["converted"] = converted(path, job_path, job)
        facts, generate = script.load(job)
    except Exception as error:
        say(answers, {"error": sentence_of(error)})
        raise
    say(answers, {"ready": facts})
    for line in sys.stdin:  # ends when the parent does
        say(answers, answer(json.loads(line), job["measures"], facts.get("batch_size"), generate))
    os._exit(0)  # threads of a library do not keep the process alive


def end_with(parent: int) -> None:
    """Loading, converting and computing take minutes: without a parent they are for nothing."""
    while os.getppid() == parent:
        sleep(0.5)
    os._exit(1)


def answer(
    order: dict[str, str], measures: dict[str, Any], batch_size: int | None, generate: Any
) -> dict[str, Any]:
    """Compute what is ordered, and take the time of that alone: no JSON, no pipes."""
    (word, name), *_ = order.items()
    prompts, lengths = measures[name]["prompts"], measures[name]["lengths"]
    size = batch_size or len(prompts)
    if word == "warm_up":
        in_batches(generate, prompts, [min(WARM_UP_TOKENS, length) for length in lengths], size)
        return {"done": name}
    cpu, began = cpu_seconds(), perf_counter()
    rows = in_batches(generate, prompts, lengths, size)
    seconds = perf_counter() - began
    spent = cpu_seconds() - cpu
    return {"seconds": seconds, "cpu_seconds": spent, "token_ids": [list(map(int, row)) for row in rows]}


def in_batches(generate: Any, prompts: list[Any], lengths: list[int], size: int) -> list[Any]:
    """Requests in order of arrival, `size` at a time; what exceeds a request's own length is cut off."""
    rows: list[Any] = []
    for start in range(0, len(prompts), size):
        wanted = lengths[start : start + size]
        given = generate(prompts[start : start + size], wanted)
        rows += [row[:length] for row, length in zip(given, wanted, strict=False)]  # counted by the parent
    return rows


def converted(path: str, job_path: str, job: dict[str, Any]) -> str:
    """The folder with the model in the peer's own format, made now if it is not there."""
    name = os.path.splitext(os.path.basename(path))[0]
    folder = os.path.join(job["cache"], f"{name}-{job['weights'] or job['dtype']}")
    complete = os.path.join(folder, "complete")  # a conversion that was interrupted is done again
    if not os.path.exists(complete):
        os.makedirs(folder, exist_ok=True)
        done = subprocess.run(
            [sys.executable, os.path.realpath(__file__), path, job_path, folder],
            stdout=subprocess.PIPE,
            text=True,
        )
        if done.returncode:
            lines = done.stdout.strip().splitlines() or ['{"error": "it stopped without a word"}']
            raise RuntimeError("the model could not be converted: " + json.loads(lines[-1])["error"])
        open(complete, "w").close()
    return folder


def load_script(path: str) -> Any:
    """The module in that file, under a name that cannot clash with a library's."""
    spec = importlib.util.spec_from_file_location("minivllm_field_peer", path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def cpu_seconds() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def sentence_of(error: Exception) -> str:
    """The first line of what went wrong, with the kind of it where that says more."""
    text = (str(error).strip().splitlines() or [""])[0]
    return (
        text if isinstance(error, (ImportError, RuntimeError)) and text else f"{type(error).__name__}: {text}"
    )


def say(answers: TextIO, what: dict[str, Any]) -> None:
    answers.write(json.dumps(what) + "\n")
    answers.flush()


if __name__ == "__main__":
    main()
