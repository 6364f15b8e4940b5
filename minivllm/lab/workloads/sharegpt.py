"""Conversations in ShareGPT's form: the first question of each, and how long its answer is.

    [{"id": …, "conversations": [{"from": "human", "value": …}, {"from": "gpt", "value": …}, …]}, …]

Of each conversation the first two turns count. As in vLLM, those are left out whose question or answer has
fewer than four tokens, and those that do not fit the model; of the others, as many as are wanted are drawn.
No such file comes with this project.

Source of the form and of the rules: vLLM's `benchmark_serving.py`. Read next: `jsonl.py`.
"""

from __future__ import annotations

import codecs
import random
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from minivllm.lab.workloads.jsonl_line import Encode
from minivllm.lab.workloads.workload import WorkloadRequest
from minivllm.validation import check_input_file, check_integer

LEAST_TOKENS = 4


def read_sharegpt(
    path: str | Path,
    *,
    num_requests: int,
    max_model_len: int,
    encode: Encode | None,
    output_tokens: int | None = None,
    seed: int = 0,
) -> list[WorkloadRequest]:
    """So many requests of a file, drawn by the seed, or all if there are fewer; all arrive at once.

    Args:
        encode: from text to token ids; without it `output_tokens` is needed, and no prompt is left out.
        output_tokens: of every answer, instead of what the file's answers have.

    Raises:
        ValueError: the file cannot be read, is not of that form, or no conversation in it can be used.
    """
    check_integer("num_requests", num_requests, at_least=1)
    if output_tokens is not None:
        check_integer("output_tokens", output_tokens, at_least=1)
    elif encode is None:
        raise ValueError(
            f"{path}: without a tokenizer nothing says how long its answers are: give the number of output "
            "tokens (--output-tokens), or a tokenizer"
        )
    found: list[WorkloadRequest] = []
    pairs = list(_pairs(path))
    random.Random(seed).shuffle(pairs)
    for question, answer in pairs:
        prompt = encode(question) if encode else [0]
        wanted = output_tokens if output_tokens is not None else len(encode(answer)) if encode else 0
        is_short = (
            encode is not None
            and min(len(prompt), wanted + LEAST_TOKENS * bool(output_tokens)) < LEAST_TOKENS
        )
        if is_short or len(prompt) + wanted > max_model_len:
            continue
        name = f"request-{len(found)}"
        found.append(WorkloadRequest(name, 0.0, array("i", prompt), wanted, wanted, prompt=question))
        if len(found) == num_requests:
            break
    if not found:
        raise ValueError(
            f"{path} has no conversation that can be used: a question and an answer of at least "
            f"{LEAST_TOKENS} tokens each, together at most {max_model_len}"
        )
    return found


def _pairs(path: str | Path) -> Iterator[tuple[str, str]]:
    """The first question and its answer of each conversation that has both."""
    for number, entry in enumerate(_entries(path)):
        turns = entry.get("conversations", entry.get("conversation")) if isinstance(entry, dict) else None
        if not isinstance(turns, list):
            raise ValueError(
                f"{path}: entry {number} has no list `conversations`, which ShareGPT's form needs"
            )
        texts = [turn.get("value") if isinstance(turn, dict) else None for turn in turns[:2]]
        if len(texts) == 2 and all(isinstance(text, str) and text for text in texts):
            yield str(texts[0]), str(texts[1])


def _entries(path: str | Path) -> Sequence[Any]:
    try:
        data = check_input_file("workload", path).read_bytes().removeprefix(codecs.BOM_UTF8)
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from error
    if not data.strip():
        raise ValueError(f"{path} is empty")
    try:
        entries = msgspec.json.decode(data)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(entries, list):
        raise ValueError(f"{path} must be a JSON list of conversations (ShareGPT's form)")
    return entries
