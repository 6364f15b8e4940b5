"""Mutation testing: change the reference in every small way there is, and see whether a property notices.

    comparison   <  →  <=        arithmetic   +  →  -        boundary   n  →  n + 1
    condition    x  →  not x     statement    removed        arguments  f(a, b)  →  f(b, a)

A property is as good as the wrong solutions that it rejects. What survives is a hole in `checks.py`, or
changes nothing that a solution promises; `EQUIVALENT` in `mutants.py` then says why.

    python -m lessons.mutation [LESSON …]

Source: DeMillo, Lipton and Sayward, "Hints on Test Data Selection" (1978).
Read next: `mutation_judge.py`, which judges them; `mutant.py`.
"""

from __future__ import annotations

import ast
import copy
import sys
from collections.abc import Iterator
from dataclasses import dataclass

from lessons.catalogue import Lesson, find_lesson, lessons
from lessons.mutant import load_mutants
from lessons.mutation_judge import caught_by
from lessons.shape import given_lines
from minivllm.executor.cpu_hazards import usable_cores

COMPARISONS: dict[type[ast.cmpop], tuple[type[ast.cmpop], ...]] = {
    ast.Lt: (ast.LtE, ast.GtE),
    ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.LtE),
    ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
}
ARITHMETIC: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.FloorDiv,
    ast.FloorDiv: ast.Mult,
    ast.Div: ast.Mult,
    ast.Mod: ast.FloorDiv,
    ast.MatMult: ast.Mult,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
}

CHANGED = ast.BinOp | ast.If | ast.While | ast.IfExp | ast.Constant | ast.BoolOp | ast.Call
REMOVED = ast.Expr | ast.Assign | ast.Delete | ast.Raise | ast.Continue | ast.Break


@dataclass(frozen=True)
class Change:
    """One mechanical mutant."""

    line: int
    before: str
    after: str
    source: str

    @property
    def words(self) -> str:
        return f"{self.before}  →  {self.after}"


def changes(source: str) -> Iterator[Change]:
    """Every mutant of a text; annotations, docstrings and what is given to the learner are left alone."""
    tree, given = ast.parse(source), given_lines(source)
    for number, node in enumerate(ast.walk(tree)):
        if getattr(node, "lineno", 0) in given:
            continue
        for variant in range(_num_variants(node)):
            mutated = copy.deepcopy(tree)
            target = next(item for index, item in enumerate(ast.walk(mutated)) if index == number)
            statement = _statement_of(mutated, target)
            before = _line(statement)
            after = _mutate(mutated, target, variant)
            if after is None:
                continue
            text = ast.unparse(ast.fix_missing_locations(mutated))
            shown = "(removed)" if after == "" else _line(_statement_of(mutated, target))
            yield Change(getattr(target, "lineno", 0), before, shown, text)


def _num_variants(node: ast.AST) -> int:
    if isinstance(node, ast.Compare | ast.AugAssign):
        return 2
    return int(isinstance(node, CHANGED | REMOVED))


def _mutate(tree: ast.AST, node: ast.AST, variant: int) -> str | None:
    """Change a node in place. None if there is nothing to change, "" if it was removed."""
    if isinstance(node, ast.Compare):
        others = COMPARISONS.get(type(node.ops[0]), ())
        if variant >= len(others):
            return None
        node.ops[0] = others[variant]()
    elif isinstance(node, ast.AugAssign) and variant == 1:
        return _remove(tree, node)
    elif isinstance(node, ast.BinOp | ast.AugAssign):
        if type(node.op) not in ARITHMETIC or _is_annotation(tree, node):
            return None
        node.op = ARITHMETIC[type(node.op)]()
    elif isinstance(node, ast.If | ast.While | ast.IfExp):
        node.test = ast.UnaryOp(ast.Not(), node.test)
    elif isinstance(node, ast.BoolOp):
        node.op = ast.Or() if isinstance(node.op, ast.And) else ast.And()
    elif isinstance(node, ast.Constant):
        if isinstance(node.value, bool) or not isinstance(node.value, int | float):
            return None
        if _is_annotation(tree, node):
            return None
        node.value = node.value + 1
    elif isinstance(node, ast.Call):
        is_symmetric = isinstance(node.func, ast.Name) and node.func.id in ("max", "min")
        if is_symmetric or len(node.args) < 2 or any(isinstance(item, ast.Starred) for item in node.args[:2]):
            return None
        node.args[0], node.args[1] = node.args[1], node.args[0]
    else:
        return _remove(tree, node)
    return "changed"


def _remove(tree: ast.AST, node: ast.AST) -> str | None:
    """A statement becomes `pass`; docstrings, and what stands outside of functions, stay."""
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
        return None
    for parent in ast.walk(tree):
        for name in ("body", "orelse", "finalbody"):
            block = getattr(parent, name, None)
            if isinstance(block, list) and node in block:
                if isinstance(parent, ast.Module | ast.ClassDef):
                    return None
                block[block.index(node)] = ast.Pass()
                return ""
    return None


def _is_annotation(tree: ast.AST, node: ast.AST) -> bool:
    """`int | None` is no arithmetic."""
    for parent in ast.walk(tree):
        for name in ("annotation", "returns"):
            inner = getattr(parent, name, None)
            if inner is not None and any(item is node for item in ast.walk(inner)):
                return True
    return False


def _statement_of(tree: ast.AST, node: ast.AST) -> ast.AST:
    """The innermost statement that a node is in."""
    best: ast.AST = node
    for item in ast.walk(tree):
        if isinstance(item, ast.stmt) and any(inner is node for inner in ast.walk(item)):
            best = item
    return best


def _line(node: ast.AST) -> str:
    return ast.unparse(node).splitlines()[0] if not isinstance(node, ast.Module) else ""


# ── judging them ──────────────────────────────────────────────────────────────────────────────────────


def survivors(lesson: Lesson, processes: int) -> tuple[int, list[Change]]:
    """How many mechanical mutants there are, and those that nothing caught."""
    source = lesson.reference.read_text(encoding="utf-8")
    plain = ast.unparse(ast.parse(source))
    mutants = [change for change in changes(source) if change.source != plain]
    found = caught_by(lesson, [change.source for change in mutants], processes)
    return len(mutants), [change for change, catcher in zip(mutants, found, strict=True) if not catcher]


def main(names: list[str]) -> None:
    for lesson in [find_lesson(name) for name in names] or lessons():
        equivalent = load_mutants(lesson).equivalent
        count, alive = survivors(lesson, usable_cores())
        holes = [change for change in alive if change.words not in equivalent]
        caught = count - len(alive)
        share = caught / max(1, count - (len(alive) - len(holes)))
        print(
            f"{lesson.heading()}: {caught} of {count} caught, {len(alive) - len(holes)} equivalent, "
            f"{len(holes)} not caught: {share:.1%}",
            flush=True,
        )
        for change in holes:
            print(f"    line {change.line}: {change.words}", flush=True)
        for words in equivalent.keys() - {change.words for change in alive}:
            print(f"    caught, or not made any more, though EQUIVALENT names it: {words}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
