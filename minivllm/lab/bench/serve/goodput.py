"""Goodput: requests a second that were served as well as was promised (an SLO).

    --goodput ttft:100 tpot:20        the first token within 100 ms, and 20 ms a token after that

A server can have a high throughput and let everybody wait; its goodput is low. A request counts if it meets
all bounds. One that failed does not count.

Source: Zhong et al., "DistServe" (OSDI 2024); the form is that of `vllm bench serve`.
Read next: `results.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from minivllm.lab.bench.serve.record import Record
from minivllm.validation import check_number

BOUNDED = ("ttft", "tpot", "e2el")


def parse_goodput(words: Sequence[str]) -> dict[str, float]:
    """Bounds in milliseconds, by name: of `["ttft:100 tpot:20"]` or `["ttft:100", "tpot:20"]`.

    Raises:
        ValueError: it is not NAME:MILLISECONDS, or a name comes twice.
    """
    bounds: dict[str, float] = {}
    for word in " ".join(words).replace(",", " ").split():
        name, colon, number = word.partition(":")
        if name not in BOUNDED or not colon:
            raise ValueError(
                f"goodput must be bounds in milliseconds such as ttft:100 tpot:20, of {', '.join(BOUNDED)}; "
                f"got {word!r}"
            )
        if name in bounds:
            raise ValueError(f"goodput has two bounds for {name}")
        try:
            value = float(number)
        except ValueError:
            raise ValueError(f"goodput {name} must be a number of milliseconds, got {number!r}") from None
        bounds[name] = check_number(f"goodput {name}", value, more_than=0)
    return bounds


def is_good(record: Record, bounds: Mapping[str, float]) -> bool:
    """Did this request meet all bounds?"""
    if not record.is_complete:
        return False
    seconds = {"ttft": record.ttft, "tpot": record.tpot or 0.0, "e2el": record.e2el}
    return all(seconds[name] * 1e3 <= bound for name, bound in bounds.items())
