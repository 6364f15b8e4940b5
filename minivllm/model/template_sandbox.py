"""Run a chat template, which is a program from a downloaded file, with bounded work.

Jinja's own sandbox keeps a template from files and from Python's insides, but lets it work for ever: three
nested ranges, `'x' * 10**10`, or `tojson(indent=10**9)` hang a server. A clock is no help (one call in C
cannot be interrupted, and the same template would pass or fail with the load), so work is counted:

    one step = one node of the template that runs, one element of a list, or 32 characters

Every rendering has a `Budget` of steps. Three things make the count complete. Loops and macros pay for
their body each time it runs (`_Metering` writes that into the syntax tree). Every value pays its size where
it is made, so that none can grow unseen, nor be compared or printed for nothing. And what makes much of
little (`*`, `**`, `%`, `center`, `replace`, `join` …) pays *before* it runs; such functions are only those
that are listed here, each with its price, and a template that calls another is refused by name.

Source: Jinja's sandbox (`jinja2.sandbox`), and the functions that `transformers` adds for chat templates.
Read next: `chat_template.py`, which chooses a template and gives it a conversation.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, ItemsView, Iterable, Iterator, KeysView, Mapping, ValuesView
from datetime import datetime
from functools import wraps
from types import CodeType, GeneratorType
from typing import Any

import jinja2
import jinja2.ext
from jinja2 import nodes
from jinja2.runtime import LoopContext
from jinja2.sandbox import ImmutableSandboxedEnvironment, SandboxedFormatter
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

MAX_STEPS = 2_000_000
"""Of one rendering."""
CHARACTERS_PER_STEP = 32
CALL_STEPS = 10
"""Of a call of anything, besides what it works on."""
MAX_TEMPLATE_CHARACTERS = 250_000
"""The longest templates that people use have a fifth of it; compiling takes time, too."""
MAX_WIDTH = 1_000
"""Of a column, an indentation, or a date's format."""
MAX_BITS = 4_096
"""Of a whole number."""


class TemplateLimitError(jinja2.TemplateRuntimeError):
    """A template that does more than a chat template may."""


class CompiledTemplate:
    """A template that has been parsed, to be rendered any number of times, by any thread."""

    def __init__(self, source: str) -> None:
        """Raises: jinja2.TemplateError, or whatever else Python's or Jinja's compiler says."""
        if len(source) > MAX_TEMPLATE_CHARACTERS:
            raise TemplateLimitError(
                f"it has {len(source):,} characters, and may have {MAX_TEMPLATE_CHARACTERS:,}"
            )
        self._code: CodeType = _Environment(Budget()).compile(source)

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
    """The syntax tree of a template, to ask questions about."""
    return _Environment(Budget()).parse(source)


_COLLECTIONS: Any = (list, tuple, set, frozenset, KeysView, ValuesView, ItemsView)


class Budget:
    """The steps that one rendering has left."""

    def __init__(self, steps: int = MAX_STEPS) -> None:
        self.steps = self.left = steps

    def spend(self, steps: int) -> None:
        self.left -= steps
        if self.left < 0:
            raise TemplateLimitError(f"it takes more than {self.steps:,} steps")

    def spend_characters(self, count: int) -> None:
        self.spend(1 + count // CHARACTERS_PER_STEP)

    def size(self, value: Any) -> int:
        """What it takes to walk over a value, parts that occur twice counted twice, in steps.

        Larger than `left` if it is too large: what contains itself is walked over until then.
        """
        steps, waiting = 1, [value]
        while waiting and steps <= self.left:
            item = waiting.pop()
            if isinstance(item, str):
                steps += len(item) // CHARACTERS_PER_STEP
            elif isinstance(item, int):
                if item.bit_length() > MAX_BITS:
                    raise TemplateLimitError(f"it makes a number of more than {MAX_BITS:,} bits")
            elif isinstance(item, _COLLECTIONS):
                steps += len(item)
                waiting += item
            elif isinstance(item, dict):
                steps += 2 * len(item)
                waiting += [*item, *item.values()]
            elif isinstance(item, range):
                steps += len(item)
            elif isinstance(item, LoopContext):  # `loop` can be walked over, too
                waiting.append(item._iterable)
        return steps

    def weigh(self, value: Any) -> Any:
        """Pay for a value as large as it is, and hand it on; what comes one by one is paid so."""
        if isinstance(value, GeneratorType):
            return self.counted(value)
        self.spend(self.size(value))
        return value

    def copied(self, value: Any) -> Any:
        """Pay for a slice, whose parts are paid for."""
        self.spend_characters(len(value)) if isinstance(value, str) else self.spend(len(value))
        return value

    def tick(self, steps: int) -> bool:
        """Pay for one run of a body, as an expression that is always true."""
        self.spend(steps)
        return True

    def counted(self, items: Iterable[Any], extra_characters: int = 0) -> Iterator[Any]:
        for item in items:
            self.spend_characters(extra_characters)
            yield self.weigh(item)


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
        filters = {name: _priced(budget, self.filters[name], PRICES.get(name)) for name in FILTERS}
        filters |= {name: _at_once(budget, self.filters[name]) for name in FILTERS_AT_ONCE}
        filters["tojson"] = _priced(budget, _to_json(budget))
        filters["join"] = _join_filter(budget, self.filters["join"])
        self.filters = {**filters, _WEIGH: budget.weigh, _COPIED: budget.copied, _TICK: budget.tick}
        self.tests = {name: _at_once(budget, test) for name, test in self.tests.items()}
        self.tests |= {name: _priced(budget, self.tests[name]) for name in COMPARING_TESTS}
        del self.globals["lipsum"]
        self.globals.update(
            raise_exception=_raise_exception, strftime_now=_strftime_now, namespace=_TemplateNamespace
        )

    def _generate(self, source: nodes.Template, *args: Any, **options: Any) -> str:
        return super()._generate(_Metering(self).visit(source), *args, **options)

    def call(self, context: Any, function: Any, *args: Any, **options: Any) -> Any:
        receiver = getattr(function, "__self__", None)
        self.budget.spend(CALL_STEPS + self.budget.size((args, options)))
        if isinstance(receiver, str | dict) and function.__name__ in METHODS_AT_ONCE:
            return super().call(context, function, *args, **options)
        if _is_data(receiver):
            self.budget.weigh(receiver)
        if isinstance(receiver, str):
            name = function.__name__
            if name in PRICES:
                PRICES[name](self.budget, receiver, *args, **options)
            elif name == "join" and args:
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
            _price_of_percent(self.budget, left, right)
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


# ---- What a template may call, and what it costs.


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


def _product(budget: Budget, text: Any, wanted: Any = "", *_: Any, **__: Any) -> None:
    """Searching from the right, or for any of many characters, compares each with each."""
    if isinstance(wanted, str):
        budget.spend_characters(len(str(text)) * len(wanted))


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


def _price_of_percent(budget: Budget, form: Any, *args: Any, **fields: Any) -> None:
    """`'%s and %5d' % …`: a width may be a million, and a field may be named a hundred times."""
    form = str(form)
    for found in _PERCENT.finditer(form):
        _check_width(found["width"] or "")
        _check_width(found["precision"] or "")
    if _PERCENT_KEY_IN_PARENTHESES.search(form):
        raise TemplateLimitError("it formats a key that has parentheses")
    budget.spend((1 + form.count("%")) * budget.size((args, fields)))


def _check_width(digits: str) -> None:
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
    "format": _price_of_percent,
}
"""Of methods and filters, whose first argument is the same: paid before they run, because their results may
be large, or their work."""


class _Formatter(SandboxedFormatter):
    def format_field(self, value: Any, format_spec: str) -> Any:
        for digits in re.findall(r"\d+", format_spec):
            _check_width(digits)
        return super().format_field(value, format_spec)


def _priced(budget: Budget, function: Any, price: Price | None = None) -> Callable[..., Any]:
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


def _at_once(budget: Budget, function: Any) -> Callable[..., Any]:
    @wraps(function)
    def bounded(*args: Any, **options: Any) -> Any:
        budget.spend(CALL_STEPS)
        return function(*args, **options)

    return bounded


def _join_filter(budget: Budget, join: Callable[..., str]) -> Callable[..., str]:
    @wraps(join)
    def bounded(context: Any, value: Any, d: Any = "", attribute: Any = None) -> str:
        return join(context, budget.counted(value, len(str(d))), d, attribute)

    return bounded


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


def _raise_exception(message: object) -> None:
    raise jinja2.TemplateError(f"{message!s:.1000}")


def _strftime_now(form: str) -> str:
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


# ---- The syntax tree, with what is paid written into it.

_WEIGH, _COPIED, _TICK = "(weigh)", "(copied)", "(tick)"
"""Filters that no template can name."""


class _Metering(NodeTransformer):
    """Lets loops and macros pay for each run of their body, and expressions for the values that they make.

    What is not here (calls, operators, filters, output) pays in `_Environment`.
    """

    def __init__(self, environment: jinja2.Environment) -> None:
        self._environment = environment

    def visit_For(self, node: nodes.For) -> nodes.Node:
        self._metered_body(node)
        if node.test is not None:
            node.test = self._new(nodes.And, self._tick(1), node.test)
        return node

    def _metered_body(self, node: Any) -> Any:
        steps = sum(map(_steps_of, node.find_all(nodes.Node)))
        self.generic_visit(node)
        node.body.insert(0, self._new(nodes.ExprStmt, self._tick(steps)))
        return node

    visit_Macro = visit_CallBlock = visit_Block = _metered_body

    def _made(self, node: Any) -> Any:
        return self._weighed(self.generic_visit(node))

    visit_List = visit_Dict = visit_Concat = _made

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:
        return self._made(node) if node.ctx == "load" else self.generic_visit(node)

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:
        self.generic_visit(node)
        return self._filter(node, _COPIED) if isinstance(node.arg, nodes.Slice) else node

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:
        self.generic_visit(node)
        node.expr = self._weighed(node.expr)
        for operand in node.ops:
            operand.expr = self._weighed(operand.expr)
        return node

    def _weighed(self, node: Any) -> Any:
        return node if isinstance(node, nodes.Const) else self._filter(node, _WEIGH)

    def _tick(self, steps: int) -> Any:
        return self._filter(self._new(nodes.Const, steps), _TICK)

    def _filter(self, node: nodes.Expr, name: str) -> Any:
        return self._new(nodes.Filter, node, name, [], [], None, None)

    def _new(self, kind: type[Any], *fields: Any) -> Any:
        return kind(*fields, lineno=1, environment=self._environment)


def _steps_of(node: nodes.Node) -> int:
    text = len(node.data) if isinstance(node, nodes.TemplateData) else 0
    return 1 + text // CHARACTERS_PER_STEP


class _GenerationTag(jinja2.ext.Extension):
    """`{% generation %} … {% endgeneration %}` marks what to train on: here the marks are dropped."""

    tags = {"generation"}  # noqa: RUF012 (Jinja's own way)

    def parse(self, parser: jinja2.parser.Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)
