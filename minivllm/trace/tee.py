"""The tee: one `emit` for all sinks of a run, and none at all if there is no sink.

Every module reports what it does by `if emit: emit(event)`. A sink is what takes these events: a recorder, a
live view, a collector of metrics. Their number decides what `emit` is:

    no sink              None                         events are not even built
    one that is safe     the sink's own `emit`        nothing in between
    any others           a tee, which guards          engine ── emit(event) ──┬──► recorder
                                                                              └──► live view

A sink that raises is dropped with a warning: it may lose its own picture of the run, never the run itself,
nor what other sinks see. An interrupt (Ctrl-C) is no fault of a sink, and passes.

Read next: `recorder.py`, the sink that writes a file.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from typing import Protocol

from minivllm.trace.events import Event

Emit = Callable[[Event], None]


class Sink(Protocol):
    """What takes the events of a run. The first one is the `TraceHeader`."""

    def emit(self, event: Event) -> None:
        """Take one event. It is called within the step, so it should return within microseconds.

        A sink that has caught all its own errors says so by an attribute `is_safe = True`. One that looks at
        no texts says `wants_texts = False`, and one that does not look at those of a prompt's tokens
        `wants_prompt_texts = False`: to make them takes up to 10 µs a token.
        """


def make_emit(sinks: Iterable[Sink]) -> Emit | None:
    """The function that hands each event to all sinks; None if there are none."""
    sinks = tuple(sinks)
    if not sinks:
        return None
    if len(sinks) == 1 and getattr(sinks[0], "is_safe", False):
        return sinks[0].emit
    return _Tee(sinks).emit


class _Tee:
    def __init__(self, sinks: tuple[Sink, ...]) -> None:
        self._sinks = sinks

    def emit(self, event: Event) -> None:
        for sink in self._sinks:
            try:
                sink.emit(event)
            except Exception as error:
                self._sinks = tuple(other for other in self._sinks if other is not sink)
                warnings.warn(
                    f"{type(sink).__name__} gets no more events of this run, because it failed at "
                    f"{type(event).__name__}: {type(error).__name__}: {error}",
                    stacklevel=2,
                )
