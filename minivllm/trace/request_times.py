"""One request on its way: when it came, was scheduled and got its tokens, and how many.

    arrival ──► scheduled ──► first token ──► … ──► last token, finished
       queue time      prefill          decode

Kept while the request runs (`engine_counts.py`), and told once when it is over: to the metrics, and to the
spans of OpenTelemetry (`minivllm/server/request_spans.py`).
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(slots=True)
class RequestTimes:
    """What must be remembered of a request until it ends. Times are those of events, in seconds."""

    arrival: float
    num_prompt_tokens: int
    max_tokens: int
    num_outputs: int
    sequences: set[int]
    """Those that go on."""
    all_sequences: list[int] = field(default_factory=list)
    num_generated: int = 0
    longest_output: int = 0
    """Tokens of its longest output."""
    num_cached_tokens: int = 0
    """Prompt tokens that it did not have to compute when it was first scheduled."""
    num_preemptions: int = 0
    is_whole: bool = True
    """Whether all that it did was told. In a trace that begins in the middle of a run some is not."""
    scheduled: float | None = None
    first_token: float | None = None
    last_token: float = 0.0
    num_steps_with_tokens: int = 0
    reason: str = ""
    finished: float = 0.0
