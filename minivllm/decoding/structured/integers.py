"""Whole numbers in decimal, from a lower to an upper bound, as expressions.

    17 … 342     1[7-9] | [2-9][0-9] | [12][0-9][0-9] | 3([0-3][0-9] | 4[0-2])

Numbers of one length are cut where a digit decides: below the lowest first digit nothing may come, above it
anything may follow. No number begins with 0 but 0 itself, and there is no −0.

Where a side has no bound, a number has at most 16 digits: a small model would write digits for ever, and
readers of JSON turn longer ones into something else.

Read next: `json_schema.py`, which uses it for `minimum` and `maximum`.
"""

from __future__ import annotations

from minivllm.decoding.structured.expressions import (
    EMPTY,
    Characters,
    Expression,
    Repeat,
    choice,
    concat,
    text,
)

MOST_DIGITS = 16
DIGIT = Characters(((48, 57),))
NONZERO = Characters(((49, 57),))


def integer(low: int | None = None, high: int | None = None) -> Expression:
    """Decimal numbers from `low` to `high`, both included; None for no bound. Nothing, if there is none."""
    most = 10**MOST_DIGITS - 1
    least, largest = (-most if low is None else low), (most if high is None else high)
    if low is not None and high is None and low > 0:
        largest = max(most, 10 ** len(str(low)) - 1)
    if high is not None and low is None and high < 0:
        least = min(-most, 1 - 10 ** len(str(-high)))
    if least == -most and largest == most:
        digits = concat(NONZERO, Repeat(DIGIT, 0, MOST_DIGITS - 1))
        return choice([text("0"), concat(Repeat(text("-"), 0, 1), digits)])
    options = []
    if least < 0:
        options.append(concat(text("-"), _natural(max(1, -largest), -least)))
    if largest >= 0:
        options.append(_natural(max(0, least), largest))
    return choice(options)


def _natural(low: int, high: int) -> Expression:
    """Numbers from `low` to `high`, none of them negative."""
    options = []
    while low <= high:
        last = min(high, 10 ** len(str(low)) - 1)  # the last of its length
        options.append(_same_length(str(low), str(last)))
        low = last + 1
    return choice(options)


def _same_length(low: str, high: str) -> Expression:
    """Digits from `low` to `high`, which are equally long."""
    if not low:
        return EMPTY
    first, last, rest = int(low[0]), int(high[0]), len(low) - 1
    if low[1:] == "0" * rest and high[1:] == "9" * rest:
        return concat(_digits(first, last), _any(rest))
    if first == last:
        return concat(_digits(first, first), _same_length(low[1:], high[1:]))
    options = [
        concat(_digits(first, first), _same_length(low[1:], "9" * rest)),
        concat(_digits(last, last), _same_length("0" * rest, high[1:])),
    ]
    if first + 1 < last:
        options.append(concat(_digits(first + 1, last - 1), _any(rest)))
    return choice(options)


def _digits(first: int, last: int) -> Expression:
    return Characters(((48 + first, 48 + last),))


def _any(count: int) -> Expression:
    return Repeat(DIGIT, count, count) if count else EMPTY


def decimal(
    low: int | None, high: int | None, *, open_low: bool = False, open_high: bool = False
) -> Expression:
    """Numbers with or without a fraction, between whole bounds; open ones are left out themselves."""
    options = []
    if low is None or low < 0:
        least, is_open = (-high, open_high) if high is not None and high < 0 else (0, True)
        below = _magnitudes(least, None if low is None else -low, is_open, open_low)
        options.append(concat(text("-"), below))
    if high is None or high >= 0:
        least, is_open = (low, open_low) if low is not None and low >= 0 else (0, False)
        options.append(_magnitudes(least, high, is_open, open_high))
    return choice(options)


def _magnitudes(low: int, high: int | None, open_low: bool, open_high: bool) -> Expression:
    """The same, of numbers that are not negative."""
    point, zero = text("."), text("0")
    fraction = concat(point, Repeat(DIGIT, 1, MOST_DIGITS))
    zeros = Repeat(concat(point, Repeat(zero, 1, MOST_DIGITS)), 0, 1)
    not_zero = concat(point, Repeat(zero, 0, MOST_DIGITS - 1), NONZERO, Repeat(DIGIT, 0, MOST_DIGITS))
    if high is not None and low >= high:
        is_one = low == high and not open_low and not open_high
        return concat(text(str(low)), zeros) if is_one else choice([])
    options = [concat(text(str(low)), not_zero if open_low else Repeat(fraction, 0, 1))]
    options.append(concat(integer(low + 1, None if high is None else high - 1), Repeat(fraction, 0, 1)))
    if high is not None and not open_high:
        options.append(concat(text(str(high)), zeros))
    return choice(options)
