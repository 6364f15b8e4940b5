"""A server of the OpenAI API that computes nothing and misbehaves as it is told: for tests of the client."""

import asyncio
import json
import threading
from contextlib import contextmanager

from tests import patience

MODEL = "fake"


def event(data):
    return b"data: " + (data if isinstance(data, bytes) else json.dumps(data).encode()) + b"\n\n"


def head(status, kind, length=None):
    rest = "Connection: close\r\n" + ("" if length is None else f"Content-Length: {length}\r\n")
    return f"HTTP/1.1 {status} X\r\nContent-Type: {kind}\r\n{rest}\r\n".encode()


def whole(status, body, kind="application/json"):
    data = body.encode() if isinstance(body, str) else json.dumps(body).encode()
    return head(status, kind, len(data)) + data


def models(name=MODEL, **more):
    return whole(200, {"data": [{"id": name, "max_model_len": 4096, **more}]})


def answer(asked, num_tokens=None, usage=True, done=True):
    """A stream of so many tokens, all that were asked for by default."""
    count = asked["max_tokens"] if num_tokens is None else num_tokens
    parts = []
    for index in range(count):
        finish = "length" if index == count - 1 and done else None
        choice = {"index": 0, "finish_reason": finish}
        choice |= {"delta": {"content": "a"}} if "messages" in asked else {"text": "a"}
        parts.append(event({"choices": [choice]}))
    if usage:
        parts.append(event({"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": count}}))
    if done:
        parts.append(event(b"[DONE]"))
    return head(200, "text/event-stream") + b"".join(parts)


class FakeServer:
    """`answers` is called with each request's JSON and returns the bytes of the response."""

    def __init__(self, answers, models_answer):
        self.answers, self.models_answer = answers, models_answer
        self.asked = []
        self.url = ""

    async def serve(self, reader, writer):
        request = await reader.readuntil(b"\r\n\r\n")
        if request.startswith(b"GET"):
            writer.write(self.models_answer)
        else:
            length = int(request.lower().split(b"content-length:")[1].split(b"\r\n")[0])
            asked = json.loads(await reader.readexactly(length))
            asked["path"] = request.split()[1].decode()
            self.asked.append(asked)
            writer.write(self.answers(asked))
        await writer.drain()
        writer.close()


@contextmanager
def fake_server(answers=answer, models_answer=None):
    """Runs in a thread of its own until the block ends."""
    fake = FakeServer(answers, models() if models_answer is None else models_answer)
    loop, is_up, stop = asyncio.new_event_loop(), threading.Event(), asyncio.Event()

    async def main():
        async with await asyncio.start_server(fake.serve, "127.0.0.1", 0) as server:
            fake.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
            is_up.set()
            await stop.wait()

    thread = threading.Thread(target=loop.run_until_complete, args=(main(),), daemon=True)
    thread.start()
    assert is_up.wait(patience.SECONDS)
    try:
        yield fake
    finally:
        loop.call_soon_threadsafe(stop.set)
        patience.join(thread)
        loop.close()
