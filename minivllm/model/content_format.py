"""Does a chat template expect a message's content as text, or as a list of parts?

Clients send `"content": "hi"` or `"content": [{"type": "text", "text": "hi"}]`, and a template understands
one of the two. Which one, its program says: a template for parts loops over `message['content']`, where
`message` comes from a loop over `messages`. So the syntax tree is searched for such a loop, and names that
are given to `messages` or to parts of it are followed.

Source: vLLM's detection (`_detect_content_format`), with the same answers, its doubtful ones included.
Read next: `chat_messages.py`, which turns contents into what is expected.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Literal

from jinja2 import nodes

from minivllm.model.template_sandbox import parse

ContentFormat = Literal["string", "openai"]
CONTENT_FORMATS = ("auto", "string", "openai")


class _NotANameError(Exception):
    """A target such as `a, b` or `ns.a`: what it stands for is not followed."""


@lru_cache(maxsize=32)
def detect_content_format(template: str) -> ContentFormat:
    """ "openai" if the template loops over the parts of a message's content, "string" if not, or in doubt."""
    tree = parse(template)
    try:
        messages = _names_given_to(tree, "messages")
        each = {_name(loop.target) for loop in _loops_over(tree, messages)}
        parts = [_name(loop.target) for loop in _loops_over(tree, each, "content")]
    except _NotANameError:
        return "string"
    return "openai" if parts else "string"


def _names_given_to(tree: nodes.Template, name: str) -> set[str]:
    """`name`, and what a `{% set … %}` makes of it, of a slice of it, or of it through a filter."""
    names, new = {name}, [name]
    while new:
        wanted = new.pop()
        for assignment in tree.find_all(nodes.Assign):
            if _is_part_of(assignment.node, wanted) and (found := _name(assignment.target)) not in names:
                names.add(found)
                new.append(found)
    return names


def _loops_over(tree: nodes.Template, names: set[str], key: str | None = None) -> Iterator[nodes.For]:
    for loop in tree.find_all(nodes.For):
        if any(_is_part_of(loop.iter, name, key) for name in names):
            yield loop


def _is_part_of(node: nodes.Node | None, name: str, key: str | None = None) -> bool:
    """Is this the variable (or its `key`), a slice of it, or it through filters?"""
    while True:
        if isinstance(node, nodes.Filter | nodes.Test) or (
            isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Slice)
        ):
            node = node.node
        elif key is None:
            return isinstance(node, nodes.Name) and node.ctx == "load" and node.name == name
        elif isinstance(node, nodes.Getitem):
            return (
                isinstance(node.arg, nodes.Const) and node.arg.value == key and _is_part_of(node.node, name)
            )
        else:
            return isinstance(node, nodes.Getattr) and node.attr == key and _is_part_of(node.node, name)


def _name(target: nodes.Node) -> str:
    if not isinstance(target, nodes.Name):
        raise _NotANameError
    return target.name
