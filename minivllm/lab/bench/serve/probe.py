"""Before a run: is there a server, does it let us in, and which model has it?

What is wrong is said in a sentence, before anything is measured:

    nothing listens there · no OpenAI API (404, HTML) · a key is needed (401) · another model

Read next: `own_server.py`, for a server that this command starts itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec

from minivllm.lab.bench.serve.client import MOST_ERROR_BYTES, Client, refusal, shown_error
from minivllm.text import printable

MOST_CARD_BYTES = 2**20


@dataclass(frozen=True)
class ServedCard:
    """What the server says about its model.

    Attributes:
        folder: of the model, if the server says where it is and that is a folder of this machine.
        max_model_len: None if it does not say.
    """

    model: str
    folder: Path | None = None
    max_model_len: int | None = None


def check_url(base_url: str) -> str:
    """The address without a last slash and without `/v1`. Raises `ValueError` if it is none."""
    text = base_url.strip().rstrip("/").removesuffix("/v1")
    try:
        parts = urlsplit(text)
        is_one = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        is_one = False
    if not is_one or parts.query or parts.fragment:
        raise ValueError(f"base_url must be an address such as http://127.0.0.1:8000, got {base_url!r}")
    return text


async def find_model(client: Client, wanted: str | None) -> ServedCard:
    """Ask for the models.

    Args:
        wanted: the model's name; None takes the first.

    Raises:
        ValueError: no server, no API, no key, or no such model.
    """
    import aiohttp

    where = client.base_url
    try:
        async with client.session.get(
            f"{where}/v1/models", timeout=aiohttp.ClientTimeout(total=30)
        ) as response:
            status, kind = response.status, response.headers.get("Content-Type", "")
            said = await response.content.read(MOST_CARD_BYTES if status == 200 else MOST_ERROR_BYTES)
    except (aiohttp.ClientError, OSError, TimeoutError) as error:
        raise ValueError(f"base_url {where} cannot be reached: {shown_error(error)}") from None
    if status in (401, 403):
        words = "the server refuses the key (--api-key or OPENAI_API_KEY)"
        raise ValueError(f"{where}: {words}: {refusal(status, kind, said)}")
    if status in (404, 405) and "html" not in kind and wanted is not None:
        return ServedCard(wanted)  # it has no list of models; the first request will show
    if status != 200 or "html" in kind:
        raise ValueError(f"{where}/v1/models: {refusal(status, kind, said)}")
    try:
        cards = [card for card in msgspec.json.decode(said)["data"] if isinstance(card["id"], str)]
    except (msgspec.MsgspecError, KeyError, TypeError):
        raise ValueError(f"{where}/v1/models does not answer with a list of models") from None
    names = [card["id"] for card in cards]
    if wanted is None and not names:
        raise ValueError(f"{where} serves no model")
    if wanted is not None and wanted not in names:
        there = ", ".join(printable(name) for name in names[:8]) or "none"
        raise ValueError(f"model {wanted!r} is not served at {where}; there is {there}")
    return _card(cards[names.index(wanted) if wanted is not None else 0])


def _card(card: dict[str, Any]) -> ServedCard:
    longest, root = card.get("max_model_len"), card.get("root")
    folder = Path(root) if isinstance(root, str) and root else None
    try:
        is_here = folder is not None and (folder / "config.json").is_file()
    except (OSError, ValueError):
        is_here = False
    return ServedCard(
        card["id"], folder if is_here else None, longest if isinstance(longest, int) and longest > 1 else None
    )
