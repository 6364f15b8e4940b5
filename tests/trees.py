"""Syntax trees of our files, for tests that read all of them."""

import ast
from pathlib import Path


def of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def statements(node):
    """All statements below a node that run, in whatever they stand; an expression holds none.

    A tenth of all nodes. What stands under `if TYPE_CHECKING:` does not run.
    """
    for part in ("body", "handlers", "cases", "orelse", "finalbody"):
        if part == "body" and isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        for below in getattr(node, part, ()):
            yield below
            yield from statements(below)
