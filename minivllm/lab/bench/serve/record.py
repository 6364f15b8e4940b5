"""What the client saw of one request, and of a whole run. All times in seconds since the run began.

       due        sent             first                                  last
        │◄─ late ──►│◄──── TTFT ─────►│◄─ gap ─►│◄─ gap ─►│     …          │
        │           │                 │◄─────── TPOT · (tokens - 1) ──────►│
        │           │◄────────────────────── E2E ─────────────────────────►│

Latencies begin when a request is sent. How much later than due that was is told beside them (`doubts.py`).

Read next: `results.py`.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field


@dataclass(slots=True)
class Record:
    """One request.

    Attributes:
        due: when the workload wanted it sent; in a closed loop, when its user was free.
        wanted_tokens: output tokens that were asked for.
        chunk_times: when each part of the answer came that bears tokens.
        prompt_tokens, output_tokens: as the server counted them; chunks, if it does not count.
        is_counted: the server has counted them.
        error: why it failed, in a sentence; empty if it did not.
    """

    request_id: str
    due: float
    wanted_tokens: int
    sent: float = 0.0
    last: float = 0.0
    chunk_times: array[float] = field(default_factory=lambda: array("d"))
    prompt_tokens: int = 0
    output_tokens: int = 0
    is_counted: bool = False
    token_ids: list[int] = field(default_factory=list)
    text: str = ""
    error: str = ""

    @property
    def is_complete(self) -> bool:
        return not self.error

    @property
    def late(self) -> float:
        return self.sent - self.due

    @property
    def ttft(self) -> float:
        return self.chunk_times[0] - self.sent

    @property
    def e2el(self) -> float:
        return self.last - self.sent

    @property
    def tpot(self) -> float | None:
        """None of a single token: there was nothing between tokens."""
        if self.output_tokens < 2:
            return None
        return (self.last - self.chunk_times[0]) / (self.output_tokens - 1)

    def gaps(self) -> list[float]:
        """Between neighbouring chunks."""
        times = self.chunk_times
        return [times[index] - times[index - 1] for index in range(1, len(times))]


@dataclass
class Run:
    """All that was sent, and what the client itself was like meanwhile.

    Attributes:
        seconds: from the first request sent to the last answer.
        client_cpu_seconds: of this process, on all its threads.
        loop_lags: by how much the event loop woke up later than it was told, looked at a hundred times a
            second: a token that came meanwhile was seen so much later.
    """

    records: list[Record]
    seconds: float
    client_cpu_seconds: float = 0.0
    loop_lags: list[float] = field(default_factory=list)

    @property
    def completed(self) -> list[Record]:
        return [record for record in self.records if record.is_complete]

    @property
    def failed(self) -> list[Record]:
        return [record for record in self.records if not record.is_complete]
