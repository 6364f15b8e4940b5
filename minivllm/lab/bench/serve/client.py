"""The client: sends one request, reads its stream, and notes when each part came.

    POST ──► 200, text/event-stream ──► data: {…}   data: {…}   …   data: [DONE]

It must be cheap: on one machine it takes from the server what it uses itself. Bytes are read as they
come and split at blank lines; the clock is looked at once for all that came together.

Whatever goes wrong becomes a sentence in the request's record, and no exception: the other requests go on.

Read next: `probe.py`, which finds out before a run whether there is a server at all.
"""

from __future__ import annotations

import asyncio
from time import perf_counter
from types import TracebackType
from typing import Any

import msgspec

from minivllm.lab.bench.serve.backends import Chunk, decode
from minivllm.lab.bench.serve.record import Record
from minivllm.processes import allow_many_files
from minivllm.text import shown

MOST_ERROR_BYTES = 4096
MOST_EVENT_BYTES = 2**24
DONE = b"[DONE]"


def import_aiohttp() -> Any:
    """The HTTP library. Raises `ValueError` with what to install where it is missing."""
    try:
        import aiohttp
    except ModuleNotFoundError:
        raise ValueError("aiohttp is not installed: pip install 'minivllm[bench]'") from None
    return aiohttp


class Client:
    """Connections to one server.

    Args:
        base_url: `http://host:port`, without the path.
        path: of the requests.
        api_key: sent as a bearer token; None sends none.
        timeout: seconds that one answer may take.
        wants_text: keep texts, too.
    """

    def __init__(
        self,
        base_url: str,
        path: str,
        *,
        api_key: str | None = None,
        timeout: float = 3600.0,
        wants_text: bool = False,
    ) -> None:
        aiohttp = import_aiohttp()
        allow_many_files()
        self.base_url = base_url
        self._url = base_url + path
        self._wants_text = wants_text
        self._errors = (aiohttp.ClientError, OSError, TimeoutError)
        headers = {"Content-Type": "application/json", "Accept": "text/event-stream"}
        if api_key:
            headers["Authorization"] = f"Bearer {api_key}"
        self.session = aiohttp.ClientSession(
            # No queue of our own in here; and no connection that the server may be about to close (uvicorn
            # does after five idle seconds): a request sent on it would count as a failure of the server's.
            connector=aiohttp.TCPConnector(limit=0, limit_per_host=0, keepalive_timeout=2.0),
            timeout=aiohttp.ClientTimeout(total=timeout),
            headers=headers,
            read_bufsize=2**18,
            trust_env=False,  # a proxy in between would be measured, too
        )

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.session.close()

    async def ask(self, body: bytes, record: Record, epoch: float) -> None:
        """Send a request now and read its answer to the end; everything is noted in the record.

        Args:
            epoch: when the run began, on `perf_counter`.
        """
        record.sent = perf_counter() - epoch
        stream = StreamReader(record, self._wants_text)
        try:
            async with self.session.post(self._url, data=body) as response:
                kind = response.headers.get("Content-Type", "")
                if response.status != 200 or "text/event-stream" not in kind:
                    said = await response.content.read(MOST_ERROR_BYTES)
                    record.error = refusal(response.status, kind, said)
                    return
                async for data in response.content.iter_any():
                    stream.feed(data, perf_counter() - epoch)
        except asyncio.CancelledError:
            raise
        except TimeoutError:
            record.error = "no answer within the time allowed (--timeout)"
        except self._errors as error:
            record.error = record.error or f"the connection failed: {shown_error(error)}"
        else:
            stream.close()
        finally:
            record.last = record.chunk_times[-1] if record.chunk_times else perf_counter() - epoch


class StreamReader:
    """Server-sent events, put together from the bytes as they come."""

    def __init__(self, record: Record, wants_text: bool = False) -> None:
        self._record = record
        self._wants_text = wants_text
        self._rest = b""
        self._is_done = False
        self._has_ended = False  # a choice has said why it ends

    def feed(self, data: bytes, now: float) -> None:
        """The next bytes, and when they came."""
        if self._rest:
            data = self._rest + data
        if b"\r" in data:
            data = data.replace(b"\r\n", b"\n")
        *events, self._rest = data.split(b"\n\n")
        if len(self._rest) > MOST_EVENT_BYTES:
            self._rest = b""
            self._record.error = self._record.error or "a part of the stream has no end"
        for event in events:
            self._on_event(event, now)

    def close(self) -> None:
        """The stream is over: was that its end?"""
        if self._rest.strip():
            self._on_event(self._rest, self._record.last)
        record = self._record
        if record.error:
            return
        if not (self._is_done or self._has_ended):
            got = len(record.chunk_times)
            record.error = (
                f"the stream ended early, after {got} part{'' if got == 1 else 's'}, without [DONE]"
            )
        elif not record.chunk_times:
            record.error = "the stream had no tokens in it"
        elif not record.is_counted:
            record.output_tokens = len(record.chunk_times)

    def _on_event(self, event: bytes, now: float) -> None:
        for line in event.split(b"\n"):
            if line.startswith(b"data:"):
                self._on_data(line[5:].strip(), now)

    def _on_data(self, data: bytes, now: float) -> None:
        if data == DONE:
            self._is_done = True
            return
        try:
            chunk = decode(data)
        except msgspec.MsgspecError:
            self._record.error = (
                self._record.error or f"a part of the stream is not understood: {shown(data)}"
            )
            return
        if chunk.error is not None:
            self._record.error = self._record.error or f"the server gave up: {message_of(chunk.error)}"
            return
        self._note(chunk, now)

    def _note(self, chunk: Chunk, now: float) -> None:
        record = self._record
        has_tokens = False
        for choice in chunk.choices:
            has_tokens = has_tokens or choice.has_tokens()
            if choice.finish_reason is not None:
                self._has_ended = True
            if choice.token_ids:
                record.token_ids += choice.token_ids
            if self._wants_text:
                record.text += choice.new_text()
        if has_tokens:
            record.chunk_times.append(now)
        if chunk.usage is not None:
            record.prompt_tokens = chunk.usage.prompt_tokens
            record.output_tokens = chunk.usage.completion_tokens
            record.is_counted = True


def refusal(status: int, kind: str, said: bytes) -> str:
    """What a server means that does not answer with a stream."""
    text = said.decode(errors="replace")
    if "html" in kind or text.lstrip()[:1] == "<":
        return f"status {status} with a page of HTML: that address is not one of the OpenAI API"
    if status == 200:
        return f"an answer in one piece ({kind or 'of no type'}) and not a stream of events"
    try:
        words = message_of(msgspec.json.decode(said))
    except msgspec.MsgspecError:
        words = shown(text.strip())
    return f"status {status}: {words}"


def message_of(answer: Any) -> str:
    """The sentence in an answer that is an error, however it is wrapped."""
    for _ in range(3):
        if isinstance(answer, dict):
            answer = next((answer[key] for key in ("error", "message", "detail") if key in answer), answer)
    return shown(answer) if not isinstance(answer, str) else answer[:300]


def shown_error(error: BaseException) -> str:
    """An exception in a few words, on one line."""
    words = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(words.split())[:200]
