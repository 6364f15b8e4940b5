"""Turns: calls from several threads, one at a time, in the order in which they came.

    thread A    generate ────────►
    thread B       wait ┄┄┄┄┄┄┄┄┄┄ generate ────►
    thread C           wait ┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄ generate ────►

`threading.Lock` lets any of the waiting threads go next, and an interrupt just before it is released leaves
it locked for ever. Here a call draws a ticket, and the ticket counts as long as the function that drew it
runs. So there is nothing that must be released: when a call has returned, raised, or died with its thread,
wherever Ctrl-C has struck, its ticket is void. Leaving only wakes the next call at once.

Source: the bakery algorithm (Lamport, 1974) for the tickets. Read next: `minivllm/llm.py`, which uses it.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from threading import get_ident
from types import FrameType

PATIENCE_SECONDS = 0.1
"""So often a waiting call looks for itself, in case that an interrupt has kept another from waking it."""


@dataclass(frozen=True, eq=False, slots=True)
class Ticket:
    """The place of a call in the queue. `call` is its frame: a function while it runs."""

    thread: int
    call: FrameType
    bell: SimpleQueue[None]

    @property
    def is_valid(self) -> bool:
        try:
            self.call.clear()  # Python refuses to clear a frame that is running; in others nothing is lost
        except RuntimeError:
            return True
        return False


class Turns:
    """A queue of calls, of which only the first one may go on.

        turns.wait_for(sys._getframe())
        try:
            …
        finally:
            turns.pass_on()

    No lock guards the list of tickets: each line changes it once, in C, and any thread may remove void ones.
    """

    def __init__(self) -> None:
        self._tickets: list[Ticket] = []

    def wait_for(self, call: FrameType) -> None:
        """Wait until it is the turn of the function with this frame, which is the caller's own.

        Raises:
            RuntimeError: this thread is in the queue already, so its turn would never come.
        """
        thread = get_ident()
        if any(ticket.thread == thread for ticket in self._valid()):
            raise RuntimeError(
                "this LLM is in the middle of a call of the same thread: what runs within a call (a policy, "
                "a sink) cannot make another one"
            )
        ticket = Ticket(thread, call, SimpleQueue())
        self._tickets.append(ticket)
        while self._valid()[0] is not ticket:
            with suppress(Empty):
                ticket.bell.get(timeout=PATIENCE_SECONDS)

    def pass_on(self) -> None:
        """The call of this thread is over: it is the next one's turn."""
        thread = get_ident()
        for ticket in self._tickets.copy():
            if ticket.thread == thread:
                self._remove(ticket)
        for following in self._valid()[:1]:
            following.bell.put(None)

    def _valid(self) -> list[Ticket]:
        """The tickets of calls that run or wait, in their order; the others are removed."""
        valid = []
        for ticket in self._tickets.copy():
            if ticket.is_valid:
                valid.append(ticket)
            else:
                self._remove(ticket)
        return valid

    def _remove(self, ticket: Ticket) -> None:
        with suppress(ValueError):  # another thread was faster
            self._tickets.remove(ticket)
