"""The texts that quantisation is calibrated with and judged by, as token ids.

    builtin      some 700 documents that ship with minivllm: what its small model was trained on
    FILE.jsonl   one document a line: {"text": "…"}
    FILE         any other file is one long text, cut into samples of `seq_len` tokens

A document is a sample: it begins as the model expects a text to begin, and is cut after `seq_len` tokens.
Judgement takes other texts: for the built-in ones, documents that the small model never saw.

Read next: `calibration.py`, which runs a model over them.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path

from minivllm.validation import check_input_file, check_integer, shown

BUILTIN = Path(__file__).parent / "calibration_texts" / "calibration.jsonl"
HELD_OUT = Path(__file__).parent / "calibration_texts" / "held_out.jsonl"
MOST_BYTES = 256 << 20

Encode = Callable[[str], list[int]]


def read_samples(
    source: str | Path,
    encode: Encode,
    *,
    num_samples: int,
    seq_len: int,
    seed: int = 0,
    name: str = "calibration",
) -> list[list[int]]:
    """Token ids of up to `num_samples` texts of at most `seq_len` tokens, drawn by `seed`.

    Args:
        source: "builtin", or a file.
        encode: text to token ids, with the model's own beginning.
        name: of the argument that named the source, for messages.

    Raises:
        ValueError: the file cannot be read, is not what its name says, or has no text.
    """
    check_integer("samples", num_samples, at_least=1)
    check_integer("seq_len", seq_len, at_least=2)
    path = BUILTIN if source == "builtin" else check_input_file(name, source)
    texts = read_texts(path, name)
    rng = random.Random(seed)
    if path.suffix == ".jsonl":
        rng.shuffle(texts)
        made = (ids[:seq_len] for text in texts if len(ids := encode(text)) > 1)
        samples = [ids for ids, _ in zip(made, range(num_samples), strict=False)]
    else:
        samples = list(_pieces(encode(texts[0]), encode, seq_len))
        rng.shuffle(samples)
        samples = samples[:num_samples]
    if not samples:
        raise ValueError(f"{name}: {shown(str(path))} has no text of two tokens or more")
    return samples


def read_texts(path: Path, name: str = "calibration") -> list[str]:
    """The documents of a `.jsonl` file, or the one text of another.

    Raises:
        ValueError: naming the file, and the line at fault.
    """
    try:
        if (size := path.stat().st_size) > MOST_BYTES:
            raise ValueError(f"{name}: {path} has {size:,} bytes; at most {MOST_BYTES:,} are read")
        content = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{name}: {path} is not UTF-8 text: byte {error.start}") from None
    except OSError as error:
        raise ValueError(f"{name}: {path} cannot be read: {error.strerror}") from None
    if path.suffix != ".jsonl":
        return [content]
    return [_text_of(line, path, n, name) for n, line in enumerate(content.split("\n"), 1) if line.strip()]


def _text_of(line: str, path: Path, number: int, name: str) -> str:
    try:
        text = json.loads(line)["text"]
    except (ValueError, KeyError, TypeError, RecursionError):
        text = None
    if not isinstance(text, str):
        raise ValueError(f'{name}: line {number} of {path} must be {{"text": "…"}}, got {shown(line)}')
    return text


def _pieces(token_ids: list[int], encode: Encode, seq_len: int) -> Iterator[list[int]]:
    """A long text in samples, each with the beginning that the model gives a text."""
    begin = encode("")[: seq_len - 1]
    body = token_ids[len(begin) :] if token_ids[: len(begin)] == begin else token_ids
    step = seq_len - len(begin)
    for start in range(0, len(body), step):
        if len(piece := begin + body[start : start + step]) > 1:
            yield piece
