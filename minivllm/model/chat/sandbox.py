"""Run a chat template, which is a program from a downloaded file, with bounded work.

Jinja's own sandbox keeps a template from files and from Python's insides, but lets it work for ever: three
nested ranges, `'x' * 10**10`, or `tojson(indent=10**9)` hang a server. A clock is no help (one call in C
cannot be interrupted, and the same template would pass or fail with the load), so work is counted, in steps
of a `Budget`. Three things make the count complete:

    `metering.py`   loops and macros pay for their body each time it runs
    here            every value pays its size where it is made: none grows, is compared or printed for nothing
    `prices.py`     what makes much of little (`*`, `%`, `center`, `replace`, `join` …) pays before it runs

Source: Jinja's sandbox (`jinja2.sandbox`), and the functions that `transformers` adds for chat templates.
Read next: `budget.py`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from datetime import datetime
from types import CodeType
from typing import Any

import jinja2
import jinja2.ext
from jinja2 import nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment, SandboxedFormatter
from jinja2.utils import Namespace

from minivllm.model.chat.budget import CALL_STEPS, MAX_BITS, MAX_STEPS, MAX_WIDTH, Budget, TemplateLimitError
from minivllm.model.chat.metering import COPIED, TICK, WEIGH, Metering
from minivllm.model.chat.prices import (
    COMPARING_TESTS,
    FILTERS,
    FILTERS_AT_ONCE,
    METHODS,
    METHODS_AT_ONCE,
    PRICES,
    at_once,
    check_width,
    price_of_percent,
    priced,
    priced_join,
)

MAX_TEMPLATE_CHARACTERS = 100_000
"""Compiling takes time, too: so many take a few seconds. Templates of models have 500 to 30,000."""


class CompiledTemplate:
    """A template that has been parsed, to be rendered any number of times, by any thread."""

    def __init__(self, source: str) -> None:
        """Raises: what `parse` raises, or whatever Python's compiler says of the code."""
        self._code: CodeType = _Environment(Budget()).compile(parse(source))

    def render(self, variables: Mapping[str, Any], steps: int = MAX_STEPS) -> str:
        """The text. `variables` must be plain data: strings, numbers, lists and dictionaries.

        Raises:
            TemplateLimitError: it works, or writes, too much.
            Exception: a template is a program, and may raise anything.
        """
        environment = _Environment(Budget(steps))  # of its own, because the budget is
        template = jinja2.Template.from_code(environment, self._code, environment.make_globals(None))
        return environment.concat(template.generate(variables))


def parse(source: str) -> nodes.Template:
    """The syntax tree of a template.

    Raises:
        TemplateLimitError: it is too long.
        Exception: it is broken.
    """
    if len(source) > MAX_TEMPLATE_CHARACTERS:
        raise TemplateLimitError(
            f"it has {len(source):,} characters, and may have {MAX_TEMPLATE_CHARACTERS:,}"
        )
    return _Environment(Budget()).parse(source)


class _Environment(ImmutableSandboxedEnvironment):
    """Jinja as `transformers` sets it up, with a budget, and without what has no price."""

    intercepted_binops = frozenset(("+", "-", "*", "/", "//", "%", "**"))

    def __init__(self, budget: Budget) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            optimized=False,  # constants are not computed while compiling: that would be work, too
            extensions=["jinja2.ext.loopcontrols", _GenerationTag],
            finalize=jinja2.pass_context(lambda context, value: budget.weigh(value)),
        )
        self.budget = budget
        self.concat = lambda pieces: "".join(budget.counted(pieces))  # type: ignore[method-assign]
        filters = {name: priced(budget, self.filters[name], PRICES.get(name)) for name in FILTERS}
        filters |= {name: at_once(budget, self.filters[name]) for name in FILTERS_AT_ONCE}
        filters["tojson"] = priced(budget, _to_json(budget))
        filters["join"] = priced_join(budget, self.filters["join"])
        self.filters = {**filters, WEIGH: budget.weigh, COPIED: budget.copied, TICK: budget.tick}
        self.tests = {name: at_once(budget, test) for name, test in self.tests.items()}
        self.tests |= {name: priced(budget, self.tests[name]) for name in COMPARING_TESTS}
        del self.globals["lipsum"]
        self.globals.update(
            raise_exception=raise_exception, strftime_now=strftime_now, namespace=_TemplateNamespace
        )

    def _generate(self, source: nodes.Template, *args: Any, **options: Any) -> str:
        return super()._generate(Metering(self).visit(source), *args, **options)

    def call(self, context: Any, function: Any, *args: Any, **options: Any) -> Any:
        receiver = getattr(function, "__self__", None)
        own = {name: value for name, value in options.items() if name not in ("_loop_vars", "_block_vars")}
        self.budget.spend(CALL_STEPS + self.budget.size((args, own)))
        if isinstance(receiver, str | dict) and function.__name__ in METHODS_AT_ONCE:
            return super().call(context, function, *args, **options)
        if _is_data(receiver):
            self.budget.weigh(receiver)
        if isinstance(receiver, str):
            if function.__name__ in PRICES:
                PRICES[function.__name__](self.budget, receiver, *args, **own)
            elif function.__name__ == "join" and args:
                args = (self.budget.counted(args[0], len(receiver)), *args[1:])
        return self.budget.weigh(super().call(context, function, *args, **options))

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "*":
            for value, times in ((left, right), (right, left)):
                if isinstance(value, str | list | tuple) and isinstance(times, int) and times > 0:
                    self.budget.spend(self.budget.size(value) * times)
        elif operator == "**" and isinstance(left, int) and isinstance(right, int):
            if abs(left) > 1 and left.bit_length() * right > MAX_BITS:
                raise TemplateLimitError(f"it makes a number of more than {MAX_BITS:,} bits")
        elif operator == "%" and isinstance(left, str):
            price_of_percent(self.budget, left, right)
        return self.budget.weigh(super().call_binop(context, operator, left, right))

    def getitem(self, obj: Any, argument: Any) -> Any:
        self.budget.spend(CALL_STEPS if isinstance(argument, str | int) else self.budget.size(argument))
        return super().getitem(obj, argument)

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        if callable(value) and _is_data(obj):
            kind = next((kind for kind in METHODS if isinstance(obj, kind)), None)
            return kind is not None and attr in METHODS[kind]
        return super().is_safe_attribute(obj, attr, value)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """`str.format` and `str.format_map`, which can read attributes and write columns."""
        text = getattr(value, "__self__", None)
        if not isinstance(text, str) or getattr(value, "__name__", "") not in ("format", "format_map"):
            return None

        def formatted(*args: Any, **fields: Any) -> str:
            if value.__name__ == "format_map":
                args, fields = (), dict(*args, **fields)
            self.budget.spend(text.count("{") * self.budget.size((args, fields)))
            return str(_Formatter(self).vformat(text, args, fields))

        return formatted


class _Formatter(SandboxedFormatter):
    def format_field(self, value: Any, format_spec: str) -> Any:
        for digits in re.findall(r"\d+", format_spec):
            check_width(digits)
        return super().format_field(value, format_spec)


def _to_json(budget: Budget) -> Callable[..., str]:
    def to_json(
        value: Any,
        ensure_ascii: bool = False,
        indent: int | str | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> str:
        """As in `transformers`: without Jinja's escapes of HTML; here piece by piece, and paid by piece."""
        width = len(indent) if isinstance(indent, str) else indent or 0
        if width > MAX_WIDTH:
            raise TemplateLimitError(f"it indents by {indent!r:.20}, and may by {MAX_WIDTH:,}")
        encoder = json.JSONEncoder(
            ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
        )
        return "".join(budget.counted(encoder.iterencode(value)))

    return to_json


def raise_exception(message: object) -> None:
    raise jinja2.TemplateError(f"{message!s:.1000}")


def strftime_now(form: str) -> str:
    if len(form) > MAX_WIDTH:
        raise TemplateLimitError(
            f"it formats a date with {len(form):,} characters, and may with {MAX_WIDTH:,}"
        )
    return datetime.now().strftime(form)


class _TemplateNamespace(Namespace):
    """`namespace()`, whose names never begin with an underscore (they could reach Python's insides)."""

    def __init__(*args: Any, **attributes: Any) -> None:  # so that `namespace(self=…)` works
        self, *rest = args
        Namespace.__init__(self)
        for name, value in dict(*rest, **attributes).items():
            self[name] = value

    def __setitem__(self, name: str, value: Any) -> None:
        if str(name).startswith("_"):
            raise jinja2.exceptions.SecurityError(f"a namespace cannot have the name {name!r}")
        super().__setitem__(name, value)

    def __repr__(self) -> str:  # not what it holds, which may be itself
        return "<Namespace>"


def _is_data(value: object) -> bool:
    """Is this plain data, whose methods are Python's, and not one of Jinja's own objects?"""
    return type(value).__module__ == "builtins" or isinstance(value, str | tuple)


class _GenerationTag(jinja2.ext.Extension):
    """`{% generation %} … {% endgeneration %}` marks what to train on: here the marks are dropped."""

    tags = {"generation"}  # noqa: RUF012 (Jinja's own way)

    def parse(self, parser: jinja2.parser.Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)
