"""What bytes each token stands for: structured output reads a model's tokens as bytes.

Two families of tokenizers write any text as bytes, and say in tokenizer.json how:

    byte-level BPE (GPT-2, Llama 3, Qwen)    each character of a token is one byte: `Ġ` is a space
    byte fallback (Llama 2, Mistral)         a token is text, `▁` a space, and `<0x0A>` one byte

A tokenizer of another kind (WordPiece, say) joins its tokens by rules that look at their neighbours: it has
no bytes of its own for each, and is refused.

Source: `bytes_to_unicode` of GPT-2; the decoders of the `tokenizers` library. Read next:
`minivllm/decoding/structured/vocabulary.py`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

SPELLED_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def token_bytes(
    settings: Mapping[str, Any], vocabulary: Mapping[str, int], special_ids: Iterable[int]
) -> list[bytes | None]:
    """The bytes of each token, by id; None for special ones and for ids without a token.

    Args:
        settings: what tokenizer.json says.
        vocabulary: ids by token, added ones included.

    Raises:
        ValueError: tokens of this tokenizer do not stand for bytes.
    """
    decoders = {str(part.get("type")): part for part in _parts(settings.get("decoder"))}
    if "ByteLevel" in decoders:
        by_character = {character: byte for byte, character in _characters_of_bytes().items()}

        def read(token: str) -> bytes:
            if all(character in by_character for character in token):
                return bytes(by_character[character] for character in token)
            return token.encode()

    elif "ByteFallback" in decoders or "Metaspace" in decoders:
        spaces = _replacements(decoders)

        def read(token: str) -> bytes:
            if "ByteFallback" in decoders and (spelled := SPELLED_BYTE.fullmatch(token)):
                return bytes([int(spelled[1], 16)])
            for old, new in spaces:
                token = token.replace(old, new)
            return token.encode()

    else:
        kind = (settings.get("decoder") or {}).get("type")
        raise ValueError(
            "structured_outputs needs a tokenizer whose tokens stand for bytes (byte-level BPE, or byte "
            f"fallback); this one has the decoder {kind}"
        )
    special = set(special_ids)
    found: list[bytes | None] = [None] * (max(vocabulary.values(), default=-1) + 1)
    for token, token_id in vocabulary.items():
        if token_id not in special:
            found[token_id] = read(token)
    return found


def read_token_bytes(
    text: str, vocabulary: Mapping[str, int], special_ids: Iterable[int]
) -> list[bytes | None]:
    """The same, from the text of a tokenizer.json."""
    return token_bytes(json.loads(text), vocabulary, special_ids)


def _parts(decoder: Mapping[str, Any] | None) -> list[Mapping[str, Any]]:
    """A decoder, or those of a sequence of them."""
    if decoder is None:
        return []
    if decoder.get("type") == "Sequence":
        return [part for inner in decoder.get("decoders", ()) for part in _parts(inner)]
    return [decoder]


def _replacements(decoders: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, str]]:
    found = []
    if "Replace" in decoders:
        old = decoders["Replace"].get("pattern", {}).get("String")
        if old:
            found.append((old, decoders["Replace"].get("content", "")))
    if "Metaspace" in decoders:
        found.append((decoders["Metaspace"].get("replacement", "▁"), " "))
    return found


def _characters_of_bytes() -> dict[int, str]:
    """GPT-2's name of each byte: itself where that can be printed, else a character from 256 on."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    names = {byte: chr(byte) for byte in printable}
    others = (byte for byte in range(256) if byte not in names)
    return names | {byte: chr(256 + index) for index, byte in enumerate(others)}
