"""A workload in a file of one's own: one JSON object a line.

    {"arrival_seconds": 0.0, "prompt": "Why does paging help?", "output_tokens": 40}
    {"arrival_seconds": 0.8, "prompt_tokens": 161, "output_tokens": 338, "max_tokens": 512, "user": "ada"}
    {"arrival_seconds": 1.5, "prompt_tokens": [17, 4, 99], "output_tokens": 7, "priority": 1}

A prompt is a text, which a tokenizer is needed for, or a list of token ids, or a number of tokens, which are
then drawn at random, by the seed and the line. What else may be left out has the default of
`WorkloadRequest`; without an id, a request gets one that counts those before it in the file. Times may be in
any order. Empty lines say nothing.

The file is read and checked at once, so a mistake in its last line is found before anything runs, and
is reported with the file's name and the number of the line. Tokens drawn at random are made only on arrival.

Read next: `jsonl_line.py` for what is refused, then `parse.py`.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from minivllm.files import write_file
from minivllm.lab.workloads.draws import ordinary_tokens
from minivllm.lab.workloads.jsonl_line import Encode, Line, LineReader, shown
from minivllm.lab.workloads.prompts import check_vocabulary
from minivllm.lab.workloads.workload import WorkloadRequest
from minivllm.validation import check_input_file, check_integer


@dataclass(frozen=True)
class FileWorkload:
    """The requests of a file, in order of time; of equal times, in order of lines."""

    lines: tuple[Line, ...]
    vocab_size: int
    seed: int = 0

    def arrivals(self) -> Iterator[WorkloadRequest]:
        for line in self.lines:
            tokens = line.prompt_tokens
            if isinstance(tokens, int):
                tokens = ordinary_tokens(f"{self.seed}:line {line.number}:tokens", tokens, self.vocab_size)
            yield WorkloadRequest(
                line.request_id,
                line.arrival_seconds,
                tokens,
                line.output_tokens,
                line.max_tokens,
                line.priority,
                line.user,
                line.prompt,
            )

    def after(
        self, request: WorkloadRequest, finished_seconds: float, output_token_ids: Sequence[int]
    ) -> None:
        """A file says beforehand when everything arrives."""


MOST_LINE_BYTES = 2**25
"""Of a request: a file without line breaks must not fill the memory."""


def read_jsonl(
    path: str | Path,
    *,
    vocab_size: int,
    max_model_len: int | None = None,
    encode: Encode | None = None,
    seed: int = 0,
) -> FileWorkload:
    """Read and check a whole file.

    Args:
        max_model_len: most tokens of a prompt and its answer together.
        encode: from text to token ids.
        seed: of the tokens of prompts of which the file says only how long they are.

    Raises:
        ValueError: the file cannot be read or holds no request; or a line is no JSON object, has a field
            that is missing, unknown or not allowed, or a request that can never fit the model.
    """
    check_vocabulary(vocab_size)
    check_integer("seed", seed)
    if max_model_len is not None:
        check_integer("max_model_len", max_model_len, at_least=2)
    reader = LineReader(vocab_size, max_model_len, encode)
    lines: list[Line] = []
    line_of: dict[str, int] = {}
    try:
        with open(check_input_file("workload", path), "rb") as file:
            for number, text in enumerate(iter(lambda: file.readline(MOST_LINE_BYTES + 1), b""), 1):
                if len(text) > MOST_LINE_BYTES:
                    raise ValueError(f"{path}, line {number}, has more than {MOST_LINE_BYTES:,} bytes")
                text = text.removeprefix(codecs.BOM_UTF8 if number == 1 else b"")  # some editors begin so
                if not text.strip():
                    continue
                try:
                    line = reader.line(number, text, f"request-{len(lines)}")
                    if line_of.setdefault(line.request_id, number) != number:
                        raise ValueError(
                            f"request_id {shown(line.request_id)} is that of line {line_of[line.request_id]} "
                            "already: each must be different"
                        )
                except (ValueError, RecursionError) as error:
                    raise ValueError(f"{path}, line {number}: {error}") from error
                lines.append(line)
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from error
    if not lines:
        raise ValueError(f"{path} holds no request: at least one line must be a JSON object")
    lines.sort(key=lambda line: line.arrival_seconds)
    return FileWorkload(tuple(lines), vocab_size, seed)


def write_jsonl(path: str | Path, requests: Iterable[WorkloadRequest]) -> int:
    """Write requests, for instance `workload.arrivals()`, and return how many.

    Read back they are equal; those with a text need the same tokenizer for that. What would arrive only after
    others have finished (`Workload.after`) is not in the file, unless a run's own requests are what is
    written.

    Raises:
        CannotWrite: and a file that was there before is still there.
    """
    lines: list[bytes] = []
    for request in requests:
        row: dict[str, object] = {"arrival_seconds": request.arrival_seconds}
        if request.prompt is not None:
            row["prompt"] = request.prompt
        else:
            row["prompt_tokens"] = request.prompt_token_ids.tolist()
        row["output_tokens"] = request.num_output_tokens
        if request.max_tokens != request.num_output_tokens:
            row["max_tokens"] = request.max_tokens
        if request.priority:
            row["priority"] = request.priority
        if request.user is not None:
            row["user"] = request.user
        if request.request_id != f"request-{len(lines)}":
            row["request_id"] = request.request_id
        lines.append(msgspec.json.encode(row) + b"\n")
    write_file(path, b"".join(lines), "path")
    return len(lines)
