"""The syntax tree of a chat template, with what is paid written into it.

    {% for m in messages %} … {% endfor %}   →   {% for m in messages %}(pay for this body) … {% endfor %}
    [a, b]    a ~ b    a == b                →   each pays for what it makes, or walks over

What is not here (calls, operators, filters, output) pays in `sandbox.py`.
"""

from __future__ import annotations

from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.visitor import NodeTransformer

from minivllm.model.chat.budget import CHARACTERS_PER_STEP

WEIGH, COPIED, TICK = "(weigh)", "(copied)", "(tick)"
"""Filters that no template can name."""


class Metering(NodeTransformer):
    """Lets loops and macros pay for each run of their body, and expressions for the values that they make."""

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
        return self._filter(node, COPIED) if isinstance(node.arg, nodes.Slice) else node

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:
        self.generic_visit(node)
        node.expr = self._weighed(node.expr)
        for operand in node.ops:
            operand.expr = self._weighed(operand.expr)
        return node

    def _weighed(self, node: Any) -> Any:
        return node if isinstance(node, nodes.Const) else self._filter(node, WEIGH)

    def _tick(self, steps: int) -> Any:
        return self._filter(self._new(nodes.Const, steps), TICK)

    def _filter(self, node: nodes.Expr, name: str) -> Any:
        return self._new(nodes.Filter, node, name, [], [], None, None)

    def _new(self, kind: type[Any], *fields: Any) -> Any:
        return kind(*fields, lineno=1, environment=self._environment)


def _steps_of(node: nodes.Node) -> int:
    text = len(node.data) if isinstance(node, nodes.TemplateData) else 0
    return 1 + text // CHARACTERS_PER_STEP
