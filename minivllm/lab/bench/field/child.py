"""The connection to one peer's process, and everything that can go wrong with it, in sentences.

A peer is a program of another project. It may be missing, refuse the model, crash, hang, print what is no
answer, or give other numbers of tokens than were asked for. Each of these becomes a `PeerError` that says
so; the process is ended, and the comparison goes on without it.

Read next: `serve.py`, the other end of the connection.
"""

from __future__ import annotations

import json
import math
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any

LONGEST_QUOTE = 200


class PeerError(RuntimeError):
    """Why a peer is out of the comparison."""


@dataclass(frozen=True)
class Answer:
    """One round of a peer."""

    seconds: float
    cpu_seconds: float
    """Of its process meanwhile, on all threads: not to be counted as those of other programs."""
    token_ids: list[list[int]]


class Child:
    """A peer's process: started once, told when to compute, ended with everything that it has started."""

    def __init__(self, command: Sequence[str | Path], variables: Mapping[str, str], timeout: float) -> None:
        self._timeout = timeout
        # A file, because a pipe that this process does not read would fill up and block the peer.
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115, closed in `close`
        self._lines: SimpleQueue[str | None] = SimpleQueue()
        try:
            self._process = subprocess.Popen(
                [str(part) for part in command],
                env=dict(variables),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                text=True,
                encoding="utf-8",
                errors="replace",
                start_new_session=True,  # Ctrl-C is for us, and we end it
            )
        except OSError as error:
            self._errors.close()
            raise PeerError(f"it cannot be started: {error.strerror or error}") from error
        Thread(target=self._read, daemon=True).start()

    def start(self) -> dict[str, Any]:
        """Wait until the model is loaded; facts about the peer."""
        facts = self._answer("the start").get("ready")
        if not isinstance(facts, dict):
            raise PeerError("it did not say whether it is ready")
        return facts

    def warm_up(self, measure: str) -> None:
        """Let it set up what the first call pays for."""
        self._exchange({"warm_up": measure}, f"warm-up of {measure}")

    def go(self, measure: str, lengths: Sequence[int]) -> Answer:
        """One round, checked: exactly the tokens that were asked for, in a time that can be one."""
        said = self._exchange({"go": measure}, measure)
        seconds, cpu, rows = (said.get(name) for name in ("seconds", "cpu_seconds", "token_ids"))
        if not (isinstance(seconds, float) and isinstance(cpu, float)):
            raise PeerError(f"its answer to {measure} has no time")
        if not 0 < seconds < math.inf:  # not a number is refused as well
            raise PeerError(f"it says that {measure} took {seconds} seconds")
        if not isinstance(rows, list) or not all(isinstance(row, list) for row in rows):
            raise PeerError(f"its answer to {measure} has no token ids")
        if len(rows) != len(lengths):
            raise PeerError(f"it answered {len(rows)} requests, {len(lengths)} were asked")
        for index, (row, length) in enumerate(zip(rows, lengths, strict=True)):
            if len(row) != length:
                raise PeerError(f"request {index} came back with {len(row)} tokens, {length} were asked for")
        return Answer(seconds, cpu, rows)

    def close(self) -> None:
        """End the process and all that it has started."""
        import psutil

        try:
            family = psutil.Process(self._process.pid).children(recursive=True)
        except psutil.Error:
            family = []
        for process in (self._process, *family):
            try:
                process.kill()
            except (psutil.Error, OSError):
                continue
        self._process.wait()
        for pipe in (self._process.stdin, self._errors):
            try:
                if pipe is not None:
                    pipe.close()
            except OSError:  # what was not sent yet cannot be sent any more
                continue

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            for line in lines:
                self._lines.put(line)
        self._lines.put(None)

    def _exchange(self, order: Mapping[str, str], what: str) -> dict[str, Any]:
        """Send one line, wait for one line."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(order) + "\n")
            self._process.stdin.flush()
        except OSError:
            raise PeerError(self._last_words()) from None
        return self._answer(what)

    def _answer(self, what: str) -> dict[str, Any]:
        try:
            line = self._lines.get(timeout=self._timeout)
        except Empty:
            raise PeerError(f"no answer to {what} within {self._timeout:g} seconds") from None
        if line is None:
            raise PeerError(self._last_words())
        try:
            said = json.loads(line)
        except ValueError:
            said = None
        if not isinstance(said, dict):
            raise PeerError(f"it answered {_quote(line)} where a JSON object was expected")
        if "error" in said:
            raise PeerError(_quote(str(said["error"])))
        return said

    def _last_words(self) -> str:
        """How it ended, and the last line that it left on standard error."""
        try:
            code = self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            return "it closed its output"
        end = f"was killed by signal {-code}" if code < 0 else f"stopped with exit status {code}"
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        return f"it {end}" + (f": {_quote(lines[-1])}" if lines else "")


def _quote(text: str) -> str:
    text = text.strip()
    return text if len(text) <= LONGEST_QUOTE else text[:LONGEST_QUOTE] + "…"
