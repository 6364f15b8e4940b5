"""Log-probabilities in the two forms of the OpenAI API: lists beside each other, or one object a token.

    completions   {"tokens": [" a", …], "token_logprobs": [-0.1, …], "top_logprobs": [{" a": -0.1, …}, …],
                   "text_offset": [4, …]}
    chats         {"content": [{"token": " a", "logprob": -0.1, "bytes": [32, 97], "top_logprobs": […]}, …]}

Source: the OpenAI API; order and rounding as in vLLM.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from minivllm.outputs import Logprob

SMALLEST = -9999.0
"""JSON has no infinity."""

Entry = Mapping[int, Logprob]


class TokenLogprobs(NamedTuple):
    """One token: its text, and what else could have stood there (nothing, for the first of a prompt)."""

    text: str
    logprob: float | None
    others: list[tuple[str, float]]
    """The token itself first, then the likeliest."""


def tokens_with_logprobs(
    token_ids: Sequence[int], entries: Sequence[Entry], as_ids: bool = False
) -> list[TokenLogprobs]:
    """The tokens of an output, one entry for each; `as_ids`: by their numbers, where texts are ambiguous."""
    return [_with_logprobs(token, entry, as_ids) for token, entry in zip(token_ids, entries, strict=True)]


def prompt_with_logprobs(
    token_ids: Sequence[int], entries: Sequence[Entry | None], first_text: str, as_ids: bool = False
) -> list[TokenLogprobs]:
    """The tokens of a prompt; the first one has no probability."""
    rest = [
        _with_logprobs(token, entry, as_ids)
        for token, entry in zip(token_ids[1:], entries[1:], strict=True)
        if entry is not None
    ]
    return [TokenLogprobs(_name(token_ids[0], first_text, as_ids), None, []), *rest]


def of_completion(tokens: Iterable[TokenLogprobs], count: int, offset: int = 0) -> dict[str, Any]:
    """The form of `/v1/completions`; `offset` is the length of the text before."""
    offsets, texts, logprobs, tops = [], [], [], []
    for token in tokens:
        offsets.append(offset)
        texts.append(token.text)
        logprobs.append(token.logprob)
        tops.append(dict(token.others[: count + 1]) if token.others else None)
        offset += len(token.text)
    return {"text_offset": offsets, "token_logprobs": logprobs, "tokens": texts, "top_logprobs": tops}


def of_chat(tokens: Iterable[TokenLogprobs], count: int) -> dict[str, Any]:
    """The form of `/v1/chat/completions`."""
    return {
        "content": [
            {
                **_with_bytes(token.text, token.logprob),
                "top_logprobs": [_with_bytes(text, logprob) for text, logprob in token.others[:count]],
            }
            for token in tokens
        ]
    }


def of_prompt(entries: Sequence[Entry | None] | None) -> list[dict[str, Any] | None] | None:
    """vLLM's form for the tokens of a prompt: by token id, as JSON has it."""
    if entries is None:
        return None
    return [None if entry is None else _by_token(entry) for entry in entries]


def _by_token(entry: Entry) -> dict[str, Any]:
    return {
        str(token): {
            "logprob": _finite(item.logprob),
            "rank": item.rank,
            "decoded_token": item.decoded_token,
        }
        for token, item in entry.items()
    }


def _with_bytes(text: str, logprob: float | None) -> dict[str, Any]:
    return {"token": text, "logprob": logprob, "bytes": list(text.encode("utf-8", "replace"))}


def _name(token: int, text: str | None, as_ids: bool) -> str:
    return f"token_id:{token}" if as_ids else text or ""


def _with_logprobs(token: int, entry: Entry, as_ids: bool) -> TokenLogprobs:
    chosen = entry[token]
    likeliest = sorted(
        (other for other in entry.items() if other[0] != token), key=lambda item: item[1].rank or 0
    )
    others = [
        (_name(other, item.decoded_token, as_ids), _finite(item.logprob))
        for other, item in [(token, chosen), *likeliest]
    ]
    return TokenLogprobs(others[0][0], _finite(chosen.logprob), others)


def _finite(logprob: float) -> float:
    return max(logprob, SMALLEST)
