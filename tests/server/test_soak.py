"""Many clients at once, of all manners: no block lost, no wrong token, nothing left of anyone."""

import asyncio
import json
import os
import random
import threading
import time

import httpx
from hypothesis import settings

from tests import event_loops, patience
from tests.server.conftest import RunningServer

IS_NIGHT = settings.get_current_profile_name() == "nightly"
NUM_CLIENTS = 200 if IS_NIGHT else 24
NUM_TURNS = 4
NIGHT_SECONDS = 1800
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


def body(prompt, count=24):
    return {"prompt": prompt, "max_tokens": count, "temperature": 0, "stream": True, "ignore_eos": True}


async def read(lines, dice, leave_after=None, slow=False):
    """The text of a stream, to its end or until the client leaves."""
    text, num_chunks = "", 0
    async for line in lines:
        if not line.startswith("data: {"):
            continue
        text += "".join(choice["text"] for choice in json.loads(line[6:])["choices"])
        num_chunks += 1
        if num_chunks == leave_after:
            return text
        if slow:
            await asyncio.sleep(dice.random() / 100)
    return text


async def one_turn(client, dice, expected):
    prompt = dice.choice(range(len(PROMPTS)))
    manner = dice.choice(["reads", "reads", "slow", "leaves", "rubbish", "never waits"])
    if manner == "rubbish":
        headers = {"Content-Type": "application/json"}
        answer = await client.post("/v1/completions", content=dice.choice(RUBBISH), headers=headers)
        assert answer.status_code in (400, 404), answer.text
        return
    if manner == "never waits":
        try:
            await client.post("/v1/completions", json=body(PROMPTS[prompt], 200), timeout=0.02)
        except httpx.TimeoutException:
            return
    async with client.stream("POST", "/v1/completions", json=body(PROMPTS[prompt])) as response:
        assert response.status_code == 200
        leave_after = dice.randint(1, 10) if manner == "leaves" else None
        text = await read(response.aiter_lines(), dice, leave_after, slow=manner == "slow")
    if leave_after is None:
        assert text == expected[prompt]
    else:
        assert expected[prompt].startswith(text)


async def all_clients(url, seed):
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=url, timeout=patience.SECONDS, limits=limits) as client:
        dice = random.Random(seed)
        expected = []
        for prompt in PROMPTS:  # alone
            async with client.stream("POST", "/v1/completions", json=body(prompt)) as response:
                expected.append(await read(response.aiter_lines(), dice))
        ends = time.monotonic() + NIGHT_SECONDS

        async def one_client(number):
            own, turns = random.Random(f"{seed} {number}"), 0
            while turns < NUM_TURNS or (IS_NIGHT and time.monotonic() < ends):
                await one_turn(client, own, expected)
                turns += 1

        await asyncio.gather(*map(one_client, range(NUM_CLIENTS)))


def test_many_clients_of_all_manners_leave_nothing_behind():
    threads = threading.active_count()
    server = RunningServer()
    try:
        event_loops.run(all_clients(server.url, seed=os.getpid()))
        deadline = time.monotonic() + patience.SECONDS
        while server.engine.requests or server.llm.num_unfinished_requests:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert server.engine.cache.pool.num_used_blocks == 0
        server.engine.check_invariants()
    finally:
        server.stop()
    assert threading.active_count() == threads
