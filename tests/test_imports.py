"""The rules of the house about imports: CONTRIBUTING's table of rooms, held against every file."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

from tests import patience, trees

ROOT = Path(__file__).parent.parent
PACKAGES = ("minivllm", "kernels_numba", "viz", "lessons")
TENSOR_LIBRARIES = {"torch", "numba", "numpy", "safetensors", "transformers"}
CLOCKS = {"time", "datetime"}
ENGINE = {
    "minivllm",
    "minivllm.config",
    "minivllm.decoding",
    "minivllm.engine",
    "minivllm.executor",
    "minivllm.files",
    "minivllm.guard",
    "minivllm.llm",
    "minivllm.memory",
    "minivllm.model",
    "minivllm.outputs",
    "minivllm.processes",
    "minivllm.quantize",
    "minivllm.sampling_params",
    "minivllm.scheduling",
    "minivllm.scratch",
    "minivllm.structured_outputs",
    "minivllm.terminal",
    "minivllm.text",
    "minivllm.trace",
    "minivllm.uncollected",
    "minivllm.usage",
    "minivllm.validation",
}
"""What the table calls "everything of the engine": `minivllm/` without the lab and the console."""


class Room(NamedTuple):
    """One row of the table."""

    paths: tuple[Path, ...]
    may_import: frozenset[str]
    """Dotted names of rooms."""
    is_plain: bool
    has_no_clock: bool


def dotted(name: str) -> str:
    """`lab/workloads` or `validation.py`, as the table writes them, as a dotted name."""
    name = name.strip().removesuffix(".py").strip("/").replace("/", ".")
    return name if name in PACKAGES else f"minivllm.{name}"


def read_rooms() -> list[Room]:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    table = text.split("### The rooms")[1].split("\n###")[0]
    rooms = []
    for line in table.splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        names = re.findall(r"`([^`]+)`", cells[0])
        if not names or len(cells) != 4:
            continue
        allowed: set[str] = set()
        for name in cells[2].split(","):
            match name.strip():
                case "–":
                    continue
                case "everything":
                    allowed |= {"minivllm", *PACKAGES}
                case "everything of the engine":
                    allowed |= ENGINE
                case other:
                    allowed.add(dotted(other))
        plane = cells[3]
        paths = tuple(ROOT / name for name in names)
        rooms.append(Room(paths, frozenset(allowed), "plain" in plane, "no clock" in plane))
    return rooms


ROOMS = read_rooms()
ROOM_AT = {place: room for room in ROOMS for place in room.paths}
FILES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def room_of(path: Path) -> Room | None:
    """The room with the longest path that holds a file: a file may have a row of its own."""
    return next((ROOM_AT[place] for place in (path, *path.parents) if place in ROOM_AT), None)


@cache
def imports_of(path: Path) -> frozenset[str]:
    """Full names of the modules that a file imports when it runs (not those for type checkers only)."""
    names = set()
    for node in trees.statements(trees.of(path)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are written in full"
            module = node.module or ""
            names |= {f"{module}.{alias.name}" if is_module(f"{module}.{alias.name}") else module
                      for alias in node.names}  # fmt: skip
    return frozenset(names)


@cache
def is_module(name: str) -> bool:
    place = ROOT / name.replace(".", "/")
    return name.split(".")[0] in PACKAGES and (place.is_dir() or place.with_suffix(".py").is_file())


def is_allowed(name: str, room: Room) -> bool:
    own = {".".join(place.relative_to(ROOT).with_suffix("").parts) for place in room.paths}
    return any(
        name == allowed or (name.startswith(f"{allowed}.") and allowed != "minivllm")
        for allowed in own | room.may_import
    )


def test_the_table_is_read():
    assert len(ROOMS) > 25 and len(FILES) > 300
    for room in ROOMS:
        for place in room.paths:
            assert place.exists(), f"CONTRIBUTING names {relative(place)}, which is not there"


def test_every_file_imports_only_what_its_room_may():
    faults = [fault for path in FILES for fault in faults_of(path)]
    assert not faults, "\n".join(faults)


def faults_of(path: Path) -> Iterator[str]:
    room = room_of(path)
    if room is None:
        yield f"{relative(path)} is in no room of CONTRIBUTING's table"
        return
    for name in sorted(imports_of(path)):
        library = name.split(".")[0]
        if library in PACKAGES and not is_allowed(name, room):
            yield f"{relative(path)} imports {name}"
        if room.is_plain and library in TENSOR_LIBRARIES:
            yield f"{relative(path)} is no plain Python: it imports {name}"
        if room.has_no_clock and library in CLOCKS:
            yield f"{relative(path)} looks at a clock: it imports {name}"


def test_there_is_no_circle():
    """Of modules that import each other when they run, inside functions included."""
    modules = {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
               for path in FILES}  # fmt: skip
    graph = {name: {other for other in imports_of(path) if other in modules and other != name}
             for name, path in modules.items()}  # fmt: skip
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " → ".join((*path[path.index(name) :], name))
        if name in done:
            return
        for other in sorted(graph[name]):
            visit(other, (*path, name))
        done.add(name)

    for name in graph:
        visit(name, ())


def test_only_pictures_of_the_lab_and_the_dashboard_draw():
    for path in FILES:
        libraries = {name.split(".")[0] for name in imports_of(path)}
        if not path.is_relative_to(ROOT / "viz"):
            assert "streamlit" not in libraries, relative(path)
        if not any(path.is_relative_to(ROOT / room) for room in ("viz", "minivllm/lab", "lessons")):
            assert "matplotlib" not in libraries, relative(path)


def test_the_dashboard_runs_without_what_only_tests_and_judges_need():
    code = "import viz.views.lessons, viz.views.start, sys; print(*sys.modules)"
    command = [sys.executable, "-c", code]
    options = {"capture_output": True, "text": True, "check": True, "timeout": patience.SECONDS}
    done = subprocess.run(command, cwd=ROOT, **options)
    assert not {"hypothesis", "pytest", "torch"} & set(done.stdout.split())
