"""Event loops for tests. Playwright keeps one running in the main thread, so others need their own."""

import asyncio
from concurrent.futures import ThreadPoolExecutor

from tests import patience


def run(coroutine, seconds=patience.SECONDS):
    """As `asyncio.run`, wherever it is called. `seconds`: that it may take."""
    return call(asyncio.run, coroutine, seconds=seconds)


def call(function, *arguments, seconds=patience.SECONDS):
    """A function that begins an event loop of its own, wherever it is called."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(function, *arguments).result(seconds)
