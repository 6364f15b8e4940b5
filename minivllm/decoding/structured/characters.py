"""Sets of characters, and the bytes that spell them in UTF-8.

A model writes bytes, a pattern speaks of characters. A range of code points becomes a few runs of byte
ranges:

    U+0000 … U+10FFFF     00–7F
                          C2–DF 80–BF
                          E0    A0–BF 80–BF         (surrogates, U+D800 … U+DFFF, are no characters)
                          …

Source: the algorithm of Russ Cox's RE2 and of the crate `utf8-ranges`. Read next: `rules.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

Ranges = tuple[tuple[int, int], ...]

LAST = 0x10FFFF
SURROGATES = (0xD800, 0xDFFF)
LONGEST = (0x7F, 0x7FF, 0xFFFF, LAST)
"""The last code point that takes one byte, two, three, four."""


def normal(ranges: Iterable[tuple[int, int]]) -> Ranges:
    """The same set in its one form: ascending, apart, without surrogates."""
    merged: list[tuple[int, int]] = []
    for low, high in sorted(ranges):
        if low > high:
            continue
        if merged and low <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(high, merged[-1][1]))
        else:
            merged.append((low, high))
    return tuple(_without(merged, SURROGATES))


def _without(ranges: Iterable[tuple[int, int]], hole: tuple[int, int]) -> Iterator[tuple[int, int]]:
    for low, high in ranges:
        if high < hole[0] or low > hole[1]:
            yield low, high
            continue
        if low < hole[0]:
            yield low, hole[0] - 1
        if high > hole[1]:
            yield hole[1] + 1, high


def complement(ranges: Iterable[tuple[int, int]]) -> Ranges:
    """All other characters."""
    found, start = [], 0
    for low, high in normal(ranges):
        found.append((start, low - 1))
        start = high + 1
    return normal([*found, (start, LAST)])


def minus(ranges: Ranges, others: Ranges) -> Ranges:
    """The characters of the first set that are not in the second."""
    return complement((*complement(ranges), *others))


def common(ranges: Ranges, others: Ranges) -> Ranges:
    """The characters of both sets."""
    return minus(ranges, complement(others))


def byte_runs(low: int, high: int) -> Iterator[tuple[tuple[int, int], ...]]:
    """Runs of byte ranges that spell the code points `low … high`, and no others."""
    for longest in LONGEST:
        if low <= longest < high:
            yield from byte_runs(low, longest)
            yield from byte_runs(longest + 1, high)
            return
    if high <= LONGEST[0]:
        yield ((low, high),)
        return
    for shift in (6, 12, 18):  # cut where the last bytes do not run through all of 80–BF
        rest = (1 << shift) - 1
        if low & ~rest != high & ~rest:
            if low & rest:
                yield from byte_runs(low, low | rest)
                yield from byte_runs((low | rest) + 1, high)
                return
            if high & rest != rest:
                yield from byte_runs(low, (high & ~rest) - 1)
                yield from byte_runs(high & ~rest, high)
                return
    yield tuple(zip(chr(low).encode(), chr(high).encode(), strict=True))
