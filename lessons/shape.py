"""The shape of an exercise: which functions, classes and methods a solution must have.

The skeleton is made from the reference: the same text, with `raise NotImplementedError` in place of the body
of every function, but for those marked `# given` on the line of their `def` or above it.

    python -m lessons.shape          writes every exercise.py anew

Read next: `judge.py`.
"""

from __future__ import annotations

import ast
import inspect
from types import ModuleType

from lessons.catalogue import Lesson, lessons

GIVEN = "# given"


def skeleton(source: str) -> str:
    """The exercise that belongs to a reference.

    Private helpers are part of the solution and go with it: a learner who needs some writes some.

    Raises:
        ValueError: nothing would be left to write.
    """
    lines = source.splitlines()
    tree = ast.parse(source)
    inner = {child for node in _functions(tree) for child in _functions(node) if child is not node}
    cuts: list[tuple[int, int, list[str]]] = []
    for node in _functions(tree):
        if _is_given(lines, node) or node in inner:
            continue
        if node.name.startswith("_") and not node.name.startswith("__"):
            cuts.append((_first_line(node) - 1, node.end_lineno or 0, []))
        else:
            stub = " " * (node.col_offset + 4) + "raise NotImplementedError"
            cuts.append((_end_of_head(lines, node), node.end_lineno or 0, [stub]))
    if not any(body for _, _, body in cuts):
        raise ValueError("a reference must have at least one public function that is not given")
    for start, end, body in sorted(cuts, reverse=True):
        lines[start:end] = body
    text = "\n".join(lines).rstrip() + "\n"
    while "\n\n\n\n" in text:
        text = text.replace("\n\n\n\n", "\n\n\n")
    return text


def given_lines(source: str) -> set[int]:
    """Lines of the functions that a learner gets as they are."""
    lines = source.splitlines()
    given = [node for node in _functions(ast.parse(source)) if _is_given(lines, node)]
    return {line for node in given for line in range(node.lineno, (node.end_lineno or 0) + 1)}


def _functions(tree: ast.AST) -> list[ast.FunctionDef]:
    return [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]


def _first_line(node: ast.FunctionDef) -> int:
    return min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])


def _is_given(lines: list[str], node: ast.FunctionDef) -> bool:
    first = _first_line(node)
    return GIVEN in lines[node.lineno - 1] or (first > 1 and lines[first - 2].strip().startswith(GIVEN))


def _end_of_head(lines: list[str], node: ast.FunctionDef) -> int:
    """The last line of signature and docstring. A comment above the body is part of the solution."""
    if ast.get_docstring(node) is not None:
        return node.body[0].end_lineno or 0
    line = node.body[0].lineno - 1
    while line > node.lineno and lines[line - 1].strip().startswith("#"):
        line -= 1
    return line


def missing_parts(exercise: str, subject: ModuleType) -> list[str]:
    """What the exercise has and the subject lacks, in sentences."""
    missing = []
    for node in ast.parse(exercise).body:
        if not isinstance(node, ast.FunctionDef | ast.ClassDef):
            continue
        thing = getattr(subject, node.name, None)
        if isinstance(node, ast.FunctionDef):
            if not callable(thing):
                missing.append(f"there is no function `{node.name}`")
        elif not inspect.isclass(thing):
            missing.append(f"there is no class `{node.name}`")
        else:
            # What the exercise has as a property may as well be an attribute, which only objects have.
            functions = [item for item in node.body if isinstance(item, ast.FunctionDef)]
            names = {item.name for item in functions if not _is_property(item)}
            lacking = [name for name in sorted(names) if not hasattr(thing, name)]
            missing += [f"the class `{node.name}` has no `{name}`" for name in lacking]
    return missing


def _is_property(node: ast.FunctionDef) -> bool:
    return any(isinstance(mark, ast.Name) and mark.id == "property" for mark in node.decorator_list)


def write_skeleton(lesson: Lesson) -> bool:
    """Write a lesson's `exercise.py`; was it another one before?"""
    text = skeleton(lesson.reference.read_text(encoding="utf-8"))
    before = lesson.exercise.read_text(encoding="utf-8") if lesson.exercise.exists() else ""
    lesson.exercise.write_text(text, encoding="utf-8")
    return text != before


if __name__ == "__main__":
    for each in lessons():
        print(each.name, "written anew" if write_skeleton(each) else "unchanged")
