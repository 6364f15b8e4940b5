"""Many clients at once, of all manners: no block lost, no wrong token, nothing left of anyone."""

import asyncio
import gc
import json
import os
import random
import threading
import time
from collections import Counter

import aiohttp
import httpx
import psutil

from tests import event_loops, patience, profiles
from tests.server.conftest import RunningServer

IS_NIGHT = profiles.is_night()
NUM_CLIENTS = 200
SECONDS = 1800 if IS_NIGHT else 120
RUSH_SECONDS = 8
"""By day clients think, and come back in rushes: all at once is what is hard, and not to come for ever."""
RUSHES = (1, 2, 3)
"""One of them is the next in which a client comes."""
MEMORY_BYTES = 48 << 20
"""That the second half may need more than the first: a batch that was larger by chance, and no more."""
PROMPTS = [
    f"The {word} of a request" for word in ("block table", "scheduler", "cache", "prompt", "last token")
]
PROMPTS += [
    "Once upon a time",
    "A shared beginning, long enough to fill some blocks. " * 3,
    [5, 6, 7],
    "从前",
]
RUBBISH = [
    b"{",
    b'{"prompt": 5}',
    b'{"prompt": "a", "n": -1}',
    b'{"prompt": [99999]}',
    b"\xff" * 50,
    b'{"messages": []}',
]
COMPLETIONS = "/v1/completions"


def body(prompt, count=24):
    return {"prompt": prompt, "max_tokens": count, "temperature": 0, "stream": True, "ignore_eos": True}


async def read(lines, dice, leave_after=None, slow=False):
    """The text of a stream, to its end or until the client leaves."""
    text, num_chunks = "", 0
    async for line in lines:
        if not line.startswith(b"data: {"):
            continue
        text += "".join(choice["text"] for choice in json.loads(line[6:])["choices"])
        num_chunks += 1
        if num_chunks == leave_after:
            return text
        if slow:
            await asyncio.sleep(dice.random() / 10)
    return text


async def one_turn(client, dice, expected):
    prompt = dice.choice(range(len(PROMPTS)))
    manner = dice.choice(["reads", "reads", "slow", "leaves", "rubbish", "never waits"])
    if manner == "rubbish":
        headers = {"Content-Type": "application/json"}
        async with client.post(COMPLETIONS, data=dice.choice(RUBBISH), headers=headers) as answer:
            assert answer.status in (400, 404), await answer.text()
        return
    if manner == "never waits":
        soon = aiohttp.ClientTimeout(total=0.02)
        try:
            async with client.post(COMPLETIONS, json=body(PROMPTS[prompt], 200), timeout=soon) as answer:
                await answer.read()
        except TimeoutError:
            return
        raise AssertionError("200 tokens came in an instant")
    async with client.post(COMPLETIONS, json=body(PROMPTS[prompt])) as answer:
        assert answer.status == 200
        leave_after = dice.randint(1, 10) if manner == "leaves" else None
        text = await read(answer.content, dice, leave_after, slow=manner == "slow")
    if leave_after is None:
        assert text == expected[prompt]
    else:
        assert expected[prompt].startswith(text)


async def one_client(client, dice, expected, begun):
    """Turns until the time is over. When they come, by day, the dice say: not how quick the machine is."""
    comes = dice.random()
    while (now := time.monotonic() - begun) < SECONDS:
        if comes > now:
            await asyncio.sleep(comes - now)
        await one_turn(client, dice, expected)
        while not IS_NIGHT and comes < time.monotonic() - begun:
            comes += RUSH_SECONDS * dice.choice(RUSHES)


async def watch_memory(begun):
    """The most memory of this process in the first and in the second half."""
    most = [0, 0]
    while (now := time.monotonic() - begun) < SECONDS:
        half = int(now > SECONDS / 2)
        most[half] = max(most[half], psutil.Process().memory_info().rss)
        await asyncio.sleep(0.5)
    return most


async def all_clients(url, seed, expected):
    """Everybody's turns; returns the most memory of both halves."""
    options = {
        "connector": aiohttp.TCPConnector(limit=0, force_close=True),  # everybody has one of their own
        "timeout": aiohttp.ClientTimeout(total=patience.SECONDS),
    }
    async with aiohttp.ClientSession(url, **options) as client:
        begun = time.monotonic()
        dice = (random.Random(f"{seed} {number}") for number in range(NUM_CLIENTS))
        turns = (one_client(client, own, expected, begun) for own in dice)
        memory, *_ = await asyncio.gather(watch_memory(begun), *turns)
    return memory


def alone(url):
    """What the server says to each prompt while nobody else is there."""
    with httpx.Client(base_url=url, timeout=patience.SECONDS) as client:
        bodies = [body(prompt) | {"stream": False} for prompt in PROMPTS]
        return [client.post(COMPLETIONS, json=one).json()["choices"][0]["text"] for one in bodies]


def left_in(server):
    """How many tasks the server's loop has, and how many objects of each of our classes there are."""
    gc.collect()
    tasks = asyncio.all_tasks(server.llm._loop)
    kinds = Counter(type(thing) for thing in gc.get_objects())
    ours = {kind: count for kind, count in kinds.items() if kind.__module__.startswith("minivllm.")}
    return Counter({"tasks": len(tasks), **ours})


def test_many_clients_of_all_manners_leave_nothing_behind():
    gc.collect()
    num_threads, num_files = threading.active_count(), psutil.Process().num_fds()
    server = RunningServer()
    try:
        expected = alone(server.url)
        before = left_in(server)
        clients = all_clients(server.url, os.getpid(), expected)
        memory = event_loops.run(clients, seconds=SECONDS + patience.SECONDS)
        patience.until(lambda: not (server.engine.requests or server.llm.num_unfinished_requests))
        assert server.engine.cache.pool.num_used_blocks == 0
        server.engine.check_invariants()
        assert alone(server.url) == expected
        deadline = time.monotonic() + patience.SECONDS
        while left := left_in(server) - before:  # a connection is still being closed
            assert time.monotonic() < deadline, left
            time.sleep(0.1)  # to look is dear
        assert memory[1] < memory[0] + MEMORY_BYTES
    finally:
        server.stop()
    gc.collect()
    # What others have closed is gone a moment later.
    patience.until(lambda: threading.active_count() <= num_threads)
    patience.until(lambda: psutil.Process().num_fds() <= num_files)
