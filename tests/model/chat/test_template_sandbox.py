"""A chat template is a program of a stranger: it works as in Jinja, within bounds that are counted."""

# ruff: noqa: E501 (a table of programs)

import sys

import jinja2
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers.utils.chat_template_utils import _compile_jinja_template

from minivllm.model.chat.budget import CHARACTERS_PER_STEP, TemplateLimitError
from minivllm.model.chat.sandbox import MAX_TEMPLATE_CHARACTERS, CompiledTemplate
from minivllm.model.chat.template import ChatTemplateError, ChatTemplates, render_chat

HELLO = [{"role": "user", "content": "hi"}]
LONG = "{% for i in range(99999) %}"
GROW = "{% set ns = namespace(x=['xx']) %}{% for i in range(9999) %}{% set ns.x = "

TOO_MUCH = {
    "nested ranges": LONG * 4 + "{% endfor %}" * 4,
    "a filtered range in a range": LONG + "{% for j in range(99999) if false %}{% endfor %}{% endfor %}",
    "a recursive loop": "{% for x in range(9) recursive %}{{ loop(range(99999)) }}{% endfor %}",
    "a loop that is walked over in its body": "{% for i in range(99999)|list %}{{ loop|list|length }}{% endfor %}",
    "macros that call themselves": "{% macro m() %}{{ m() }}{{ m() }}{% endmacro %}{{ m() }}",
    "a block that is itself": "{% block a %}{{ self.a() }}{% endblock %}",
    "a long text in a loop": LONG + "words " * 1000 + "{% endfor %}",
    "a long text in a macro": "{% macro m() %}"
    + "words " * 1000
    + "{% endmacro %}"
    + LONG
    + "{% set x = m() %}{% endfor %}",
    "many statements in a loop": LONG + "{% set x = 1 %}" * 500 + "{% endfor %}",
    "a text times a number": "{{ 'x' * 10**10 }}",
    "a number times a text": "{{ 10**10 * 'x' }}",
    "a list times a number": "{{ [1, 2] * 10**10 }}",
    "a power": "{{ 10 ** (10 ** 10) }}",
    "a product of powers": "{% set ns = namespace(x=3) %}"
    + LONG
    + "{% set ns.x = ns.x * ns.x %}{% endfor %}",
    "a text that doubles": GROW + "ns.x ~ ns.x %}{% endfor %}",
    "a sum that doubles": GROW + "ns.x + ns.x %}{% endfor %}",
    "a list that holds itself twice": GROW + "[ns.x, ns.x] %}{% endfor %}{{ ns.x }}",
    "a list that grows deep": GROW + "[ns.x] %}{% endfor %}{{ ns.x }}",
    "a dictionary that doubles": GROW + "{1: ns.x, 2: ns.x} %}{% endfor %}{{ ns.x == ns.x }}",
    "a slice in a loop": "{% set a = 'x' * 100000 %}" + LONG + "{% set b = a[1:] %}{% endfor %}",
    "a comparison in a loop": "{% set a = ['x'] * 9999 %}" + LONG + "{% set b = a == a %}{% endfor %}",
    "a search in a loop": "{% set a = ['x'] * 9999 %}" + LONG + "{% set b = 'y' in a %}{% endfor %}",
    "a filter in a loop": "{% set a = 'x' * 100000 %}" + LONG + "{% set b = a|upper %}{% endfor %}",
    "a method in a loop": "{% set a = 'x' * 100000 %}" + LONG + "{% set b = a.upper() %}{% endfor %}",
    "a key that is a long list": "{% set k = (range(99999)|list, 1) %}{% set d = {} %}"
    + LONG
    + "{{ d[k] }}{% endfor %}",
    "a lazy filter in a loop": LONG + "{{ range(99999)|map('string')|list|length }}{% endfor %}",
    "a lazy test in a loop": LONG + "{{ range(99999)|select('eq', 5)|list|length }}{% endfor %}",
    "an attribute of many parts": "{{ (['abc'] * 9999)|map(attribute='0' ~ '.0' * 9999)|list|length }}",
    "indented JSON": "{{ {'a': 1}|tojson(indent=10**9) }}",
    "JSON with long separators": "{{ (range(9999)|list)|tojson(separators=('x' * 99999, ':')) }}",
    "words of nonsense": "{{ lipsum(n=10**7) }}",
    "a wide column": "{{ 'x'.center(10**9) }}{{ 'x'.zfill(10**9) }}",
    "a wide column by filter": "{{ 'x'|center(10**9) }}",
    "a method by the filter attr": "{{ ('x'|attr('ljust'))(10**9) }}",
    "wide tabs": "{{ ('\t' * 9999).expandtabs(10**6) }}",
    "a wide number": "{{ '%1000000000d' % 5 }}",
    "a width among the arguments": "{{ '%*d' % (10**9, 5) }}",
    "a wide fraction": "{{ '%.1000000000f' % 5 }}",
    "a wide number behind a key": "{{ '%((a))1000000000d' % {'(a)': 5} }}",
    "a wide number by filter": "{{ '%1000000000d'|format(5) }}",
    "a wide field": "{{ '{:1000000000d}'.format(5) }}",
    "a width in a field": "{{ '{:{}d}'.format(5, 10**9) }}",
    "a field many times": "{{ ('{0}' * 9999).format('x' * 99999) }}",
    "a key many times": "{{ ('%(a)s' * 9999) % {'a': 'x' * 99999} }}",
    "a long glue": "{{ range(9999)|join('x' * 99999) }}",
    "a long glue by method": "{{ ('x' * 99999).join(['a'] * 9999) }}",
    "a replacement": "{{ ('x' * 99999)|replace('x', 'y' * 99999) }}",
    "a replacement by method": "{{ ('x' * 99999).replace('', 'y' * 99999) }}",
    "an indentation": "{{ ('x\n' * 9999)|indent(10**6) }}",
    "rounding to a billion digits": "{{ 1.5|round(10**9, 'ceil') }}",
    "a sum of lists": "{{ ([[1]] * 99999)|sum(start=[]) }}",
    "a search from the right": "{{ ('a' * 999999).rfind('a' * 99999 ~ 'b' ~ 'a' * 99999) }}",
    "stripping many characters": "{{ ('a' * 999999).strip('b' * 999999 ~ 'a') }}",
    "stripping many characters by filter": "{{ ('a' * 999999)|trim(chars='b' * 999999 ~ 'a') }}",
    "a long date": "{{ strftime_now('%c' * 9999) }}",
    "a filled batch": "{{ [1]|batch(10**9, 'x')|list }}",
    "bytes of a number": "{{ (5).to_bytes(10**9, 'big') }}",
    "a captured loop": "{% set x %}" + LONG + "{{ 'x' * 9999 }}{% endfor %}{% endset %}",
    "a filtered loop": "{% filter upper %}" + LONG + "{{ 'x' * 9999 }}{% endfor %}{% endfilter %}",
    "a safe text": "{{ ('x'|safe) * 10**9 }}",
    "deep parentheses": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "deep conditions": "{% if 1 %}" * 3000 + "{% endif %}" * 3000,
    "deep loops": "{% for x in [1] %}" * 50 + "{% endfor %}" * 50,
    "a long program": "x" * (MAX_TEMPLATE_CHARACTERS + 1),
}


OTHER_WORDS = {
    "macros that call themselves": RecursionError,
    "a block that is itself": RecursionError,
    "deep parentheses": RecursionError,
    "deep conditions": RecursionError,
    "deep loops": SyntaxError,
    "words of nonsense": jinja2.UndefinedError,
    "a filled batch": jinja2.TemplateAssertionError,
    "bytes of a number": jinja2.exceptions.SecurityError,
}


@pytest.mark.parametrize("program", TOO_MUCH)
def test_a_program_that_would_never_end_or_fill_the_memory_is_refused(program):
    """With few steps, because the test is to be quick; each of them would need many millions."""
    with pytest.raises(OTHER_WORDS.get(program, TemplateLimitError)):
        CompiledTemplate(TOO_MUCH[program]).render({"messages": HELLO}, steps=100_000)


@pytest.mark.parametrize(
    "program", ["a text times a number", "a wide column", "deep conditions", "macros that call themselves"]
)
def test_the_refusal_is_a_value_error_in_a_loop_too(program):
    inside = "{% for i in [1] %}" + TOO_MUCH[program] + "{% endfor %}"
    with pytest.raises(ChatTemplateError, match=r"the chat template of this tokenizer .*: it (takes|is)"):
        render_chat(ChatTemplates(inside), HELLO)


ESCAPES = ["''.__class__.__mro__", "messages.append(1)", "messages[0].update({})", "namespace(_x=1)", "cycler.__init__.__globals__.os", "self.__init__()", "(1).real.__add__(1)", "'{0.__class__}'.format(1).x()"]  # fmt: skip


@pytest.mark.parametrize("expression", ESCAPES)
def test_a_template_reaches_nothing_of_python(expression):
    with pytest.raises(ChatTemplateError, match="refuses these messages"):
        render_chat(ChatTemplates("{{ " + expression + " }}"), HELLO)


SAME_AS_IN_JINJA = [
    "[1, 'é', none]|tojson", "{'b': [1], 'a': '<'}|tojson(indent=2, sort_keys=true)", "{'a': 1}|tojson(separators=(',', ':'))",
    "'é'|tojson(ensure_ascii=true)", "' x '|trim", "'abc'|capitalize ~ 'a b'|title", "[3, 1, 2]|sort|join(', ')", "[1, 2]|sum",
    "'%s and %5.2f%%' % ('x', 1.5)", "'%(a)s' % {'a': 5}", "'{}: {:>5} {a!r}'.format(1, 'x', a='y')", "'{a}'.format_map({'a': 1})",
    "'%s-%s'|format(1, 2)", "'x' * 3 ~ 2 * [1]", "2 ** 10 // 3 % 7", "'a-b-c'.split('-')[1:]", "'abcabc'.rsplit('b', 1)|list", "' x '.strip(' ')",
    "'ab'.replace('a', 'c')|replace('b', 'd', 1)", "'a\nb'|indent(2, true)", "'x'.center(5)|length", "1.256|round(1)", "'5'|int + '2'|float",
    "{'a': 1}.items()|list", "{'b': 2, 'a': 1}|dictsort", "messages|map(attribute='role')|join", "messages|selectattr('role', 'eq', 'user')|list|length",
    "messages|rejectattr('name', 'defined')|first", "range(5)|select('odd')|list", "[1, 1, 2]|unique|list", "[1, 2]|reverse|list", "[2, 1]|min ~ [1, 2]|max",
    "messages|groupby('role')|length", "'<a>'|e ~ '<b>'|safe", "'<a>'|escape * 2", "(1, 2) + (3,)", "[1] == [1] and 'a' in 'abc' and 5 not in [1]", "'ab'[::-1]",
    "dict(a=1, b=[2])", "namespace(a=1).a", "cycler('a', 'b').next()", "undefined_one|default('x')", "undefined_one is defined", "messages is iterable and messages is not string",
    "'abc'|length ~ [1]|count", "'a' if false", "'word ' * 3 | wordcount", "'a long text of words'|truncate(10)", "'a/b'|urlencode", "'x'|upper|lower|list|last", "'a\tb'.expandtabs(4)", "10000 * 10000",
]  # fmt: skip


@pytest.mark.parametrize("expression", SAME_AS_IN_JINJA)
def test_within_the_bounds_everything_is_as_in_transformers(expression):
    program = "{% for i in [1, 2] if i > 1 %}{{ " + expression + " }} {{ loop.length }}{% endfor %}"
    assert CompiledTemplate(program).render({"messages": HELLO}) == _compile_jinja_template(program).render(
        messages=HELLO
    )


PROGRAM = """
{%- macro twice(x) %}{{ x }}{{ x }}{{ caller() if caller else '' }}{% endmacro %}
{%- set ns = namespace(text='') %}
{%- for m in messages recursive %}{% set ns.text = ns.text ~ loop.index %}
  {%- if loop.first %}{% continue %}{% endif %}
  {%- call twice(m.role) %}{{ loop.previtem.content }}{% endcall %}
  {%- filter upper %}{{ m.content }}{% endfilter %}{% set x %}a{{ twice('b') }}{% endset %}{{ x }}
  {%- if m.more %}{{ loop(m.more) }}{% endif %}{% if loop.index > 3 %}{% break %}{% endif %}
{%- else %}none{% endfor %}{{ ns.text }}{% with y = 5 %}{{ y }}{% endwith %}{% block z %}z{% endblock %}"""


@pytest.mark.parametrize("count", range(6))
def test_every_kind_of_statement_works_as_in_transformers(count):
    messages = [{"role": "user", "content": f"text {i}", "more": HELLO * i} for i in range(count)]
    assert CompiledTemplate(PROGRAM).render({"messages": messages}) == _compile_jinja_template(
        PROGRAM
    ).render(messages=messages)


bodies = st.recursive(
    st.sampled_from(["{{ i }}", "text ", "{% set x = [i, x] %}", "{{ x|string|length }}", "{% set x = x ~ i %}", "{{ 'ab'.replace('a', 'bb') }}", "{{ m(i) }}", "{{ range(50)|map('string')|join }}"]),
    lambda inner: st.builds("".join, st.lists(inner, max_size=3)) | inner.map(lambda body: "{% for i in range(40) %}" + body + "{% endfor %}")
    | inner.map(lambda body: "{% for i in range(40) if i is odd %}" + body + "{% endfor %}")
    | inner.map(lambda body: "{% set x %}" + body + "{% endset %}"),
    max_leaves=8,
)  # fmt: skip


@given(body=bodies, steps=st.integers(0, 3000))
def test_the_lines_that_run_and_the_characters_that_come_are_no_more_than_the_steps(body, steps):
    """Lines of the program are counted by Python's tracer, which knows nothing of steps."""
    template = CompiledTemplate("{% set x = '' %}{% macro m(a) %}{{ a }}{{ [a, a] }}{% endmacro %}" + body)
    lines = 0

    def trace(frame, event, argument):
        nonlocal lines
        if frame.f_code.co_filename != "<template>":
            return None
        lines += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        text = template.render({}, steps)
    except TemplateLimitError:
        text = ""
    finally:
        sys.settrace(before)
    outside = 40 + 8 * len(body)  # what is not in a loop runs once, and is free
    assert lines <= 4 * steps + outside
    assert len(text) <= CHARACTERS_PER_STEP * steps


def test_a_function_that_is_called_wrongly_is_named_as_templates_call_it():
    with pytest.raises(ChatTemplateError, match=r"refuses these messages: raise_exception\(\) missing 1"):
        render_chat(ChatTemplates("{{ raise_exception() }}"), HELLO)
