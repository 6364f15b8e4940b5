"""What has come for one caller and was not fetched yet.

The engine waits for no consumer. A slow one finds everything that came meanwhile in one output: pieces are
put together, whole texts are replaced by the last one. So there is never more than one output here.

    put ──► take, if the consumer waits                  written at once
       └──► what waits ──► next ──► the consumer         when its turn comes, or a slow client has caught up

Source: `RequestOutputCollector` of vLLM.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace

from minivllm.outputs import CompletionOutput, RequestOutput
from minivllm.sampling_params import RequestOutputKind

Take = Callable[[RequestOutput], bool]
"""Deals with an output at once and returns True, or leaves everything as it is and returns False."""


class Stream:
    """Outputs of one request, on their way to its consumer. Lives in the event loop's thread.

    Args:
        kind: "delta" outputs are pieces, others say everything so far.
        take: gets an output at the moment at which it comes, if its consumer has had all before it and waits:
            a token then costs no turn of the event loop. Never the last output, which the consumer must see.
    """

    def __init__(self, kind: RequestOutputKind, take: Take | None = None) -> None:
        self._take = take
        self._is_in_pieces = kind is RequestOutputKind.DELTA
        self._waiting: RequestOutput | None = None
        self._error: Exception | None = None
        self._waiter: asyncio.Future[None] | None = None  # of the one consumer, while there is nothing for it
        self.is_finished = False
        """The engine has nothing more to say."""
        self.is_unwanted = False
        """It was aborted before the engine had got it."""

    def put(self, output: RequestOutput) -> None:
        self.is_finished = self.is_finished or output.finished
        if self._take and not output.finished and self._is_waited_for() and self._take(output):
            return
        before = self._waiting
        self._waiting = joined(before, output) if before and self._is_in_pieces else output
        self._wake()

    def fail(self, error: Exception) -> None:
        """What came before is still delivered, then this is raised."""
        self.is_finished = True
        self._error = self._error or error
        self._wake()

    def check(self) -> None:
        """Raise what has ended the request."""
        if self._error:
            raise self._error

    async def next(self) -> RequestOutput:
        """All that has come since the last call, at least one output.

        Raises:
            Exception: the one that ended the request.
        """
        while self._waiting is None:
            self.check()
            # A future for each wait: half of what an `asyncio.Event` costs, and this is done for every token.
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        output, self._waiting = self._waiting, None
        return output

    def _is_waited_for(self) -> bool:
        """Has the consumer dealt with everything that has come, and asked for more?"""
        return self._waiter is not None and not self._waiter.done()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


def joined(earlier: RequestOutput, later: RequestOutput) -> RequestOutput:
    """Two pieces of one request as one."""
    pieces = {output.index: output for output in earlier.outputs}
    for output in later.outputs:
        before = pieces.get(output.index)
        pieces[output.index] = _joined_output(before, output) if before else output
    return replace(
        later,
        outputs=[pieces[index] for index in sorted(pieces)],
        prompt_logprobs=later.prompt_logprobs or earlier.prompt_logprobs,
    )


def _joined_output(earlier: CompletionOutput, later: CompletionOutput) -> CompletionOutput:
    logprobs = None
    if earlier.logprobs is not None and later.logprobs is not None:
        logprobs = [*earlier.logprobs, *later.logprobs]
    return replace(
        later,
        text=earlier.text + later.text,
        token_ids=[*earlier.token_ids, *later.token_ids],
        logprobs=logprobs,
    )
