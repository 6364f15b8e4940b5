"""Event loops for tests. Playwright keeps one running in the main thread, so others need their own."""

import asyncio
from concurrent.futures import ThreadPoolExecutor

from tests import patience


def run(coroutine):
    """As `asyncio.run`, wherever it is called."""
    return call(asyncio.run, coroutine)


def call(function, *arguments):
    """A function that begins an event loop of its own, wherever it is called."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(function, *arguments).result(patience.SECONDS)
