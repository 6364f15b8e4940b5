"""What a chat template may call, and what it costs.

A method or a filter that is not named here cannot be called. Most make nothing larger than what they get, and
cost what they get and what they give. Those in `PRICES` make much of little, or work much for it: they are
paid before they run.

Read next: `sandbox.py`, which collects the prices.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import wraps
from typing import Any

from minivllm.model.chat.budget import CALL_STEPS, MAX_WIDTH, Budget, TemplateLimitError


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


METHODS: dict[type, frozenset[str]] = {
    str: _words(
        """capitalize casefold center count endswith expandtabs find index isalnum isalpha isascii isdecimal
        isdigit isidentifier islower isnumeric isprintable isspace istitle isupper join ljust lower lstrip
        partition removeprefix removesuffix replace rfind rindex rjust rpartition rsplit rstrip split
        splitlines startswith strip swapcase title upper zfill"""
    ),
    dict: _words("copy get items keys values"),
    list: _words("copy count index"),
    tuple: _words("count index"),
}
"""Of plain data; none makes anything larger than what it gets, except those in `PRICES`."""

FILTERS = _words(
    """abs attr capitalize center dictsort e escape float forceescape format groupby indent int items last
    list lower map max min random reject rejectattr replace reverse round safe select selectattr sort string
    sum title trim truncate unique upper urlencode wordcount"""
)
"""Jinja's own; `tojson` and `join` besides."""

METHODS_AT_ONCE = _words("endswith get items keys startswith values")
FILTERS_AT_ONCE = _words("count d default first length")
"""These do not walk over what they get, and so are cheap however long it is. So are most tests, except:"""
COMPARING_TESTS = _words("!= < <= == > >= eq equalto ge greaterthan gt in le lessthan lower lt ne upper")

Price = Callable[..., None]


def _width(budget: Budget, text: str, width: Any = 80, *_: Any) -> None:
    if isinstance(width, int):
        budget.spend_characters(width)


def _tabs(budget: Budget, text: str, tabsize: Any = 8) -> None:
    budget.spend_characters(text.count("\t") * abs(tabsize))


def _replacement(budget: Budget, text: Any, old: Any, new: Any, *_: Any, **__: Any) -> None:
    budget.spend_characters(str(text).count(str(old)) * len(str(new)))


def _product(budget: Budget, text: Any, *wanted: Any, **named: Any) -> None:
    """Searching from the right, or for any of many characters, compares each with each."""
    for value in (*wanted, *named.values()):
        if isinstance(value, str):
            budget.spend_characters(len(str(text)) * len(value))


def _indentation(budget: Budget, text: Any, width: Any = 4, *_: Any, **__: Any) -> None:
    text = str(text)
    budget.spend_characters((1 + text.count("\n")) * (width if isinstance(width, int) else len(str(width))))


def _few_digits(budget: Budget, value: Any, precision: Any = 0, *_: Any, **__: Any) -> None:
    if isinstance(precision, int) and abs(precision) > MAX_WIDTH:
        raise TemplateLimitError(f"it rounds to {precision} digits, and may to {MAX_WIDTH:,}")


def _numbers(budget: Budget, items: Any, attribute: Any = None, start: Any = 0) -> None:
    if not isinstance(start, int | float):
        raise TemplateLimitError("it may sum up numbers only")


_PERCENT = re.compile(r"%%|%(\([^()]*\))?[#0 +-]*(?P<width>\*|\d*)(\.(?P<precision>\*|\d*))?")
_PERCENT_KEY_IN_PARENTHESES = re.compile(r"%\([^)]*\(")


def price_of_percent(budget: Budget, form: Any, *args: Any, **fields: Any) -> None:
    """`'%s and %5d' % …`: a width may be a million, and a field may be named a hundred times."""
    form = str(form)
    for found in _PERCENT.finditer(form):
        check_width(found["width"] or "")
        check_width(found["precision"] or "")
    if _PERCENT_KEY_IN_PARENTHESES.search(form):
        raise TemplateLimitError("it formats a key that has parentheses")
    budget.spend((1 + form.count("%")) * budget.size((args, fields)))


def check_width(digits: str) -> None:
    if digits == "*" or len(digits) > len(str(MAX_WIDTH)) or int(digits or 0) > MAX_WIDTH:
        raise TemplateLimitError(f"it formats to a width of {digits}, and may to {MAX_WIDTH:,}")


PRICES: dict[str, Price] = {
    **dict.fromkeys(("center", "ljust", "rjust", "zfill"), _width),
    **dict.fromkeys(
        ("strip", "lstrip", "rstrip", "trim", "rfind", "rindex", "rsplit", "rpartition"), _product
    ),
    "expandtabs": _tabs,
    "replace": _replacement,
    "indent": _indentation,
    "round": _few_digits,
    "sum": _numbers,
    "format": price_of_percent,
}
"""Of methods and filters, whose first argument is the same: paid before they run, because their results may
be large, or their work."""


def priced(budget: Budget, function: Any, price: Price | None = None) -> Callable[..., Any]:
    """A filter or test that pays for its arguments, for its work, and for its result."""
    passes = hasattr(function, "jinja_pass_arg")  # is given Jinja's context, or the like, before the value

    @wraps(function)  # keeps the mark
    def bounded(*args: Any, **options: Any) -> Any:
        values = args[1:] if passes else args
        budget.spend(CALL_STEPS + budget.size((values, options)))
        if price is not None:
            price(budget, *values, **options)
        return budget.weigh(function(*args, **options))

    return bounded


def at_once(budget: Budget, function: Any) -> Callable[..., Any]:
    @wraps(function)
    def bounded(*args: Any, **options: Any) -> Any:
        budget.spend(CALL_STEPS)
        return function(*args, **options)

    return bounded


def priced_join(budget: Budget, join: Callable[..., str]) -> Callable[..., str]:
    @wraps(join)
    def bounded(context: Any, value: Any, d: Any = "", attribute: Any = None) -> str:
        return join(context, budget.counted(value, len(str(d))), d, attribute)

    return bounded
